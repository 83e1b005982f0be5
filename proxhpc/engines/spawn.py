"""Child processes of an engine: signals, environment and clean-up."""

import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType

from proxhpc.run.process import start_time

_log = logging.getLogger(__name__)

# Slurm sends these to every process of a step. A child that inherits "ignored" survives them.
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
FIRST_PORT, PORTS_PER_WORKER, PORT_BLOCKS = 20_000, 16, 750  # below the ephemeral ports
CACHES = ("VLLM_CACHE_ROOT", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
SOCKETS = "VLLM_RPC_BASE_PATH"
MAX_SOCKET_FOLDER = 107 - len(f"/{uuid.UUID(int=0)}")  # bytes; a socket's path has at most 107

_MARK = "PROXHPC_ENGINE"  # variable of the processes that a helper kills
# Reads lines "pid start-time" until standard input ends, then kills those that still exist, those
# that have the mark in their environment, and the descendants of both. Then it removes the scratch
# folder, unless a line said "keep".
_KILLER = """
import os, shutil, signal, sys
def start_time(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[19]
    except OSError:
        return None
for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
def parents():
    found = {}
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                found[pid] = stat.read().rpartition(")")[2].split()[1]
        except OSError:
            pass
    return found
def is_marked(pid):
    try:
        with open(f"/proc/{pid}/environ", "rb") as environ:
            return sys.argv[1].encode() in environ.read().split(b"\\0")
    except OSError:
        return False
lines = [line.split() for line in sys.stdin]
keep = ["keep"] in lines
watched = [line for line in lines if len(line) == 2]
left = {pid for pid, start in watched if start_time(pid) == start}
def send(number, pids):
    for pid in pids:
        try:
            os.kill(int(pid), number)
        except OSError:
            pass
# They are stopped first, and killed when two looks in a row find no other: else one of them might
# start a process after a look at its children and before its end.
found, quiet = set(), 0
while quiet < 2:
    send(signal.SIGSTOP, left)
    found |= left
    left = {pid for pid, parent in parents().items() if parent in found or is_marked(pid)} - found
    quiet = 0 if left else quiet + 1
send(signal.SIGKILL, found)
if not keep:
    for folder in sys.argv[2:]:
        shutil.rmtree(folder, ignore_errors=True)
"""


@contextmanager
def children_watched(killer: "OrphanKiller", log: "ErrorLog") -> Iterator[None]:
    """Let `killer` watch the multiprocessing children that start in the block, from their start on.

    They write their errors to `log`, and ignore the signals of SIGNALS, which this process receives
    at the end of the block. A child ignores the signals that its parent ignores when it starts. So
    this process ignores them for the milliseconds of each start, and a signal that arrives then is
    lost. All others are raised again at the end, under the previous handlers. Only the main thread
    can change handlers; in other threads children do not ignore signals.
    """
    received: list[int] = []
    start = BaseProcess.start

    def start_watched(process: BaseProcess) -> None:
        with _handlers(signal.SIG_IGN), log.as_stderr(), killer.watching():
            start(process)

    try:
        with _handlers(lambda number, _: received.append(number)):
            BaseProcess.start = start_watched  # type: ignore[assignment, method-assign]
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
    if threading.current_thread() is not threading.main_thread():
        yield
        return
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


def _fits_sockets(folder: Path) -> bool:
    return len(os.fsencode(folder)) <= MAX_SOCKET_FOLDER


@contextmanager
def variables(**values: str) -> Iterator[None]:
    """Set environment variables of the processes that start in the block."""
    previous = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _temporary_files_in(folder: Path | None) -> Iterator[None]:
    """Let processes that start in the block write their temporary files to a folder."""
    if folder is None or not _fits_sockets(folder):
        yield
        return
    default, tempfile.tempdir = tempfile.tempdir, str(folder)  # of a forked process
    try:
        with variables(TMPDIR=str(folder)):  # of a spawned one
            yield
    finally:
        tempfile.tempdir = default


_users: list[Path] = []  # the scratch folder of this process, once for each engine that uses it


def node_local_environment() -> Path:
    """Set the environment variables that vLLM reads and the user has not set; a scratch folder.

    No network and no telemetry; caches in the scratch folder, so that workers of one node never
    write the same files; sockets there, too, since vLLM does not remove them; ports that depend on
    the process id; logs on standard error. All engines of this process share the folder.
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
    if _fits_sockets(scratch):
        defaults[SOCKETS] = str(scratch)
    if cores := slurm_cores():
        defaults["OMP_NUM_THREADS"] = str(cores)
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    return scratch


def _is_last_user(scratch: Path) -> bool:
    """Note that an engine no longer uses the scratch folder; the last one's variables go, too."""
    _users.remove(scratch)
    for name in () if _users else (*CACHES, SOCKETS):
        if Path(os.environ.get(name, "/")).is_relative_to(scratch):
            del os.environ[name]
    return not _users


class ErrorLog:
    """What children write to standard error: copied to that of this process, and its end kept."""

    SIZE = 1 << 16  # bytes

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._stderr = os.dup(2)
        self._tail = b""
        self._thread = threading.Thread(target=self._copy, name="engine errors", daemon=True)
        self._thread.start()

    @contextmanager
    def as_stderr(self) -> Iterator[None]:
        """Give it to processes that start in the block as their standard error."""
        os.dup2(self._write, 2)
        try:
            yield
        finally:
            os.dup2(self._stderr, 2)

    def close(self) -> None:
        """Stop once all children that write to it have ended."""
        os.close(self._write)

    def text(self) -> str:
        """Return the end of what its children have written; they have ended, and it is closed."""
        self._thread.join(timeout=10)
        return self._tail.decode(errors="replace")

    def _copy(self) -> None:
        while data := os.read(self._read, 1 << 16):
            self._tail = (self._tail + data)[-self.SIZE :]
            with suppress(OSError):  # nobody reads it
                os.write(self._stderr, data)
        os.close(self._read)
        os.close(self._stderr)


_pipes: dict[int, bool] = {}  # to the helpers of this process; True while they watch its children


def _after_fork() -> None:
    """Name a forked child to the helpers, and close the pipes, which must end with its parent."""
    for pipe, watches in _pipes.items():
        if watches:
            os.write(pipe, f"{os.getpid()} {start_time(os.getpid())}\n".encode())
        os.close(pipe)
    _pipes.clear()


os.register_at_fork(after_in_child=_after_fork)


class OrphanKiller:
    """Kills child processes and their descendants when this process dies, even by SIGKILL.

    An orphaned engine would hold its device's memory. A small helper process in a separate session
    waits for the end of a pipe from this process. It also removes the engine's scratch folder.
    """

    def __init__(self, scratch: Path | None = None) -> None:
        resource_tracker.ensure_running()  # else it starts as one of the engine's children
        self._scratch = scratch
        self._mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self._helper = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _KILLER, f"{_MARK}={self._mark}"]
            + ([str(scratch)] if scratch else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        assert self._helper.stdin is not None
        self._pipe = self._helper.stdin.fileno()
        _pipes[self._pipe] = False

    def watch(self, pids: set[int]) -> None:
        """Watch these processes until `release`."""
        assert self._helper.stdin is not None
        for pid in sorted(pids):
            if (start := start_time(pid)) is not None:
                self._helper.stdin.write(f"{pid} {start}\n")
        self._helper.stdin.flush()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the processes that start in the block from their first moment until `release`."""
        if self._pipe not in _pipes:  # in a forked child
            yield
            return
        _pipes[self._pipe] = True
        try:
            with variables(**{_MARK: self._mark}), _temporary_files_in(self._scratch):
                yield
        finally:
            if self._pipe in _pipes:
                _pipes[self._pipe] = False

    def release(self) -> None:
        """Kill the watched processes that still exist, and end the helper.

        The scratch folder is removed after its last user.
        """
        assert self._helper.stdin is not None
        _pipes.pop(self._pipe, None)
        try:
            if self._scratch and not _is_last_user(self._scratch):
                self._helper.stdin.write("keep\n")
            self._helper.stdin.close()
            self._helper.wait(timeout=10)
        except (OSError, subprocess.TimeoutExpired) as error:
            _log.warning("the helper that kills orphaned engines has not exited: %s", error)
            self._helper.kill()
            self._helper.wait()
