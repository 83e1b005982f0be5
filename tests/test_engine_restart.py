"""Engines that survive trouble: restarts after a crash, and waiting for free memory."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxhpc.engines import device
from proxhpc.engines.base import (
    Completion,
    EngineDiedError,
    Request,
    RequestError,
    Tokenizer,
    find_stop_end,
)
from proxhpc.engines.restarting import RestartingEngine
from proxhpc.errors import RetryError, UserError

REQUEST = Request("doc", [1], (), 0, 5)


class Mortal:
    """Answers a number of requests, then dies with all open ones."""

    name = "mortal"
    tokenizer: Tokenizer | None = None
    max_model_len, cache_tokens, min_in_flight = 100, 0, 1

    def __init__(self, answers: int) -> None:
        self.answers, self.closed = answers, 0

    async def complete(self, request: Request) -> Completion:
        await asyncio.sleep(0)
        if request.max_new_tokens == 0:
            raise RequestError("wrong")
        if self.closed or self.answers == 0:
            raise EngineDiedError("the engine has died")
        self.answers -= 1
        return Completion(str(id(self)), "stop", 1, 0, 1)

    async def close(self) -> None:
        self.closed += 1


def restarting(*engines: Mortal) -> RestartingEngine:
    next_engines = iter(engines[1:])

    async def start() -> Mortal:
        await asyncio.sleep(0.01)
        return next(next_engines)

    return RestartingEngine(engines[0], start)


async def ask(engine: RestartingEngine, *requests: Request) -> list[Any]:
    return await asyncio.gather(*map(engine.complete, requests), return_exceptions=True)


def test_open_requests_are_repeated_to_the_new_engine(caplog: pytest.LogCaptureFixture) -> None:
    first, second = Mortal(3), Mortal(100)
    answers = asyncio.run(ask(restarting(first, second), *[REQUEST] * 50))
    assert sorted(a.text for a in answers) == sorted([str(id(first))] * 3 + [str(id(second))] * 47)
    assert (first.closed, second.closed) == (1, 0)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_it_is_restarted_once() -> None:
    engine = restarting(Mortal(3), Mortal(4), Mortal(100))
    answers = asyncio.run(ask(engine, *[REQUEST] * 20))
    assert sum(isinstance(answer, Completion) for answer in answers) == 7
    assert sum(isinstance(answer, RetryError) for answer in answers) == 13
    with pytest.raises(RetryError, match="died again after 1 restart"):
        asyncio.run(engine.complete(REQUEST))


@pytest.mark.parametrize(
    "error", [RetryError("no memory"), UserError("no memory"), OSError("no memory")]
)
def test_a_failing_restart_ends_all_requests(error: Exception) -> None:
    """Whatever its error, no document is to blame for it."""

    async def start() -> Mortal:
        raise error

    answers = asyncio.run(ask(RestartingEngine(Mortal(1), start), *[REQUEST] * 3))
    assert [type(answer) for answer in answers] == [Completion, EngineDiedError, EngineDiedError]
    assert "and the restart failed: " in str(answers[1])
    assert "no memory" in str(answers[1])


def test_a_closed_engine_stays_closed_and_survives_a_wrong_request() -> None:
    only = Mortal(10)
    engine = restarting(only)

    async def work() -> list[Any]:
        answers = await ask(engine, Request("doc", [1], (), 0, 0), REQUEST)
        await engine.close()
        return [*answers, *await ask(engine, REQUEST)]

    wrong, answered, late = asyncio.run(work())
    assert isinstance(wrong, RequestError)
    assert isinstance(answered, Completion)
    assert isinstance(late, EngineDiedError)
    assert only.closed == 1


def test_the_first_stop_string_ends_a_text() -> None:
    assert find_stop_end("a keep() b drop()", ("drop()", "keep()")) == 8
    assert find_stop_end("a keep(", ("drop()", "keep()")) is None
    assert find_stop_end("x", ()) is None


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a script on PATH that answers for a device with the lines of its file, one by one."""

    def install(**answers: str) -> Path:
        script = tmp_path / "nvidia-smi"
        script.write_text(
            "#!/bin/sh\n"
            f'cd {tmp_path}; echo "$@" >> queries\n'
            'for last; do :; done; head -n 1 "$last"\n'
            'if [ $(wc -l < "$last") -gt 1 ]; then sed -i 1d "$last"; fi\n'
        )
        script.chmod(0o755)
        for name, lines in answers.items():
            (tmp_path / name).write_text(lines)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(answers))
        monkeypatch.setattr(device, "PAUSE_S", 0)
        return tmp_path / "queries"

    return install


def test_it_waits_for_free_memory(nvidia_smi: Callable[..., Path]) -> None:
    queries = nvidia_smi(GPU_a="100, 1000\n899, 1000\n900, 1000\n", GPU_b="50, 1000\n")
    asyncio.run(device.wait_for_memory(0.9))
    lines = queries.read_text().splitlines()
    assert len(lines) == 3  # the other device does not belong to this engine
    assert all(line.endswith("-i GPU_a") and "memory.free,memory.total" in line for line in lines)


def test_waiting_ends_with_a_warning(
    nvidia_smi: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nvidia_smi(GPU_a="950, 1000\n", GPU_b="50, 1000\n")
    monkeypatch.setattr(device, "WAIT_S", 0.05)
    asyncio.run(device.wait_for_memory(0.9, devices=2))
    assert "device GPU_b: 90 % of its memory is not free" in caplog.text


@pytest.mark.parametrize("answer", ["", "No devices were found\n", "[N/A], [N/A]\n"])
def test_it_does_not_wait_for_a_device_of_unknown_memory(
    nvidia_smi: Callable[..., Path], answer: str
) -> None:
    queries = nvidia_smi(GPU_a=answer)
    asyncio.run(device.wait_for_memory(0.9))
    assert len(queries.read_text().splitlines()) == 1


def test_it_does_not_wait_without_nvidia_smi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    asyncio.run(device.wait_for_memory(0.9))


def test_all_devices_are_queried_if_none_are_named(
    nvidia_smi: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries = nvidia_smi(**{"0": "950, 1000\n", "1": "950, 1000\n"})
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    asyncio.run(device.wait_for_memory(0.9, devices=2))
    assert [line[-1] for line in queries.read_text().splitlines()] == ["0", "1"]


def test_waiting_can_be_cancelled(
    nvidia_smi: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvidia_smi(GPU_a="50, 1000\n")
    monkeypatch.setattr(device, "WAIT_S", 15)

    async def main() -> None:
        waiting = asyncio.create_task(device.wait_for_memory(0.9))
        await asyncio.sleep(0.1)
        waiting.cancel()

    start = time.monotonic()
    asyncio.run(main())  # which also waits for threads that still run
    assert time.monotonic() - start < 5
