# To be sourced: installs Debian packages, or says why that cannot be done here (exit 1).
# usage: apt_install NAME BY_HAND PACKAGE...   BY_HAND tells what to install where there is no apt-get

apt_install() {
  local name=$1 by_hand=$2
  shift 2
  if ! command -v apt-get >/dev/null; then
    echo "$name: no apt-get here; $by_hand" >&2
    exit 1
  fi
  if [ "$(id -u)" != 0 ]; then
    echo "$name: not root; ask for: apt-get install $*" >&2
    exit 1
  fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq || exit 1 # where the caller tests the outcome, -e does not see it
  apt-get install -qq -y --no-install-recommends "$@" >/dev/null
}
