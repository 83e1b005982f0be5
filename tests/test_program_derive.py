"""The inverse: programs from pairs of texts."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.program import align
from proxhpc.program.derive import NoProgram, derive
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay
from proxhpc.program.syntax import DIALECTS, Program, format_program

FORMATS = {name: ProgramFormat(name) for name in DIALECTS} | {
    "rescraper": ProgramFormat("rescraper", blank_lines="skipped")
}
FREE = Policy(min_kept_words=0, max_removed_share=1)
BEFORE = "Home | About\nThe adult brain is here.\nShare this\nfoo bar baz\nfoo bar baz\n\nend of it"


def execute(before, program, dialect):
    emitted = ModelOutput(format_program(program, dialect), "stop")
    windows = [WindowProgram(0, before.count("\n") + 1, emitted)]
    return replay(before, None, windows, FREE, FORMATS[dialect])


def significant(text, dialect):
    """The text without the blank lines that do not matter in a dialect."""
    if dialect in ("prox", "refinex"):
        return text
    lines = text.split("\n")
    return "\n".join(line for line in lines if (line if dialect == "ultrax" else line.strip()))


EXTRACT = "<keep>\n<extract>\n{}\n<keep>"
EDIT = "<edit>\n<extract>\n<edit>\n{}"


@pytest.mark.parametrize(
    ("after", "programs"),
    [
        (
            BEFORE,
            ("untouch_doc()", "keep_all()", "keep_all()", "<keep>\n<extract>\n<keep>"),
        ),
        (
            "",
            (
                "remove_lines(start=0, end=6)",
                "remove_lines(1, 7)",
                "remove_all()",
                "<delete>\n<extract>\n<delete>",
            ),
        ),
        (
            BEFORE.partition("\n")[2],
            (
                "remove_lines(start=0, end=0)",
                "remove_lines(1, 1)",
                "remove_lines(1, 1)",
                EXTRACT.format("rm 1"),
            ),
        ),
        (
            "Home | About\nThe adult brain is here.\nfoo bar baz\n\nend of it",
            (
                "remove_lines(start=2, end=3)",
                "remove_lines(3, 4)",
                "remove_lines(3, 4)",
                EXTRACT.format("rm 3-4"),
            ),
        ),
        (
            BEFORE.replace(" | About", "").removesuffix("\nend of it"),
            (
                'remove_lines(start=6, end=6)\nnormalize(source_str=" | About", target_str="")',
                'remove_lines(7, 7)\nremove_str(1, " | About")',
                "remove_lines(7, 7)\nreplace_str(1, ' | About', '')",
                '<edit>\n<extract>\nrm 6\n<edit>\nsub 1: " | About"',
            ),
        ),
        (
            BEFORE.replace("bar", "BAR"),
            (
                'normalize(source_str="bar", target_str="BAR")',
                None,
                "replace_str(4, 'bar', 'BAR')\nreplace_str(5, 'bar', 'BAR')",
                None,
            ),
        ),
        (
            BEFORE.replace("brain", "brainy"),
            (
                'normalize(source_str="brain", target_str="brainy")',
                None,
                "replace_str(2, 'brain', 'brainy')",
                None,
            ),
        ),
        (
            BEFORE.replace("\nend", "\nthe end"),
            (
                'normalize(source_str="end", target_str="the end")',
                None,
                "replace_str(7, 'end', 'the end')",
                None,
            ),
        ),
        (
            f"Title\n{BEFORE}\nmore of it\nand the rest",
            (
                'normalize(source_str="Home", target_str="Title\\u000aHome")\n'
                'normalize(source_str="it", target_str="it\\u000amore of it\\u000aand the rest")',
                None,
                "add_line(0, 1, 'Title\\n')\nadd_line(7, 1, 'more of it\\n')\n"
                "add_line(7, 2, 'and the rest\\n')",
                None,
            ),
        ),
    ],
)
def test_the_shortest_program(after, programs):
    for dialect, expected in zip(DIALECTS, programs, strict=True):
        program = derive(BEFORE, after, dialect)
        if expected is None:
            assert isinstance(program, NoProgram)
            continue
        assert isinstance(program, Program)
        assert format_program(program, dialect) == expected
        result = execute(BEFORE, program, dialect)
        assert significant(result.text, dialect) == significant(after, dialect)
        assert result.rejected == {}


EDITS = [  # before, after, program in each of prox, refinex and ultrax
    (
        "foo foo",
        "foo",
        'normalize("foo ", "")',
        'remove_str(1, "foo ")',
        "replace_str(1, 'foo ', '')",
    ),
    (
        "x b bar",
        "x bar",
        'normalize(" b", "")',
        'remove_str(1, "b ")',
        "replace_str(1, ' b ', ' ')",
    ),
    (
        "a b",
        "a\nb",
        r'normalize(" b", "\u000ab")',
        "",
        "replace_str(1, 'a ', '')\nadd_line(0, 1, 'a\\n')",
    ),
    ("x\n\ny", "x\nz\n\ny", r'normalize("x", "x\u000az")', "", r"add_line(1, 1, 'z\n')"),
    (
        "\nfoo",
        "bar\nfoo",
        r'normalize("\u000afoo", "bar\u000afoo")',
        "",
        r"add_line(0, 1, 'bar\n')",
    ),
    ("a\n\nb", "a\nx\nb", r'normalize("\u000ab", "x\u000ab")', "", r"add_line(1, 1, 'x\n')"),
    (
        'foo "b\nx \\"b',
        'foo b\nx \\"b',
        """normalize(' "', " ")""",
        """remove_str(1, '"')""",
        """replace_str(1, '"', '')""",
    ),
    (
        "foo x bar\nfoo x baz",
        "foo y bar\nfoo x baz",
        'normalize("x bar", "y bar")',
        "",
        "replace_str(1, 'x', 'y')",
    ),
    (
        "the cat saw the cat\nthe cat ran",
        "the dog saw the dog\nthe dog ran",
        'normalize("cat", "dog")',
        "",
        "replace_str(1, 'cat saw the cat', 'dog saw the dog')\nreplace_str(2, 'cat', 'dog')",
    ),
    (
        f"Home {' '.join(map(str, range(30)))} Share",
        " ".join(map(str, range(30))),
        'normalize("Home ", "")\nnormalize(" Share", "")',
        'remove_str(1, "Home ")\nremove_str(1, " Share")',
        "replace_str(1, 'Home ', '')\nreplace_str(1, ' Share', '')",
    ),
    (
        "Home Homepage\nabout Home",
        "Homepage\nabout",
        'normalize("Home ", "")\nnormalize(" Home", "")',
        'remove_str(1, "Home ")\nremove_str(2, " Home")',
        "replace_str(1, 'Home ', '')\nreplace_str(2, ' Home', '')",
    ),
    (  # more matches in removed lines than max_matches
        "\n".join(["Share this"] * 40 + ["Share foo bar"]),
        "foo bar",
        'remove_lines(start=0, end=39)\nnormalize("Share foo", "foo")',
        'remove_lines(1, 40)\nremove_str(41, "Share ")',
        "remove_lines(1, 40)\nreplace_str(41, 'Share ', '')",
    ),
    (
        BEFORE,
        BEFORE.replace("bar baz\n\n", "BAR baz\n\n"),
        r'normalize("baz\u000afoo bar", "baz\u000afoo BAR")',
        "",
        "replace_str(5, 'bar', 'BAR')",
    ),
]


@pytest.mark.parametrize(("before", "after", "prox", "refinex", "ultrax"), EDITS)
def test_edits(before, after, prox, refinex, ultrax):
    for dialect, expected in (("prox", prox), ("refinex", refinex), ("ultrax", ultrax)):
        program = derive(before, after, dialect)
        if not expected:  # more than deletions
            assert isinstance(program, NoProgram)
            continue
        assert isinstance(program, Program)
        text = format_program(program, dialect)
        assert text.replace("source_str=", "").replace("target_str=", "") == expected
        result = execute(before, program, dialect)
        assert significant(result.text, dialect) == significant(after, dialect)


def test_the_same_edit_on_many_different_lines():
    before = "\n".join(f"item {n} [edit]" for n in range(40))
    program = derive(before, before.replace(" [edit]", ""))
    assert isinstance(program, Program)  # more matches of " [edit]" than max_matches
    assert len(program.statements) == 40
    many = "\n".join(f"item {n} [edit]" for n in range(80))
    answer = derive(many, many.replace(" [edit]", ""))
    assert answer == NoProgram("more than 64 different strings to edit")


def test_a_statement_never_changes_an_edited_line_again():
    program = derive("kk qq\npp qq rr\nqq rr zz", "kk\npp rr\nrr zz")
    assert [str(s) for s in program.statements] == [
        'normalize(source_str=" qq", target_str="")',
        'normalize(source_str="qq rr ", target_str="rr ")',
    ]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ("a b", f"a {'b' * 300}", "no string was found"),  # above max_growth
        ("a \ud800 b", "a b", "no string was found"),
        ("", "a", "no string was found"),
        ("  ", "a", "no string was found"),
    ],
)
def test_no_program_is_found(before, after, reason):
    for dialect in ("prox", "refinex"):
        answer = derive(before, after, dialect)
        assert isinstance(answer, NoProgram)
        assert reason in answer.reason


def test_long_lines_are_fast():
    line = "word " * 20_000
    assert isinstance(derive(f"{line}x {line}", f"{line}y {line}"), Program)
    lines = [f"{'same ' * 400}{number}" for number in range(100)]
    assert isinstance(derive("\n".join(lines), "\n".join([*lines[7:], "more"])), Program)


def test_large_texts_are_aligned_at_unique_common_lines(monkeypatch):
    chooser = random.Random(1)
    lines = [f"line {n}" if n % 3 else "again" for n in range(400)]
    kept = [line for line in lines if chooser.random() < 0.7]
    kept[100] += " more"
    monkeypatch.setattr(align, "MAX_CELLS", 2000)
    before, after = "\n".join(lines), "\n".join(kept)
    program = derive(before, after, "ultrax")
    assert isinstance(program, Program)
    assert execute(before, program, "ultrax").text == after
    same = derive("\n".join(["x"] * 99), "\n".join(["x"] * 98))
    assert isinstance(same, NoProgram)
    assert "use windows" in same.reason


words = st.sampled_from(
    ["Home", "a", "a,b", "(x)", "it's", '"q"', "\\alpha", "\\\\", "点击", "é", ""]
)
documents = st.lists(st.lists(words, max_size=5).map(" ".join), min_size=1, max_size=8)


@given(documents, st.data(), st.sampled_from([*DIALECTS]))
def test_a_program_is_always_found_for_removed_lines(lines, data, dialect):
    keep = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    before = "\n".join(lines)
    after = "\n".join(line for line, kept in zip(lines, keep, strict=True) if kept)
    program = derive(before, after, dialect)
    assert isinstance(program, Program)
    result = execute(before, program, dialect)
    assert result.rejected == {}
    same = significant(result.text, dialect) == significant(after, dialect)
    assert same or (result.reason == "emptied" and not after.strip())


@given(documents, documents, st.sampled_from([*DIALECTS]))
def test_a_derived_program_produces_the_target(lines, other, dialect):
    before, after = "\n".join(lines), "\n".join(other)
    program = derive(before, after, dialect)
    if isinstance(program, Program):
        result = execute(before, program, dialect)
        if result.reason == "emptied":
            assert not after.strip()
        else:
            assert significant(result.text, dialect) == significant(after, dialect)
        assert result.rejected == {}
    else:
        assert program.reason


@pytest.mark.parametrize("dialect", ["prox", "refinex"])
def test_lines_are_removed_where_the_cheapest_alignment_is_no_solution(dialect):
    before = "Home\na Home a Home Home\n\n\na Home a Home Home\n"
    after = "a Home a Home Home\na Home a Home Home"
    program = derive(before, after, dialect)
    assert isinstance(program, Program)
    assert execute(before, program, dialect).text == after
