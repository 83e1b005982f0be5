from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.refine.windows import MAX_CHARS_PER_TOKEN, Window, cut_windows, pack


class Letters:
    """One token a character; remembers its calls."""

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

    def special(self, token: str) -> int:
        return 1

    def chat(self, system: str | None, user: str) -> list[int]:
        return self.encode(user)


def test_a_line_costs_its_number_its_text_and_its_end() -> None:
    # "[000]ab" and a line end: 8 tokens.
    assert cut_windows(Letters(), ["ab", "ab", "ab"], 16) == [Window(0, 2, 16), Window(2, 3, 8)]
    assert cut_windows(Letters(), ["ab", "ab", "ab"], 15) == [
        Window(0, 1, 8),
        Window(1, 2, 8),
        Window(2, 3, 8),
    ]


def test_numbers_over_999_cost_what_they_cost() -> None:
    lines = ["ab"] * 1001
    assert sum(w.tokens for w in cut_windows(Letters(), lines, 80)) == 8 * 1001 + 1
    restarting = cut_windows(Letters(), lines, 80, numbering="window")
    assert sum(w.tokens for w in restarting) == 8 * 1001


def test_a_line_over_the_budget_stands_alone() -> None:
    windows = cut_windows(Letters(), ["a", "b" * 30, "c", "d"], 20)
    assert windows == [
        Window(0, 1, 7),
        Window(1, 2, 36, too_long=True),
        Window(2, 4, 14),
    ]


def test_a_huge_line_is_not_tokenised() -> None:
    tokenizer = Letters()
    huge = "x" * (20 * MAX_CHARS_PER_TOKEN + 1)
    windows = cut_windows(tokenizer, ["a", huge, "b"], 20)
    assert [(w.start, w.stop, w.too_long) for w in windows] == [
        (0, 1, False),
        (1, 2, True),
        (2, 3, False),
    ]
    assert tokenizer.calls == [["[000]a", "[001]", "[002]b"]]


def test_empty_documents() -> None:
    assert cut_windows(Letters(), [], 20) == []
    assert cut_windows(Letters(), [""], 20) == [Window(0, 1, 6, blank=True)]
    assert cut_windows(Letters(), [" ", "\t", "\u3000"], 12)[0].blank
    assert not cut_windows(Letters(), ["", "x"], 20)[0].blank


def test_counts_belong_to_lines() -> None:
    with pytest.raises(ValueError, match="zip"):
        pack(["a", "b"], [1], 5)


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 40))
def test_windows_tile_the_lines_and_are_greedy(counts: list[int], budget: int) -> None:
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
