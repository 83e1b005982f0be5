"""A real Slurm cluster with several nodes on one host, which leaves nothing behind.

Everything is in one scratch directory: configuration, munge key and socket, database, state, spool
and logs. Ports are free ones on the loopback address. It needs the programs that
`tools/install_slurm.sh` installs and no privileges: all daemons run as the calling user.

By hand:  python tests/slurm_cluster.py run -- bash -c 'sinfo; srun -N4 hostname'
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import slurm_reaper
from slurm_config import Spec, user_name, write_config
from slurm_reaper import kill_all, processes

T = TypeVar("T")

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "srun")
ACCOUNTING_PROGRAMS = ("mariadbd", "mariadb-install-db", "slurmdbd", "sacct", "sacctmgr")
# Debian keeps daemons where an ordinary user's PATH does not look.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
# Variables of an outer job, and defaults of the user, that would change the commands of the tests.
INHERITED = ("SLURM", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SINFO_", "SACCT_", "SCANCEL_")
FAILED = frozenset(
    ["BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"]
)
FINISHED = FAILED | {"COMPLETED"}
# A path of a Unix socket has at most 107 bytes; slurmd appends "spool/NODE/NODE_JOB.STEP".
MAX_ROOT_BYTES = 60


@dataclass(frozen=True, slots=True)
class Job:
    """One row of `squeue -r`: a job, or one element of an array."""

    id: str  # 7, or 7_3 for an array element
    state: str  # PENDING, RUNNING, COMPLETED, NODE_FAIL, …
    reason: str
    nodes: str
    name: str
    comment: str


class ClusterError(RuntimeError):
    """A daemon did not start or a Slurm command failed; the message quotes its output."""


@dataclass
class SlurmCluster:
    """A cluster in `root`, an empty directory with a short path; call `start`, or use `with`."""

    root: Path
    spec: Spec = field(default_factory=Spec)
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    reaper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def conf(self) -> Path:
        """Path of slurm.conf; SLURM_CONF with this path also identifies the cluster's processes."""
        return self.root / "slurm.conf"

    def start(self) -> None:
        """Start all daemons and return when every node is idle."""
        if programs := missing(self.spec.accounting):
            raise ClusterError(f"not installed: {', '.join(programs)}; run tools/install_slurm.sh")
        self.root = self.root.resolve()
        if len(str(self.root)) > MAX_ROOT_BYTES:
            raise ClusterError(f"{self.root}: over {MAX_ROOT_BYTES} bytes, too long for sockets")
        self.root.chmod(0o700)
        for name in ("log", "munge", "state", *(f"spool/{node}" for node in self.spec.names)):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        write_config(self.root, self.spec)
        # It kills the cluster when its input closes, so also when this process dies.
        self.reaper = subprocess.Popen(
            [sys.executable, slurm_reaper.__file__, str(self.root)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            self._start_daemons()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill every process of this cluster, jobs included, and return when they have ended.

        ClusterError if a process is still there after repeated SIGKILL.
        """
        if self.reaper is None:
            return
        if self.reaper.stdin is not None:
            self.reaper.stdin.close()
        code = self.reaper.wait(timeout=60)
        self.reaper = None
        for daemon in self.daemons.values():
            daemon.wait(timeout=10)
        self.daemons.clear()
        if code:
            raise ClusterError(f"{self.root}: processes outlived SIGKILL: {processes(self.root)}")

    def env(self, **more: str) -> dict[str, str]:
        """Return this process's environment for commands of this cluster, with `more` variables."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(INHERITED)}
        path = f"{inherited.get('PATH', os.defpath)}:{SBIN}"
        return {**inherited, "PATH": path, "SLURM_CONF": str(self.conf), **more}

    def run(
        self, *command: str, check: bool = True, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the cluster's environment and capture its output.

        ClusterError, with the output, if it fails and `check` is set.
        """
        done = subprocess.run(
            command, env=self.env(), capture_output=True, text=True, timeout=timeout, check=False
        )
        if check and done.returncode:
            output = (done.stderr + done.stdout).strip()
            raise ClusterError(f"{' '.join(command)} exited {done.returncode}: {output}")
        return done

    def sbatch(self, script: str, *options: str) -> str:
        """Submit shell text as a job and return its id; its output is in log/job-ID."""
        out = f"--output={self.root}/log/job-%j"
        return self.run(
            "sbatch", "--parsable", out, "--open-mode=append", *options, f"--wrap={script}"
        ).stdout.strip()

    def jobs(self, job_id: str | None = None) -> list[Job]:
        """Return all jobs, or one, that the controller knows, also ended ones, by element."""
        columns = "\x1f".join(("%i", "%T", "%r", "%N", "%j", "%k"))
        rows = self.run("squeue", "-h", "-a", "-r", "-t", "all", "-o", columns).stdout
        jobs = [Job(*row.split("\x1f")) for row in rows.splitlines()]
        return [job for job in jobs if job_id in (None, job.id, job.id.partition("_")[0])]

    def wait_jobs(self, job_id: str, states: Iterable[str], timeout: float = 60) -> list[Job]:
        """Return the elements of a job as soon as each of them is in one of these states."""
        accepted = frozenset(states)

        def elements() -> list[Job]:
            jobs = self.jobs(job_id)
            return jobs if all(job.state in accepted for job in jobs) else []

        condition = f"job {job_id} to be {' or '.join(sorted(accepted))}"
        return self.until(elements, condition, timeout, lambda: str(self.jobs(job_id)))

    def kill_node(self, name: str, *, report: bool = True) -> None:
        """Kill a node's slurmd and every process of its jobs, like a power cut.

        With `report`, the controller learns it at once, as from a health monitor; otherwise it
        notices after SlurmdTimeout.
        """
        kill_all(lambda: processes(self.root, name))
        self.daemons.pop(name).wait(timeout=10)
        if report:
            self.run("scontrol", "update", f"nodename={name}", "state=down", "reason=power_cut")

    def start_node(self, name: str) -> None:
        """Start a killed node again and return when it accepts jobs."""
        self._spawn_node(name)
        self._wait_nodes([name])

    def restart_ctld(self, stop: signal.Signals = signal.SIGTERM) -> None:
        """Stop the controller with this signal and start it again; jobs continue."""
        controller = self.daemons.pop("slurmctld")
        controller.send_signal(stop)
        controller.wait(timeout=30)
        self._spawn("slurmctld", "slurmctld", "-D")
        self._wait_nodes([name for name in self.spec.names if name in self.daemons])

    def reset(self) -> None:
        """Cancel every job and start every killed node, for the next test."""
        self.run("scancel", f"--user={user_name()}")
        for name in self.spec.names:
            if name not in self.daemons:
                self.start_node(name)
        self.until(
            lambda: all(job.state in FINISHED for job in self.jobs()), "all jobs to be cancelled"
        )

    def describe(self) -> str:
        """Return the queue and the log tails of controller and nodes, for a failed test."""
        queue = self.run("squeue", "-a", "-r", "-t", "all", check=False).stdout
        return "\n".join([queue, *(self.tail(name) for name in ("slurmctld", *self.spec.names))])

    def until(
        self,
        probe: Callable[[], T],
        condition: str,
        timeout: float = 30,
        seen: Callable[[], str] = str,
    ) -> T:
        """Return the first true value of `probe`, which is called ten times a second.

        ClusterError if there is none within `timeout` seconds, or if a daemon has died.
        """
        end = time.monotonic() + timeout
        while not (value := probe()):
            for name, daemon in self.daemons.items():
                if daemon.poll() is not None:
                    raise ClusterError(f"{name} exited {daemon.returncode}\n{self.tail(name)}")
            if time.monotonic() > end:
                tails = "\n".join(self.tail(name, 4) for name in self.daemons)
                raise ClusterError(f"waited {timeout:.0f} s for {condition}; {seen()}\n{tails}")
            time.sleep(0.1)
        return value

    def tail(self, name: str, lines: int = 12) -> str:
        """Return the last lines of a daemon's log, with a heading."""
        text = (self.root / "log" / name).read_text(errors="replace")
        return "\n".join([f"--- {name}:", *text.splitlines()[-lines:]])

    def _spawn(self, name: str, *command: str, **more: str) -> None:
        with (self.root / "log" / name).open("ab") as log:
            self.daemons[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env(**more),
                cwd=self.root,
                start_new_session=True,
            )

    def _spawn_node(self, name: str) -> None:
        # slurmstepd and jobs inherit SLURMD_NODENAME, by which kill_node finds a node's processes.
        self._spawn(name, "slurmd", "-D", "-N", name, SLURMD_NODENAME=name)

    def _start_daemons(self) -> None:
        munge = self.root / "munge"
        files = [f"--{kind}-file={munge}/{kind}" for kind in ("key", "pid", "log", "seed")]
        # --force: the scratch directory may lie in a directory that munged does not trust.
        self._spawn("munged", "munged", "-F", "--force", f"--socket={munge}/socket", *files)
        if self.spec.accounting:
            self._start_database()
        self.until((munge / "socket").is_socket, "munged's socket")
        if self.spec.accounting:
            self._spawn("slurmdbd", "slurmdbd", "-D", MYSQL_UNIX_PORT=f"{self.root}/db.socket")
            self.until(
                lambda: not self._register().returncode,
                "slurmdbd to know the cluster",
                seen=lambda: self._register().stderr.strip(),
            )
        self._spawn("slurmctld", "slurmctld", "-D")
        for name in self.spec.names:
            self._spawn_node(name)
        self._wait_nodes(self.spec.names)

    def _start_database(self) -> None:
        # Small, and without protection against power cuts, because it is temporary.
        common = [
            "--no-defaults",
            f"--datadir={self.root}/db",
            f"--user={user_name()}",
            "--skip-name-resolve",
            "--innodb-log-file-size=8M",
            "--innodb-buffer-pool-size=32M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-doublewrite=0",
            "--innodb-flush-method=nosync",
        ]
        grants = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        self.run("mariadb-install-db", *common, *grants)
        where = [f"--socket={self.root}/db.socket", f"--pid-file={self.root}/db.pid"]
        self._spawn("mariadbd", "mariadbd", *common, *where, "--skip-networking")
        self.until((self.root / "db.socket").is_socket, "MariaDB's socket")

    def _register(self) -> subprocess.CompletedProcess[str]:
        return self.run("sacctmgr", "-i", "add", "cluster", "proxhpc", check=False)

    def _wait_nodes(self, names: Sequence[str]) -> None:
        def states() -> dict[str, str]:
            rows = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False)
            return dict(row.split() for row in rows.stdout.splitlines())

        def ready() -> bool:
            known = states()
            return all(known.get(name) in ("idle", "mixed", "allocated") for name in names)

        self.until(ready, f"nodes {', '.join(names)}", 60, lambda: str(states()))


def missing(accounting: bool = True) -> list[str]:
    """Return the programs that a cluster needs and this machine does not have."""
    path = f"{os.environ.get('PATH', os.defpath)}:{SBIN}"
    programs = [*PROGRAMS, *(ACCOUNTING_PROGRAMS if accounting else [])]
    return [name for name in programs if shutil.which(name, path=path) is None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command in a new cluster and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--gpus", type=int, default=0, help="per node, without devices")
    parser.add_argument("--max-array-size", type=int, default=1001)
    parser.add_argument("--no-accounting", action="store_true", help="a site without sacct")
    parser.add_argument("command", nargs="+", help="put -- before a command with options")
    options = parser.parse_args(words[1:] if words[:1] == ["run"] else words)
    spec = Spec(
        nodes=options.nodes,
        gpus=options.gpus,
        accounting=not options.no_accounting,
        max_array_size=options.max_array_size,
    )
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root:
        start = time.monotonic()
        with SlurmCluster(Path(root), spec) as cluster:
            print(f"{spec.nodes} nodes up in {time.monotonic() - start:.1f} s", file=sys.stderr)
            return subprocess.run(options.command, env=cluster.env(), check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
