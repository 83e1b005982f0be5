"""The executor, and the replay of whole documents under a policy."""

import sys
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.errors import ShardError
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, doc_verdict, replay
from proxhpc.program.syntax import DIALECTS
from test_program_parse import dialects, finishes, soups

FREE = Policy(min_kept_words=0, max_removed_share=1)
PROX = ProgramFormat()
DOC = "Home | About\nThe adult brain\n\nShare this | Tweet\nHome again\nFooter"


def window(start, stop, program, finish="stop"):
    return WindowProgram(start, stop, ModelOutput(program, finish))


def run(program, text=DOC, policy=FREE, program_format=PROX):
    windows = [window(0, text.count("\n") + 1, program)]
    return replay(text, None, windows, policy, program_format)


def test_statements_refer_to_the_original_text():
    calls = ['normalize("Home", "Casa")', "remove_lines(0, 0)", 'normalize("Casa", "X")']
    expected = "The adult brain\n\nShare this | Tweet\nCasa again\nFooter"
    for program in ("\n".join(calls), "\n".join(calls[::-1])):
        result = run(program)
        assert result.text == expected
        assert (result.lines_removed, result.strings_replaced) == (1, 1)
        assert result.rejected == {"not_found": 1}


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("remove_lines(5, 7)", "outside_window"),
        ("remove_lines(7, 7)", "no_such_line"),
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
def test_an_invalid_statement_is_rejected(program, reason):
    result = run(program)
    assert (result.outcome, result.text, result.rejected) == ("kept", DOC, {reason: 1})


def test_growth_up_to_the_limit():
    assert run(f'normalize("Footer", "{"x" * 262}")').outcome == "edited"


def test_more_matches_than_allowed():
    program, policy = 'normalize("ab")', FREE.model_copy(update={"max_matches": 3})
    assert run(program, "ab ab ab x", policy).text == "   x"
    assert run(program, "ab ab ab ab x", policy).rejected == {"too_many_matches": 1}


def test_one_of_several_single_letters_is_ambiguous():
    assert run('normalize("a", "x")', "a b c").text == "x b c"
    assert run('normalize("a", "x")', "a b a").rejected == {"ambiguous": 1}
    assert run('normalize("|", "x")', "a | b | c").text == "a x b x c"


def test_the_whole_word_rule_is_optional_and_excludes_unspaced_scripts():
    assert run('normalize("Shar")', policy=FREE.model_copy(update={"whole_words": False})).text
    assert run('normalize("点击这里")', "正文点击这里正文").text == "正文正文"


def test_more_strings_than_allowed():
    program = "\n".join(f'normalize("w{n}")' for n in range(3))
    policy = FREE.model_copy(update={"max_strings": 2})
    result = run(program, "w0 w1 w2", policy)
    assert (result.text, result.rejected) == ("  w2", {"too_many_strings": 1})


def test_a_repeated_string_edit_counts_once():
    result = run('normalize("Footer")\n' * 40)
    assert (result.strings_replaced, result.rejected) == (1, {})


def test_overlapping_deletions_are_joined_and_replacements_rejected():
    text = "one two three four"
    assert run('normalize("one two")\nnormalize("two three")', text).text == " four"
    result = run('normalize("one two")\nnormalize("two three", "x")', text)
    assert (result.text, result.rejected) == (" three four", {"overlap": 1})


def test_a_string_partly_in_a_removed_line_is_rejected_and_one_inside_is_ignored():
    inside = run('remove_lines(1, 2)\nnormalize("adult")\nnormalize("adult brain\n")')
    assert inside.text == "Home | About\nShare this | Tweet\nHome again\nFooter"
    assert (inside.strings_replaced, inside.rejected) == (0, {})
    for source in ("About\nThe", "About\n", "\n\nShare", "brain\n\n"):
        result = run(f'remove_lines(1, 1)\nnormalize("{source}")')
        assert result.rejected == {"crosses_removed": 1}
        assert result.text.startswith("Home | About\n\nShare")


def test_a_string_across_lines():
    assert run('normalize("brain\n\nShare", "-")').text == (
        "Home | About\nThe adult - this | Tweet\nHome again\nFooter"
    )


def test_matches_do_not_overlap_but_may_be_adjacent():
    assert run('normalize("a a")', "a a a a a").text == "  a"
    assert run('normalize("(a)", "x")\nnormalize("(b)", "y")', "(a)(b)(a)").text == "xyx"


def test_adjacent_ranges_are_joined():
    result = run('remove_lines(1, 1)\nremove_lines(2, 2)\nnormalize("brain\n\n")')
    assert (result.lines_removed, result.rejected) == (2, {})


def test_removal_of_the_last_lines_and_of_all_lines():
    assert run("remove_lines(4, 5)").text == "Home | About\nThe adult brain\n\nShare this | Tweet"
    assert run("remove_all()").text == ""
    assert run("remove_lines(all=True)").reason == "emptied"
    assert run("remove_lines(1, 1)", "a\n").text == "a"
    for program in ("remove_lines(0, 0)", "remove_lines(0, 1)", "remove_all()", 'normalize("a")'):
        result = run(program, "a\n", Policy())
        assert (result.outcome, result.reason, result.text) == ("dropped", "emptied", "")


def test_an_escape_is_read_as_the_text_has_it():
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


def test_a_target_that_may_be_latex_is_ambiguous():
    assert run(r'normalize("θ", "\theta")', "a θ b").rejected == {"ambiguous": 1}
    assert run(r'normalize("θ", "\n")', "a θ b").text == "a \n b"
    assert run(r'normalize("θ", "\u0009x")', "a θ b").text == "a \tx b"


def test_a_repeated_statement_is_rejected_once():
    loop = "remove_lines(-9, 9)\n" * 40 + 'normalize("z")\n' * 40
    assert run(loop, "a b").rejected == {"outside_window": 1, "not_found": 1}


def test_numbering_of_windows():
    programs = ["remove_lines(0, 0)", "remove_lines(0, 0)"]
    windows = [window(0, 3, programs[0]), window(3, 6, programs[1])]
    counted = replay(DOC, None, windows, FREE, ProgramFormat(numbering="window"))
    assert counted.text == "The adult brain\n\nHome again\nFooter"
    document = replay(DOC, None, windows, FREE, PROX)
    assert (document.lines_removed, document.rejected) == (1, {"outside_window": 1})


def test_adjacent_removals_of_two_windows_and_lines_without_a_window():
    windows = [window(1, 3, "remove_lines(2, 2)"), window(3, 5, "remove_lines(3, 4)")]
    assert replay(DOC, None, windows, FREE, PROX).text == ("Home | About\nThe adult brain\nFooter")


def test_error_budget_of_a_window():
    bad = "garbage\nrubbish"
    windows = [window(0, 3, "remove_lines(0, 0)"), window(3, 6, f"remove_lines(3, 3)\n{bad}")]
    result = replay(DOC, None, windows, FREE, PROX)
    assert result.text == DOC.partition("\n")[2]
    assert result.rejected == {"not_a_call": 2, "error_budget": 1}
    for action, expected in (("drop", "dropped"), ("quarantine", "quarantined")):
        policy = FREE.model_copy(update={"on_errors": action})
        result = replay(DOC, None, windows, policy, PROX)
        assert (result.outcome, result.reason, result.text) == (expected, "error_budget", "")
    allowed = FREE.model_copy(update={"max_error_share": 0.7})
    assert replay(DOC, None, windows, allowed, PROX).lines_removed == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ('normalize("http://nowhere.example/{n}")', "not_found"),
        ("remove_lines(9{n}, 99)", "no_such_line"),
        ('normalize("er {n}")', "inside_word"),
        ("nothing number {n}", "not_a_call"),
    ],
)
def test_two_mistyped_statements_of_thirty_leave_twenty_eight_edits(bad, reason):
    text = "\n".join(f"number {n} is at http://a.example/{n}" for n in range(30))
    good = [f'normalize(" is at http://a.example/{n}")' for n in range(28)]
    result = run("\n".join([*good, *(bad.replace("{n}", str(n)) for n in (1, 2))]), text)
    assert (result.strings_replaced, result.rejected) == (28, {reason: 2})


def test_statements_that_find_nothing_are_no_errors():
    missing = "\n".join(f'normalize("missing {n}")' for n in range(9))
    strictest = FREE.model_copy(update={"max_error_share": 0.0, "on_errors": "quarantine"})
    result = run(f"remove_lines(0, 0)\n{missing}", policy=strictest)
    assert (result.lines_removed, result.rejected) == (1, {"not_found": 9})
    assert run("remove_lines(0, 0)\ngarbage", policy=strictest).outcome == "quarantined"


@pytest.mark.parametrize(
    ("action", "expected"), [("keep", "kept"), ("drop", "dropped"), ("quarantine", "quarantined")]
)
def test_the_limits_of_a_document(action, expected):
    text = "word " * 95 + "\n" + "word " * 5
    policy = Policy(max_removed_share=0.94, on_removed_share=action, on_short=action)
    result = run("remove_lines(0, 0)", text, policy)
    assert result.outcome == expected
    assert (result.reason or result.rejected) in ("removed_share", {"removed_share": 1})
    text = "word " * 30 + "\n" + "word " * 10
    result = run("remove_lines(0, 0)", text, policy)
    assert result.outcome == expected
    assert (result.reason or result.rejected) in ("short", {"short": 1})
    assert result.text == (text if expected == "kept" else "")
    assert run("remove_lines(0, 0)", text + "word", policy).outcome == "edited"


def test_unspaced_scripts_are_counted_in_characters():
    text = f"{'首页' * 20}\n{'正文很长' * 4}"  # 16 characters count as 10.7 words, 17 as 11.3
    assert run("remove_lines(0, 0)", text, Policy()).reason == "short"
    assert run("remove_lines(0, 0)", f"{text}正", Policy()).text == "正文很长" * 4 + "正"


@pytest.mark.parametrize(
    "kept",
    [
        "물은 해수면에서 섭씨 백 도에서 끓는다 꼭 기억하세요",
        "水在海平面的沸点是一百摄氏度，请记住这个数字。",
        r"$$\int_0^\infty e^{-x^2}\,dx=\frac{\sqrt{\pi}}{2},\quad\sum_{n=1}^{\infty}\frac{1}{n^2}",
        "for(int i=0;i<n;i++){sum+=a[i]*b[i];total+=sum;print(total);}\nreturn total;",
    ],
)
def test_short_is_measured_in_units_that_fit_the_script(kept):
    menu = "menu item " * 30
    assert run("remove_lines(0, 0)", f"{menu}\n{kept}", Policy()).text == kept
    few = kept[:14]
    assert run("remove_lines(0, 0)", f"{menu}\n{few}", Policy()).reason == "short"


def test_a_text_that_lost_little_is_never_short():
    text = "Water boils at one hundred degrees Celsius at sea level. Read more"
    program = 'normalize(" Read more")'
    assert run(program, text, Policy()).text == text.removesuffix(" Read more")
    assert run(program, text, Policy(short_loss=0.1)).reason == "short"


line_texts = st.sampled_from(
    [
        "",
        " ",
        "Home",
        "menu item",
        "Ein Satz mit acht Wörtern steht in dieser Zeile.",
        "正文很长",
        "x" * 80,
    ]
)


@given(st.lists(line_texts, min_size=1, max_size=12), st.data())
def test_removing_more_never_yields_more(lines, data):
    order = data.draw(st.permutations(range(len(lines))))
    text = "\n".join(lines)
    policy = data.draw(
        st.sampled_from([Policy(), Policy(max_removed_share=0.6), Policy(short_loss=0)])
    )
    sizes = [
        len(run("\n".join(f"remove_lines({n}, {n})" for n in order[:count]), text, policy).text)
        for count in range(len(lines) + 1)
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_windows_that_do_not_fit_the_text_stop_the_shard():
    for windows in (
        [window(0, 7, "")],
        [window(2, 2, "")],
        [window(3, 6, ""), window(0, 3, "")],
        [window(0, 4, ""), window(3, 6, "")],
    ):
        with pytest.raises(ShardError, match="does not fit"):
            replay(DOC, None, windows, FREE, PROX)


def test_the_doc_program_is_applied_first():
    windows = [window(0, 6, "remove_lines(0, 0)")]
    dropped = replay(DOC, ModelOutput("drop_doc()", "stop"), windows, FREE, PROX)
    assert (dropped.outcome, dropped.reason, dropped.text) == ("dropped", "doc_program", "")
    kept = replay(DOC, ModelOutput("hm", "stop"), windows, FREE, PROX)
    assert (kept.outcome, kept.rejected) == ("edited", {"not_a_call": 1, "unclear_verdict": 1})
    assert replay(DOC, ModelOutput("keep_doc()", "stop"), [], FREE, PROX).outcome == "kept"


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
def test_an_unclear_verdict_keeps_the_document(program, finish, rejected):
    verdict = doc_verdict(ModelOutput(program, finish), FREE)
    assert (verdict.action, verdict.rejected) == ("keep", rejected)


def test_a_repeated_verdict_counts_once():
    assert doc_verdict(ModelOutput("drop_doc()\n" * 9 + "drop", "length"), FREE).action == "drop"


def test_a_truncated_call_is_recorded_but_is_not_an_error():
    policy = FREE.model_copy(update={"max_error_share": 0.0})
    result = replay(DOC, None, [window(0, 6, "remove_lines(0, 0)\nrem", "length")], policy, PROX)
    assert (result.lines_removed, result.rejected) == (1, {"truncated_call": 1})


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
    edges = sorted(draw(st.sets(st.integers(0, count), min_size=2)) | {0, count})
    spans = [pair for pair in pairwise(edges) if draw(st.booleans()) or len(edges) == 2]
    return text, [window(a, b, draw(programs), draw(finishes)) for a, b in spans]


def is_subsequence(part, whole):
    rest = iter(whole)
    return all(item in rest for item in part)


@given(documents(), dialects, st.sampled_from(["document", "window"]))
def test_random_programs_never_raise_and_change_only_their_window(case, dialect, numbering):
    text, windows = case
    policy = Policy(min_kept_words=0, max_error_share=1)
    result = replay(text, None, windows, policy, ProgramFormat(dialect, numbering))
    if result.reason in ("emptied", "rewrite"):
        assert result.text == ""
        return
    assert result.outcome == ("kept" if result.text == text else "edited")
    lines, after = text.split("\n"), result.text.split("\n")
    if not result.strings_replaced and len(lines) > result.lines_removed:
        assert is_subsequence(after, lines)
        assert len(after) == len(lines) - result.lines_removed
    for part in windows:
        alone = replay(text, None, [part], policy, ProgramFormat(dialect, numbering)).text
        head = "".join(f"{line}\n" for line in lines[: part.start])
        tail = "".join(f"\n{line}" for line in lines[part.stop :])
        assert f"{alone}\n".startswith(head)
        assert alone.endswith(tail) or alone == tail[1:]


CALLS = ["remove_lines(0, 0)", 'normalize("a")', 'normalize("word")', 'normalize("a word")']


@given(texts, st.permutations(CALLS))
def test_the_order_of_deletions_does_not_matter(text, calls):
    policy = Policy(min_kept_words=0, max_error_share=1)
    assert run("\n".join(calls), text, policy) == run("\n".join(CALLS), text, policy)


class CountingText(str):
    """A text that counts the characters read by searches in it."""

    scanned = 0

    def find(self, part, low=0, high=None):
        high = len(self) if high is None else high
        at = super().find(part, low, high)
        CountingText.scanned += (high if at < 0 else at + len(part)) - low
        return at

    def rfind(self, part, low=0, high=None):
        high = len(self) if high is None else high
        at = super().rfind(part, low, high)
        CountingText.scanned += high - (low if at < 0 else at)
        return at

    def __getitem__(self, key):
        part = super().__getitem__(key)
        CountingText.scanned += len(part)
        return part


def operations(text, program, dialect):
    """Return the lines of Python that a replay executes plus the characters that it reads."""
    lines = 0

    def trace(frame, event, argument):
        nonlocal lines
        lines += event == "line"
        return trace

    CountingText.scanned = 0
    windows = [window(0, text.count("\n") + 1, program)]
    policy = Policy(max_error_share=1, min_kept_words=0)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        replay(CountingText(text), None, windows, policy, ProgramFormat(dialect))
    finally:
        sys.settrace(before)
    return lines + CountingText.scanned


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
        ("w\n", 'add_line({n}, 1, "w")\n'),
        ("w\n", 'add_line(1, {n}, "w")\n'),
        ("w\n", "rm {n}\n"),
        ("w\n", "rm 1-{n}\n"),
        ("w", 'sub 1: "w"\n'),
        ("w\n", "<edit>\ngarbage {n}\n"),
        ("w\n", "<edit>\n"),
        ("\n", " \n"),
    ],
)
def test_operations_are_linear_in_text_and_program(text, program):
    def count_operations(size):
        calls = "".join(program.replace("{n}", str(n)) for n in range(size))
        return max(operations(text * size, calls, dialect) for dialect in DIALECTS)

    small, large = count_operations(300), count_operations(1200)
    assert large < 4.6 * small + 2000
