"""Throughput over the time of a run, from a sample of the workers' heartbeats."""

from collections.abc import Sequence
from itertools import pairwise

from proxhpc.report.model import Timeline, TimelineWorker
from proxhpc.run.paths import RunDir
from proxhpc.run.progress import Heartbeat
from proxhpc.status.heartbeats import sample_heartbeats

_BINS = 60  # of the run's time
_MAX_WORKERS = 32  # workers shown one by one, those that failed first
_MAX_READS = 8000  # heartbeats read of all workers together
_MAX_POINTS = 48  # heartbeats read of one worker


def run_timeline(run: RunDir) -> Timeline:
    """Raw tokens committed per second, in bins from the first heartbeat to the last."""
    histories = sorted(filter(None, _histories(run)), key=lambda history: history[0].time)
    if not histories:
        return Timeline(start=None, seconds=0.0, tokens_per_second=(), workers=())
    start = histories[0][0].time
    seconds = max(max(history[-1].time for history in histories) - start, 1e-3)
    rates = [_rates(history, start, seconds) for history in histories]
    workers = [_worker(*pair, start, seconds) for pair in zip(histories, rates, strict=True)]
    return Timeline(
        start=start,
        seconds=round(seconds, 3),
        tokens_per_second=tuple(round(sum(column), 3) for column in zip(*rates, strict=True)),
        workers=tuple(sorted(workers, key=lambda worker: worker.failed is None)[:_MAX_WORKERS]),
    )


def _worker(
    history: Sequence[Heartbeat], rates: Sequence[float], start: float, seconds: float
) -> TimelineWorker:
    last = history[-1]
    # A worker that was still at work when its run was over died without an error.
    end = "gone" if last.state in ("starting", "working") else last.state
    deaths = [later.time for earlier, later in pairwise(history) if later.deaths > earlier.deaths]
    return TimelineWorker(
        worker=last.owner.worker,
        end=end,
        tokens_per_second=tuple(round(rate, 3) for rate in rates),
        failed=_share(last.time, start, seconds) if end in ("gone", "failed") else None,
        deaths_noted=tuple(_share(time, start, seconds) for time in deaths),
    )


def _share(time: float, start: float, seconds: float) -> float:
    return round((time - start) / seconds, 4)


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
