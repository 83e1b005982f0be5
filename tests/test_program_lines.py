"""Which lines a program means: split lines, lines shown beside a window, lines without a number."""

from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.errors import ShardError
from proxhpc.program.lines import first_parts, line_starts, whole_lines
from proxhpc.program.policy import Policy
from proxhpc.program.replay import (
    ModelOutput,
    ProgramFormat,
    WindowProgram,
    read_windows,
    replay,
    window_lines,
)

FREE = Policy(min_kept_words=0, max_removed_share=1)
PROX = ProgramFormat()


def window(start, stop, program, shown=None):
    return WindowProgram(start, stop, ModelOutput(program, "stop"), shown)


def split(marked):
    """A text and its cuts, given with `¦` where lines are split."""
    pieces = marked.split("¦")
    return "".join(pieces), list(accumulate(map(len, pieces[:-1])))


def run(marked, program, *windows):
    text, cuts = split(marked)
    total = text.count("\n") + 1 + len(cuts)
    return replay(text, None, windows or [window(0, total, program)], FREE, PROX, cuts)


def removals(numbers):
    return "\n".join(f"remove_lines({n}, {n})" for n in numbers)


@pytest.mark.parametrize(
    ("removed", "after"),
    [
        ([], "One. Two. Three. \nFour.Five.\nSix."),
        ([0], "Two. Three. \nFour.Five.\nSix."),
        ([1], "One. Three. \nFour.Five.\nSix."),
        ([2], "One. Two.\nFour.Five.\nSix."),
        ([1, 2], "One.\nFour.Five.\nSix."),
        ([0, 1, 2], "Four.Five.\nSix."),
        ([2, 3], "One. Two.\nFive.\nSix."),
        ([2, 3, 4], "One. Two.\nSix."),
        ([1, 2, 3, 4, 5], "One."),
        ([4, 5], "One. Two. Three. \nFour."),
        ([5], "One. Two. Three. \nFour.Five."),
        ([0, 2, 4], "Two.\nFour.\nSix."),
        ([0, 1, 2, 3, 4, 5], ""),
    ],
)
def test_removed_parts_of_a_line(removed, after):
    result = run("One. ¦Two. ¦Three. \nFour.¦Five.\nSix.", removals(removed))
    assert result.text == after
    assert result.lines_removed == len(removed) * bool(after)


def test_removed_parts_of_two_windows():
    marked = "One. ¦Two. ¦Three.\nFour."
    ends = [window(0, 2, removals([1])), window(2, 4, removals([2]))]
    assert run(marked, "", *ends).text == "One.\nFour."
    all_parts = [window(0, 2, removals([0, 1])), window(2, 4, removals([2]))]
    assert run(marked, "", *all_parts).text == "Four."


def test_blank_parts_before_a_removed_end():
    for removed, after in (([1, 3], "One."), ([3], "One. Two."), ([1], "One.   Three.")):
        assert run("One. ¦Two. ¦  ¦Three.\nEnd", removals(removed)).text == f"{after}\nEnd"
    assert run("A. ¦B.\nC. ¦  ¦D.\nEnd", removals([1, 2, 4])).text == "A.\n\nEnd"


def test_strings_beside_removed_parts():
    marked = "One two. ¦Three.\nFour."
    assert run(marked, 'normalize(" two")\nremove_lines(1, 1)').text == "One.\nFour."
    assert run(marked, 'normalize("two. ", "2. ")\nremove_lines(1, 1)').rejected == {
        "crosses_removed": 1
    }
    added = WindowProgram(0, 3, ModelOutput("add_line(1, 1, 'New.')\nremove_lines(2, 2)", "stop"))
    text, cuts = split(marked)
    result = replay(text, None, [added], FREE, ProgramFormat("ultrax"), cuts)
    assert result.text == "One two.\nNew.\nFour."
    added = WindowProgram(0, 3, ModelOutput("add_line(1, 1, 'New.')", "stop"))
    result = replay(text, None, [added], FREE, ProgramFormat("ultrax"), cuts)
    assert result.text == "One two. \nNew.\nThree.\nFour."


@pytest.mark.parametrize("cuts", [[0], [3], [5], [9], [2, 2], [2, 1], [-1], [1, 9]])
def test_cuts_that_do_not_fit_the_text_stop_the_shard(cuts):
    with pytest.raises(ShardError, match="do not fit"):
        replay("ab\ncd", None, [window(0, 2 + len(cuts), "")], FREE, PROX, cuts)


def test_windows_are_checked_against_all_lines():
    text, cuts = split("a¦b\nc")
    assert replay(text, None, [window(0, 3, "")], FREE, PROX, cuts).outcome == "kept"
    for spans in ([(0, 4, None)], [(0, 1, (0, 4))], [(1, 2, (2, 3))], [(1, 2, (-1, 2))]):
        windows = [window(a, b, "", shown) for a, b, shown in spans]
        with pytest.raises(ShardError, match="does not fit"):
            replay(text, None, windows, FREE, PROX, cuts)


def test_whole_lines():
    text, cuts = split("a¦b\nc¦d¦e\nf")
    parts = first_parts(text, cuts)
    assert list(parts) == [0, 2, 5, 6]
    assert line_starts(text, cuts) == [0, 1, 3, 4, 5, 7, 9]
    for removed, whole in (
        ([(0, 2)], [(0, 1)]),
        ([(1, 2), (2, 5)], [(1, 2)]),
        ([(0, 1), (1, 2), (2, 5)], [(0, 2)]),
        ([(2, 4), (5, 6)], [(2, 3)]),
        ([(1, 4)], []),
        ([(0, 6)], [(0, 3)]),
    ):
        assert whole_lines(removed, parts) == whole
    assert whole_lines([(0, 1), (2, 3)], first_parts("a\nb\nc", ())) == [(0, 1), (2, 3)]


pieces = st.sampled_from(["", "a", "One. ", "Two", " 点。", "  ", "x y. "])
lines = st.lists(st.lists(pieces, min_size=1, max_size=4), min_size=1, max_size=5)


def joined(parts):
    """A text, its cuts and the numbers of each line's parts, given the parts of its lines."""
    text, cuts, numbers, number = "", [], [], 0
    for index, line in enumerate(parts):
        text += "\n" if index else ""
        whole = [part for part in line if part] or [""]
        for n, part in enumerate(whole):
            if n:
                cuts.append(len(text))
            text += part
        numbers.append(list(range(number, number + len(whole))))
        number += len(whole)
    return text, cuts, numbers


@given(lines, st.data())
def test_removing_all_parts_removes_the_line_and_more_never_leaves_more(parts, data):
    text, cuts, numbers = joined(parts)
    total = numbers[-1][-1] + 1
    edge = data.draw(st.integers(1, total))

    def after(removed):
        program = removals(removed)
        windows = [window(a, b, program) for a, b in pairwise((0, edge, total)) if a < b]
        policy = FREE.model_copy(update={"max_error_share": 1.0})
        return replay(text, None, windows, policy, PROX, cuts)

    assert after([]).text == text
    chosen = data.draw(st.lists(st.sampled_from(range(len(numbers))), unique=True))
    gone = after([n for line in chosen for n in numbers[line]])
    kept = "\n".join(
        line for index, line in enumerate(text.split("\n")) if index not in set(chosen)
    )
    assert gone.text == kept or (gone.reason == "emptied" and not kept.strip())
    order = data.draw(st.permutations(range(total)))
    results = [after(order[:count]) for count in range(total + 1)]
    sizes = [len(result.text) for result in results]
    assert sizes == sorted(sizes, reverse=True)
    for result, count in zip(results, range(total + 1), strict=True):
        left = [line for line in numbers if set(line) - set(order[:count])]
        if result.text:
            assert len(result.text.split("\n")) == len(left)
        for line, shown in zip(left, result.text.split("\n"), strict=False):
            if line[-1] in order[:count]:
                assert shown == shown.rstrip()


TEXT = "zero\none\n\ntwo\nthree\n\nfour"


@pytest.mark.parametrize(
    ("program", "after", "rejected"),
    [
        ("remove_lines(1, 1)", TEXT, {"other_window": 1}),
        ("remove_lines(1, 3)", "zero\none\n\nthree\n\nfour", {}),
        ("remove_lines(3, 5)", "zero\none\n\n\nfour", {}),
        ("remove_lines(5, 5)", TEXT, {"other_window": 1}),
        ("remove_lines(0, 3)", TEXT, {"outside_window": 1, "error_budget": 0}),
        ("remove_lines(3, 6)", "zero\none\n\n\nfour", {}),
        ("remove_lines(3, 7)", TEXT, {"outside_window": 1, "error_budget": 0}),
        ("remove_lines(6, 6)", TEXT, {"no_such_line": 1}),
        ("remove_all()", "zero\none\n\n\nfour", {}),
        ('normalize("one", "1")', TEXT, {"not_found": 1}),
    ],
)
def test_a_program_edits_only_its_window_of_the_lines_that_it_saw(program, after, rejected):
    result = replay(TEXT, None, [window(3, 5, program, (1, 6))], FREE, PROX)
    assert result.text == after
    assert result.rejected == {reason: n for reason, n in rejected.items() if n}


@pytest.mark.parametrize(
    ("dialect", "program", "after"),
    [
        ("refinex", 'remove_str(3, "two")', "zero\none\n\n\nthree\n\nfour"),
        ("ultrax", "replace_str(3, 'two', '2')", "zero\none\n\n2\nthree\n\nfour"),
        ("ultrax", "remove_lines(1, 9)", "zero\none\n\n\nfour"),
        ("ultrax", "add_line(3, 1, 'x')", "zero\none\n\ntwo\nx\nthree\n\nfour"),
        ("ultrax", "add_line(4, 1, 'x')", "zero\none\n\ntwo\nthree\nx\n\nfour"),
        ("ultrax", "add_line(2, 1, 'x')", None),
        ("ultrax", "replace_str(1, 'one', '1')", None),
        ("refinex", 'remove_str(1, "one")', None),
        ("rescraper", "<edit>\nrm 1", None),
    ],
)
def test_numbers_count_from_the_first_line_that_was_shown(dialect, program, after):
    program_format = ProgramFormat(dialect, "window")
    strict = FREE.model_copy(update={"max_error_share": 0.0, "on_errors": "drop"})
    result = replay(TEXT, None, [window(3, 5, program, (1, 6))], strict, program_format)
    assert result.text == (after or TEXT)
    assert result.rejected == ({} if after else {"other_window": 1})


def test_the_first_of_overlapping_windows_edits_a_line():
    program = "remove_lines(0, 4)"
    windows = [window(0, 2, program, (0, 5)), window(2, 5, program, (0, 5))]
    result = replay("a\nb\nc\nd\ne\nf", None, windows, FREE, PROX)
    assert (result.text, result.lines_removed, result.rejected) == ("f", 5, {})


@pytest.mark.parametrize(
    ("numbering", "program", "after"),
    [
        ("document", "rm 3", "zero\none\n\nthree\n\nfour"),
        ("document", "rm 3-4", "zero\none\n\n\nfour"),
        ("document", 'sub 4: "th"', "zero\none\n\ntwo\nree\n\nfour"),
        ("document", "rm 2", TEXT),
        ("window", "rm 2", "zero\none\n\nthree\n\nfour"),
        ("window", "rm 2-9", "zero\none\n\nfour"),
    ],
)
def test_blank_lines_without_numbers(numbering, program, after):
    program_format = ProgramFormat("rescraper", numbering, "skipped")
    windows = [window(2, 6, f"<edit>\n<extract>\n{program}\n<edit>", (1, 6))]
    result = replay(TEXT, None, windows, FREE, program_format)
    assert result.text == after


@pytest.mark.parametrize(
    ("program", "removed", "lenient"),
    [
        ("remove_lines(start=1, end=1)", [(2, 3)], {}),
        ("remove_lines(start=0, end=1)", [(0, 3)], {}),
        ("remove_lines(1, 2)", [(2, 4)], {"clipped_range": 1}),
        ("untouch_doc()", [], {}),
    ],
)
def test_the_usual_programs_where_blank_lines_have_no_numbers(program, removed, lenient):
    program_format = ProgramFormat("prox", blank_lines="skipped")
    (edits,) = read_windows("a\n\nb\n", [window(0, 4, program)], program_format, [0, 2, 3, 5, 6])
    assert (edits.removed, edits.lenient, edits.rejected) == (removed, lenient, {})


def test_a_range_of_lines_with_text_includes_the_blank_lines_between_them():
    program_format = ProgramFormat("rescraper", blank_lines="skipped")
    (edits,) = read_windows(
        TEXT, [window(0, 7, "<edit>\nrm 2-4\nrm 5-7")], program_format, line_starts(TEXT)
    )
    assert edits.removed == [(1, 5), (6, 7)]


@given(
    st.lists(st.sampled_from(["", " ", "a", "b c"]), min_size=1, max_size=9),
    st.sampled_from(["document", "window"]),
    st.sampled_from(["numbered", "skipped"]),
    st.sampled_from(["prox", "ultrax"]),
    st.data(),
)
def test_a_number_means_the_line_that_has_it(parts, numbering, blank_lines, dialect, data):
    text = "\n".join(parts)
    start = data.draw(st.integers(0, len(parts) - 1))
    stop = data.draw(st.integers(start + 1, len(parts)))
    shown = data.draw(st.integers(0, start)), data.draw(st.integers(stop, len(parts)))
    windows = [window(start, stop, "", shown)]
    program_format = ProgramFormat(dialect, numbering, blank_lines)
    ((_, lines),) = window_lines(text, windows, program_format, line_starts(text))
    numbered = [n for n in range(len(parts)) if blank_lines == "numbered" or parts[n].strip()]
    first = (dialect != "prox") + (
        sum(n < shown[0] for n in numbered) if numbering == "document" else 0
    )
    of_line = {n: i for i, n in enumerate((n for n in numbered if shown[0] <= n < shown[1]), first)}
    for line in range(*shown):
        number = of_line.get(line)
        assert lines.number(line) == number
        assert number is None or lines.line(number) == line
