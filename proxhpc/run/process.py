"""Processes of this machine, as /proc shows them."""

import os
from pathlib import Path


def start_time(pid: int) -> str | None:
    """Return a process's start time in clock ticks since boot; None if it does not exist.

    With the pid it identifies a process, because pids are reused.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def exists(pid: int) -> bool:
    """Return True if there is a process with this pid, also where /proc hides it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True


def descendants(pid: int) -> set[int]:
    """Return the pids of all processes below `pid`; empty where there is no /proc."""
    pids: set[int] = set()
    todo = [pid]
    while todo:
        for children in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                new = {int(child) for child in children.read_text().split()} - pids
            except OSError:  # it has ended in the meantime
                continue
            pids |= new
            todo += new
    return pids


def pid_space() -> str:
    """Identify where pids are valid: this boot and pid namespace; "" if unknown.

    Host names are not enough, because containers on several nodes may share one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
