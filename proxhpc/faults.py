"""Points at which a run's processes may die, for tests that kill one at each of them.

With `PROXHPC_FAULT=POINT:FILE` in the environment, or several with commas between, the first
process that reaches a point and removes its file kills itself. Nothing else is ever done here.
"""

import os
import signal
from typing import Literal, get_args

Point = Literal[
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
    "sketch written",
    "pairs found",
    "match written",
    "part written",
    "card written",
    "corpus sealed",
    "merge summed",
    "report written",
]
POINTS: tuple[Point, ...] = get_args(Point)
_ARMED = dict(
    armed.split(":", 1) for armed in os.environ.get("PROXHPC_FAULT", "").split(",") if armed
)


def fault_point(point: Point) -> None:
    """Die here if the environment says so."""
    if point not in _ARMED:
        return
    try:
        os.unlink(_ARMED[point])
    except FileNotFoundError:
        return  # somebody else was first
    os.kill(os.getpid(), signal.SIGKILL)
