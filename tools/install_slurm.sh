#!/usr/bin/env bash
# Install the Slurm daemons and a database for the throw-away cluster of the tests (Debian, Ubuntu).
# Exits 1 with the reason if that is impossible. Configures and starts nothing.
set -euo pipefail

programs=(munged slurmctld slurmd slurmdbd sbatch squeue sacct mariadbd mariadb-install-db)
# Not the metapackages: mariadb-server would start a database service.
packages=(munge slurmctld slurmd slurmdbd slurm-client mariadb-server-core mariadb-client-core)

missing() {
  for program in "${programs[@]}"; do
    PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" command -v "$program" >/dev/null || echo "$program"
  done
}

[ -n "$(missing)" ] || exit 0
. "$(dirname "$0")/apt_install.sh"
apt_install install_slurm "install by hand: $(missing | xargs)" "${packages[@]}"
if [ -n "$(missing)" ]; then
  echo "install_slurm: still missing after the installation:" $(missing) >&2
  exit 1
fi
