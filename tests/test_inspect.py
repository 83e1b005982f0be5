"""Inspect: documents are found, their programs replayed, and every change is shown."""

import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from merging import refined
from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.cli.main import main
from proxhpc.cluster import tasks
from proxhpc.corpus.document import BadRecord, Document, SpanEnd
from proxhpc.corpus.frames import FrameWriter
from proxhpc.errors import RetryError, ShardError, StopError, UserError
from proxhpc.inspect import find as finder
from proxhpc.inspect.diff import LineChange, diff_lines, hunks
from proxhpc.inspect.document import Inspection, inspect_documents, sample_documents
from proxhpc.inspect.model import Survivor
from proxhpc.inspect.view import _program, render_inspection
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.ledger import (
    Call,
    LedgerState,
    LedgerWriter,
    Row,
    bad_row,
    quarantine,
    text_digest,
)
from proxhpc.run.paths import RunDir
from runs import document, local_site, manifest, planned, rows_of, write_jsonl

HOSTILE = "\x1b]0;owned\x07\x1b[31m[red]x[/red]\x9b2J\u202e"
TEXT = "\n".join(
    ["Home | About", "The first line of it stays.", "See colour here and stay.", "Fourth.", "Last."]
)


def call(program: str, start: int = 0, stop: int = 5, finish: str = "stop") -> Call:
    return Call(start, stop, program, finish, 100, 0, 7)


def small(folder: Path, texts: dict[str, str], **sections: Any) -> Run:
    """A planned run of one shard."""
    rows = [{"id": name, "text": text} for name, text in texts.items()]
    path = write_jsonl(folder / "in" / "a.jsonl", rows)
    policy = {"min_kept_words": 1, "max_removed_share": 1.0, "whole_words": False}
    manifest_path = manifest(
        folder, [path], policy=policy, sharding={"tokens": 100_000}, **sections
    )
    return prepare_run(manifest_path, local_site(folder), None)


def documents(run: Run) -> list[Document]:
    items = run.plan.read(run.plan.shards[0].spans[0])
    return [item for item in items if isinstance(item, Document)]


def row(of: Document, status: str, **more: Any) -> Row:
    return Row(of.id, of.file, of.position, status, digest=text_digest(of.text), **more)


def write(run: Run, rows: Sequence[Row], path: Path | None = None) -> None:
    """Commit the rows and, unless `path` is an attempt's, publish them."""
    with FrameWriter(path or run.dir.ledger(0)) as frames:
        writer = LedgerWriter(frames, run.plan.digest, 0, LedgerState())
        writer.commit(list(rows[:1]))
        writer.commit(list(rows[1:]), (SpanEnd(0, 10**6, at_eof=True),))
        if path is None:
            writer.finish()


def shown(run: Run, query: str, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    for item in inspect_documents(run.dir, query):
        console.print(render_inspection(item), soft_wrap=True)
    return out.getvalue()


@pytest.fixture
def edited(tmp_path: Path) -> Run:
    run = small(tmp_path, {"one": TEXT, "two": "Another text.", "three": "To be dropped."})
    one, two, three = documents(run)
    programs = 'remove_lines(start=0, end=0)\nnormalize(source_str="colour", target_str="color")'
    write(
        run,
        [
            row(one, "edited", doc=call("keep_doc()"), windows=(call(programs),), bytes_in=70,
                bytes_out=56, lines_removed=1, strings_replaced=1),
            row(two, "kept", doc=call("keep_doc()"), windows=(call("untouch_doc()", stop=1),)),
            row(three, "dropped", reason="doc_program", doc=call("drop_doc()", stop=1)),
        ],
    )  # fmt: skip
    return run


def test_a_document_is_found_by_its_id_and_replayed(edited: Run) -> None:
    (item,) = inspect_documents(edited.dir, "one")
    assert isinstance(item, Inspection)
    assert item.before == TEXT
    assert item.after == TEXT.partition("\n")[2].replace("colour", "color")
    assert (item.shard, item.published, item.source) == (0, True, "a.jsonl:0")
    assert item.notes == ()


def test_a_document_is_found_by_its_position(edited: Run) -> None:
    position = documents(edited)[1].position
    (item,) = inspect_documents(edited.dir, f"a.jsonl:{position}")
    assert item.row.id == "two"
    (same,) = inspect_documents(edited.dir, f"{edited.plan.inputs[0].path}:{position}")
    assert same.row.id == "two"


def test_an_id_that_looks_like_a_position_is_found_too(tmp_path: Path) -> None:
    run = small(tmp_path, {"one": "Text one.", "a.jsonl:0": "Text two."})
    rows = [row(item, "kept", windows=(call("untouch_doc()", stop=1),)) for item in documents(run)]
    write(run, rows)
    assert [item.row.id for item in inspect_documents(run.dir, "a.jsonl:0")] == [
        "one",
        "a.jsonl:0",
    ]


def test_lines_are_numbered_as_the_model_saw_them(edited: Run) -> None:
    lines = [line.strip() for line in shown(edited, "one").splitlines()]
    assert "keep_doc()" in lines
    assert "remove_lines(start=0, end=0)" in lines
    diff = lines[lines.index("text") + 1 :]
    assert diff == [
        "[000] - Home | About",
        "[001]   The first line of it stays.",
        "[002] - See colour here and stay.",
        "+ See color here and stay.",
        "[003]   Fourth.",
        "[004]   Last.",
    ]


def test_colours_mark_what_changed_within_a_line(edited: Run) -> None:
    text = shown(edited, "one", terminal=True)
    assert "\x1b[31mHome | About\x1b[0m" in text
    assert "\x1b[1;37;41mu\x1b[0m" in text, "the one letter that goes"


def test_line_numbers_restart_and_begin_as_the_style_says(tmp_path: Path) -> None:
    stages = [{"level": "chunk", "dialect": "refinex", "numbering": "window"}]
    run = small(tmp_path, {"one": TEXT}, stages=stages)
    (one,) = documents(run)
    windows = (call("keep_all()", 0, 2), call("remove_lines(2, 2)", 3, 5))
    write(run, [row(one, "edited", windows=windows, lines_removed=1)])
    (item,) = inspect_documents(run.dir, "one")
    assert item.after == TEXT.removesuffix("\nLast.")
    assert [item.number(line) for line in range(5)] == [1, 2, None, 1, 2]
    assert "[002] - Last." in shown(run, "one")


def test_split_lines_keep_the_numbers_that_the_model_saw(tmp_path: Path) -> None:
    """The first line was split in three; the second window showed the end of the first one."""
    text = "One. Two. Three.\n\nFour.\nFive."
    stages = [{"level": "chunk", "dialect": "refinex", "numbering": "window"}]
    run = small(tmp_path, {"one": text}, stages=stages)
    (one,) = documents(run)
    first, second = call("remove_lines(3, 3)", 0, 3), call("remove_lines(2, 3)", 3, 6)
    windows = (first, second._replace(shown=(2, 6)))
    write(run, [row(one, "edited", windows=windows, lines_removed=3, cuts=(5, 10))])
    (item,) = inspect_documents(run.dir, "one")
    assert item.after == "One. Two.\nFive."
    assert [item.number(line) for line in range(4)] == [1, 2, 3, 4]
    assert [program.lines for program in item.to_output().chunk_programs] == [(0, 1), (1, 4)]
    lines = [line.strip() for line in shown(run, "one").split("\n")]
    assert "chunk program 1 of 2, lines [001] to [003]  (100 tokens in, 7 out)" in lines
    assert "chunk program 2 of 2, lines [002] to [004]  (100 tokens in, 7 out)" in lines
    assert "[001] - One. Two. Three." in lines
    assert "[003] - Four." in lines


def test_an_inserted_line_is_shown_and_blank_lines_may_have_no_number(tmp_path: Path) -> None:
    text = "Menu\n\nThe first line.\nThe last line."
    stages = [{"level": "chunk", "dialect": "ultrax", "blank_lines": "skipped"}]
    run = small(tmp_path, {"one": text}, stages=stages)
    (one,) = documents(run)
    windows = (call("add_line(2, 1, 'A line between.')\nremove_lines(1, 1)", 0, 4),)
    write(run, [row(one, "edited", windows=windows, lines_removed=2, strings_replaced=1)])
    diff = [line.strip() for line in shown(run, "one").split("\n")]
    assert diff[diff.index("text") + 1 : -1] == [
        "[001] - Menu",
        "-",
        "[002]   The first line.",
        "+ A line between.",
        "[003]   The last line.",
    ]
    assert any(line.endswith("lines removed: 2, strings replaced: 1") for line in diff)


def test_a_dropped_document_is_shown(edited: Run) -> None:
    text = shown(edited, "three")
    assert "dropped (doc_program: verdict of the doc stage)" in text
    assert "- To be dropped." in text


def test_an_unchanged_document_is_called_unchanged(edited: Run) -> None:
    assert "unchanged" in shown(edited, "two")
    assert _program("\n").plain == "  empty: nothing changes"


def test_a_record_that_cannot_be_read_shows_its_first_bytes(tmp_path: Path) -> None:
    rows = [b'{"id": "x", "text": \x1b[31m\xff', {"id": "y", "text": "Some text."}]
    path = write_jsonl(tmp_path / "in" / "a.jsonl", rows)
    run = prepare_run(manifest(tmp_path, [path]), local_site(tmp_path), None)
    bad = next(iter(run.plan.read(run.plan.shards[0].spans[0])))
    assert isinstance(bad, BadRecord)
    write(run, [bad_row(bad)])
    text = shown(run, "a.jsonl:0")
    assert "quarantined (invalid_utf8: not valid UTF-8)" in text
    assert '{"id": "x", "text": \\x1b[31m\\xff' in text


def test_a_quarantined_document_shows_its_text_and_the_error(tmp_path: Path) -> None:
    run = small(tmp_path, {"one": "Some text."})
    write(run, [quarantine(documents(run)[0], "internal_error", "Traceback: \x1b[31m boom")])
    text = shown(run, "one")
    assert "Traceback: \\x1b[31m boom" in text
    assert "Some text." in text


def test_control_characters_are_escaped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"id {HOSTILE}"
    run = small(tmp_path, {name: f"{HOSTILE}\nkeep\tthis\r\nand this line"})
    (one,) = documents(run)
    program = f"remove_lines(start=0, end=0)\n# {HOSTILE}"
    more = {"flags": (HOSTILE,), "rejected": {HOSTILE: 1}, "detail": HOSTILE, "lines_removed": 1}
    write(run, [row(one, "edited", windows=(call(program, 0, 3),), **more)])
    plain = shown(run, name)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\t"} & set(plain)
    assert "[red]x[/red]" in plain, "markup is shown, not obeyed"
    coloured = shown(run, name, terminal=True)
    assert "\x1b]0" not in coloured
    assert not {"\x07", "\x9b", "\u202e"} & set(coloured)
    assert main(["inspect", str(run.dir.root), name, "--json"]) == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert "\x1b" not in out
    (data,) = json.loads(out)["documents"]
    assert data["id"] == name
    assert data["chunk_programs"][0]["program"] == program
    assert data["after"] == "keep\tthis\r\nand this line"


def test_an_unfinished_shard_is_searched_too(tmp_path: Path) -> None:
    run = small(tmp_path, {"one": "Text one.", "two": "Text two."})
    rows = [row(item, "kept", windows=(call("untouch_doc()", stop=1),)) for item in documents(run)]
    path = run.dir.attempt(0, 1)
    write(run, rows, path)
    with path.open("ab") as file:
        file.write(b"\x28\xb5\x2f\xfd torn")
    (item,) = inspect_documents(run.dir, "two")
    assert not item.published
    assert "not finished" in shown(run, "two")


def test_a_shard_that_is_published_meanwhile_is_still_found(
    edited: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = edited.dir.ledger(0)
    attempt = edited.dir.attempt(0, 1)
    ledger.rename(attempt)
    before = finder.attempts

    def listed(run: RunDir, shard: int) -> list[int]:
        numbers = before(run, shard)
        if numbers:
            attempt.rename(ledger)
        return numbers

    monkeypatch.setattr(finder, "attempts", listed)
    (item,) = inspect_documents(edited.dir, "one")
    assert item.published


def test_an_unknown_id_names_similar_ones(edited: Run) -> None:
    with pytest.raises(UserError, match="no document 'thre'") as error:
        inspect_documents(edited.dir, "thre")
    assert "similar ids: three" in error.value.hint
    with pytest.raises(UserError) as error:
        inspect_documents(edited.dir, "zzzzzzzzzzzz")
    source = re.search(r"FILE:POSITION as in (\S+);", error.value.hint)
    assert source
    assert source[1] == "a.jsonl:0"
    assert inspect_documents(edited.dir, source[1])[0].row.id == "one"


def test_an_unknown_id_before_the_first_commit(tmp_path: Path) -> None:
    run = small(tmp_path, {"one": "Text."})
    with pytest.raises(UserError, match="no shard has committed any yet"):
        inspect_documents(run.dir, "one")


def test_a_changed_input_is_an_error(edited: Run) -> None:
    path = edited.plan.inputs[0].path
    path.write_bytes(path.read_bytes().replace(b"Home", b"Hoem"))
    with pytest.raises(StopError, match=r"a\.jsonl"):
        inspect_documents(edited.dir, "one")


def test_a_row_of_another_text_is_an_error(tmp_path: Path) -> None:
    run = small(tmp_path, {"one": "Text."})
    write(run, [Row("one", 0, 0, "kept", digest="0" * 16)])
    with pytest.raises(StopError, match="there is another record at 0"):
        inspect_documents(run.dir, "one")


def test_a_damaged_ledger_is_named(edited: Run) -> None:
    path = edited.dir.ledger(0)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(ShardError, match=r"00000\.ledger\.zst"):
        inspect_documents(edited.dir, "nobody")


def test_programs_with_another_outcome_than_the_row_are_noted(tmp_path: Path) -> None:
    run = small(tmp_path, {"one": "Text one.\nText two."})
    (one,) = documents(run)
    write(run, [row(one, "kept", windows=(call("remove_lines(start=0, end=0)", stop=2),))])
    assert "now give outcome edited" in shown(run, "one")


def test_real_refinements_are_found_by_any_id(tmp_path: Path) -> None:
    run = planned(tmp_path, 20)
    tasks.refine_task(str(run.dir.root), 0, 1)
    for number in (0, 7, 19):
        (item,) = inspect_documents(run.dir, f"doc-{number}")
        assert item.before == document(number)["text"]
        assert item.after == document(number)["text"].partition("\n")[2]
        assert item.row in rows_of(run.dir, run.plan)


def test_duplicate_ids_are_all_shown(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [document(1), document(2, id="doc-1")])
    run = prepare_run(manifest(tmp_path, [path]), local_site(tmp_path), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    assert len(inspect_documents(run.dir, "doc-1")) == 2


def test_a_sample_is_the_same_for_one_seed(tmp_path: Path) -> None:
    run = planned(tmp_path, 40)
    tasks.refine_task(str(run.dir.root), 0, 1)
    ids = [item.row.id for item in sample_documents(run.dir, 6, seed=1)]
    assert len(set(ids)) == 6
    assert ids == [item.row.id for item in sample_documents(run.dir, 6, seed=1)]
    assert ids != [item.row.id for item in sample_documents(run.dir, 6, seed=2)]
    assert len(sample_documents(run.dir, 1000)) == 40
    assert sample_documents(run.dir, 3, outcome="dropped") == []


def test_a_sample_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = planned(tmp_path, 20)
    command = ["inspect", str(run.dir.root), "--sample", "3"]
    assert main(command) == 0
    assert "no document is refined yet" in capsys.readouterr().out
    tasks.refine_task(str(run.dir.root), 0, 1)
    assert main(command) == 0
    assert capsys.readouterr().out.count("outcome  ") == 3
    assert main([*command, "--outcome", "edited"]) == 0
    assert capsys.readouterr().out.count("outcome  edited") == 3
    assert main([*command, "--outcome", "dropped"]) == 0
    assert capsys.readouterr().out == "no dropped document\n"
    assert main([*command, "--outcome", "dropped", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "format": "proxhpc.inspect/1", "documents": [],
    }  # fmt: skip
    assert main(["inspect", str(run.dir.root), "doc-1", "--outcome", "kept"]) == 2
    assert "add --sample N" in capsys.readouterr().err
    for number in ("0", "-1"):
        assert main(["inspect", str(run.dir.root), "--sample", number]) == 2
        assert f"--sample {number}: it must be 1 or more" in capsys.readouterr().err


lines = st.lists(st.sampled_from(["", "a", "b", "alpha beta", "alpha gamma", "alpha betas"]))


@given(lines, lines)
def test_a_diff_contains_both_versions(before: list[str], after: list[str]) -> None:
    changes = list(diff_lines(before, after))
    assert [c.text for c in changes if c.kind != "added"] == before
    assert [c.text for c in changes if c.kind != "removed"] == after
    numbers = [c.number for c in changes if c.kind != "added"]
    assert numbers == list(range(len(before)))


@given(lines, lines, st.integers(0, 3))
def test_hunks_leave_out_only_unchanged_lines(
    before: list[str], after: list[str], context: int
) -> None:
    changes = list(diff_lines(before, after))
    parts = list(hunks(changes, context))
    skipped = sum(part for part in parts if isinstance(part, int))
    lines_left = [part for part in parts if isinstance(part, LineChange)]
    assert len(lines_left) + skipped == len(changes)
    assert [c for c in lines_left if c.kind != "same"] == [c for c in changes if c.kind != "same"]


def test_a_huge_text_of_equal_lines_is_compared_quickly() -> None:
    before = ["", "x"] * 20_000
    after = [*before[:100], "new", *before[110:30_000], *before[30_004:]]
    changes = list(diff_lines(before, after))
    assert [c.text for c in changes if c.kind != "removed"] == after


def test_a_line_of_a_megabyte_is_compared_quickly() -> None:
    before = "word " * 200_000
    (gone, come) = list(diff_lines([before], [before[:500_000] + before[500_005:]]))
    assert (gone.kind, come.kind) == ("removed", "added")
    assert [p.text for p in gone.pieces if p.changed] == ["word "]


def test_long_lines_that_all_changed_are_compared_quickly() -> None:
    """Letter by letter this took minutes."""
    before = [" ".join(f"{(n * k) % 97}" for k in range(230)) for n in range(2, 50)]
    after = [line.replace("13", "thirteen") for line in before]
    changes = list(diff_lines(before, after))
    assert [c.text for c in changes if c.kind != "removed"] == after
    assert [c.text for c in changes if c.kind != "added"] == before
    marked = {piece.text for c in changes for piece in c.pieces if piece.changed}
    assert marked == {"13", "thirteen"}


@pytest.fixture
def merged_run(tmp_path: Path) -> Run:
    """A run whose document doc-8 is a duplicate of the document `before`."""
    run = refined(tmp_path)
    merge_run(run.dir)
    return run


def test_a_duplicate_names_its_survivor(tmp_path: Path) -> None:
    run = refined(tmp_path)
    assert inspect_documents(run.dir, "doc-8")[0].duplicate_of is None, "not merged yet"
    merge_run(run.dir)
    (survivor,) = inspect_documents(run.dir, "before")
    assert survivor.duplicate_of is None
    (copy,) = inspect_documents(run.dir, "doc-8")
    assert copy.duplicate_of == Survivor(id="before", source=survivor.source, similarity=1)
    assert copy.to_output().outcome == "duplicate"
    text = shown(run, "doc-8")
    assert re.search(r"outcome +duplicate *\n", text)
    assert "edited, but with the same text as before (a.jsonl.zst:" in text
    listing = {
        row["duplicate"]["source"]: row["survivor"]["id"]
        for row in read_listing(run.dir.duplicates)
    }
    assert len(listing) == 3
    for item in sample_documents(run.dir, 1000):
        id_ = item.duplicate_of.id if item.duplicate_of else None
        assert id_ == listing.get(item.source)


def test_a_sample_of_each_outcome(merged_run: Run) -> None:
    everything = Counter(item.outcome for item in sample_documents(merged_run.dir, 1000))
    assert everything["duplicate"] == 3
    assert everything.keys() == {"kept", "edited", "dropped", "duplicate", "quarantined"}
    for outcome, number in everything.items():
        sample = sample_documents(merged_run.dir, 1000, outcome)
        assert [item.outcome for item in sample] == [outcome] * number
    merged_run.dir.merge_summary.unlink()
    assert sample_documents(merged_run.dir, 1000, "duplicate") == [], "the merge is undone"


def test_a_corpus_without_duplicates_has_none(tmp_path: Path) -> None:
    run = planned(tmp_path, 4)
    tasks.refine_task(str(run.dir.root), 0, 1)
    merge_run(run.dir)
    assert [item.duplicate_of for item in sample_documents(run.dir, 9)] == [None] * 4


def test_a_shard_that_is_refined_again_is_shown_from_its_attempt(merged_run: Run) -> None:
    """`verify --repair` deleted its ledger; a worker has begun a new attempt."""
    (before,) = inspect_documents(merged_run.dir, "doc-8")
    assert before.shard is not None
    merged_run.dir.ledger(before.shard).rename(merged_run.dir.attempt(before.shard, 1))
    (again,) = inspect_documents(merged_run.dir, "doc-8")
    assert not again.published
    assert again.row == before.row
    assert (again.duplicate_of, again.notes) == (None, ())
    assert len(sample_documents(merged_run.dir, 1000)) == 39


def test_a_survivor_is_named_by_the_listing_of_duplicates(merged_run: Run) -> None:
    (survivor,) = inspect_documents(merged_run.dir, "early copy")
    (copy,) = inspect_documents(merged_run.dir, "doc-30")
    assert survivor.shard is not None
    merged_run.dir.ledger(survivor.shard).unlink()
    assert inspect_documents(merged_run.dir, "doc-30") == [copy]
    assert copy.duplicate_of is not None
    (listing,) = merged_run.dir.match_folder.glob("*/duplicates/*")
    listing.unlink()
    (copy,) = inspect_documents(merged_run.dir, "doc-30")
    assert copy.duplicate_of is None
    assert copy.notes == (
        "the merge left it out as a duplicate, but the file that names the document in its place"
        f" is gone: {listing}",
    )
    assert "note: the merge left it out" in shown(merged_run, "doc-30")


def test_files_that_vanish_before_they_are_opened_are_listed_again(
    edited: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger that repair deletes, then an attempt that a newer one replaces."""
    ledger, attempts = edited.dir.ledger(0), [edited.dir.attempt(0, n) for n in (1, 2)]
    before = finder.read_frames

    def renamed_first(path: Path, **more: Any) -> Any:
        if path == ledger:
            ledger.rename(attempts[0])
        elif path == attempts[0]:
            attempts[0].rename(attempts[1])
        return before(path, **more)

    monkeypatch.setattr(finder, "read_frames", renamed_first)
    (item,) = inspect_documents(edited.dir, "one")
    assert not item.published
    assert attempts[1].exists()


def test_files_that_vanish_forever_end_in_an_error(
    edited: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path, **more: Any) -> Any:
        raise FileNotFoundError(path)

    monkeypatch.setattr(finder, "read_frames", gone)
    with pytest.raises(RetryError, match="shard 0"):
        inspect_documents(edited.dir, "one")
