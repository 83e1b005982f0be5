"""Review: keys on a real terminal become gold records, and marks become estimates."""

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from merging import refined
from proxhpc.annotate.gold import gold_labels
from proxhpc.annotate.labels import Edit
from proxhpc.assemble.listings import read_listing
from proxhpc.cli.main import main
from proxhpc.cluster import tasks
from proxhpc.errors import StopError, UserError
from proxhpc.evaluate.gold import read_gold
from proxhpc.evaluate.metrics import GoldLines, line_counts
from proxhpc.inspect.find import sample_groups
from proxhpc.program.derive import EDIT_COSTS
from proxhpc.review.document import (
    ReviewDocument,
    ReviewItem,
    ReviewTexts,
    Stratum,
    refined_lines,
)
from proxhpc.review.estimate import ReviewSummary, summarize
from proxhpc.review.marks import Mark, MarksFile
from proxhpc.review.page import Page
from proxhpc.review.session import ReviewSession
from proxhpc.review.source import FileReview, RunReview, choose_items, open_review_source
from proxhpc.review.view import CHROME, render_screen
from proxhpc.run.paths import RunDir
from runs import document, planned, write_jsonl

EDITED, KEPT, DROPPED = Stratum("edited"), Stratum("kept"), Stratum("dropped", "short")
HOSTILE = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e"
MENU = "Home | About\nThe first line stays.\nShare this\nThe last line stays."
ROWS = [
    {"id": "menu", "original_text": MENU, "text": "The first line stays.\nThe last line stays."},
    {"id": "same", "original_text": "All of it.\nStays.", "text": "All of it.\nStays."},
    {
        "id": "gone",
        "original_text": "Cheap bags!",
        "text": None,
        "proxhpc": {"outcome": "dropped", "reason": "short"},
    },
    {
        "id": "colour",
        "original_text": "Menu\nA colour.",
        "text": "A color.",
        "url": "http://example.org/colour",
    },
]
ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def reviewed(folder: Path, rows: list[dict[str, Any]] = ROWS) -> FileReview:
    return FileReview(write_jsonl(folder / "out.jsonl", rows))


def session_of(source: FileReview | RunReview, number: int = 50) -> ReviewSession:
    marks = MarksFile(source.marks, source.key)
    session = ReviewSession(source, choose_items(source, number, Stratum(""), 0), marks)
    draw(session)
    return session


def draw(session: ReviewSession, width: int = 80, height: int = 24) -> None:
    render_screen(session, width, height)


def press(session: ReviewSession, keys: str) -> None:
    """Press keys, one letter or name each, with the screen drawn after each, as a terminal does."""
    for key in keys.split():
        session.press({"space": " "}.get(key, key))
        draw(session)


def open_document(session: ReviewSession, name: str) -> None:
    """Skip to a document."""
    while session.page and session.page.document.item.id != name:
        press(session, "s")
    assert session.page, f"{name} is not asked about"


def unchanged(text: str) -> ReviewDocument:
    loaded = ReviewItem("x", "a.jsonl:0", KEPT, (), lambda: ReviewTexts({}, text, text)).load()
    assert loaded
    return loaded


def records(path: Path) -> dict[str, dict[str, Any]]:
    """The gold records of a file by id."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows), "a document is marked twice"
    return {row["id"]: row for row in rows}


def test_a_place_that_is_the_id_is_shown_once(tmp_path: Path) -> None:
    for row in (ROWS[0], {key: value for key, value in ROWS[0].items() if key != "id"}):
        session = session_of(reviewed(tmp_path / str(len(row)), [row]))
        console = Console(width=80, file=io.StringIO())
        with console.capture() as capture:
            console.print(render_screen(session, 80, 24))
        assert capture.get().count("out.jsonl:") == 1


# Marks are gold records.


@pytest.mark.parametrize(
    ("name", "keys", "expected"),
    [
        ("menu", "y", {"line_labels": "BGBG", "text_gold": ROWS[0]["text"], "keep": 1}),
        ("menu", "w", {"line_labels": "GGGG", "text_gold": MENU, "keep": 1}),
        ("menu", "d", {"text": MENU, "keep": 0}),
        (
            "menu",
            "space down space y",
            {"line_labels": "GBBG", "text_gold": "Home | About\nThe last line stays.", "keep": 1},
        ),
        ("menu", "space space k", {"line_labels": "BGBG", "keep": 1}),
        ("menu", "n space enter", {"line_labels": "BGGG", "keep": 1}),
        ("same", "y", {"line_labels": "GG", "keep": 1}),
        ("same", "end space y", {"line_labels": "GB", "text_gold": "All of it.", "keep": 1}),
        ("gone", "y", {"text": "Cheap bags!", "keep": 0}),
        ("gone", "w", {"text": "Cheap bags!", "keep": 1}),
        ("colour", "y", {"line_labels": "BE", "text_gold": "A color.", "keep": 1}),
        ("colour", "down space y", {"line_labels": "BG", "text_gold": "A colour.", "keep": 1}),
        (
            "colour",
            "space down space space y",
            {"line_labels": "GB", "text_gold": "Menu", "keep": 1},
        ),
    ],
)
def test_keys_become_a_gold_record(
    tmp_path: Path, name: str, keys: str, expected: dict[str, Any]
) -> None:
    session = session_of(reviewed(tmp_path))
    open_document(session, name)
    press(session, keys)
    found = records(tmp_path / "out.review.jsonl")[name]
    assert {key: found[key] for key in expected} == expected
    assert ("text_gold" in found) == ("line_labels" in expected)
    (gold,) = read_gold([tmp_path / "out.review.jsonl"])
    assert (gold.keep, gold.labels) == (bool(expected["keep"]), expected.get("line_labels", ""))
    assert gold.host == ("example.org" if name == "colour" else "")
    assert gold.source == "out.jsonl"


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("same", "w", "nothing was changed here"),
        ("same", "space down space y", "no line is left"),
        ("gone", "space y", "k keeps the document with these lines"),
        ("same", "x", "no such key"),
        ("same", "n", "no change below"),
        ("same", "u", "nothing to undo"),
    ],
)
def test_keys_that_cannot_be_meant_mark_nothing(
    tmp_path: Path, name: str, keys: str, message: str
) -> None:
    session = session_of(reviewed(tmp_path))
    open_document(session, name)
    press(session, keys)
    assert message in session.message
    assert session.page
    assert session.page.document.item.id == name
    assert not (tmp_path / "out.review.jsonl").exists()


def test_changes_are_seen_before_they_are_accepted_and_unseen_lines_have_no_label(
    tmp_path: Path,
) -> None:
    lines = [f"Line {number}." for number in range(100)]
    after = "\n".join([*lines[1:50], *lines[51:]])
    rows = [{"id": "long", "original_text": "\n".join(lines), "text": after}]
    session = session_of(reviewed(tmp_path, rows))
    press(session, "y")
    assert session.message == "not on the screen yet: 1 change"
    press(session, "y")
    labels = records(tmp_path / "out.review.jsonl")["long"]["line_labels"]
    room = 24 - CHROME
    assert labels == "B" + "G" * (room - 1) + "?" * (50 - room) + "B" + "G" * (room - 1) + "?" * (
        50 - room
    )


def test_undo_takes_back_marks_of_this_and_of_an_earlier_review(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    session = session_of(source)
    press(session, "y y y")
    first, _, third = records(source.marks)
    press(session, "u")
    assert session.page
    assert session.page.document.item.id == third
    assert third not in records(source.marks)
    again = session_of(source)
    press(again, "u u d")
    assert again.page
    assert records(source.marks).keys() == {first}
    assert records(source.marks)[first]["keep"] == 0


def test_a_skipped_document_comes_next_time_a_marked_one_never(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    session = session_of(source)
    press(session, "y s y s")
    assert session.page is None
    assert session.skipped == 2
    marked = records(source.marks).keys()
    assert len(marked) == 2
    session = session_of(source)
    assert session.left == 2
    press(session, "y y")
    assert len(records(source.marks)) == 4


# The file of marks.


def test_a_record_that_was_torn_is_asked_again(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    press(session_of(source), "y y")
    whole = source.marks.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        source.marks.write_bytes(whole[:end])
        assert len(MarksFile(source.marks, source.key).marks) == 1
        assert source.marks.read_bytes() == whole[:first]
    source.marks.write_bytes(whole)
    assert len(MarksFile(source.marks, source.key).marks) == 2


@pytest.mark.parametrize("text", ["notes", "notes\n", '{"text": "a", "keep": 1}\n', "\n"])
def test_a_file_of_something_else_is_not_touched(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(UserError, match=r"notes\.txt:1: not a record of proxhpc review"):
        MarksFile(path, "key")
    assert path.read_text() == text


def test_marks_of_a_changed_file_are_refused(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    press(session_of(source), "y")
    changed = reviewed(tmp_path, ROWS[1:])
    with pytest.raises(UserError, match="marks are of another run, or the input has changed"):
        MarksFile(changed.marks, changed.key)


def test_undo_refuses_when_another_process_has_marked(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    session, other = session_of(source), session_of(source)
    press(session, "y")
    press(other, "y")
    with pytest.raises(UserError, match="another process has written to it"):
        press(session, "u")
    assert len(source.marks.read_bytes().splitlines()) == 2


# Estimates.


def mark(stratum: Stratum, labels: str = "", refined: str = "", *, keep: bool = True) -> Mark:
    return Mark("x", stratum, keep, labels, refined, sampled=True)


def test_estimates_equal_a_hand_count() -> None:
    marks = [
        *[mark(EDITED, "BGG", "BGG")] * 6,
        mark(EDITED, "GGB", "BGG"),  # one line wrongly removed, one missed
        mark(EDITED, "B?G", "BBG"),  # a removed line that nobody saw
        mark(EDITED, "GE", "EE"),  # one line wrongly changed
        mark(EDITED, keep=False),  # should have been dropped
        *[mark(KEPT, "GG", "GG")] * 4,
        mark(KEPT, "GB", "GG"),
        *[mark(DROPPED, keep=False)] * 9,
        mark(DROPPED, keep=True),
    ]
    sizes = {EDITED: 1000, KEPT: 500, DROPPED: 10**9}
    found = summarize("marks", marks, sizes)
    estimates = found.estimates
    shares = {name: (one.right, one.of) for name, one in estimates.items()}
    assert shares == {
        "documents_right": (7 + 4 + 9, 25),
        "removed_lines_right": (7, 8),
        "lines_found": (7, 7 + 1 + 1),
        "changed_lines_right": (1, 2),
        "drops_right": (9, 10),
        "drops_found": (9, 9 + 1),
    }
    assert estimates["removed_lines_right"].value == 7 / 8
    # edited: 7 of 8 lines in 10 of 1000 documents; kept: 1 line in 5 of 500 documents
    assert estimates["lines_found"].value == pytest.approx(700 / (800 + 100))
    assert estimates["drops_found"].value == pytest.approx(9e8 / (9e8 + 100))
    weighted = (1000 * 0.7 + 500 * 0.8 + 10**9 * 0.9) / (10**9 + 1500)
    assert estimates["documents_right"].value == pytest.approx(weighted)
    # Wilson's interval of 9 of 10
    drops = estimates["drops_right"]
    assert (drops.low, drops.high) == (
        pytest.approx(0.5958, abs=1e-4),
        pytest.approx(0.9821, abs=1e-4),
    )
    rows = {(one.outcome, one.reason): one for one in found.strata}
    assert [*rows] == [("edited", ""), ("dropped", "short"), ("kept", "")]
    assert rows["dropped", "short"].right == drops
    assert (rows["kept", ""].documents, rows["kept", ""].marked) == (500, 5)


def test_lines_of_one_document_count_as_fewer() -> None:
    together = [mark(EDITED, "B" * 20, "B" * 20)] * 5
    apart = [mark(EDITED, "B", "B")] * 100
    sizes = {EDITED: 10**9}
    low = [
        summarize("", marks, sizes).estimates["removed_lines_right"].low
        for marks in (together, apart)
    ]
    alone = 100 / (1 + 19 * 0.4)  # as many independent lines as 20 of each document count
    z = 1.959964**2
    assert low == [pytest.approx(n / (n + z)) for n in (alone, 100)], "Wilson's of n of n"


def test_a_stratum_that_is_marked_to_the_end_has_no_uncertainty() -> None:
    marks = [mark(DROPPED, keep=False), mark(DROPPED, keep=True)]
    drops = summarize("", marks, {DROPPED: 2}).estimates["drops_right"]
    assert (drops.low, drops.value, drops.high) == (0.5, 0.5, 0.5)
    half = summarize("", marks, {DROPPED: 4}).estimates["drops_right"]
    all_new = summarize("", marks, {DROPPED: 10**9}).estimates["drops_right"]
    assert 0 < (all_new.low or 0) < (half.low or 0) < 0.5


def test_named_documents_are_gold_but_no_sample() -> None:
    named = Mark("y", DROPPED, True, "", "", sampled=False)
    found = summarize("", [mark(DROPPED, keep=False), named], {DROPPED: 100})
    assert (found.marked, found.named) == (2, 1)
    assert found.estimates["drops_right"].of == 1


labels = st.text("GBE?", min_size=1, max_size=6)
marks_of_lines = st.tuples(labels, st.randoms()).map(
    lambda pair: mark(
        pair[1].choice([EDITED, KEPT]),
        pair[0],
        "".join(pair[1].choice("GBE") for _ in pair[0]),
        keep=pair[1].random() < 0.8,
    )
)


@given(st.lists(marks_of_lines, max_size=12), st.integers(0, 50))
def test_intervals_contain_their_value(marks: list[Mark], more: int) -> None:
    sizes = Counter(one.stratum for one in marks)
    found = summarize("", marks, {stratum: n + more for stratum, n in sizes.items()})
    ReviewSummary.model_validate_json(found.to_json())
    for one in found.estimates.values():
        if one.of:
            assert one.value is not None
            assert one.low is not None
            assert one.high is not None
            assert -1e-9 <= one.low <= one.value + 1e-9
            assert one.value - 1e-9 <= one.high <= 1 + 1e-9
        else:
            assert one.value is None


# The state machine.

keys = st.sampled_from([*"ywkdsunp ?x", "enter", "up", "down", "pageup", "pagedown", "home", "end"])
texts = st.lists(st.sampled_from(["", "a", "a line", "b " * 90]), min_size=1, max_size=9)


@given(st.lists(st.tuples(texts, st.integers(0, 511)), min_size=1, max_size=4), st.lists(keys))
@settings(max_examples=60, deadline=None)
def test_any_keys_keep_the_file_whole(
    tmp_path_factory: pytest.TempPathFactory, pages: list[tuple[list[str], int]], pressed: list[str]
) -> None:
    rows = []
    for number, (lines, mask) in enumerate(pages):
        left = [line for bit, line in enumerate(lines) if not mask >> bit & 1]
        rows.append({"id": str(number), "original_text": "\n".join(lines), "text": "\n".join(left)})
    source = reviewed(tmp_path_factory.mktemp("review"), rows)
    session = session_of(source)
    marked: list[str] = []
    for key in pressed:
        before = session.page and session.page.document.item.id
        session.press(key)
        draw(session)
        lines = source.marks.read_text().splitlines() if source.marks.exists() else []
        now = [json.loads(line)["id"] for line in lines]
        if key == "u":
            assert now == marked[:-1]
        else:
            assert now in (marked, [*marked, before])
        marked = now
        assert len({*marked}) == len(marked)
        if session.page:
            page = session.page
            assert page.document.item.id not in marked
            assert 0 <= page.cursor < len(page.lines)
            shown = page.visible()
            assert len(shown) <= page.height
            assert shown == sorted(shown)
            after = [line for line in page.document.refined if line is not None]
            assert "\n".join(after) == rows[int(page.document.item.id)]["text"]
    if marked:
        assert [gold.id for gold in read_gold([source.marks])] == marked
    again = session_of(source)
    assert again.left == len(rows) - len(marked)


@given(texts, texts, st.sets(st.integers(0, 8)))
def test_what_each_line_became_makes_the_refined_text(
    lines: list[str], inserted: list[str], gone: set[int]
) -> None:
    kept = [n for n in range(len(lines)) if n not in gone]
    after = [lines[n] for n in kept]
    removed = [(n, n + 1) for n in sorted(gone) if n < len(lines)]
    text = "\n".join(lines)
    exact = refined_lines(ReviewTexts({}, text, "\n".join(after), removed))
    assert exact == tuple(None if n in gone else line for n, line in enumerate(lines))
    changed = "\n".join([*after, *inserted])
    found = refined_lines(ReviewTexts({}, text, changed, removed if after else ()))
    if found is not None:
        assert "\n".join(line for line in found if line is not None) == changed


@given(st.integers(10, 200), st.integers(1, 40), st.lists(keys, max_size=20))
@settings(deadline=None)
def test_the_cursor_is_on_the_screen(width: int, height: int, pressed: list[str]) -> None:
    text = "\n".join(["short", "long " * 60, "", "x" * 9000, *"abcdefgh"])
    page = Page(unchanged(text), width, height)
    for key in pressed:
        match key:
            case "up" | "down":
                page.move(1 if key == "down" else -1)
            case "pageup" | "pagedown":
                page.turn(1 if key == "pagedown" else -1)
            case "home" | "end":
                page.go_to(0 if key == "home" else 99)
            case "n":
                page.show(3)
            case " ":
                page.toggle()
        assert len(page.draw()) == len(page.visible()) <= height
        assert page.cursor in {line for line, _ in page.visible()}


def test_down_reaches_every_row_of_a_long_line_and_the_end() -> None:
    page = Page(unchanged("x" * 3000 + "\nlast"), 80, 5)
    seen = set[tuple[int, int]]()
    for _ in range(100):
        seen |= {*page.visible()}
        page.move(1)
    assert page.cursor == 1
    assert seen == {(0, row) for row in range(40)} | {(1, 0)}
    page.move(-1)
    assert (page.cursor, page.visible()[0]) == (0, (0, 0)), "its beginning"
    for _ in range(10):
        page.move(1)
    assert page.visible()[0] == (0, 10)
    page.move(-1)
    assert page.visible()[0] == (0, 9)


# Runs.


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A refined run with documents of every outcome, some of which cannot be read."""
    return refined(tmp_path).dir


def test_every_kind_of_document_of_a_run_is_asked_about(run: RunDir) -> None:
    source = RunReview(run)
    items = choose_items(source, 3, Stratum(""), seed=1)
    by_stratum = Counter(item.stratum for item in items)
    readable = {s: n for s, n in source.sizes.items() if s.outcome != "quarantined"}
    assert by_stratum == {stratum: min(3, n) for stratum, n in readable.items()}
    assert {stratum.outcome for stratum in by_stratum} == {"edited", "kept", "dropped"}
    assert [item.stratum.outcome for item in items[:2]] == ["edited", "dropped"]
    again = choose_items(source, 3, Stratum(""), seed=1)
    assert [i.position for i in again] == [i.position for i in items]
    other = choose_items(source, 3, Stratum(""), seed=2)
    assert {i.position for i in other} != {i.position for i in items}
    (dropped, *_) = choose_items(source, 1, Stratum("dropped"), seed=0)
    assert dropped.stratum.outcome == "dropped"
    with pytest.raises(UserError, match="no document to review") as error:
        choose_items(source, 1, Stratum("dropped", "nonsense"), seed=0)
    assert f"dropped with reason {dropped.stratum.reason}" in error.value.hint


def test_a_sample_is_from_many_shards(tmp_path: Path) -> None:
    run = planned(tmp_path, 60, sharding={"tokens": 600}).dir
    tasks.refine_task(str(run.root), 0, 1)
    source = RunReview(run)
    rows = sample_groups(run, source.plan, 5, lambda hit: hit.row.outcome, ["edited"], seed=0)
    assert len(source.plan.shards) > 5
    assert len({hit.shard for hit in rows["edited"]}) == 5
    few = sample_groups(run, source.plan, 5, lambda hit: hit.row.outcome, ["edited"], 0, 2)
    assert len({hit.shard for hit in few["edited"]}) == 2
    assert len(few["edited"]) == 5


def test_marks_of_a_run_evaluate_as_they_were_counted(
    run: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The refiner that made the run is scored on the marks: the same precision and recall."""
    source = RunReview(run)
    session = session_of(source)
    assert session.left > 30
    for number in range(session.left):
        kept = session.page and session.page.document.item.stratum.is_kept
        press(session, "end space y" if number % 3 == 0 and kept else "y")
    assert session.page is None
    assert main(["review", str(run.root), "--json"]) == 0
    summary = ReviewSummary.model_validate_json(capsys.readouterr().out)
    assert summary.marked == len(source.marks.read_text().splitlines()) == len(session.marks.marks)
    command = ["evaluate", str(source.marks), "--bootstrap", "0", "--json", "-"]
    assert main(command) == 0
    groups = json.loads(capsys.readouterr().out)["groups"]
    (chunk,) = [g for g in groups if (g["level"], g["name"]) == ("chunk", "all")]
    scores = chunk["systems"][0]["scores"]
    estimates = summary.estimates
    removed, found = estimates["removed_lines_right"], estimates["lines_found"]
    assert 0 < found.right < found.of
    assert scores["line_precision"]["value"] == pytest.approx(removed.right / removed.of)
    assert scores["line_recall"]["value"] == pytest.approx(found.right / found.of)


def test_marks_become_training_examples(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    session = session_of(source)
    open_document(session, "colour")
    press(session, "y")
    session = session_of(source)
    open_document(session, "menu")
    press(session, "down down space y")
    by_id = {gold.id: gold for gold in read_gold([source.marks])}
    assert gold_labels(by_id["menu"], EDIT_COSTS["prox"]).edits == (Edit(0, 1),)
    labels = gold_labels(by_id["colour"], EDIT_COSTS["prox"])
    assert (labels.keep, labels.edits) == (True, (Edit(0, 1), Edit(1, 2, "A color.")))
    out = tmp_path / "examples.jsonl.zst"
    assert main(["annotate", str(source.marks), "--out", str(out)]) == 0
    chunks = [row for row in read_listing(out) if row["level"] == "chunk"]
    programs = {row["id"]: row["program"] for row in chunks}
    assert programs["menu"] == "remove_lines(start=0, end=0)"
    assert "remove_lines(start=0, end=0)" in programs["colour"]
    assert "normalize(" in programs["colour"]


def test_a_label_for_edited_lines_counts_as_content(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    session = session_of(source)
    open_document(session, "colour")
    press(session, "y")
    (gold,) = read_gold([source.marks])
    assert gold.labels == "BE"
    counts = line_counts(GoldLines.of(gold), [False, False])
    assert (counts["removed_right"], counts["removed_wrong"]) == (1, 1)


def test_what_refine_prints_can_be_reviewed(
    tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    rows = [*[document(number) for number in range(3)], b"{broken"]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    assert main(["refine", "--original", str(path)]) == 0
    printed = tmp_path / "refined.jsonl"
    printed.write_bytes(capsysbinary.readouterr().out)
    session = session_of(FileReview(printed))
    assert session.left == 3
    press(session, "y y y")
    gold = records(tmp_path / "refined.review.jsonl")
    for number in range(3):
        assert gold[f"doc-{number}"]["text_noisy"] == document(number)["text"]
        assert gold[f"doc-{number}"]["line_labels"] == "BGGGGGG"


def test_a_corpus_with_original_texts_can_be_reviewed(tmp_path: Path) -> None:
    run = planned(tmp_path, 4, output={"original": True}).dir
    tasks.refine_task(str(run.root), 0, 1)
    tasks.merge_task(str(run.root), 1)
    source = open_review_source(run.part(0))
    assert isinstance(source, FileReview)
    assert source.marks == run.corpus / "part-00000.review.jsonl"
    assert source.sizes == {EDITED: 4}


def test_rows_without_a_raw_text_are_refused(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"id": "a", "text": "refined"}])
    with pytest.raises(UserError, match=r"a\.jsonl:1: no raw text beside the refined one") as error:
        FileReview(path)
    assert "refine --original" in error.value.hint


def test_one_document_by_its_id(run: RunDir, tmp_path: Path) -> None:
    source = RunReview(run)
    (item,) = source.find("doc-8")
    assert source.find(item.position)[0].position == item.position
    session = ReviewSession(source, [item], MarksFile(source.marks, source.key), sampled=False)
    draw(session)
    press(session, "y")
    assert records(source.marks)["doc-8"]["review"]["sampled"] is False
    with pytest.raises(UserError, match="no document 'nobody'"):
        source.find("nobody")
    with pytest.raises(UserError, match="no document 'nobody'"):
        reviewed(tmp_path).find("nobody")


def test_a_changed_input_is_an_error(run: RunDir) -> None:
    source = RunReview(run)
    plan = source.plan
    copied = plan.inputs[0].path.read_bytes()
    try:
        plan.inputs[0].path.write_bytes(copied[:-1] + b"x")
        (item, *_) = source.find("doc-1")
        with pytest.raises(StopError, match="changed"):
            item.load()
    finally:
        plan.inputs[0].path.write_bytes(copied)


# A real terminal.


class Terminal:
    """`proxhpc review` on a pseudo-terminal."""

    def __init__(self, *arguments: object, size: tuple[int, int] = (24, 80)) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(*size)
        self.before = termios.tcgetattr(self.slave)
        self.raw = b""
        command = [sys.executable, "-m", "proxhpc", "review", *map(str, arguments)]
        env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
        self.process = subprocess.Popen(
            command, stdin=self.slave, stdout=self.slave, stderr=self.slave, env=env
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def expect(self, *texts: str, keys: str = "") -> str:
        """Press keys and wait until the screen shows all texts; returns what was printed."""
        self.raw = b""
        os.write(self.master, keys.encode())
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            shown = ANSI.sub("", self.raw.decode("utf-8", "replace"))
            if all(text in shown for text in texts):
                return shown
            if select.select([self.master], [], [], 0.1)[0]:
                self.raw += os.read(self.master, 65536)
        raise AssertionError(f"{texts} not in {shown!r}")

    def end(self) -> int:
        """Wait for the end; returns the exit status."""
        status = self.process.wait(60)
        assert termios.tcgetattr(self.slave) == self.before, "the terminal is as before"
        return status


@contextmanager
def terminal(*arguments: object, size: tuple[int, int] = (24, 80)) -> Iterator[Terminal]:
    opened = Terminal(*arguments, size=size)
    try:
        yield opened
    finally:
        if opened.process.poll() is None:
            opened.process.kill()
            opened.process.wait()
        os.close(opened.master)
        os.close(opened.slave)


def test_mark_quit_and_resume_on_a_terminal(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    with terminal(source.path) as screen:
        shown = screen.expect("0 marked, 4 left", "y right")
        assert "menu" in shown or "colour" in shown
        screen.expect("1 marked, 3 left", keys="y")
        screen.expect("Space", "goes, stays", "quit: the next review continues here", keys="?")
        screen.expect("0 marked, 4 left", "taken back", keys="u")
        screen.expect("1 marked, 3 left", "precision 100 %", keys="y")
        screen.expect("2 marked, 2 left", "drops right 100 % (100–100)", keys="\r")
        os.write(screen.master, b"q")
        screen.expect("2 documents marked")
        assert screen.end() == 0
    with terminal(source.path) as screen:
        screen.expect("2 marked, 2 left")
        screen.expect("3 marked, 1 left", keys="y")
        screen.expect("No document is left", keys="y")
        os.write(screen.master, b"\x03")
        assert screen.end() == 0
    assert records(source.marks).keys() == {"menu", "same", "gone", "colour"}
    assert len(read_gold([source.marks])) == 4


def test_a_killed_terminal_loses_no_mark(tmp_path: Path) -> None:
    source = reviewed(tmp_path)
    with terminal(source.path) as screen:
        screen.expect("0 marked, 4 left")
        screen.expect("1 marked, 3 left", keys="y")
        screen.expect("2 marked, 2 left", keys="d")
        screen.process.kill()
        assert screen.process.wait() == -signal.SIGKILL
    before = records(source.marks)
    assert len(before) == 2
    with terminal(source.path) as screen:
        screen.expect("2 marked, 2 left")
        screen.expect("No document is left", keys="yy")
    after = records(source.marks)
    assert len(after) == 4
    assert before.items() <= after.items()


def test_a_terminated_review_restores_the_terminal(tmp_path: Path) -> None:
    with terminal(reviewed(tmp_path).path) as screen:
        screen.expect("0 marked, 4 left")
        screen.process.terminate()
        assert screen.end() == 128 + signal.SIGTERM


def test_the_screen_follows_the_size_of_the_terminal(tmp_path: Path) -> None:
    rows = [{"id": "long", "original_text": "\n".join(map(str, range(90))), "text": "0"}]
    with terminal(reviewed(tmp_path, rows).path, size=(24, 80)) as screen:
        screen.expect(f"lines 1 to {24 - CHROME} of 90")
        screen.resize(40, 120)
        screen.expect(f"lines 1 to {40 - CHROME} of 90")
        last = 90 - (40 - CHROME) + 1
        screen.expect(f"lines {last} to 90 of 90", keys="\x1b[F")  # End
        screen.expect(f"lines 1 to {40 - CHROME} of 90", keys="\x1bOH")  # Home
        screen.resize(3, 9)
        time.sleep(1)
        os.write(screen.master, b"q")
        screen.expect("documents")
        assert screen.end() == 0


def test_a_document_cannot_steer_the_terminal(tmp_path: Path) -> None:
    text = f"{HOSTILE}\n{HOSTILE}stays\nlast"
    row = {"id": HOSTILE, "original_text": text, "text": f"{HOSTILE}stays\nLast {HOSTILE}"}
    hostile = [row | {"proxhpc": {"outcome": HOSTILE, "reason": HOSTILE}}, row]
    with terminal(reviewed(tmp_path, hostile).path, size=(40, 120)) as screen:
        for keys in ("", "y"):
            screen.expect("\\x1b]0;owned\\x07", "left", keys=keys)
            for bad in (b"\x1b]0", b"\x07", "\x9b".encode(), "\u202e".encode()):
                assert bad not in screen.raw


@pytest.mark.parametrize("options", [[], ["--id", "menu"]])
def test_without_a_terminal_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    source = reviewed(tmp_path)
    assert main(["review", str(source.path), *options]) == 2
    assert "ssh -t" in capsys.readouterr().err
    assert main(["review", str(source.path), "--summary"]) == 0
    assert "0 documents marked" in capsys.readouterr().out


def test_the_summary_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = reviewed(tmp_path)
    out = tmp_path / "mine.jsonl"
    session = ReviewSession(
        source, choose_items(source, 9, Stratum(""), 0), MarksFile(out, source.key)
    )
    draw(session)
    press(session, "y y y y")
    assert main(["review", str(source.path), "--summary", "--out", str(out)]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["edited", "2", "2", "2", "100", "%", "(100–100)"] in shown
    words = ["removed", "lines", "right", "(precision)", "3", "3", "100", "%", "(100–100)"]
    assert words in shown
