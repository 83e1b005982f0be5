"""What an engine that runs in child processes needs around its start and its end."""

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

log = logging.getLogger(__name__)

# Slurm sends these to every process of a step; a child that inherits "ignored" outlives them.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
FIRST_PORT, PORTS_PER_WORKER, PORT_BLOCKS = 20_000, 16, 750  # below the ephemeral ports
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

# Reads "pid start-time" lines until its standard input ends, then kills those still the same.
_WATCH = """
import os, signal, sys
def born(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
watched = [line.split() for line in sys.stdin]
for pid, start in watched:
    if born(pid) == start:
        try:
            os.kill(int(pid), signal.SIGKILL)
        except OSError:
            pass
"""


@contextmanager
def signals_deferred() -> Iterator[None]:
    """Hold the signals of SIGNALS back meanwhile; processes of multiprocessing ignore them.

    A process born while its parent ignores a signal does so, too. So the parent ignores them for
    the milliseconds of each birth, and only what comes just then is lost; all else is raised
    again at the end, when the handlers of before are back. Only the main thread can change
    handlers, so elsewhere this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    start = BaseProcess.start

    def start_deaf(process: BaseProcess) -> None:
        if threading.current_thread() is not threading.main_thread():
            start(process)
            return
        with _handlers(signal.SIG_IGN):
            start(process)

    try:
        with _handlers(lambda number, _: came.append(number)):
            BaseProcess.start = start_deaf  # type: ignore[assignment, method-assign]
            try:
                yield
            finally:
                BaseProcess.start = start  # type: ignore[method-assign]
    finally:
        for number in came:
            signal.raise_signal(number)


@contextmanager
def _handlers(
    handler: Callable[[int, FrameType | None], object] | signal.Handlers,
) -> Iterator[None]:
    """Handle the signals of SIGNALS so meanwhile, then as before."""
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            # None: the handler was not set from Python and cannot be set again.
            signal.signal(number, signal.SIG_DFL if old is None else old)


def cores() -> int | None:
    """Cores of this Slurm task, where it says so: one without binding shows a task all of them."""
    given = os.environ.get("SLURM_CPUS_PER_TASK", "")
    return int(given) if given.isdecimal() else None


_using: list[Path] = []  # this process's scratch folder, once for each engine that uses it


def node_local_environment() -> Path:
    """Set what vLLM reads from the environment, where the user has not; returns a scratch folder.

    No network and no telemetry; caches in the scratch folder, one for all engines of this process,
    so that workers of one node never write the same files; a block of ports by process id; logs
    to standard error.
    """
    scratch = _using[0] if _using else Path(tempfile.mkdtemp(prefix="proxhpc-engine-"))
    _using.append(scratch)
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
        # CPU backend: an explicit size needs no share of the node's memory to be free, and
        # without binding several workers do not crowd onto the same first cores.
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        **{name: str(scratch / name.lower()) for name in CACHES},
    }
    if cpus := cores():
        defaults["OMP_NUM_THREADS"] = str(cpus)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return scratch


def drop_scratch(scratch: Path) -> None:
    """Remove the scratch folder, with the last engine that uses it, and what points into it."""
    _using.remove(scratch)
    if _using:
        return
    for name in CACHES:
        if Path(os.environ.get(name, "/")).is_relative_to(scratch):
            del os.environ[name]
    shutil.rmtree(scratch, ignore_errors=True)


class OrphanKiller:
    """Ends child processes when this process dies, however it dies.

    A process killed with SIGKILL cannot end its children, and an orphaned engine holds its
    device's memory. A small helper, in a session of its own, waits for the end of a pipe.
    """

    def __init__(self) -> None:
        self._helper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _WATCH],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    def watch(self, pids: set[int]) -> None:
        """Watch these processes; ends with `release`."""
        assert self._helper.stdin is not None
        for pid in sorted(pids):
            if (start := start_time(pid)) is not None:
                self._helper.stdin.write(f"{pid} {start}\n")
        self._helper.stdin.flush()

    def release(self) -> None:
        """End what is watched and still there, and the helper."""
        assert self._helper.stdin is not None
        try:
            self._helper.stdin.close()
            self._helper.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("the helper that ends orphaned engines is stuck: %s", error)
            self._helper.kill()
            self._helper.wait()
