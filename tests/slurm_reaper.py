"""Finds and kills the processes of a temporary Slurm cluster.

Run as a program with the cluster's root, it waits for the end of its input and then kills the
cluster. The input ends when the process that started the cluster closes it or dies in any way.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path


def processes(root: Path, node: str | None = None) -> list[int]:
    """Return the processes of the cluster at `root`, or of one node, with all descendants."""
    variables = {f"SLURM_CONF={root}/slurm.conf".encode()}
    if node is not None:
        variables.add(f"SLURMD_NODENAME={node}".encode())
    children: dict[int, list[int]] = {}
    pids: list[int] = []
    for entry in Path("/proc").iterdir():
        # A process may end while it is examined, or belong to another user.
        with contextlib.suppress(OSError):
            if not entry.name.isdigit():
                continue
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            children.setdefault(int(parent), []).append(int(entry.name))
            if variables <= set((entry / "environ").read_bytes().split(b"\0")):
                pids.append(int(entry.name))
    for pid in pids:
        pids += [child for child in children.get(pid, []) if child not in pids]
    return [pid for pid in pids if pid != os.getpid()]


def kill_all(find: Callable[[], list[int]], timeout: float = 20) -> bool:
    """Send SIGKILL to the processes of `find` until there are none; False after a timeout."""
    end = time.monotonic() + timeout
    while pids := find():
        # Stopped first, or a step would report that the job ended when its processes are killed.
        for each in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, each)
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


if __name__ == "__main__":
    sys.stdin.buffer.read()
    sys.exit(0 if kill_all(lambda: processes(Path(sys.argv[1]))) else 1)
