"""What workers got through over the time of a run, from a bounded look at what they wrote."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from proxhpc.run.paths import RunDir
from proxhpc.status.heartbeats import Heartbeat, history

BINS = 60  # of the run's time
LANES = 32  # workers that are told one by one, those that failed first
READS = 8000  # of all files together
_POINTS = 48  # of one worker at most


@dataclass(frozen=True, slots=True)
class _Lane:
    """One worker: what it had committed when, and how it ended."""

    beats: Sequence[Heartbeat]
    rates: Sequence[float]

    @property
    def end(self) -> str:
        """Its last word; a worker at work when its run is over ended without one."""
        last = self.beats[-1].state
        return "gone" if last in ("starting", "working") else last

    @property
    def noted(self) -> list[float]:
        """When it noted the death of another worker or of its engine."""
        return [b.time for a, b in pairwise(self.beats) if b.deaths > a.deaths]

    @property
    def failed(self) -> float | None:
        """When it was heard of last, if it did not end as it should."""
        return self.beats[-1].time if self.end in ("gone", "failed") else None


def timeline(run: RunDir) -> dict[str, Any]:
    """Raw tokens committed per second, in bins of the time from the first word to the last."""
    found = [beats for beats in _histories(run) if beats]
    if not found:
        return {"start": None, "seconds": 0.0, "tokens_per_second": [], "workers": []}
    start = min(beats[0].time for beats in found)
    seconds = max(max(beats[-1].time for beats in found) - start, 1e-3)
    lanes = [_Lane(beats, _rates(beats, start, seconds)) for beats in found]
    told = sorted(lanes, key=lambda lane: (lane.failed is None, lane.beats[0].time))[:LANES]

    def part(time: float) -> float:
        return round((time - start) / seconds, 4)

    return {
        "start": start,
        "seconds": round(seconds, 3),
        "tokens_per_second": [
            round(sum(rates), 3) for rates in zip(*(lane.rates for lane in lanes), strict=True)
        ],
        "workers": [
            {
                "worker": lane.beats[-1].owner.worker,
                "end": lane.end,
                "tokens_per_second": [round(rate, 3) for rate in lane.rates],
                "failed": None if lane.failed is None else part(lane.failed),
                "deaths_noted": [part(time) for time in lane.noted],
            }
            for lane in told
        ],
    }


def _histories(run: RunDir) -> list[list[Heartbeat]]:
    paths = sorted(run.workers.glob("[!.]*.jsonl")) if run.workers.is_dir() else []
    points = max(4, min(_POINTS, READS // max(1, len(paths))))
    found = (history(path, points) for path in paths)
    return [[beat for beat in beats if beat.role == "refine"] for beats in found]


def _rates(beats: Sequence[Heartbeat], start: float, seconds: float) -> list[float]:
    """Tokens per second in each bin; what was committed between two lines is spread evenly."""
    sums, width = [0.0] * BINS, seconds / BINS
    for one, other in pairwise(beats):
        tokens, took = other.counts.tokens_in - one.counts.tokens_in, other.time - one.time
        if tokens <= 0 or took <= 0:
            continue
        begin, end = (one.time - start) / width, (other.time - start) / width
        for place in range(int(begin), min(int(end), BINS - 1) + 1):
            overlap = min(end, place + 1) - max(begin, place)
            sums[place] += tokens * max(overlap, 0.0) / (end - begin)
    return [total / width for total in sums]
