"""The typed document of `proxhpc status --json`; null is unknown."""

from typing import Literal

from proxhpc.outputs import OutputModel, UsageTotals
from proxhpc.status.totals import RunTotals

RunPhase = Literal["planned", "refining", "merging", "reporting", "stopped", "finished"]


class ShardProgress(OutputModel):
    """How many shards are refined."""

    total: int
    """Shards of the plan."""
    done: int
    """Shards with a published ledger."""
    leased: int
    """Shards that are not done and that a worker has leased."""


class WorkProgress(OutputModel):
    """Work of the models, committed or not."""

    tokens_answered: int
    """Tokens of the prompts that were answered; with the rules, bytes read / 4."""
    tokens_estimated: int
    """Those of the whole run: answered so far and estimated for the rest."""
    share: float
    """The share that is done, from 0 to 1."""


class MergeProgress(OutputModel):
    """Progress of one phase of the merge."""

    phase: str
    """`sketch`, `match`, `scatter` or `write`."""
    total: int
    """Units of the phase: groups of shards, parts of the corpus; for `match`, of its rounds."""
    done: int
    """Units that are done."""


class Throughput(OutputModel):
    """Speed of all working refine workers together, over the last minutes."""

    documents_per_s: float | None
    """Documents refined per second."""
    tokens_per_s: float | None
    """Tokens of prompts answered per second; with the rules, bytes read / 4."""
    eta_s: float | None
    """Estimated seconds until every shard is refined, 0 when they are; null before 5 % of the work
    is done, and without a working worker."""


class WorkerStatus(OutputModel):
    """One process of the run, from the last line of its progress file."""

    worker: str
    """Its name, unique within the run."""
    role: str
    """`refine`, `merge` or `control`."""
    host: str
    """Host name of its machine."""
    job: str
    """Slurm's id of its job or array element; empty without Slurm."""
    state: str
    """`starting`, `working`, `retrying`, `done`, `stopped` or `failed` as it reports itself; `gone`
    if its process or job has ended without a report, `silent` if that cannot be known."""
    age_s: float
    """Seconds since its last report, by the clocks of two machines."""
    shard: int | None
    """Shard that it is refining."""
    shards: int
    """Shards that it has refined."""
    documents: int
    """Documents that it has committed."""
    documents_per_s: float | None
    """Documents that it refines per second."""
    busy_s: float
    """Seconds that it has spent refining."""
    boot_s: float
    """Seconds that it has spent loading models."""
    slurm: str
    """State of its job in the queue; empty if the job is not there."""
    error: str
    """Kind of the error with which it failed; empty without one."""
    message: str
    """Message and hint of that error."""


class Failure(OutputModel):
    """One problem and the workers that had it."""

    message: str
    """What went wrong."""
    workers: int
    """Number of workers that had the problem."""
    example: str
    """Name of one of them."""
    hint: str
    """What to do, or what happens by itself."""


class Status(RunTotals):
    """A run at one moment."""

    format: Literal["proxhpc.status/1"] = "proxhpc.status/1"
    """Kind and version of this document."""
    run: str
    """Path of the run directory."""
    name: str
    """Name of the run, from the manifest."""
    run_id: str
    """Identifier of the run, which is in the comment of each of its Slurm jobs."""
    time: float
    """When this was read: seconds since 1970."""
    phase: RunPhase
    """Where the run is. `stopped` means that nothing is running or pending."""
    reason: str
    """Why it is there, if that needs an explanation; else empty."""
    next_step: str
    """Command to run next; empty if there is nothing to do."""
    exact: bool
    """True once the run is merged: then all totals are verified. Before, they are the sum of what
    workers report, which may count documents of a dead worker twice."""
    shards: ShardProgress
    """How many shards are refined."""
    work: WorkProgress
    """How much of the models' work is done."""
    merge: tuple[MergeProgress, ...]
    """Progress of the merge by phase; empty before and after it."""
    token_unit: str
    """Model whose tokenizer counts the tokens, or the estimate from bytes."""
    doc: UsageTotals
    """Model requests of the doc stage."""
    chunk: UsageTotals
    """Model requests of the chunk stage."""
    speed: Throughput
    """Current speed and remaining time."""
    workers: tuple[WorkerStatus, ...]
    """Every worker, merge job and control job that has written a progress file."""
    deaths: int
    """Shards that were resumed after the death of a worker or an engine."""
    excluded_nodes: tuple[str, ...]
    """Nodes excluded from the latest array because workers failed there within minutes."""
    failures: tuple[Failure, ...]
    """Problems of workers, the most frequent first."""
    queue: dict[str, int] | None
    """Number of the run's jobs by phase, state and reason; null if the queue was not read."""
    queue_problem: str
    """Why the queue could not be read; empty otherwise."""
