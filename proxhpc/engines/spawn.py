"""Child processes of an engine: signals, environment and clean-up."""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from proxhpc.run.process import start_time

_log = logging.getLogger(__name__)

# Slurm sends these to every process of a step. A child that inherits "ignored" survives them.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
FIRST_PORT, PORTS_PER_WORKER, PORT_BLOCKS = 20_000, 16, 750  # below the ephemeral ports
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

# Reads lines "pid start-time" until standard input ends, then kills those that still exist.
_KILLER = """
import os, signal, sys
def start_time(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
watched = [line.split() for line in sys.stdin]
for pid, start in watched:
    if start_time(pid) == start:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
"""


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Defer the signals of SIGNALS to the end of the block; multiprocessing children ignore them.

    A child ignores the signals that its parent ignores when it starts. So this process ignores
    them for the milliseconds of each start, and a signal that arrives then is lost. All others are
    raised again at the end, under the previous handlers. Only the main thread can change handlers;
    in other threads this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    start = BaseProcess.start

    def start_ignoring_signals(process: BaseProcess) -> None:
        if threading.current_thread() is not threading.main_thread():
            start(process)
            return
        with _handlers(signal.SIG_IGN):
            start(process)

    try:
        with _handlers(lambda number, _: received.append(number)):
            BaseProcess.start = start_ignoring_signals  # type: ignore[assignment, method-assign]
            try:
                yield
            finally:
                BaseProcess.start = start  # type: ignore[method-assign]
    finally:
        for number in received:
            signal.raise_signal(number)


@contextmanager
def _handlers(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
) -> Iterator[None]:
    """Set this handler for the signals of SIGNALS; restore the previous ones at the end."""
    previous = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            # None: the handler was not set from Python and cannot be restored.
            signal.signal(number, signal.SIG_DFL if old is None else old)


def slurm_cores() -> int | None:
    """Cores of this Slurm task; None outside Slurm.

    A task whose site does not bind it to its cores sees those of the whole node.
    """
    cores = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(cores) if cores.isdecimal() else None


_users: list[Path] = []  # the scratch folder of this process, once for each engine that uses it


def node_local_environment() -> Path:
    """Set the environment variables that vLLM reads and the user has not set; a scratch folder.

    No network and no telemetry; caches in the scratch folder, so that workers of one node never
    write the same files; ports that depend on the process id; logs on standard error. All engines
    of this process share the folder.
    """
    scratch = _users[0] if _users else Path(tempfile.mkdtemp(prefix="proxhpc-engine-"))
    _users.append(scratch)
    port = FIRST_PORT + os.getpid() % PORT_BLOCKS * PORTS_PER_WORKER
    defaults = {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_PORT": str(port),
        # On a CPU: a fixed size, where vLLM would want a share of the node's memory to be free,
        # and no binding, which would put all workers on the same first cores.
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **{name: str(scratch / name.lower()) for name in CACHES},
    }
    if cores := slurm_cores():
        defaults["OMP_NUM_THREADS"] = str(cores)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return scratch


def remove_scratch(scratch: Path) -> None:
    """Remove the scratch folder, and the variables that point into it, after its last user."""
    _users.remove(scratch)
    if _users:
        return
    for name in CACHES:
        if Path(os.environ.get(name, "/")).is_relative_to(scratch):
            del os.environ[name]
    shutil.rmtree(scratch, ignore_errors=True)


class OrphanKiller:
    """Kills child processes when this process dies, even by SIGKILL.

    An orphaned engine would hold its device's memory. A small helper process in a separate session
    waits for the end of a pipe from this process.
    """

    def __init__(self) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KILLER],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def watch(self, pids: set[int]) -> None:
        """Watch these processes until `release`."""
        assert self._helper.stdin is not None
        for pid in sorted(pids):
            if (start := start_time(pid)) is not None:
                self._helper.stdin.write(f"{pid} {start}\n")
        self._helper.stdin.flush()

    def release(self) -> None:
        """Kill the watched processes that still exist, and end the helper."""
        assert self._helper.stdin is not None
        try:
            self._helper.stdin.close()
            self._helper.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("the helper that kills orphaned engines has not exited: %s", error)
            self._helper.kill()
            self._helper.wait()
