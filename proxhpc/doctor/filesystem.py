"""What the file system of the run directory can do."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from proxhpc.cluster import slurm
from proxhpc.corpus.disk import create, publish
from proxhpc.doctor.finding import Finding, Severity
from proxhpc.errors import ProxError

LEAST_INODES = 10_000
LEAST_BYTES = 1 << 30


def examine_disk(folder: Path) -> Iterator[Finding]:
    """What a file system can do for the runs in `folder`; tried in one that is removed again."""
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    name = str(there)
    try:
        work = Path(tempfile.mkdtemp(prefix=".proxhpc-doctor-", dir=there))
    except OSError as error:
        yield Finding("run directory", f"{name}: {error.strerror}", "choose another", "bad")
        return
    try:
        yield _attempt("exclusive create, by link", work, _exclusive)
        yield _attempt("rename over a file", work, _rename)
        yield _attempt("one name for a finished file", work, _published)
        yield _visibility(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    yield from _space(there)


def _attempt(what: str, work: Path, probe: Callable[[Path], str]) -> Finding:
    try:
        problem = probe(work)
    except (OSError, ProxError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        return Finding(what, problem, "put runs on another file system", "bad")
    return Finding(what, "works", "leases and ledgers rest on it")


def _exclusive(work: Path) -> str:
    first, second = create(work / "lease", b"1"), create(work / "lease", b"2")
    return "" if (first, second) == (True, False) else f"twice created: {first}, {second}"


def _rename(work: Path) -> str:
    (work / "old").write_bytes(b"old")
    (work / "new").write_bytes(b"new")
    os.replace(work / "new", work / "old")
    return "" if (work / "old").read_bytes() == b"new" else "the old file is still there"


def _published(work: Path) -> str:
    (work / "attempt").write_bytes(b"x")
    done = publish(work / "attempt", work / "ledger")
    again = publish(work / "attempt", work / "ledger")
    (work / "attempt").unlink()
    whole = (work / "ledger").read_bytes() == b"x"
    return "" if done and again and whole else "a link is not what it should be"


def _visibility(work: Path) -> Finding:
    """How long another process takes to see a new file; here, not from another node."""
    began = time.monotonic()
    (work / "seen").touch()
    command = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.01; done', str(work / "seen")]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=30, check=False)
        seconds = time.monotonic() - began
        so = "for another process here; a node may need as long as its attribute cache keeps"
        return Finding("visibility of a new file", f"{seconds:.2f} s", so)
    return Finding("visibility of a new file", "over 30 s", "put runs elsewhere", "bad")


def _space(there: Path) -> Iterator[Finding]:
    stat = os.statvfs(there)
    free = stat.f_bavail * stat.f_frsize
    verdict: Severity = "note" if free < LEAST_BYTES else "fine"
    yield Finding("free space", f"{free / 2**30:,.0f} GiB on {there}", "", verdict)
    if stat.f_files:
        left = stat.f_favail
        so = "a shard takes three files at most while it is worked on, and one for good"
        verdict = "note" if left < LEAST_INODES else "fine"
        yield Finding("free inodes", f"{left:,}", so, verdict)
    for command in (("lfs", "quota", "-u", slurm.user(), str(there)), ("quota", "-s")):
        if shutil.which(command[0]):
            with suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=20, check=False
                )
                lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
                if done.returncode == 0 and len(lines) > 1:
                    yield Finding("quota", " | ".join(lines[1:4]), f"as {command[0]} tells it")
                    return
