"""The metrics of an evaluation, computed by hand; the resampling; gold records and bad ones."""

import json
from pathlib import Path

import numpy as np
import pytest

from proxhpc.corpus.hosts import split_of
from proxhpc.errors import UserError
from proxhpc.evaluate.baselines import c4_lines, eight_words, keep_all, oracle
from proxhpc.evaluate.bootstrap import Score, resample, score, weights
from proxhpc.evaluate.gold import GoldFields, GoldRecord, Selection, condition, read_gold
from proxhpc.evaluate.metrics import (
    LINE_METRICS,
    GoldLines,
    count_table,
    line_row,
    score_documents,
    score_lines,
    token_f1,
    tokens,
)
from proxhpc.evaluate.ranking import auc, auc_score
from runs import write_jsonl

LONG = " ".join(f"w{n}" for n in range(20))
PAGE = GoldRecord(
    "a", "f:1", "x", f"Menu é\n{LONG}\nsome text\nads ads\nlate", f"{LONG} some", "BGG?B"
)
OTHER = GoldRecord("b", "f:2", "y", "one two\nthree", "one two four", "GB")


def lines_of(*records: GoldRecord) -> list[GoldLines]:
    return [GoldLines.of(record) for record in records]


def test_tokens() -> None:
    assert tokens("It's 3.5 Käse_2, ÉTÉ") == ["it", "s", "3", "5", "käse_2", "été"]
    assert tokens("東京に New York") == ["東", "京", "に", "new", "york"]
    assert tokens("ไทย") == ["ไ", "ท", "ย"]
    assert tokens(" -- \n") == []


def test_token_f1() -> None:
    assert token_f1("a b b c", "b b b d") == pytest.approx(2 * 2 / 8)  # b twice
    assert token_f1("", "") == 1
    assert token_f1("", "a") == token_f1("a", "") == 0


def test_lines_by_hand() -> None:
    # PAGE: the menu and the long line go, "late" is missed; "ads ads" is of no known kind.
    # It keeps some, text, ads, ads, late; of 21 wanted tokens it has one.
    first = line_row(GoldLines.of(PAGE), b"\0\0\1\1\1")
    assert first["token_f1"] == pytest.approx(2 * 1 / (5 + 21))
    assert (first["removed_right"], first["removed_wrong"], first["missed"]) == (1, 1, 1)
    assert (first["long"], first["long_removed"]) == (1, 1)
    assert (first["tokens"], first["tokens_kept"]) == (2 + 20 + 2 + 2 + 1, 5)
    assert first["bytes"] == len(PAGE.text.encode())
    assert first["bytes_kept"] == len("some text\nads ads\nlate")

    # OTHER: "three" goes, which leaves 2 tokens, both wanted, of 3.
    found = score_lines(lines_of(PAGE, OTHER), [b"\0\0\1\1\1", [True, False]])
    assert found["token_f1"] == pytest.approx((2 / 26 + 2 * 2 / 5) / 2)
    assert found["line_precision"] == pytest.approx(2 / 3)
    assert found["line_recall"] == pytest.approx(2 / 3)
    assert found["line_f1"] == pytest.approx(2 / 3)
    assert found["long_lines_lost"] == 1
    assert found["tokens_kept"] == pytest.approx((5 + 2) / (27 + 3))
    assert found["valid_programs"] is None


def test_decisions_may_be_bytes_lists_or_arrays() -> None:
    kept = [True, False, True, True, False]
    pages = lines_of(PAGE)
    forms = [kept, bytes(kept), bytearray(kept), np.array(kept), np.array(kept, np.uint8)]
    assert len({json.dumps(score_lines(pages, [form])) for form in forms}) == 1
    with pytest.raises(ValueError, match="f:1: 4 decisions for 5 lines"):
        score_lines(pages, [b"\1\1\1\1"])
    with pytest.raises(ValueError, match="shorter"):
        score_lines(lines_of(PAGE, OTHER), [kept])


def test_a_text_with_edits_within_lines() -> None:
    row = line_row(GoldLines.of(OTHER), b"\1\1", "one two four three")
    assert row["token_f1"] == pytest.approx(2 * 3 / 7)
    assert (row["bytes_kept"], row["tokens_kept"]) == (18, 4)
    plain = line_row(GoldLines.of(PAGE), b"\1\0\1\1\1")
    assert plain == line_row(GoldLines.of(PAGE), b"\1\0\1\1\1", "Menu é\nsome text\nads ads\nlate")


def test_nothing_left_and_nothing_labelled() -> None:
    (page,) = lines_of(GoldRecord("c", "f:3", "", "a\nb", ""))
    found = score_lines([page], [b"\0\0"])
    assert (found["token_f1"], found["bytes_kept"], found["line_f1"]) == (1, 0, None)
    assert score_lines([], [])["token_f1"] is None


def test_documents_by_hand() -> None:
    records = [
        GoldRecord(str(n), f"f:{n}", "", "four words are here", keep=keep)
        for n, keep in enumerate([True, True, False, False, False])
    ]
    # Right: keep 0, drop 2 and 3. Wrong: drop 1, keep 4.
    found = score_documents(records, [True, False, False, False, True], [0.1, 0.7, 0.9, 0.7, 0.1])
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["documents_kept"] == found["tokens_kept"] == found["bytes_kept"] == 0.4
    # Pairs of drop and keep: .9 wins 2; .7 wins 1 and ties 1; .1 loses 1 and ties 1.
    assert found["auc"] == pytest.approx((2 + 1.5 + 0.5) / 6)
    assert score_documents(records, [True] * 5)["auc"] is None
    assert auc([True, True], [1, 2]) is None
    with pytest.raises(ValueError, match="not a number"):
        auc([True, False], [1, float("nan")])


def test_an_interval_of_the_auc_by_hand() -> None:
    """Each resampling written out as the documents it took, ties and all."""
    rng = np.random.default_rng(2)
    drop = rng.random(20) < 0.5
    scores = np.round(rng.normal(size=20) + drop, 1)
    found = auc_score(list(drop), list(scores), rounds=50, seed=3)
    areas = []
    for taken in np.concatenate(list(weights(20, 50, 3))).astype(int):
        pairs = [
            (p > n) + (p == n) / 2
            for p in np.repeat(scores, taken * drop)
            for n in np.repeat(scores, taken * ~drop)
        ]
        areas.append(sum(pairs) / len(pairs))
    low, high = np.percentile(areas, (2.5, 97.5))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.low < found.value == auc(list(drop), list(scores)) < found.high
    assert auc([True, False], [float("inf"), float("inf")]) == 0.5
    assert auc_score([], [], rounds=5, seed=0) == Score(None)
    # One of two documents: many a resampling takes it twice.
    assert auc_score([True, False], [1, 0], rounds=20, seed=0) == Score(1)


def test_baselines() -> None:
    gold = GoldRecord("a", "f:1", "", f"Menu\n{LONG}\nThis is a sentence of C4.\n东西", "", "BG?B")
    assert keep_all(gold) == b"\1\1\1\1"
    assert c4_lines(gold) == b"\0\0\1\0"
    assert eight_words(gold) == b"\0\1\0\0"
    assert oracle(gold) == b"\0\1\1\0"
    assert oracle(GoldRecord("a", "f:1", "", "Menu", "")) is None


def test_resampling_is_of_documents_and_repeatable() -> None:
    (block,) = weights(50, 200, seed=3)
    assert block.shape == (200, 50)
    assert set(block.sum(axis=1)) == {50}
    assert np.array_equal(block, next(weights(50, 200, seed=3)))
    assert not np.array_equal(block, next(weights(50, 200, seed=4)))


def test_resampling_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = next(weights(10, 7, seed=1))
    monkeypatch.setattr("proxhpc.evaluate.bootstrap._CELLS", 30)
    blocks = list(weights(10, 7, seed=1))
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_intervals_are_paired() -> None:
    """Scores that differ by the same in each document differ by that in each resampling."""
    rng = np.random.default_rng(0)
    f1 = rng.uniform(0.2, 0.8, 400)
    rows = [
        count_table(LINE_METRICS, [{"documents": 1, "token_f1": v} for v in x])
        for x in (f1, f1 + 0.1)
    ]
    low, high = (drawn[:, 0] for drawn in resample(rows, LINE_METRICS.of, 500, 0))
    lead = score(0.1, high - low)
    assert (lead.low, lead.high) == (pytest.approx(0.1), pytest.approx(0.1))
    own = score(f1.mean(), low)
    deviation = f1.std() / np.sqrt(400)
    assert own.low == pytest.approx(f1.mean() - 1.96 * deviation, abs=0.3 * deviation)
    assert own.high == pytest.approx(f1.mean() + 1.96 * deviation, abs=0.3 * deviation)


def test_no_interval_of_what_may_have_no_value() -> None:
    assert score(0.5, np.array([0.4, np.nan])) == Score(0.5)
    assert score(np.nan, np.array([0.4])) == Score(None)


def test_records_of_either_kind_with_other_names(tmp_path: Path) -> None:
    rows = [
        {"raw": "a\nb", "clean": {"text": "a"}, "kinds": "GB", "n": 7},
        {"text": "c", "good": False, "unanimous": True, "id": "z", "url": "http://www.a.b/c"},
        {"raw": "a", "clean": {"text": "a"}, "good": 1},
    ]
    path = write_jsonl(tmp_path / "g.jsonl.zst", [*rows[:2], b"  ", rows[2]])
    names = GoldFields.parse("noisy=raw,gold=clean.text,labels=kinds,keep=good,id=n")
    assert read_gold([path], names) == [
        GoldRecord("7", f"{path}:1", "", "a\nb", "a", "GB"),
        GoldRecord(f"{path}:2", f"{path}:2", "", "c", keep=False, unanimous=True, host="a.b"),
        GoldRecord(f"{path}:4", f"{path}:4", "", "a", "a", keep=True),
    ]
    with pytest.raises(UserError, match="NAME of noisy, gold, labels"):
        GoldFields.parse("nosy=raw")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"{no json", "no JSON"),
        (b"[1]", "no JSON object"),
        (b'{"title": "x"}', "it has title"),
        (b'{"text_gold": "x"}', "no field 'text_noisy'"),
        (b'{"keep": 1}', "no field 'text'"),
        (b'{"text_noisy": "a\\nb", "text_gold": "a", "line_labels": "G"}', "1 labels for 2 lines"),
        (b'{"text": "a"}', "no gold record: it has text"),
        (b'{"text_noisy": 3, "text_gold": "a"}', "'text_noisy' is no string"),
        (b'{"text": "a", "keep": "yes"}', "'keep' is 'yes', neither 0 nor 1"),
        (b'{"text": "a", "keep": 2}', "'keep' is 2"),
    ],
)
def test_a_bad_record_is_named(tmp_path: Path, line: bytes, said: str) -> None:
    path = write_jsonl(tmp_path / "gold.jsonl", [{"text": "a", "keep": 1}, line])
    with pytest.raises(UserError, match=said) as error:
        read_gold([path])
    assert str(error.value).startswith(f"{path}:2: ")


def test_bad_files(tmp_path: Path) -> None:
    whole = write_jsonl(tmp_path / "a.jsonl.zst", [{"text": "a" * 99, "keep": 1}]).read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-6])
    for name, said in (
        ("a.jsonl.zst", "a.jsonl.zst:1: the file is damaged here"),
        ("none.jsonl", "no such input file"),
        ("a.parquet", "JSON lines only"),
    ):
        with pytest.raises(UserError, match=said):
            read_gold([tmp_path / name])


def test_selection(tmp_path: Path) -> None:
    rows = [
        {"text": str(n), "keep": 1, "source": "abc"[n % 3], "old": n < 15, "n": n}
        for n in range(30)
    ]
    path = write_jsonl(tmp_path / "g.jsonl", rows)

    def texts(where: list[str], exclude: list[str], limit: int | None = None, seed: int = 0):
        chosen = tuple(map(condition, where)), tuple(map(condition, exclude))
        found = read_gold([path], selection=Selection(*chosen, limit, seed))
        return [int(gold.text) for gold in found]

    assert texts(["source=a", "source=b", "old=true"], ["n=3"]) == [0, 1, 4, 6, 7, 9, 10, 12, 13]
    some = texts([], [], 8)
    assert some == sorted(some) == texts([], [], 8)
    assert len(set(some)) == 8
    assert some != texts([], [], 8, seed=1)
    assert texts([], [], 99) == list(range(30))
    held = [int(gold.text) for gold in read_gold([path], selection=Selection(split="validation"))]
    rest = [int(gold.text) for gold in read_gold([path], selection=Selection(split="train"))]
    assert held == [n for n in range(30) if split_of("", str(n)) == "validation"]
    assert sorted([*held, *rest]) == list(range(30))
    with pytest.raises(UserError, match="no record meets"):
        texts(["source=d"], [])
    with pytest.raises(UserError, match="no condition"):
        condition("source")
