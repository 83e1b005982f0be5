"""The envelope of programs: what is removed before parsing, in bounded time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.program.envelope import unwrap, unwrap_verdict
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, doc_verdict
from test_program_parse import PIECES, usual_programs

WRAPPINGS = (
    *("<think>", "</think>", "<|im_end|>", "</s>", "[INST]", "<answer>", "</answer>", "&quot;"),
    *("```", "~~~", "'''", "‘‘‘", "/*", "*/", "//", "<!--", "-->", "--", "—"),
    *("- ", "1. ", ">>> ", "**", "`", "__", "Program: ", "“", "”", "«", "»", "[", "]", "[0]", "[0"),
    *(
        "（",
        "）",
        "，",
        "０",
        "\u200b",
        "\u00a0",
        ".",
        "。",
        "->",
        " and ",
        "|",
        "\\n",
        "\\",
        "\x00",
    ),
    *(
        "None",
        "start_line=",
        "first=",
        "1_0",
        "1.0",
        "+1",
        ' r"',
        "('",
        '("',
        '",',
        "', '",
        "prose",
    ),
    *("Drop", "keep_doc", "verdict:", "1", "(", ")", ","),
)
soups = st.lists(st.sampled_from((*PIECES, *WRAPPINGS)), max_size=40).map("".join)


@settings(max_examples=500)
@given(soups | st.text())
def test_random_answers_never_raise_and_leave_no_placeholder(text):
    for result, counts in (unwrap(text), unwrap_verdict(text, is_whole=True)):
        assert "\x00" in text or "\x00" not in result
        assert all(number > 0 for number in counts.values())


@given(usual_programs)
def test_the_usual_programs_need_no_leniency(text):
    assert unwrap(text) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        'normalize(source_str="- remove_lines(0, 0)\\n// no comment", target_str="</s>")',
        "normalize('<think>', '</think>')",
        'normalize("[000], +1, 1.0, None", "。，（")',
        'normalize("it\'s \\"so\\"", "**x**")',
        "remove_lines(0, 0)  # </s> drop_doc() // ```",
        "# - remove_lines(0, 0)\nuntouch_doc()",
    ],
)
def test_strings_and_comments_never_change(text):
    assert unwrap(text) == (text, {})


def test_a_program_that_quotes_the_wrapping_of_another_is_not_executed_twice():
    text = (
        "<think>\nremove_lines(1, 1)?\n</think>\nHere:\n```python\nremove_lines(0, 0)\n```\nDone."
    )
    program, counts = unwrap(text)
    assert program.strip() == "remove_lines(0, 0)"
    assert counts == {"think_block": 1, "fence": 1, "prose_around_fence": 1}
    two = "~~~\nremove_lines(0, 0)\n~~~\nor\n~~~\nremove_lines(1, 1)\n~~~"
    assert unwrap(two) == (two, {})


@pytest.mark.parametrize(
    "text",
    [
        'normalize("a", "b" + "c")',
        'normalize("a", "b" if x else "c")',
        'normalize("a", "b".upper() + "c")',
        "normalize('a', 'b' 'c')",
    ],
)
def test_expressions_of_strings_are_not_read_as_one_string(text):
    assert unwrap(text) == (text, {})


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("DROP", True),
        ("Drop.", True),
        ("Keep_doc()", False),
        ("**drop_doc()**", True),
        ("`drop_doc()`", True),
        ('"keep_doc()"', False),
        ("- drop_doc()", True),
        ("**Verdict:** drop", True),
        ("Output: drop_doc()", True),
        ("drop_doc()</s>", True),
        ("drop_doc（）", True),
        ("drop_doc\u00a0().", True),
        ("<think>\nkeep_doc()? It is spam.\n</think>\n\ndrop_doc()", True),
        ("It is spam.</think>\ndrop", True),
        ("Program:\n```python\ndrop_doc()\n```", True),
    ],
)
def test_forms_of_a_verdict(text, drop):
    verdict = doc_verdict(ModelOutput(text, "stop"), Policy())
    assert (verdict.action == "drop", verdict.rejected) == (drop, {})
    assert verdict.lenient
    strict = doc_verdict(ModelOutput(text, "stop"), Policy(strict=True))
    assert strict.rejected["unclear_verdict"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "This page is spam. drop_doc()",
        "drop_doc() is not what I would write",
        "I would not say: drop_doc()",
        "not drop",
        "!drop_doc()",
        "drop or keep",
        "Keep.\nDrop.",
        "drop()",
        "drop_document()",
        "drop_doc(reason='spam')",
        "remove_all()",
        "# drop_doc()",
        "# no scores in: </think> drop_doc()",
        "<think>drop_doc()",
        '{"name": "drop_doc", "arguments": {}}',
        "",
    ],
)
def test_an_unclear_verdict_stays_unclear(text):
    verdict = doc_verdict(ModelOutput(text, "stop"), Policy())
    assert verdict.action == "keep"
    assert verdict.rejected["unclear_verdict"] == 1


def test_a_truncated_verdict_is_not_completed():
    verdict = doc_verdict(ModelOutput("**Drop", "length"), Policy())
    assert (verdict.action, verdict.rejected["unclear_verdict"]) == ("keep", 1)


UNITS = (
    *("(", '("', "('x", '","', "“", "&quot;", "<think>", "</think", "/*", "<!--", "```\n", "'''\n"),
    *(
        "a(",
        "aa ",
        " f(1)",
        "**f(",
        "x: ",
        "[0",
        "(1_0",
        "\n",
        "  ",
        "f(1) and ",
        "=None",
        "drop\n",
    ),
)


@pytest.mark.parametrize("unit", UNITS)
def test_time_is_linear_in_the_answer(unit):
    """A quadratic step would take a minute."""
    text = unit * (50_000 // len(unit))
    started = time.process_time()
    for answer in (text, f'("{text}', f"f({text}"):
        unwrap(answer)
        unwrap_verdict(answer, is_whole=True)
    assert time.process_time() - started < 10
