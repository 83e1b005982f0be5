"""Metrics of an evaluation computed by hand, bootstrap intervals, reading of gold records."""

import json
from pathlib import Path

import numpy as np
import pytest

from proxhpc.corpus.hosts import split_of
from proxhpc.errors import UserError
from proxhpc.evaluate.baselines import c4_lines, eight_words, keep_all, oracle
from proxhpc.evaluate.bootstrap import Score, auc, auc_score, resample, resampling_counts, score
from proxhpc.evaluate.gold import GoldFields, GoldRecord, Selection, parse_condition, read_gold
from proxhpc.evaluate.metrics import (
    LINE_METRICS,
    GoldLines,
    count_table,
    line_counts,
    score_documents,
    score_lines,
    token_f1,
    tokens,
)
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


def test_line_metrics_by_hand() -> None:
    # PAGE: the menu and the long line are removed, "late" is missed; "ads ads" has no label.
    # It keeps some, text, ads, ads, late: one of the 21 tokens of the gold text.
    first = line_counts(GoldLines.of(PAGE), b"\0\0\1\1\1")
    assert first["token_f1"] == pytest.approx(2 * 1 / (5 + 21))
    assert (first["removed_right"], first["removed_wrong"], first["missed"]) == (1, 1, 1)
    assert (first["long"], first["long_removed"]) == (1, 1)
    assert (first["tokens"], first["tokens_kept"]) == (2 + 20 + 2 + 2 + 1, 5)
    assert first["bytes"] == len(PAGE.text.encode())
    assert first["bytes_kept"] == len("some text\nads ads\nlate")

    # OTHER: "three" is removed; the 2 remaining tokens are in the gold text, which has 3.
    scores = score_lines(lines_of(PAGE, OTHER), [b"\0\0\1\1\1", [True, False]])
    assert scores["token_f1"] == pytest.approx((2 / 26 + 2 * 2 / 5) / 2)
    assert scores["line_precision"] == pytest.approx(2 / 3)
    assert scores["line_recall"] == pytest.approx(2 / 3)
    assert scores["line_f1"] == pytest.approx(2 / 3)
    assert scores["long_lines_lost"] == 1
    assert scores["tokens_kept"] == pytest.approx((5 + 2) / (27 + 3))
    assert scores["valid_programs"] is None


def test_decisions_are_bytes_lists_or_arrays() -> None:
    kept = [True, False, True, True, False]
    pages = lines_of(PAGE)
    forms = [kept, bytes(kept), bytearray(kept), np.array(kept), np.array(kept, np.uint8)]
    assert len({json.dumps(score_lines(pages, [form])) for form in forms}) == 1
    with pytest.raises(ValueError, match="f:1: 4 decisions for 5 lines"):
        score_lines(pages, [b"\1\1\1\1"])
    with pytest.raises(ValueError, match="shorter"):
        score_lines(lines_of(PAGE, OTHER), [kept])


def test_edited_text_counts_instead_of_lines() -> None:
    row = line_counts(GoldLines.of(OTHER), b"\1\1", "one two four three")
    assert row["token_f1"] == pytest.approx(2 * 3 / 7)
    assert (row["bytes_kept"], row["tokens_kept"]) == (18, 4)
    plain = line_counts(GoldLines.of(PAGE), b"\1\0\1\1\1")
    assert plain == line_counts(
        GoldLines.of(PAGE), b"\1\0\1\1\1", "Menu é\nsome text\nads ads\nlate"
    )


def test_an_empty_gold_text_and_no_labels() -> None:
    (page,) = lines_of(GoldRecord("c", "f:3", "", "a\nb", ""))
    scores = score_lines([page], [b"\0\0"])
    assert (scores["token_f1"], scores["bytes_kept"], scores["line_f1"]) == (1, 0, None)
    assert score_lines([], [])["token_f1"] is None


def test_document_metrics_by_hand() -> None:
    records = [
        GoldRecord(str(n), f"f:{n}", "", "four words are here", keep=keep)
        for n, keep in enumerate([True, True, False, False, False])
    ]
    # Right: keep 0, drop 2 and 3. Wrong: drop 1, keep 4.
    scores = score_documents(records, [True, False, False, False, True], [0.1, 0.7, 0.9, 0.7, 0.1])
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["precision"] == pytest.approx(2 / 3)
    assert scores["recall"] == pytest.approx(2 / 3)
    assert scores["f1"] == pytest.approx(2 / 3)
    assert scores["documents_kept"] == scores["tokens_kept"] == scores["bytes_kept"] == 0.4
    # Pairs of drop and keep: .9 wins 2; .7 wins 1 and ties 1; .1 loses 1 and ties 1.
    assert scores["auc"] == pytest.approx((2 + 1.5 + 0.5) / 6)
    assert score_documents(records, [True] * 5)["auc"] is None
    assert auc([True, True], [1, 2]) is None
    with pytest.raises(ValueError, match="not a number"):
        auc([True, False], [1, float("nan")])


def test_an_interval_of_the_auc_by_hand() -> None:
    """Every pair of documents in each resampling is compared."""
    rng = np.random.default_rng(2)
    drop = rng.random(20) < 0.5
    scores = np.round(rng.normal(size=20) + drop, 1)
    area = auc_score(list(drop), list(scores), rounds=50, seed=3)
    areas = []
    for counts in np.concatenate(list(resampling_counts(20, 50, 3))).astype(int):
        pairs = [
            (p > n) + (p == n) / 2
            for p in np.repeat(scores, counts * drop)
            for n in np.repeat(scores, counts * ~drop)
        ]
        areas.append(sum(pairs) / len(pairs))
    low, high = np.percentile(areas, (2.5, 97.5))
    assert (area.low, area.high) == pytest.approx((low, high))
    assert area.low < area.value == auc(list(drop), list(scores)) < area.high
    assert auc([True, False], [float("inf"), float("inf")]) == 0.5
    assert auc_score([], [], rounds=5, seed=0) == Score(value=None)
    # Some resamplings of two documents contain only one of them.
    assert auc_score([True, False], [1, 0], rounds=20, seed=0) == Score(value=1)


def test_baselines() -> None:
    gold = GoldRecord("a", "f:1", "", f"Menu\n{LONG}\nThis is a sentence of C4.\n东西", "", "BG?B")
    assert keep_all(gold) == b"\1\1\1\1"
    assert c4_lines(gold) == b"\0\0\1\0"
    assert eight_words(gold) == b"\0\1\0\0"
    assert oracle(gold) == b"\0\1\1\0"
    assert oracle(GoldRecord("a", "f:1", "", "Menu", "")) is None


def test_resamplings_depend_on_the_seed() -> None:
    (block,) = resampling_counts(50, 200, seed=3)
    assert block.shape == (200, 50)
    assert set(block.sum(axis=1)) == {50}
    assert np.array_equal(block, next(resampling_counts(50, 200, seed=3)))
    assert not np.array_equal(block, next(resampling_counts(50, 200, seed=4)))


def test_resampling_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = next(resampling_counts(10, 7, seed=1))
    monkeypatch.setattr("proxhpc.evaluate.bootstrap._BLOCK_CELLS", 30)
    blocks = list(resampling_counts(10, 7, seed=1))
    assert [len(block) for block in blocks] == [3, 3, 1]
    assert np.array_equal(np.concatenate(blocks), whole)


def test_intervals_of_differences_are_paired() -> None:
    """A difference that is the same for each document is the same in each resampling."""
    rng = np.random.default_rng(0)
    f1 = rng.uniform(0.2, 0.8, 400)
    rows = [
        count_table(LINE_METRICS, [{"documents": 1, "token_f1": v} for v in x])
        for x in (f1, f1 + 0.1)
    ]
    low, high = (metrics[:, 0] for metrics in resample(rows, LINE_METRICS.values, 500, 0))
    lead = score(0.1, high - low)
    assert (lead.low, lead.high) == (pytest.approx(0.1), pytest.approx(0.1))
    single = score(f1.mean(), low)
    error = f1.std() / np.sqrt(400)
    assert single.low == pytest.approx(f1.mean() - 1.96 * error, abs=0.3 * error)
    assert single.high == pytest.approx(f1.mean() + 1.96 * error, abs=0.3 * error)


def test_no_interval_if_a_resampling_is_undefined() -> None:
    assert score(0.5, np.array([0.4, np.nan])) == Score(value=0.5)
    assert score(np.nan, np.array([0.4])) == Score(value=None)


def test_records_of_both_levels_with_other_field_names(tmp_path: Path) -> None:
    rows = [
        {"raw": "a\nb", "clean": {"text": "a"}, "kinds": "GB", "n": 7},
        {"text": "c", "good": False, "unanimous": True, "id": "z", "url": "http://www.a.b/c"},
        {"raw": "a", "clean": {"text": "a"}, "good": 1},
    ]
    path = write_jsonl(tmp_path / "g.jsonl.zst", [*rows[:2], b"  ", rows[2]])
    keys = GoldFields.parse("noisy=raw,gold=clean.text,labels=kinds,keep=good,id=n")
    assert read_gold([path], keys) == [
        GoldRecord("7", f"{path}:1", "", "a\nb", "a", "GB"),
        GoldRecord(f"{path}:2", f"{path}:2", "", "c", keep=False, unanimous=True, host="a.b"),
        GoldRecord(f"{path}:4", f"{path}:4", "", "a", "a", "G", keep=True),
    ]
    with pytest.raises(UserError, match="NAME is one of noisy, gold, labels"):
        GoldFields.parse("nosy=raw")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{no json", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"title": "x"}', "it has title"),
        (b'{"text_gold": "x"}', "no field 'text_noisy'"),
        (b'{"keep": 1}', "no field 'text'"),
        (b'{"text_noisy": "a\\nb", "text_gold": "a", "line_labels": "G"}', "1 label for 2 lines"),
        (b'{"text": "a"}', "not a gold record: it has text"),
        (b'{"text_noisy": 3, "text_gold": "a"}', "'text_noisy' is not a string"),
        (b'{"text": "a", "keep": "yes"}', "'keep' is 'yes', neither 0 nor 1"),
        (b'{"text": "a", "keep": 2}', "'keep' is 2"),
    ],
)
def test_an_invalid_record_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = write_jsonl(tmp_path / "gold.jsonl", [{"text": "a", "keep": 1}, line])
    with pytest.raises(UserError, match=message) as error:
        read_gold([path])
    assert str(error.value).startswith(f"{path}:2: ")


def test_damaged_missing_and_unsupported_files(tmp_path: Path) -> None:
    whole = write_jsonl(tmp_path / "a.jsonl.zst", [{"text": "a" * 99, "keep": 1}]).read_bytes()
    (tmp_path / "a.jsonl.zst").write_bytes(whole[:-6])
    for name, message in (
        ("a.jsonl.zst", "a.jsonl.zst:1: the file is damaged here"),
        ("none.jsonl", "no such input file"),
        ("a.parquet", "not JSON lines"),
    ):
        with pytest.raises(UserError, match=message):
            read_gold([tmp_path / name])


def test_selection(tmp_path: Path) -> None:
    rows = [
        {"text": str(n), "keep": 1, "source": "abc"[n % 3], "old": n < 15, "n": n}
        for n in range(30)
    ]
    path = write_jsonl(tmp_path / "g.jsonl", rows)

    def texts(where: list[str], exclude: list[str], limit: int | None = None, seed: int = 0):
        conditions = tuple(map(parse_condition, where)), tuple(map(parse_condition, exclude))
        records = read_gold([path], selection=Selection(*conditions, limit, seed))
        return [int(gold.text) for gold in records]

    assert texts(["source=a", "source=b", "old=true"], ["n=3"]) == [0, 1, 4, 6, 7, 9, 10, 12, 13]
    sample = texts([], [], 8)
    assert sample == sorted(sample) == texts([], [], 8)
    assert len(set(sample)) == 8
    assert sample != texts([], [], 8, seed=1)
    assert texts([], [], 99) == list(range(30))
    validation, train = (
        [int(gold.text) for gold in read_gold([path], selection=Selection(split=split))]
        for split in ("validation", "train")
    )
    assert validation == [n for n in range(30) if split_of("", str(n)) == "validation"]
    assert sorted([*validation, *train]) == list(range(30))
    with pytest.raises(UserError, match="no record meets"):
        texts(["source=d"], [])
    with pytest.raises(UserError, match="not a condition"):
        parse_condition("source")
