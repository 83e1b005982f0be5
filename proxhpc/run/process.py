"""Other processes of this machine, as /proc shows them."""

import os
from pathlib import Path


def start_time(pid: int) -> str | None:
    """Clock ticks from boot to the start of a process, for pids recur; None if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]


def descendants(pid: int) -> set[int]:
    """Numbers of all processes below `pid`; empty where there is no /proc."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        for children in Path(f"/proc/{todo.pop()}/task").glob("*/children"):
            try:
                new = {int(child) for child in children.read_text().split()} - found
            except OSError:  # it ended while we looked
                continue
            found |= new
            todo += new
    return found


def pid_space() -> str:
    """What a pid is good for: this boot of this machine and the pid namespace; "" if unknown.

    Host names do not do: containers on many nodes may share one.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""
