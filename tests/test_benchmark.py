"""Documents that contain runs of words of a benchmark are found, left out and explained."""

import json
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merging import corpus
from proxhpc.assemble import benchmark, merge
from proxhpc.assemble.benchmark import MIN_MEMORY
from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.cli.main import main
from proxhpc.dedup import shingles
from proxhpc.dedup.shingles import fold, words_of
from proxhpc.errors import StopError, UserError
from proxhpc.inspect.document import inspect_documents, sample_documents
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.launch.variant import merge_variant
from proxhpc.plan.estimate import estimate_run
from proxhpc.plan.space import Sizes, estimate_memory
from proxhpc.report import write_report
from proxhpc.report.build import build_report
from proxhpc.run.paths import RunDir, VariantDir
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.site import Site
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
    data["dedup"]["against"][0] |= {"drop": True, "share": 0.3, "fields": ["answers"], "words": 8}
    data["dedup"]["lines"] = {"min_chars": 1000}
    merge_variant(run.dir, tmp_path / "out", Manifest.model_validate(data))
    names = {row["id"] for row in corpus(VariantDir(tmp_path / "out", run.dir.root))}
    assert names == {row["id"] for row in PAGES} - expected(8, 0.3).keys()


def test_memory_has_the_index_of_a_benchmark_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = merged(tmp_path)
    (folder,) = run.dir.merge.glob("benchmark/*")
    index = sum(path.stat().st_size for path in folder.glob("*.npy"))
    assert index > 8 << 10  # the smallest filter
    words = r"take [\d.]+ KiB of memory; with the 16 MiB that .* more than --max-ram 16 MiB"
    with pytest.raises(UserError, match=words) as refused:
        merge_run(run.dir, memory=MIN_MEMORY)
    assert refused.value.hint == "--max-ram 17MiB"
    merge_run(run.dir, memory=17 << 20)
    for path in folder.glob("hashes.npy"):
        path.write_bytes(path.read_bytes()[:-8])
    for receipt in run.dir.merge.glob("sketch/*.json"):
        receipt.unlink()
    benchmark._open.cache_clear()  # as in a new process
    with pytest.raises(StopError, match=r"hashes\.npy is damaged") as damaged:
        merge_run(run.dir)
    assert damaged.value.hint == f"delete the folder {folder} and merge again, which rewrites it"
    shutil.rmtree(folder)
    sorting, match = [], merge.match_documents
    monkeypatch.setattr(merge, "match_documents", lambda *a: sorting.append(a[2]) or match(*a))
    with monkeypatch.context() as patch:
        patch.setattr(benchmark, "MIN_MEMORY", 1 << 40)  # the default leaves room by itself
        merge_run(run.dir)
    assert sorting == [1 << 30]
    large = replace(run.plan.against[0], estimated_bytes=1 << 30)
    plan = replace(run.plan, against=(large,))
    site = Site.model_validate({"name": "s", "cpus": 8, "mem": "4G"})
    sizes = Sizes(90, 90, 0, 0, 0, 0)
    more = estimate_memory(plan, site, sizes) - estimate_memory(run.plan, site, sizes)
    assert 4 << 30 < more < 8 << 30
    (note,) = (n for n in estimate_run(plan, site, run.dir).notes if "memory" in n)
    assert "of memory in one job, and site s gives it 4G" in note
    plan.save(RunDir(tmp_path / "large"), b"")
    path = tmp_path / "slurm.yaml"
    path.write_text("{name: s, mem: 4G}")
    monkeypatch.setattr("proxhpc.cli.main._drive", lambda run: 0)
    capsys.readouterr()
    assert main(["launch", str(tmp_path / "large"), "--site", str(path)]) == 0
    assert "note: the merge needs about" in capsys.readouterr().out


def test_an_index_that_others_may_have_mapped_is_never_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of two processes that write it at the same time wins; names of files count, too."""
    run, write = merged(tmp_path), benchmark._write_files
    (folder,) = run.dir.merge.glob("benchmark/*")
    before = {path.name: path.stat().st_ino for path in folder.iterdir()}

    def slower(*args: Any) -> int:
        skipped = write(*args)
        aside.rename(folder)  # another process has finished
        return skipped

    aside, old, new = (folder.with_name(name) for name in ("aside", ".a.tmp", ".b.tmp"))
    folder.rename(aside)
    old.mkdir()
    os.utime(old, (0, 0))
    new.mkdir()
    monkeypatch.setattr(benchmark, "_write_files", slower)
    merge_run(run.dir)
    assert {path.name: path.stat().st_ino for path in folder.iterdir()} == before
    assert {*folder.parent.iterdir()} == {folder, new}

    monkeypatch.setattr(benchmark, "_write_files", write)
    renamed = (replace(run.plan.against[0], name="other.jsonl"),)
    for receipt in run.dir.merge.glob("sketch/*.json"):
        receipt.unlink()
    merge_run(run.dir, replace(run.plan, against=renamed))
    files = {row["item"]["source"].split(":")[0] for row in read_listing(run.dir.benchmark_hits)}
    assert files == {"other.jsonl"}


def test_other_corpora_may_be_many(tmp_path: Path) -> None:
    """Each has its own fields, format and mode; a document in two benchmarks counts once."""
    words = [RNG.choices(WORDS, k=40) for _ in range(6)]
    rows = [{"id": f"p{n}", "text": " ".join(each)} for n, each in enumerate(words)]
    others = {name: tmp_path / name / "test.jsonl" for name in "abc"}
    write_jsonl(others["a"], [{"body": rows[0]["text"], "key": "of a"}])
    (tmp_path / "b.txt").write_text(rows[1]["text"])
    write_jsonl(others["b"], [{"q": " ".join(words[n][:20])} for n in (2, 3)])
    write_jsonl(others["c"], [{"text": " ".join(words[n][:12])} for n in (3, 4)])
    contained = {"mode": "contained"}
    path = manifest(
        tmp_path,
        [write_jsonl(tmp_path / "in.jsonl", rows)],
        policy="none",
        dedup={
            "against": [
                {"paths": str(others["a"]), "text": "body", "id": "key"},
                {"paths": str(others["b"]), "text": "q", **contained},
                {"paths": str(tmp_path / "b.txt")},
                {"paths": str(others["c"]), "words": 10, "drop": False, **contained},
            ]
        },
    )
    run = prepare_run(path, local_site(tmp_path), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    merge_run(run.dir)
    assert [row["id"] for row in corpus(run.dir)] == ["p4", "p5"]
    pairs = {
        row["duplicate"]["id"]: (row["survivor"]["id"], row["survivor"]["source"])
        for row in read_listing(run.dir.duplicates)
    }
    assert pairs == {"p0": ("of a", "a/test.jsonl:0"), "p1": ("b.txt", "b.txt:0")}
    hits = [(row["id"], row["left_out"]) for row in read_listing(run.dir.benchmark_hits)]
    assert hits == [("p2", True), ("p3", True), ("p4", False)]
    write_report(run.dir)
    assert build_report(run.dir).benchmark == {"b/test.jsonl": 2, "c/test.jsonl": 1}
    card = run.dir.card.read_text()
    assert "2 of them were left out" in card
    assert (
        "2 documents are duplicates of documents of other corpora (1 of `against[0]`, 1 of" in card
    )
    assert verify_run(run.dir).intact
    (found,) = inspect_documents(run.dir, "p4")
    assert (found.outcome, found.reason) != ("left_out", "benchmark")
    assert found.benchmark_item

    data = run.plan.manifest.model_dump(mode="json")
    data["dedup"]["against"][3]["drop"] = True
    merge_variant(run.dir, tmp_path / "out", Manifest.model_validate(data))
    out = VariantDir(tmp_path / "out", run.dir.root)
    assert [row["id"] for row in corpus(out)] == ["p5"]
    data["dedup"]["against"][0]["text"] = ["text"]
    with pytest.raises(UserError, match=r"only a new run can change dedup\.against\[0\]\.text"):
        merge_variant(run.dir, tmp_path / "more", Manifest.model_validate(data))


def test_words_are_found_in_long_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shingles, "BLOCK", 64)
    words = RNG.choices(WORDS, k=300)
    folded = fold(" , ".join(words))
    for first in (0, 11, 150, 287):
        assert words_of(folded, first, 13) == " , ".join(words[first : first + 13])
