"""Another corpus of the same ledgers is, byte for byte, what a run of its own would have made."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from merging import SECTIONS, inputs, killed, output, rewrite_ledger
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


def made(folder: Path, files: Sequence[Path], place: str, **sections: Any) -> Run:
    """A refined run in a folder of that name."""
    path = manifest(folder, files, **SECTIONS | sections | {"run_dir": str(folder / place)})
    run = prepare_run(path, local_site(folder), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    return run


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, files: list[Path]) -> Run:
    """The run that others are made from; nobody changes it."""
    return made(tmp_path_factory.mktemp("base"), files, "run")


def every_file(out: VariantDir) -> dict[str, bytes]:
    """What `merging.output` says of a run."""
    own = [path for path in out.root.iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in [*own, *listings(out)]}


def alike(summary: MergeSummary) -> MergeSummary:
    """What two merges have in common; which documents a report shows depends on the plan."""
    stats = replace(summary.stats, examples=[])
    return replace(summary, match_digest="", parts=(), stats=stats)


def listings(run: RunDir) -> list[Path]:
    return [path for path in (run.quarantine, run.duplicates) if path.exists()]


def snapshot(run: RunDir) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [run.root, *run.root.rglob("*")]}


STRICT = {"max_removed_share": 0.02, "on_removed_share": "drop", "min_kept_words": 90}
ASIDE = STRICT | {"on_short": "quarantine"}
CHANGES: list[dict[str, Any]] = [
    {"policy": STRICT},
    {"policy": ASIDE},
    {"policy": "reference"},
    {"dedup": {"exact": False}},
    {"dedup": {"near": {"threshold": 0.3}, "keep": "first"}},
    {"output": PARTS | {"format": "parquet", "provenance": False}},
    {"output": PARTS | {"shuffle": True, "original": True}, "seed": 3, "name": "mixed"},
]


@pytest.mark.parametrize("sections", CHANGES, ids=lambda s: "-".join(s))
def test_it_is_what_a_run_of_its_own_would_make(
    tmp_path: Path, base: Run, files: list[Path], sections: dict[str, Any]
) -> None:
    fresh = made(tmp_path, files, "fresh", **sections)
    summary = merge_run(fresh.dir)
    before = snapshot(base.dir)
    out = VariantDir(tmp_path / "out", base.dir.root)
    asked = load_manifest(tmp_path / "manifest.yaml")
    found = variant.merge_variant(base.dir, out.root, asked)
    assert every_file(out) == output(fresh.dir)
    assert alike(found) == alike(summary)
    assert snapshot(base.dir) == before
    # And the way back, from what the other policy dropped or set aside.
    again = VariantDir(tmp_path / "again", fresh.dir.root)
    variant.merge_variant(fresh.dir, again.root, base.plan.manifest)
    there = VariantDir(tmp_path / "there", base.dir.root)
    variant.merge_variant(base.dir, there.root, base.plan.manifest)
    assert every_file(again) == every_file(there) != every_file(out)


def test_what_was_not_asked_for_is_set_aside(tmp_path: Path, files: list[Path]) -> None:
    run = made(tmp_path, files, "run", policy="reference")

    def drop(rows: list[Row], ends: list[SpanEnd]) -> None:
        """What the public code takes for a verdict, and ours for none."""
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
    asked = run.plan.manifest.model_dump(mode="json") | {"policy": {}}
    summary = variant.merge_variant(run.dir, out.root, Manifest.model_validate(asked))
    assert summary.counts.quarantined["not_asked"] == 1
    aside = [row for row in read_listing(out.quarantine) if row["reason"] == "not_asked"]
    assert len(aside) == 1


def test_killed_anywhere_it_goes_on(tmp_path: Path, base: Run) -> None:
    out, expected = (VariantDir(tmp_path / name, base.dir.root) for name in ("out", "whole"))
    data = base.plan.manifest.model_dump(mode="json")
    data["output"] |= {"shuffle": True}
    asked = Manifest.model_validate(data)
    variant.merge_variant(base.dir, expected.root, asked)

    def make(run: RunDir) -> None:
        variant.merge_variant(run, out.root, asked)

    lives = 0
    assert killed(base.dir, 0, make)  # before it says what it is
    while killed(base.dir, 9, make):
        lives += 1
    assert lives > 1
    make(base.dir)
    assert every_file(out) == every_file(expected)


def merge_command(run: RunDir, *options: str) -> tuple[int, str]:
    done = subprocess.run(
        [*PROXHPC, "merge", str(run.root), *options], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_makes_it_and_refuses_another_there(tmp_path: Path, base: Run) -> None:
    policy, out = tmp_path / "policy.yaml", tmp_path / "out"
    policy.write_text(json.dumps(STRICT))
    options = ("--out", str(out), "--policy", str(policy), "--threshold", "0.3")
    code, said = merge_command(base.dir, *options, "--processes", "2")
    assert code == 0, said
    assert f"parts: {out}" in said
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out, check=True)
    times = snapshot(RunDir(out))
    assert merge_command(base.dir, *options)[0] == 0
    times.pop(str(out / "merge" / "leases"))
    assert times.items() <= snapshot(RunDir(out)).items()
    code, said = merge_command(base.dir, "--out", str(out), "--policy", "reference")
    assert code == 2
    assert "created with another policy, dedup.near" in said
    code, said = merge_command(base.dir, "--threshold", "0.5")
    assert code == 2
    assert "add --out DIR" in said
    code, said = merge_command(base.dir, "--out", str(tmp_path / "x"), "--threshold", "1.5")
    assert code == 2
    assert "threshold" in said
    assert not (tmp_path / "x").exists()


def test_what_only_a_new_run_can_change_is_named(
    tmp_path: Path, base: Run, files: list[Path]
) -> None:
    changes: list[tuple[str, dict[str, Any]]] = [
        ("stages", {"stages": [{"level": "chunk"}]}),
        (r"corpus\.text", {"corpus": {"text": "body"}}),
        (r"dedup\.against", {"dedup": {"against": {"paths": str(files[0])}}}),
        (r"engine\.rules", {"engine": {"name": "rules", "rules": ["c4"]}}),
    ]
    for keys, sections in changes:
        asked = load_manifest(manifest(tmp_path, files, **SECTIONS | sections))
        with pytest.raises(UserError, match=f"^only a new run can change {keys}"):
            variant.merge_variant(base.dir, tmp_path / "out", asked)
    assert not (tmp_path / "out").exists()


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path, base: Run, files: list[Path]) -> None:
    asked = base.plan.manifest
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes").write_text("mine")
    with pytest.raises(UserError, match=r"full is not empty.*notes"):
        variant.merge_variant(base.dir, tmp_path / "full", asked)
    with pytest.raises(UserError, match=r"notes: it is a file, not a directory"):
        variant.merge_variant(base.dir, tmp_path / "full" / "notes", asked)
    assert (tmp_path / "full" / "notes").read_text() == "mine"
    with pytest.raises(UserError, match="lies in the run"):
        variant.merge_variant(base.dir, base.dir.root / "corpus2", asked)
    with pytest.raises(UserError, match="is not empty"):
        variant.merge_variant(base.dir, base.dir.root.parent, asked)
    other = made(tmp_path, files, "other")
    variant.merge_variant(base.dir, tmp_path / "out", asked)
    with pytest.raises(UserError, match="a corpus of another run"):
        variant.merge_variant(other.dir, tmp_path / "out", asked)
    other.dir.ledger(1).unlink()
    with pytest.raises(RetryError, match=r"1 of .* shards are not refined yet"):
        variant.merge_variant(other.dir, tmp_path / "new", asked)


def test_what_models_would_have_been_asked_otherwise_is_told() -> None:
    chunk = {"level": "chunk", "model": "org/model"}
    base = {"name": "n", "run_dir": "/r", "corpus": {"paths": ["/in"]}, "stages": [chunk]}
    base |= {"engine": {"name": "vllm"}}

    def told(before: Any, now: Any, **more: Any) -> str:
        both = [Manifest.model_validate(base | more | {"policy": p}) for p in (before, now)]
        return variant.why_programs_may_differ(*both)

    assert "would continue to write after" in told(STRICT, "reference")
    assert "models continued to write after" in told("reference", {})
    assert "the policy limits what models can write" in told(
        {}, STRICT, stages=[chunk | {"grammar": "strings"}]
    )
    assert told({}, STRICT) == told("reference", "reference") == ""
    rules = {"engine": {"name": "rules"}, "stages": [{"level": "chunk"}]}
    assert told({}, "reference", **rules) == ""
