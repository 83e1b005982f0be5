#!/usr/bin/env bash
# Install a headless Chromium for the tests of the report page (Debian).
# Exits 1 with the reason if that is impossible.
set -euo pipefail

programs=(chromium-headless-shell chromium google-chrome)
package=chromium-headless-shell

is_installed() {
  for program in "${programs[@]}"; do
    command -v "$program" >/dev/null && return
  done
  return 1
}

is_installed && exit 0
. "$(dirname "$0")/apt_install.sh"
advice="install one of ${programs[*]} by hand"
if ! apt_install install_chromium "$advice" "$package" || ! is_installed; then
  echo "install_chromium: no package $package; $advice" >&2
  exit 1
fi
