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
if ! command -v apt-get >/dev/null; then
  echo "install_chromium: no apt-get here; install one of ${programs[*]} by hand" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "install_chromium: not root; ask for: apt-get install $package" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
if ! apt-get install -qq -y --no-install-recommends "$package" >/dev/null || ! found; then
  echo "install_chromium: no package $package here; install one of ${programs[*]} by hand" >&2
  exit 1
fi
