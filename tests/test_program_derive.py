"""The inverse: programs out of pairs of texts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.program import derive as module
from proxhpc.program.derive import NoProgram, derive
from proxhpc.program.policy import Policy
from proxhpc.program.replay import Emitted, Style, WindowProgram, replay
from proxhpc.program.syntax import Program, render

FREE = Policy(min_kept_words=0, max_removed_share=1)
BEFORE = "Home | About\nThe adult brain is here.\nShare this\nfoo bar baz\nfoo bar baz\n\nend of it"


def execute(before, program, dialect):
    emitted = Emitted(render(program, dialect), "stop")
    windows = [WindowProgram(0, before.count("\n") + 1, emitted)]
    return replay(before, None, windows, FREE, Style(dialect))


@pytest.mark.parametrize(
    ("after", "prox", "line"),
    [
        (BEFORE, "untouch_doc()", "keep_all()"),
        ("", "remove_lines(start=0, end=6)", "remove_lines(1, 7)"),
        (
            BEFORE.partition("\n")[2],
            "remove_lines(start=0, end=0)",
            "remove_lines(1, 1)",
        ),
        (
            "Home | About\nThe adult brain is here.\nfoo bar baz\n\nend of it",
            "remove_lines(start=2, end=3)",
            "remove_lines(3, 4)",
        ),
        (
            BEFORE.replace(" | About", ""),
            'normalize(source_str=" | About", target_str="")',
            'remove_str(1, " | About")',
        ),
        (
            BEFORE.replace("bar", "BAR"),
            'normalize(source_str="bar", target_str="BAR")',
            'replace_str(4, "bar", "BAR")\nreplace_str(5, "bar", "BAR")',
        ),
        (
            BEFORE.replace("brain", "brainy"),
            'normalize(source_str="brain", target_str="brainy")',
            'replace_str(2, "brain", "brainy")',
        ),
        (
            BEFORE.replace("\nend", "\nthe end"),
            'normalize(source_str="end", target_str="the end")',
            'replace_str(7, "end", "the end")',
        ),
    ],
)
def test_the_shortest_program(after, prox, line):
    for dialect, expected in (("prox", prox), ("line", line)):
        program = derive(BEFORE, after, dialect)
        assert isinstance(program, Program)
        assert render(program, dialect) == expected
        assert execute(BEFORE, program, dialect).text == after


def test_numbers_of_a_window_in_the_middle_of_a_document():
    program = derive("a\nb\nc", "a\nc", first_line=40)
    assert str(program) == "remove_lines(start=41, end=41)"


def test_a_line_that_cannot_be_told_from_another():
    after = (
        "Home | About\nThe adult brain is here.\nShare this\nfoo bar baz\nfoo BAR baz\n\nend of it"
    )
    assert derive(BEFORE, after) == NoProgram("line 4 cannot be edited without another")
    assert str(derive(BEFORE, after, "line")) == 'replace_str(5, "bar", "BAR")'


def test_head_and_tail_of_an_edit_do_not_overlap():
    assert str(derive("foo foo", "foo", "line")) == 'remove_str(1, " foo")'
    assert str(derive("foo foo foo", "foo", "line")) == 'remove_str(1, " foo foo")'


def test_a_statement_never_edits_a_line_that_another_has_done():
    program = derive("k q\np q r\nq r z", "k\np r\nr z")
    assert [str(s) for s in program.statements] == [
        'normalize(source_str=" q", target_str="")',
        'normalize(source_str="q r ", target_str="r ")',
    ]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("a", "a\nb", "more lines"),
        ("a\n\nb", "a\nx\nb", "blank"),
        ("a b", f"a {'b' * 300}", "growth"),
    ],
)
def test_where_no_program_exists(before, after, reason):
    for dialect in ("prox", "line"):
        answer = derive(before, after, dialect)
        assert isinstance(answer, NoProgram)
        assert reason in answer.reason


def test_large_texts_are_aligned_by_the_lines_that_both_have_once(monkeypatch):
    chooser = random.Random(1)
    lines = [f"line {n}" if n % 3 else "again" for n in range(400)]
    kept = [line for line in lines if chooser.random() < 0.7]
    kept[100] += " more"
    monkeypatch.setattr(module, "MAX_CELLS", 2000)
    before, after = "\n".join(lines), "\n".join(kept)
    program = derive(before, after, "line")
    assert isinstance(program, Program)
    assert execute(before, program, "line").text == after
    same = derive("\n".join(["x"] * 99), "\n".join(["x"] * 98))
    assert isinstance(same, NoProgram)
    assert "take windows" in same.reason


words = st.sampled_from(
    ["Home", "a", "a,b", "(x)", "it's", '"q"', "\\alpha", "\\\\", "点击", "é", ""]
)
documents = st.lists(st.lists(words, max_size=5).map(" ".join), min_size=1, max_size=8)


@given(documents, st.data(), st.sampled_from(["prox", "line"]))
def test_removals_always_come_back(lines, data, dialect):
    keep = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    before = "\n".join(lines)
    after = "\n".join(line for line, stays in zip(lines, keep, strict=True) if stays)
    program = derive(before, after, dialect)
    assert isinstance(program, Program)
    assert execute(before, program, dialect).text == after


@given(documents, documents, st.sampled_from(["prox", "line"]))
def test_what_is_derived_makes_the_text(lines, other, dialect):
    before, after = "\n".join(lines), "\n".join(other)
    program = derive(before, after, dialect)
    if isinstance(program, Program):
        outcome = execute(before, program, dialect)
        assert (outcome.text, outcome.rejected) == (after, {})
    else:
        assert program.reason
