"""How this particular run went: its workers and their time. The rest of a report repeats itself."""

from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import ValidationError

from proxhpc.plan import Plan
from proxhpc.rundir import RunDir
from proxhpc.site import Site
from proxhpc.status.beats import Beat, latest


@dataclass(frozen=True, slots=True)
class _Times:
    busy: float
    boot: float

    @property
    def total(self) -> float:
        return self.busy + self.boot


def execution(run: RunDir, plan: Plan, documents: int, tokens: int) -> dict[str, Any]:
    """Identity, workers and times of a run, from what the workers wrote.

    `gpu_seconds` are the workers' seconds, loading included, times the GPUs of one worker at the
    latest launch's site; null where the site asks for GPUs in Slurm's own words.
    """
    beats = latest(run)
    refining = [beat for beat in beats if beat.role == "refine"]
    times = _Times(
        sum(beat.busy_seconds for beat in refining), sum(beat.boot_seconds for beat in refining)
    )
    gpus = _gpus(run)
    return {
        "run_id": plan.run_id,
        "plan": plan.digest,
        "created": plan.created,
        "last_heard": max((beat.time for beat in beats), default=None),
        "workers": len(refining),
        "busy_seconds": round(times.busy, 3),
        "boot_seconds": round(times.boot, 3),
        "gpus_per_worker": gpus,
        "gpu_seconds": None if gpus is None else round(gpus * times.total, 3),
        "documents_per_worker_second": _rate(documents, times.busy),
        "tokens_per_worker_second": _rate(tokens, times.busy),
        "by_worker": [_worker(beat) for beat in beats],
    }


def _worker(beat: Beat) -> dict[str, Any]:
    return {
        "worker": beat.owner.worker,
        "role": beat.role,
        "host": beat.owner.host,
        "job": beat.owner.job,
        "state": beat.state,
        "shards": beat.shards,
        "documents": beat.counts.documents,
        "busy_seconds": beat.busy_seconds,
        "boot_seconds": beat.boot_seconds,
        "message": beat.message,
    }


def _gpus(run: RunDir) -> int | None:
    try:
        resources = Site.model_validate(orjson.loads(run.site.read_bytes())).resources("refine")
    except (FileNotFoundError, orjson.JSONDecodeError, ValidationError):
        return None  # launched without a site of ours: by plain sbatch, say
    return None if resources.gres else resources.gpus


def _rate(amount: int, seconds: float) -> float | None:
    return round(amount / seconds, 3) if seconds > 0 else None
