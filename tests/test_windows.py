from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.refine.windows import (
    CALL_CHARS,
    CALL_LINES,
    MAX_CHARS_PER_TOKEN,
    LineTokens,
    Window,
    pack,
)


class CharacterTokenizer:
    """A tokenizer with one token a character; records its calls."""

    bos: Sequence[int] = ()

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def count(self, lines: Sequence[str]) -> list[int]:
        self.calls.append(list(lines))
        return [len(line) for line in lines]

    def encode(self, text: str) -> list[int]:
        return [0] * len(text)

    def head(self, text: str, tokens: int) -> str:
        return text[:tokens]

    def decode(self, ids: Sequence[int]) -> str:
        return "x" * len(ids)

    def special_id(self, token: str) -> int:
        return 1

    def chat(self, system: str | None, user: str, arguments: object = None) -> list[int]:
        return self.encode(user)


def test_blank_windows() -> None:
    assert pack([], [], 20) == []
    assert pack([""], [5], 20) == [Window(0, 1, 6, blank=True)]
    assert pack([" ", "\t", "\u3000"], [1, 1, 1], 12) == [Window(0, 3, 6, blank=True)]
    assert not pack(["", "x"], [0, 1], 20)[0].blank


def test_a_line_over_the_budget_is_a_window_of_its_own() -> None:
    assert pack(["a", "b" * 30, "c", "d"], [6, 35, 6, 6], 20) == [
        Window(0, 1, 7),
        Window(1, 2, 36, too_long=True),
        Window(2, 4, 14),
    ]


def test_each_line_is_counted_once() -> None:
    tokenizer = CharacterTokenizer()
    tokens = LineTokens(tokenizer, "ab\n\nc", 100)
    assert (tokens.counts, tokens.total) == ([2, 0, 1], 5)
    assert tokens.count_text("ab\nc") == 4
    assert tokens.count_text("ab\nnew\nnew\n") == 11
    assert tokens.count_text("new") == 3
    assert tokenizer.calls == [["ab", "", "c"], ["new", "new"]]


def test_a_huge_line_is_counted_in_pieces() -> None:
    tokenizer = CharacterTokenizer()
    piece = 2 * MAX_CHARS_PER_TOKEN
    tokens = LineTokens(tokenizer, "a\n" + "x" * (2 * piece + 7) + "\n", 2)
    assert tokens.counts == [1, 2 * piece + 7, 0]
    assert max(map(len, tokenizer.calls[0])) == piece
    assert len(tokenizer.calls) == 1


@pytest.mark.parametrize(("line", "number"), [("a", 20_000), ("word " * 1000, 1000)])
def test_calls_of_the_tokenizer_are_bounded(line: str, number: int) -> None:
    tokenizer = CharacterTokenizer()
    tokens = LineTokens(tokenizer, "\n".join([line] * number), 100)
    assert tokens.counts == [len(line)] * number
    assert len(tokenizer.calls) > 2
    assert max(map(len, tokenizer.calls)) <= CALL_LINES
    assert max(sum(map(len, call)) for call in tokenizer.calls) < CALL_CHARS + len(line)


def test_a_budget_of_zero_is_possible() -> None:
    assert LineTokens(CharacterTokenizer(), "abc\n\nd", 0).counts == [3, 0, 1]


def test_without_a_tokenizer_tokens_are_estimated_from_bytes() -> None:
    tokens = LineTokens(None, "abcde\n\n漢字", 0)
    assert (tokens.counts, tokens.total, tokens.count_text("漢字")) == ([2, 0, 2], 4, 2)


def test_lines_and_counts_must_have_the_same_length() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack(["a", "b"], [1], 5)


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 40))
def test_windows_cover_all_lines_and_are_greedy(counts: list[int], budget: int) -> None:
    lines = ["x"] * len(counts)
    windows = pack(lines, counts, budget)
    assert [n for w in windows for n in range(w.start, w.stop)] == list(range(len(counts)))
    for window, following in zip(windows, [*windows, None][1:], strict=True):
        cost = sum(counts[window.start : window.stop]) + window.stop - window.start
        assert window.tokens == cost
        assert window.too_long == (cost > budget)
        assert not window.too_long or window.stop - window.start == 1
        if following is not None:
            assert cost + counts[following.start] + 1 > budget
