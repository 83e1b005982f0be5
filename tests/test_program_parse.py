"""The parser: every form that refiners write, and every rejection."""

from collections import Counter
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.program.edits import WindowLines, count_usual_calls, program_edits, read_window
from proxhpc.program.parse import parse_chunk, parse_doc
from proxhpc.program.syntax import (
    DIALECTS,
    AddLine,
    Keep,
    Normalize,
    Program,
    ProgramEnd,
    Quoted,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
    Rewrite,
    Verdict,
    format_program,
)

NAMES = (
    "keep_all keep_chunk skip_chunk untouch_doc remove_lines normalize remove_str replace_str"
    " add_line"
)
PIECES = (
    *(name + "(" for name in (*NAMES.split(), "remove_all", "keep_doc", "drop_doc", "foo")),
    *("start=", "end = ", "line_start=", "source_str=", "target_str=", "all=True", "line="),
    *"\"'\\,)(=#;\n ",
    *("```python\n", "```", "drop", "keep"),
    *("<keep>\n", "<edit>\n", "<extract>\n", "<delete>\n", "<rewrite>", "\nrm ", "rm 3-4\n", "-"),
    *('\nsub 3: "', "sub 0: word\n", "---\n"),
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
    "refinex": common | st.builds(RemoveStr, numbers, quoted),
    "ultrax": common
    | st.builds(ReplaceStr, numbers, quoted, quoted)
    | st.builds(AddLine, numbers, numbers, quoted),
}
dialects = st.sampled_from([*DIALECTS])
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


@pytest.mark.parametrize(
    "text",
    [
        "remove_lines(1, 2)",
        "remove_lines(start=1, end=2)",
        "remove_lines(start_line=1, end_line=2)",
        "remove_lines(end_line=2, start_line=1)",
        "remove_lines(start_line=1, 2)",
    ],
)
def test_forms_of_refinex(text):
    assert parse_chunk(text, "refinex") == Program((RemoveLines(1, 2),))


@pytest.mark.parametrize(
    "text",
    [
        'remove_str(3, "a")',
        "remove_str(3, 'a' )",
        'remove_str(line=3, "a")',
        'remove_str(line=3, del_str="a")',
        'remove_str(del_str="a", line=3)',
        'remove_str(del_str="a", 3)',
        'remove_str("a", 3)',
    ],
)
def test_forms_of_refinex_strings(text):
    assert parse_chunk(text, "refinex") == Program((RemoveStr(3, Quoted("a")),))
    for wrong in ('remove_str("a", "b")', "remove_str(3, 4)", 'remove_str(line=3, 4, "a")'):
        assert parse_chunk(wrong, "refinex").rejected


def test_forms_of_ultrax():
    text = """remove_lines(1, 2)
replace_str(line=4, old='b', new="c")
replace_str(5, 'it\\'s\\xa0\\n', '\\U0001f600')
add_line(0, 1, 'Title\\n')
add_line(base_position=5, sub_index=2, content="x")
remove_all()"""
    program = parse_chunk(text, "ultrax")
    replaced, escaped, added = program.statements[1:4]
    assert program.rejected == ()
    assert program.statements[0] == RemoveLines(1, 2)
    assert replaced == ReplaceStr(4, Quoted("b"), Quoted("c"))
    assert (escaped.source.value, escaped.target.value) == ("it's\xa0\n", "\U0001f600")
    assert (added.base, added.order, added.text.value) == (0, 1, "Title\n")
    assert program.statements[4:] == (AddLine(5, 2, Quoted("x")), RemoveAll())
    assert Quoted(r"\U0010ffff \U00110000").value == "\U0010ffff \\U00110000"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<keep>\n<extract>\n<keep>", [Keep()]),
        ("<keep>\n<extract>\nrm 1\nrm 4-5\n<keep>", [RemoveLines(1, 1), RemoveLines(4, 5)]),
        ("<extract>\nrm 1\n<keep>", [RemoveLines(1, 1)]),
        (
            '<edit>\n<extract>\nrm 1\n<edit>\n\nrm 3 - 4\nsub 2: " say \\"so\\" \\u00e9"',
            [RemoveLines(1, 1), RemoveLines(3, 4), RemoveStr(2, Quoted.of(' say "so" é'))],
        ),
        ('<edit>\nsub 2: "half', [RemoveStr(2, Quoted("half"))]),
        ("<edit>\nsub 2: no quotes", [RemoveStr(2, Quoted("no quotes"))]),
        ("<delete>\n<extract>\nrm 1-3\n<delete>", [RemoveAll()]),
        ("<extract>\nrm 1-3\n<delete>", [RemoveAll()]),
        ("<rewrite>\n<extract>\nrm 1\n<rewrite>\nThe bridge opened.\nrm 2", [Rewrite()]),
        ("<edit>\n<extract>\nrm 1\n<edit>\nThe bridge opened.", [Rewrite()]),
        ("<keep>\n<extract>\nrm 1\n<edit>\nrm 2", [RemoveLines(1, 1), RemoveLines(2, 2)]),
        ("<keep>\n<extract>\nrm 1\n<delete>", [RemoveLines(1, 1)]),
        ("", []),
    ],
)
def test_forms_of_rescraper(text, expected):
    assert parse_chunk(text, "rescraper") == Program(tuple(expected))


def test_lines_of_rescraper_that_are_no_operation_are_rejected():
    program = parse_chunk("<edit>\n<extract>\nrm\nrm 1, 2\nrm 1, 2\n<edit>\nrm 3", "rescraper")
    assert program.statements == (RemoveLines(3, 3),)
    assert [item.reason for item in program.rejected] == ["not_a_call"] * 2


def test_the_last_line_of_a_truncated_program_of_rescraper():
    text = "<edit>\n<extract>\nrm 1\n<edit>\n"
    assert parse_chunk(f"{text}rm 3-4", "rescraper", "length").statements == (RemoveLines(1, 1),)
    assert parse_chunk(f"{text}rm 3-4", "rescraper", "length").truncated
    assert not parse_chunk(f"{text}rm 3-4\n", "rescraper", "length").truncated
    assert len(parse_chunk(f'{text}sub 3: "a"', "rescraper", "length").statements) == 2


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


def decoded(program):
    """The statements of a program, with the values of its strings; inserted text as a line."""
    result = []
    for s in program.statements:
        names = [f.name for f in fields(s) if f.compare]
        values = [getattr(getattr(s, name), "value", getattr(s, name)) for name in names]
        if isinstance(s, AddLine):
            values[-1] = values[-1].removesuffix("\n")
        result.append((type(s), values))
    return result


@given(
    st.sampled_from([*statements]).flatmap(lambda d: st.tuples(st.just(d), st.lists(statements[d])))
)
def test_printed_programs_are_parsed_back(case):
    dialect, items = case
    program = Program(tuple(items))
    assert parse_chunk(str(program), dialect) == program
    printed = format_program(program, dialect)
    parsed = parse_chunk(printed, dialect)
    if all(isinstance(item, Keep) for item in items):
        assert printed == (DIALECTS[dialect].no_edit if items else "")
    else:
        assert decoded(parsed) == decoded(program)
    assert parsed.rejected == ()


tagged = st.builds(RemoveLines, st.integers(1, 9), st.integers(1, 9)) | st.builds(
    RemoveStr, st.integers(1, 9), quoted
)


@given(st.lists(tagged))
def test_printed_programs_of_rescraper_are_parsed_back(items):
    items.sort(key=lambda item: isinstance(item, RemoveStr))
    parsed = parse_chunk(format_program(Program(tuple(items)), "rescraper"), "rescraper")
    assert parsed.rejected == ()
    assert decoded(parsed) == decoded(Program(tuple(items) or (Keep(),)))


@given(st.lists(st.booleans().map(Verdict)))
def test_printed_verdicts_are_parsed_back(items):
    assert parse_doc(str(Program(tuple(items)))) == Program(tuple(items))


@given(values)
def test_a_quoted_string_has_the_original_value(value):
    assert Quoted.of(value).value == value


@given(soups, dialects, finishes)
def test_random_text_never_raises_and_its_statements_are_parsed_back(text, dialect, finish):
    program = parse_chunk(text, dialect, finish)
    if dialect != "rescraper":
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
            "keep_all()",
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
    lines = WindowLines(3, 40, 5, (3, 40))
    edits = read_window(text, dialect, finish, lines, strict=True)
    distinct = list(dict.fromkeys(edits.strings))
    program = parse_chunk(text, dialect, finish)
    expected = program_edits(program, dialect, lines, {}, strict=True)
    fast = edits._replace(strings=distinct, statements=expected.statements, inserted=[])
    assert fast == expected._replace(inserted=[])


def test_a_repeated_rejection_counts_once():
    assert len(parse_chunk("garbage\nrubbish\n" * 9).rejected) == 2


USUAL = (
    "remove_lines(start=1, end=2)",
    "remove_lines( start=3, end=1) # menu",
    'normalize(source_str="a b")',
    'normalize(source_str="b", target_str="")',
)
UNUSUAL = (
    "remove_lines(start=1,end=2)",
    "keep_all()",
    'normalize(source_str="é")',
    "untouch_doc()",
    "prose",
)


@given(st.lists(st.sampled_from(USUAL + UNUSUAL), max_size=4), st.sampled_from(["stop", "length"]))
def test_usual_programs_are_counted_as_they_are_parsed(
    lines: list[str], finish: ProgramEnd
) -> None:
    text = "\n".join(lines)
    counts, parsed = count_usual_calls(text), parse_chunk(text, "prox", finish)
    assert (counts is None) == any(line in UNUSUAL for line in lines)
    if counts is not None:
        names = (str(statement).partition("(")[0] for statement in parsed.statements)
        assert (Counter(counts), parsed.rejected) == (Counter(names), ())
