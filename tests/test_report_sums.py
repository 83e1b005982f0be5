"""Report and card against sums computed from the published parts and the raw inputs alone."""

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from merging import refined
from proxhpc.assemble.examples import read_examples
from proxhpc.assemble.merge import merge_run
from proxhpc.report import write_report
from proxhpc.run.paths import RunDir

Texts = dict[str, str]  # by source
NAMES = ("a.jsonl.zst", "b.jsonl.gz", "c.jsonl")


class Truth:
    """Sums that anybody can compute from the raw files and the parts."""

    def __init__(self, folder: Path, run: RunDir) -> None:
        self.readable: Texts = {}
        self.unreadable: Counter[str] = Counter()
        self.unreadable_bytes = 0
        for name in NAMES:
            at = 0
            for line in unpacked(folder / name).splitlines(keepends=True):
                if line.strip():
                    self._record(name, at, line)
                at += len(line)
        self.rows = [
            orjson.loads(line)
            for part in sorted(run.corpus.glob("part-*"))
            for line in unpacked(part).splitlines()
        ]
        self.written: Texts = {row["proxhpc"]["source"]: row["text"] for row in self.rows}
        survivors = {normal(self.readable[source]) for source in self.written}
        missing = self.readable.keys() - self.written.keys()
        self.copies = {source for source in missing if normal(self.readable[source]) in survivors}
        self.dropped = missing - self.copies

    def _record(self, name: str, at: int, line: bytes) -> None:
        try:
            self.readable[f"{name}:{at}"] = json.loads(line.decode())["text"]
        except (ValueError, KeyError):
            self.unreadable[name] += 1
            self.unreadable_bytes += len(line.rstrip(b"\n"))

    def count(self, name: str, sources: Any) -> int:
        """How many of the sources are in this file."""
        return sum(source.startswith(f"{name}:") for source in sources)


def unpacked(path: Path) -> bytes:
    if path.suffix == ".zst":
        with path.open("rb") as file:
            return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def normal(text: str) -> str:
    return " ".join(text.casefold().split())


def tokens(texts: Any) -> int:
    return sum(-(-len(text.encode()) // 4) for text in texts)


def histogram(numbers: Any) -> dict[int, int]:
    """How many numbers are in each bin, by the bin's smallest number."""
    bins: Counter[int] = Counter()
    for number in numbers:
        low = 1
        while low * 2 <= number:
            low *= 2
        bins[low if number else 0] += 1
    return dict(bins)


def bins(report: dict[str, Any], what: str, which: str) -> dict[int, int]:
    return {one["min"]: one[which] for one in report["distributions"][what] if one[which]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, Path]:
    made = refined(tmp_path_factory.mktemp("sums"))
    merge_run(made.dir)
    write_report(made.dir)
    return made.dir, Path(made.plan.inputs[0].path).parent


@pytest.fixture(scope="module")
def report(run: tuple[RunDir, Path]) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(run[0].report_json.read_bytes())
    return data


@pytest.fixture(scope="module")
def truth(run: tuple[RunDir, Path]) -> Truth:
    return Truth(run[1], run[0])


def test_documents(report: dict[str, Any], truth: Truth) -> None:
    docs = report["documents"]
    assert docs["read"] == len(truth.readable) + truth.unreadable.total() == 39
    assert docs["written"] == len(truth.rows) == len(truth.written)
    assert docs["duplicates"] == len(truth.copies) == 3
    assert sum(docs["dropped"].values()) == len(truth.dropped) > 0
    assert sum(docs["quarantined"].values()) == truth.unreadable.total() == 3
    same = sum(truth.readable[source] == text for source, text in truth.written.items())
    # Copies are in no part, so it is unknown whether they were edited.
    assert docs["kept"] - same in range(len(truth.copies) + 1)
    assert docs["kept"] + docs["edited"] == len(truth.written) + len(truth.copies)


def test_files(report: dict[str, Any], truth: Truth) -> None:
    for file in report["inputs"]:
        name = file["name"]
        assert file["documents"] == truth.count(name, truth.readable) + truth.unreadable[name]
        assert file["written"] == truth.count(name, truth.written)
        assert file["duplicates"] == truth.count(name, truth.copies)
        assert file["dropped"] == truth.count(name, truth.dropped)
        assert file["quarantined"] == truth.unreadable[name]
        assert file["written_ratio"] == round(file["written"] / file["documents"], 6)


def test_tokens_and_bytes(report: dict[str, Any], truth: Truth) -> None:
    raw, written = truth.readable.values(), truth.written.values()
    assert report["tokens"]["read"] == tokens(raw)
    assert report["tokens"]["written"] == tokens(written)
    assert report["bytes"]["written"] == sum(len(text.encode()) for text in written)
    assert report["bytes"]["read"] == (
        sum(len(text.encode()) for text in raw) + truth.unreadable_bytes
    )


def test_raw_tokens_by_outcome(report: dict[str, Any], truth: Truth) -> None:
    lost = {one["outcome"]: one["raw_tokens"] for one in report["outcomes"]}
    assert sum(one["raw_tokens"] for one in report["outcomes"]) == tokens(truth.readable.values())
    assert lost["written"] == tokens(truth.written.values())
    assert lost["dropped"] == tokens(truth.readable[source] for source in truth.dropped)
    raw = tokens(truth.readable[source] for source in truth.written)
    copies = tokens(truth.readable[source] for source in truth.copies)
    assert lost["edited"] + lost["duplicate"] == raw - lost["written"] + copies


def test_distributions(report: dict[str, Any], truth: Truth) -> None:
    raw, written = list(truth.readable.values()), list(truth.written.values())
    for what, size in (
        ("tokens", lambda text: tokens([text])),
        ("lines", lambda text: text.count("\n") + 1),
    ):
        assert bins(report, what, "raw") == histogram(map(size, raw))
        refined = Counter(bins(report, what, "refined"))
        refined.subtract(histogram(map(size, written)))
        assert min(refined.values()) >= 0
        assert refined.total() == len(truth.copies), "refined documents in no part"


def test_programs(report: dict[str, Any], truth: Truth) -> None:
    """Rows of the corpus hold the programs of their documents, but not those of copies."""
    calls: Counter[str] = Counter()
    for row in truth.rows:
        calls.update(re.findall(r"^(\w+)\(", "\n".join(every_string(row["proxhpc"])), re.M))
    of_doc, of_chunk = (report["programs"][level]["calls"] for level in ("doc", "chunk"))
    assert of_doc["drop_doc"] == len(truth.dropped)
    assert of_doc["keep_doc"] == len(truth.written) + len(truth.copies)
    assert calls["keep_doc"] == len(truth.written)
    assert 0 <= of_chunk["remove_lines"] - calls["remove_lines"] <= len(truth.copies)


def every_string(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return [text for one in inner for text in every_string(one)]
    return [value] if isinstance(value, str) else []


def test_examples_are_raw_and_published_texts(
    run: tuple[RunDir, Path], report: dict[str, Any], truth: Truth
) -> None:
    texts = {one.source: one for one in read_examples(run[0])}
    assert {one["outcome"] for one in report["examples"]} == {"edited", "dropped"}
    for example in report["examples"]:
        one = texts[example["source"]]
        assert one.before == truth.readable[one.source]
        if one.source in truth.written:
            assert one.after == truth.written[one.source]
        else:
            assert (one.after is None) == (one.source in truth.dropped)
    named = {one["source"] for one in report["duplicate_sets"]["largest"]}
    assert named == truth.copies <= texts.keys()


def test_the_card_has_the_same_numbers(run: tuple[RunDir, Path], truth: Truth) -> None:
    card = run[0].card.read_text()
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d, |]+) \|$", card, re.M))
    cells = {
        name: [int(cell.replace(",", "")) for cell in row.split(" | ")]
        for name, row in rows.items()
    }
    written = truth.written.values()
    assert cells["in this corpus"] == [
        len(truth.rows), sum(len(text.encode()) for text in written), tokens(written)
    ]  # fmt: skip
    assert cells["raw input"][0] == len(truth.readable) + truth.unreadable.total()
    assert cells["raw input"][2] == tokens(truth.readable.values())
    assert cells["refined, but a duplicate"] == [len(truth.copies)]
    assert cells["refined, and in this corpus"] == [len(truth.rows)]
    for name in NAMES:
        numbers = cells[name]
        assert numbers[0] == truth.count(name, truth.readable) + truth.unreadable[name]
        assert numbers[-2:] == [truth.count(name, truth.copies), truth.count(name, truth.written)]
