"""The parser: every form that refiners write, and every rejection."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.program.edits import program_edits, read_window
from proxhpc.program.parse import parse_chunk, parse_doc
from proxhpc.program.syntax import (
    Keep,
    Normalize,
    Program,
    Quoted,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
    Verdict,
    format_program,
)

NAMES = "keep_all keep_chunk skip_chunk untouch_doc remove_lines normalize remove_str replace_str"
PIECES = (
    *(name + "(" for name in (*NAMES.split(), "remove_all", "keep_doc", "drop_doc", "foo")),
    *("start=", "end = ", "line_start=", "source_str=", "target_str=", "all=True", "line="),
    *"\"'\\,)(=#;\n ",
    *("```python\n", "```", "drop", "keep"),
    *("0", "3", "-1", "12345678901", "é", "\ud800", "\\u00e9", "word", "\t"),
)
soups = st.lists(st.sampled_from(PIECES), max_size=40).map("".join) | st.text()
values = st.text(st.characters(exclude_categories=["Cs"]))
quoted = values.map(Quoted.of)
numbers = st.integers(-5, 10**9 - 1)
common = (
    st.builds(Keep, st.sampled_from(["keep_all", "keep_chunk", "skip_chunk", "untouch_doc"]))
    | st.builds(RemoveLines, numbers, numbers)
    | st.just(RemoveAll())
)
statements = {
    "prox": common | st.builds(Normalize, quoted, quoted),
    "refinex": common
    | st.builds(RemoveStr, numbers, quoted)
    | st.builds(ReplaceStr, numbers, quoted, quoted),
}
dialects = st.sampled_from(["prox", "refinex"])
finishes = st.sampled_from(["stop", "length"])


def normalize(source, target=""):
    return Normalize(Quoted.of(source), Quoted.of(target))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("remove_lines(start=13, end=13)", RemoveLines(13, 13)),
        ("remove_lines( start=0, end=74)", RemoveLines(0, 74)),
        ("remove_lines(line_start=0, line_end=5)", RemoveLines(0, 5)),
        ("remove_lines(line_start=0,line_end=5)", RemoveLines(0, 5)),
        ("remove_lines(0, 0)", RemoveLines(0, 0)),
        ("remove_lines(0, end=3)", RemoveLines(0, 3)),
        ("remove_lines(end=2, start=0)", RemoveLines(0, 2)),
        ("\t remove_lines (\n start = 007 ,\n end = 012\n)", RemoveLines(7, 12)),
        ("remove_lines(start=-3, end=2)", RemoveLines(-3, 2)),
        ("remove_lines(all=True)", RemoveAll()),
        ("remove_all()", RemoveAll()),
        ('normalize(source_str="a", target_str="b")', normalize("a", "b")),
        ('normalize(source_str="a")', normalize("a")),
        ("normalize('ClickHere','')", normalize("ClickHere")),
        ("normalize(\"a\", target_str='b')", normalize("a", "b")),
        ('normalize(target_str="b", source_str="a")', normalize("a", "b")),
        ('normalize("http://a.com/x?user=ME")', normalize("http://a.com/x?user=ME")),
        ('normalize("foo (beta), bar")', normalize("foo (beta), bar")),
        ('normalize("# no comment")', normalize("# no comment")),
        (r'normalize("\alpha")', Normalize(Quoted(r"\alpha"), Quoted(""))),
    ],
)
def test_every_form_that_refiners_write(text, expected):
    assert parse_chunk(text) == Program((expected,))


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ('"one\ntwo"', "one\ntwo"),
        (r'"a\tb\n\"c\" \\ \u00e9\xe9"', 'a\tb\n"c" \\ éé'),
        (r"'it\'s \"so\"'", 'it\'s "so"'),
        (r'"\alpha \ud800"', r"\alpha \ud800"),
    ],
)
def test_strings_may_contain_newlines_and_escapes(literal, value):
    (statement,) = parse_chunk(f"normalize({literal})").statements
    assert statement.source.value == value


@pytest.mark.parametrize("name", ["keep_chunk", "keep_all", "skip_chunk", "untouch_doc"])
def test_no_edit(name):
    program = parse_chunk(f"{name}()")
    assert program == Program((Keep(name),))
    assert str(program) == f"{name}()"


@pytest.mark.parametrize(
    "text",
    [
        "```python\nremove_lines(1, 2)\nremove_lines(4, 4)\n```",
        "``` \nremove_lines(1, 2)\nremove_lines(4, 4)```",
        "# head\nremove_lines(1, 2) # noise (all=True)\n# between\nremove_lines(4, 4)# tail",
        "remove_lines(1, 2) remove_lines(4, 4)",
        "remove_lines(1, 2);remove_lines(4, 4);",
        "remove_lines(1, 2)remove_lines(4, 4)",
    ],
)
def test_code_fences_comments_and_several_calls_on_a_line(text):
    assert parse_chunk(text) == Program((RemoveLines(1, 2), RemoveLines(4, 4)))


def test_line_dialect():
    text = 'remove_str(3, "a")\nreplace_str(line=4, old=\'b\', new="c")\nremove_lines(1, 2)'
    expected = (
        RemoveStr(3, Quoted("a")),
        ReplaceStr(4, Quoted("b"), Quoted("c")),
        RemoveLines(1, 2),
    )
    assert parse_chunk(text, "refinex") == Program(expected)
    assert format_program(Program(expected[2:]), "refinex") == "remove_lines(1, 2)"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("garbage", "not_a_call"),
        ("Here is the program: remove_lines(0, 1)", "not_a_call"),
        ("Remove_lines (0, 1", "unterminated"),
        ("remove_lines_but_not_really(0, 1)", "unknown_call"),
        ("remove_para(0)", "unknown_call"),
        ("drop_doc()", "wrong_level"),
        ('remove_str(0, "a")', "wrong_dialect"),
        ("remove_lines(start=1)", "bad_arguments"),
        ("remove_lines(1, 2, 3)", "bad_arguments"),
        ("remove_lines(start=0, 3)", "bad_arguments"),
        ("remove_lines(start=0, start=3)", "bad_arguments"),
        ("remove_lines(start=+3, end=1_0)", "bad_arguments"),
        ("remove_lines(0, 12345678901)", "bad_arguments"),
        ('remove_lines("0", "3")', "bad_arguments"),
        ("remove_lines(a, b)", "bad_arguments"),
        ("normalize()", "bad_arguments"),
        ("normalize(1)", "bad_arguments"),
        ('normalize("a", )', "bad_arguments"),
        ('normalize("say "hi" now", "")', "bad_arguments"),
        ("normalize('it's')", "bad_arguments"),
        ("normalize(source_str=page, target_str=home)", "bad_arguments"),
        ('normalize("\ud800")', "bad_arguments"),
        ("keep_all(1)", "bad_arguments"),
        ("remove_lines(0, 0) if needed", "trailing_text"),
        ("remove_lines(0, 0)5", "trailing_text"),
        ("remove_lines(0, 0), remove_lines(1, 1)", "trailing_text"),
        ('normalize("(5") pipe", "")', "trailing_text"),
        ("remove_lines(", "unterminated"),
        ("remove_lines(start=1, end=5", "unterminated"),
        ('normalize(source_str="The adv', "unterminated"),
        ('normalize("a\\', "unterminated"),
    ],
)
def test_unclear_text_is_rejected_with_a_reason(text, reason):
    program = parse_chunk(text)
    assert [item.reason for item in program.rejected] == [reason]
    assert program.statements == ()


def test_a_malformed_call_ends_with_its_line():
    program = parse_chunk('normalize("a" "b") remove_lines(1, 1)\nremove_lines(2, 2)')
    assert program.statements == (RemoveLines(2, 2),)
    assert len(program.rejected) == 1


@pytest.mark.parametrize(
    "tail", ["remove_li", "remove_lines(", "remove_lines(start=7, end=1", 'normalize("The adv', "n"]
)
def test_an_incomplete_call_is_ignored_at_the_token_limit_and_otherwise_rejected(tail):
    text = f"remove_lines(7, 7)\n{tail}"
    assert parse_chunk(text, finish="length") == Program((RemoveLines(7, 7),), (), True)
    stopped = parse_chunk(text)
    assert stopped.statements == (RemoveLines(7, 7),)
    assert len(stopped.rejected) == 1
    assert not stopped.truncated


def test_only_the_last_call_can_be_truncated():
    program = parse_chunk("garbage\nremove_lines(7, 7)", finish="length")
    assert [item.reason for item in program.rejected] == ["not_a_call"]


def test_statements_have_their_position():
    text = "# x\n remove_lines(1, 2) ; foo()\nkeep_all()"
    program = parse_chunk(text)
    assert [text[s.start : s.stop] for s in program.statements] == [
        "remove_lines(1, 2)",
        "keep_all()",
    ]
    assert [text[r.start : r.stop] for r in program.rejected] == ["foo()"]


@pytest.mark.parametrize(
    ("text", "drop"),
    [
        ("drop_doc()", True),
        (" drop_doc() ", True),
        ("drop", True),
        ("drop_doc", True),
        ("keep_doc()", False),
        ("keep", False),
        ("```python\nkeep_doc()\n```", False),
    ],
)
def test_verdicts(text, drop):
    assert parse_doc(text) == Program((Verdict(drop),))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("I would drop", "not_a_call"),
        ("DROP_DOC()", "unknown_call"),
        ("kee", "not_a_call"),
        ("drop_doc(1)", "bad_arguments"),
        ("remove_lines(0, 1)", "wrong_level"),
        ("drop_doc(", "unterminated"),
    ],
)
def test_unclear_verdicts(text, reason):
    assert [item.reason for item in parse_doc(text).rejected] == [reason]


def test_a_bare_verdict_at_the_token_limit_may_be_truncated():
    assert parse_doc("drop", "length") == Program((), (), True)


@given(dialects.flatmap(lambda d: st.tuples(st.just(d), st.lists(statements[d]))))
def test_printed_programs_are_parsed_back(case):
    dialect, items = case
    program = Program(tuple(items))
    assert parse_chunk(str(program), dialect) == program
    assert parse_chunk(format_program(program, dialect), dialect) == program


@given(st.lists(st.booleans().map(Verdict)))
def test_printed_verdicts_are_parsed_back(items):
    assert parse_doc(str(Program(tuple(items)))) == Program(tuple(items))


@given(values)
def test_a_quoted_string_has_the_original_value(value):
    assert Quoted.of(value).value == value


@given(soups, dialects, finishes)
def test_random_text_never_raises_and_its_statements_are_parsed_back(text, dialect, finish):
    program = parse_chunk(text, dialect, finish)
    assert parse_chunk(str(program), dialect).statements == program.statements
    ends = [0]
    for item in sorted((*program.statements, *program.rejected), key=lambda s: s.start):
        assert ends[-1] <= item.start < item.stop <= len(text)
        ends.append(item.stop)


usual_programs = st.lists(
    st.sampled_from(
        [
            "remove_lines(start=1, end=2)",
            "remove_lines( start=0, end=74)",
            "remove_lines(start=3, end=3)  # menu; remove_all()",
            "remove_lines(start=4, end=9)\t#",
            'normalize(source_str="a, (b)", target_str="")',
            'normalize(source_str="é\n#",target_str="x")',
            'normalize(source_str="a")',
            "untouch_doc()",
            "\n",
            " ",
            "remove_lines(start=1, end",
            'normalize(source_str="\ud800")',
        ]
    ),
    max_size=6,
).map("\n".join)


@given(usual_programs | soups, dialects, finishes)
def test_the_fast_path_agrees_with_the_parser(text, dialect, finish):
    edits = read_window(text, dialect, finish, 3, 40, 5, strict=True)
    distinct = list(dict.fromkeys(edits.strings))
    expected = program_edits(parse_chunk(text, dialect, finish), 3, 40, 5, {}, strict=True)
    assert edits._replace(strings=distinct, statements=expected.statements) == expected


def test_a_repeated_rejection_counts_once():
    assert len(parse_chunk("garbage\nrubbish\n" * 9).rejected) == 2
