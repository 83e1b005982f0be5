"""What the programs of each dialect do, beyond the examples of docs/language.md."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay
from proxhpc.program.syntax import DIALECTS, FIRST_LINE, last_calls
from test_program_envelope import WRAPPINGS
from test_program_parse import PIECES, dialects, finishes

FREE = Policy(min_kept_words=0, max_removed_share=1)
TEXT = "Home | About\nThe adult brain\n\nis here. [edit] [edit]\nShare\n\nFooter"


def run(program, dialect, text=TEXT, policy=FREE, finish="stop"):
    blank_lines = "skipped" if dialect == "rescraper" else "numbered"
    windows = [WindowProgram(0, text.count("\n") + 1, ModelOutput(program, finish))]
    program_format = ProgramFormat(dialect, blank_lines=blank_lines)
    return replay(text, None, windows, policy, program_format)


def test_strings_that_end_an_answer():
    assert last_calls("doc", "rescraper") == ("keep_doc()", "drop_doc()")
    assert "untouch_doc()" in last_calls("chunk", "prox")
    assert "keep_all()" in last_calls("chunk", "refinex")
    assert last_calls("chunk", "ultrax") == ("keep_all()", "remove_all()")
    assert last_calls("chunk", "rescraper") == ("<delete>", "<rewrite>")
    assert FIRST_LINE == {"prox": 0, "refinex": 1, "ultrax": 1, "rescraper": 1}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_nothing_after_the_string_that_ends_an_answer_matters(dialect):
    for end in last_calls("chunk", dialect):
        short, long = run(end, dialect), run(f"{end}\nnoise", dialect)
        assert (short.outcome, short.reason) == (long.outcome, long.reason)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_program_without_edits(dialect):
    result = run(DIALECTS[dialect].no_edit, dialect)
    assert (result.outcome, result.text, result.rejected) == ("kept", TEXT, {})


@pytest.mark.parametrize(
    ("call", "dialect"),
    [
        ('normalize("Home")', "refinex"),
        ('remove_str(1, "Home")', "ultrax"),
        ('replace_str(1, "Home", "")', "refinex"),
        ('add_line(1, 1, "x")', "prox"),
    ],
)
def test_a_function_of_another_dialect_is_rejected(call, dialect):
    assert run(call, dialect).rejected == {"wrong_dialect": 1}


def test_empty_think_block_of_a_chat_template():
    for dialect, edit in (
        ("prox", "remove_lines(start=0, end=0)"),
        ("refinex", "remove_lines(1, 1)"),
        ("ultrax", "remove_lines(1, 1)"),
        ("rescraper", "<keep>\n<extract>\nrm 1\n<keep>"),
    ):
        result = run(f"<think>\n\n</think>\n\n{edit}<|im_end|>", dialect)
        assert "Home" not in result.text
        assert (result.lenient, result.rejected) == ({"think_block": 1, "end_token": 1}, {})
        strict = Policy(min_kept_words=0, strict=True)
        assert run(edit, dialect, policy=strict).lines_removed >= 1
        assert run(f"<think>\n</think>\n{edit}", dialect, policy=strict).rejected


def test_a_string_of_refinex_that_is_not_unique_costs_no_error():
    strict = Policy(min_kept_words=0, max_error_share=0, on_errors="quarantine")
    skipped = 'remove_str(4, " [edit]")\nremove_str(1, "missing")\nremove_lines(1, 1)'
    result = run(skipped, "refinex", policy=strict)
    assert result.rejected == {"ambiguous": 1, "not_found": 1}
    assert result.lines_removed == 1


def test_a_string_may_end_below_its_line_but_not_start_there():
    text = "one two\ntwo three\ntwo"
    assert run('remove_str(1, "two\\ntwo")', "refinex", text).text == "one  three\ntwo"
    assert run('remove_str(1, "\\ntwo three\\ntwo")', "refinex", text).text == "one two"
    assert run('remove_str(2, "two\\ntwo")', "refinex", text).rejected == {"not_found": 1}
    assert run('remove_str(1, "three")', "refinex", text).rejected == {"not_found": 1}
    assert run(r'remove_str(1, "\nu")', "refinex", "a\n\\nu b").rejected == {"not_found": 1}
    assert run('remove_str(1, "b\\nb")', "refinex", "a b\nb c b\nb").text == "a  c b\nb"


def test_lines_are_joined_where_removed_lines_were_between():
    program = "replace_str(2, 'brain\\n', 'brain ')\nremove_lines(3, 5)"
    assert run(program, "ultrax").text == "Home | About\nThe adult brain Footer"
    assert run("replace_str(2, 'brain\\n', 'brain ')\nremove_lines(3, 7)", "ultrax").text == (
        "Home | About\nThe adult brain "
    )


def test_replacements_with_common_context_do_not_overlap():
    program = "replace_str(4, 'is here', 'is there')\nreplace_str(4, 'here. [', 'here: [')"
    result = run(program, "ultrax")
    assert "is there: [edit]" in result.text
    assert (result.strings_replaced, result.rejected) == (2, {})


def test_replacements_make_no_blank_lines():
    text = "one two\nthree"
    for program, after in (
        ("replace_str(1, 'two', 'two\\n')", "one two\nthree"),
        ("replace_str(1, 'one', '\\none')", "one two\nthree"),
        ("replace_str(1, ' two', '\\n\\n\\ntwo')", "one\ntwo\nthree"),
        ("replace_str(1, 'one two', '')", "three"),
        ("replace_str(2, 'three', '')", "one two"),
        ("replace_str(1, 'one ', 'one\\n')\nreplace_str(1, 'two', '\\ntwo')", "one\ntwo\nthree"),
        ("replace_str(1, 'one', 'x\\n')\nreplace_str(1, ' two', '')", "x\nthree"),
    ):
        assert run(program, "ultrax", text).text == after


@given(
    st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 3), st.text("x\n", max_size=4)), max_size=5
    )
)
def test_no_replacements_make_blank_lines_together(edits):
    line = "ab cd ef"
    parts = [(line[start : start + size], target) for start, size, target in edits]
    calls = [f"replace_str(1, {part!r}, {target!r})" for part, target in parts]
    result = run("\n".join(calls), "ultrax", f"{line}\nx")
    assert result.outcome != "edited" or all(result.text.split("\n"))


def test_blank_lines_of_an_edited_window():
    text = "one\n\ntwo\n \nthree\n"
    for program, after in (
        ("remove_lines(5, 5)", "one\ntwo\n "),
        ("replace_str(1, 'one\\n', 'one ')", "one \ntwo\n \nthree"),
        ("add_line(2, 1, 'x')", "one\nx\ntwo\n \nthree"),
        ("replace_str(4, ' ', '')", "one\ntwo\nthree"),
        ("replace_str(1, 'one', 'one')", text),
        ("add_line(1, 1, ' ')\nreplace_str(1, 'missing', '')", text),
        ("replace_str(1, 'missing', '')", text),
    ):
        assert run(program, "ultrax", text).text == after


def test_a_line_that_another_edit_keeps_is_not_removed_as_empty():
    for text, program, after in (
        ("  ab\nc", "replace_str(1, 'ab', '')\nreplace_str(1, '  ', '  x')", "  x\nc"),
        ("ab  \nc", "replace_str(1, 'ab', '')\nreplace_str(1, '  ', 'x  ')", "x  \nc"),
    ):
        assert run(program, "ultrax", text).text == after


def test_python_escapes_and_latex():
    text = "caf\xe9\xa0\u200b \\theta is"
    program = r"replace_str(1, '\xe9\xa0\u200b \\theta', 'e \\tau\n')"
    assert run(program, "ultrax", text).text == "cafe \\tau\n is"
    assert run(r"replace_str(1, 'is', 'was\now')", "ultrax", text).text.endswith(" was\now")


def test_inserted_lines():
    added = "add_line({}, {}, '{}\\n')".format
    for program, after in (
        (added(0, 1, "x"), "x\none\ntwo"),
        (added(2, 1, "x"), "one\ntwo\nx"),
        (f"{added(1, 2, 'y')}\n{added(1, 1, 'x')}", "one\nx\ny\ntwo"),
        (f"remove_lines(1, 2)\n{added(1, 1, 'x')}\n{added(2, 1, 'y')}", "x\ny"),
        (f"remove_lines(2, 2)\n{added(2, 1, 'x')}", "one\nx"),
        (f"replace_str(1, 'one\\n', 'one ')\n{added(2, 1, 'x')}", "one two\nx"),
        (f"replace_str(2, 'two', '(two')\n{added(1, 1, 'x')}", "one\nx\n(two"),
        ("add_line(1, 1, 'x\\ny')", "one\nx\ny\ntwo"),
        ("add_line(1, 1, '\\nx\\n\\ny\\n\\n')", "one\nx\ny\ntwo"),
    ):
        result = run(program, "ultrax", "one\ntwo")
        assert (result.text, result.rejected) == (after, {})
    joined = f"replace_str(1, 'one\\n', 'one ')\n{added(1, 1, 'x')}\n{added(2, 1, 'y')}"
    assert run(joined, "ultrax", "one\ntwo").text == "one \nx\ntwo\ny"
    assert run(f"{joined}\nremove_lines(2, 2)", "ultrax", "one\ntwo").text == "one \nx\ny"
    windows = [WindowProgram(0, 2, ModelOutput(f"{added(1, 1, 'x')}\n{added(1, 2, 'y')}", "stop"))]
    split = replay("one two", None, windows, FREE, ProgramFormat("ultrax"), (4,))
    assert split.text == "one \nx\ny\ntwo"
    both = run(f"{added(0, 1, 'x')}\n{added(1, 1, 'y')}", "ultrax", "one\ntwo")
    assert (both.lines_removed, both.strings_replaced) == (0, 2)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("add_line(3, 1, 'x')", "no_such_line"),
        ("add_line(-1, 1, 'x')", "no_such_line"),
        ("add_line(1, 1, ' \\n')", "blank_source"),
        (f"add_line(1, 1, '{'x' * 256}')", "growth"),
        ("add_line(1, 'x')", "bad_arguments"),
        ("add_line(1, 1, '\ud800')", "bad_arguments"),
    ],
)
def test_a_line_that_is_not_inserted(program, reason):
    result = run(program, "ultrax", "one\ntwo")
    assert (result.text, result.rejected) == ("one\ntwo", {reason: 1})


def test_limits_of_inserted_lines():
    assert run(f"add_line(1, 1, '{'x' * 255}')", "ultrax", "one").strings_replaced == 1
    many = "\n".join(f"add_line(1, {n}, 'line {n}')" for n in range(1, 5))
    result = run(many, "ultrax", "one", FREE.model_copy(update={"max_strings": 2}))
    assert (result.text, result.rejected) == ("one\nline 1\nline 2", {"too_many_strings": 2})


def test_prose_is_an_error_of_ultrax_only_if_strict():
    program = "I think that\nthese lines go:\nremove_lines(1, 1)"
    assert run(program, "ultrax").rejected == {"not_a_call": 2}
    assert "Home" not in run(program, "ultrax").text
    strict = run(program, "ultrax", policy=FREE.model_copy(update={"strict": True}))
    assert strict.rejected == {"not_a_call": 2, "error_budget": 1}
    assert run("remove_li(1)\nremove_lines(1)\nremove_lines(1, 1)", "ultrax").text == TEXT


def test_the_first_occurrence_is_deleted_by_rescraper():
    result = run('<edit>\n<extract>\n<edit>\nsub 3: " [edit]"', "rescraper")
    assert result.text == TEXT.replace(" [edit] [edit]", " [edit]")
    assert run('<edit>\nsub 4: "Share"', "rescraper").text == TEXT.replace("Share\n", "")
    assert run("<edit>\nrm 2-3\nrm 4-99", "rescraper").text == "Home | About"
    assert run("<edit>\nrm 7\nrm 5", "rescraper").rejected == {"no_such_line": 1}


def test_a_line_that_several_deletions_empty_is_removed():
    edit = '<edit>\n<extract>\n<edit>\nsub 1: "Home"\nsub 1: "About"\nsub 1: "|"'
    assert run(edit, "rescraper").text == TEXT.removeprefix("Home | About\n")
    calls = "replace_str(1, 'one', '')\nreplace_str(1, ' two\\n', '')\nreplace_str(2, 'x', '')"
    assert run(calls, "ultrax", "one two\nx\nthree").text == "three"
    assert run(calls, "ultrax", "one two\nx y\nthree").text == " y\nthree"


@pytest.mark.parametrize("end", ['"Ho', "Home", '"', '"Home \\"'])
def test_a_string_that_the_token_limit_breaks_off_deletes_nothing(end):
    result = run(f"<edit>\n<extract>\n<edit>\nsub 1: {end}", "rescraper", finish="length")
    assert (result.text, result.rejected) == (TEXT, {"truncated_call": 1})


def test_a_text_that_the_token_limit_breaks_off_in_its_first_line_is_quarantined():
    edit = "<edit>\n<extract>\nrm 1\n<edit>\n"
    result = run(f"{edit}The brain, ret", "rescraper", finish="length")
    assert (result.outcome, result.reason) == ("quarantined", "rewrite")
    for begun in ("s", "sub", "rm", "rm 4", "<ed"):
        result = run(f"{edit}{begun}", "rescraper", finish="length")
        assert result.text == TEXT.removeprefix("Home | About\n")


def test_a_string_that_ends_at_the_token_limit_is_deleted():
    result = run('<edit>\nsub 1: "Home | "', "rescraper", finish="length")
    assert (result.text, result.rejected) == (TEXT.removeprefix("Home | "), {})


def test_a_text_in_place_of_a_program_is_quarantined():
    rewrite = "<rewrite>\n<extract>\nrm 1\n<rewrite>\nThe brain, retold."
    result = run(rewrite, "rescraper")
    assert (result.outcome, result.reason, result.text) == ("quarantined", "rewrite", "")
    one, two = (
        WindowProgram(n, n + 1, ModelOutput(p, "stop")) for n, p in enumerate(("", rewrite))
    )
    both = replay("a\nb", None, [one, two], FREE, ProgramFormat("rescraper"))
    assert both.reason == "rewrite"


TEXTS = ["", "a", "Home | About", "  ", "by the by", "é 点击", "the adult's brain.", "x\ty", "\\nu"]
texts = st.lists(st.sampled_from(TEXTS), min_size=1, max_size=8).map("\n".join)
numbers = st.integers(-1, 12)
strings = st.sampled_from(
    [
        "",
        "a",
        "by",
        "by ",
        " ",
        "é",
        "Home",
        "About\\n",
        "\\n",
        "the\\nby",
        "brain.\\n",
        "点",
        "\\\\nu",
    ]
)
LINES = {
    "prox": st.builds("remove_lines({}, {})".format, numbers, numbers)
    | st.builds('normalize("{}", "{}")'.format, strings, strings),
    "refinex": st.builds("remove_lines({}, {})".format, numbers, numbers)
    | st.builds('remove_str({}, "{}")'.format, numbers, strings),
    "ultrax": st.builds("remove_lines({}, {})".format, numbers, numbers)
    | st.builds("replace_str({}, '{}', '{}')".format, numbers, strings, strings)
    | st.builds("add_line({}, {}, '{}')".format, numbers, numbers, strings),
    "rescraper": st.builds("rm {}-{}".format, numbers, numbers)
    | st.builds('sub {}: "{}"'.format, numbers, strings)
    | st.sampled_from(["<keep>", "<edit>", "<extract>", "<delete>", "<rewrite>"]),
}
noise = st.sampled_from([*PIECES, *WRAPPINGS, "---\n"])


@st.composite
def programs(draw):
    """A dialect and a program, mostly well formed."""
    dialect = draw(dialects)
    lines = draw(st.lists(LINES[dialect], max_size=8))
    for _ in range(draw(st.integers(0, 2))):
        lines.insert(draw(st.integers(0, len(lines))), draw(noise))
    text = draw(st.sampled_from(["\n", " ", ""])).join(lines)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(noise) + text[at + draw(st.integers(0, 3)) :]
    return dialect, text


@st.composite
def documents(draw):
    """A text with lines split, and windows that cover some of it and show more."""
    text = draw(texts)
    inside = [n for n in range(1, len(text)) if text[n - 1] != "\n"]
    cuts = sorted(draw(st.sets(st.sampled_from(inside), max_size=3))) if inside else []
    total = text.count("\n") + 1 + len(cuts)
    middle = draw(st.integers(0, total))
    shown = draw(st.integers(0, middle)), draw(st.integers(middle, total))
    spans = [(a, b) for a, b in ((0, middle), (middle, total)) if a < b]
    return text, cuts, [(a, b, (min(a, shown[0]), max(b, shown[1]))) for a, b in spans]


@settings(max_examples=400)
@given(
    documents(),
    programs(),
    finishes,
    st.sampled_from(["document", "window"]),
    st.sampled_from(["numbered", "skipped"]),
    st.booleans(),
)
def test_any_program_is_executed_in_bounded_time(
    case, program, finish, numbering, blank_lines, strict
):
    (text, cuts, spans), (dialect, answer) = case, program
    policy = FREE.model_copy(update={"strict": strict, "max_error_share": 1.0, "max_growth": 20})
    output = ModelOutput(answer, finish)
    windows = [WindowProgram(start, stop, output, shown) for start, stop, shown in spans]
    started = time.perf_counter()
    result = replay(
        text, None, windows, policy, ProgramFormat(dialect, numbering, blank_lines), cuts
    )
    assert time.perf_counter() - started < 5
    assert result.outcome in ("kept", "edited", "dropped", "quarantined")
    if result.outcome == "quarantined":
        assert (dialect, result.reason) == ("rescraper", "rewrite")
    total = text.count("\n") + 1 + len(cuts)
    covered = [line for start, stop in result.removed for line in range(start, stop)]
    assert covered == sorted(set(covered) & set(range(total)))
    assert len(result.text) <= len(text) + 20 * (result.strings_replaced + 1)
    if dialect != "ultrax" and not result.strings_replaced and result.outcome == "edited":
        assert len(result.text) < len(text)
