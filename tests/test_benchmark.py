"""Documents that contain runs of words of a benchmark are found, left out and explained."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merging import corpus
from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.dedup import shingles
from proxhpc.dedup.shingles import fold, words_of
from proxhpc.inspect.document import inspect_documents, sample_documents
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.launch.variant import merge_variant
from proxhpc.plan.space import Sizes, estimate_memory
from proxhpc.report import write_report
from proxhpc.report.build import build_report
from proxhpc.run.paths import VariantDir
from proxhpc.spec.manifest import Manifest
from proxhpc.verify import verify_run
from proxhpc.worker.worker import Assignment, run_worker
from runs import local_site, manifest, write_jsonl

WORDS = [f"{a}{b}{c}" for a in "bdfgklm" for b in "aeiou" for c in ("ld", "mp", "nt", "rk")]
RNG = random.Random(8)


def item(number: int, words: int) -> dict[str, Any]:
    text = RNG.choices(WORDS, k=words)
    question, answers = text[: words - 6], [" ".join(text[-6:-3]), " ".join(text[-3:])]
    return {"id": f"q{number}", "question": " ".join(question), "answers": {"text": answers}}


ITEMS = [item(number, 20 + number % 30) for number in range(30)] + [item(30, 12)]


def words_of_item(row: dict[str, Any]) -> list[str]:
    return f"{row['question']} {' '.join(row['answers']['text'])}".split()


def pages() -> list[dict[str, Any]]:
    """Pages of which two thirds have a piece of an item, in other case and punctuation."""
    rows = []
    for number in range(90):
        words = RNG.choices(WORDS, k=60)
        if number % 3:
            of_item = words_of_item(RNG.choice(ITEMS))
            start = RNG.randrange(len(of_item))
            piece = of_item[start : start + RNG.randrange(8, 25)]
            at = RNG.randrange(len(words))
            words[at:at] = [f"{word.upper()}," for word in piece]
        lines = [" ".join(words[n : n + 10]) for n in range(0, len(words), 10)]
        rows.append({"id": f"p{number}", "text": "\n".join(lines)})
    return rows


PAGES = pages()


def runs(words: list[str], size: int) -> list[tuple[str, ...]]:
    return [tuple(words[n : n + size]) for n in range(len(words) - size + 1)]


def expected(size: int, share: float) -> dict[str, tuple[str, float, str]]:
    """The best item of each page that has one, its share and the first run, by a plain program."""
    found = {}
    for page in PAGES:
        words = runs(page["text"].lower().replace(",", "").split(), size)
        best: tuple[float, str, str] = (0.0, "", "")
        for row in ITEMS:
            of_item = set(runs(words_of_item(row), size))
            common = of_item & set(words)
            if common and len(common) / len(of_item) > best[0]:
                first = next(run for run in words if run in of_item)
                best = len(common) / len(of_item), row["id"], " ".join(first)
        if best[0] > 0 and best[0] >= share:
            found[page["id"]] = best[1], round(best[0], 4), best[2]
    return found


def merged(folder: Path, tokens: int = 1500, **against: Any) -> Run:
    bench = folder / "bench.jsonl"
    bench.parent.mkdir(parents=True, exist_ok=True)
    bench.write_text("".join(f"{json.dumps(row)}\n" for row in ITEMS) + "no JSON\n")
    section = {"paths": str(bench), "mode": "contained", "text": "question", "id": "id"}
    path = manifest(
        folder,
        [write_jsonl(folder / "in.jsonl", PAGES)],
        stages=[{"level": "chunk"}],
        policy="none",
        dedup={"against": {**section, "fields": ["answers"], **against}},
        sharding={"tokens": tokens},
    )
    run = prepare_run(path, local_site(folder), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    merge_run(run.dir)
    return run


@pytest.mark.parametrize(("size", "share"), [(13, 0.0), (8, 0.3)])
def test_documents_with_parts_of_a_benchmark_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, share: float
) -> None:
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 1)  # a group for each shard
    run = merged(tmp_path, words=size, share=share)
    wanted = expected(size, share)
    assert 8 < len(wanted) < 60
    hits = {row["id"]: row["item"] for row in read_listing(run.dir.benchmark_hits)}
    listed = {
        name: (hit["id"], hit["share"], hit["words"].replace(",", "").replace("\n", " "))
        for name, hit in hits.items()
    }
    assert listed == wanted
    assert {row["id"] for row in corpus(run.dir)} == {row["id"] for row in PAGES} - wanted.keys()

    write_report(run.dir)
    report = build_report(run.dir)
    assert report.documents.left_out == {"benchmark": len(wanted)}
    assert report.benchmark == {"bench.jsonl": len(wanted)}
    assert report.benchmark_skipped == 1 + (size > 12)  # one is no JSON, one has 12 words
    sizes = {row["id"]: -(-len(row["text"]) // 4) for row in PAGES}
    entry = next(entry for entry in report.outcomes if entry.outcome == "left_out")
    assert entry.raw_tokens == sum(sizes[name] for name in wanted)
    assert verify_run(run.dir).intact
    name = next(iter(wanted))
    (found,) = inspect_documents(run.dir, name)
    assert (found.outcome, found.reason) == ("left_out", "benchmark")
    assert found.benchmark_item
    assert found.benchmark_item.words == hits[name]["words"]
    assert len(sample_documents(run.dir, 100, "left_out")) == len(wanted)


def test_documents_may_only_be_listed_in_any_number_of_groups(tmp_path: Path) -> None:
    run = merged(tmp_path, tokens=10**6, drop=False)
    assert {row["id"] for row in read_listing(run.dir.benchmark_hits)} == expected(13, 0).keys()
    assert len(corpus(run.dir)) == len(PAGES)
    assert build_report(run.dir).documents.left_out == {}
    data = run.plan.manifest.model_dump(mode="json")
    data["dedup"]["against"] |= {"drop": True, "share": 0.3, "fields": ["answers"], "words": 8}
    data["dedup"]["lines"] = {"min_chars": 1000}
    merge_variant(run.dir, tmp_path / "out", Manifest.model_validate(data))
    names = {row["id"] for row in corpus(VariantDir(tmp_path / "out", run.dir.root))}
    assert names == {row["id"] for row in PAGES} - expected(8, 0.3).keys()
    sizes, size = Sizes(90, 90, 0, 0, 0, 0), run.plan.against[0].estimated_bytes
    without = replace(run.plan, against=())
    more = estimate_memory(run.plan, run.site, sizes) - estimate_memory(without, run.site, sizes)
    assert more >= 10 * size * run.site.resources("merge").cpus


def test_words_are_found_in_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shingles, "BLOCK", 64)
    words = RNG.choices(WORDS, k=300)
    folded = fold(" , ".join(words))
    for first in (0, 11, 150, 287):
        assert words_of(folded, first, 13) == " , ".join(words[first : first + 13])
