"""The merge in arrays: shares in any order, done once or twice, give the same corpus."""

import os
import shutil
import subprocess
from collections.abc import Collection, Container
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from merging import killed, output, refined
from proxhpc.assemble.match import pending_rounds, round_units
from proxhpc.assemble.match_result import require_match
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.phases import pending_units, run_share
from proxhpc.cli.main import main
from proxhpc.cluster import tasks
from proxhpc.cluster.backend import TaskBatch, record_intent
from proxhpc.cluster.journal import Journal
from proxhpc.errors import ProxError, RetryError, StopError
from proxhpc.launch.launch import Run
from proxhpc.launch.step import advance, advance_lock, merge_batch
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.merge_phases import ROUND_NAMES, RoundName
from proxhpc.run.paths import RunDir
from proxhpc.spec.site import PhaseName, Resources, Site
from proxhpc.status.collect import collect
from proxhpc.status.view import one_line

ALL_ROUNDS = {"near": {"bands": 20, "rows": 2}, "url": "url", "lines": {"min_chars": 1}}
Phase = Any  # a phase of the merge, as the parameters of tests have it


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 1)  # a group for each shard


def twins(folder: Path, **sections: Any) -> tuple[Run, Run]:
    """A run that one job has merged, and a copy from before the merge."""
    whole = refined(folder, **sections)
    run = replace(whole, dir=RunDir(folder / "twin"))
    shutil.copytree(whole.dir.root, run.dir.root)
    merge_run(whole.dir)
    return whole, run


def phases(run: Run) -> dict[str, tuple[int, int]]:
    """How many units of each phase are pending, of how many."""
    return {p.phase: (len(p.units), p.total) for p in pending_units(run.dir, run.plan)}


def resources(workers: int) -> Resources:
    site = {"name": "s", "phases": {"merge": {"workers": workers}}}
    return Site.model_validate(site).resources("merge")


class InProcessBackend:
    """Runs elements in this process on submission, except those of the first batch in `lost`."""

    def __init__(self, run: RunDir, lost: Container[int] = ()) -> None:
        self.run, self.lost = run, lost
        self.batches: list[TaskBatch] = []

    def active_elements(self, phase: PhaseName) -> int:
        return 0

    def submit(self, batch: TaskBatch, follow_up: TaskBatch | None) -> list[str]:
        record_intent(Journal(self.run), len(self.batches), batch, arrays=1, has_control_job=False)
        Journal(self.run).write("released", len(self.batches))
        for number, arguments in enumerate(batch.arguments):
            if len(self.batches) or number not in self.lost:
                with suppress(ProxError):  # it is in the progress file
                    batch.function(*arguments)
        self.batches.append(batch)
        return ["7"]

    def ensure_follow_up(self, follow_up: TaskBatch) -> bool:
        return False

    def set_aside_paused(self) -> list[str]:
        return []

    def drop_paused(self) -> None:
        pass

    def release_held(self) -> list[str]:
        return []

    @property
    def site_words(self) -> list[str]:
        return []

    def silent_round(self, phase: PhaseName, spoke: Collection[str]) -> tuple[str, int]:
        return "", 0

    def reconcile(self) -> list[str]:
        return []

    def free_elements(self, resources: Resources) -> int:
        return resources.jobs

    def failing_nodes(self, productive_jobs: Container[str]) -> dict[str, int]:
        return {}

    def cancel(self) -> list[str]:
        return []

    @property
    def submitted(self) -> list[tuple[str, list[int]]]:
        """Phase and shares of each batch; the job that does all phases is ("all", [])."""
        return [
            (batch.arguments[0][1], [arguments[2] for arguments in batch.arguments])
            if batch.function is tasks.merge_phase_task
            else ("all", [])
            for batch in self.batches
        ]


def advanced(run: Run, backend: InProcessBackend, workers: int) -> list[tuple[str, list[int]]]:
    """Advance until the report is written, on a site with so many workers; what was submitted."""
    site = Site.model_validate({"name": "s", "phases": {"merge": {"workers": workers}}})
    run.dir.site.write_text(site.model_dump_json(exclude_unset=True))
    for step in range(30):
        with advance_lock(run.dir) as lease:
            if advance(lease, run.plan, backend, manual=step == 0).phase == "report":
                return backend.submitted
    raise AssertionError(f"no report after {backend.submitted}")


def test_a_merge_that_died_unseen_is_taken_over_by_one_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login node does not know of which cluster's queue its job was."""
    run = refined(tmp_path)
    dead = LeaseOwner("merge-7", "elsewhere", 2, "1", job="7", space="x", cluster="c")
    run.dir.lease("merge", 1).write_bytes(orjson.dumps(dead))
    monkeypatch.setattr("proxhpc.launch.step.stale_after", lambda _: 0.2)
    monkeypatch.setattr("proxhpc.run.lease._POLL_SECONDS", 0.05)
    backend = InProcessBackend(run.dir, lost={0})
    with advance_lock(run.dir) as lease:
        advance(lease, run.plan, backend, manual=True)
    assert backend.submitted == [("all", [])]


@pytest.mark.parametrize("shuffle", [False, True])
def test_shares_in_any_order_and_twice_give_the_same_corpus(tmp_path: Path, shuffle: bool) -> None:
    more = {"output": {"part_size": 6000, "shuffle": shuffle}}
    whole, run = twins(tmp_path, **more)
    assert phases(run)["sketch"] == (6, 6)
    for number in (2, 0, 2, 1):
        run_share(run.dir, "sketch", (number, 3))
    assert phases(run) == {"sketch": (0, 6), "match": (1, 1)}
    run_share(run.dir, "match", (0, 1))
    run_share(run.dir, "match", (0, 1))
    assert phases(run)["write"] == (4, 4)
    for number in (1, 0, 0):
        run_share(run.dir, "scatter", (number, 2))
    assert phases(run).get("scatter") == ((0, 6) if shuffle else None)
    run_share(run.dir, "write", (3, 4))
    assert phases(run)["write"] == (3, 4)
    for number in (1, 0, 1):  # in other shares than before
        run_share(run.dir, "write", (number, 2))
    assert phases(run)["write"] == (0, 4)
    assert not run.dir.checksums.exists()
    merge_run(run.dir)
    assert output(run.dir) == output(whole.dir)


@pytest.mark.parametrize("phase", ["sketch", "write"])
def test_units_of_a_killed_share_are_pending(tmp_path: Path, phase: Phase) -> None:
    whole, run = twins(tmp_path)
    if phase == "write":
        run_share(run.dir, "sketch", (0, 1))
        run_share(run.dir, "match", (0, 1))
    all_units = set(range(phases(run)[phase][1]))
    share = {unit for unit in all_units if unit % 2}
    for allowed in range(20):
        was_killed = killed(run.dir, allowed, lambda r: run_share(r, phase, (1, 2)))
        pending = next(p for p in pending_units(run.dir, run.plan) if p.phase == phase)
        assert set(pending.units) - share == all_units - share
        assert was_killed == bool(set(pending.units) & share)
        if not was_killed:
            break
    assert allowed > 2
    merge_run(run.dir)
    assert output(run.dir) == output(whole.dir)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_run_goes_through_its_phases_and_repeats_lost_elements(
    tmp_path: Path, shuffle: bool
) -> None:
    more = {"output": {"part_size": 6000, "shuffle": shuffle}}
    whole, run = twins(tmp_path, **more)
    submitted = advanced(run, InProcessBackend(run.dir, lost=[1]), workers=3)
    expected = [
        ("sketch", [0, 1, 2]),
        ("sketch", [1]),
        ("match", [0]),
        ("scatter", [0, 1, 2]),
        ("write", [0, 1, 2]),
        ("all", []),
    ]
    assert submitted == [batch for batch in expected if shuffle or batch[0] != "scatter"]
    assert output(run.dir) == output(whole.dir)
    assert run.dir.report_json.exists()


def test_each_round_of_a_large_match_is_an_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, run = twins(tmp_path, dedup=ALL_ROUNDS)
    monkeypatch.setattr("proxhpc.assemble.phases._ONE_JOB_BYTES", 0)
    monkeypatch.setattr("proxhpc.assemble.rounds._KEY_BYTES", 1000)
    units = {name: min(3, round_units(run.plan, name)) for name in ROUND_NAMES}
    assert units["candidates"] == units["finish"] == 3
    submitted = advanced(run, InProcessBackend(run.dir), workers=3)
    assert submitted == [
        ("sketch", [0, 1, 2]),
        ("start", [0]),
        *((name, [*range(units[name])]) for name in ROUND_NAMES),
        ("write", [*range(min(3, len(require_match(run.dir).parts)))]),
        ("all", []),
    ]
    assert output(run.dir) == output(whole.dir)
    folders = {path.name for path in run.dir.match_folder.glob("*/*")}
    assert folders == {"flags", "duplicates", "line_programs"}


def test_a_match_killed_in_every_round_resumes_where_it_stopped(tmp_path: Path) -> None:
    whole, run = twins(tmp_path, dedup=ALL_ROUNDS)
    run_share(run.dir, "sketch", (0, 1))
    run_share(run.dir, "start", (0, 1))

    def pending(name: RoundName) -> int:
        return next(len(r.units) for r in pending_rounds(run.dir, run.plan) if r.name == name)

    for name in ROUND_NAMES:
        units = pending(name)
        assert units == round_units(run.plan, name)
        share = partial(run_share, phase=name, share=(0, 1))
        assert killed(run.dir, 5 if units > 1 else 0, share)  # files; at most 5 for a unit
        assert units == 1 or pending(name) < units
        assert pending(name)
        share(run.dir)
        assert not pending(name)
    merge_run(run.dir)
    assert output(run.dir) == output(whole.dir)


def test_a_small_run_or_one_worker_is_one_job(tmp_path: Path) -> None:
    run = refined(tmp_path)
    for workers, function in (
        (1, tasks.merge_task),
        (6, tasks.merge_phase_task),
        (7, tasks.merge_task),
    ):
        batch = merge_batch(run.dir, run.plan, resources(workers), workers)
        assert batch.function is function
    assert len(merge_batch(run.dir, run.plan, resources(6), 4).arguments) == 4
    assert advanced(run, InProcessBackend(run.dir), workers=7) == [("all", [])]


def test_files_missing_behind_a_receipt_are_written_again_by_the_last_job(tmp_path: Path) -> None:
    whole, run = twins(tmp_path)
    run_share(run.dir, "sketch", (0, 1))
    run_share(run.dir, "match", (0, 1))
    for group in range(6):
        run.dir.sketch(group).unlink()
    submitted = advanced(run, InProcessBackend(run.dir), workers=2)
    assert submitted == [("write", [0, 1]), ("all", [])]
    assert output(run.dir) == output(whole.dir)


def test_shards_that_are_refined_again_are_matched_again(tmp_path: Path) -> None:
    run = refined(tmp_path)
    run_share(run.dir, "sketch", (0, 1))
    run_share(run.dir, "match", (0, 1))
    run.dir.ledger(2).unlink()
    backend = InProcessBackend(run.dir)
    with advance_lock(run.dir) as lease:
        run.dir.site.write_text('{"name": "s"}')
        advance(lease, run.plan, backend, manual=True)
    assert backend.batches[0].phase == "refine"
    assert phases(run) == {"sketch": (0, 6), "match": (1, 1)}


def test_a_phase_that_is_started_too_early_names_what_is_missing(tmp_path: Path) -> None:
    run = refined(tmp_path)
    with pytest.raises(StopError, match=r"there is no .*match\.json"):
        run_share(run.dir, "write", (0, 1))
    run.dir.ledger(0).unlink()
    with pytest.raises(RetryError, match="not refined yet: 1 of 6 shards"):
        run_share(run.dir, "sketch", (0, 1))


def test_status_shows_the_progress_of_each_phase(tmp_path: Path) -> None:
    run = refined(tmp_path)
    run_share(run.dir, "sketch", (0, 3))
    status = collect(run.dir, None)
    assert [(p.phase, p.done, p.total) for p in status.merge] == [
        ("sketch", 2, 6),
        ("match", 0, 22),
    ]
    assert "sketch 2/6" in one_line(status)
    merge_run(run.dir)
    assert collect(run.dir, None).merge == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--phase sketch --number 2 --of 2", "--number must be from 0 to 1"),
        ("--number 1 --of 2", "add --phase"),
        ("--phase write --out DIR", "--phase cannot be combined with --out"),
    ],
)
def test_impossible_shares_are_a_one_line_error(
    tmp_path: Path, options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = refined(tmp_path)
    assert main(["merge", str(run.dir.root), *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_batch_script_does_a_share(tmp_path: Path) -> None:
    run = refined(tmp_path)
    script = Path(__file__).parents[1] / "slurm" / "merge.sbatch"
    arguments = subprocess.run(
        ["bash", str(script), str(run.dir.root), "sketch"],
        env=os.environ
        | {"PROXHPC": "echo", "SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_COUNT": "2"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert main(arguments.split()) == 0
    assert phases(run)["sketch"] == (3, 6)
