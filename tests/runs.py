"""Small runs for tests: documents in, a planned run directory out."""

import functools
import hashlib
import importlib.util
import json
import random
import subprocess
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

import orjson
import yaml
import zstandard

from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.ledger import Row, read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.process import descendants

# Fault points that are reached only after deaths at these other points.
AFTER_DEATHS = {
    "lease stolen": ("commit synced",),
    "death noted": ("commit synced",),
    "attempt resumed": ("commit synced",),
}
# Starts a launcher in another pid namespace, where it is like one on another login node. The first
# process there is a shell, because the first process cannot stop itself.
ELSEWHERE = (
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount-proc",
    "sh",
    "-c",
    '"$@"; :',
    "sh",
)
# Why the executor rejects a well-formed statement.
EXECUTE_REASONS = (
    *("outside_window", "no_such_line", "other_window", "reversed_range", "blank_source"),
    *("not_found", "ambiguous", "inside_word", "too_many_matches", "growth", "overlap"),
    *("crosses_removed", "too_many_strings"),
)
PARAGRAPH = (
    "The river rises in the hills to the north of the town and flows through the valley.\n"
    "In the spring the meadows on both of its banks are under water for several weeks.\n"
    "People who live there have built their houses on higher ground since the great flood.\n"
    "A narrow road with old trees on either side connects the two villages to each other.\n"
    "Every year in the autumn the farmers meet in the market hall and settle their accounts.\n"
)


def document(number: int, **more: Any) -> dict[str, Any]:
    """Return a document that the rules edit: five sentences and a navigation line."""
    text = f"Home | About | Contact\n{PARAGRAPH}Number {number} of the series ends with this line."
    return {"id": f"doc-{number}", "text": text, "url": f"http://example.org/{number}"} | more


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """Write a JSON lines file, compressed by its suffix; a row in bytes is written unchanged."""
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    data = b"".join(line + b"\n" for line in lines)
    if path.suffix == ".zst":
        data = zstandard.ZstdCompressor().compress(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def manifest(folder: Path, paths: Sequence[Path], **sections: Any) -> Path:
    """Write a manifest for these inputs, with the rules engine by default."""
    data: dict[str, Any] = {
        "name": "small",
        "run_dir": str(folder / "run"),
        "corpus": {"paths": [str(path) for path in paths], "id": "id"},
        "stages": [{"level": "doc"}, {"level": "chunk"}],
        "engine": {"name": "rules"},
        "sharding": {"tokens": 2000},
        "commit": {"documents": 4},
    }
    for key, value in sections.items():
        data[key] = data[key] | value if isinstance(value, dict) and key in data else value
    path = folder / "manifest.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def planned(folder: Path, count: int = 60, **sections: Any) -> Run:
    """Plan a run over `count` documents in two files."""
    rows = [document(number) for number in range(count)]
    files = [
        write_jsonl(folder / "in" / "a.jsonl.zst", rows[: count // 3]),
        write_jsonl(folder / "in" / "b.jsonl", rows[count // 3 :]),
    ]
    return prepare_run(manifest(folder, files, **sections), local_site(folder), None)


def many_documents(folder: Path, copies: int) -> list[Path]:
    """Write 1,000 documents of real sentences several times over, no two of them identical."""
    gold = Path(__file__).parents[1] / "manifests" / "demo" / "gold.jsonl"
    pages = [orjson.loads(line)["text_gold"] for line in gold.read_bytes().splitlines()]
    lines = [line for page in pages for line in page.split("\n")]
    chooser = random.Random(0)
    texts = ["\n".join(chooser.choices(lines, k=chooser.randrange(5, 60))) for _ in range(1000)]
    return [
        write_jsonl(
            folder / f"many-{part}.jsonl.zst",
            (
                {"id": f"{i}#{n}", "text": f"{texts[i]}\nCopy {n} ends with this line."}
                for n in range(copies)
                for i in range(part, len(texts), 4)
            ),
        )
        for part in range(4)
    ]


def stopped_below(pid: int) -> list[int]:
    """Return the processes below `pid` that a signal has stopped."""
    stopped = []
    for child in descendants(pid):
        with suppress(OSError):  # it may end meanwhile
            stat = Path(f"/proc/{child}/stat").read_text()
            stopped += [child] if stat.rpartition(")")[2].split()[0] == "T" else []
    return stopped


def corpus_bytes(run: RunDir) -> dict[str, str]:
    """Return the SHA-256 of each part of the corpus."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(run.corpus.glob("part-*"))
    }


def check_balance(run: RunDir) -> dict[str, int]:
    """Check that the corpus files and the merge's sums add up."""
    summary = json.loads(run.merge_summary.read_bytes())
    counts = summary["counts"]
    written = 0
    for path in run.corpus.glob("part-*"):
        with zstandard.open(path, "rb") as file:
            written += file.read().count(b"\n")
    in_corpus = counts["kept"] + counts["edited"]
    assert counts["documents"] == in_corpus + sum(counts["dropped"].values()) + sum(
        counts["quarantined"].values()
    )
    assert in_corpus == written + summary["duplicates"]["documents"]
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=run.corpus, check=True)
    return {"documents": counts["documents"], "written": written}


def local_site(folder: Path, workers: int = 2) -> str:
    """Write a site file for local processes."""
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump({"name": "here", "kind": "local", "workers": workers}))
    return str(path)


def rows_of(run: RunDir, plan: Plan) -> list[Row]:
    """Return every row of every published ledger, verified, in input order."""
    return [
        item
        for shard in range(len(plan.shards))
        for item in read_ledger(run.ledger(shard), plan.digest, shard)
        if isinstance(item, Row)
    ]


def load_tool(name: str) -> ModuleType:
    """A script of tools/, as a module."""
    path = Path(__file__).parents[1] / "tools" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@functools.cache
def schema_tool() -> ModuleType:
    """tools/write_schemas.py, as a module."""
    return load_tool("write_schemas")
