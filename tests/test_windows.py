from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.refine.windows import (
    CALL_CHARS,
    CALL_LINES,
    MAX_CHARS_PER_TOKEN,
    Limits,
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

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        return [0] * len(text)

    def head(self, text: str, tokens: int) -> str:
        return text[:tokens]

    def decode(self, ids: Sequence[int]) -> str:
        return "x" * len(ids)

    def special_id(self, token: str) -> int:
        return 1

    def chat_frame(self, system: str | None, arguments: object, *, merge: bool = False) -> str:
        return "{message}"


def packed(lines: Sequence[str], tokens: Sequence[int], limit: int, **limits: Any) -> list[Window]:
    return pack(lines, tokens, Limits(limit, **limits))


def test_blank_windows() -> None:
    assert packed([], [], 20) == []
    assert packed([""], [6], 20) == [Window(0, 1, 6, blank=True)]
    assert packed([" ", "\t", "\u3000"], [2, 2, 2], 12) == [Window(0, 3, 6, blank=True)]
    assert not packed(["", "x"], [1, 2], 20)[0].blank
    # The lines before a window do not make it worth a question.
    last = packed(["x", "y", " "], [5, 5, 5], 10, overlap=0.5)[-1]
    assert last == Window(2, 3, 10, overlap=1, blank=True)


def test_a_line_over_the_limit_is_a_window_of_its_own() -> None:
    assert packed(["a", "b" * 30, "c", "d"], [7, 36, 7, 7], 20) == [
        Window(0, 1, 7),
        Window(1, 2, 36),
        Window(2, 4, 14),
    ]


def test_all_limits_hold() -> None:
    lines, tokens, chars = ["x"] * 9, [1] * 9, [3, 3, 9, 1, 1, 1, 1, 1, 1]

    def ends(**limits: Any) -> list[int]:
        return [window.stop for window in pack(lines, tokens, Limits(**limits), chars)]

    assert ends(tokens=4) == [4, 8, 9]
    assert ends(tokens=9, lines=5) == [5, 9]
    assert ends(tokens=9, chars=9) == [2, 3, 9]
    assert ends(tokens=4, chars=9, lines=3) == [2, 3, 6, 9]


def test_windows_show_the_end_of_the_window_before() -> None:
    windows = packed(["x"] * 20, [10] * 20, 80, overlap=0.25)
    assert [(w.start, w.stop, w.overlap) for w in windows] == [
        (0, 8, 0),
        (8, 14, 2),
        (14, 20, 2),
    ]
    # The first 75 and the last 25 of 100 characters, the line feeds between lines included.
    chars = [10] * 20
    windows = pack(["x"] * 20, [1] * 20, Limits(1000, chars=100, overlap=0.25), chars)
    assert [(w.start, w.stop, w.overlap) for w in windows] == [(0, 10, 0), (10, 18, 2), (18, 20, 2)]


def test_the_next_line_is_more_important_than_context() -> None:
    assert packed(["x"] * 4, [40, 20, 20, 75], 80, overlap=0.5) == [
        Window(0, 3, 80),
        Window(3, 4, 75),
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


def test_lines_and_sizes_must_have_the_same_length() -> None:
    with pytest.raises(ValueError, match="1 and 0 sizes for 2 lines"):
        packed(["a", "b"], [1], 5)
    with pytest.raises(ValueError, match="2 and 1 sizes for 2 lines"):
        pack(["a", "b"], [1, 2], Limits(5, chars=5), [1])


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), max_size=60),
    st.integers(1, 40),
    st.none() | st.integers(1, 40),
    st.none() | st.integers(1, 8),
    st.sampled_from([0.0, 0.2, 0.5]),
)
def test_windows_cover_all_lines_and_are_greedy(
    sizes: list[tuple[int, int]],
    max_tokens: int,
    max_chars: int | None,
    max_lines: int | None,
    overlap: float,
) -> None:
    tokens, chars = [a for a, _ in sizes], [b for _, b in sizes]
    limits = Limits(max_tokens, max_lines, max_chars, overlap)

    def fits(first: int, stop: int) -> bool:
        return (
            sum(tokens[first:stop]) <= max_tokens
            and (max_chars is None or sum(chars[first:stop]) <= max_chars)
            and (max_lines is None or stop - first <= max_lines)
        )

    windows = pack(["x"] * len(sizes), tokens, limits, chars)
    assert [n for w in windows for n in range(w.start, w.stop)] == list(range(len(sizes)))
    measure = tokens if max_chars is None else chars
    for before, window in pairwise([None, *windows]):
        assert window is not None
        first = window.first_shown
        assert window.tokens == sum(tokens[first : window.stop])
        assert fits(first, window.stop) or (window.stop - window.start, window.overlap) == (1, 0)
        assert window.stop == len(sizes) or not fits(first, window.stop + 1)
        if before:
            shared = sum(measure[first : window.start])
            assert shared <= overlap * sum(measure[before.first_shown : before.stop])
            assert before.first_shown < first <= before.stop
