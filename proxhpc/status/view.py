"""A status as a page for a terminal, or as one line."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import reason_text
from proxhpc.run.models import short_name
from proxhpc.status.assess import ACTIVE_STATES
from proxhpc.status.model import Failure, Status, WorkerStatus
from proxhpc.status.terminal import duration, percentage, plain_table, safe, short, whole
from proxhpc.status.totals import unusable_warning

MAX_WORKER_ROWS = 24  # the JSON lists all workers
_MIN_WORKER_ROWS = 3
_OTHER_LINES = 23  # of a page, beside the rows of workers
_BAR_COLUMNS = 24
HEADER = (
    *("worker", "host", "job", "state", "Slurm"),
    *("last report", "shard", "shards done", "documents", "docs/s"),
)
TEXT_COLUMNS = 5  # of the header, left-aligned
# What a narrow terminal does without, least important first. A job and its host name a worker.
_DROPPED_FIRST = ("shard", "Slurm", "shards done")
_GAP = 2  # columns between two cells
_STATE_STYLES = {  # in the order of the table
    "failed": "bold red",
    "gone": "red",
    "retrying": "yellow",
    "silent": "yellow",
    "working": "green",
    "starting": "cyan",
    "stopped": "yellow",
    "done": "dim",
}
_PHASE_STYLES = {"finished": "bold green", "stopped": "bold red"}


def one_line(status: Status) -> str:
    """Return the phase and progress in one line."""
    speed, shards = status.speed, status.shards
    parts = [
        f"{status.phase}: {percentage(status.work.share, 1)}",
        f"{shards.done}/{quantity(shards.total, 'shard')}",
        f"{quantity(status.documents.read, 'document')}",
    ]
    parts += [f"{p.phase} {p.done}/{p.total}" for p in status.merge if p.total > 1]
    if speed.documents_per_s is not None:
        parts.append(f"{short(speed.documents_per_s)}/s, {short(speed.tokens_per_s)} tokens/s")
    if speed.eta_s is not None and status.phase == "refining":
        parts.append(f"{duration(speed.eta_s)} left")
    if status.reason:
        parts.append(safe(status.reason))
    return ", ".join(parts)


def render_status(status: Status, height: int | None = None) -> RenderableType:
    """Return the page: phase, progress, outcomes, workers, failures and the next command.

    A page of limited `height` has fewer rows of workers, so that the end stays on the screen.
    """
    rows = MAX_WORKER_ROWS if height is None else height - _OTHER_LINES
    return Group(*_page(status, min(MAX_WORKER_ROWS, max(_MIN_WORKER_ROWS, rows))))


def _page(status: Status, worker_rows: int) -> Iterator[RenderableType]:
    yield _headline(status)
    yield _progress(status)
    yield _steps(status)
    yield _outcomes(status)
    for requests in _model_requests(status):
        yield from (Text(), requests)
    if status.workers:
        yield Text()
        yield from _workers(status.workers, worker_rows)
    if status.queue is not None:
        jobs = ", ".join(f"{number} {safe(kind)}" for kind, number in status.queue.items())
        yield Text(f"Slurm: {jobs or 'no job of this run in the queue'}", style="dim")
    elif status.queue_problem:
        yield Text(f"Slurm: {safe(status.queue_problem)}", style="yellow")
    if warning := unusable_warning(status.documents, status.edits):
        yield Text(warning, style="yellow")
    yield from _losses(status)
    for failure in status.failures if status.phase != "finished" else ():
        yield _failure(failure)
    if status.next_step:
        yield Text.assemble(("next: ", "bold"), safe(status.next_step))


def _losses(status: Status) -> Iterator[Text]:
    if status.deaths:
        shards = quantity(status.deaths, "shard")
        yield Text(f"resumed after a worker or engine died: {shards}", style="dim")
    if status.excluded_nodes:
        nodes = ", ".join(map(safe, status.excluded_nodes))
        yield Text(f"excluded, because workers failed there within minutes: {nodes}", "yellow")


def _headline(status: Status) -> Text:
    style = _PHASE_STYLES.get(status.phase, "bold cyan")
    line = Text.assemble((safe(status.name), "bold"), "  ", (status.phase, style))
    if status.reason:
        line.append(f": {safe(status.reason)}")
    if status.run not in status.reason:
        line.append(f"  ({safe(status.run)})", style="dim")
    return line


def _progress(status: Status) -> Text:
    shards = status.shards
    full = int(_BAR_COLUMNS * status.work.share)
    text = Text.assemble(
        ("█" * full, "green"),
        ("░" * (_BAR_COLUMNS - full), "dim"),
        f"  {whole(shards.done)} / {quantity(shards.total, 'shard')}",
        f"  {percentage(status.work.share, 1)}",
    )
    if shards.leased:
        text.append(f"  {whole(shards.leased)} in progress")
    if status.phase == "refining":
        text.append(f"\n{_speed(status)}")
    return text


def _speed(status: Status) -> str:
    """Return speed and remaining time, or why they are not known."""
    speed = status.speed
    if speed.tokens_per_s is None and not speed.documents_per_s:
        states = {worker.state for worker in status.workers if worker.state in ACTIVE_STATES}
        return "loading models" if states == {"starting"} else "speed not known yet"
    rates = f"{short(speed.documents_per_s)} documents/s  {short(speed.tokens_per_s)} tokens/s"
    return f"{rates}  {duration(speed.eta_s)} left"


def _steps(status: Status) -> Text:
    """Return the steps to the report: done, in progress, and to come."""
    line, previous_done = Text(), True
    for name, done, total in _step_units(status):
        line.append("   " if line else "")
        amount = f" {whole(done)}/{whole(total)}" if total > 1 else ""
        if done == total:
            line.append(f"✓ {name}", style="green")
        elif previous_done:
            line.append(f"▸ {name}{amount}", style="bold cyan")
        else:
            line.append(f"· {name}", style="dim")
        previous_done = previous_done and done == total
    return line


def _step_units(status: Status) -> Iterator[tuple[str, int, int]]:
    """Yield each step with the number of its units that are done, and of all."""
    shards = status.shards
    yield "refine", shards.done, max(1, shards.total)
    units = {phase.phase: (phase.done, phase.total) for phase in status.merge}
    for name in ("sketch", "match", "scatter", "write"):
        if name in units:
            yield name, *units[name]
        elif name != "scatter":
            yield name, int(status.exact), 1
    yield "report", int(status.phase == "finished"), 1


def _model_requests(status: Status) -> Iterator[Table]:
    stages = [("doc stage", status.doc), ("chunk stage", status.chunk)]
    stages = [(name, usage) for name, usage in stages if usage.requests]
    if not stages:
        return  # the rules ask no model
    table = plain_table([""], ("requests", "tokens in", "cached", "tokens out"))
    for name, usage in stages:
        cached = percentage(usage.cached_tokens, usage.prompt_tokens)
        cells = (whole(usage.requests), short(usage.prompt_tokens), cached, short(usage.new_tokens))
        _add_row(table, name, *cells)
    yield table


def _outcomes(status: Status) -> Table:
    documents, edits = status.documents, status.edits
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    origin = "" if status.exact else "committed so far, as workers report"
    _add_row(table, "documents", whole(documents.read), "", origin)
    numbers = {"lines removed": edits.lines_removed, "strings replaced": edits.strings_replaced}
    changes = ", ".join(f"{name}: {short(n)}" for name, n in numbers.items() if n)
    rows: list[tuple[str, int | None, str]] = [
        ("kept unchanged", documents.kept, ""),
        ("edited", documents.edited, changes),
        ("dropped", sum(documents.dropped.values()), _reasons(documents.dropped)),
        ("quarantined", sum(documents.quarantined.values()), _reasons(documents.quarantined)),
        ("duplicates", documents.duplicates, "kept or edited, but left out of the corpus"),
    ]
    if left_out := documents.left_out:
        rows.append(("left out", sum(left_out.values()), _reasons(left_out)))
    rows.append(("in the corpus", documents.written, ""))
    for name, number, remark in rows:
        if number is not None:
            share = percentage(number, documents.read)
            _add_row(table, name, whole(number), share, remark)
    _add_row(table, *_tokens(status))
    return table


def _tokens(status: Status) -> tuple[str, str, str, str]:
    tokens = status.tokens
    scope, number = "after refining", tokens.refined
    if tokens.written is not None:
        scope, number = "in the corpus", tokens.written
    unit = safe(short_name(status.token_unit))
    remark = f"{scope}, of {short(tokens.read)} read; unit: {unit}"
    return "tokens", short(number), percentage(number, tokens.read), remark


def _add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text: rich would read markup in a string."""
    table.add_row(*(Text(cell) for cell in cells))


def _reasons(reasons: dict[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{safe(reason_text(code))}: {whole(number)}" for code, number in ordered)


def _workers(workers: tuple[WorkerStatus, ...], limit: int) -> Iterator[RenderableType]:
    rank = {state: number for number, state in enumerate(_STATE_STYLES)}
    ordered = sorted(workers, key=lambda worker: (rank.get(worker.state, -1), worker.worker))
    yield _WorkerTable([_worker_cells(worker) for worker in ordered[:limit]])
    if rest := ordered[limit:]:
        active = sum(1 for worker in rest if worker.state in ACTIVE_STATES)
        more = quantity(len(rest), "more worker")
        yield Text(f"and {more}, {active} of them active (--json lists all)", style="dim")


@dataclass(frozen=True, slots=True)
class _WorkerTable:
    """Workers, with as many columns as fit; empty ones, such as Slurm's on a laptop, are out."""

    rows: Sequence[tuple[Text, ...]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [
            max(cell_len(name), *(row[n].cell_len for row in self.rows))
            for n, name in enumerate(HEADER)
        ]
        shown = [n for n in range(len(HEADER)) if any(row[n].plain for row in self.rows)]
        has_jobs = HEADER.index("job") in shown
        for name in (*_DROPPED_FIRST, "worker" if has_jobs else "host", "last report", "docs/s"):
            if sum(widths[n] + _GAP for n in shown) <= options.max_width + _GAP:
                break
            shown = [n for n in shown if HEADER[n] != name]
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, _GAP, 0, 0))
        for n in shown:
            justify: Literal["left", "right"] = "left" if n < TEXT_COLUMNS else "right"
            table.add_column(HEADER[n], justify=justify, overflow="ellipsis", no_wrap=True)
        for row in self.rows:
            table.add_row(*(row[n] for n in shown))
        yield table


def _worker_cells(worker: WorkerStatus) -> tuple[Text, ...]:
    is_active = worker.state in ACTIVE_STATES
    shard = "" if worker.shard is None or not is_active else str(worker.shard)
    rate = "" if worker.documents_per_s is None else short(worker.documents_per_s)
    return (
        Text(safe(worker.worker)),
        Text(safe(worker.host.partition(".")[0])),
        Text(safe(worker.job)),
        Text(safe(worker.state), style=_STATE_STYLES.get(worker.state, "")),
        Text(safe(worker.slurm)),
        Text(f"{' '.join(duration(worker.age_s).split()[:2])} ago"),
        Text(shard),
        Text(whole(worker.shards)),
        Text(whole(worker.documents)),
        Text(rate),
    )


def _failure(failure: Failure) -> Text:
    workers = quantity(failure.workers, "worker")
    subject = safe(failure.example) if failure.workers == 1 else workers
    line = Text.assemble((f"{subject}: ", "bold red"), safe(failure.message, 400))
    return line.append(f"\n  {safe(failure.hint)}", style="dim")
