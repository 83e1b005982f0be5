"""Which of several duplicates survives, what counts as one, and duplicates of another corpus."""

import json
import random
from collections import Counter
from io import StringIO
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.summary import MergeSummary
from proxhpc.assemble.text_rounds import overlap
from proxhpc.corpus.document import Span
from proxhpc.corpus.hosts import canonical_url
from proxhpc.dedup.hashes import survivor_rank
from proxhpc.dedup.minhash import minhash_slots
from proxhpc.dedup.shingles import fold, shingles
from proxhpc.errors import StopError, UserError
from proxhpc.inspect.document import Inspection, inspect_documents
from proxhpc.inspect.view import render_inspection
from proxhpc.launch.launch import prepare_run
from proxhpc.report import write_report
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.sections import Dedup, Near
from proxhpc.worker.worker import Assignment, run_worker
from runs import local_site, manifest, write_jsonl

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("ld", "mp", "nt", "rk")]
SENSITIVE = {"bands": 48, "rows": 4}  # practically all pairs above the threshold are compared


def merged(
    folder: Path, rows: list[dict[str, Any]], output: dict[str, Any] | None = None, **dedup: Any
) -> RunDir:
    """A merged run that edits nothing."""
    folder.mkdir(exist_ok=True)
    path = manifest(
        folder,
        [write_jsonl(folder / "in.jsonl", rows)],
        stages=[{"level": "chunk"}],
        dedup=dedup,
        output=output or {},
        sharding={"tokens": 700},
    )
    run = prepare_run(path, local_site(folder), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    merge_run(run.dir)
    return run.dir


def facts(found: Inspection) -> str:
    console = Console(file=StringIO(), width=200, record=True)
    console.print(render_inspection(found))
    return console.export_text()


def written_ids(run: RunDir) -> list[str]:
    return [row["id"] for row in read_listing(run.part(0))]


def pairs_around_threshold() -> list[dict[str, Any]]:
    """Pairs of documents whose similarities are on both sides of the threshold."""
    rng = random.Random(3)
    rows = []
    for number in range(40):
        words = rng.choices(WORDS, k=149)
        other = [*words, "more"]
        for change in range(number % 7):
            other[7 + 20 * change] = "another"
        rows += [page(f"a{number}", words), page(f"b{number}", other)]
    return rows


def page(name: str, words: list[str]) -> dict[str, Any]:
    lines = [" ".join(words[n : n + 10]) + "." for n in range(0, len(words), 10)]
    return {"id": name, "text": "\n".join(lines)}


def true_jaccard(left: dict[str, Any], right: dict[str, Any], shingle: int = 5) -> float:
    sets = []
    for row in (left, right):
        words = row["text"].replace(".", "").split()
        sets.append({tuple(words[n : n + shingle]) for n in range(len(words) - shingle + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_pairs_that_signatures_cannot_decide_are_compared_by_text(tmp_path: Path) -> None:
    rows = pairs_around_threshold()
    similarities = [true_jaccard(rows[n], rows[n + 1]) for n in range(0, len(rows), 2)]
    assert sum(0.7 < value < 0.8 for value in similarities) > 3
    assert sum(0.8 <= value < 0.9 for value in similarities) > 3
    expected = {rows[2 * n]["id"] for n, value in enumerate(similarities) if value >= 0.8}
    run = merged(tmp_path / "text", rows, near=SENSITIVE)
    assert set(written_ids(run)) == {row["id"] for row in rows} - expected
    assert not [*run.match_folder.glob("*/shingles")]
    by_signature = merged(tmp_path / "signature", rows, near={**SENSITIVE, "verify": "signature"})
    assert set(written_ids(by_signature)) != set(written_ids(run))


def test_of_a_chain_only_what_is_like_its_survivor_is_removed(tmp_path: Path) -> None:
    words = random.Random(5).choices(WORDS, k=100)
    rows = [page("p0", words)]
    for step in range(1, 9):
        words = [*words]
        words[10 * step] = "changed"
        rows.append(page(f"p{step}", words))
    links = [true_jaccard(a, b) >= 0.8 for a, b in combinations(rows, 2)]
    assert any(links)
    assert not all(links)
    by_id = {row["id"]: row for row in rows}
    run = merged(tmp_path / "run", rows, near=SENSITIVE)
    kept = written_ids(run)
    assert len(kept) > 1
    assert all(true_jaccard(by_id[a], by_id[b]) < 0.8 for a, b in combinations(kept, 2))
    for pair in read_listing(run.duplicates):
        both = [by_id[pair[side]["id"]] for side in ("duplicate", "survivor")]
        assert true_jaccard(*both) >= 0.8
        assert pair["survivor"]["id"] in kept


@pytest.mark.parametrize(("common", "duplicates"), [(40, 1), (39, 0)])
def test_a_pair_exactly_at_the_threshold_is_a_duplicate(
    tmp_path: Path, common: int, duplicates: int
) -> None:
    rows = [page("short", WORDS[:common]), page("long", WORDS[:50])]
    assert true_jaccard(*rows, shingle=1) == common / 50
    run = merged(tmp_path / "run", rows, near={**SENSITIVE, "shingle": 1, "threshold": 0.8})
    assert len(written_ids(run)) == 2 - duplicates


def test_listed_similarities_are_shares_of_equal_slots(tmp_path: Path) -> None:
    rows = pairs_around_threshold()
    rows += [row | {"id": f"copy of {row['id']}"} for row in rows[:5]]
    texts = {row["id"]: row["text"] for row in rows}
    run = merged(tmp_path / "run", rows, near={})
    assert all(row["text"] == texts[row["id"]] for row in read_listing(run.part(0)))
    near, errors = Near(), []
    for pair in read_listing(run.duplicates):
        both = [texts[pair[side]["id"]] for side in ("duplicate", "survivor")]
        hashes = [shingles(fold(text), near.shingle) for text in both]
        left, right = minhash_slots(hashes, near.bands * near.rows, near.seed)
        estimate = int(1000 * np.mean(left == right)) / 1000
        common, union = overlap(*(np.unique(values) for values in hashes))
        truth = common / union
        # Where texts decide, their exact similarity is listed.
        assert pair["similarity"] in (estimate, 1000 * common // union / 1000)
        assert truth < 1 or pair["similarity"] == 1
        errors.append(pair["similarity"] - truth)
    assert len(errors) > 20
    assert abs(np.mean(errors)) < 0.01  # the estimate is unbiased


def test_jaccard_similarity_of_shingle_sets() -> None:
    left = np.arange(4, dtype=np.uint64)
    for start, stop, expected in ((0, 4, 1.0), (0, 5, 4 / 5), (1, 6, 3 / 6), (4, 9, 0.0)):
        right = np.arange(start, stop, dtype=np.uint64)
        common, union = overlap(left, right)
        assert overlap(right, left) == (common, union)
        assert common / union == expected


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
    ("dedup", "survivor"),
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
def test_the_manifest_chooses_the_survivor(
    tmp_path: Path, dedup: dict[str, Any], survivor: str
) -> None:
    assert written_ids(merged(tmp_path / "run", copies(), **dedup)) == [survivor]


@pytest.mark.parametrize(
    "output", [{}, {"provenance": False, "shuffle": True}, {"format": "parquet"}]
)
def test_the_best_documents_of_a_set_stay_and_rows_have_its_size(
    tmp_path: Path, output: dict[str, Any]
) -> None:
    words = random.Random(2).choices(WORDS, k=100)
    like = [page(f"like {n}", [*words[:n], "changed", *words[n + 1 :]]) for n in range(10, 24, 2)]
    rows = [*copies(), *(row | {"about": {"score": n}} for n, row in enumerate(like))]
    rows.append(page("alone", random.Random(3).choices(WORDS, k=100)))
    keys = {"near": SENSITIVE, "keep": "highest", "by": "about.score", "survivors": 3}
    run = merged(tmp_path / "run", rows, output=output | {"cluster_size": True}, **keys)
    if "format" in output:
        written = pq.read_table(run.part(0, "parquet")).to_pylist()
        written = [row | {"proxhpc": json.loads(row["proxhpc"])} for row in written]
    else:
        written = [*read_listing(run.part(0))]
    clusters: dict[tuple[str, int], set[str]] = {}
    for row in written:
        own = row["proxhpc"]
        clusters.setdefault((own["cluster_id"], own["cluster_size"]), set()).add(row["id"])
    sets = [{"plain", "good", "low"}, {"like 18", "like 20", "like 22"}, {"alone"}]
    assert sorted(map(sorted, clusters.values())) == sorted(map(sorted, sets))
    assert sorted(size for _, size in clusters) == [1, 4, 7]
    assert len({number for number, _ in clusters}) == 3
    summary = MergeSummary.load(run)
    assert summary is not None
    counts = summary.duplicates
    assert (counts.documents, counts.sets, counts.further) == (1 + 4, 2, 4)
    card = run.card.read_text()
    assert "4 documents are in this corpus beside the best one" in card
    assert "proxhpc.cluster_size" in card


def test_of_documents_with_the_same_url_one_stays(tmp_path: Path) -> None:
    texts = [random.Random(seed).choices(WORDS, k=60 + seed) for seed in range(9)]
    urls = [
        ("https://Example.org", 3),
        ("http://example.org:80/#top", 2),
        ("http://example.org/?utm_source=x", 5),  # as long as the next one, and first
        ("http://example.org/?utm_source=x", 5),
        ("http://example.org/other", 1),  # the text of what stays of the next two
        ("http://example.org/page", 1),
        ("http://example.org/page", 0),
        ("about nothing", 7),
        ("", 6),
        (None, 8),
    ]
    rows = [page(f"d{n}", texts[text]) | {"url": url} for n, (url, text) in enumerate(urls)]
    rows.append(page("lone", texts[4]))
    run = merged(tmp_path / "run", rows, {"cluster_size": True}, url="url", near={})
    assert written_ids(run) == ["d2", "d4", "d7", "d8", "d9", "lone"]
    pairs = [
        (pair["duplicate"]["id"], pair["survivor"]["id"], pair["similarity"])
        for pair in read_listing(run.duplicates)
    ]
    by_url = [("d0", "d2", None), ("d1", "d2", None), ("d3", "d2", None)]
    assert pairs == [*by_url, ("d5", "d4", 1.0), ("d6", "d4", None)]
    sizes = [row["proxhpc"]["cluster_size"] for row in read_listing(run.part(0))]
    assert sizes == [4, 3, 1, 1, 1, 1]
    write_report(run)
    report = json.loads(run.report_json.read_bytes())
    assert (report["documents"]["duplicates"], report["documents"]["url_duplicates"]) == (5, 4)
    assert report["duplicate_sets"]["with_url"] == 8
    assert "with the URL of another document | 4 |" in run.card.read_text()
    (found,) = inspect_documents(run, "d6")
    assert "with the URL of a document that is, or is like, d4" in facts(found)
    # URLs alone: what differs by URL stays, whatever its text.
    run = merged(tmp_path / "longest", rows, exact=False, url="url")
    assert written_ids(run) == ["d2", "d4", "d5", "d7", "d8", "d9", "lone"]
    scored = [row | {"score": -n} for n, row in enumerate(rows)]
    only = {"exact": False, "url": "url", "keep": "lowest", "by": "score", "survivors": 2}
    run = merged(tmp_path / "urls", scored, **only)
    assert written_ids(run) == ["d2", "d3", "d4", "d5", "d6", "d7", "d8", "d9", "lone"]


def test_urls_of_another_corpus_and_of_one_dump(tmp_path: Path) -> None:
    texts = [random.Random(seed).choices(WORDS, k=60) for seed in range(4)]
    other = [page("old", texts[0]) | {"url": "http://a.org/1"}]
    old = write_jsonl(tmp_path / "old.jsonl", other)
    urls = ["https://a.org/1", "https://a.org/2", "https://a.org/2"]
    rows = [page(f"d{n}", texts[n + 1]) | {"url": url, "dump": n > 1} for n, url in enumerate(urls)]
    against = {"paths": str(old), "id": "id"}
    run = merged(tmp_path / "run", rows, url="url", exact=False, against=against, survivors=9)
    assert written_ids(run) == ["d1", "d2"]
    assert [pair["survivor"]["id"] for pair in read_listing(run.duplicates)] == ["old"]
    run = merged(tmp_path / "within", rows, url="url", within="dump")
    assert written_ids(run) == ["d0", "d1", "d2"]


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("http://a.org", "HTTPS://A.ORG:443/#part", True),
        ("//a.org/", "http://a.org.:/", True),
        ("http://a.org/x?b=1&utm_medium=mail&gclid=7", " http://a.org/x?b=1", True),
        ("http://a.org/x", "http://a.org/X", False),
        ("http://a.org/x", "http://a.org/x/", False),
        ("http://a.org/x", "http://www.a.org/x", False),
        ("http://a.org:8080/", "http://a.org/", False),
        ("http://[::1]/", "http://[::1]:80/", True),
        ("http://a.org/?a=1&b=2", "http://a.org/?b=2&a=1", False),
        ("http://a.org/#!/one", "http://a.org/#!/two", False),
        ("doc:1#a", "doc:1#b", False),
    ],
)
def test_urls_of_one_page_are_equal(left: str, right: str, equal: bool) -> None:
    assert (canonical_url(left) == canonical_url(right)) == equal


def test_keep_first_prefers_the_first_to_the_longest(tmp_path: Path) -> None:
    short = page("short", random.Random(0).choices(WORDS, k=100))
    long = page("long", f"{short['text']} The End.".split())
    spaced = {"id": "spaced", "text": short["text"].replace(" ", "    ")}  # only in white space
    rows = [spaced, short, long]
    assert written_ids(merged(tmp_path / "first", rows, near={}, keep="first")) == ["spaced"]
    assert written_ids(merged(tmp_path / "longest", rows, near={})) == ["long"]


def test_ranks_are_ordered_as_the_values() -> None:
    values = [-1e308, -2, "-0.5", -0.0, 0, 1e-300, 3, "2001-01-01", "2001-01-01T00:00:01+00:00"]
    up, down = (Dedup.model_validate({"keep": keep, "by": "v"}) for keep in ("highest", "lowest"))
    ranks = [survivor_rank(up, {"v": value}) for value in values]
    assert ranks == sorted(ranks)
    assert len(set(ranks)) == len(values) - 1  # both zeros have one rank
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
        ({"exact": False, "against": {"paths": "x.jsonl"}}, "dedup.against: needs exact, near"),
        ({"against": "x.jsonl"}, 'dedup.against: must be a section or a list of .*, not "x.jsonl"'),
    ],
)
def test_a_dedup_section_that_contradicts_itself_is_refused(
    tmp_path: Path, dedup: dict[str, Any], message: str
) -> None:
    path = manifest(tmp_path, [write_jsonl(tmp_path / "in.jsonl", copies())], dedup=dedup)
    with pytest.raises(UserError, match=message):
        prepare_run(path, local_site(tmp_path), None)


def test_duplicates_of_another_corpus_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, read_against = Counter[Span](), Plan.read_against

    def counted(plan: Plan, span: Span, *args: Any, **options: Any) -> Any:
        read[span] += 1
        return read_against(plan, span, *args, **options)

    monkeypatch.setattr(Plan, "read_against", counted)
    rows = pairs_around_threshold()
    others = [{"body": row["text"], "name": f"old-{row['id']}"} for row in rows[:20:2]]
    others.insert(3, {"name": "nothing to read"})
    others += others[:1]  # duplicates within the other corpus do not matter
    files = [write_jsonl(tmp_path / "old" / f"{n}.jsonl.zst", others[n::2]) for n in range(2)]
    run = merged(
        tmp_path / "run",
        rows,
        near=SENSITIVE,
        against={"paths": str(tmp_path / "old" / "*.zst"), "text": "body", "id": "name"},
    )
    removed = {rows[n]["id"] for n in range(0, 20, 2)}
    similar = [true_jaccard(rows[n], rows[n + 1]) >= 0.8 for n in range(0, len(rows), 2)]
    removed |= {rows[2 * n + 1]["id"] for n in range(10) if similar[n]}
    removed |= {rows[2 * n]["id"] for n in range(10, 40) if similar[n]}
    assert set(written_ids(run)) == {row["id"] for row in rows} - removed
    summary = MergeSummary.load(run)
    assert summary is not None
    assert {*read.values()} == {2}  # to hash texts, and to compare those that hashes cannot decide
    counts = summary.duplicates
    assert (counts.external_documents, counts.external_unreadable) == (len(others) - 1, 1)
    assert counts.external == {0: 10 + sum(similar[:10])}
    survivors = {pair["duplicate"]["id"]: pair["survivor"] for pair in read_listing(run.duplicates)}
    assert survivors["a0"]["id"] == "old-a0"
    assert survivors["a0"]["source"].startswith("0.jsonl.zst:")
    assert "duplicates of documents of other corpora" in run.card.read_text()
    # The other corpus must not change after planning.
    run.sketch_receipt(len([*run.merge.glob("sketch/*.json")]) - 1).unlink()
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(StopError, match=r"1\.jsonl\.zst"):
        merge_run(run)


def test_documents_of_another_corpus_do_not_count_for_the_size_of_a_set(tmp_path: Path) -> None:
    words = [f"word{number}" for number in range(400)]
    texts = [" ".join(words[:length]) + "." for length in (396, 398, 400)]
    old = write_jsonl(tmp_path / "old.jsonl", [{"text": text} for text in texts[1:]])
    against = {"paths": str(old)}
    run = merged(tmp_path / "run", [{"id": "a", "text": texts[0]}], near=SENSITIVE, against=against)
    (pair,) = read_listing(run.duplicates)
    assert pair["survivor"]["source"] == "old.jsonl:0"  # the first: they are not ranked
    summary = MergeSummary.load(run)
    assert summary is not None
    assert (summary.duplicates.sets, summary.duplicates.largest_set) == (1, 2)
    rows = [{"id": name, "text": text} for name, text in zip("abc", texts, strict=True)]
    summary = MergeSummary.load(merged(tmp_path / "all", rows, near=SENSITIVE))
    assert summary is not None
    ((size, (best, _)),) = summary.duplicates.largest_sets
    assert (size, best) == (3, "b"), "the longest beside the survivor"


def test_another_corpus_must_be_there_and_have_texts(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "in.jsonl", copies())
    write_jsonl(tmp_path / "old.jsonl", [{"body": "x"}])
    for name, message in (("none.jsonl", r"dedup\.against\.paths\[0\]"), ("old.jsonl", "no text")):
        path = manifest(tmp_path, [source], dedup={"against": {"paths": str(tmp_path / name)}})
        with pytest.raises(UserError, match=message if "dedup" in message else "dedup.against"):
            prepare_run(path, local_site(tmp_path), None)


def test_only_documents_with_the_same_field_are_compared(tmp_path: Path) -> None:
    words = random.Random(1).choices(WORDS, k=100)
    changed = [*words[:50], "changed", *words[51:]]
    rows = [
        page(f"{name} {kind}", text) | {"dump": dump}
        for kind, text in (("same", words), ("near", changed))
        for name, dump in (("a", "2023-50"), ("b", "2023-50"), ("c", "2024-10"), ("d", None))
    ]
    everywhere = merged(tmp_path / "all", rows, near={})
    within = merged(tmp_path / "within", rows, near={}, within="dump")
    assert len(written_ids(everywhere)) == 1
    kept = [row["dump"] for row in read_listing(within.part(0))]
    assert sorted(map(str, kept)) == ["2023-50", "2024-10", "None"]


@pytest.mark.parametrize(("by", "ranked"), [("scores", 0), ("score", 1)])
def test_the_report_tells_if_no_document_has_the_field(
    tmp_path: Path, by: str, ranked: int
) -> None:
    rows = [page("a", WORDS[:40]), page("b", WORDS[:40]) | {"score": 3}]
    run = merged(tmp_path / "run", rows, keep="highest", by=by)
    write_report(run)
    assert json.loads(run.report_json.read_bytes())["duplicate_sets"]["ranked"] == ranked
    told = "No document has a\nnumber or date in the field" in run.report_html.read_text()
    assert told == (ranked == 0)
