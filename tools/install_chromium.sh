#!/usr/bin/env bash
# Installs a Chromium without windows for the tests of the report's page (Debian).
# Exit 1, with the reason, where that cannot be done here.
set -euo pipefail

programs=(chromium-headless-shell chromium google-chrome)
package=chromium-headless-shell

found() {
  for program in "${programs[@]}"; do
    command -v "$program" >/dev/null && return
  done
  return 1
}

found && exit 0
. "$(dirname "$0")/apt_install.sh"
by_hand="install one of ${programs[*]} by hand"
if ! apt_install install_chromium "$by_hand" "$package" || ! found; then
  echo "install_chromium: no package $package here; $by_hand" >&2
  exit 1
fi
