"""Refined runs for the tests of the merge, and readers of its output."""

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
    """Documents of every outcome, duplicates before and after their survivor, and bad records."""
    rows: list[Any] = [document(number, n=number, deep={"list": [number]}) for number in range(40)]
    rows[3] = document(30, id="early copy")  # 30 has more white space only, so the first survives
    rows[30]["text"] += "   \n"
    rows[7] = document(8, id="before")  # as long as its duplicate 8, so the first survives
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
    """A run over `inputs` that the rules refined, not merged."""
    if not sections:
        run = RunDir(folder / "run")
        shutil.copytree(_model_run().dir.root, run.root)
        return Run(run, Plan.load(run), _model_run().site)
    path = manifest(folder, inputs(folder), **SECTIONS | sections)
    new_run = prepare_run(path, local_site(folder), None)
    tasks.refine_task(str(new_run.dir.root), 0, 1)
    return new_run


@functools.cache
def _model_run() -> Run:
    """The run that tests copy; its inputs stay where they are."""
    return refined(Path(_HOME.name), name="model")


def rewrite_ledger(
    run: Run, shard: int, change: Callable[[list[Row], list[SpanEnd]], None]
) -> Path:
    """Rewrite a shard's ledger, with a correct summary, after `change`."""
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
    """Merge in a child that SIGKILL ends in place of its next file after `allowed` ones."""

    def child() -> None:
        rename, allowance = os.replace, itertools.count(allowed, -1)

        def replace_or_die(source: Any, target: Any) -> None:
            if next(allowance) == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = replace_or_die  # type: ignore[assignment]
        make(run)

    process = FORK.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def output(run: RunDir) -> dict[str, bytes]:
    """Every file that must not depend on how the work was split."""
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


def slow_unit(run: RunDir, plan: Plan, number: int) -> int:
    """A unit that writes its process id and takes long."""
    (run.merge / f"pid-{number}").write_text(str(os.getpid()))
    time.sleep(60)
    (run.merge / f"done-{number}").touch()
    return number


def failing_unit(run: RunDir, plan: Plan, number: int) -> int:
    """A unit that fails while another one is running."""
    if number == 0:
        return slow_unit(run, plan, number)
    while not (run.merge / "pid-0").exists():
        time.sleep(0.01)
    raise StopError("a unit failed", hint="fix it")


def kill_self(run: RunDir, plan: Plan, number: int) -> int:
    """A unit whose process is killed, as the kernel does when memory is short."""
    os.kill(os.getpid(), signal.SIGKILL)
    return number
