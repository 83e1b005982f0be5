"""The protocol of a backend, Slurm or local, and the batch of tasks that it runs."""

from collections.abc import Callable, Collection, Container
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from proxhpc.cluster.journal import Journal
from proxhpc.errors import UserError
from proxhpc.faults import fault_point
from proxhpc.run.lease import STALE_AFTER
from proxhpc.run.paths import RunDir
from proxhpc.spec.site import PhaseName, Resources, Site


@dataclass(frozen=True, slots=True)
class TaskBatch:
    """Tasks of one phase: `function(*arguments)` for each tuple, as elements of job arrays."""

    phase: PhaseName
    function: Callable[..., Any]
    arguments: list[tuple[Any, ...]]
    run_state: dict[str, int]  # recorded with the intent; the next round compares it with its own
    excluded_nodes: tuple[str, ...] = ()
    delay_seconds: int = 0  # before it may start
    minutes: int | None = None  # the time limit, if not the site's


class Backend(Protocol):
    """Runs the jobs of a run. What is about Slurm's queue does nothing unless a backend has one."""

    def active_elements(self, phase: PhaseName) -> int:
        """Return the number of jobs of a phase that are pending or running."""

    def submit(self, batch: TaskBatch, follow_up: TaskBatch | None) -> list[str]:
        """Start a batch, and `follow_up` when it ends, successfully or not; return job ids."""

    def ensure_follow_up(self, follow_up: TaskBatch) -> bool:
        """Start `follow_up` once all active jobs have ended; False if that is already scheduled."""
        return False

    def reconcile(self) -> list[str]:
        """Complete or cancel submissions of a launcher that died; return one line for each."""
        return []

    def free_elements(self, resources: Resources) -> int:
        """Return how many array elements may be submitted now."""

    def set_aside_paused(self) -> list[str]:
        """Ignore jobs that wait for the end of a pause; return their ids.

        They are cancelled when others are submitted, so a step that fails leaves them in the queue.
        """
        return []

    def drop_paused(self) -> None:
        """Cancel the jobs that were set aside."""
        return

    def release_held(self) -> list[str]:
        """Release jobs that are held; return their ids."""
        return []

    @property
    def site_words(self) -> list[str]:
        """Lines that the site printed when it accepted jobs."""
        return []

    def silent_round(self, phase: PhaseName, spoke: Collection[str]) -> tuple[str, int]:
        """Return why every element of the last round failed in silence, and on how many nodes.

        `spoke` are the jobs with heartbeats. ("", 0) if an element began, or this is unknown.
        """
        return "", 0

    def failing_nodes(self, productive_jobs: Container[str]) -> dict[str, int]:
        """Return nodes where recent elements all failed at once, with the number of failures.

        An element in `productive_jobs` did some work first, so it does not count as a failure.
        """
        return {}

    def cancel(self) -> list[str]:
        """End every job of the run, pending or running; return their ids or names."""


def recorded_site(run: RunDir) -> Site:
    """Return the site of the latest launch. UserError if its file is damaged."""
    try:
        return Site.model_validate(orjson.loads(run.site.read_bytes()))
    except ValueError as error:
        raise UserError(
            f"{run.site} is damaged: {error}",
            hint="delete it, then run `proxhpc launch` again with --site",
        ) from error


def stale_after(run: RunDir) -> float:
    """Return the seconds without a heartbeat after which a lease holder counts as dead."""
    seconds = recorded_site(run).stale_after if run.site.exists() else None
    return seconds or STALE_AFTER


def record_intent(
    journal: Journal, number: int, batch: TaskBatch, *, arrays: int, has_control_job: bool
) -> None:
    """Record what is about to be submitted."""
    journal.write(
        "intent",
        number,
        phase=batch.phase,
        elements=len(batch.arguments),
        arrays=arrays,
        has_control_job=has_control_job,
        excluded_nodes=list(batch.excluded_nodes),
        delay_seconds=batch.delay_seconds,
        run_state=batch.run_state,
    )
    fault_point("intent written")
