"""The report as typed data, as report.json and `report --json` hold it; null is unknown."""

from typing import Literal

from proxhpc.outputs import OutputModel, UsageTotals
from proxhpc.run.estimate import WorkFigures
from proxhpc.status.totals import DocumentTotals, EditTotals, SizeTotals

ExampleChoice = Literal["largest", "reason", "random"]


class FlopsTotals(OutputModel):
    """FLOPs of inference, counted in three ways; null where a model's shape is unknown."""

    exact: int | None
    """What the engine computed: `prefill` + `decode`."""
    prefill: int | None
    """The part that read prompts."""
    decode: int | None
    """The part that generated tokens."""
    paper_measured: int | None
    """The ProX paper's 2·N·(prompt tokens + generated tokens); cached tokens count, too."""
    paper_corpus: int | None
    """The paper's short form: 2·N·(raw tokens of the documents that the stage read)."""


class RequestWork(OutputModel):
    """Requests and their FLOPs, which are in no other sum."""

    usage: UsageTotals
    """Sums over the requests."""
    flops: int | None
    """Their exact FLOPs."""


class CachedWork(OutputModel):
    """Work that the engine's prefix cache saved, which is in no other sum."""

    tokens: int
    """Prompt tokens found in the cache."""
    flops: int | None
    """FLOPs to read them again."""


class SavedWork(OutputModel):
    """Model work that was not necessary."""

    memo: RequestWork
    """Requests with a prompt that had been answered before."""
    prefix_cache: CachedWork
    """Beginnings of prompts that the engine had read before."""


class StageReport(OutputModel):
    """A stage and the work of its model."""

    level: str
    """`doc` or `chunk`."""
    model: str | None
    """Name of the model; null for the rules."""
    snapshot: str | None
    """Its commit on the hub, or a digest of its files."""
    parameters: int | None
    """Number of its weights."""
    paper_parameters: int | None
    """The paper's N: all weights but the input embedding."""
    tokens_read: int
    """Raw tokens of the documents that the stage read."""
    usage: UsageTotals
    """Sums over its requests."""
    flops: FlopsTotals
    """FLOPs of its requests."""
    saved: SavedWork
    """Work that was not necessary."""


class TrainingReport(OutputModel):
    """One epoch of training, 6·N·tokens FLOPs, on the raw corpus and on the refined one.

    None of this says how good the trained model is. Where N is unknown, so are the FLOPs.
    """

    name: str
    """Name of the model to train, from the manifest's `comparison`."""
    parameters: int | None
    """Its N: all weights but the input embedding."""
    note: str
    """Why N is unknown, or empty."""
    raw_flops: int | None = None
    """FLOPs of training on the raw corpus."""
    refined_flops: int | None = None
    """FLOPs of training on the refined corpus."""
    saved_flops: int | None = None
    """`raw_flops` - `refined_flops`."""
    refining_flops: int | None = None
    """Exact FLOPs of refining."""
    break_even_parameters: int | None = None
    """Smallest N for which refining costs no more than it saves; null if no tokens are saved."""


class EstimateReport(OutputModel):
    """The plan's estimate against what was counted."""

    share: float
    """Share of the input's bytes that was counted; 1 if the run is merged."""
    estimated: WorkFigures
    """The plan's estimate for this share of the input; its documents are null before the merge."""
    counted: WorkFigures
    """Counted while it ran."""


class GpuReport(OutputModel):
    """GPU time of the workers that refine."""

    devices: tuple[str, ...]
    """Names of the GPUs."""
    busy_seconds: float | None
    """GPU seconds at work: the workers' time times the GPUs of each."""
    boot_seconds: float | None
    """GPU seconds spent loading models."""
    model_flops_utilization: float | None
    """Exact FLOPs, work done twice included, as a share of the dense bfloat16 peak, at work."""


class CostReport(OutputModel):
    """Time that workers held, loading models and waiting included."""

    gpu_hours: float | None
    """GPU-hours of the workers that refine; null if the number of their GPUs is unknown."""
    estimated_gpu_hours: float | None
    """The plan's estimate for the same texts, from its calibration if that had the same GPUs; null
    unless all GPUs are of one known kind."""
    core_hours: float | None
    """CPU core-hours of all workers, of the merge, too; null without a site."""
    refining_core_hours: float | None
    """Of these, the core-hours of the workers that refine."""
    estimated_core_hours: float | None
    """The calibration's estimate for the same texts; null without one, or on other GPUs."""
    price_per_gpu_hour: str | None
    """The site's `price_per_gpu_hour`."""
    price: str | None
    """Price of the GPU-hours; null without one of the two."""


class WorkerReport(OutputModel):
    """A worker, as its last heartbeat describes it."""

    worker: str
    """Name."""
    role: str
    """`refine` or `merge`."""
    host: str
    """Host."""
    job: str
    """Slurm job, or empty."""
    device: str | None
    """Name of its GPUs."""
    state: str
    """State: `starting`, `working`, `stopped`, `failed` or `done`."""
    shards: int
    """Shards that it published."""
    documents: int
    """Documents that it committed."""
    busy_seconds: float
    """Seconds at work."""
    boot_seconds: float
    """Seconds spent loading models."""
    tokens_per_second: float | None
    """Raw tokens committed per second at work."""
    message: str
    """Error message, or empty."""


class TimelineWorker(OutputModel):
    """A worker over the time of the run."""

    worker: str
    """Name."""
    end: str
    """How it ended: its last state, or `gone` if it died without an error message."""
    tokens_per_second: tuple[float, ...]
    """Raw tokens committed per second, in each bin."""
    failed: float | None
    """When it failed, as a share of the run's time from 0 to 1; null if it did not."""
    deaths_noted: tuple[float, ...]
    """When it noted that another worker or its engine had died, as shares of the run's time."""


class Timeline(OutputModel):
    """Throughput over the time of the run, in equal bins."""

    start: float | None
    """Unix time of the first heartbeat."""
    seconds: float
    """Time from the first heartbeat to the last."""
    tokens_per_second: tuple[float, ...]
    """Raw tokens committed per second by all workers, in each bin."""
    workers: tuple[TimelineWorker, ...]
    """Workers one by one, those that failed first; at most 32."""


class ExecutionReport(OutputModel):
    """How this run went. Two runs of the same plan differ only in this part of their reports."""

    run_id: str
    """Id of the run."""
    plan: str
    """Digest of its plan."""
    run: str
    """Path of the run directory."""
    corpus: str
    """Path of the folder that holds the corpus, or will hold it."""
    created: float
    """Unix time at which it was planned."""
    last_heard: float | None
    """Unix time of the last heartbeat."""
    workers: int
    """Workers that refined."""
    busy_seconds: float
    """Their seconds at work, added up."""
    boot_seconds: float
    """Their seconds spent loading models, added up."""
    gpus: GpuReport
    """GPU time."""
    cost: CostReport
    """What the run has cost so far."""
    redone: dict[str, RequestWork]
    """By stage: requests beyond those in ledgers. Work was lost with a worker and done again or,
    before the merge, is not committed yet."""
    tokens_per_worker_second: float | None
    """Raw tokens per second at work of a worker."""
    by_worker: tuple[WorkerReport, ...]
    """Every worker, of the merge, too."""
    timeline: Timeline | None
    """Throughput over time; null before the merge."""


class OutcomeTokens(OutputModel):
    """Documents with one outcome and reason.

    After the merge, the tokens of all entries add up to the raw tokens of the run.
    """

    outcome: Literal[
        "dropped", "quarantined", "edited", "duplicate", "left_out", "shortened", "written"
    ]
    """For `edited`: tokens removed from edited documents; `shortened`: tokens that the merge
    removed from documents of the corpus. `written`: tokens of the corpus."""
    reason: str
    """Why documents were dropped, quarantined, left out or shortened."""
    documents: int
    """Documents with this outcome."""
    raw_tokens: int | None
    """Tokens; null before the merge."""


class AccountBase(OutputModel):
    """What is known of a run at any time."""

    name: str
    """Name of the run, from its manifest."""
    code: str
    """Version of proxhpc that planned it."""
    engine: str
    """Engine that wrote the programs."""
    policy: str
    """The policy: `default`, `reference`, or the settings that differ from the defaults."""
    token_unit: str
    """What tokens are: the tokenizer that counted them."""
    documents: DocumentTotals
    """Documents by outcome."""
    tokens: SizeTotals
    """Tokens of the texts."""
    bytes: SizeTotals
    """UTF-8 bytes of the texts; of a record that could not be read, its own."""
    edits: EditTotals
    """What programs did."""
    stages: tuple[StageReport, ...]
    """Stages with the work of their models."""
    flops: FlopsTotals
    """FLOPs of all stages."""
    comparison: TrainingReport | None
    """Training with and without refining; null unless the manifest has `comparison`."""
    estimate: EstimateReport
    """The plan's estimate against what was counted."""
    outcomes: tuple[OutcomeTokens, ...]
    """Documents by what became of them, with the tokens that were removed or written."""
    execution: ExecutionReport
    """Workers and their time."""


class RunAccount(AccountBase):
    """Account of a run before its merge, from what its workers have committed.

    A document counts twice where a worker died between a commit and its heartbeat.
    """

    format: Literal["proxhpc.account/1"] = "proxhpc.account/1"
    """Kind and version of this document."""


class SizeBin(OutputModel):
    """Documents whose size is between two numbers."""

    min: int
    """Smallest size in this bin."""
    max: int
    """Largest size in this bin."""
    raw: int
    """Documents that could be read, by their raw size."""
    refined: int
    """Refined documents, duplicates included, by their refined size."""


class Distributions(OutputModel):
    """Documents by size, in bins that double in width."""

    tokens: tuple[SizeBin, ...]
    """By tokens."""
    lines: tuple[SizeBin, ...]
    """By lines."""


class ProgramTotals(OutputModel):
    """Programs of a stage. The program of an answer from the memo counts every time."""

    calls: dict[str, int]
    """Statements, by the function that they call."""
    finishes: dict[str, int]
    """Answers: `stop` for complete ones, `length` for those truncated at their token limit,
    `loop` for those stopped because they repeated themselves."""


class LargeSet(OutputModel):
    """One of the largest duplicate sets."""

    size: int
    """Documents in it."""
    id: str
    """Id of its best document beside the survivor."""
    source: str
    """Its input file and position."""


class DuplicateReport(OutputModel):
    """Duplicate sets: documents with the same URL or like texts, of which one survives."""

    sets: int
    """Number of sets."""
    further_survivors: int
    """Documents that stay beside the survivors of their sets, by `dedup.survivors`."""
    largest_size: int
    """Documents in the largest set."""
    partly_compared: int
    """Documents of large families, such as pages of one template, that were compared with the
    likeliest others only; one that is in several families counts several times."""
    ranked: int | None
    """Documents with a number or date in the field `dedup.by`; null without that key."""
    with_url: int | None
    """Documents with a URL in the field `dedup.url`; null without that key."""
    largest: tuple[LargeSet, ...]
    """The largest sets."""


class ExampleReport(OutputModel):
    """A document that the page shows before and after."""

    id: str
    """Id of the document."""
    source: str
    """Its input file and position."""
    outcome: str
    """Outcome."""
    reason: str
    """Why it was dropped or quarantined."""
    chosen: ExampleChoice
    """Why it is shown: a large share was removed, a frequent reason, or as any edited document."""
    raw_tokens: int
    """Tokens of the raw text."""
    refined_tokens: int
    """Tokens of the refined text; 0 if the document does not reach the merge."""


class InputReport(OutputModel):
    """An input file and what became of its documents."""

    name: str
    """Name of the file."""
    documents: int
    """Documents read, records included that could not be read."""
    kept: int
    """Documents kept unchanged."""
    edited: int
    """Documents edited."""
    dropped: int
    """Documents dropped."""
    quarantined: int
    """Documents quarantined."""
    duplicates: int
    """Kept and edited documents that were left out as duplicates."""
    left_out: dict[str, int]
    """Kept and edited documents that were left out otherwise, by reason."""
    written: int
    """Documents in the corpus."""
    written_ratio: float | None
    """`written` / `documents`."""


class PartReport(OutputModel):
    """A file of the corpus."""

    name: str
    """Name of the file."""
    documents: int
    """Documents in it."""
    tokens: int
    """Tokens of their texts."""
    text_bytes: int
    """UTF-8 bytes of their texts."""
    bytes_stored: int
    """Size of the file."""
    sha256: str
    """Its digest."""


class Report(AccountBase):
    """Account of a merged run."""

    format: Literal["proxhpc.report/1"] = "proxhpc.report/1"
    """Kind and version of this document."""
    distributions: Distributions
    """Documents by size."""
    programs: dict[str, ProgramTotals]
    """Programs by stage."""
    duplicate_sets: DuplicateReport
    """Sets of duplicates."""
    benchmark: dict[str, int] | None
    """Documents that contain runs of words of a benchmark (`dedup.against` with `mode: contained`),
    by its files; null without one. `merge/benchmark.jsonl.zst` lists them."""
    benchmark_skipped: int | None
    """Items of the benchmark that were not searched for, because they cannot be read or have fewer
    words than a run; null without a benchmark."""
    repeated_lines: int | None
    """Lines that the merge removed from documents of the corpus because others repeat them; null
    without `dedup.lines`."""
    shared_ids: int
    """Documents of the corpus with the id of an earlier one, but another text."""
    examples: tuple[ExampleReport, ...]
    """Documents that the page shows before and after."""
    inputs: tuple[InputReport, ...]
    """Input files."""
    parts: tuple[PartReport, ...]
    """Files of the corpus."""
    bytes_stored: int
    """Size of these files."""
