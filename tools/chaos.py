"""Disturb runs on a throw-away Slurm in every possible way, and prove that nothing is lost.

    python tools/chaos.py [corpus.jsonl.zst …] [--runs 20] [--events 200] [--seed 0]
    python tools/chaos.py --points          # a crash at each point of proxhpc/faults.py instead
    python tools/chaos.py --merge           # merges in arrays, with crashes in and after a unit of
                                            # each round, and after every other step

Each run is launched on a Slurm of several nodes on this machine (tests/slurm_cluster.py). Workers
have separate pid namespaces, as on separate hosts, and each run directory is on a separate small
file system. Events are drawn at random. No run gets help: the tool only repeats a launch that it
killed itself.

At the end of each run, the corpus and its listings must have the content and counts of an
undisturbed run, `proxhpc verify` must pass, no ledger may have been published twice, and no job may
remain.

It needs the programs of tools/install_slurm.sh, and the right to mount file systems and to create
namespaces: run it as root or within `unshare --map-root-user --mount`.
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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import yaml

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.match import MATCH_ROUNDS, round_names
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.queue import Tag
from proxhpc.faults import FAULT_POINTS
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import (
    AFTER_DEATHS,
    ELSEWHERE,
    corpus_bytes,
    local_site,
    manifest,
    many_documents,
    stopped_below,
    write_jsonl,
)
from slurm_cluster import FINISHED, Job, SlurmCluster
from slurm_config import Spec
from slurm_reaper import processes

PROXHPC = [sys.executable, "-m", "proxhpc"]
ALL_ROUNDS = {"near": {}, "url": "url", "lines": {"min_chars": 100}}  # needs them all
# Makes a small corpus one of many units, each round of which is an array. Several crashes in a row
# may be in one unit: it is repeated at once, as often as needed.
IN_ARRAYS = """
import proxhpc.assemble.phases, proxhpc.faults, proxhpc.launch.step
proxhpc.assemble.phases._ONE_JOB_BYTES = 0
proxhpc.assemble.rounds._KEY_BYTES = proxhpc.assemble.rounds._EXACT_BYTES = 4 << 20
proxhpc.run.shards.MIN_GROUP_BYTES = 2 << 20
proxhpc.launch.step.ROUND_DELAYS = (0,)
proxhpc.launch.step.MAX_ROUNDS_WITHOUT_PROGRESS = len(proxhpc.faults.FAULT_POINTS)
"""
DRAFTS = (
    *("benchmark", "sketch", "merge", "shuffled", "parts", "corpus"),
    *("flags", "clusters", "duplicates", "line_programs"),
    *(kind for each in MATCH_ROUNDS.values() for kind in each.writes),
)
POINTS = (
    *FAULT_POINTS,
    *(f"round written {name}" for name in MATCH_ROUNDS),
    *(f"draft written {folder}" for folder in DRAFTS),
)
SUBMITTING = FAULT_POINTS[
    FAULT_POINTS.index("advance held") : FAULT_POINTS.index("all released") + 1
]
STALE_AFTER = 30  # seconds; a frozen worker sleeps longer
TIMEOUT = 2400  # seconds that a run may take after its last event
DISK_MB = 192
LIES = ("nothing", "rubbish", "error", "hang")
LIAR = """\
case "$(cat $mode 2> /dev/null)" in
  nothing) exit 0 ;;
  rubbish) echo "usage: squeue [options]"; exit 0 ;;
  error) echo "Unable to contact slurm controller" >&2; exit 1 ;;
  hang) sleep 90 ;;
esac"""
# Starts a launcher for which /proc hides what it may not trace, such as a process with more rights.
HIDING = (
    *("unshare", "--mount", "sh", "-c"),
    'mount -t proc -o hidepid=4 proc /proc && exec setpriv --bounding-set -sys_ptrace "$@"',
    "sh",
)
WORKERS = 6  # more than an array of MaxArraySize 5 holds
MIN_EVENTS = 10  # of a run, if it lasts long enough

Sections = dict[str, Any]  # of a manifest


class Expected(NamedTuple):
    """What an undisturbed run publishes: SHA-256 of its parts, its counts, rows of its listings."""

    parts: dict[str, str]
    counts: dict[str, Any]
    listings: dict[str, list[Any]]


class Setting(NamedTuple):
    """Sections of a run's manifest, where to keep it if it breaks, and whether its merge is big."""

    sections: Sections
    keep: Path | None
    in_arrays: bool = False


class BrokenRunError(Exception):
    """A run that was disturbed is not as it must be."""


@dataclass
class ChaosRun:
    """A run and its events; the method of an event returns what it did, or "" if it could not."""

    cluster: SlurmCluster
    folder: Path
    run: RunDir
    rng: random.Random
    armed: set[str] = field(default_factory=set)
    start: float = field(default_factory=time.monotonic)
    scheduled: list[tuple[float, str, Callable[[], object]]] = field(default_factory=list)
    inodes: dict[str, int] = field(default_factory=dict)  # of published ledgers

    @property
    def site(self) -> Path:
        """The folder of the `sitecustomize` of all processes of the run."""
        return self.folder / "site"

    def env(self, **variables: str) -> dict[str, str]:
        """The environment of commands that a person runs."""
        path = f"{self.site}:{os.environ.get('PYTHONPATH', '')}"
        return self.cluster.env(**variables, PYTHONPATH=path)

    def kill(self) -> str:
        """SIGKILL a worker."""
        pid, job = self._worker()
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return f"worker {job}" if pid else ""

    def scancel(self) -> str:
        """Cancel a running array element."""
        _, job = self._worker()
        if job:
            self.cluster.run("scancel", job, check=False)
        return f"element {job}" if job else ""

    def node(self) -> str:
        """Cut a node's power; it comes back later."""
        if len(self.cluster.daemons) < len(self.cluster.spec.names) + 1:  # another one is down
            return ""
        name = self.rng.choice([n for n in self.cluster.spec.names if n in self.cluster.daemons])
        self.cluster.kill_node(name)
        self._later(self.rng.uniform(3, 12), f"node {name} is back", self.cluster.start_node, name)
        return name

    def controller(self) -> str:
        """Restart slurmctld."""
        self.cluster.restart_ctld()
        return "slurmctld"

    def launch(self) -> str:
        """Launch twice at the same time, while the run is working."""
        return self._launch_twice()

    def hidden(self) -> str:
        """Launch twice at the same time; one launcher cannot see the process of the other."""
        return "one with hidepid, " + self._launch_twice(*HIDING)

    def late(self) -> str:
        """Let jobs see up to ten seconds late what others change in the run directory."""
        switch = self.folder / "late"
        if switch.exists():
            return ""
        switch.touch()
        self._later(self.rng.uniform(15, 40), "changes are seen at once", switch.unlink)
        return "changes are seen late"

    def _launch_twice(self, *prefix: str) -> str:
        launchers = [self._launcher(), self._launcher(None, *prefix)]
        codes = [launcher.wait(timeout=200) for launcher in launchers]
        if not set(codes) <= {0, 75}:
            raise BrokenRunError(f"launching during a run exited with {codes}")
        return f"two at the same time, exit statuses {codes}"

    def launcher(self) -> str:
        """Kill a launcher at a random fault point, if it reaches it; then launch again."""
        point = self.rng.choice(SUBMITTING)
        if not self.launcher_dies(point):
            return ""
        self.relaunch()
        return f"died at '{point}', launched again"

    def fault(self) -> str:
        """Kill the first process of a job that reaches a random fault point, if one does."""
        if points := [point for point in FAULT_POINTS if point not in self.armed]:
            self.arm(self.rng.choice(points))
        return ""

    def disk(self) -> str:
        """Fill the run's file system completely for some seconds."""
        ballast = self.run.root.parent / "ballast"
        if ballast.exists():
            return ""
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with suppress(OSError), ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(512))
        end = partial(ballast.unlink, missing_ok=True)
        self._later(self.rng.uniform(1, 5), "the disk has space", end)
        return f"full with {ballast.stat().st_size >> 20} MiB"

    def freeze(self) -> str:
        """Stop a worker by SIGSTOP until long after it has lost its lease."""
        if any(what.startswith("thaw") for _, what, _ in self.scheduled):
            return ""
        pid, job = self._worker()
        if pid:
            os.kill(pid, signal.SIGSTOP)
            self._later(STALE_AFTER + 12, f"thaw worker {job}", self._thaw, pid)
        return f"worker {job}" if pid else ""

    def sleeper(self) -> str:
        """Freeze a launcher at a random point; another one takes over; then the first wakes up."""
        if any(what.startswith("wake") for _, what, _ in self.scheduled):
            return ""
        point = self.rng.choice(SUBMITTING)
        self.token(point).touch()
        sleeper = self._launcher(point, *ELSEWHERE, PROXHPC_FAULT_SIGNAL="STOP")
        while self.token(point).exists() and sleeper.poll() is None:
            time.sleep(0.1)
        time.sleep(0.5)
        stopped = stopped_below(sleeper.pid)
        self.token(point).unlink(missing_ok=True)
        self.armed.discard(point)
        for pid in stopped:
            self._later(STALE_AFTER + 20, f"wake the launcher at '{point}'", self._thaw, pid)
        if not stopped:
            sleeper.wait(timeout=200)
            return ""
        self.relaunch()
        return f"launcher frozen at '{point}', launched again"

    def liar(self) -> str:
        """Let squeue and sacct print nothing, rubbish or an error, or hang, for some seconds."""
        mode = self.folder / "liar"
        if mode.exists():
            return ""
        mode.write_text(self.rng.choice(LIES))
        what = mode.read_text()
        end = partial(mode.unlink, missing_ok=True)
        self._later(self.rng.uniform(3, 15), "squeue is right again", end)
        return f"squeue and sacct: {what}"

    def relaunch(self) -> None:
        """Launch, as a user does."""
        for _ in range(4):
            if (code := self._launcher().wait(timeout=200)) == 0:
                return
            # A launch rightly refuses if squeue lies or the disk is full.
            for file in (self.folder / "liar", self.run.root.parent / "ballast"):
                file.unlink(missing_ok=True)
            time.sleep(5)
        log = (self.folder / "launch.log").read_text()
        raise BrokenRunError(f"proxhpc launch exits {code}: {log[-400:]}")

    def poll(self) -> Iterator[tuple[str, str]]:
        """Do what is due, and look for crashes at armed points; yield what happened."""
        now = time.monotonic()
        for entry in [entry for entry in self.scheduled if entry[0] <= now]:
            self.scheduled.remove(entry)
            entry[2]()
            yield "after", entry[1]
        for point in [point for point in self.armed if not self.token(point).exists()]:
            self.armed.remove(point)
            yield "fault", f"a process died at '{point}'"
        for path in self.run.shards.rglob("*.ledger.zst"):
            inode = path.stat().st_ino
            if self.inodes.setdefault(path.name, inode) != inode:
                raise BrokenRunError(f"{path.name} was published twice")

    def undo(self) -> None:
        """Do all that is scheduled: frozen workers continue, nodes come back."""
        for _, _, action in self.scheduled:
            action()
        self.scheduled.clear()

    def token(self, point: str) -> Path:
        """The file that arms a fault point."""
        return self.folder / "faults" / point.replace(" ", "-")

    def arm(self, *points: str) -> None:
        """Kill the first process that reaches each of these points."""
        for point in points:
            self.token(point).touch()
            self.armed.add(point)

    def launcher_dies(self, point: str) -> bool:
        """Launch; return True if the launcher reached this point and died there."""
        if point not in SUBMITTING:
            return False
        self.token(point).touch()
        died = self._launcher(point).wait(timeout=200) == -signal.SIGKILL
        self.token(point).unlink(missing_ok=True)
        self.armed.discard(point)
        return died

    def _worker(self) -> tuple[int, str]:
        """A worker's pid on this machine and its array element, or (0, "")."""
        workers = []
        for pid in processes(self.cluster.root):
            with suppress(OSError, KeyError):  # it may end meanwhile
                proc = Path("/proc") / str(pid)
                variables = (proc / "environ").read_bytes().decode(errors="replace").split("\0")
                env = dict(pair.split("=", 1) for pair in variables if "=" in pair)
                command = (proc / "cmdline").read_bytes().split(b"\0")
                state = (proc / "stat").read_text().rpartition(")")[2].split()[0]
                is_python = command[0] == os.fsencode(sys.executable)
                if is_python and b"submitit.core._submit" in command and state not in "TZX":
                    job = f"{env['SLURM_ARRAY_JOB_ID']}_{env['SLURM_ARRAY_TASK_ID']}"
                    workers.append((pid, job))
        return self.rng.choice(sorted(workers)) if workers else (0, "")

    def _launcher(
        self, point: str | None = None, *prefix: str, **variables: str
    ) -> subprocess.Popen[bytes]:
        armed = {"PROXHPC_FAULT": f"{point}:{self.token(point)}"} if point else {}
        path = f"{self.folder / 'wrap'}:{self.cluster.env()['PATH']}"
        with (self.folder / "launch.log").open("ab") as log:
            return subprocess.Popen(
                [*prefix, *PROXHPC, "launch", str(self.run.root)],
                env=self.env(**armed, **variables, PATH=path),
                stdout=log,
                stderr=log,
            )

    def _thaw(self, pid: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def _later(
        self, seconds: float, what: str, action: Callable[..., object], *arguments: object
    ) -> None:
        entry = time.monotonic() + seconds, what, lambda: action(*arguments)
        self.scheduled.append(entry)


def write_wrappers(chaos: ChaosRun) -> Path:
    """Write a site's own squeue and sacct, which may lie, and in half of the runs its sbatch.

    That one removes comments from jobs.
    """
    folder = chaos.folder / "wrap"
    folder.mkdir()
    scripts = dict.fromkeys(("squeue", "sacct"), LIAR)
    if chaos.rng.random() < 0.5:
        scripts["sbatch"] = 'sed -i /--comment/d "${@: -1}"'
    for name, script in scripts.items():
        real = shutil.which(name, path=chaos.cluster.env()["PATH"])
        if real:
            text = f'#!/bin/bash\nmode={chaos.folder}/liar\n{script}\nexec {real} "$@"\n'
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
    return folder


WEIGHTS = {  # how often each event is drawn
    "kill": 5,
    "scancel": 3,
    "fault": 5,
    "node": 2,
    "freeze": 1,
    "launch": 1,
    "launcher": 2,
    "controller": 1,
    "disk": 1,
    "sleeper": 1,
    "liar": 2,
    "hidden": 1,
    "late": 2,
}


def plan(folder: Path, corpus: Sequence[Path], site: str, sections: Sections) -> RunDir:
    """Plan a run in `folder`, with more commits than usual."""
    smaller = {"sharding": {"tokens": 60_000}, "commit": {"documents": 16}}
    path = manifest(folder, corpus, **smaller, **sections)
    run = RunDir(folder / "disk" / "run")
    command = [*PROXHPC, "plan", str(path), "--freeze", "--site", site, "--run", str(run.root)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return run


def undisturbed(folder: Path, corpus: Sequence[Path], sections: Sections) -> Expected:
    """What an undisturbed run in local processes publishes."""
    folder.mkdir()
    run = plan(folder, corpus, local_site(folder), sections)
    command = [*PROXHPC, "launch", str(run.root), "--site", local_site(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return published(run)


def published(run: RunDir) -> Expected:
    """The parts of the corpus, the counts of the merge, and the rows of its listings."""
    summary: dict[str, Any] = orjson.loads(run.merge_summary.read_bytes())
    listings = (run.duplicates, run.quarantine, run.benchmark_hits)
    rows = {path.name: [*read_listing(path)] for path in listings if path.exists()}
    del summary["stats"]["examples"]  # the run's id chooses them
    counts = {key: summary[key] for key in summary.keys() - {"match_digest", "parts", "checksum"}}
    return Expected(corpus_bytes(run), counts, rows)


def many_links(folder: Path) -> list[Path]:
    """Write documents with URLs, dumps and scores, exact copies with the same ids among them."""
    paths = many_documents(folder, 6)
    paths.append(Path(shutil.copy(paths[0], folder / "again.jsonl.zst")))
    for path in paths:
        rows = [*read_listing(path)]
        for row in rows:
            number, copy = map(int, row["id"].split("#"))
            page = f"http://example.org/{copy}/{number % 900}"
            row |= {"url": page, "dump": f"{path.name[:4]}-{copy % 2}", "score": number % 7}
        write_jsonl(path, rows)
    return paths


def merges(corpus: Sequence[Path]) -> list[Sections]:
    """Sections of merges whose rounds, files and options differ."""
    rows = [*read_listing(corpus[0])][:900]
    other = {
        "paths": [str(write_jsonl(corpus[0].with_name("other.jsonl"), rows[::9]))],
        "id": "id",
    }
    output = {"part_size": "512KiB"}
    return [
        {
            "dedup": ALL_ROUNDS | {"keep": "highest", "by": "score", "survivors": 2},
            "output": output | {"cluster_size": True},
        },
        {
            "dedup": {"near": {"threshold": 0.7}, "against": other},
            "output": output | {"shuffle": True},
        },
        {
            "dedup": {
                "near": {"verify": "signature"},
                "within": "dump",
                "lines": {"keep": 0},
                "against": other | {"mode": "contained", "share": 0.9},
            },
            "output": output | {"format": "jsonl.gz"},
        },
    ]


def merge_points(plan: Plan) -> list[str]:
    """Every point of a plan's merge: drafts of all its files, ends of its rounds and phases."""
    rounds, manifest = round_names(plan), plan.manifest
    optional = {
        "benchmark": bool(plan.benchmarks),
        "shuffled": manifest.output.shuffle,
        "clusters": manifest.output.cluster_size,
        "line_programs": manifest.dedup.lines,
        "partly_compared": False,  # of large families only
        "match": False,  # the last round writes one file, in `merge`
    }
    written = {kind for name in rounds for kind in MATCH_ROUNDS[name].writes}
    unused = {kind for each in MATCH_ROUNDS.values() for kind in each.writes} - written
    drafts = [kind for kind in DRAFTS if kind not in unused and optional.get(kind, True)]
    phases = FAULT_POINTS[FAULT_POINTS.index("sketch written") :]
    return [
        *(f"draft written {kind}" for kind in drafts),
        *(
            f"round written {name}" for name in rounds if name != "collect"
        ),  # "match written" ends it
        *(point for point in phases if point != "round written"),
    ]


@contextmanager
def chaos_run(
    cluster: SlurmCluster, folder: Path, corpus: Sequence[Path], setting: Setting
) -> Iterator[ChaosRun]:
    """A planned run on a separate file system; copied to the setting's folder if it breaks."""
    disk = folder / "disk"
    disk.mkdir(parents=True)
    (folder / "faults").mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(disk))
    subprocess.run(mount, check=True)
    try:
        chaos = ChaosRun(cluster, folder, RunDir(disk / "run"), random.Random(folder.name))
        plan(folder, corpus, slurm_site(chaos, setting.in_arrays), setting.sections)
        yield chaos
    except BaseException:
        if keep := setting.keep:
            shutil.copytree(folder, keep / folder.name, dirs_exist_ok=True)
            (keep / folder.name / "queue").write_text(cluster.describe())
            shutil.copytree(cluster.root / "log", keep / folder.name / "slurm", dirs_exist_ok=True)
            shown = [cluster.run("scontrol", "show", what).stdout for what in ("job", "node")]
            (keep / folder.name / "scontrol").write_text("\n".join(shown))
        raise
    finally:
        chaos.undo()
        cluster.reset()
        subprocess.run(["umount", "-l", str(disk)], check=True)


def slurm_site(chaos: ChaosRun, in_arrays: bool) -> str:
    """A site whose workers have separate pid namespaces and die at armed points."""
    python = chaos.folder / "python"
    # The namespace's first process is a shell, because the first process cannot kill itself.
    python.write_text(
        "#!/bin/sh\nexec unshare --pid --fork --kill-child --mount-proc"
        f' sh -c \'{sys.executable} "$@"; exit $?\' sh "$@"\n'
    )
    python.chmod(0o755)
    chaos.site.mkdir()
    customize = Path(__file__).with_name("late_files.py").read_text()
    customize += IN_ARRAYS if in_arrays else ""
    (chaos.site / "sitecustomize.py").write_text(customize)
    armed = ",".join(f"{point}:{chaos.token(point)}" for point in POINTS)
    site = {
        "name": "chaos",
        "workers": WORKERS,
        "cpus": 1,
        "time": 10,
        "stale_after": STALE_AFTER,
        "python": str(python),
        "setup": [
            f"export PROXHPC_FAULT='{armed}'",
            "unset PROXHPC_FAULT_SIGNAL",  # of a launcher that was to be frozen: jobs inherit it
            f"export PATH={write_wrappers(chaos)}:$PATH",
            f"export LATE_FOLDER={chaos.run.root} LATE_SWITCH={chaos.folder}/late",
            f"export PYTHONPATH={chaos.site}:$PYTHONPATH",
        ],
        "phases": {"merge": {"workers": 4}},  # arrays, unless the corpus is small
    }
    path = chaos.folder / "slurm.yaml"
    path.write_text(yaml.safe_dump(site))
    return str(path)


def print_event(chaos: ChaosRun, kind: str, what: str) -> None:
    """Print a line about an event."""
    seconds = time.monotonic() - chaos.start
    print(f"{chaos.folder.name}  {seconds:6.1f} s  {kind:<10} {what}", flush=True)


def wait_until_finished(chaos: ChaosRun, act: Callable[[Counter[str]], bool]) -> Counter[str]:
    """Wait for the end of a launched run, while `act` disturbs it; count the events by kind.

    `act` gets the counts so far, and returns True if it did something.
    """
    counts: Counter[str] = Counter()
    deadline = time.monotonic() + TIMEOUT
    while not chaos.run.report_json.exists() or chaos.scheduled:
        happened = [*chaos.poll()]
        record_events(chaos, happened, counts)
        if (not chaos.run.report_json.exists() and act(counts)) or happened:
            deadline = time.monotonic() + TIMEOUT
        if time.monotonic() > deadline:
            raise BrokenRunError("the run does not end by itself")
        time.sleep(0.1)
    # A control job may sleep before it retries.
    chaos.cluster.until(
        lambda: all(job.state in FINISHED for job in run_jobs(chaos)),
        "the run's jobs to end",
        TIMEOUT,
    )
    record_events(chaos, chaos.poll(), counts)
    del counts["after"]
    return counts


def record_events(
    chaos: ChaosRun, happened: Iterable[tuple[str, str]], counts: Counter[str]
) -> None:
    """Print and count events."""
    for kind, what in happened:
        print_event(chaos, kind, what)
        counts[kind] += 1


def disturb(chaos: ChaosRun, events: int, kinds: dict[str, int]) -> Counter[str]:
    """Launch, and disturb the run up to `events` times."""
    due = time.monotonic() + chaos.rng.uniform(5, 8)

    def act(counts: Counter[str]) -> bool:
        nonlocal due
        if counts.total() >= events or due > time.monotonic():
            return False
        kind = chaos.rng.choices([*kinds], [*kinds.values()])[0]
        if what := getattr(chaos, kind)():
            record_events(chaos, [(kind, what)], counts)
        due = time.monotonic() + chaos.rng.uniform(0.2, 1.5)
        return bool(what)

    chaos.relaunch()
    return wait_until_finished(chaos, act)


def crash_at(chaos: ChaosRun, points: Sequence[str]) -> Counter[str]:
    """Launch with a crash armed at each of these points, and at those that lead to them."""

    def act(counts: Counter[str]) -> bool:
        if "shard left" in points and chaos.armed and any(chaos.run.shards.rglob("*.a*")):
            chaos.scancel()  # a worker that must stop leaves its shard
        return False

    for point in points:
        chaos.arm(*AFTER_DEATHS.get(point, ()), point)
        if chaos.launcher_dies(point):
            print_event(chaos, "launcher", f"died at '{point}'")
    chaos.relaunch()
    counts = wait_until_finished(chaos, act)
    if chaos.armed:
        raise BrokenRunError(f"no process reached {', '.join(sorted(chaos.armed))}")
    return counts


def check(chaos: ChaosRun, expected: Expected) -> None:
    """Raise BrokenRunError unless the finished run is as it must be."""
    run = chaos.run
    found = published(run)
    if found.parts != expected.parts:
        raise BrokenRunError("the corpus differs from that of an undisturbed run")
    if found.counts != expected.counts:
        keys = [key for key in found.counts if found.counts[key] != expected.counts.get(key)]
        raise BrokenRunError(f"counts differ from those of an undisturbed run: {', '.join(keys)}")
    if found.listings != expected.listings:
        raise BrokenRunError("a listing differs from that of an undisturbed run")
    command, env = [*PROXHPC, "verify", str(run.root)], chaos.env()
    proof = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if proof.returncode:
        raise BrokenRunError(f"verify: {proof.stdout}{proof.stderr}")
    remains = [path.name for path in run.shards.rglob("*.a*")]
    remains += [path.name for path in run.leases.glob("[0-9]*")]
    if remains:
        raise BrokenRunError(f"files that should be gone: {remains}")
    known = {job for entry in Journal(run).read() for ids in entry.jobs.values() for job in ids}
    for job in run_jobs(chaos):
        if job.id.partition("_")[0] not in known and job.state != "CANCELLED":
            raise BrokenRunError(f"job {job.id} ({job.state}) is in no journal")


def run_jobs(chaos: ChaosRun) -> list[Job]:
    """All jobs of the run that the controller knows."""
    run_id = Plan.load(chaos.run).run_id
    tags = ((job, Tag.read(job.name, job.comment)) for job in chaos.cluster.jobs())
    return [job for job, tag in tags if tag and tag.run == run_id]


def run_all(
    cluster: SlurmCluster, root: Path, corpus: Sequence[Path], options: argparse.Namespace
) -> tuple[int, Counter[str]]:
    """Make runs until there were enough runs and events; the runs, and the events by kind."""
    setting = Setting({"dedup": ALL_ROUNDS}, options.keep)
    expected = undisturbed(root / "undisturbed", corpus, setting.sections)
    print(f"undisturbed: {expected.counts['counts']['documents']} documents", flush=True)
    kinds = {kind: n for kind, n in WEIGHTS.items() if not options.only or kind in options.only}
    points = list(options.points or FAULT_POINTS)
    runs, total = 0, Counter[str]()
    while (
        points
        if options.points is not None
        else runs < options.runs or total.total() < options.events
    ):
        runs += 1
        folder = root / f"{options.seed}-{runs:02d}"
        with chaos_run(cluster, folder, corpus, setting) as chaos:
            if options.points is not None:
                counts = crash_at(chaos, [points.pop(0)])
            else:
                runs_left = max(1, options.runs - runs + 1)
                events = -(-(options.events - total.total()) // runs_left)
                counts = disturb(chaos, max(MIN_EVENTS, events), kinds)
            check(chaos, expected)
            print_event(chaos, "same", f"corpus and counts after {counts.total()} events")
        total += counts
    return runs, total


def crash_merges(
    cluster: SlurmCluster, root: Path, options: argparse.Namespace
) -> tuple[int, Counter[str]]:
    """Crash at every point of each of the merges; the runs, and the events by kind."""
    corpus, total = many_links(root / "many"), Counter[str]()
    sections = merges(corpus)
    numbers = options.merge or range(1, 1 + len(sections))
    for number in numbers:
        setting = Setting(sections[number - 1], options.keep, in_arrays=True)
        expected = undisturbed(root / f"undisturbed-{number}", corpus, setting.sections)
        with chaos_run(cluster, root / f"merge-{number}", corpus, setting) as chaos:
            counts = crash_at(chaos, merge_points(Plan.load(chaos.run)))
            check(chaos, expected)
            print_event(chaos, "same", f"corpus and counts after {counts.total()} events")
        total += counts
    return len(numbers), total


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the runs; exit status 1 if one of them is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="*", type=Path, help="JSON lines; by default a made one")
    parser.add_argument("--runs", type=int, default=20, help="at least that many (20)")
    parser.add_argument(
        "--events", type=int, default=200, help="at least that many in all runs (200)"
    )
    parser.add_argument("--seed", type=int, default=0)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--only", nargs="+", choices=WEIGHTS, help="kinds of events")
    kinds.add_argument(
        "--points", nargs="*", choices=POINTS, help="a run for each fault point, or for these"
    )
    about = "three merges with crashes at all their points, or these of them"
    kinds.add_argument("--merge", nargs="*", type=int, choices=(1, 2, 3), help=about)
    parser.add_argument("--max-array-size", type=int, default=1001)
    parser.add_argument("--no-accounting", action="store_true", help="a Slurm without sacct")
    parser.add_argument("--keep", type=Path, help="folder for copies of broken runs")
    options = parser.parse_args(arguments)
    spec = Spec(accounting=not options.no_accounting, max_array_size=options.max_array_size)
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as name:
        root = Path(name)
        (root / "slurm").mkdir()
        try:
            with SlurmCluster(root / "slurm", spec) as cluster:
                if options.merge is not None:
                    runs, total = crash_merges(cluster, root, options)
                else:
                    corpus = [path.absolute() for path in options.corpus]
                    runs, total = run_all(
                        cluster, root, corpus or many_links(root / "many"), options
                    )
        except BrokenRunError as error:
            print(f"BROKEN: {error}")
            return 1
    by_kind = ", ".join(f"{number} {kind}" for kind, number in total.most_common())
    print(f"{runs} runs, {total.total()} events ({by_kind}):")
    print("the same corpus and counts every time, nothing published twice, no job remains")
    return 0


if __name__ == "__main__":
    sys.exit(main())
