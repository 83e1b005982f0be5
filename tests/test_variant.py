"""Another corpus of the same ledgers is byte for byte what a new run would have written."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merging import SECTIONS, corpus, inputs, killed, output, records, rewrite_ledger
from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.summary import MergeSummary
from proxhpc.cluster import tasks
from proxhpc.corpus.document import SpanEnd
from proxhpc.errors import RetryError, UserError
from proxhpc.launch import variant
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.run.ledger import Row
from proxhpc.run.paths import RunDir, VariantDir
from proxhpc.spec.manifest import Manifest, load_manifest
from runs import local_site, manifest

PROXHPC = [sys.executable, "-m", "proxhpc"]
PARTS = SECTIONS["output"]


def refined_run(folder: Path, files: Sequence[Path], run_dir: str, **sections: Any) -> Run:
    """A refined run in a folder of this name."""
    path = manifest(folder, files, **SECTIONS | sections | {"run_dir": str(folder / run_dir)})
    run = prepare_run(path, local_site(folder), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Run:
    """The run from which others are made; no test changes it."""
    return refined_run(tmp_path_factory.mktemp("base"), files, "run")


def every_file(out: VariantDir) -> dict[str, bytes]:
    """The files that `merging.output` returns for a run."""
    files = [path for path in out.root.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in [*files, *listings(out)]}


def comparable(summary: MergeSummary) -> MergeSummary:
    """What two merges have in common; the choice of examples depends on the plan."""
    stats = replace(summary.stats, examples=[])
    return replace(summary, match_digest="", parts=(), stats=stats)


def listings(run: RunDir) -> list[Path]:
    return [path for path in (run.quarantine, run.duplicates) if path.exists()]


def snapshot(run: RunDir) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [run.root, *run.root.rglob("*")]}


STRICT = {"max_removed_share": 0.02, "on_removed_share": "drop", "min_kept_words": 90}
QUARANTINE = STRICT | {"on_short": "quarantine"}
CHANGES: list[dict[str, Any]] = [
    {"policy": STRICT},
    {"policy": QUARANTINE},
    {"policy": "reference"},
    {"dedup": {"exact": False}},
    {"dedup": {"near": {"threshold": 0.3}, "keep": "first"}},
    {"output": PARTS | {"format": "parquet", "provenance": False}},
    {"output": PARTS | {"shuffle": True, "original": True}, "seed": 3, "name": "mixed"},
]


@pytest.mark.parametrize("sections", CHANGES, ids=lambda s: "-".join(s))
def test_a_variant_is_what_a_new_run_would_write(
    tmp_path: Path, base: Run, files: list[Path], sections: dict[str, Any]
) -> None:
    fresh = refined_run(tmp_path, files, "fresh", **sections)
    summary = merge_run(fresh.dir)
    before = snapshot(base.dir)
    out = VariantDir(tmp_path / "out", base.dir.root)
    changed = load_manifest(tmp_path / "manifest.yaml")
    variant_summary = variant.merge_variant(base.dir, out.root, changed)
    assert every_file(out) == output(fresh.dir)
    assert comparable(variant_summary) == comparable(summary)
    assert snapshot(base.dir) == before
    # And back again, from what the other policy dropped or quarantined.
    again = VariantDir(tmp_path / "again", fresh.dir.root)
    variant.merge_variant(fresh.dir, again.root, base.plan.manifest)
    unchanged = VariantDir(tmp_path / "unchanged", base.dir.root)
    variant.merge_variant(base.dir, unchanged.root, base.plan.manifest)
    assert every_file(again) == every_file(unchanged) != every_file(out)


def test_policy_none_is_the_raw_corpus_without_duplicates(tmp_path: Path, base: Run) -> None:
    out = VariantDir(tmp_path / "out", base.dir.root)
    summary = variant.merge_variant(
        base.dir, out.root, variant.variant_manifest(base.dir, None, "none", None)
    )
    raw = {row["text"] for row in records() if isinstance(row, dict) and "text" in row}
    rows = corpus(out)
    assert {row["text"] for row in rows} <= raw
    assert len(rows) == summary.counts.kept - summary.duplicates.documents > 30
    assert summary.duplicates.documents == 3
    assert not summary.counts.edited
    assert not summary.counts.dropped


def test_documents_without_the_needed_programs_are_quarantined(
    tmp_path: Path, files: list[Path]
) -> None:
    run = refined_run(tmp_path, files, "run", policy="reference")

    def drop(rows: list[Row], ends: list[SpanEnd]) -> None:
        """A program that drops the document by the reference policy, but not by the default one."""
        row = next(row for row in rows if row.outcome == "edited" and row.doc)
        assert row.doc is not None
        rows[rows.index(row)] = replace(
            row,
            outcome="dropped",
            reason="doc_program",
            doc=row.doc._replace(program="drop_doc() or keep_doc()"),
            windows=(),
            bytes_out=0,
            tokens_out=0,
            lines_removed=0,
            strings_replaced=0,
            rejected={},
        )

    rewrite_ledger(run, 0, drop)
    out = VariantDir(tmp_path / "out", run.dir.root)
    changed = run.plan.manifest.model_dump(mode="json") | {"policy": {}}
    summary = variant.merge_variant(run.dir, out.root, Manifest.model_validate(changed))
    assert summary.counts.quarantined["not_asked"] == 1
    assert [row["reason"] for row in read_listing(out.quarantine)].count("not_asked") == 1


def test_a_killed_variant_resumes(tmp_path: Path, base: Run) -> None:
    out, expected = (VariantDir(tmp_path / name, base.dir.root) for name in ("out", "whole"))
    data = base.plan.manifest.model_dump(mode="json")
    data["output"] |= {"shuffle": True}
    changed = Manifest.model_validate(data)
    variant.merge_variant(base.dir, expected.root, changed)

    def make(run: RunDir) -> None:
        variant.merge_variant(run, out.root, changed)

    kills = 0
    assert killed(base.dir, 0, make)  # before it writes variant.json
    while killed(base.dir, 9, make):
        kills += 1
    assert kills > 1
    make(base.dir)
    assert every_file(out) == every_file(expected)


def merge_command(run: RunDir, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [*PROXHPC, "merge", str(run.root), *options], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_writes_a_variant_and_refuses_another_in_its_place(
    tmp_path: Path, base: Run
) -> None:
    policy, out = tmp_path / "policy.yaml", tmp_path / "out"
    policy.write_text(json.dumps(STRICT))
    options = ("--out", str(out), "--policy", str(policy), "--threshold", "0.3")
    code, printed = merge_command(base.dir, *options, "--processes", "2")
    assert code == 0, printed
    assert f"1 document in 1 part: {out}" in printed
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    times = snapshot(RunDir(out))
    assert merge_command(base.dir, *options)[0] == 0
    times.pop(str(out / "merge" / "leases"))
    assert times.items() <= snapshot(RunDir(out)).items()
    code, printed = merge_command(base.dir, "--out", str(out), "--policy", "reference")
    assert code == 2
    assert "created with another policy, dedup.near" in printed
    code, printed = merge_command(base.dir, "--threshold", "0.5")
    assert code == 2
    assert "add --out DIR" in printed
    code, printed = merge_command(base.dir, "--out", str(tmp_path / "x"), "--threshold", "1.5")
    assert code == 2
    assert "threshold" in printed
    assert not (tmp_path / "x").exists()


def test_keys_that_only_a_new_run_can_change_are_named(
    tmp_path: Path, base: Run, files: list[Path]
) -> None:
    changes: list[tuple[str, dict[str, Any]]] = [
        ("stages", {"stages": [{"level": "chunk"}]}),
        (r"corpus\.text", {"corpus": {"text": "body"}}),
        (r"dedup\.against", {"dedup": {"against": {"paths": str(files[0])}}}),
        (r"engine\.rules", {"engine": {"name": "rules", "rules": ["c4"]}}),
    ]
    for keys, sections in changes:
        changed = load_manifest(manifest(tmp_path, files, **SECTIONS | sections))
        with pytest.raises(UserError, match=f"^only a new run can change {keys}"):
            variant.merge_variant(base.dir, tmp_path / "out", changed)
    assert not (tmp_path / "out").exists()


def test_a_directory_with_other_files_is_refused(
    tmp_path: Path, base: Run, files: list[Path]
) -> None:
    same = base.plan.manifest
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"full is not empty.*notes"):
        variant.merge_variant(base.dir, tmp_path / "full", same)
    with pytest.raises(UserError, match=r"notes: it is a file, not a directory"):
        variant.merge_variant(base.dir, tmp_path / "full" / "notes", same)
    assert (tmp_path / "full" / "notes").read_text() == "mine"
    with pytest.raises(UserError, match="is inside the run"):
        variant.merge_variant(base.dir, base.dir.root / "corpus2", same)
    with pytest.raises(UserError, match="is not empty"):
        variant.merge_variant(base.dir, base.dir.root.parent, same)
    other = refined_run(tmp_path, files, "other")
    variant.merge_variant(base.dir, tmp_path / "out", same)
    with pytest.raises(UserError, match="a corpus of another run"):
        variant.merge_variant(other.dir, tmp_path / "out", same)
    other.dir.ledger(1).unlink()
    with pytest.raises(RetryError, match=r"not refined yet: 1 of .* shards"):
        variant.merge_variant(other.dir, tmp_path / "new", same)


def test_policies_under_which_models_write_other_programs_are_named() -> None:
    chunk = {"level": "chunk", "model": "org/model"}
    base = {"name": "n", "run_dir": "/r", "corpus": {"paths": ["/in"]}, "stages": [chunk]}
    base |= {"engine": {"name": "vllm"}}

    def reason(before: Any, now: Any, **more: Any) -> str:
        both = [Manifest.model_validate(base | more | {"policy": p}) for p in (before, now)]
        return variant.why_programs_may_differ(*both)

    assert "would continue to write after" in reason(STRICT, "reference")
    assert "models continued to write after" in reason("reference", {})
    assert "the policy limits what models can write" in reason(
        {}, STRICT, stages=[chunk | {"grammar": "strings"}]
    )
    assert reason({}, STRICT) == reason("reference", "reference") == ""
    rules = {"engine": {"name": "rules"}, "stages": [{"level": "chunk"}]}
    assert reason({}, "reference", **rules) == ""
