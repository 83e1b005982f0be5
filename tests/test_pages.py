"""Lines as a model reads them: long ones in pieces, and with the sizes of the public code."""

import io
import json
import os
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import regex
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.engines.base import Tokenizer
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.refine.sentences import split_line
from proxhpc.refine.stage import PageRequests, StageRunner
from proxhpc.refine.windows import LineTokens
from proxhpc.spec.sections import Stage
from test_stage import CharacterTokenizer, ScriptedEngine, keep

BRAIN = (
    'The brain weighs 3.5 pounds. It is (mostly) water! Is it? "Yes... and no."  Dr. Foo, '
    "i.e. the author, says so."
)


@pytest.mark.parametrize(
    ("line", "pieces"),
    [
        (
            BRAIN,
            [
                "The brain weighs 3.5 pounds. ",
                "It is (mostly) water! ",
                "Is it? ",
                '"Yes... and no."  ',
                "Dr. ",
                "Foo, i.e. the author, says so.",
            ],
        ),
        (
            "脑重约三磅。它由细胞组成！「是吗？」是的。",
            ["脑重约三磅。", "它由细胞组成！", "「是吗？」", "是的。"],
        ),
        ("नमस्ते। आप कैसे हैं॥ ठीक", ["नमस्ते। ", "आप कैसे हैं॥ ", "ठीक"]),
        ("كيف حالك؟ أنا بخير۔ شكرا", ["كيف حالك؟ ", "أنا بخير۔ ", "شكرا"]),
        ("one line\rof a page\u2028and another", ["one line\r", "of a page\u2028", "and another"]),
        ("no stop at all", ["no stop at all"]),
        ("Is it? \u0301e. No.", ["Is it? \u0301e. ", "No."]),  # the accent is on the blank
    ],
)
def test_sentences(line: str, pieces: list[str]) -> None:
    assert split_line(line, 1, 100) == pieces
    assert split_line(line, 1000, 1000) == [line]


def test_long_sentences_are_split_at_clauses_then_words_then_graphemes() -> None:
    assert split_line("Home | About us | Contact, or write", 20, 20) == [
        "Home | About us | ",
        "Contact, or write",
    ]
    assert split_line("see the brown fox jump over the dog", 20, 20) == [
        "see the brown fox ",
        "jump over the dog",
    ]
    assert split_line("e\u0301" * 9, 5, 5) == ["e\u0301" * 2] * 4 + ["e\u0301"]
    family = "\U0001f468\u200d\U0001f469\u200d\U0001f467"  # five characters that are one to readers
    assert split_line(family * 3, 1, 3) == [family] * 3


def test_short_sentences_are_joined() -> None:
    assert split_line("Yes. No. Maybe. A longer sentence than that. No.", 16, 100) == [
        "Yes. No. Maybe. ",
        "A longer sentence than that. ",
        "No.",
    ]


ALPHABET = st.sampled_from(
    [
        *"ab .!?,;)|。！、」\r\u2028",
        "\u0301",
        "\u200d",
        "\U0001f468",
        "\U0001f1e9",
        "각",
        "\u1100",
        "\u0600",
        "नि",
    ]
)


@given(st.lists(ALPHABET, max_size=60).map("".join), st.integers(1, 30), st.integers(1, 30))
def test_pieces_are_whole_graphemes_that_give_back_the_line(
    line: str, joined: int, longest: int
) -> None:
    pieces = split_line(line, min(joined, longest), longest)
    assert "".join(pieces) == line
    ends, at = {match.end() for match in regex.finditer(r"\X", line)}, 0
    for piece in pieces:
        at += len(piece)
        assert at in ends
        assert len(piece) <= longest or regex.fullmatch(r"\X", piece)


@pytest.mark.parametrize("text", ["...", "!)", "。)", " ", "\r", ", ", "\u0301", "e\u0301"])
def test_splitting_takes_linear_time(text: str) -> None:
    line = text * (600_000 // len(text)) + "\u0301"
    assert "".join(split_line(line, 100, 400)) == line  # quadratic: minutes


# --- pages of a stage ----------------------------------------------------------------------


def requests(
    text: str, tokenizer: Tokenizer, *, policy: AnyPolicy | None = None, **stage: Any
) -> PageRequests:
    keys = {"level": "chunk", "model": "a/b", "prompt": "prox-plain", "window_tokens": 200}
    engine = ScriptedEngine(keep, context=8000)
    engine.tokenizer = tokenizer
    runner = StageRunner(Stage.model_validate(keys | stage), engine, policy or Policy())
    tokens = LineTokens(tokenizer, text, runner.window_tokens)
    return runner.window_requests(tokens.lines, tokens.counts)


def test_only_lines_that_do_not_fit_are_split() -> None:
    fits = "word. " * 32 + "."  # 193 characters, with number and line feed 199
    assert requests(f"Home\n{fits}\n", CharacterTokenizer()).cuts == ()
    longer = f"{fits} It is."
    text = f"Home\n{longer}\nEnd"
    found = requests(text, CharacterTokenizer())
    assert found.cuts
    shown = [line for item in found.windows for line in item.request.lines]  # type: ignore[union-attr]
    bounds = [0, 5, *found.cuts, text.index("\nEnd") + 1, len(text)]
    assert shown == [text[a:b].rstrip() for a, b in pairwise(bounds)]
    sizes = [len(line) for line in shown]
    assert max(sizes) <= 200 // 4
    assert not any(item.flag for item in found.windows)


def test_a_window_of_characters_splits_longer_lines() -> None:
    text = "The brain is here. " * 100
    found = requests(text, CharacterTokenizer(), window_tokens=5000, window_chars=400)
    assert all(cut % 19 == 0 for cut in found.cuts)
    for item in found.windows:
        assert item.request
        assert len(CharacterTokenizer().decode(item.request.prompt)) <= 400 + len("[doc]\n[/doc]")
        assert len(item.request.lines) > 3


def test_blank_lines_that_are_skipped_take_no_room() -> None:
    text = "\n\n \n".join(["x" * 30] * 12)
    found = requests(text, CharacterTokenizer(), blank_lines="skipped")
    # Of 36 characters each, with number and line feed, five fit.
    assert [len(item.request.lines) for item in found.windows if item.request] == [5, 5, 2]
    assert (
        requests(text, CharacterTokenizer(), window_chars=120, blank_lines="skipped")
        .windows[0]
        .window.tokens
        == 3 * 36
    )


def test_dense_parts_of_a_line_are_split_again() -> None:
    class Bytes(CharacterTokenizer):
        def count(self, lines: Sequence[str]) -> list[int]:
            return [len(line.replace("a", "").encode()) for line in lines]

    found = requests("a" * 100_000 + "漢" * 400, Bytes())
    assert max(item.window.tokens for item in found.windows) <= 200
    assert [item.flag for item in found.windows if item.flag] == []


def test_a_grapheme_that_no_window_can_hold_is_not_sent() -> None:
    found = requests("Home. " * 60 + "e" + "\u0301" * 9000, CharacterTokenizer())
    assert [item.flag for item in found.windows if item.flag] == ["line_too_long"]
    assert all(item.request for item in found.windows if not item.flag)


def test_replication_splits_no_line() -> None:
    text = "Home\n" + "word. " * 900 + "\n" + "word. " * 2000
    found = requests(text, CharacterTokenizer(), policy="reference")
    assert found.cuts == ()
    assert [item.flag for item in found.windows] == ["", "", "line_too_long"]
    assert found.windows[1].request, "a line longer than a window is sent if the model can read it"


def ranges(found: PageRequests) -> list[tuple[int, int]]:
    return [(item.window.start, item.window.stop) for item in found.windows]


def test_replication_counts_lines_as_the_public_code_does() -> None:
    """It tokenizes a line with its number, and each with the token that starts a text."""

    class Joining(CharacterTokenizer):
        bos = (1,)

        def count(self, lines: Sequence[str]) -> list[int]:
            return [len(line.replace("]a", "]")) for line in lines]

    text = "\n".join(["a" * 5] * 8)  # 5 + 4 tokens and one more for the start
    assert ranges(requests(text, Joining(), policy="reference", window_tokens=36)) == [
        (0, 3),
        (3, 6),
        (6, 8),
    ]
    # Apart, and with a token for the line feed, a line has 11.
    assert ranges(requests(text, Joining(), window_tokens=32)) == [(0, 2), (2, 4), (4, 6), (6, 8)]
    blank = requests(" \n\n" + "a" * 20, Joining(), policy="reference", window_tokens=30)
    assert [bool(item.request) for item in blank.windows] == [True, True]


@pytest.mark.skipif("PROXHPC_DATA" not in os.environ, reason="PROXHPC_DATA names no windows")
def test_windows_of_the_public_code() -> None:
    pytest.importorskip("transformers")
    data = Path(os.environ["PROXHPC_DATA"])
    tokenizer = HFTokenizer(data / "llama_tokenizer")
    texts = {row["id"]: row["text"] for row in rows(data / "corpus_sample.jsonl.zst")}
    several = 0
    for case in rows(data / "prox_windows_cases.jsonl.zst"):
        text = case["text"] if "text" in case else texts[case["id"]]
        keys = {"window_tokens": case["limit"], "prompt": "prox-llama2"}
        found = requests(text, tokenizer, policy="reference", **keys)
        assert ranges(found) == [(start, stop) for start, stop in case["windows"]]
        several += len(found.windows) > 1
    assert several > 500


def rows(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from map(json.loads, io.TextIOWrapper(zstandard.open(file), "utf-8"))
