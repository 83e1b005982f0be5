"""The reference policy reproduces the public executor."""

import io
import json
import os
from collections import Counter
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.program import reference
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay

BODY = "\n".join(f"line {n} has these five more words" for n in range(8))


def run(program, text=BODY):
    windows = [WindowProgram(0, text.count("\n") + 1, ModelOutput(program, "stop"))]
    return replay(text, None, windows, "reference", ProgramFormat())


def without(*numbers, text=BODY):
    return "\n".join(line for n, line in enumerate(text.split("\n")) if n not in numbers)


def test_all_recorded_cases_are_reproduced():
    if "PROXHPC_DATA" not in os.environ:
        pytest.skip(
            "NOT TESTED: set PROXHPC_DATA to a directory with prox_reference_cases.jsonl.zst"
        )
    path = Path(os.environ["PROXHPC_DATA"], "prox_reference_cases.jsonl.zst")
    equal = Counter()
    with zstandard.open(path, "rb") as file:
        for line in io.TextIOWrapper(file, encoding="utf-8"):
            case = json.loads(line)
            equal[answer(case) == case.get("out", case.get("raises"))] += 1
    assert set(equal) == {True}


def answer(case):
    output = ModelOutput(case["program"], "stop")
    windows = [WindowProgram(0, case["text"].count("\n") + 1, output)]
    doc, chunk = (output, []) if case["level"] == "doc" else (None, windows)
    result = replay(case["text"], doc, chunk, "reference", ProgramFormat())
    if result.outcome == "quarantined":
        return {"reference_zero_division": "ZeroDivisionError"}[result.reason]
    return result.text


@pytest.mark.parametrize("program", ["drop", "I would drop", "keep_doc(), no drop", " drop_doc() "])
def test_a_doc_program_that_contains_drop_drops(program):
    result = replay(BODY, ModelOutput(program, "stop"), [], "reference", ProgramFormat())
    assert (result.outcome, result.reason, result.text) == ("dropped", "doc_program", "")


@pytest.mark.parametrize("program", ["", "keep_doc()", "DROP_DOC()", "dro"])
def test_any_other_doc_program_keeps(program):
    result = replay(BODY, ModelOutput(program, "stop"), [], "reference", ProgramFormat())
    assert (result.outcome, result.text) == ("kept", BODY)


@pytest.mark.parametrize(
    ("program", "removed"),
    [
        ("remove_lines(start=0, end=1)", {0, 1}),
        ("   remove_lines(start=0, end=1)", {0, 1}),
        ("untouch_doc()\nremove_lines(start=0, end=1)", {0, 1}),
        ("x\n remove_lines(start=0, end=1)", set()),
        ("remove_lines(start=0, end=0) remove_lines(start=3, end=3)", {0}),
        ("remove_lines_but_not_really(start=0, end=0)", {0}),
        ("remove_lines(end=2, start=0)", set()),
        ("remove_lines(start=2, end=1)", set()),
        ("remove_lines(start=-3, end=1)", {0, 1}),
        ("remove_lines(start=0, end=19", {0, 1}),
        ("remove_lines(start=1, end=2, end=7)", {1, 2}),
        ("remove_lines(start=0_1, end=+2)", {1, 2}),
        ("remove_lines(start=7, end=8)", {7}),
        ("remove_lines(start=7, end=100000000000)", {7}),
    ],
)
def test_removals(program, removed):
    result = run(program)
    assert result.text == without(*removed)
    assert result.lines_removed == len(removed)
    assert result.outcome == ("edited" if removed else "kept")


@pytest.mark.parametrize(
    ("program", "old", "new"),
    [
        ('normalize(source_str="line ")', "line ", ""),
        ('normalize(source_str="li', "l", ""),
        ('normalize(source_str="five", target_str="5")', "five", "5"),
        ('normalize(source_str="five, a=six")', "five", "six"),
        ('normalize(source_str="e=x")', "e", ""),
        ('normalize(source_str="more) words")', "more", ""),
        ('normalize(source_str=" ")', " ", ""),
        ('normalize(source_str=" ", target_str="_")', " ", " "),
        ('normalize(source_str="", target_str="_")', " ", " "),
        ('normalize(source_str="a", target_str="b", c="d")', " ", " "),
        (r'normalize(source_str="line", target_str="\n")', "line", r"\n"),
        ("normalize(source_str='line')", "'line'", ""),
    ],
)
def test_replacements_apply_to_the_whole_document(program, old, new):
    text = BODY.replace(" ", "\t ") if old == " " else BODY
    assert run(program, text).text == text.replace(old, new)


@pytest.mark.parametrize(
    ("program", "errors"),
    [
        ("remove_lines(0, 0)", 1),
        ("normalize('a', '')", 1),
        ("remove_lines", 1),
        ("normalize", 1),
        ("remove_lines(", 2),
        ("remove_lines(start=0, end=5", 2),
        ("remove_lines(start=7, end=8)", 1),
        ("remove_lines(start=9, end=9)\n" * 3, 1),
        ("remove_lines(start=9, end=9)\nremove_lines(start=11, end=11)", 2),
        ("remove_lines(start=9, end=9)\nremove_lines(start=10, end=11)", 1),
        ("remove_lines(start=9, end=2)\nremove_lines(start=9, end=9)", 2),
        ("remove_lines(start=9, end=9)\nremove_lines(start=9, end=2)", 1),
        ("unknown()\nnormalize(source_str=zzz)\nremove_lines(start=2, end=1)", 0),
    ],
)
def test_errors(program, errors):
    assert run(program).rejected == ({"reference_errors": errors} if errors else {})


def test_two_errors_keep_the_original():
    edit = "remove_lines(start=0, end=0)\n"
    assert run(f"{edit}remove_lines(1, 1)").text == without(0)
    result = run(f"{edit}remove_lines(1, 1)\nremove_lines(1, 1)")
    assert (result.outcome, result.text, result.lines_removed) == ("kept", BODY, 0)


@pytest.mark.parametrize("line", ["remove_lines(all=True)", "remove_lines(1, 2) # not all=True"])
def test_all_true_anywhere_removes_all_lines(line):
    result = run(line)
    assert (result.outcome, result.reason) == ("dropped", "reference_removed_share")


def test_removing_exactly_95_percent_drops():
    text = "\n".join(["word " * 19 * 11, "word " * 11])
    result = run("remove_lines(start=0, end=0)", text)
    assert result.reason == "reference_removed_share"
    result = run("remove_lines(start=0, end=0)", text + "word")
    assert result.outcome == "edited"


def test_ten_words_are_too_short_even_without_edits_or_with_errors():
    for program in ("untouch_doc()", "remove_lines(0, 0)\n" * 2):
        result = run(program, "one two three four five six seven eight nine ten")
        assert (result.outcome, result.reason) == ("dropped", "reference_short")


@pytest.mark.parametrize("text", ["", "  ", "\n\n"])
def test_a_document_without_words_is_quarantined(text):
    result = run("", text)
    assert (result.outcome, result.reason) == ("quarantined", "reference_zero_division")


def test_the_programs_of_all_windows_are_merged_and_apply_to_the_whole_document():
    programs = [' normalize(source_str="these") ', "remove_lines(start=0, end=0)"]
    windows = [
        WindowProgram(4 * n, 4 * n + 4, ModelOutput(p, "stop")) for n, p in enumerate(programs)
    ]
    result = replay(BODY, None, windows, "reference", ProgramFormat())
    assert result.text == without(0).replace("these", "")
    assert result.strings_replaced == 8


def test_growth_that_would_exhaust_memory_is_quarantined(monkeypatch):
    monkeypatch.setattr(reference, "MAX_CHARS", 10_000)
    growth = 'normalize(source_str="e", target_str="eeeeeeeeee")\n' * 6
    assert run(growth).reason == "reference_memory"
    monkeypatch.setattr(reference, "MAX_SCANNED", 3 * len(BODY))
    assert run('normalize(source_str="zzz")\n' * 3).outcome == "kept"
    assert run('normalize(source_str="zzz")\n' * 4).reason == "reference_time"


@given(st.text(), st.text(), st.integers(0, 10**30))
def test_no_program_raises(text, program, number):
    result = run(f"remove_lines(start=0, end={number})\n{program}", text)
    assert result.outcome == "quarantined" or text.split()
