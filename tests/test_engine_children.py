"""Child processes of an engine: none survives a killed worker, and their errors are classified."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from proxhpc.engines.spawn import ErrorLog, OrphanKiller, children_watched
from proxhpc.errors import ProxError, RetryError, UserError

# A worker: its engine is a child with a child. It says what it does, and closes when asked to.
WORKER = """
import multiprocessing, os, sys, tempfile, time
from proxhpc.engines.spawn import ErrorLog, OrphanKiller, children_watched, node_local_environment

def say(word):
    os.write(1, f"{word}\\n".encode())  # at once, so that words of two processes do not mix

def sleep():
    tempfile.mkstemp()
    say("core")
    multiprocessing.get_context("fork").Process(target=time.sleep, args=(900,)).start()
    time.sleep(900)

if __name__ == "__main__":
    killer, log = OrphanKiller(node_local_environment()), ErrorLog()
    say("starting")
    with children_watched(killer, log):
        child = multiprocessing.get_context(sys.argv[1]).Process(target=sleep)
        child.start()
        say("started")
        if sys.argv[2] == "start":
            time.sleep(900)
    sys.stdin.readline()
    say("closing")
    killer.release()
    say("closed")
    time.sleep(900)
"""


def processes_with(mark: str) -> list[int]:
    """Processes of this machine with MARK=mark in the environment that they began with."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_dead = ") Z " in (folder / "stat").read_text()
            if not is_dead and f"MARK={mark}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def kill_worker(script: Path, folder: Path, method: str, phase: str, delay: float) -> None:
    """Kill a worker in a phase of its engine, and wait until nothing of it is left."""
    mark = f"{os.getpid()}-{time.monotonic_ns()}"
    worker = subprocess.Popen(
        [sys.executable, str(script), method, phase],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"MARK": mark, "TMPDIR": str(folder)},
        text=True,
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    wanted = {"start": "starting", "serve": "core", "close": "core"}[phase]
    while worker.stdout.readline() != f"{wanted}\n":
        assert worker.poll() is None
    if phase == "close":
        worker.stdin.write("\n")
        worker.stdin.flush()
    time.sleep(delay)
    worker.kill()
    worker.wait()
    deadline = time.monotonic() + 60
    while (left := [*processes_with(mark), *folder.iterdir()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    worker.stdin.close()
    worker.stdout.close()


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize(
    ("phase", "delay"), [("start", 0.0), ("start", 0.1), ("serve", 0.05), ("close", 0.002)]
)
def test_nothing_is_left_of_a_killed_worker(
    tmp_path: Path, method: str, phase: str, delay: float
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    with tempfile.TemporaryDirectory() as short:  # paths of sockets cannot be long
        kill_worker(script, Path(short), method, phase, delay)


def _complain(text: str) -> None:
    os.write(2, text.encode())


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_errors_of_children_are_kept_and_shown(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    killer, log = OrphanKiller(), ErrorLog()
    with children_watched(killer, log):
        context = multiprocessing.get_context(method)
        child = context.Process(target=_complain, args=("x" * 100_000 + "the end\n",))
        child.start()
        child.join()
        os.write(2, b"of the parent\n")
    log.close()
    killer.release()
    assert len(log.text()) == ErrorLog.SIZE
    assert log.text().endswith("xthe end\n")
    shown = capfd.readouterr().err
    assert "x" * 100_000 + "the end\n" in shown
    assert "of the parent\n" in shown
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


STARTED_BY = "(EngineCore pid=7) ERROR 11-30 10:00:00 [core.py:900] "
GENERIC = RetryError("the vLLM engine did not start: Engine core initialization failed.", hint="h")
FAILED = (
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}"
)


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        ("ValueError: Head size 10 is not supported by TritonAttention.", UserError),
        ("ValueError: To serve at least one request with max seq len (131072), 16 GiB KV cache is "
         "needed, which is larger than the available KV cache memory (1.9 GiB).", UserError),
        ("KeyError: 'model.layers.0.self_attn.q_proj.bias'", UserError),
        ("RuntimeError: Unsupported CPU attention configuration: head_dim=8 isa=1", UserError),
        ("pydantic_core.ValidationError: 1 validation error for ModelConfig", UserError),
        ("ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired "
         "GPU memory utilization (0.9, 71.2 GiB).", RetryError),
        ("ValueError: Available memory on node 0 (9.1/23.5 GiB) on kv cache allocation is less "
         "than requested memory for kv (18.0 GiB). Decrease VLLM_CPU_KVCACHE_SPACE, or reduce CPU "
         "memory used by other processes.", RetryError),
        ("ImportError: libtorch_cpu.so: failed to map segment: Cannot allocate memory", RetryError),
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.", RetryError),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", RetryError),
        ("OSError: [Errno 98] Address already in use", RetryError),
        ("TimeoutError: Timed out waiting for engine core processes to start.", RetryError),
    ],
)  # fmt: skip
def test_a_start_that_no_retry_can_mend_is_the_user_s_error(
    cause: str, kind: type[ProxError]
) -> None:
    pytest.importorskip("torch")
    from proxhpc.engines.vllm_engine import start_error

    log = f"{STARTED_BY}Traceback (most recent call last):\n{STARTED_BY}{cause}\n{FAILED}\n"
    error = start_error(log, GENERIC)
    assert type(error) is kind
    assert cause.rpartition("core.")[2].removeprefix("torch.")[:40] in error.message
    assert error.hint


def test_a_start_without_a_cause_is_tried_again() -> None:
    pytest.importorskip("torch")
    from proxhpc.engines.vllm_engine import start_error

    assert start_error(f"{STARTED_BY}Killed\n{FAILED}\n", GENERIC) is GENERIC
