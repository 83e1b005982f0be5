"""Tables of the page. The first row is the header; a cell is a text or a drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import call_text, finish_text, reason_text
from proxhpc.report.model import (
    AccountBase,
    ExecutionReport,
    InputReport,
    ProgramTotals,
    StageReport,
    TimelineWorker,
    TrainingReport,
)
from proxhpc.report.text import KEPT, WRITTEN, hours, label, percent, power
from proxhpc.status.terminal import duration, percentage, short, whole
from proxhpc.status.totals import EditTotals

MAX_ROWS = 100  # of a table; the JSON has all
_STATES = dict.fromkeys(("gone", "starting", "working"), "died without an error message")


@dataclass(frozen=True, slots=True)
class Bar:
    """A share of a whole, from 0 to 1, in the colour of a kind of documents."""

    ratio: float
    kind: str


@dataclass(frozen=True, slots=True)
class Lane:
    """A worker's throughput over time; `highest` is that of all workers."""

    worker: TimelineWorker
    highest: float


PageTable = list[tuple[str | Bar | Lane, ...]]


_BAR_KINDS = {"left_out": "dropped", "shortened": "edited"}  # others are as outcomes


def _bar(part: float | None, total: float | None, kind: str) -> Bar:
    return Bar(min(max(part / total, 0.0), 1.0) if part and total else 0.0, kind)


def head(report: AccountBase) -> list[tuple[str, str]]:
    """When and by what the corpus was made, and where it is."""
    execution = report.execution
    return [
        ("planned", _date(execution.created)),
        ("last heartbeat", _date(execution.last_heard)),
        ("proxhpc", report.code),
        ("engine", report.engine),
        *((f"{s.level} stage", _model(s)) for s in report.stages if s.model is not None),
        ("policy", report.policy),
        ("tokens counted by", report.token_unit),
        ("run", execution.run),
        ("corpus", execution.corpus),
    ]


def _date(seconds: float | None) -> str:
    return "?" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"


def _model(stage: StageReport) -> str:
    version = f", version {stage.snapshot[:12]}" if stage.snapshot else ""
    return f"{stage.model} ({short(stage.parameters)} parameters{version})"


def outcome_table(report: AccountBase) -> PageTable:
    """Documents and tokens by what became of them."""
    documents, tokens = report.documents.read, report.tokens.read
    table: PageTable = [
        ("", "documents", "", "tokens", "", ""),
        ("read", whole(documents), "", short(tokens), "", ""),
    ]
    for entry in report.outcomes:
        number, size = entry.documents, entry.raw_tokens
        part, total = (number, documents) if size is None else (size, tokens)
        cells = ("", "") if size is None else (short(size), percentage(size, tokens))
        counted = (whole(number), percentage(number, documents), *cells)
        if number or entry.outcome == "written":
            bar = _bar(part, total, _BAR_KINDS.get(entry.outcome, entry.outcome))
            table.append((label(entry.outcome, entry.reason), *counted, bar))
    return table


def program_table(programs: Mapping[str, ProgramTotals], edits: EditTotals) -> PageTable:
    """What programs asked for, how answers ended, and what was unusual about them."""
    rows = [("lines removed", edits.lines_removed), ("strings replaced", edits.strings_replaced)]
    for level, totals in programs.items():
        rows += [(f"{level} stage: {call_text(name)}", n) for name, n in totals.calls.items()]
        rows += [(f"{level} stage: {finish_text(end)}", n) for end, n in totals.finishes.items()]
    for title, counts in (
        ("not executed", edits.rejected),
        ("read leniently", edits.lenient),
        ("remark", edits.flags),
    ):
        rows += [(f"{title}: {reason_text(code)}", n) for code, n in counts.items()]
    return [("", ""), *((name, whole(number)) for name, number in rows if number)]


def work_table(report: AccountBase) -> PageTable:
    """Requests to the models and their FLOPs, by stage."""
    rows = [
        (
            f"{stage.level} stage",
            whole(stage.usage.requests),
            whole(stage.usage.prompt_tokens),
            whole(stage.usage.cached_tokens),
            whole(stage.usage.new_tokens),
            power(stage.flops.exact),
            power(stage.flops.paper_corpus),
        )
        for stage in report.stages
    ]
    header = ("", "requests", "tokens in", "cached", "tokens out", "FLOPs", "2·N·tokens")
    return [header, *rows]


def extra_table(report: AccountBase) -> PageTable:
    """Work that was saved, and work that was lost."""
    lost = "not committed yet, or lost" if report.documents.written is None else "lost and redone"
    rows = []
    for stage in report.stages:
        level, memo, cache = f"{stage.level} stage", stage.saved.memo, stage.saved.prefix_cache
        rows.append(
            (f"{level}, saved by the memo of answers", memo.usage.prompt_tokens, memo.flops)
        )
        rows.append((f"{level}, saved by the prefix cache", cache.tokens, cache.flops))
        if redone := report.execution.redone.get(stage.level):
            rows.append((f"{level}, {lost}", redone.usage.prompt_tokens, redone.flops))
    table = [(name, whole(tokens), power(flops)) for name, tokens, flops in rows if tokens]
    return [("not in these sums", "prompt tokens", "FLOPs"), *table]


def cost_table(execution: ExecutionReport) -> PageTable:
    """Time of GPUs, cores and workers, and its price."""
    cost, gpus = execution.cost, execution.gpus
    rows = []
    if cost.gpu_hours != 0:
        rows = [
            ("GPUs", ", ".join(gpus.devices) or "unknown"),
            ("GPU time", hours(cost.gpu_hours, "GPU")),
            *([(f"at {cost.price_per_gpu_hour} per GPU-hour", cost.price)] if cost.price else []),
            ("of it, loading models", f"{duration(gpus.boot_seconds)} of GPU time"),
            ("FLOPs reached", f"{percent(gpus.model_flops_utilization)} of the peak"),
        ]
    rates = [rate for worker in execution.by_worker if (rate := worker.tokens_per_second)]
    spread = f" ({short(min(rates))} to {short(max(rates))})" if len(rates) > 1 else ""
    rows += [
        ("core time", hours(cost.core_hours, "core")),
        ("refined by", quantity(execution.workers, "worker")),
        ("a worker's speed", f"{short(execution.tokens_per_worker_second)} tokens/s{spread}"),
    ]
    return [("", ""), *rows]


def estimate_table(report: AccountBase) -> PageTable:
    """The plan's estimate and the counts, of the same texts."""
    estimated, counted = report.estimate.estimated, report.estimate.counted
    cost = report.execution.cost
    table: PageTable = [
        ("", "estimated", "counted"),
        ("tokens", whole(estimated.tokens), whole(counted.tokens)),
    ]
    if estimated.documents is not None:
        table.insert(1, ("documents", whole(estimated.documents), whole(counted.documents)))
    if any(stage.model for stage in report.stages):
        table.append(("FLOPs, as 2·N·tokens", power(estimated.flops), power(counted.flops)))
    if cost.estimated_gpu_hours is not None:
        times = (hours(number, "GPU") for number in (cost.estimated_gpu_hours, cost.gpu_hours))
        table.append(("GPU time", *times))
    elif cost.estimated_core_hours is not None:
        numbers = (cost.estimated_core_hours, cost.refining_core_hours)
        table.append(("core time of refining", *(hours(number, "core") for number in numbers)))
    return table


def training_table(training: TrainingReport) -> PageTable:
    """One epoch on raw tokens against refining and one on refined tokens."""
    if not training.raw_flops:
        return [("",)]
    numbers = (
        ("training on the raw text", training.raw_flops, "in"),
        ("training on the corpus", training.refined_flops, "written"),
        ("refining", training.refining_flops, "edited"),
    )
    rows = [(name, power(n), _bar(n, training.raw_flops, kind)) for name, n, kind in numbers]
    return [("", "FLOPs", ""), *rows]


def span(low: int, high: int) -> str:
    """`2 to 3`, or `1`."""
    return f"{whole(low)} to {whole(high)}" if high > low else whole(low)


def input_table(inputs: Sequence[InputReport]) -> PageTable:
    """Input files."""
    outcomes = [KEPT, "edited", "dropped", "quarantined", "duplicates", WRITTEN]
    has_left_out = any(entry.left_out for entry in inputs)
    outcomes[5:5] = ["left out"] * has_left_out
    rows: PageTable = [
        (
            entry.name,
            *map(whole, (entry.documents, entry.kept, entry.edited, entry.dropped)),
            *map(whole, (entry.quarantined, entry.duplicates)),
            *(whole(sum(e.left_out.values())) for e in [entry] * has_left_out),
            whole(entry.written),
            percent(entry.written_ratio),
            _bar(entry.written, entry.documents, "written"),
        )
        for entry in inputs[:MAX_ROWS]
    ]
    return [("file", "documents", *outcomes, "share", ""), *rows]


def worker_table(execution: ExecutionReport) -> PageTable:
    """Workers, those of the merge included, with their throughput over the time of the run."""
    timeline = execution.timeline.workers if execution.timeline else ()
    highest = max((max(worker.tokens_per_second) for worker in timeline), default=0.0)
    lanes = {worker.worker: Lane(worker, highest) for worker in timeline}
    rows = [
        (
            worker.worker,
            worker.host,
            _STATES.get(worker.state, worker.state),
            whole(worker.documents) if worker.role == "refine" else "",
            duration(worker.busy_seconds) if worker.role == "refine" else "",
            short(worker.tokens_per_second) if worker.role == "refine" else "",
            lanes.get(worker.worker, ""),
            worker.message,
        )
        for worker in sorted(execution.by_worker, key=lambda worker: worker.role != "refine")
    ]
    header = ("worker", "host", "state", "documents", "at work", "tokens/s", "over time", "")
    return [header, *rows[:MAX_ROWS]]
