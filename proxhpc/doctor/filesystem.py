"""Checks what the file system of the run directory can do."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from proxhpc.cluster import slurm
from proxhpc.corpus.disk import create, free_space, publish
from proxhpc.doctor.finding import Finding
from proxhpc.errors import ProxError

MIN_INODES = 10_000
MIN_FREE_BYTES = 1 << 30


def examine_disk(folder: Path) -> Iterator[Finding]:
    """Try what a run does, in a temporary directory in `folder` or its nearest parent."""
    parent = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        work = Path(tempfile.mkdtemp(prefix=".proxhpc-doctor-", dir=parent))
    except OSError as error:
        yield Finding.error("run directory", f"{parent}: {error.strerror}", "choose another")
        return
    try:
        yield _try("exclusive create, by link", work, _exclusive)
        yield _try("rename over a file", work, _rename)
        yield _try("second link to a file", work, _published)
        yield _visibility(work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    yield from _space(parent)


def _try(check: str, work: Path, probe: Callable[[Path], str]) -> Finding:
    try:
        problem = probe(work)
    except (OSError, ProxError) as error:
        problem = str(error).splitlines()[0]
    if problem:
        return Finding.error(check, problem, "put runs on another file system")
    return Finding.ok(check, "works", "leases and ledgers depend on it")


def _exclusive(work: Path) -> str:
    first, second = create(work / "lease", b"1"), create(work / "lease", b"2")
    return "" if (first, second) == (True, False) else f"created twice: {first}, {second}"


def _rename(work: Path) -> str:
    (work / "old").write_bytes(b"old")
    (work / "new").write_bytes(b"new")
    os.replace(work / "new", work / "old")
    return "" if (work / "old").read_bytes() == b"new" else "the old file is still there"


def _published(work: Path) -> str:
    (work / "attempt").write_bytes(b"x")
    first = publish(work / "attempt", work / "ledger")
    second = publish(work / "attempt", work / "ledger")
    (work / "attempt").unlink()
    whole = (work / "ledger").read_bytes() == b"x"
    return "" if first and second and whole else "the linked file is not the original"


def _visibility(work: Path) -> Finding:
    """Measure how long another process of this machine takes to see a new file."""
    check = "visibility of a new file"
    start = time.monotonic()
    (work / "seen").touch()
    command = ["sh", "-c", 'until [ -e "$0" ]; do sleep 0.01; done', str(work / "seen")]
    with suppress(subprocess.TimeoutExpired):
        subprocess.run(command, timeout=30, check=False)
        seconds = time.monotonic() - start
        consequence = "on this machine; another node may take as long as its attribute cache lasts"
        return Finding.ok(check, f"{seconds:.2f} s", consequence)
    return Finding.error(check, "over 30 s", "put runs on another file system")


def _space(folder: Path) -> Iterator[Finding]:
    _, free, inodes = free_space(folder)
    finding = Finding.warning if free < MIN_FREE_BYTES else Finding.ok
    yield finding("free space", f"{free / 2**30:,.0f} GiB on {folder}")
    if inodes is not None:
        finding = Finding.warning if inodes < MIN_INODES else Finding.ok
        consequence = "a shard needs up to three files while it is refined, and one afterwards"
        yield finding("free inodes", f"{inodes:,}", consequence)
    for command in (("lfs", "quota", "-u", slurm.user_name(), str(folder)), ("quota", "-s")):
        if shutil.which(command[0]):
            with suppress(OSError, subprocess.SubprocessError):
                done = subprocess.run(
                    command, capture_output=True, text=True, timeout=20, check=False
                )
                lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
                if done.returncode == 0 and len(lines) > 1:
                    yield Finding.ok("quota", " | ".join(lines[1:4]), f"reported by {command[0]}")
                    return
