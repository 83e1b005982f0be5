"""Every program that a grammar matches is executed without a rejection."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.program.grammar import DOC_GRAMMAR, chunk_grammar, number_range
from proxhpc.program.parse import parse_chunk, parse_doc
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay
from proxhpc.program.syntax import DIALECTS, FIRST_LINE, Program, RemoveLines, Verdict

SPECIAL = ["a,b", "50%s", "(x)", "x=1", "it's", '"q"', "\\alpha", "[0-9]+"]
WORDS = ["Home", "a", *SPECIAL, "点击", "é", "  ", "\t"]
lines = st.lists(st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join), min_size=1, max_size=6)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_a_number_range_is_exact(low, size):
    expression = re.compile(number_range(low, low + size))
    inside = {low, low + size, low + size // 2, low + size // 3}
    assert all(expression.fullmatch(str(number)) for number in inside)
    around = {low - 1, low + size + 1, low * 10, (low + size) * 10, low // 10} - set(
        range(low, low + size + 1)
    )
    assert not any(expression.fullmatch(str(number)) for number in around)
    assert not expression.fullmatch(f"0{low}")


@given(st.from_regex(DOC_GRAMMAR, fullmatch=True))
def test_doc_programs_are_verdicts(text):
    assert parse_doc(text).statements in ((Verdict(True),), (Verdict(False),))


@settings(max_examples=60, deadline=None)
@given(st.data(), lines, st.sampled_from([*DIALECTS]), st.integers(0, 120), st.booleans())
def test_every_matching_program_is_executed(data, window, dialect, start, strings):
    if dialect == "rescraper":  # only lines with text have a number
        window = [line for line in window if line.strip()] or ["a b"]
    first = FIRST_LINE[dialect] + start
    grammar = chunk_grammar(
        dialect, first, first + len(window) - 1, lines=window if strings else ()
    )
    program = data.draw(st.from_regex(grammar, fullmatch=True))
    assert parse_chunk(program, dialect).rejected == ()
    text = "\n".join([*["above"] * start, *window, "below"])
    windows = [WindowProgram(start, start + len(window), ModelOutput(program, "stop"))]
    policy = Policy(min_kept_words=0, max_removed_share=1, strict=True)
    blank_lines = "skipped" if dialect == "rescraper" else "numbered"
    program_format = ProgramFormat(dialect, blank_lines=blank_lines)
    result = replay(text, None, windows, policy, program_format)
    assert result.rejected == {}


def test_only_calls_within_the_window_match():
    grammar = re.compile(chunk_grammar("prox", 8, 12))
    for first in range(6, 15):
        for last in range(6, 15):
            matches = grammar.fullmatch(str(RemoveLines(first, last))) is not None
            assert matches == (8 <= first <= last <= 12)
    assert grammar.fullmatch("untouch_doc()")
    assert not grammar.fullmatch("")
    assert not grammar.fullmatch('normalize(source_str="Home", target_str="")')
    for dialect in ("refinex", "ultrax"):
        line = re.compile(chunk_grammar(dialect, 1, 3))
        assert line.fullmatch("remove_lines(1, 3)\nremove_lines(2, 2)")
        assert line.fullmatch("keep_all()")
        assert not line.fullmatch("remove_lines(0, 1)")
        assert not line.fullmatch("remove_lines(1, 4)")


def test_the_grammar_of_rescraper():
    grammar = re.compile(chunk_grammar("rescraper", 1, 3, lines=["50% off", "b c b", "d"]))
    for program in (
        "<delete>",
        "<keep>\n<extract>\n<keep>",
        "<keep>\n<extract>\nrm 1-1\nrm 2-3\n<keep>",
        '<edit>\n<extract>\nrm 3-3\n<edit>\nsub 1: "50% off"\nrm 2-2',
        '<edit>\n<extract>\n<edit>\nsub 2: "b c"',
    ):
        assert grammar.fullmatch(program), program
    for program in (
        "<keep>",
        "<rewrite>",
        "<keep>\n<extract>\n<edit>\nrm 1-1",
        "<keep>\n<extract>\nrm 2-1\n<keep>",
        "<keep>\n<extract>\nrm 3-4\n<keep>",
        "<edit>\n<extract>\n<edit>",
        '<edit>\n<extract>\n<edit>\nsub 2: "b"',
        '<edit>\n<extract>\n<edit>\nsub 2: "50%"',
    ):
        assert not grammar.fullmatch(program), program


def test_only_strings_of_the_window_match():
    text = ["Home | About", "the cat sat on the mat", 'say "hi" now', "w " * 40]
    prox = re.compile(chunk_grammar("prox", 0, 3, lines=text))
    line = re.compile(chunk_grammar("refinex", 1, 4, lines=text))
    ultrax = re.compile(chunk_grammar("ultrax", 1, 4, lines=text))
    for source, number, in_prox, in_line in (
        ("Home | About", 1, True, True),
        ("cat sat", 2, True, True),
        ("the", 2, True, False),
        ("the cat", 2, True, True),
        ("sat mat", 2, False, False),
        ("at", 2, False, False),
        ('"hi"', 3, False, False),
        ("w", 4, False, False),
    ):
        match = prox.fullmatch(f'normalize(source_str="{source}", target_str="")')
        assert (match is not None) == in_prox, source
        match = line.fullmatch(f'remove_str({number}, "{source}")')
        assert (match is not None) == in_line, source
        match = ultrax.fullmatch(f"replace_str({number}, '{source}', '')")
        assert (match is not None) == (in_line or source == '"hi"'), source


def test_words_hidden_by_an_earlier_match_do_not_match():
    grammar = re.compile(chunk_grammar("prox", 0, 0, lines=["xbb bb bb"]))
    assert grammar.fullmatch('normalize(source_str="bb", target_str="")')
    assert not grammar.fullmatch('normalize(source_str="bb bb", target_str="")')


def test_the_number_of_calls_ends_a_repetition_loop():
    grammar = re.compile(chunk_grammar("prox", 0, 9))
    call = "remove_lines(start=7, end=7)\n"
    assert grammar.fullmatch(call * 24)
    assert not grammar.fullmatch(call * 25)
    assert parse_chunk(call * 3) == Program((RemoveLines(7, 7),) * 3)


def test_the_policy_limits_the_number_of_strings():
    policy = Policy(max_strings=2)
    grammar = re.compile(chunk_grammar("prox", 0, 0, lines=["a b c d"], policy=policy))
    assert grammar.fullmatch('normalize(source_str="a", target_str="")\n' * 2)
    assert not grammar.fullmatch('normalize(source_str="a", target_str="")\n' * 3)
    none = chunk_grammar("prox", 0, 0, lines=["a b"], policy=Policy(max_strings=0))
    assert none == chunk_grammar("prox", 0, 0)


def test_the_size_of_a_grammar_is_nearly_linear_in_its_window():
    assert len(chunk_grammar("prox", 0, 999)) < 8 * len(chunk_grammar("prox", 0, 199))


@pytest.mark.parametrize(
    ("dialect", "first", "last", "text"),
    [("prox", 3, 2, ()), ("prox", -1, 2, ()), ("refinex", 0, 2, ()), ("prox", 0, 2, ("a",))],
)
def test_invalid_windows_are_refused(dialect, first, last, text):
    with pytest.raises(ValueError, match="lines"):
        chunk_grammar(dialect, first, last, lines=text)
