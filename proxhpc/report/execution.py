"""How this particular run went: its workers and their time. The rest of a report repeats itself."""

from collections.abc import Sequence
from typing import Any

import orjson
from pydantic import ValidationError

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak
from proxhpc.account.flops import Usage, flops
from proxhpc.account.summary import added
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import Site
from proxhpc.status.heartbeats import Heartbeat, latest

MFU_COUNTED_AS = (
    "exact FLOPs, those done twice included, against the dense bfloat16 peak of the GPUs "
    "for the time at work, loading left out"
)


def execution(run: RunDir, plan: Plan, counts: Counts) -> dict[str, Any]:
    """Identity, workers and times of a run, from what the workers wrote.

    GPU time is the workers' time, loading included, times the GPUs that each one has; null where
    neither a worker nor the site of the latest launch says how many.
    """
    beats = latest(run)
    refining = [beat for beat in beats if beat.role == "refine"]
    busy = sum(beat.busy_seconds for beat in refining)
    boot = sum(beat.boot_seconds for beat in refining)
    return {
        "run_id": plan.run_id,
        "plan": plan.digest,
        "created": plan.created,
        "last_heard": max((beat.time for beat in beats), default=None),
        "workers": len(refining),
        "busy_seconds": round(busy, 3),
        "boot_seconds": round(boot, 3),
        "gpus": _gpus(refining, _site_gpus(run), plan),
        "redone": _redone(refining, plan, counts),
        "documents_per_worker_second": _rate(counts.documents, busy),
        "tokens_per_worker_second": _rate(counts.tokens_in, busy),
        "by_worker": [_worker(beat) for beat in beats],
    }


def _gpus(beats: Sequence[Heartbeat], of_site: int | None, plan: Plan) -> dict[str, Any]:
    """GPU time and how well it was used; the utilisation is null unless every peak is known."""
    number = [beat.devices if beat.device else of_site for beat in beats]
    known = [n for n in number if n is not None]
    seconds: list[float | None] = [None, None]
    if len(known) == len(beats):
        pairs = list(zip(beats, known, strict=True))
        seconds = [
            round(sum(beat.busy_seconds * n for beat, n in pairs), 3),
            round(sum(beat.boot_seconds * n for beat, n in pairs), 3),
        ]
    done = added([_asked_flops(plan, beat) for beat in beats])
    peaks = [peak(beat.device) for beat in beats]
    possible = sum(
        (most or 0) * beat.devices * beat.busy_seconds
        for most, beat in zip(peaks, beats, strict=True)
    )
    used = done is not None and possible > 0 and None not in peaks
    return {
        "devices": sorted({beat.device for beat in beats if beat.device}),
        "busy_seconds": seconds[0],
        "boot_seconds": seconds[1],
        "model_flops_utilisation": round((done or 0) / possible, 6) if used else None,
        "counted_as": MFU_COUNTED_AS if used else None,
    }


def _asked_flops(plan: Plan, beat: Heartbeat) -> int | None:
    """FLOPs that a worker's engines did, whatever became of it."""
    shapes = {level: ref.shape for level, ref in plan.models.items()}
    return added(
        [
            flops(shape, usage) if (shape := shapes.get(level)) else None
            for level, usage in beat.asked.items()
        ]
    )


def _redone(beats: Sequence[Heartbeat], plan: Plan, counts: Counts) -> dict[str, Any]:
    """By stage: what engines did beyond what the counts hold, and its FLOPs.

    It was lost with workers and done again by others; before the merge some of it is on its way
    into a commit. What a worker did after its last word is not known.
    """
    out: dict[str, Any] = {}
    for level, ref in plan.models.items():
        asked = sum((beat.asked.get(level, Usage()) for beat in beats), Usage())
        beyond = asked.beyond(getattr(counts, level))
        exact = flops(ref.shape, beyond) if ref.shape else None
        out[level] = {"usage": beyond.to_dict(), "flops": exact}
    return out


def _worker(beat: Heartbeat) -> dict[str, Any]:
    return {
        "worker": beat.owner.worker,
        "role": beat.role,
        "host": beat.owner.host,
        "job": beat.owner.job,
        "device": beat.device,
        "state": beat.state,
        "shards": beat.shards,
        "documents": beat.counts.documents,
        "busy_seconds": beat.busy_seconds,
        "boot_seconds": beat.boot_seconds,
        "tokens_per_second": _rate(beat.counts.tokens_in, beat.busy_seconds),
        "message": beat.message,
    }


def _site_gpus(run: RunDir) -> int | None:
    """GPUs of one worker at the latest launch's site."""
    try:
        resources = Site.model_validate(orjson.loads(run.site.read_bytes())).resources("refine")
    except (FileNotFoundError, orjson.JSONDecodeError, ValidationError):
        return None  # launched without a site of ours: by plain sbatch, say
    return None if resources.gres else resources.gpus


def _rate(amount: int, seconds: float) -> float | None:
    return round(amount / seconds, 3) if seconds > 0 else None
