"""Finds and kills the processes of a throw-away Slurm cluster.

Run as a program with the cluster's root, it waits for the end of its input, which comes when the
process that started the cluster closes it or dies, however it dies; then nothing is left.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def processes(root: Path, node: str | None = None) -> list[int]:
    """The processes of the cluster at `root`, or of one of its nodes, with all descendants."""
    marks = {f"SLURM_CONF={root}/slurm.conf".encode()}
    if node is not None:
        marks.add(f"SLURMD_NODENAME={node}".encode())
    children: dict[int, list[int]] = {}
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        # A process may end, or be another user's, while it is looked at.
        with contextlib.suppress(OSError):
            if not entry.name.isdigit():
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            children.setdefault(int(parent), []).append(int(entry.name))
            if marks <= set((entry / "environ").read_bytes().split(b"\0")):
                found.append(int(entry.name))
    for pid in found:
        found += [child for child in children.get(pid, []) if child not in found]
    return [pid for pid in found if pid != os.getpid()]


def kill_all(find: Callable[[], list[int]], timeout: float = 20) -> bool:
    """Sends SIGKILL to what `find` finds until it finds nothing; False when that never came."""
    end = time.monotonic() + timeout
    while pids := find():
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    sys.stdin.buffer.read()
    sys.exit(0 if kill_all(lambda: processes(Path(sys.argv[1]))) else 1)
