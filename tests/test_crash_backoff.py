"""Documents that kill workers and engines are quarantined, and nothing else is lost."""

import asyncio
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from proxhpc.corpus.document import Document
from proxhpc.engines.base import EngineDiedError
from proxhpc.errors import RetryError, StopError
from proxhpc.launch.launch import Run
from proxhpc.refine.refiner import Refiner
from proxhpc.run.crash_backoff import BATCHES, MAX_DEATHS, MAX_POISON, MIN_DEATHS, CrashBackoff
from proxhpc.run.ledger import Row
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.worker.worker import Assignment, run_worker
from runs import planned, rows_of
from test_worker import crash

DEATHS_UNTIL_QUARANTINE = MIN_DEATHS + len(BATCHES) - 1 + MIN_DEATHS


def died(backoff: CrashBackoff, times: int) -> CrashBackoff:
    for _ in range(times):
        backoff = backoff.died("log", 2048)
    return backoff


def test_one_death_changes_nothing_and_two_in_a_row_make_batches() -> None:
    once = died(CrashBackoff(), 1)
    assert once.batch is None
    assert once.passed(3) == CrashBackoff()
    assert (died(CrashBackoff(), 2).batch, died(CrashBackoff(), 2).suspects) == (64, 2048)
    assert (died(CrashBackoff(), 3).batch, died(CrashBackoff(), 3).suspects) == (8, 64)
    assert (died(CrashBackoff(), 4).batch, died(CrashBackoff(), 4).suspects) == (1, 8)


def test_a_document_is_quarantined_after_two_deaths_alone() -> None:
    backoff = died(CrashBackoff(), 4)
    assert not died(backoff, 1).poison
    assert died(backoff, 2).poison
    assert not died(died(backoff, 1).passed(1), 1).poison
    after = died(backoff, 2).passed(1)
    assert (after.poison, after.given_up, after.suspects, after.batch) == (False, 1, 7, 1)


def test_backoff_ends_after_the_suspects() -> None:
    batches = died(CrashBackoff(), 3)
    assert batches.passed(63).batch == 8
    assert batches.passed(64) == CrashBackoff()


def test_many_poisonous_documents_stop_the_run() -> None:
    assert CrashBackoff(given_up=MAX_POISON - 1).stop_error(7) is None
    assert "of shard 7 each killed" in str(CrashBackoff(given_up=MAX_POISON).stop_error(7))


def test_endless_deaths_at_one_document_stop_the_run() -> None:
    assert died(CrashBackoff(), 4 + MAX_DEATHS - 1).stop_error(7) is None
    assert "5 workers in a row died" in str(died(CrashBackoff(), 4 + MAX_DEATHS).stop_error(7))


def work(run: Run) -> None:
    run_worker(run.dir, Assignment(), lambda job: None)


def killing(victims: set[str], kill: Callable[[], None]) -> Callable[..., object]:
    """Return a `refine` that calls `kill` for the victims."""
    original = Refiner.refine

    async def refine(self: Refiner, document: Document) -> Row:
        await asyncio.sleep(0.001 * (int(document.id.removeprefix("doc-")) % 3))
        if document.id in victims:
            kill()
        return await original(self, document)

    return refine


def undisturbed(folder: Path) -> dict[str, Row]:
    run = planned(folder, sharding={"tokens": 20_000_000})
    work(run)
    return {row.id: row for row in rows_of(run.dir, run.plan)}


def check(run: Run, expected: dict[str, Row], victims: set[str]) -> None:
    rows = {row.id: row for row in rows_of(run.dir, run.plan)}
    assert list(rows) == list(expected)
    assert {id_ for id_, row in rows.items() if row.reason == "poison"} == victims
    assert {id_: row for id_, row in rows.items() if id_ not in victims} == {
        id_: row for id_, row in expected.items() if id_ not in victims
    }


@pytest.mark.parametrize("victims", [{"doc-0"}, {"doc-17"}, {"doc-17", "doc-18", "doc-59"}])
def test_a_document_that_kills_its_workers(tmp_path: Path, victims: set[str]) -> None:
    expected = undisturbed(tmp_path / "quiet")
    run = planned(tmp_path / "loud", sharding={"tokens": 20_000_000})

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    workers = 0
    while not run.dir.ledger(0).exists():
        workers += 1
        assert workers <= DEATHS_UNTIL_QUARANTINE * len(victims) + 1
        try:
            crash(run, lambda: setattr(Refiner, "refine", killing(victims, kill)))
        except AssertionError:
            break  # it was not killed, so the shard is finished
    check(run, expected, victims)
    (poison, *_) = (row for row in rows_of(run.dir, run.plan) if row.reason == "poison")
    assert "died without an error message" in poison.detail
    assert sum(beat.deaths for beat in latest_heartbeats(run.dir)) == workers - 1


def test_a_document_that_kills_its_engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same worker starts all of them."""
    expected = undisturbed(tmp_path / "quiet")
    run = planned(tmp_path / "loud", sharding={"tokens": 20_000_000})

    def kill() -> None:
        raise EngineDiedError("the engine died of a broken kernel")

    monkeypatch.setattr(Refiner, "refine", killing({"doc-17"}, kill))
    work(run)
    check(run, expected, {"doc-17"})
    (poison,) = (row for row in rows_of(run.dir, run.plan) if row.reason == "poison")
    assert "broken kernel" in poison.detail
    (beat,) = latest_heartbeats(run.dir)
    assert (beat.state, beat.deaths) == ("done", DEATHS_UNTIL_QUARANTINE)
    assert beat.counts.documents == len(expected)


def test_engines_that_always_die_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path, sharding={"tokens": 20_000_000})

    def kill() -> None:
        raise EngineDiedError("the engine died")

    monkeypatch.setattr(Refiner, "refine", killing({f"doc-{n}" for n in range(60)}, kill))

    def work_repeatedly() -> None:
        for _ in range(20):
            with suppress(RetryError):
                work(run)

    with pytest.raises(StopError, match="each killed 2 workers"):
        work_repeatedly()
    (beat,) = latest_heartbeats(run.dir)
    assert beat.error == "StopError"


def test_no_engine_is_started_without_time_to_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = planned(tmp_path)
    started = 0

    class Dying:
        name, tokenizer, max_model_len, cache_tokens = "dying", None, 10**6, 0
        min_in_flight = 64

        async def complete(self, request: object) -> object:
            raise EngineDiedError("the engine died")

        async def close(self) -> None:
            pass

    async def boot(*arguments: object, **options: object) -> Dying:
        nonlocal started
        started += 1
        await asyncio.sleep(0.5)
        return Dying()

    monkeypatch.setattr("proxhpc.refine.refiner.make_engine", boot)
    assert run_worker(run.dir, Assignment(seconds=0.9), lambda job: None) == "stopped"
    assert started == 1
    (beat,) = latest_heartbeats(run.dir)
    assert (beat.state, beat.deaths) == ("stopped", 1)
