"""Write the corpora and the manifest of `make prove`.

    python tools/prove_data.py OUT [FILE…]

FILEs are corpora in any format. Of records with a gold text (`text_gold`, what people would keep of
`text` or `text_noisy`), those of the validation hosts are the pool that is refined and trained on:
no refiner has learnt from them. The gold texts of the other hosts are held out, and so are some of
their raw texts, as a control set on which refining must not help. Without gold texts, all records
are the pool, and the gold records of the demo are held out. Without FILEs, the HTML pages in
/usr/share/doc are the pool.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import xxhash
import yaml

from html_lines import html_lines
from proxhpc.corpus.document import Document, Span
from proxhpc.corpus.hosts import host_of, split_of
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.corpus.writer import PartWriter

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTATION = Path("/usr/share/doc")
POOL_BYTES = 1_500_000  # of raw text; the laptop preset trains on half a million
MIN_POOL = 800_000
# Characters of pages to train on: a few long ones would make up much of a short training, and the
# seeds differ by which ones.
POOL_LENGTH = range(400, 12_000)
HELD_OUT, CONTROL = 120, 40  # documents
LENGTH = range(400, 5000)  # characters of held-out texts


def main() -> None:
    """Write the files into a folder."""
    out, *files = map(Path, sys.argv[1:])
    records = list(read_records(files)) if files else list(html_pages(DOCUMENTATION))
    has_gold = any(record["gold"] for record in records)
    if has_gold:
        records = main_language(record for record in records if record["gold"])
        pool = [r for r in records if r["host"] and split_of(r["host"], "") == "validation"]
        others = [r for r in records if not r["host"] or split_of(r["host"], "") == "train"]
    else:
        pool = main_language(records)
        others = list(read_records([ROOT / "manifests" / "demo" / "gold.jsonl"]))
    pool = limited(shuffled(r for r in pool if len(r["raw"]) in POOL_LENGTH))
    if (size := sum(map(raw_bytes, pool))) < MIN_POOL:
        sys.exit(
            f"{size:,} bytes of text to refine, fewer than {MIN_POOL:,}: set PROXHPC_DATA to files"
            " with more text (JSON lines, parquet)"
        )
    out.mkdir(parents=True, exist_ok=True)
    write(out / "pool.jsonl.zst", pool, "raw", gold=has_gold)
    held_out = [r for r in shuffled(others) if len(r["gold"]) in LENGTH]
    write(out / "gold.jsonl.zst", held_out[:HELD_OUT], "gold")
    control = [r for r in held_out[HELD_OUT:] or held_out if len(r["raw"]) in LENGTH]
    write(out / "control.jsonl.zst", control[:CONTROL], "raw")
    (out / "manifest.yaml").write_text(yaml.safe_dump(manifest(has_gold), sort_keys=False))
    print(f"{len(pool)} documents, {size:,} bytes; {len(held_out[:HELD_OUT])} held out")


def read_records(files: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Yield raw and gold text, host and language of each record."""
    for path in files:
        for item in read_span(path, "auto", Span(0), Fields(("text_noisy", "text"), "id"), 1 << 28):
            if isinstance(item, Document):
                yield {
                    "id": item.id,
                    "raw": item.text,
                    "gold": str(item.fields.get("text_gold") or ""),
                    "host": host_of(item.fields, "host", "url"),
                    "language": item.fields.get("lang", ""),
                }


def main_language(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of the most frequent language; the others' bits would swamp the mean."""
    records = list(records)
    ((language, _),) = Counter(record["language"] for record in records).most_common(1)
    return [record for record in records if record["language"] == language]


def shuffled(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records in an order that depends on their ids only."""
    return sorted(records, key=lambda record: xxhash.xxh3_64_intdigest(record["id"].encode()))


def limited(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the first records, POOL_BYTES long or a little more."""
    chosen, size = [], 0
    for record in records:
        if size < POOL_BYTES:
            chosen.append(record)
            size += raw_bytes(record)
    return chosen


def raw_bytes(record: dict[str, Any]) -> int:
    """Return the length of a raw text."""
    return len(record["raw"].encode("utf-8", "surrogatepass"))


def write(path: Path, records: list[dict[str, Any]], text: str, *, gold: bool = False) -> None:
    """Write documents with one of the texts, or the raw text with the gold text beside it."""
    with PartWriter(path) as writer:
        for record in records:
            row = {"id": record["id"], "host": record["host"], "text": record[text]}
            writer.write(row | ({"gold": record["gold"]} if gold else {}))


def html_pages(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the HTML pages in a folder as text; their host is their package."""
    for path in sorted(folder.rglob("*.html")):
        if not path.is_file() or path.stat().st_size > 200_000:
            continue
        lines = html_lines(path.read_text(encoding="utf-8", errors="replace"))
        text = "\n".join(line.text for line in lines)
        host = path.relative_to(folder).parts[0]
        yield {"id": str(path), "raw": text, "gold": "", "host": host, "language": ""}


def manifest(has_gold: bool) -> dict[str, Any]:
    """Return the manifest, with paths relative to its folder."""
    gold_arm = {"name": "gold", "corpus": {"paths": "pool.jsonl.zst", "id": "id", "text": "gold"}}
    return {
        "name": "prove",
        "run_dir": "run",
        "site": "local",
        "corpus": {"paths": "pool.jsonl.zst", "id": "id"},
        "stages": [{"level": "chunk", "model": "embedded"}],
        "engine": {"name": "transformers"},
        "sharding": {"tokens": 100_000},
        "prove": {
            "arms": [
                {"name": "raw", "policy": "none"},
                {"name": "rules", "rules": ["c4"]},
                {"name": "refined"},
                *([gold_arm] if has_gold else []),
            ],
            "training": {"preset": "laptop"},
            "milestones": [0.5],
            "held_out": [
                {"name": "gold", "paths": "gold.jsonl.zst"},
                {"name": "control", "paths": "control.jsonl.zst", "control": True},
            ],
        },
    }


if __name__ == "__main__":
    main()
