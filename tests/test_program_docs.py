"""The examples in docs/language.md are correct and cover all rejections."""

import re
from itertools import accumulate
from pathlib import Path
from typing import get_args

import pytest

from proxhpc.account.reasons import reason_text
from proxhpc.program.derive import derive
from proxhpc.program.grammar import chunk_grammar
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay
from proxhpc.program.syntax import DIALECTS, ParseReason, Program, format_program
from runs import EXECUTE_REASONS

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs" / "language.md"
ALL = re.findall(r"^```(\w[^\n]*)\n(.*?)\n```$", PAGE.read_text(), re.M | re.S)
BLOCKS = [block for block in ALL if block[0].split()[0] in (*DIALECTS, "doc")]
DERIVED = [block for block in ALL if block[0].split()[0] == "derive"]
TEXTS = [block for head, block in ALL if head == "text"]
GRAMMARS = [block for head, block in ALL if head == "grammar"]
POLICY_REASONS = ("error_budget", "removed_share", "short", "truncated_call", "unclear_verdict")


def parts(block):
    """Split a block into text before, program, text after, rejections and leniencies."""
    before, program, after, last = [], [], [], ["", ""]
    for line in block.split("\n"):
        if line.startswith("> "):
            program.append(line[2:])
        elif line.startswith("|"):
            (after if program else before).append(line[1:])
        else:
            last[line.startswith("~")] = line
    return "\n".join(before), "\n".join(program), "\n".join(after), *last


def run_example(head, before, program):
    kind, *options = head.split()
    finish = "length" if "length" in options else "stop"
    limits = dict(option.split("=") for option in options if "=" in option)
    first, last = map(int, limits.pop("window", "0:0").split(":"))
    policy = Policy.model_validate_strings(
        {"min_kept_words": "0", "max_removed_share": "1", **limits}, strict=True
    )
    emitted = ModelOutput(program, finish)
    if kind == "doc":
        return replay(before, emitted, [], policy, ProgramFormat())
    pieces = before.split("¦")
    cuts = list(accumulate(map(len, pieces[:-1])))
    shown = (0, before.count("\n") + len(pieces))
    window = WindowProgram(first, last or shown[1], emitted, shown if last else None)
    blank_lines = "skipped" if kind == "rescraper" else "numbered"
    program_format = ProgramFormat(kind, blank_lines=blank_lines)
    return replay("".join(pieces), None, [window], policy, program_format, cuts)


@pytest.mark.parametrize(("head", "block"), BLOCKS)
def test_example(head, block):
    before, program, after, last, lenient = parts(block)
    if head == "ultrax":
        before = before.replace(r"\xa0", "\xa0")
    result = run_example(head, before, program)
    leniencies = ", ".join(f"{name} {count}" for name, count in result.lenient.items())
    assert leniencies == lenient.removeprefix("~ ")
    if last.startswith(("dropped: ", "quarantined: ")):
        assert f"{result.outcome}: {result.reason}" == last
        return
    assert result.text == after
    counts = ", ".join(f"{reason} {count}" for reason, count in result.rejected.items())
    assert counts == last.removeprefix("= ")


def rows(heading):
    """Return the first two columns of the table under a heading."""
    section = PAGE.read_text().partition(f"{heading}\n")[2].partition("\n#")[0]
    return [
        (name, code.replace("⏎", "\n").replace("<U+200B>", "\u200b"))
        for name, examples in re.findall(r"^\| ([^|]+) \| (`[^|]+`) \|", section, re.M)
        for code in re.findall(r"(?:^| · )`(.*?)`(?= · |$)", examples)
    ]


def run_row(program, **limits):
    policy = Policy(min_kept_words=0, **limits)
    windows = [WindowProgram(0, 4, ModelOutput(program, "stop"))]
    return replay(TEXTS[0], None, windows, policy, ProgramFormat())


@pytest.mark.parametrize(("name", "program"), rows("## Leniencies"))
def test_a_leniency_is_counted_and_switched_off_by_strict(name, program):
    lenient, strict = run_row(program), run_row(program, strict=True)
    assert (lenient.outcome, lenient.rejected) == ("edited", {})
    assert lenient.lenient[name.strip("`")] >= 1
    assert strict.rejected
    assert strict.lenient == {}
    edits = (strict.lines_removed, strict.strings_replaced)
    assert edits < (lenient.lines_removed, lenient.strings_replaced)


@pytest.mark.parametrize(("kind", "program"), rows("### What stays rejected"))
def test_forms_that_stay_rejected(kind, program):
    result = run_row(program)
    assert (result.outcome, result.text) == ("kept", TEXTS[0])
    assert result.rejected


def test_every_leniency_has_an_example_and_words():
    names = [name.strip("`") for name, _ in rows("## Leniencies")]
    sources = (REPOSITORY / "proxhpc" / "program" / name for name in ("envelope.py", "match.py"))
    used = set(re.findall(r'^\s+\(?"([a-z_]+)",', "".join(p.read_text() for p in sources), re.M))
    assert used <= {*names, "verdict_form"}
    assert [name for name in (*names, "verdict_form") if reason_text(name) == name] == []


@pytest.mark.parametrize(("head", "block"), DERIVED)
def test_derived_example(head, block):
    dialect = head.split()[1]
    before, program, after, *_ = parts(block)
    derived = derive(before, after, dialect)
    assert isinstance(derived, Program)
    assert format_program(derived, dialect) == program


@pytest.mark.parametrize("block", GRAMMARS)
def test_grammar_example(block):
    lines = block.split("\n")
    text = [line[1:] for line in lines if line.startswith("|")]
    grammar = re.compile(chunk_grammar("prox", 0, len(text) - 1, lines=text))
    examples = [(line[0] == ">", line[2:]) for line in lines if line[0] in ">!"]
    assert [(bool(grammar.fullmatch(program)), program) for _, program in examples] == examples


def test_every_block_is_executed():
    assert len(ALL) == len(BLOCKS) + len(DERIVED) + len(GRAMMARS) + len(TEXTS)
    assert DERIVED
    assert GRAMMARS


def test_every_rejection_has_an_example():
    examples = {
        word for _, block in BLOCKS for word in re.findall(r"[a-z_]+(?= \d)", parts(block)[3])
    }
    assert examples == {*get_args(ParseReason), *EXECUTE_REASONS, *POLICY_REASONS}


def test_the_page_names_every_limit():
    text = PAGE.read_text()
    assert [name for name in Policy.model_fields if name not in text] == []
