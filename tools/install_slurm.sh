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
. "$(dirname "$0")/apt_install.sh"
apt_install install_slurm "install by hand: $(lacking | xargs)" "${packages[@]}"
if [ -n "$(lacking)" ]; then
  echo "install_slurm: still missing after the installation:" $(lacking) >&2
  exit 1
fi
