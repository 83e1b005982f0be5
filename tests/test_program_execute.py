"""The executor and the replay of whole documents under a policy."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.errors import ShardError
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, doc_verdict, replay
from test_program_parse import dialects, finishes, soups

FREE = Policy(min_kept_words=0, max_removed_share=1)
DOC = "Home | About\nThe adult brain\n\nShare this | Tweet\nHome again\nFooter"


def window(start, stop, program, finish="stop"):
    return WindowProgram(start, stop, ModelOutput(program, finish))


def run(program, text=DOC, policy=FREE, style=None):
    return replay(
        text, None, [window(0, text.count("\n") + 1, program)], policy, style or ProgramFormat()
    )


def test_lines_and_strings_are_those_of_the_text_before_any_edit():
    calls = ['normalize("Home", "Casa")', "remove_lines(0, 0)", 'normalize("Casa", "X")']
    expected = "The adult brain\n\nShare this | Tweet\nCasa again\nFooter"
    for program in ("\n".join(calls), "\n".join(calls[::-1])):
        outcome = run(program)
        assert outcome.text == expected
        assert (outcome.lines_removed, outcome.strings_replaced) == (1, 1)
        assert outcome.rejected == {"not_found": 1}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("remove_lines(5, 6)", "outside_window"),
        ("remove_lines(-1, 0)", "outside_window"),
        ("remove_lines(3, 2)", "reversed_range"),
        ('normalize("Twitter")', "not_found"),
        ('normalize("")', "blank_source"),
        ('normalize(" ")', "blank_source"),
        ('normalize("Shar")', "inside_word"),
        ('normalize("rain")', "inside_word"),
        (f'normalize("Footer", "{"x" * 263}")', "growth"),
    ],
)
def test_a_statement_that_does_not_fit_is_rejected(program, reason):
    outcome = run(program)
    assert (outcome.outcome, outcome.text, outcome.rejected) == ("kept", DOC, {reason: 1})


def test_growth_up_to_the_limit():
    assert run(f'normalize("Footer", "{"x" * 262}")').outcome == "edited"


def test_more_matches_than_allowed():
    program, policy = 'normalize("a")', FREE.model_copy(update={"max_matches": 3})
    assert run(program, "a a a", policy).text == "  "
    assert run(program, "a a a a", policy).rejected == {"too_many_matches": 1}


def test_whole_words_can_be_switched_off_and_do_not_bind_unspaced_scripts():
    assert run('normalize("Shar")', policy=FREE.model_copy(update={"whole_words": False})).text
    assert run('normalize("点击这里")', "正文点击这里正文").text == "正文正文"


def test_more_strings_than_allowed():
    program = "\n".join(f'normalize("w{n}")' for n in range(3))
    policy = FREE.model_copy(update={"max_strings": 2})
    outcome = run(program, "w0 w1 w2", policy)
    assert (outcome.text, outcome.rejected) == ("  w2", {"too_many_strings": 1})


def test_a_string_repeated_is_one_edit():
    outcome = run('normalize("Footer")\n' * 40)
    assert (outcome.strings_replaced, outcome.rejected) == (1, {})


def test_overlapping_deletions_join_and_replacements_do_not():
    text = "one two three four"
    assert run('normalize("one two")\nnormalize("two three")', text).text == " four"
    outcome = run('normalize("one two")\nnormalize("two three", "x")', text)
    assert (outcome.text, outcome.rejected) == (" three four", {"overlap": 1})


def test_a_string_across_a_removed_line_is_rejected_and_one_inside_is_gone():
    inside = run('remove_lines(1, 2)\nnormalize("adult")\nnormalize("adult brain\n")')
    assert inside.text == "Home | About\nShare this | Tweet\nHome again\nFooter"
    assert (inside.strings_replaced, inside.rejected) == (0, {})
    for source in ("About\nThe", "About\n", "\n\nShare", "brain\n\n"):
        outcome = run(f'remove_lines(1, 1)\nnormalize("{source}")')
        assert outcome.rejected == {"crosses_removed": 1}
        assert outcome.text.startswith("Home | About\n\nShare")


def test_a_string_across_lines():
    assert run('normalize("brain\n\nShare", "-")').text == (
        "Home | About\nThe adult - this | Tweet\nHome again\nFooter"
    )


def test_matches_do_not_overlap_and_those_of_two_statements_may_touch():
    assert run('normalize("a a")', "a a a a a").text == "  a"
    assert run('normalize("(a)", "x")\nnormalize("(b)", "y")', "(a)(b)(a)").text == "xyx"


def test_ranges_side_by_side_are_one():
    outcome = run('remove_lines(1, 1)\nremove_lines(2, 2)\nnormalize("brain\n\n")')
    assert (outcome.lines_removed, outcome.rejected) == (2, {})


def test_the_last_lines_and_all_lines():
    assert run("remove_lines(4, 5)").text == "Home | About\nThe adult brain\n\nShare this | Tweet"
    assert run("remove_all()").text == ""
    assert run("remove_lines(all=True)").lines_removed == 6
    assert run("remove_lines(1, 1)", "a\n").text == "a"
    assert run("remove_lines(0, 0)", "a\n").text == ""


def test_both_readings_of_an_escape():
    greek, tab = "so \\theta is", "so \theta is"
    assert run(r'normalize("\theta", "\nu")', greek).text == r"so \nu is"
    assert run(r'normalize("\theta", "\n")', tab).text == "so \n is"
    assert run(r'normalize("\theta")', f"{greek}\n{tab}").rejected == {"ambiguous": 1}


@pytest.mark.parametrize(
    ("text", "program"),
    [("cafe\u0301 noir", 'normalize("cafe", "tea")'), ("हिन्दी में", 'normalize("ह", "X")')],
)
def test_accents_and_vowel_signs_belong_to_their_word(text, program):
    assert run(program, text).rejected == {"inside_word": 1}


def test_an_escape_that_may_be_latex_is_no_newline_by_guess():
    assert run(r'normalize("θ", "\theta")', "a θ b").rejected == {"ambiguous": 1}
    assert run(r'normalize("θ", "\n")', "a θ b").text == "a \n b"
    assert run(r'normalize("θ", "\u0009x")', "a θ b").text == "a \tx b"


def test_a_statement_repeated_is_rejected_once():
    loop = "remove_lines(9, 9)\n" * 40 + 'normalize("z")\n' * 40
    assert run(loop, "a b").rejected == {"outside_window": 1, "not_found": 1, "error_budget": 1}


def test_line_dialect_counts_from_one_and_edits_the_only_match_of_a_line():
    style = ProgramFormat("line")
    program = 'remove_str(1, " | About")\nreplace_str(5, "Home", "Casa")\nremove_lines(2, 3)'
    assert run(program, style=style).text == "Home\nShare this | Tweet\nCasa again\nFooter"
    for program, reason in (
        ('remove_str(0, "Home")', "outside_window"),
        ('remove_str(7, "Home")', "outside_window"),
        ('remove_str(2, "Home")', "not_found"),
        ('remove_str(6, "o")', "ambiguous"),
    ):
        assert run(program, style=style).rejected == {reason: 1}


def test_numbering_of_windows():
    programs = ["remove_lines(0, 0)", "remove_lines(0, 0)"]
    windows = [window(0, 3, programs[0]), window(3, 6, programs[1])]
    counted = replay(DOC, None, windows, FREE, ProgramFormat(numbering="window"))
    assert counted.text == "The adult brain\n\nHome again\nFooter"
    document = replay(DOC, None, windows, FREE, ProgramFormat())
    assert (document.lines_removed, document.rejected) == (1, {"outside_window": 1})


def test_adjoining_removals_of_two_windows_and_lines_of_no_window():
    windows = [window(1, 3, "remove_lines(2, 2)"), window(3, 5, "remove_lines(3, 4)")]
    assert replay(DOC, None, windows, FREE, ProgramFormat()).text == (
        "Home | About\nThe adult brain\nFooter"
    )


def test_error_budget_of_a_window():
    bad = "garbage\n" * 2
    windows = [window(0, 3, "remove_lines(0, 0)"), window(3, 6, f"remove_lines(3, 3)\n{bad}")]
    outcome = replay(DOC, None, windows, FREE, ProgramFormat())
    assert outcome.text == DOC.partition("\n")[2]
    assert outcome.rejected == {"not_a_call": 2, "error_budget": 1}
    for action, status in (("drop", "dropped"), ("quarantine", "quarantined")):
        policy = FREE.model_copy(update={"on_errors": action})
        outcome = replay(DOC, None, windows, policy, ProgramFormat())
        assert (outcome.outcome, outcome.reason, outcome.text) == (status, "error_budget", "")
    allowed = FREE.model_copy(update={"max_errors": 2})
    assert replay(DOC, None, windows, allowed, ProgramFormat()).lines_removed == 2


@pytest.mark.parametrize(
    ("action", "status"), [("keep", "kept"), ("drop", "dropped"), ("quarantine", "quarantined")]
)
def test_the_limits_of_a_document(action, status):
    text = "word " * 95 + "\n" + "word " * 5
    policy = Policy(on_removed_share=action, on_short=action)
    outcome = run("remove_lines(0, 0)", text, policy)
    assert outcome.outcome == status
    assert (outcome.reason or outcome.rejected) in ("removed_share", {"removed_share": 1})
    text = "word " * 30 + "\n" + "word " * 10
    outcome = run("remove_lines(0, 0)", text, policy)
    assert outcome.outcome == status
    assert (outcome.reason or outcome.rejected) in ("short", {"short": 1})
    assert outcome.text == (text if status == "kept" else "")
    assert run("remove_lines(0, 0)", text + "word", policy).outcome == "edited"


def test_unspaced_scripts_are_counted_in_characters():
    text = f"{'首页' * 20}\n{'正文很长' * 5}"
    assert run("remove_lines(0, 0)", text, Policy()).text == "正文很长" * 5
    assert run("remove_lines(0, 0)", text[:-1], Policy()).reason == "short"


def test_windows_that_do_not_fit_the_text_stop_the_shard():
    for windows in (
        [window(0, 7, "")],
        [window(2, 2, "")],
        [window(3, 6, ""), window(0, 3, "")],
        [window(0, 4, ""), window(3, 6, "")],
    ):
        with pytest.raises(ShardError, match="does not fit"):
            replay(DOC, None, windows, FREE, ProgramFormat())


def test_a_document_level_program_comes_first():
    windows = [window(0, 6, "remove_lines(0, 0)")]
    dropped = replay(DOC, ModelOutput("drop_doc()", "stop"), windows, FREE, ProgramFormat())
    assert (dropped.outcome, dropped.reason, dropped.text) == ("dropped", "doc_program", "")
    kept = replay(DOC, ModelOutput("hm", "stop"), windows, FREE, ProgramFormat())
    assert (kept.outcome, kept.rejected) == ("edited", {"not_a_call": 1, "unclear_verdict": 1})
    assert (
        replay(DOC, ModelOutput("keep_doc()", "stop"), [], FREE, ProgramFormat()).outcome == "kept"
    )


@pytest.mark.parametrize(
    ("program", "finish", "rejected"),
    [
        ("", "stop", {"unclear_verdict": 1}),
        ("keep_doc()\ndrop_doc()", "stop", {"unclear_verdict": 1}),
        ("drop_doc() because", "stop", {"trailing_text": 1, "unclear_verdict": 1}),
        ("drop_d", "length", {"truncated_call": 1, "unclear_verdict": 1}),
        ("keep_doc()\nkeep_d", "length", {}),
    ],
)
def test_an_unclear_verdict_keeps(program, finish, rejected):
    verdict = doc_verdict(ModelOutput(program, finish), FREE)
    assert (verdict.action, verdict.rejected) == ("keep", rejected)


def test_a_loop_of_verdicts_is_one():
    assert doc_verdict(ModelOutput("drop_doc()\n" * 9 + "drop", "length"), FREE).action == "drop"


def test_a_cut_call_is_recorded_and_costs_no_budget():
    policy = FREE.model_copy(update={"max_errors": 0})
    outcome = replay(
        DOC, None, [window(0, 6, "remove_lines(0, 0)\nrem", "length")], policy, ProgramFormat()
    )
    assert (outcome.lines_removed, outcome.rejected) == (1, {"truncated_call": 1})


texts = st.lists(
    st.sampled_from(["a", "word", "Share", " ", "\n", "\n", "\t", "é", "点", ",", '"', "\\", "\r"]),
    max_size=60,
).map("".join)
programs = st.lists(
    st.one_of(
        st.builds("remove_lines({}, {})".format, st.integers(0, 9), st.integers(0, 9)),
        st.builds('normalize("{}", "{}")'.format, texts, st.sampled_from(["", "x", "a\nb"])),
        st.builds('normalize("{}")'.format, st.sampled_from(["a", "word", "é", "点", "\n\n"])),
        st.builds('remove_str({}, "{}")'.format, st.integers(0, 9), st.sampled_from("a点é,")),
        soups,
    ),
    max_size=8,
).map("\n".join)


@st.composite
def documents(draw):
    text = draw(texts)
    count = text.count("\n") + 1
    cuts = sorted(draw(st.sets(st.integers(0, count), min_size=2)) | {0, count})
    spans = [pair for pair in pairwise(cuts) if draw(st.booleans()) or len(cuts) == 2]
    return text, [window(a, b, draw(programs), draw(finishes)) for a, b in spans]


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(item in rest for item in part)


@given(documents(), dialects, st.sampled_from(["document", "window"]))
def test_soup_never_raises_nor_reaches_outside_its_window(case, dialect, numbering):
    text, windows = case
    policy = Policy(min_kept_words=0, max_removed_share=1, max_errors=1000)
    outcome = replay(text, None, windows, policy, ProgramFormat(dialect, numbering))
    assert outcome.outcome == ("kept" if outcome.text == text else "edited")
    lines, after = text.split("\n"), outcome.text.split("\n")
    if not outcome.strings_replaced and len(lines) > outcome.lines_removed:
        assert is_subsequence(after, lines)
        assert len(after) == len(lines) - outcome.lines_removed
    for own in windows:
        alone = replay(text, None, [own], policy, ProgramFormat(dialect, numbering)).text
        head = "".join(f"{line}\n" for line in lines[: own.start])
        tail = "".join(f"\n{line}" for line in lines[own.stop :])
        assert f"{alone}\n".startswith(head)
        assert alone.endswith(tail) or alone == tail[1:]


CALLS = ["remove_lines(0, 0)", 'normalize("a")', 'normalize("word")', 'normalize("a word")']


@given(texts, st.permutations(CALLS))
def test_the_order_of_deletions_does_not_matter(text, calls):
    policy = Policy(min_kept_words=0, max_removed_share=1, max_errors=1000)
    assert run("\n".join(calls), text, policy) == run("\n".join(CALLS), text, policy)


class Counted(str):
    """A text that counts the characters that searches in it read."""

    scanned = 0

    def find(self, part, low=0, high=None):
        high = len(self) if high is None else high
        at = super().find(part, low, high)
        Counted.scanned += (high if at < 0 else at + len(part)) - low
        return at

    def rfind(self, part, low=0, high=None):
        high = len(self) if high is None else high
        at = super().rfind(part, low, high)
        Counted.scanned += high - (low if at < 0 else at)
        return at

    def __getitem__(self, key):
        part = super().__getitem__(key)
        Counted.scanned += len(part)
        return part


def operations(text, program, dialect):
    """Count the lines of Python that a replay runs and the characters that it reads."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return trace

    Counted.scanned = 0
    windows = [window(0, text.count("\n") + 1, program)]
    policy = Policy(max_errors=10**6, min_kept_words=0)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        replay(Counted(text), None, windows, policy, ProgramFormat(dialect))
    finally:
        sys.settrace(before)
    return lines + Counted.scanned


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("a\n" * 9, "remove_lines(0, {n})\n"),
        ("a\n" * 9, "remove_lines(0, 999999999)\n"),
        ("a\n", "remove_lines(1, 1)\n"),
        ("a", 'normalize("a")\n'),
        ("a ", 'normalize("a")\n'),
        ("a", 'normalize("aa")\n'),
        ("ab ", 'normalize("b a")\n'),
        ("w ", 'normalize("w{n}")\n'),
        ("w ", 'normalize("'),
        ("w ", "normalize('\" "),
        ("w ", 'normalize("\\'),
        ("w ", "f(1,\n"),
        ("w ", "f(\n"),
        ("w ", "a=1,"),
        ("w ", "```"),
        ("w ", "#"),
        ("w ", "remove_lines(1"),
        ("w ", "remove_all() garbage\n"),
        ("w ", '"'),
        ("w\n", 'remove_str({n}, "w")\n'),
        ("w\n", 'replace_str(1, "w", "v{n}")\n'),
    ],
)
def test_operations_are_linear_in_text_and_program(text, program):
    def counted(size):
        calls = "".join(program.replace("{n}", str(n)) for n in range(size))
        return max(operations(text * size, calls, dialect) for dialect in ("prox", "line"))

    small, large = counted(300), counted(1200)
    assert large < 4.6 * small + 2000
