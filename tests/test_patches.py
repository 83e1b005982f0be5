"""Rows of the corpus that are made from the lines of their records."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from merging import SECTIONS, output, refined
from proxhpc.assemble import patches
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.patches import make_patch
from proxhpc.assemble.replay import ReplayedRecord
from proxhpc.corpus.document import Document
from proxhpc.errors import StopError
from proxhpc.launch.launch import Run
from proxhpc.program.execute import change_text
from proxhpc.program.match import SpanChange
from proxhpc.program.replay import ReplayResult
from proxhpc.run.ledger import Row

TEXTS = st.text(st.sampled_from('ab\n\\"/\té中😀\u2028'), max_size=30)


def record(line: bytes, text: str, changes: Sequence[SpanChange]) -> ReplayedRecord:
    refined_text = change_text(text, changes) if changes else text
    read = Document("7", text, 0, 0, {}, line)
    result = ReplayResult("edited", refined_text, {}, changes=changes)
    return ReplayedRecord(0, Row("7", 0, 0, "edited"), read, refined_text, result)


@given(TEXTS, st.lists(st.tuples(st.integers(0, 31), st.integers(0, 9), TEXTS), max_size=4))
@example("a\nb\nc", [(4, 2, "")])
@example("a\nb\nc", [(2, 2, ""), (4, 2, "")])
@example("a\nb\nc", [(2, 0, "x\n"), (4, 2, "")])
@pytest.mark.parametrize("dump", [orjson.dumps, lambda row: json.dumps(row).encode()])
@pytest.mark.parametrize("order", [("id", "text", "url"), ("url", "text", "id")])
def test_a_patch_makes_the_row(
    dump: Callable[[Any], bytes], order: Sequence[str], text: str, drawn: list[SpanChange]
) -> None:
    changes: list[SpanChange] = []
    for start, length, target in sorted(drawn):
        first = max(start, changes[-1][1] if changes else 0)
        if first <= len(text):
            changes.append((first, min(first + length, len(text) + 1), target))
    values = {"id": "7", "text": text, "url": "é"}
    line = dump({name: values[name] for name in order})
    done = record(line, text, changes)
    row = orjson.dumps(values | {"text": done.text, "proxhpc": {"source": "x"}}) + b"\n"
    digest, ranges, literals = make_patch(done, row)
    assert patches._Patch(0, 0, 0, 0, 0, 0, digest, ranges, literals).apply(line) == row
    if dump is orjson.dumps and len(text) > 3:
        assert ranges, "the text is taken from the line"


def merged_by(folder: Path, monkeypatch: pytest.MonkeyPatch, few: float, **sections: Any) -> Run:
    """A run that was merged with patches, or without for a high `few`."""
    monkeypatch.setattr(patches, "_FEW", few)
    folder.mkdir(exist_ok=True)
    run = refined(folder, **sections)
    merge_run(run.dir)
    return run


@pytest.mark.parametrize("shuffle", [False, True])
def test_patched_rows_are_those_of_a_replay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffle: bool
) -> None:
    sections = {"output": SECTIONS["output"] | {"shuffle": shuffle, "cluster_size": True}}
    patched = merged_by(tmp_path / "a", monkeypatch, 0, **sections)
    replayed = merged_by(tmp_path / "b", monkeypatch, 1e9, **sections)
    sizes = [run.dir.patches(0).stat().st_size for run in (patched, replayed)]
    assert sizes[0] > sizes[1] == 32  # which is a footer
    assert output(patched.dir) == output(replayed.dir)


def test_a_line_that_changed_after_the_sketch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = refined(tmp_path, name="changed")
    merge_run(run.dir)
    shutil.rmtree(run.dir.corpus)
    source = run.plan.inputs[2].path  # not compressed
    source.write_bytes(source.read_bytes().replace(b"ground", b"GROUND"))
    monkeypatch.setattr("proxhpc.run.plan.check_unchanged", lambda info: None)
    with pytest.raises(StopError, match=f"{source.name} has changed since it was refined: record"):
        merge_run(run.dir)
