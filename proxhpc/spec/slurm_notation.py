"""Slurm's notation: times, memory sizes, and the sbatch options that proxhpc sets itself."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from proxhpc.spec.yaml_lines import quoted

_TIME = re.compile(r"(?:(\d{1,4})-)?(\d{1,6})(?::(\d{1,2}))?(?::(\d{1,2}))?")


def parse_duration(text: str) -> int | None:
    """Return the seconds of a time in Slurm's notation; None for others, such as UNLIMITED.

    The forms are minutes, M:S, H:M:S, D-H, D-H:M and D-H:M:S.
    """
    match = _TIME.fullmatch(text.strip())
    if match is None:
        return None
    days, first, second, third = (int(part) if part else 0 for part in match.groups())
    if match[1] is not None or match[4] is not None:
        hours, minutes, seconds = first, second, third
    else:
        hours, minutes, seconds = 0, first, second
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def parse_time(value: str | int) -> int:
    """Return the seconds of a time limit, which must be positive; ValueError for anything else."""
    seconds = None if isinstance(value, bool) else parse_duration(str(value))
    if seconds is None:
        raise ValueError(
            f"{quoted(value)} is not a time limit (HH:MM:SS, D-HH:MM:SS or minutes; "
            "omit the key for the partition's default)"
        )
    if seconds == 0:
        raise ValueError(f"{quoted(value)} is not a time limit: it must be more than 0")
    return seconds


def format_time(seconds: int) -> str:
    """Return a time limit in Slurm's notation: `HH:MM:SS`, or `D-HH:MM:SS` from one day on."""
    minutes, second = divmod(seconds, 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    return (f"{days}-" if days else "") + f"{hour:02}:{minute:02}:{second:02}"


def _time(value: Any) -> Any:
    return format_time(parse_time(value)) if isinstance(value, str | int) else value


def _memory(value: Any) -> Any:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and not re.fullmatch(r"[0-9]{1,9}[KMGT]?", text):
        raise ValueError(f"{quoted(value)} is not a memory size like 32G (units: K, M, G, T)")
    return text


def min_memory(first: str, second: str) -> str:
    """Return the smaller of two memory sizes; "0", Slurm's "all of the node", counts as zero."""
    return min(first, second, key=memory_bytes)


def memory_bytes(memory: str) -> int:
    """Return a memory size in bytes."""
    unit = memory[-1] if memory[-1] in "KMGT" else "M"
    return int(memory.rstrip("KMGT")) << 10 * "BKMGT".index(unit)


def _schema(pattern: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "pattern": pattern}]})


TimeLimit = Annotated[str, BeforeValidator(_time), _schema(r"^([0-9]+-)?[0-9]+(:[0-9]{1,2}){0,2}$")]
Memory = Annotated[str, BeforeValidator(_memory), _schema(r"^[0-9]{1,9}[KMGT]?$")]

_LAUNCHER = "set by the launcher"
MANAGED_SBATCH_OPTIONS = {
    "array": f"{_LAUNCHER}; use workers",
    **dict.fromkeys(("output", "error"), f"{_LAUNCHER}; logs are in the run directory"),
    "hold": f"{_LAUNCHER}: jobs are held until they are recorded",
    "dependency": f"{_LAUNCHER}, from the order of the phases",
    "signal": f"{_LAUNCHER}: workers stop before their time limit",
    **dict.fromkeys(("open-mode", "chdir", "wrap", "parsable", "wait", "test-only"), _LAUNCHER),
    **dict.fromkeys(("requeue", "no-requeue"), f"{_LAUNCHER}: only the control job is requeued"),
    "clusters": "set the variable SLURM_CLUSTERS where you launch",
    "nodes": f"{_LAUNCHER}: a worker runs on one node",
    **dict.fromkeys(("ntasks-per-node", "ntasks-per-gpu"), "use tasks_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "use cpus"),
    "gpus-per-node": "use gpus (per worker) or gres",
    **{name: f"use {name}" for name in ("mem", "gres", "time", "partition", "account", "qos")},
    **{name: f"use {name}" for name in ("constraint", "reservation", "exclusive")},
}
DROPPABLE_SBATCH_OPTIONS = (
    *("cpus-per-task", "gpus-per-node", "no-requeue", "nodes", "ntasks-per-node", "open-mode"),
    *("requeue", "signal"),
)
"""Options set by the launcher that `false` leaves out, for sites that refuse them."""
GPU_SBATCH_OPTIONS = ("gpus", "gpus-per-task", "mem-per-gpu", "gpu-bind", "gpu-freq")
"""Options that only jobs with GPUs may have."""
