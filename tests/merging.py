"""Refined runs for the tests of the merge, and what comes out of them."""

import functools
import gzip
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.cluster import tasks
from proxhpc.corpus.document import SpanEnd
from proxhpc.corpus.frames import FrameWriter
from proxhpc.errors import StopError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.ledger import LedgerState, LedgerWriter, Row, read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import PARAGRAPH, document, local_site, manifest, write_jsonl

PART = 6000  # bytes; a few documents
SECTIONS: dict[str, Any] = {"output": {"part_size": PART}, "sharding": {"tokens": 1000}}
FORK = multiprocessing.get_context("fork")
_HOME = tempfile.TemporaryDirectory(prefix="merging-")


def records() -> list[Any]:
    """Documents of every outcome, duplicates before and behind what is kept, and bad records."""
    rows: list[Any] = [document(number, n=number, deep={"list": [number]}) for number in range(40)]
    rows[3] = document(30, id="early copy")  # shorter than its survivor, which comes later
    rows[30]["text"] += "   \n"
    rows[7] = document(8, id="before")  # as long as its survivor would be: the first one stays
    rows[11]["text"] = rows[12]["text"].replace("Every year", "EVERY\t year")
    rows[14]["text"] = "too short"
    rows[16]["id"] = rows[15]["id"]
    rows[18] = b'{"id": "broken", "text": "no end'
    rows[20] = {"id": "no text"}
    rows[22] = b"  "
    rows[24] = b'{"id": "latin", "text": "caf\xe9"}'
    rows[26]["text"] = ""
    rows[28]["text"] = f"{PARAGRAPH}Nothing here is for the rules to remove from the text."
    return rows


def inputs(folder: Path) -> list[Path]:
    rows = records()
    packed = folder / "in" / "b.jsonl.gz"
    files = [write_jsonl(folder / "in" / "a.jsonl.zst", rows[:20]), packed]
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows[20:29]]
    packed.write_bytes(gzip.compress(b"\n".join(lines)))
    return [*files, write_jsonl(folder / "in" / "c.jsonl", rows[29:])]


def refined(folder: Path, **sections: Any) -> Run:
    """A run over `inputs`, refined by the rules, not merged."""
    if not sections:
        run = RunDir(folder / "run")
        shutil.copytree(_model().dir.root, run.root)
        return Run(run, Plan.load(run), _model().site)
    path = manifest(folder, inputs(folder), **SECTIONS | sections)
    run_of_its_own = prepare_run(path, local_site(folder), None)
    tasks.refine_task(str(run_of_its_own.dir.root), 0, 1)
    return run_of_its_own


@functools.cache
def _model() -> Run:
    """The run that tests start from a copy of; its inputs stay where they are."""
    return refined(Path(_HOME.name), name="model")


def remake(run: Run, shard: int, change: Callable[[list[Row], list[SpanEnd]], None]) -> Path:
    """Write a shard's ledger anew, whole and summed up, after `change`."""
    path = run.dir.ledger(shard)
    items = list(read_ledger(path, run.plan.digest, shard))
    rows = [item for item in items if isinstance(item, Row)]
    ends = [item for item in items if isinstance(item, SpanEnd)]
    change(rows, ends)
    path.unlink()
    writer = LedgerWriter(FrameWriter(path), run.plan.digest, shard, LedgerState())
    writer.commit(rows, tuple(ends))
    writer.finish()
    writer.close()
    return path


def killed(run: RunDir, allowed: int, make: Callable[[RunDir], Any] = merge_run) -> bool:
    """Merge in a child that dies of SIGKILL in place of its next file after `allowed` ones."""

    def child() -> None:
        rename, left = os.replace, itertools.count(allowed, -1)

        def one_more(source: Any, target: Any) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = one_more  # type: ignore[assignment]
        make(run)

    process = FORK.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def output(run: RunDir) -> dict[str, bytes]:
    """Every file that must not depend on how the work was cut."""
    listings = [path for path in (run.quarantine, run.duplicates) if path.exists()]
    files = [*run.corpus.iterdir(), *listings]
    return {path.name: path.read_bytes() for path in files}


def corpus(run: RunDir) -> list[dict[str, Any]]:
    return [row for path in sorted(run.corpus.glob("part-*")) for row in read_listing(path)]


@functools.cache
def plan_of_one(provenance: bool) -> Plan:
    """The plan of a run over one file, `in.jsonl`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_jsonl(folder / "in.jsonl", [document(0)])
        sections = {"output": {"provenance": provenance}}
        return prepare_run(manifest(folder, [path], **sections), local_site(folder), None).plan


def linger(run: RunDir, plan: Plan, number: int) -> int:
    """A unit that says who does it and takes long."""
    (run.merge / f"pid-{number}").write_text(str(os.getpid()))
    time.sleep(60)
    (run.merge / f"done-{number}").touch()
    return number


def raising(run: RunDir, plan: Plan, number: int) -> int:
    """A unit that fails while the other is at work."""
    if number == 0:
        return linger(run, plan, number)
    while not (run.merge / "pid-0").exists():
        time.sleep(0.01)
    raise StopError("told so", hint="and so")


def kill_self(run: RunDir, plan: Plan, number: int) -> int:
    """A unit that the kernel kills, as it does for memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number
