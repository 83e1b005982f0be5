"""Lines that the corpus has several times are removed by programs that the account names."""

import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from merging import corpus, output
from proxhpc.assemble.merge import merge_run
from proxhpc.errors import StopError
from proxhpc.inspect.document import inspect_documents, sample_documents
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.report import write_report
from proxhpc.report.build import build_report
from proxhpc.review.source import RunReview
from proxhpc.verify import verify_run
from proxhpc.worker.worker import Assignment, run_worker
from runs import local_site, manifest, write_jsonl

LINES = {"min_chars": 20, "min_kept_chars": 30}


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 1)  # a group for each shard
    monkeypatch.setattr("proxhpc.assemble.rounds._KEY_BYTES", 3000)


def pages(number: int = 60) -> list[dict[str, Any]]:
    """Pages of which some lines repeat others, in other case and white space, too."""
    rng = random.Random(4)
    common = [f"Notice {n} is the same on several pages" for n in range(8)]
    rows = []
    for page in range(number):
        lines = [
            f"Page {page} says {rng.random()} in its line {n}" for n in range(rng.randrange(4))
        ]
        lines += [rng.choice([str.upper, str.title, str])(rng.choice(common)) for _ in range(3)]
        lines += ["short line", "", "  ".join(rng.choice(common).split(" "))]
        rng.shuffle(lines)
        rows.append({"id": f"p{page}", "text": "\n".join(lines), "n": page % 3})
    rows[9]["text"] = rows[8]["text"]  # an exact duplicate, whose lines do not count
    return rows


def expected(rows: list[dict[str, Any]], keep: int) -> dict[str, str]:
    """The texts of the corpus, by a plain program."""
    seen, total = Counter[str](), Counter[str]()
    fold = lambda line: re.sub(r"\s+", " ", line).strip().lower()  # noqa: E731
    rows = [row for n, row in enumerate(rows) if n != 9]
    for row in rows:
        total.update(map(fold, row["text"].split("\n")))
    texts = {}
    for row in rows:
        lines = []
        for line in row["text"].split("\n"):
            folded = fold(line)
            seen[folded] += 1
            gone = seen[folded] > keep if keep else total[folded] > 1
            if len(folded) < LINES["min_chars"] or not gone:
                lines.append(line)
        text = "\n".join(lines)
        if text == row["text"] or len(fold(text)) >= LINES["min_kept_chars"]:
            texts[row["id"]] = text
    return texts


def refined_pages(folder: Path, tokens: int = 500, **sections: Any) -> Run:
    """A refined run over the pages, in which no program edits anything."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = pages()
    files = [write_jsonl(folder / f"{n}.jsonl", rows[30 * n : 30 * n + 30]) for n in range(2)]
    more = {"dedup": {"lines": LINES}, "policy": "none"} | sections
    path = manifest(folder, files, stages=[{"level": "chunk"}], sharding={"tokens": tokens}, **more)
    run = prepare_run(path, local_site(folder), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    return run


@pytest.mark.parametrize("keep", [0, 1, 2])
def test_the_first_occurrences_of_a_line_stay(tmp_path: Path, keep: int) -> None:
    run = refined_pages(tmp_path, dedup={"lines": LINES | {"keep": keep}})
    summary = merge_run(run.dir, memory=0)
    texts = {row["id"]: row["text"] for row in corpus(run.dir)}
    assert texts == expected(pages(), keep)
    assert summary.duplicates.documents == 1
    assert summary.lines
    edited = [row for row in pages() if texts.get(row["id"], row["text"]) != row["text"]]
    before, after = (
        sum(t.count("\n") for t in side)
        for side in ((row["text"] for row in edited), (texts[row["id"]] for row in edited))
    )
    assert (summary.lines.documents, summary.lines.lines) == (len(edited), before - after)
    assert summary.lines.left_out == 60 - 1 - len(texts) > 0


def test_groups_memory_and_order_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = refined_pages(tmp_path / "a")
    merge_run(run.dir, memory=0)
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 32 << 20)
    one = refined_pages(tmp_path / "b", tokens=10**6)
    merge_run(one.dir)
    assert len(run.plan.shards) > 6
    assert output(run.dir) == output(one.dir)
    shuffled = refined_pages(tmp_path / "c", output={"shuffle": True})
    merge_run(shuffled.dir)
    texts = {row["id"]: row["text"] for row in corpus(shuffled.dir)}
    assert texts == expected(pages(), 1)


def test_lines_are_compared_within_the_values_of_a_field(tmp_path: Path) -> None:
    run = refined_pages(tmp_path, dedup={"exact": False, "within": "n", "lines": LINES})
    merge_run(run.dir)
    texts = {row["id"]: row["text"] for row in corpus(run.dir)}
    rows = pages()
    for value in range(3):
        part = [row for row in rows if row["n"] == value]
        wanted = expected([*part[:9], part[0], *part[9:]], 1)  # `expected` leaves the ninth out
        assert {row["id"]: texts[row["id"]] for row in part if row["id"] in texts} == wanted


def test_each_removed_line_is_explained(tmp_path: Path) -> None:
    run = refined_pages(tmp_path)
    summary = merge_run(run.dir)
    rows, raw = {row["id"]: row for row in corpus(run.dir)}, {row["id"]: row for row in pages()}
    changed = [name for name, row in rows.items() if row["text"] != raw[name]["text"]]
    for name, row in rows.items():
        assert row["proxhpc"]["outcome"] == "kept"  # what the refiner did
        lines = raw[name]["text"].split("\n")
        for call in (row["proxhpc"]["merge"] or "").splitlines():
            first, last = map(int, re.findall(r"\d+", call))
            lines[first : last + 1] = [None] * (last + 1 - first)
        assert "\n".join(line for line in lines if line is not None) == row["text"]
    (item,) = inspect_documents(run.dir, changed[0])
    assert item.after == rows[changed[0]]["text"]
    assert item.merge_program == rows[changed[0]]["proxhpc"]["merge"]
    left_out = next(name for name in raw if name not in rows and name != "p9")
    (item,) = inspect_documents(run.dir, left_out)
    assert (item.outcome, item.reason) == ("left_out", "repeated_lines")
    assert item.merge_program.startswith("remove_lines(")
    for outcome in ("left_out", "kept"):
        sample = sample_documents(run.dir, 100, outcome)
        assert {item.outcome for item in sample} == {outcome}
        assert len(sample) == {"left_out": 60 - 1 - len(rows), "kept": len(rows)}[outcome]
    (reviewed,) = RunReview(run.dir).find(changed[0])
    texts = reviewed.read()
    assert texts
    assert texts.after == raw[changed[0]]["text"], "people judge the refiner, not the merge"

    write_report(run.dir)
    report = build_report(run.dir)
    assert report.documents.left_out == {"repeated_lines": 60 - 1 - len(rows)}
    assert report.repeated_lines == summary.lines.lines
    entries = {entry.outcome: entry for entry in report.outcomes}
    assert entries["shortened"].documents == len(changed)
    assert sum(entry.raw_tokens for entry in report.outcomes) == report.tokens.read
    sizes = {name: -(-len(row["text"].encode()) // 4) for name, row in raw.items()}
    gone = [name for name in raw if name not in rows and name != "p9"]
    assert entries["left_out"].raw_tokens == sum(sizes[name] for name in gone)
    assert entries["duplicate"].raw_tokens == sizes["p9"]
    assert verify_run(run.dir).intact
    assert "repeated" in run.dir.card.read_text() or "several times" in run.dir.card.read_text()

    path = run.dir.match_files(summary.match_digest).line_programs(0)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    run.dir.merge_summary.unlink()
    for receipt in run.dir.part_receipt(0).parent.iterdir():
        receipt.unlink()
    with pytest.raises(StopError, match="is damaged"):
        merge_run(run.dir)
