# Source this file. Installs Debian packages, or exits 1 with the reason why it cannot.
# usage: apt_install NAME ADVICE PACKAGE...   ADVICE says what to install without apt-get

apt_install() {
  local name=$1 advice=$2
  shift 2
  if ! command -v apt-get >/dev/null; then
    echo "$name: no apt-get on this machine; $advice" >&2
    exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "$name: needs root for: apt-get install $*" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || exit 1 # `set -e` has no effect in a function that the caller tests
  apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}
