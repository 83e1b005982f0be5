"""The form in which texts are compared, words of all scripts, and values of `by` and `within`."""

import re
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from proxhpc.dedup.hashes import survivor_rank, within_key
from proxhpc.dedup.minhash import similarity_bounds
from proxhpc.dedup.shingles import Folded, fold, word_hashes
from proxhpc.program.execute import UNSPACED
from proxhpc.spec.sections import Dedup, Near

MARKS = (
    "Ae1_ é\u0301\u0327日ไ\n \u00a0.’हि\u094dक\u0ba4\u0bae\u0bbf"
    "بِ\u0651אָ\u0345\u1100\u1161\u11a8ΣςÅ\U0001f600"
)


def decoded(folded: Folded) -> str:
    return folded.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def lowered(text: str) -> str:
    """Each character in lower case: the first of several, and one form of sigma."""
    return "".join(char.replace("ς", "σ").lower()[:1] for char in text)


def words(text: str) -> list[str]:
    """Runs of letters, marks, digits and "_", and each character of unspaced scripts."""
    kinds = "".join(
        "u"
        if UNSPACED.match(c)
        else "w"
        if c == "_" or unicodedata.category(c)[0] in "LNM"
        else " "
        for c in text
    )
    return [text[match.start() : match.end()] for match in re.finditer("w+|u", kinds)]


@settings(deadline=None)
@given(st.text(st.sampled_from(MARKS), max_size=12) | st.text(max_size=12))
def test_a_folded_text_is_composed_lower_case_and_squeezed(text: str) -> None:
    text = text.replace("\0", "")
    expected = " ".join(lowered(unicodedata.normalize("NFC", text)).split())
    folded = fold(text)
    assert decoded(folded) == expected
    assert (folded.dtype == np.uint8) == expected.isascii()
    assert len(word_hashes(folded)) == len(words(expected))


def test_all_white_space_is_alike_and_case_of_all_scripts() -> None:
    spaces = [c for c in map(chr, range(0x110000)) if c.isspace()]
    for between in spaces, [c * 2 for c in spaces]:
        text = "".join(f"é{some}x" for some in between)
        assert decoded(fold(f" {text}\t")) == " ".join(text.split())
    assert fold("CAFE\u0301\u00a0X").data == fold("caf\u00e9 x").data
    assert fold("a\u00a0b").data == fold("A  b").data  # though only one has other characters
    assert fold("ΟΔΟΣ ÅÇ").data == fold("οδος åç").data
    assert not len(fold(" \n"))
    assert len(fold("a\rb")) == 3


def test_every_character_that_composition_changes_is_composed() -> None:
    """Whether a text needs it is known from its single characters."""
    for code in range(0x80, 0x30000):  # no higher one composes
        char = chr(code)
        for base in "e\u1100\u0915":
            composed = unicodedata.normalize("NFC", base + char)
            if composed != base + char:
                assert decoded(fold(base + char)) == " ".join(lowered(composed).split())


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (
            "लड़का बाज़ार जाता था और वह अच्छा खाना बनाता था",
            "लड़की बाज़ार जाती थी और वह अच्छी खाने बनाती थी",
        ),
        ("வந்தான் சென்றான் தமிழ்", "வந்தாள் சென்றாள் தமிழ்"),
        ("كَتَبَ كُتُب", "كُتِبَ كَتَب"),
        ("בָּרָא אֱלֹהִים", "בָּרֵא אֱלֹהִים"),
    ],
)
def test_marks_belong_to_words(text: str, other: str) -> None:
    left, right = word_hashes(fold(text)), word_hashes(fold(other))
    assert len(left) == len(right) == len(text.split())
    differ = [a != b for a, b in zip(text.split(), other.split(), strict=True)]
    assert (left != right).tolist() == differ
    assert any(differ)


@pytest.mark.parametrize(
    "ascending",
    [
        ["1999", "2023-05-18", "20240101", "20240131T120000Z", "2024-02", "2025"],
        [2022, "2023-05-18", 2024, "2024-01-02"],
        ["20240101115959", "2024-01-01 12:00:00 UTC", "2024-01-01T13:30:00+01:00"],
        ["Tue, 14 Nov 2023 12:45:26 GMT", "2023-11-14T12:45:27Z", "9999-12-31"],
        ["9", "10", "1500", "1_600", "20241399", "3e9"],  # none is a date
    ],
)
def test_dates_months_and_years_are_in_order(ascending: list[Any]) -> None:
    for keep, order in (("highest", 1), ("lowest", -1)):
        dedup = Dedup.model_validate({"keep": keep, "by": "v"})
        ranks = [survivor_rank(dedup, {"v": value}) for value in ascending]
        assert ranks == sorted(ranks)[::order]
        assert len({*ranks, 0}) == len(ascending) + 1


@pytest.mark.parametrize(
    "value",
    ["CC-MAIN-2024-10", "9999-12-31T23:59:59-10:00", "1 Jan 2024 99999", "2024-13", 10**400],
)
def test_what_is_neither_number_nor_date_has_no_rank(value: Any) -> None:
    assert survivor_rank(Dedup(keep="highest", by="v"), {"v": value}) == 0


def test_values_of_within() -> None:
    dedup = Dedup(within="about.dump")
    keys = [
        within_key(dedup, fields)
        for fields in ({"about": {"dump": "1"}}, {"about.dump": 1}, {"about": {"dump": "2"}}, {})
    ]
    assert keys[0] == keys[1] != keys[2] != 0
    assert keys[3] == within_key(dedup, {"about": {"dump": ["1"]}}) == 0
    assert within_key(Dedup(), {"about": {"dump": "1"}}) == 0


def test_equal_and_disjoint_signatures_have_exact_bounds() -> None:
    for slots in (*range(1, 600), 3 * 64, 512 * 64):
        (_, high), (low, _) = (
            (float(bound[0]) for bound in similarity_bounds(np.array([share]), slots))
            for share in (1.0, 0.0)
        )
        assert (low, high) == (0.0, 1.0)


@pytest.mark.parametrize("threshold", [0.02, 0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])
def test_bands_follow_the_threshold(threshold: float) -> None:
    near = Near(threshold=threshold)
    assert near.compared(threshold) >= 0.98
    if near.rows < 64:  # no more rows would do
        rows = near.rows + 1
        assert Near(bands=192 // rows, rows=rows).compared(threshold) < 0.98
    given = Near(threshold=threshold, rows=4)
    assert given.rows == 4
    assert given.bands == 512 or given.compared(threshold) >= 0.98


def test_given_bands_stay() -> None:
    assert (Near().bands, Near().rows) == (24, 8)
    assert Near(threshold=0.5, bands=7, rows=3).bands == 7
    assert Near(threshold=0.9, bands=14).rows == 13
    assert Near(threshold=1e-300).bands == 512


def test_seeds_of_any_size() -> None:
    assert Near(seed=2**64 - 1).seed == 2**64 - 1
    seeds = {Near(seed=2**power).seed for power in (64, 65, 300)}
    assert len(seeds) == 3
    assert max(seeds) < 2**64


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("shingle", 10**20, "less than or equal to 1000"),
        ("shingle", 1001, "less than or equal to 1000"),
        ("bands", 513, "less than or equal to 512"),
        ("rows", 65, "less than or equal to 64"),
        ("rows", "8", "valid integer"),
        ("threshold", 1.01, "less than or equal to 1"),
        ("threshold", "high", "valid number"),
        ("seed", -1, "greater than or equal to 0"),
    ],
)
def test_values_beyond_the_limits_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Near.model_validate({key: value})


@pytest.mark.parametrize(
    ("dedup", "message"),
    [
        ({"exact": False, "within": "dump"}, "within: needs exact, near, url or lines"),
        ({"within": "dump", "against": {"paths": "x"}}, "within: not used with against"),
    ],
)
def test_within_needs_a_comparison_in_one_corpus(dedup: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Dedup.model_validate(dedup)
