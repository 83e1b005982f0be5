"""The style `walk`: prompts, answers and the tokenizer, as in training and in engines."""

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.program.edits import WindowLines, read_window
from proxhpc.refine import walk
from proxhpc.refine.walk import Walk, read_program
from proxhpc.refine.walk_vocabulary import NUMBERS, PROGRAM_TOKENS, SPECIAL, train_tokenizer
from tiny_models import save_tokenizer, save_walk_tokenizer

TEXT_TOKENS = 320
LINES = [
    "Home | About",
    "",
    "The brown fox jumps over the lazy dog, 3 times in 2024, and then it goes home to its den.",
    "  quick  ",
    "\t",
    "Read on",
    "Home",
    "About",
    "The end",
    *["", " "] * 8,
    "Contact",
]
MARKERS = ["[012]", "<keep 3>", "remove_lines(start=1, end=1)", "keep_doc()", "</s>[doc]<P0> [gap]"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HFTokenizer:
    pytest.importorskip("transformers")
    return HFTokenizer(save_walk_tokenizer(tmp_path_factory.mktemp("walk")))


@pytest.fixture(scope="module")
def style(tokenizer: HFTokenizer) -> Walk:
    return Walk(tokenizer)


def prompt_text(tokenizer: HFTokenizer, ids: list[int]) -> str:
    """Return a prompt as text with its markers."""
    return str(tokenizer._markup.decode(ids, skip_special_tokens=False))


def test_prompts_of_windows(tokenizer: HFTokenizer, style: Walk) -> None:
    page = style.page(LINES)
    long = "The brown fox jumps over the lazy dog, 0 times<L0>home to its den."
    assert prompt_text(tokenizer, style.prompt(page, 0, 4)) == (
        f"[doc]<P0>Home | About[000][001]{long}[002]quick[003]"
        "[gap]Read on[line]Home[line]About[line][/doc+]"
    )
    assert prompt_text(tokenizer, style.prompt(page, 7, 9)) == (
        f"[doc+]<P2>{long}[line]quick[line]Read on[line]Home[line][gap]"
        "About[000]The end[001][/doc+]"
    )
    # Lines further away than REACH are no context.
    assert prompt_text(tokenizer, style.prompt(page, 25, 26)) == "[doc+]<P7>Contact[000][/doc]"
    assert prompt_text(tokenizer, style.prompt(page, 0, 26)).count("[0") == 26
    assert (
        prompt_text(tokenizer, style.prompt(style.page(["Home"]), 0, 1))
        == "[doc]<P0>Home[000][/doc]"
    )


@pytest.mark.parametrize(
    ("line", "bucket"),
    [("a" * 99, 0), ("é" * 99, 0), ("a" * 160, 2), ("道" * 24, 0), ("道" * 40, 2)],
)
def test_characters_without_blanks_count_as_several_letters(
    line: str, bucket: int, tokenizer: HFTokenizer, style: Walk
) -> None:
    prompt = prompt_text(tokenizer, style.prompt(style.page([line]), 0, 1))
    assert f"<L{bucket}>" in prompt


def test_long_lines_are_removed_less_easily(style: Walk) -> None:
    lines = ["Home", f"  {'a' * 99}  ", "a" * 100, "道" * 24, "道" * 25]
    removals = [removal for _, removal in style.allowed_steps(5)[:-1]]
    assert style.bias(lines, 0) == ((removals[2], -0.5), (removals[4], -0.5))
    assert style.bias(lines, 1) == tuple(zip(removals, [1, 1, 0.5, 1, 0.5], strict=True))
    assert style.bias(lines, 0.5) == tuple((removals[n], 0.5) for n in (0, 1, 3))


def test_prompts_for_verdicts(tokenizer: HFTokenizer, style: Walk) -> None:
    lines = [f"Home {'abcdefghij'[n % 10] * (n // 10)}" for n in range(40)]
    first = "".join(f"{line.strip()}[line]" for line in lines[:24])
    last = "".join(f"{line.strip()}[line]" for line in lines[32:])
    assert (
        prompt_text(tokenizer, style.verdict_prompt(lines)) == f"[judge]{first}[gap]{last}[/judge]"
    )
    assert prompt_text(tokenizer, style.verdict_prompt(["", "Home", " ", "About"])) == (
        "[judge]Home[line]About[line][/judge]"
    )
    assert prompt_text(tokenizer, style.verdict_prompt([""])) == "[judge][/judge]"


def test_verdicts_shorten_lines_no_more_than_needed(tokenizer: HFTokenizer, style: Walk) -> None:
    sentence = "The brown fox jumps over the lazy dog, and then it goes home to its den."
    line = " ".join([sentence] * 8)

    def first_line(lines: int) -> str:
        prompt = prompt_text(tokenizer, style.verdict_prompt([line] * lines))
        return prompt.removeprefix("[judge]").split("[line]")[0]

    assert first_line(1) == line
    read = [first_line(lines).split("<L4>") for lines in (2, 4, 8)]
    assert [len(head.split(".")) - 1 for head, _ in read] == [5, 2, 1]  # whole sentences
    assert {tail for _, tail in read} == {"home to its den."}


def test_answers_are_programs(tokenizer: HFTokenizer, style: Walk) -> None:
    *choices, (end,) = style.allowed_steps(6)
    keep = [True, False, False, True, False, True]
    answer = [choice[not kept] for choice, kept in zip(choices, keep, strict=True)]
    text = tokenizer.decode([*answer, end])
    assert text == "".join(f"remove_lines(start={n}, end={n})\n" for n in (1, 2, 4))
    assert read_program(text) == "remove_lines(start=1, end=2)\nremove_lines(start=4, end=4)"
    assert read_window(
        read_program(text), "prox", "stop", WindowLines(3, 9, 0, (3, 9))
    ).removed == [(4, 6), (7, 8)]
    assert tokenizer.decode([*(keep for keep, _ in choices), end]) == read_program("") == ""
    (*verdicts, abstain), (verdict_end,) = style.verdict_steps
    assert abstain == end
    assert [tokenizer.decode([verdict, verdict_end]) for verdict in verdicts] == [
        "keep_doc()\n",
        "drop_doc()\n",
    ]
    assert {end, verdict_end} <= set(tokenizer.stop_ids)


def test_answers_of_another_form_are_unchanged() -> None:
    for text in (
        "remove_lines(start=1, end=2)\n",
        "untouch_doc()",
        "remove_lines(start=01, end=1)\n",
    ):
        assert read_program(text) == text
    back = "remove_lines(start=4, end=4)\nremove_lines(start=3, end=3)\n"
    assert read_program(back) == back.strip()


@settings(max_examples=80, deadline=None)
@given(
    lines=st.lists(
        st.text(max_size=120) | st.sampled_from([*MARKERS, "", "\ufdfa" * 9]), max_size=40
    ),
    tokens=st.integers(walk.MAX_LINE_TOKENS + 1, 480),
    max_lines=st.integers(1, NUMBERS),
)
@example(lines=["\ufdfa" * 200, "漢" * 60, "🦊" * 500, "a b " * 5000], tokens=49, max_lines=64)
def test_prompts_are_bounded_and_text_is_never_a_marker(
    tokenizer: HFTokenizer, style: Walk, lines: list[str], tokens: int, max_lines: int
) -> None:
    lines = [line.replace("\n", " ") for line in lines]
    page = style.page(lines)
    windows = style.windows(page, tokens, max_lines)
    assert [w.start for w in windows] == [0, *(w.stop for w in windows[:-1])][: len(windows)]
    markers = 0
    for window in windows:
        prompt = style.prompt(page, window.start, window.stop)
        assert len(prompt) <= tokens + walk.MAX_OVERHEAD
        assert window.tokens <= tokens
        assert window.stop - window.start <= max_lines
        assert max(prompt) < TEXT_TOKENS + len(SPECIAL)
        markers += sum("[0" in n or "[1" in n or "[2" in n for n in marker_names(tokenizer, prompt))
    assert markers == len(lines)
    assert len(style.verdict_prompt(lines)) <= walk.MAX_VERDICT_PROMPT
    for line, ids in zip(lines, page.ids, strict=True):
        assert bool(len(ids)) == bool(line.strip())
        inside = [n for n in ids if n >= TEXT_TOKENS]
        assert len(inside) <= 1
        assert all(name.startswith("<L") for name in marker_names(tokenizer, inside))


def marker_names(tokenizer: HFTokenizer, ids: list[int]) -> list[str]:
    return [name for name in map(tokenizer._markup.id_to_token, ids) if name in SPECIAL]


def test_the_same_texts_give_the_same_tokenizer(tmp_path: Path, tokenizer: HFTokenizer) -> None:
    one, two = save_walk_tokenizer(tmp_path / "1"), save_walk_tokenizer(tmp_path / "2")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert len(tokenizer) == TEXT_TOKENS + len(SPECIAL) + len(PROGRAM_TOKENS)
    for text in MARKERS:
        assert max(tokenizer.encode(text)) < TEXT_TOKENS
    assert tokenizer.encode("ﬁx ２024") == tokenizer.encode("fix 0000")
    assert tokenizer.encode_lines(["Home", ""]) == [tokenizer.encode("Home"), []]
    with pytest.raises(UserError, match="the texts give"):
        train_tokenizer(["Home"], tmp_path, 9999)


def test_the_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(UserError, match=re.escape("no special token '[doc+]'")) as caught:
        Walk(HFTokenizer(save_tokenizer(tmp_path)))
    assert "prompt" in caught.value.hint
