"""Points at which tests kill the processes of a run.

The environment variable `PROXHPC_FAULT` is a comma-separated list of `POINT:FILE`. The first
process that reaches POINT and manages to remove FILE kills itself, or sends itself the signal
`PROXHPC_FAULT_SIGNAL`. Otherwise nothing happens. A point with a detail, such as the name of a
round or of a draft's folder, may also be named with it.
"""

import os
import signal
from contextlib import suppress
from typing import Literal, get_args

FaultPoint = Literal[
    "lease taken",
    "lease stolen",
    "attempt created",
    "attempt resumed",
    "death noted",
    "commit written",
    "commit synced",
    "summary written",
    "ledger published",
    "attempts removed",
    "shard left",
    "advance held",
    "intent written",
    "array held",
    "array recorded",
    "control held",
    "control recorded",
    "one released",
    "all released",
    "draft written",
    "sketch written",
    "round written",
    "match written",
    "part written",
    "card written",
    "checksums written",
    "merge summarized",
    "report written",
]
FAULT_POINTS: tuple[FaultPoint, ...] = get_args(FaultPoint)
_ARMED = dict(
    armed.split(":", 1) for armed in os.environ.get("PROXHPC_FAULT", "").split(",") if armed
)


def fault_point(point: FaultPoint, detail: str = "") -> None:
    """Kill or stop this process here if the environment asks for it."""
    for name in {point, f"{point} {detail}"} & _ARMED.keys():
        with suppress(FileNotFoundError):  # another process was first
            os.unlink(_ARMED[name])
            number = signal.Signals[f"SIG{os.environ.get('PROXHPC_FAULT_SIGNAL', 'KILL')}"]
            os.kill(os.getpid(), number)
