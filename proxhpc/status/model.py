"""What status knows of a run."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from proxhpc.account.counts import Counts

RunPhase = Literal["planned", "refining", "merging", "reporting", "stopped", "finished"]


@dataclass(frozen=True, slots=True)
class Shards:
    """`done` have a published ledger, `working` are under lease and not done."""

    total: int
    done: int
    working: int


@dataclass(frozen=True, slots=True)
class MergeProgress:
    """How far a phase of the merge is, in its own units: groups of shards, or parts."""

    phase: str
    total: int
    done: int


@dataclass(frozen=True, slots=True)
class Throughput:
    """Of all workers together over the last few minutes; null is unknown."""

    documents_per_s: float | None
    tokens_per_s: float | None
    eta_s: float | None


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """One worker. `state` is its own word, or `gone` or `silent` as seen from here.

    `age_s` is the time since its last line, by two machines' clocks. `slurm` is its job's state,
    empty when it is not in the queue.
    """

    worker: str
    role: str
    host: str
    job: str
    state: str
    age_s: float
    shard: int | None
    shards: int
    documents: int
    documents_per_s: float | None
    tokens_per_s: float | None
    busy_s: float
    boot_s: float
    slurm: str
    error: str
    message: str


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that went wrong, in how many workers, one of them, and what to do."""

    message: str
    workers: int
    example: str
    hint: str


@dataclass(frozen=True, slots=True)
class Status:
    """A run at one moment.

    `counts` are exact (`exact`) once the run is merged; before, they are what the workers say
    they have committed, which counts a document twice where a shard was taken from a dead worker
    before its last commit was seen. `next_step` is a command to type, or empty. `deaths` are those
    of workers and engines that others have noted; `left_out` are the nodes that the last array
    keeps away from. `merge` has the phases of the merge, as far as they are known, while it is on.
    """

    run: str
    name: str
    run_id: str
    time: float
    phase: RunPhase
    reason: str
    next_step: str
    shards: Shards
    merge: tuple[MergeProgress, ...]
    counts: Counts
    exact: bool
    token_unit: str
    duplicates: int | None
    written: int | None
    speed: Throughput
    workers: tuple[WorkerStatus, ...]
    deaths: int
    left_out: tuple[str, ...]
    failures: tuple[Failure, ...]
    queue: dict[str, int] | None
    queue_problem: str

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        out = {name: getattr(self, name) for name in self.__slots__}
        out["counts"] = self.counts.to_dict()
        out["shards"], out["speed"] = asdict(self.shards), asdict(self.speed)
        out["merge"] = [asdict(phase) for phase in self.merge]
        out["workers"] = [asdict(worker) for worker in self.workers]
        out["failures"] = [asdict(failure) for failure in self.failures]
        return out
