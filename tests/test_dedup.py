"""Which of several duplicates stays, what counts as one, and duplicates of another corpus."""

import random
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.summary import MergeSummary
from proxhpc.dedup.hashes import survivor_rank
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.spec.sections import Dedup
from proxhpc.worker.worker import Assignment, run_worker
from runs import local_site, manifest, write_jsonl

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("ld", "mp", "nt", "rk")]
SENSITIVE = {"bands": 48, "rows": 4}  # nothing above the threshold escapes comparison


def merged(folder: Path, rows: list[dict[str, Any]], **dedup: Any) -> RunDir:
    """A merged run that edits nothing."""
    folder.mkdir(exist_ok=True)
    path = manifest(
        folder,
        [write_jsonl(folder / "in.jsonl", rows)],
        stages=[{"level": "chunk"}],
        dedup=dedup,
        sharding={"tokens": 700},
    )
    run = prepare_run(path, local_site(folder), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    merge_run(run.dir)
    return run.dir


def written(run: RunDir) -> list[str]:
    return [row["id"] for row in read_listing(run.part(0))]


def spread() -> list[dict[str, Any]]:
    """Pairs of documents whose similarities lie on both sides of the threshold."""
    chance = random.Random(3)
    rows = []
    for number in range(40):
        words = chance.choices(WORDS, k=149)
        other = [*words, "more"]
        for place in range(number % 7):
            other[7 + 20 * place] = "another"
        rows += [page(f"a{number}", words), page(f"b{number}", other)]
    return rows


def page(name: str, words: list[str]) -> dict[str, Any]:
    lines = [" ".join(words[n : n + 10]) + "." for n in range(0, len(words), 10)]
    return {"id": name, "text": "\n".join(lines)}


def true_jaccard(left: dict[str, Any], right: dict[str, Any]) -> float:
    sets = []
    for row in (left, right):
        words = row["text"].replace(".", "").split()
        sets.append({tuple(words[n : n + 5]) for n in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_what_a_signature_cannot_tell_is_told_by_the_texts(tmp_path: Path) -> None:
    rows = spread()
    alike = [true_jaccard(rows[n], rows[n + 1]) for n in range(0, len(rows), 2)]
    assert sum(0.7 < share < 0.8 for share in alike) > 3
    assert sum(0.8 <= share < 0.9 for share in alike) > 3
    expected = {rows[2 * n]["id"] for n, share in enumerate(alike) if share >= 0.8}
    run = merged(tmp_path / "text", rows, near=SENSITIVE)
    assert set(written(run)) == {row["id"] for row in rows} - expected
    assert not [*run.match.parent.joinpath("match").glob("*.shingles")]
    by_signature = merged(tmp_path / "signature", rows, near={**SENSITIVE, "verify": "signature"})
    assert set(written(by_signature)) != set(written(run))


def test_a_long_chain_is_one_set_by_text_too(tmp_path: Path) -> None:
    words = random.Random(5).choices(WORDS, k=100)
    rows = [page("p0", words)]
    for step in range(1, 9):
        words = [*words]
        words[10 * step] = "changed"
        rows.append(page(f"p{step}", words))
    links = [true_jaccard(a, b) >= 0.8 for a, b in combinations(rows, 2)]
    assert any(links)
    assert not all(links)
    assert written(merged(tmp_path / "run", rows, near=SENSITIVE)) == ["p8"]  # the longest


SAME = "One line that is long enough to be kept by the rules.\nAnd there is another one here."


def copies() -> list[dict[str, Any]]:
    rows = [
        {"id": "plain", "about": {"score": 0.2, "date": "2019-05-01"}},
        {"id": "good", "about": {"score": 0.9, "date": "2019-05-01T10:00:00Z"}},
        {"id": "none", "about": {"score": "unknown"}},
        {"id": "low", "about": {"score": -3, "date": "2018-12-31"}},
    ]
    return [{"text": SAME + " " * (4 - n)} | row for n, row in enumerate(rows)]


@pytest.mark.parametrize(
    ("dedup", "kept"),
    [
        ({}, "plain"),  # the first of those with the most characters
        ({"keep": "first"}, "plain"),
        ({"keep": "highest", "by": "about.score"}, "good"),
        ({"keep": "lowest", "by": "about.score"}, "low"),
        ({"keep": "highest", "by": "about.date"}, "good"),
        ({"keep": "lowest", "by": "about.date"}, "low"),
        ({"keep": "highest", "by": "about.nothing"}, "plain"),
    ],
)
def test_who_stays(tmp_path: Path, dedup: dict[str, Any], kept: str) -> None:
    assert written(merged(tmp_path / "run", copies(), **dedup)) == [kept]


def test_the_first_stays_though_it_is_shorter(tmp_path: Path) -> None:
    rows = [{"id": "short", "text": SAME}, {"id": "long", "text": SAME.replace(" ", "  ")}]
    assert written(merged(tmp_path / "first", rows, keep="first")) == ["short"]
    assert written(merged(tmp_path / "longest", rows)) == ["long"]


def test_ranks_are_in_the_order_of_the_values() -> None:
    values = [-1e308, -2, "-0.5", -0.0, 0, 1e-300, 3, "2001-01-01", "2001-01-01T00:00:01+00:00"]
    up, down = (Dedup.model_validate({"keep": keep, "by": "v"}) for keep in ("highest", "lowest"))
    ranks = [survivor_rank(up, {"v": value}) for value in values]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(values) - 1  # both zeros are one
    falling = [survivor_rank(down, {"v": value}) for value in values]
    assert falling == sorted(falling, reverse=True)
    for nothing in (None, True, "soon", float("nan"), [1], {}):
        assert survivor_rank(up, {"v": nothing}) == survivor_rank(down, {"v": nothing}) == 0
    assert min(*ranks, *falling) > 0


@pytest.mark.parametrize(
    ("dedup", "message"),
    [
        ({"keep": "highest"}, "dedup.by: required with keep: highest"),
        ({"by": "score"}, "dedup.by: not used with keep: longest"),
        ({"exact": False, "against": {"paths": "x.jsonl"}}, "dedup.against: needs exact or near"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, dedup: dict[str, Any], message: str
) -> None:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", copies())], dedup=dedup)
    with pytest.raises(UserError, match=message):
        prepare_run(path, local_site(tmp_path), None)


def test_duplicates_of_another_corpus_are_left_out(tmp_path: Path) -> None:
    rows = spread()
    others = [{"body": row["text"], "name": f"old-{row['id']}"} for row in rows[:20:2]]
    others.insert(3, {"name": "nothing to read"})
    others += others[:1]  # the corpus may have duplicates of its own: that is not our business
    files = [write_jsonl(tmp_path / "old" / f"{n}.jsonl.zst", others[n::2]) for n in range(2)]
    run = merged(
        tmp_path / "run",
        rows,
        near=SENSITIVE,
        against={"paths": str(tmp_path / "old" / "*.zst"), "text": "body", "id": "name"},
    )
    gone = {rows[n]["id"] for n in range(0, 20, 2)}
    alike = [true_jaccard(rows[n], rows[n + 1]) >= 0.8 for n in range(0, len(rows), 2)]
    gone |= {rows[2 * n + 1]["id"] for n in range(10) if alike[n]}
    gone |= {rows[2 * n]["id"] for n in range(10, 40) if alike[n]}
    assert set(written(run)) == {row["id"] for row in rows} - gone
    summary = MergeSummary.load(run)
    assert summary is not None
    lost = summary.duplicates
    assert (lost.external_documents, lost.external_unreadable) == (len(others) - 1, 1)
    assert lost.external == 10 + sum(alike[:10])
    kept = {pair["duplicate"]["id"]: pair["survivor"] for pair in read_listing(run.duplicates)}
    assert kept["a0"]["id"] == "old-a0"
    assert kept["a0"]["source"].startswith("0.jsonl.zst:")
    assert "duplicates of documents of another corpus" in run.card.read_text()
    # What it was compared with must be what the plan says.
    run.sketch_receipt(len([*run.merge.glob("sketch/*.json")]) - 1).unlink()
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(StopError, match=r"1\.jsonl\.zst"):
        merge_run(run)


def test_another_corpus_must_be_there_and_have_texts(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", copies())
    write_jsonl(tmp_path / "old.jsonl", [{"body": "x"}])
    for name, message in (("none.jsonl", r"dedup\.against\.paths\[0\]"), ("old.jsonl", "no text")):
        path = manifest(tmp_path, [source], dedup={"against": {"paths": str(tmp_path / name)}})
        with pytest.raises(UserError, match=message if "dedup" in message else "dedup.against"):
            prepare_run(path, local_site(tmp_path), None)
