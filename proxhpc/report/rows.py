"""Tables that only the page shows. The first row is the header; a cell is a text or a drawing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proxhpc.account.reasons import reason_text
from proxhpc.report.model import (
    DuplicateReport,
    ExecutionReport,
    InputReport,
    ProgramTotals,
    Report,
    Timeline,
    TimelineWorker,
    TrainingReport,
)
from proxhpc.report.text import KEPT, WRITTEN, percent, power, with_reason
from proxhpc.status.terminal import duration, percentage, short, whole
from proxhpc.status.totals import EditTotals

MAX_ROWS = 100  # of a table; the JSON has all


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

_OUTCOMES = {"duplicate": "left out as duplicates", "written": WRITTEN}
_FINISHES = {
    "stop": "complete",
    "length": "truncated at their token limit",
    "loop": "stopped because they repeated themselves",
}
_STATES = dict.fromkeys(("gone", "starting", "working"), "died without an error message")


def _bar(part: float | None, total: float | None, kind: str) -> Bar:
    return Bar(min(max(part / total, 0.0), 1.0) if part and total else 0.0, kind)


def token_table(report: Report) -> PageTable:
    """Raw tokens by what became of them."""
    total = report.tokens.read
    rows = [
        (
            with_reason(_OUTCOMES.get(entry.outcome, entry.outcome), entry.reason),
            whole(entry.raw_tokens),
            percentage(entry.raw_tokens, total),
            _bar(entry.raw_tokens, total, entry.outcome),
        )
        for entry in report.outcomes
    ]
    return [("", "tokens", "share", ""), *rows]


def edit_table(edits: EditTotals) -> PageTable:
    """What programs did, and what was unusual about them."""
    numbers = [
        ("lines removed", edits.lines_removed),
        ("strings replaced", edits.strings_replaced),
        ("windows with a program", edits.windows),
    ]
    numbers += [(f"not executed: {reason_text(code)}", n) for code, n in edits.rejected.items()]
    numbers += [(f"read leniently: {reason_text(code)}", n) for code, n in edits.lenient.items()]
    numbers += [(f"flagged: {reason_text(code)}", n) for code, n in edits.flags.items()]
    return [("", ""), *((name, whole(number)) for name, number in numbers)]


def call_table(programs: Mapping[str, ProgramTotals]) -> PageTable:
    """Functions that programs call, by stage."""
    rows = [
        (f"{level} stage", name, whole(number), percentage(number, sum(totals.calls.values())))
        for level, totals in programs.items()
        for name, number in totals.calls.items()
    ]
    return [("", "call", "times", "share"), *rows]


def finish_table(programs: Mapping[str, ProgramTotals]) -> PageTable:
    """How answers ended, by stage."""
    rows = [
        (f"{level} stage", _FINISHES.get(name, name), whole(number))
        for level, totals in programs.items()
        for name, number in totals.finishes.items()
    ]
    return [("", "answers", "number"), *rows]


def training_bars(training: TrainingReport) -> PageTable:
    """Training on raw tokens against refining and training on refined ones."""
    header = ("", "FLOPs", "")
    if not training.raw_flops:
        return [header]
    numbers = (
        ("training on raw tokens", training.raw_flops, "in"),
        ("training on refined tokens", training.refined_flops, "written"),
        ("refining", training.refining_flops, "edited"),
    )
    rows = [(name, power(n), _bar(n, training.raw_flops, kind)) for name, n, kind in numbers]
    return [header, *rows]


def set_table(duplicates: DuplicateReport) -> PageTable:
    """Duplicate sets by their size."""
    highest = max((size.sets for size in duplicates.sizes), default=0)
    rows = [
        (span(size.min, size.max), whole(size.sets), _bar(size.sets, highest, "duplicate"))
        for size in duplicates.sizes
    ]
    return [("documents in a set", "sets", ""), *rows]


def span(low: int, high: int) -> str:
    """`2 to 3`, or `1`."""
    return f"{whole(low)} to {whole(high)}" if high > low else whole(low)


def input_table(inputs: Sequence[InputReport]) -> PageTable:
    """Input files."""
    outcomes = (KEPT, "edited", "dropped", "quarantined", "duplicates", WRITTEN)
    rows: PageTable = [
        (
            entry.name,
            *map(whole, (entry.documents, entry.kept, entry.edited, entry.dropped)),
            *map(whole, (entry.quarantined, entry.duplicates, entry.written)),
            percent(entry.written_ratio),
            _bar(entry.written, entry.documents, "written"),
        )
        for entry in inputs[:MAX_ROWS]
    ]
    return [("file", "documents", *outcomes, "share", ""), *rows]


def worker_table(execution: ExecutionReport) -> PageTable:
    """Workers, those of the merge included."""
    rows = [
        (
            worker.worker,
            worker.host,
            _STATES.get(worker.state, worker.state),
            whole(worker.shards),
            whole(worker.documents),
            f"{worker.busy_seconds:.0f} s",
            short(worker.tokens_per_second),
            worker.message,
        )
        for worker in execution.by_worker[:MAX_ROWS]
    ]
    header = ("worker", "host", "state", "shards", "documents", "at work", "tokens/s", "")
    return [header, *rows]


def timeline_table(timeline: Timeline) -> PageTable:
    """Throughput of each worker over the time of the run."""
    highest = max(max(worker.tokens_per_second) for worker in timeline.workers)
    rows = [
        (
            worker.worker,
            Lane(worker, highest),
            short(max(worker.tokens_per_second)),
            _STATES.get(worker.end, worker.end) if worker.failed is not None else "",
        )
        for worker in timeline.workers
    ]
    return [("worker", f"over {duration(timeline.seconds)}", "tokens/s at most", ""), *rows]
