#!/usr/bin/env bash
# Installs the Slurm daemons and a database for the throw-away cluster of the tests (Debian, Ubuntu).
# Exit 1, with the reason, where that cannot be done here. Nothing is configured or started.
set -euo pipefail

programs=(munged slurmctld slurmd slurmdbd sbatch squeue sacct mariadbd mariadb-install-db)
# Not the metapackages: mariadb-server would bring a database service of its own.
packages=(munge slurmctld slurmd slurmdbd slurm-client mariadb-server-core mariadb-client-core)

lacking() {
  for program in "${programs[@]}"; do
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$program" >/dev/null || echo "$program"
  done
}

[ -n "$(lacking)" ] || exit 0
if ! command -v apt-get >/dev/null; then
  echo "install_slurm: no apt-get here; install by hand:" $(lacking) >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "install_slurm: not root; ask for: apt-get install ${packages[*]}" >&2
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -qq -y --no-install-recommends "${packages[@]}" >/dev/null
if [ -n "$(lacking)" ]; then
  echo "install_slurm: still missing after the installation:" $(lacking) >&2
  exit 1
fi
