"""The worker: leases, commits, resumes after a crash, publishes once."""

import asyncio
import errno
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxhpc.account.counts import Counts
from proxhpc.cluster import tasks
from proxhpc.corpus.document import BadRecord, Document, SpanEnd
from proxhpc.corpus.frames import FrameWriter
from proxhpc.engines.rules.engine import RulesEngine
from proxhpc.errors import RetryError, StopError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.refine.refiner import Refiner, open_refiner
from proxhpc.run.crash_backoff import MAX_POISON, CrashBackoff
from proxhpc.run.lease import HEARTBEAT_SECONDS, STALE_AFTER, Lease, LeaseOwner, Leases, hold_lease
from proxhpc.run.ledger import LedgerWriter, Row, bad_row, read_ledger
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from proxhpc.run.shards import missing_shards
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.worker.leaser import MAX_CHECKS, Leaser
from proxhpc.worker.shard import OpenShard, open_shard
from proxhpc.worker.worker import Assignment, Worker, run_worker
from runs import PARAGRAPH, document, local_site, manifest, planned, rows_of, write_jsonl

FORK = multiprocessing.get_context("fork")


def refine(run: Run) -> None:
    tasks.refine_task(str(run.dir.root), 0, 1)


def crash(run: Run, patch: Callable[[], None]) -> None:
    """Work in a child process that kills itself where `patch` makes it."""

    def child() -> None:
        patch()
        refine(run)

    process = FORK.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def open_first_shard(run: Run, leases: Leases) -> OpenShard:
    shard = Leaser(run.dir, run.plan, leases, (0, 1)).next()
    assert isinstance(shard, OpenShard)
    return shard


def test_every_document_has_one_row_in_input_order(tmp_path: Path) -> None:
    run = planned(tmp_path)
    assert len(run.plan.shards) > 3
    refine(run)
    rows = rows_of(run.dir, run.plan)
    assert [row.id for row in rows] == [f"doc-{number}" for number in range(60)]
    assert {row.outcome for row in rows} == {"edited"}
    assert list(missing_shards(run.dir, run.plan)) == []


def test_a_commit_has_as_many_documents_as_the_manifest_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = {"documents": 10, "seconds": 600}
    run = planned(tmp_path, 25, commit=commit, sharding={"tokens": 20_000_000})
    sizes = []
    original = LedgerWriter.commit

    def record(self: LedgerWriter, rows: list[Row], ends: tuple[SpanEnd, ...] = ()) -> Counts:
        sizes.append(len(rows))
        return original(self, rows, ends)

    monkeypatch.setattr(LedgerWriter, "commit", record)
    refine(run)
    assert sizes == [10, 10, 5]


def test_a_finished_run_has_one_file_for_each_shard(tmp_path: Path) -> None:
    run = planned(tmp_path)
    refine(run)
    assert [*run.dir.leases.glob("[!.]*")] == []
    files = [path for path in run.dir.shards.rglob("*") if path.is_file()]
    assert sorted(files) == [run.dir.ledger(shard) for shard in range(len(run.plan.shards))]


@pytest.mark.parametrize("commits", [1, 2, 5, 9])
def test_a_killed_worker_is_resumed_after_its_last_commit(tmp_path: Path, commits: int) -> None:
    quiet = planned(tmp_path / "quiet") if (tmp_path / "quiet").mkdir() is None else None
    assert quiet is not None
    refine(quiet)
    (tmp_path / "rough").mkdir()
    run = planned(tmp_path / "rough")
    done = 0
    original = LedgerWriter.commit

    def commit(self: LedgerWriter, rows: list[Row], ends: tuple[SpanEnd, ...] = ()) -> Counts:
        nonlocal done
        share = original(self, rows, ends)
        done += 1
        if done == commits:
            die()
        return share

    crash(run, lambda: setattr(LedgerWriter, "commit", commit))
    refine(run)
    assert rows_of(run.dir, run.plan) == rows_of(quiet.dir, quiet.plan)
    assert [*run.dir.leases.glob("[!.]*")] == []


def test_a_worker_killed_between_publishing_and_cleaning_up(tmp_path: Path) -> None:
    run = planned(tmp_path)
    original = OpenShard.publish

    def publish(self: OpenShard) -> None:
        unlink = Path.unlink

        def die_once_published(path: Path, missing_ok: bool = False) -> None:
            if run.dir.ledger(0).exists():  # else it is the draft of a thread's progress file
                die()
            unlink(path, missing_ok)

        Path.unlink = die_once_published  # type: ignore[method-assign,assignment]
        try:
            original(self)
        finally:
            Path.unlink = unlink  # type: ignore[method-assign]

    crash(run, lambda: setattr(OpenShard, "publish", publish))
    assert run.dir.ledger(0).exists()
    assert [*run.dir.leases.iterdir()]
    refine(run)
    assert len(rows_of(run.dir, run.plan)) == 60


def test_a_torn_frame_is_dropped_and_its_documents_refined_again(tmp_path: Path) -> None:
    run = planned(tmp_path)
    commits = 0
    original = LedgerWriter.commit

    def commit(self: LedgerWriter, rows: list[Row], ends: tuple[SpanEnd, ...] = ()) -> Counts:
        nonlocal commits
        share = original(self, rows, ends)
        commits += 1
        if commits == 2:
            die()
        return share

    crash(run, lambda: setattr(LedgerWriter, "commit", commit))
    attempt = run.dir.attempt(0, 1)
    attempt.write_bytes(attempt.read_bytes()[:-5])
    refine(run)
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(60)]


def test_the_first_ledger_is_published(tmp_path: Path) -> None:
    run = planned(tmp_path)
    owner = LeaseOwner.current()
    slow = Leaser(run.dir, run.plan, Leases(run.dir, owner, lambda _: None), (0, 1)).next()
    assert isinstance(slow, OpenShard)
    # The lease of the slow worker is taken over, and another one finishes the shard.
    leases = Leases(run.dir, owner, lambda _: None)
    fast = leases.take_over("00000", 1, owner)
    assert fast is not None
    assert slow.lease.is_lost()
    fast.release()
    refine(run)
    before = run.dir.ledger(0).read_bytes()
    assert slow.commit().documents == 0
    slow.publish()
    assert run.dir.ledger(0).read_bytes() == before


def test_publish_tells_whether_its_ledger_was_first(tmp_path: Path) -> None:
    run = planned(tmp_path)
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    leaser = Leaser(run.dir, run.plan, leases, (0, 1))
    first, second = leaser.next(), leaser.next()
    assert isinstance(first, OpenShard)
    assert isinstance(second, OpenShard)
    run.dir.ledger(first.index).write_bytes(b"of another worker")
    assert not first.publish()
    assert run.dir.ledger(first.index).read_bytes() == b"of another worker"
    assert second.publish()
    assert [*run.dir.leases.iterdir()] == [*run.dir.shards.rglob("*.a*")] == []


def test_a_slow_thief_does_not_take_the_lease_of_a_new_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the thief asks Slurm, others take over, finish, and begin again with attempt 1."""
    run = planned(tmp_path).dir
    monkeypatch.setattr("proxhpc.run.lease._POLL_SECONDS", 0)
    user = os.getuid()
    dead = LeaseOwner("dead", "node1", 1, "1", job="7", space="another boot", user=user)
    assert Leases(run, dead, lambda job: None).take("advance", 1)
    with ExitStack() as stack:
        holders: list[Lease] = []

        def slow_queue(job: str) -> bool:
            if not holders:
                with hold_lease(run, "advance", lambda job: False):
                    pass
                holders.append(stack.enter_context(hold_lease(run, "advance", lambda job: False)))
            return False  # true of the job in the lease that was read

        with (
            pytest.raises(RetryError, match="another launch"),
            hold_lease(run, "advance", slow_queue),
        ):
            pass
        (holder,) = holders
        assert not holder.is_lost()
        assert Leases(run, holder.owner, lambda job: None).highest_attempts() == {"advance": 1}


def test_a_new_holder_gives_way_to_a_thief_that_it_did_not_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path).dir
    leases = Leases(run, LeaseOwner.current(), lambda job: None)
    thief = leases.take("advance", 2)
    assert thief is not None
    current, late = Leases.current, iter([None])

    def stale_current(self: Leases, name: str) -> tuple[int, LeaseOwner] | None:
        return next(late, current(self, name))

    monkeypatch.setattr(Leases, "current", stale_current)
    with (
        pytest.raises(RetryError, match="another launch"),
        hold_lease(run, "advance", lambda job: None),
    ):
        pass
    assert leases.highest_attempts() == {"advance": 2}


class FarAway:
    """A worker of another machine that holds the lease of a shard."""

    def __init__(self, run: RunDir, shard: int) -> None:
        self.run, self.owner = run, LeaseOwner(f"far-{shard}", "far", shard, "1")
        lease = Leases(run, self.owner, lambda _: None).take(f"{shard:05d}", 1)
        assert lease is not None
        self.lease = lease

    def heartbeat(self) -> None:
        with self.run.worker(self.owner.worker).open("ab") as file:
            file.write(b".\n")


@pytest.fixture
def count_calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], object]:
    """Return a function's result, and how often it called scandir and stat."""

    def count(function: Callable[[], object]) -> tuple[object, int, int]:
        calls = dict.fromkeys(("scandir", "stat"), 0)
        with monkeypatch.context() as patch:
            for name in calls:
                original = getattr(os, name)

                def counting(
                    *arguments: Any, name: str = name, original: Any = original, **options: Any
                ) -> Any:
                    calls[name] += 1
                    return original(*arguments, **options)

                patch.setattr(os, name, counting)
            return function(), calls["scandir"], calls["stat"]

    return count


def large_run(tmp_path: Path, finished: Iterable[int], shards: int = 3000) -> tuple[RunDir, Plan]:
    """A run of many shards, of which some are finished."""
    run = planned(tmp_path, 3)
    plan = replace(run.plan, shards=run.plan.shards[:1] * shards)
    for first in range(0, shards, 1000):
        run.dir.shard_folder(first).mkdir(exist_ok=True)
    for shard in finished:
        run.dir.ledger(shard).touch()
    return run.dir, plan


def test_the_end_of_a_large_run_costs_few_file_operations(
    tmp_path: Path, count_calls: Callable[[Callable[[], object]], object]
) -> None:
    leased = range(0, 3000, 300)
    run, plan = large_run(tmp_path, set(range(3000)) - set(leased))
    holders = [FarAway(run, shard) for shard in leased]
    leases = Leases(run, LeaseOwner.current(), lambda _: None)
    leaser = Leaser(run, plan, leases, (1, 3))
    # The leases and three folders; then a ledger and a progress file of each holder.
    assert count_calls(leaser.next) == ("wait", 4, 20)
    assert count_calls(leaser.next) == ("wait", 1, 20)
    for holder in holders:
        holder.heartbeat()
    assert count_calls(leaser.next) == (None, 1, 20)
    assert count_calls(leaser.next) == (None, 1, 0)
    run.ledger(0).touch()
    holders[0].lease.release()
    assert count_calls(leaser.next) == (None, 2, 0)
    assert count_calls(leaser.next) == (None, 1, 0)
    holders[1].lease.release()
    opened, scandirs, stats = count_calls(leaser.next)
    assert isinstance(opened, OpenShard)
    assert opened.index == 300
    assert (scandirs, stats) == (3, 1)  # opening lists its attempts
    opened.leave()


def test_a_call_checks_a_bounded_number_of_holders(
    tmp_path: Path,
    count_calls: Callable[[Callable[[], object]], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, plan = large_run(tmp_path, (), shards=100)
    holders = [FarAway(run, shard) for shard in range(100)]
    clock = 1000.0
    monkeypatch.setattr("proxhpc.run.lease.time.monotonic", lambda: clock)
    leases = Leases(run, LeaseOwner.current(), lambda _: None)
    leaser = Leaser(run, plan, leases, (0, 1))
    assert count_calls(leaser.next) == ("wait", 1, 2 * MAX_CHECKS)
    assert count_calls(leaser.next) == ("wait", 1, 2 * MAX_CHECKS)  # the other 36, and 28 again
    for holder in holders:
        holder.heartbeat()
    assert count_calls(leaser.next) == ("wait", 1, 2 * MAX_CHECKS)
    assert count_calls(leaser.next) == (None, 1, 2 * (100 - MAX_CHECKS))
    clock += STALE_AFTER - 1
    assert count_calls(leaser.next) == (None, 1, 0)
    clock += 1
    dead = leaser.next()
    assert isinstance(dead, OpenShard)
    assert dead.recorded_death
    dead.leave()


def test_a_worker_frozen_between_lease_and_attempt_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path, 10, sharding={"tokens": 20_000_000})
    owner = LeaseOwner.current()
    leases = Leases(run.dir, owner, lambda _: None)
    taken: list[OpenShard | None] = []

    class Frozen(FrameWriter):
        """Frozen before its file is created, until another worker has taken over the shard."""

        def __init__(self, path: Path) -> None:
            monkeypatch.undo()
            taken.append(open_shard(run.dir, run.plan, 0, leases.take_over("00000", 1, owner)))
            super().__init__(path)

    monkeypatch.setattr("proxhpc.worker.shard.FrameWriter", Frozen)
    lease = leases.take("00000", 1)
    assert lease is not None
    assert open_shard(run.dir, run.plan, 0, lease) is None
    (thief,) = taken
    assert thief is not None
    assert not thief.lease.is_lost()
    assert [path.name for path in run.dir.shards.rglob("*.a*")] == ["00000.a2"]
    thief.leave()
    refine(run)
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(10)]


def test_a_shard_that_cannot_be_opened_is_given_back(tmp_path: Path) -> None:
    run = planned(tmp_path, 10, sharding={"tokens": 20_000_000})
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    shard = open_first_shard(run, leases)
    shard.writer.write_backoff(CrashBackoff(given_up=MAX_POISON))
    shard.leave()
    with pytest.raises(StopError, match="each killed"):
        refine(run)
    assert [*run.dir.leases.iterdir()] == []
    refine(run)  # the next launch starts anew
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(10)]


def test_a_queue_that_does_not_answer_does_not_delay_commits(tmp_path: Path) -> None:
    """A worker that is stopped while it waits for Slurm commits first."""
    run = planned(tmp_path, 10, commit={"documents": 1000}, sharding={"tokens": 20_000_000})
    asked, answer = threading.Event(), threading.Event()
    calls: list[str] = []

    async def main() -> None:
        refiner = await open_refiner(run.plan.manifest, run.plan.models)
        owner = LeaseOwner.current()
        leaser = Leaser(run.dir, run.plan, Leases(run.dir, owner, lambda _: None), (0, 1))
        first = leaser.next()

        def silent() -> None:
            asked.set()
            answer.wait(20)

        shards = iter([first, None])

        def following() -> OpenShard | None:
            shard = next(shards)
            if shard is None:
                silent()
            assert shard is None or isinstance(shard, OpenShard)
            return shard

        leaser.next = following  # type: ignore[method-assign]
        original = refiner.refine

        async def slow(item: Document) -> Row:
            row = await original(item)
            if int(item.id.removeprefix("doc-")) >= 5:
                await asyncio.sleep(60)
            return row

        refiner.refine = slow  # type: ignore[method-assign]
        worker = Worker(refiner, leaser, ProgressLog(run.dir, owner, "refine"))
        monitor = OpenShard.commit

        def commit(self: OpenShard) -> Counts:
            calls.append("commit")
            return monitor(self)

        working = asyncio.create_task(worker.work())
        while not asked.is_set():
            await asyncio.sleep(0.01)
        OpenShard.commit = commit  # type: ignore[method-assign]
        try:
            working.cancel()
            await asyncio.sleep(0.5)
            calls.append("answer")
            answer.set()
            await asyncio.gather(working, return_exceptions=True)
        finally:
            OpenShard.commit = monitor  # type: ignore[method-assign]
            await refiner.close()

    asyncio.run(main())
    assert calls == ["commit", "answer"]
    assert not [*run.dir.leases.iterdir()]
    refine(run)
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(10)]


def test_rows_are_committed_while_the_next_one_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = {"documents": 1000, "seconds": 0.2}
    run = planned(tmp_path, 10, commit=commit, sharding={"tokens": 20_000_000})
    original = Refiner.refine

    async def refine_slowly(self: Refiner, item: Document) -> Row:
        if item.id == "doc-5":
            while not any(beat.counts.documents == 5 for beat in latest_heartbeats(run.dir)):
                await asyncio.sleep(0.05)
        return await original(self, item)

    monkeypatch.setattr(Refiner, "refine", refine_slowly)
    assert run_worker(run.dir, Assignment(seconds=60), lambda _: None) == "done"
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(10)]


def test_a_model_s_answers_are_committed_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the model has answered half of all tokens, most of these are committed."""
    pytest.importorskip("transformers")
    stages = [{"level": level, "model": "embedded"} for level in ("doc", "chunk")]
    words, choice = PARAGRAPH.split(), random.Random(0)
    texts = [
        "\n".join(" ".join(choice.sample(words, 15)).capitalize() + "." for _ in range(4 + n % 5))
        for n in range(60)
    ]
    rows = [document(n, text=text) for n, text in enumerate(texts)]
    path = manifest(
        tmp_path,
        [write_jsonl(tmp_path / "in.jsonl", rows)],
        engine={"name": "transformers", "batch_size": 2},
        stages=stages,
        commit={"documents": 4, "seconds": 0.01},
        sharding={"tokens": 20_000_000},
    )
    run = prepare_run(path, local_site(tmp_path), None)
    progress: list[tuple[int, int]] = []  # tokens answered and committed
    original = OpenShard.commit

    def commit(self: OpenShard) -> Counts:
        counts = original(self)
        committed = self.writer.state.counts
        answered = sum(usage.prompt_tokens for usage in refiner.usage.values())
        done = committed.doc.prompt_tokens + committed.chunk.prompt_tokens
        progress.append((answered, done))
        return counts

    async def open_and_watch(*arguments: Any) -> Refiner:
        nonlocal refiner
        refiner = await open_refiner(*arguments)
        return refiner

    refiner: Any = None
    monkeypatch.setattr(OpenShard, "commit", commit)
    monkeypatch.setattr("proxhpc.worker.worker.open_refiner", open_and_watch)
    refine(run)
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(60)]
    half = progress[-1][0] / 2
    assert progress[-1][1] == 2 * half
    # The two models run at the same time, so verdicts may be a few documents ahead of lines.
    assert max(done for answered, done in progress if answered <= half) > 0.6 * half


def test_the_work_of_a_resumed_run_adds_up(tmp_path: Path) -> None:
    run = planned(tmp_path, 60, commit={"documents": 3})
    total = sum(shard.estimated_bytes for shard in run.plan.shards)
    commits = 0
    original = LedgerWriter.commit

    def commit(self: LedgerWriter, rows: list[Row], ends: tuple[SpanEnd, ...] = ()) -> Counts:
        nonlocal commits
        commits += 1
        return original(self, rows, ends) if commits < 9 else die()

    crash(run, lambda: setattr(LedgerWriter, "commit", commit))
    (killed,) = latest_heartbeats(run.dir)
    ((shard, resumed),) = killed.work.shards.items()
    assert 0 < resumed < run.plan.shards[int(shard)].estimated_bytes
    refine(run)
    (last,) = [beat for beat in latest_heartbeats(run.dir) if beat.state == "done"]
    published = sum(run.plan.shards[n].estimated_bytes for n in range(int(shard)))
    assert last.work.refined == pytest.approx(total - published - resumed, abs=9)
    assert (last.work.pending, last.work.asked, last.work.shards) == (0, 0, {})
    assert last.work.answered == pytest.approx(last.work.refined / 4, abs=9)


def test_a_kill_loses_at_most_one_and_a_half_times_the_time_between_commits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine needs a second for each document, by a clock that only it moves."""
    commit = {"documents": 1000, "seconds": 20}
    run = planned(tmp_path, 300, commit=commit, sharding={"tokens": 20_000_000})
    now, started, committed, engine = time.monotonic(), 0, 0, asyncio.Lock()
    lost: list[int] = []
    refine_document, commit_rows = Refiner.refine, OpenShard.commit

    async def refine_in_turn(self: Refiner, item: Document) -> Row:
        nonlocal now, started
        started += 1
        async with engine:
            lost.append(started - committed)
            await asyncio.sleep(0)
            now += 1
            return await refine_document(self, item)

    def count_committed(self: OpenShard) -> Counts:
        nonlocal committed
        counts = commit_rows(self)
        committed += counts.documents
        return counts

    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("proxhpc.refine.pump.time", clock)
    monkeypatch.setattr("proxhpc.worker.shard.time", clock)
    monkeypatch.setattr(RulesEngine, "min_in_flight", 4)
    monkeypatch.setattr(Refiner, "refine", refine_in_turn)
    monkeypatch.setattr(OpenShard, "commit", count_committed)
    refine(run)
    assert committed == len(lost) == 300
    assert 20 <= max(lost) <= 1.5 * 20 + 2


def test_a_heartbeat_is_written_often_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path)
    clock = SimpleNamespace(monotonic=lambda: now, time=lambda: now)
    now = 1000.0
    monkeypatch.setattr("proxhpc.run.progress.time", clock)
    log = ProgressLog(run.dir, LeaseOwner.current(), "refine")
    times = []
    for _ in range(2 * 3600):
        before = run.dir.worker(log.owner.worker).stat().st_size if times else 0
        log.heartbeat()
        if run.dir.worker(log.owner.worker).stat().st_size > before:
            times.append(now - 1000)
        now += 0.5
    pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
    assert times[:6] == [0, 0.5, 1, 1.5, 2, 2.5]
    assert pauses == sorted(pauses)
    assert pauses[-1] == HEARTBEAT_SECONDS
    assert len(times) < 3600 / HEARTBEAT_SECONDS + 30


def test_sigterm_commits_and_ends_within_seconds(tmp_path: Path) -> None:
    run = planned(tmp_path, 30_000, commit={"documents": 1000}, sharding={"tokens": 1_000_000})
    command = [sys.executable, "-m", "proxhpc", "worker", str(run.dir.root)]
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(beat.counts.documents for beat in latest_heartbeats(run.dir)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    out, _ = worker.communicate(timeout=30)
    assert out.strip() == "stopped"
    assert worker.returncode == 0
    assert [*run.dir.leases.glob("[!.]*")] == []
    (beat,) = latest_heartbeats(run.dir)
    assert beat.state == "stopped"
    assert 0 < beat.counts.documents < 30_000


def test_no_shard_is_leased_that_does_not_fit_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path, sharding={"tokens": 1000})
    clock = itertools.count(1000.0)  # a second passes at every call
    fake_time = SimpleNamespace(monotonic=lambda: next(clock))
    for module in ("worker", "meter"):
        monkeypatch.setattr(f"proxhpc.worker.{module}.time", fake_time)
    monkeypatch.setattr("proxhpc.worker.worker.IN_FLIGHT_DOCUMENTS", 1)

    def work(seconds: float) -> tuple[str, int]:
        state = run_worker(run.dir, Assignment(seconds=seconds), lambda _: None)
        assert not list(run.dir.leases.iterdir())
        assert not list(run.dir.root.glob("shards/*/*.a*"))  # no attempt is left
        return state, len(list(missing_shards(run.dir, run.plan)))

    state, missing = work(20)
    assert state == "stopped"
    assert 0 < missing < len(run.plan.shards) - 1
    # Always one, or a run with a short time limit would never end.
    assert work(10) == ("stopped", missing - 1)
    assert work(10_000) == ("done", 0)
    assert [row.id for row in rows_of(run.dir, run.plan)] == [f"doc-{n}" for n in range(60)]


def test_whether_a_process_is_alive(tmp_path: Path) -> None:
    run = planned(tmp_path)
    me = LeaseOwner.current()
    leases = Leases(run.dir, me, lambda _: None)
    assert leases.is_alive(me) is True
    assert leases.is_alive(replace(me, pid=2**22 - 1)) is False
    assert leases.is_alive(replace(me, started="1")) is False
    assert leases.is_alive(replace(me, space="pid:[1]")) is None  # a container's own pids
    assert leases.is_alive(replace(me, host="renamed")) is True


def test_the_queue_proves_only_death(tmp_path: Path) -> None:
    run = planned(tmp_path)
    me = replace(LeaseOwner.current(), job="7_0")
    elsewhere = replace(me, worker="w", space="another boot")
    leases = Leases(run.dir, me, {"7_0": False, "7_1": True, "7_2": False}.get)
    assert leases.is_alive(replace(elsewhere, job="7_2")) is False
    # A job in the queue may have lost this process, or have been requeued.
    assert leases.is_alive(replace(elsewhere, job="7_1")) is None
    assert leases.is_alive(elsewhere) is None
    assert leases.is_alive(replace(elsewhere, job="7_2", user=me.user + 1)) is None
    leases_here = Leases(run.dir, replace(me, cluster="here"), {"7_2": False}.get)
    assert leases_here.is_alive(replace(elsewhere, job="7_2", cluster="there")) is None


def test_processes_of_one_job_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    assert f"-99-{LeaseOwner.current().host[:40]}-{os.getpid()}-" in LeaseOwner.current().worker


def test_the_owner_of_an_unreadable_lease_is_dead_without_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path)
    run.dir.lease("00000", 1).write_bytes(b"")
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    owner = leases.holder("00000", 1)
    assert owner is not None
    assert leases.is_alive(owner) is None
    later = time.monotonic() + 121
    monkeypatch.setattr("proxhpc.run.lease.time.monotonic", lambda: later)
    assert leases.is_alive(owner) is False


def test_a_heartbeat_does_not_restore_a_lost_lease(tmp_path: Path) -> None:
    run = planned(tmp_path)
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    lease = leases.take("advance", 1)
    assert lease is not None
    lease.heartbeat()
    assert leases.holder("advance", 1) == LeaseOwner.current()
    lease.release()
    lease.heartbeat()
    assert lease.is_lost()
    # The first attempt is held by another: a process that stood still meanwhile is fenced.
    other = replace(leases.owner, worker="other")
    later = Leases(run.dir, other, lambda _: None).take("advance", 1)
    assert later is not None
    before = run.dir.lease("advance", 1).read_bytes()
    assert lease.is_lost()
    lease.heartbeat()
    lease.release()
    assert run.dir.lease("advance", 1).read_bytes() == before
    assert not later.is_lost()


def test_an_attempt_removed_on_another_node_is_a_lost_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On NFS, its writer meets ESTALE, perhaps while a cache still shows its lease."""
    run = planned(tmp_path, 10, sharding={"tokens": 20_000_000})
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    shard = open_first_shard(run, leases)
    shard.rows.append(bad_row(BadRecord("malformed_json", 0, 0, 9)))

    def stale(*_: Any, **__: Any) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", stale)
        assert shard.commit().documents == 0
        assert shard.lost
        assert shard.publish() is False
    lease = leases.take("advance", 1)
    assert lease is not None
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", stale)
        assert lease.is_lost()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", stale)
        lease.heartbeat()


def test_a_stale_list_of_leases_takes_nothing_from_live_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path, 10, sharding={"tokens": 20_000_000})
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    first = open_first_shard(run, leases)
    monkeypatch.setattr(leases, "highest_attempts", dict)  # as before the first worker started
    assert all(
        not isinstance(Leaser(run.dir, run.plan, leases, (0, 1)).next(), OpenShard)
        for _ in range(3)
    )
    assert not first.lease.is_lost()
    assert run.dir.attempt(0, 1).exists()
    first.leave()


def test_errors_in_a_row_stop_the_run_but_single_ones_do_not(tmp_path: Path) -> None:
    run = planned(tmp_path)

    async def main(every: int) -> list[str]:
        refiner = await open_refiner(run.plan.manifest, run.plan.models)
        original = refiner._refine

        async def broken(doc: Document, *more: Any) -> Row:
            if int(doc.id.removeprefix("doc-")) % every:
                return await original(doc, *more)
            raise ZeroDivisionError("a defect")

        refiner._refine = broken  # type: ignore[method-assign]
        rows = [document(number) for number in range(60)]
        docs = [Document(str(row["id"]), str(row["text"]), 0, n) for n, row in enumerate(rows)]
        return [(await refiner.refine(doc)).reason for doc in docs]

    assert asyncio.run(main(10)).count("internal_error") == 6
    with pytest.raises(StopError, match="in a row"):
        asyncio.run(main(1))


def test_an_owner_is_dead_without_heartbeats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path)
    clock = 1000.0
    monkeypatch.setattr("proxhpc.run.lease.time.monotonic", lambda: clock)
    leases = Leases(run.dir, LeaseOwner.current(), lambda _: None)
    owner = LeaseOwner("elsewhere", "other-host", 1, "1")
    assert leases.is_alive(owner) is None
    clock += 119
    assert leases.is_alive(owner) is None
    run.dir.worker("elsewhere").write_text("beat\n")
    assert leases.is_alive(owner) is True
    clock += 119
    assert leases.is_alive(owner) is None
    clock += 2
    assert leases.is_alive(owner) is False


def test_an_input_that_changed_since_the_plan_stops_the_run(tmp_path: Path) -> None:
    run = planned(tmp_path)
    path = run.plan.inputs[1].path
    path.write_bytes(path.read_bytes() + b'{"id": "more", "text": "x"}\n')
    with pytest.raises(StopError, match=r"b\.jsonl"):
        refine(run)
    (beat,) = latest_heartbeats(run.dir)
    assert (beat.state, beat.error) == ("failed", "StopError")
    assert "b.jsonl" in beat.message


def test_bad_records_are_quarantined_and_the_rest_is_refined(tmp_path: Path) -> None:
    good = document(1)
    rows: list[object] = [
        good,
        b'{"id": "broken", "text": ',
        b'{"id": "latin", "text": "caf\xe9"}',
        {"id": "null", "text": None},
        {"id": "missing"},
        {"id": "number", "text": 5},
        ["not", "an", "object"],
        {"id": "long", "text": "x" * 60_000},
        b"",
        document(2),
        document(2),
    ]
    source = write_jsonl(tmp_path / "in.jsonl.zst", rows)
    truncated = write_jsonl(tmp_path / "in2.jsonl.zst", [document(n) for n in range(3, 40)])
    truncated.write_bytes(truncated.read_bytes()[:-20])
    empty = tmp_path / "in3.jsonl"
    empty.write_bytes(b"")
    path = manifest(tmp_path, [source, truncated, empty], corpus={"max_record_bytes": 50_000})
    from proxhpc.launch.launch import prepare_run
    from runs import local_site

    run = prepare_run(path, local_site(tmp_path), None)
    refine(run)
    rows_out = rows_of(run.dir, run.plan)
    reasons = [row.reason for row in rows_out if row.file == 0 and row.outcome == "quarantined"]
    assert reasons == [
        "invalid_json",
        "invalid_utf8",
        "null_text",
        "missing_text",
        "text_not_string",
        "not_an_object",
        "record_too_long",
    ]
    assert [row.id for row in rows_out if row.file == 0 and row.outcome == "edited"] == [
        "doc-1",
        "doc-2",
        "doc-2",
    ]
    assert [row.reason for row in rows_out if row.file == 1][-1] == "truncated_input"
    (beat,) = latest_heartbeats(run.dir)
    assert beat.counts.blank_lines == 1
    assert beat.counts.documents == len(rows_out)


def test_a_ledger_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    run = planned(tmp_path)
    refine(run)
    ledger = run.dir.ledger(0)
    data = bytearray(ledger.read_bytes())
    data[len(data) // 2] ^= 1
    ledger.write_bytes(bytes(data))
    with pytest.raises((StopError, Exception), match=r"00000\.ledger"):
        list(read_ledger(ledger, run.plan.digest, 0))


def test_a_full_disk_is_a_clear_error_and_the_run_can_be_resumed(tmp_path: Path) -> None:
    run = planned(tmp_path, 200)
    original = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    os.pwrite = full  # type: ignore[assignment]
    try:
        with pytest.raises(RetryError, match="disk full"):
            refine(run)
    finally:
        os.pwrite = original
    refine(run)
    assert len(rows_of(run.dir, run.plan)) == 200
