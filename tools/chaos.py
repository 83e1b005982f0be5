"""Run jobs on a throw-away Slurm while everything dies that can, and prove that nothing is lost.

    python tools/chaos.py [corpus.jsonl.zst …] [--runs 20] [--events 200] [--seed 0]
    python tools/chaos.py --points          # a death at each point of proxhpc/faults.py instead

Each run is launched on a Slurm of several nodes on this machine (tests/slurm_cluster.py). Workers
are in pid namespaces of their own, as on hosts of their own, and the run directory is on a small
file system of its own. What is done to it is drawn at random; what that meets is a matter of
timing. Nobody helps: the tool launches again only what it killed while launching.

At the end of each run the corpus must have the bytes and counts of an undisturbed run, `proxhpc
verify` must prove it, no ledger may have been published twice, and no job may be left.

It needs what tools/install_slurm.sh installs, and to mount file systems and make namespaces: root,
or an `unshare --map-root-user --mount` around it.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from proxhpc.cluster.journal import Journal
from proxhpc.cluster.slurm import tag
from proxhpc.faults import POINTS, Point
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import BEHIND, corpus_bytes, demo_copies, local_site, manifest
from slurm_cluster import FINISHED, Job, SlurmCluster
from slurm_config import Spec
from slurm_reaper import processes

PROXHPC = [sys.executable, "-m", "proxhpc"]
SUBMITTING = POINTS[POINTS.index("advance held") : POINTS.index("all released") + 1]
STALE_AFTER = 30  # seconds; a frozen worker sleeps longer
PATIENCE = 2400  # seconds that a run may take once nothing more is done to it
DISK_MB = 192
WORKERS = 6  # more than an array of MaxArraySize 5 holds
FEWEST = 10  # events of a run, if it lasts for them


Expected = tuple[dict[str, str], dict[str, Any]]
"""The parts of the corpus and the counts of an undisturbed run."""


class BrokenPromiseError(Exception):
    """Something that must hold after a run does not."""


@dataclass
class Battlefield:
    """One run and what is done to it; every event returns what it did, or "" if it could not."""

    cluster: SlurmCluster
    folder: Path
    run: RunDir
    chance: random.Random
    armed: set[Point] = field(default_factory=set)
    since: float = field(default_factory=time.monotonic)
    later: list[tuple[float, str, Callable[[], object]]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)  # published ledgers and their inodes

    def kill(self) -> str:
        """SIGKILL a worker."""
        pid, job = self._worker()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"worker {job}" if pid else ""

    def scancel(self) -> str:
        """Cancel an array element that runs."""
        _, job = self._worker()
        if job:
            self.cluster.run("scancel", job, check=False)
        return f"element {job}" if job else ""

    def node(self) -> str:
        """Cut a node's power; it comes back."""
        if len(self.cluster.daemons) < len(self.cluster.spec.names) + 1:  # others are down
            return ""
        name = self.chance.choice([n for n in self.cluster.spec.names if n in self.cluster.daemons])
        self.cluster.kill_node(name)
        self._later(
            self.chance.uniform(3, 12), f"node {name} is back", self.cluster.start_node, name
        )
        return name

    def controller(self) -> str:
        """Restart slurmctld."""
        self.cluster.restart_ctld()
        return "slurmctld"

    def launch(self) -> str:
        """Launch twice at once, beside whatever is at work."""
        two = [self._launcher() for _ in range(2)]
        codes = [launcher.wait(timeout=200) for launcher in two]
        if not set(codes) <= {0, 75}:
            raise BrokenPromiseError(f"launching beside a run exited {codes}")
        return f"two at once, exits {codes}"

    def launcher(self) -> str:
        """Kill a launcher at a random step of its own, if it comes to it; then launch again."""
        point = self.chance.choice(SUBMITTING)
        if not self.launcher_dies(point):
            return ""
        self.relaunch()
        return f"died at '{point}', launched again"

    def fault(self) -> str:
        """Let the first process of a job that comes to a random point die there, if one does."""
        self.arm(self.chance.choice([point for point in POINTS if point not in self.armed]))
        return ""

    def disk(self) -> str:
        """Fill the run's file system to the last byte for some seconds."""
        ballast = self.run.root.parent / "ballast"
        if ballast.exists():
            return ""
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        self._later(self.chance.uniform(1, 5), "the disk has room", ballast.unlink)
        return f"full with {ballast.stat().st_size >> 20} MiB"

    def freeze(self) -> str:
        """SIGSTOP a worker until long after it has lost its lease, then SIGCONT."""
        if any(what.startswith("thaw") for _, what, _ in self.later):
            return ""
        pid, job = self._worker()
        if pid:
            os.kill(pid, signal.SIGSTOP)
            self._later(STALE_AFTER + 12, f"thaw worker {job}", self._thaw, pid)
        return f"worker {job}" if pid else ""

    def relaunch(self) -> None:
        """Launch, as a person does."""
        for _ in range(4):
            if (code := self._launcher().wait(timeout=200)) == 0:
                return
            time.sleep(5)
        raise BrokenPromiseError(f"proxhpc launch exits {code}: {self.tail()}")

    def catch_up(self) -> Iterator[tuple[str, str]]:
        """Do what is due by now, and see who died where it was armed; what happened."""
        now = time.monotonic()
        for entry in [entry for entry in self.later if entry[0] <= now]:
            self.later.remove(entry)
            entry[2]()
            yield "after", entry[1]
        for point in [point for point in self.armed if not self.token(point).exists()]:
            self.armed.remove(point)
            yield "fault", f"somebody died at '{point}'"
        for path in self.run.shards.rglob("*.ledger.zst"):
            inode = path.stat().st_ino
            if self.seen.setdefault(path.name, inode) != inode:
                raise BrokenPromiseError(f"{path.name} was published twice")

    def undo(self) -> None:
        """Let frozen ones go on and killed ones live, whatever is still to come."""
        for _, _, act in self.later:
            act()
        self.later.clear()

    def token(self, point: Point) -> Path:
        """The file that arms a point."""
        return self.folder / "faults" / point.replace(" ", "-")

    def arm(self, *points: Point) -> None:
        """Let the first process that comes to each of these points die."""
        for point in points:
            self.token(point).touch()
            self.armed.add(point)

    def launcher_dies(self, point: Point) -> bool:
        """Launch; whether the launcher came to this point, and died there."""
        if point not in SUBMITTING:
            return False
        self.token(point).touch()
        died = self._launcher(point).wait(timeout=200) == -signal.SIGKILL
        self.token(point).unlink(missing_ok=True)
        self.armed.discard(point)
        return died

    def tail(self) -> str:
        """What the last launcher said."""
        return (self.folder / "launch.log").read_text()[-400:]

    def _worker(self) -> tuple[int, str]:
        """A worker's pid here and its array element."""
        found = []
        for pid in processes(self.cluster.root):
            with suppress(OSError, KeyError):  # it may end while it is looked at
                proc = Path("/proc") / str(pid)
                words = (proc / "environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(word.split("=", 1) for word in words if "=" in word)
                called = (proc / "cmdline").read_bytes().split(b"\0")
                state = (proc / "stat").read_text().rpartition(")")[2].split()[0]
                is_python = called[0] == os.fsencode(sys.executable)
                if is_python and b"submitit.core._submit" in called and state not in "TZX":
                    job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
                    found.append((pid, job))
        return self.chance.choice(sorted(found)) if found else (0, "")

    def _launcher(self, point: Point | None = None) -> subprocess.Popen[bytes]:
        armed = {"PROXHPC_FAULT": f"{point}:{self.token(point)}"} if point else {}
        with (self.folder / "launch.log").open("ab") as log:
            return subprocess.Popen(
                [*PROXHPC, "launch", str(self.run.root)],
                env=self.cluster.env(**armed),
                stdout=log,
                stderr=log,
            )

    def _thaw(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _later(self, seconds: float, what: str, act: Callable[..., object], *given: object) -> None:
        self.later.append((time.monotonic() + seconds, what, lambda: act(*given)))


KINDS = {
    "kill": 5,
    "scancel": 3,
    "fault": 5,
    "node": 2,
    "freeze": 1,
    "launch": 1,
    "launcher": 2,
    "controller": 1,
    "disk": 1,
}


def plan(folder: Path, corpus: Sequence[Path], site: str) -> RunDir:
    """A planned run in `folder`, with more commits than usual."""
    path = manifest(folder, corpus, sharding={"tokens": 60_000}, commit={"documents": 16})
    run = RunDir(folder / "disk" / "run")
    command = [*PROXHPC, "plan", str(path), "--freeze", "--site", site, "--run", str(run.root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def undisturbed(folder: Path, corpus: Sequence[Path]) -> Expected:
    """The corpus's bytes and counts of a run in local processes, with nothing done to it."""
    folder.mkdir()
    run = plan(folder, corpus, local_site(folder))
    command = [*PROXHPC, "launch", str(run.root), "--site", local_site(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return corpus_bytes(run), counts(run)


def counts(run: RunDir) -> dict[str, Any]:
    """The merge's proven counts."""
    summary: dict[str, Any] = orjson.loads(run.merge_summary.read_bytes())
    return dict(summary["counts"])


@contextmanager
def battlefield(
    cluster: SlurmCluster, folder: Path, corpus: Sequence[Path], keep: Path | None
) -> Iterator[Battlefield]:
    """A planned run on a file system of its own, its workers apart from each other."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    (folder / "faults").mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk))
    subprocess.run(mount, check=True)
    try:
        field = Battlefield(cluster, folder, RunDir(disk / "run"), random.Random(folder.name))
        plan(folder, corpus, slurm_site(field))
        yield field
    except BaseException:
        if keep:
            shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
            (keep / folder.name / "queue").write_text(cluster.describe())
        raise
    finally:
        field.undo()
        cluster.reset()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def slurm_site(field: Battlefield) -> str:
    """A site whose workers share no pid namespace and die where a point is armed."""
    python = field.folder / "python"
    # A shell is the namespace's first process, for the first one cannot kill itself.
    python.write_text(
        "#!/bin/sh\nexec unshare --pid --fork --kill-child --mount-proc"
        f' sh -c \'{sys.executable} "$@"; exit $?\' sh "$@"\n'
    )
    python.chmod(0o755)
    armed = ",".join(f"{point}:{field.token(point)}" for point in POINTS)
    site = {
        "name": "chaos",
        "workers": WORKERS,
        "cpus": 1,
        "time": 10,
        "stale_after": STALE_AFTER,
        "python": str(python),
        "setup": [f"export PROXHPC_FAULT='{armed}'"],
        "phases": {"merge": {"workers": 2}},  # arrays, where the corpus is not a small one
    }
    path = field.folder / "slurm.yaml"
    path.write_text(yaml.safe_dump(site))
    return str(path)


def say(field: Battlefield, kind: str, what: str) -> None:
    """One line for one event."""
    seconds = time.monotonic() - field.since
    print(f"{field.folder.name}  {seconds:6.1f} s  {kind:<10} {what}", flush=True)


def follow(field: Battlefield, act: Callable[[Counter[str]], bool]) -> Counter[str]:
    """Watch a launched run until it is finished, and let `act` do things to it; what was done.

    `act` is told what was done so far and says whether it did more.
    """
    done: Counter[str] = Counter()
    end = time.monotonic() + PATIENCE
    while not field.run.report_json.exists() or field.later:
        happened = [*field.catch_up()]
        tell(field, happened, done)
        if (not field.run.report_json.exists() and act(done)) or happened:
            end = time.monotonic() + PATIENCE
        if time.monotonic() > end:
            raise BrokenPromiseError("the run does not end, and nobody helps")
        time.sleep(0.1)
    wish = "the run's jobs to end"  # a control job may sleep before it tries again
    field.cluster.until(lambda: all(job.state in FINISHED for job in ours(field)), wish, PATIENCE)
    tell(field, field.catch_up(), done)
    del done["after"]
    return done


def tell(field: Battlefield, happened: Iterable[tuple[str, str]], done: Counter[str]) -> None:
    """Say and count what happened."""
    for kind, what in happened:
        say(field, kind, what)
        done[kind] += 1


def disturb(field: Battlefield, events: int, kinds: dict[str, int]) -> Counter[str]:
    """Launch, and do up to `events` things to the run."""
    due = time.monotonic() + field.chance.uniform(5, 8)

    def act(done: Counter[str]) -> bool:
        nonlocal due
        if done.total() >= events or due > time.monotonic():
            return False
        kind = field.chance.choices([*kinds], [*kinds.values()])[0]
        if what := getattr(field, kind)():
            tell(field, [(kind, what)], done)
        due = time.monotonic() + field.chance.uniform(0.2, 1.5)
        return bool(what)

    field.relaunch()
    return follow(field, act)


def strike(field: Battlefield, point: Point) -> Counter[str]:
    """Launch with a death armed at this point, and what comes before it."""

    def act(done: Counter[str]) -> bool:
        if point == "shard left" and any(field.run.shards.rglob("*.a*")):
            field.scancel()  # a worker leaves a shard when it is told to stop
        return False

    field.arm(*BEHIND.get(point, ()), point)
    if field.launcher_dies(point):
        say(field, "launcher", f"died at '{point}'")
    field.relaunch()
    done = follow(field, act)
    if field.armed:
        raise BrokenPromiseError(f"nobody came to {', '.join(sorted(field.armed))}")
    return done


def check(field: Battlefield, expected: Expected) -> None:
    """Raise BrokenPromiseError unless everything that was promised holds."""
    run = field.run
    if corpus_bytes(run) != expected[0]:
        raise BrokenPromiseError("the corpus has other bytes than that of an undisturbed run")
    if counts(run) != expected[1]:
        raise BrokenPromiseError(f"other counts: {counts(run)}, not {expected[1]}")
    proof = subprocess.run([*PROXHPC, "verify", str(run.root)], capture_output=True, text=True)
    if proof.returncode:
        raise BrokenPromiseError(f"verify: {proof.stdout}{proof.stderr}")
    left = [path.name for path in run.shards.rglob("*.a*")]
    left += [path.name for path in run.leases.glob("[0-9]*")]
    if left:
        raise BrokenPromiseError(f"left behind: {left}")
    known = {job for entry in Journal(run).read() for ids in entry.jobs.values() for job in ids}
    for job in ours(field):
        if job.id.partition("_")[0] not in known and job.state != "CANCELLED":
            raise BrokenPromiseError(f"job {job.id} ({job.state}) is in no journal")


def ours(field: Battlefield) -> list[Job]:
    """Every job of the run that the controller knows."""
    mark = tag(Plan.load(field.run).run_id)
    return [job for job in field.cluster.jobs() if job.comment.startswith(mark)]


def wage(
    cluster: SlurmCluster, root: Path, corpus: Sequence[Path], options: argparse.Namespace
) -> Counter[str]:
    """Run after run until enough has happened; how many events of each kind."""
    expected = undisturbed(root / "quiet", corpus)
    print(f"undisturbed: {expected[1]['documents']} documents", flush=True)
    kinds = {kind: n for kind, n in KINDS.items() if not options.only or kind in options.only}
    points = list(POINTS)
    total: Counter[str] = Counter()
    while (
        points if options.points else total["runs"] < options.runs or events(total) < options.events
    ):
        total["runs"] += 1
        folder = root / f"{options.seed}-{total['runs']:02d}"
        with battlefield(cluster, folder, corpus, options.keep) as field:
            if options.points:
                done = strike(field, points.pop(0))
            else:
                runs_left = max(1, options.runs - total["runs"] + 1)
                more = -(-(options.events - events(total)) // runs_left)
                done = disturb(field, max(FEWEST, more), kinds)
            check(field, expected)
            say(field, "same", f"corpus and counts after {done.total()} events")
        total += done
    return total


def events(total: Counter[str]) -> int:
    """How many there were so far."""
    return total.total() - total["runs"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until enough has happened; 1 if a promise was broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="*", type=Path, help="JSON lines; a made one if not given")
    parser.add_argument("--runs", type=int, default=20, help="at least so many (20)")
    parser.add_argument("--events", type=int, default=200, help="at least so many in all (200)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=KINDS, help="kinds of events")
    parser.add_argument("--points", action="store_true", help="a run for each point")
    parser.add_argument("--max-array-size", type=int, default=1001)
    parser.add_argument("--no-accounting", action="store_true", help="a Slurm without sacct")
    parser.add_argument("--keep", type=Path, help="where a run is copied that broke a promise")
    options = parser.parse_args(arguments)
    spec = Spec(accounting=not options.no_accounting, max_array_size=options.max_array_size)
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as place:
        root = Path(place)
        corpus = [path.absolute() for path in options.corpus] or demo_copies(root / "demo", 6)
        (root / "slurm").mkdir()
        try:
            with SlurmCluster(root / "slurm", spec) as cluster:
                total = wage(cluster, root, corpus, options)
        except BrokenPromiseError as error:
            print(f"BROKEN: {error}")
            return 1
    each = ", ".join(f"{number} {kind}" for kind, number in total.most_common() if kind != "runs")
    print(f"{total['runs']} runs, {events(total)} events ({each}):")
    print("the same corpus and counts every time, nothing published twice, nothing left behind")
    return 0


if __name__ == "__main__":
    sys.exit(main())
