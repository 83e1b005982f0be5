"""What is to be run, and the protocol of where it runs."""

from collections.abc import Callable, Container
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
class Work:
    """Work for one phase: `function(*arguments)` for each tuple, as elements of arrays."""

    phase: PhaseName
    function: Callable[..., Any]
    arguments: list[tuple[Any, ...]]
    about: dict[str, int]  # the state of the run, noted with the intent
    exclude: tuple[str, ...] = ()  # nodes that it must not run on
    delay: int = 0  # seconds before it may start


class Backend(Protocol):
    """Where jobs run."""

    def active(self, phase: PhaseName) -> int:
        """Jobs of a phase that wait or run."""
        ...

    def submit(self, work: Work, then: Work | None) -> list[str]:
        """Start a job, and `then` when it has ended however it ends; ids for people."""
        ...

    def follow(self, then: Work) -> bool:
        """Start `then` when what is at work has ended; False where that was arranged before."""
        ...

    def reconcile(self) -> list[str]:
        """Settle what a submitter left that died half way; one line for each case."""
        ...

    def elements(self, resources: Resources) -> int:
        """How many elements may be submitted for these resources now."""
        ...

    def failing(self, worked: Container[str]) -> dict[str, int]:
        """Nodes on which element after element ends in no time, and how many did.

        Those that `worked` have done something first.
        """
        ...

    def cancel(self) -> list[str]:
        """End every job of the run, waiting ones too; ids or names for people."""
        ...


def recorded_site(run: RunDir) -> Site:
    """The site of the latest launch. UserError if its file is not as it was written."""
    try:
        return Site.model_validate(orjson.loads(run.site.read_bytes()))
    except ValueError as error:
        raise UserError(
            f"{run.site} is damaged: {error}", hint="delete it and launch again with --site"
        ) from error


def stale_after(run: RunDir) -> float:
    """Seconds without a sign of life after which a holder of leases counts as dead."""
    given = recorded_site(run).stale_after if run.site.exists() else None
    return given or STALE_AFTER


def intend(journal: Journal, number: int, work: Work, *, arrays: int, chained: bool) -> None:
    """Write down what is about to be submitted."""
    about: dict[str, Any] = {"phase": work.phase, "count": len(work.arguments), "about": work.about}
    about |= {"arrays": arrays, "chained": chained, "exclude": list(work.exclude)}
    journal.write("intent", number, **about)
    fault_point("intent written")
