"""Throughput over the time of a run, from a sample of the workers' heartbeats."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from proxhpc.report.model import Timeline, TimelineWorker
from proxhpc.run.paths import RunDir
from proxhpc.status.heartbeats import Heartbeat, sample_heartbeats

_BINS = 60  # of the run's time
MAX_WORKERS = 32  # workers shown one by one, those that failed first
_MAX_READS = 8000  # heartbeats read of all workers together
_MAX_POINTS = 48  # heartbeats read of one worker


@dataclass(frozen=True, slots=True)
class _Track:
    """One worker: its heartbeats, and its tokens per second in each bin."""

    heartbeats: Sequence[Heartbeat]
    rates: Sequence[float]

    @property
    def end(self) -> str:
        """Its last state; a worker still at work when its run is over died without an error."""
        state = self.heartbeats[-1].state
        return "gone" if state in ("starting", "working") else state

    @property
    def deaths_noted(self) -> list[float]:
        """When it noted the death of another worker or of its engine."""
        return [b.time for a, b in pairwise(self.heartbeats) if b.deaths > a.deaths]

    @property
    def failed(self) -> float | None:
        """Time of its last heartbeat, if it failed or died."""
        return self.heartbeats[-1].time if self.end in ("gone", "failed") else None


def run_timeline(run: RunDir) -> Timeline:
    """Raw tokens committed per second, in bins from the first heartbeat to the last."""
    histories = [heartbeats for heartbeats in _histories(run) if heartbeats]
    if not histories:
        return Timeline(start=None, seconds=0.0, tokens_per_second=(), workers=())
    start = min(heartbeats[0].time for heartbeats in histories)
    end = max(heartbeats[-1].time for heartbeats in histories)
    seconds = max(end - start, 1e-3)
    tracks = [_Track(heartbeats, _rates(heartbeats, start, seconds)) for heartbeats in histories]
    failed_first = sorted(
        tracks, key=lambda track: (track.failed is None, track.heartbeats[0].time)
    )

    def share(time: float) -> float:
        return round((time - start) / seconds, 4)

    totals = zip(*(track.rates for track in tracks), strict=True)
    return Timeline(
        start=start,
        seconds=round(seconds, 3),
        tokens_per_second=tuple(round(sum(rates), 3) for rates in totals),
        workers=tuple(
            TimelineWorker(
                worker=track.heartbeats[-1].owner.worker,
                end=track.end,
                tokens_per_second=tuple(round(rate, 3) for rate in track.rates),
                failed=None if track.failed is None else share(track.failed),
                deaths_noted=tuple(map(share, track.deaths_noted)),
            )
            for track in failed_first[:MAX_WORKERS]
        ),
    )


def _histories(run: RunDir) -> list[list[Heartbeat]]:
    paths = sorted(run.workers.glob("[!.]*.jsonl")) if run.workers.is_dir() else []
    points = max(4, min(_MAX_POINTS, _MAX_READS // max(1, len(paths))))
    histories = (sample_heartbeats(path, points) for path in paths)
    return [[beat for beat in history if beat.role == "refine"] for history in histories]


def _rates(heartbeats: Sequence[Heartbeat], start: float, seconds: float) -> list[float]:
    """Tokens per second in each bin; tokens are spread evenly between two heartbeats."""
    sums, width = [0.0] * _BINS, seconds / _BINS
    for earlier, later in pairwise(heartbeats):
        tokens = later.counts.tokens_in - earlier.counts.tokens_in
        if tokens <= 0 or later.time <= earlier.time:
            continue
        begin, end = (earlier.time - start) / width, (later.time - start) / width
        for position in range(int(begin), min(int(end), _BINS - 1) + 1):
            overlap = min(end, position + 1) - max(begin, position)
            sums[position] += tokens * max(overlap, 0.0) / (end - begin)
    return [total / width for total in sums]
