"""A status as a page for a terminal or as plain lines."""

from collections.abc import Iterator
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from proxhpc.run.models import short_name
from proxhpc.status.assess import ALIVE
from proxhpc.status.model import Failure, Status, WorkerStatus
from proxhpc.status.terminal import duration, percentage, safe, short, whole

ROWS = 24  # workers in the table; the JSON has all
_BAR = 40  # columns
HEADER = (
    *("worker", "host", "job", "state", "Slurm"),
    *("last heard", "shard", "done", "documents", "docs/s"),
)
WORDS = 5  # columns of the header that are no numbers
_COLOURS = {
    "working": "green",
    "starting": "cyan",
    "done": "dim",
    "stopped": "yellow",
    "silent": "yellow",
    "gone": "red",
    "failed": "bold red",
}
_PHASE_COLOURS = {"finished": "bold green", "stopped": "bold red"}
_ORDER = ("failed", "gone", "silent", "working", "starting", "stopped", "done")


def one_line(status: Status) -> str:
    """Where the run stands, in one line."""
    speed, shards = status.speed, status.shards
    parts = [
        f"{status.phase}: {shards.done}/{shards.total} shards",
        f"{whole(status.counts.documents)} documents",
    ]
    parts += [f"{p.phase} {p.done}/{p.total}" for p in status.merge if p.total > 1]
    if speed.documents_per_s is not None:
        parts.append(f"{short(speed.documents_per_s)}/s, {short(speed.tokens_per_s)} tokens/s")
    if speed.eta_s is not None and status.phase == "refining":
        parts.append(f"{duration(speed.eta_s)} left")
    if status.reason:
        parts.append(safe(status.reason))
    return ", ".join(parts)


def render_status(status: Status) -> RenderableType:
    """The page: where the run stands, what became of documents, workers, failures, next step."""
    return Group(*_page(status))


def _page(status: Status) -> Iterator[RenderableType]:
    yield _headline(status)
    yield _progress(status)
    yield _steps(status)
    yield _outcome(status)
    yield from _work(status)
    if status.workers:
        yield Text()
        yield _workers(status.workers)
    if status.queue is not None:
        jobs = ", ".join(f"{number} {safe(what)}" for what, number in status.queue.items())
        yield Text(f"Slurm: {jobs or 'no job of this run in the queue'}", style="dim")
    elif status.queue_problem:
        yield Text(f"Slurm: {safe(status.queue_problem)}", style="yellow")
    yield from _care(status)
    for failure in status.failures if status.phase != "finished" else ():
        yield _failure(failure)
    if status.next_step:
        yield Text.assemble(("next: ", "bold"), safe(status.next_step))


def _care(status: Status) -> Iterator[Text]:
    if status.deaths:
        shards = "1 shard" if status.deaths == 1 else f"{whole(status.deaths)} shards"
        yield Text(f"taken on from workers or engines that died: {shards}", style="dim")
    if status.left_out:
        nodes = ", ".join(map(safe, status.left_out))
        yield Text(f"left out, for workers there ended at once: {nodes}", style="yellow")


def _headline(status: Status) -> Text:
    style = _PHASE_COLOURS.get(status.phase, "bold cyan")
    line = Text.assemble((safe(status.name), "bold"), "  ", (status.phase, style))
    if status.reason:
        line.append(f": {safe(status.reason)}")
    return line.append(f"  ({safe(status.run)})", style="dim")


def _progress(status: Status) -> Text:
    shards, speed = status.shards, status.speed
    full = _BAR * shards.done // shards.total if shards.total else _BAR
    text = Text.assemble(
        ("█" * full, "green"),
        ("░" * (_BAR - full), "dim"),
        f"  {whole(shards.done)} / {whole(shards.total)} shards",
        f"  {percentage(shards.done, shards.total)}",
    )
    if shards.working:
        text.append(f"  {whole(shards.working)} in work")
    if status.phase == "refining":
        text.append(f"  {short(speed.documents_per_s)} documents/s")
        text.append(f"  {short(speed.tokens_per_s)} tokens/s")
        text.append(f"  {duration(speed.eta_s)} left")
    return text


def _steps(status: Status) -> Text:
    """The way to the report: what is done, what is at work and how far it is, what is to come."""
    line, before = Text(), True
    for name, done, total in _amounts(status):
        line.append("   " if line else "")
        amount = f" {whole(done)}/{whole(total)}" if total > 1 else ""
        if done == total:
            line.append(f"✓ {name}", style="green")
        elif before:
            line.append(f"▸ {name}{amount}", style="bold cyan")
        else:
            line.append(f"· {name}", style="dim")
        before = before and done == total
    return line


def _amounts(status: Status) -> Iterator[tuple[str, int, int]]:
    """Each step with its units: done, and in all."""
    shards = status.shards
    yield "refine", shards.done, max(1, shards.total)
    told = {phase.phase: (phase.done, phase.total) for phase in status.merge}
    for name in ("sketch", "match", "scatter", "write"):
        if name in told:
            yield name, *told[name]
        elif name != "scatter":
            yield name, int(status.exact), 1
    yield "report", int(status.phase == "finished"), 1


def _work(status: Status) -> Iterator[Table]:
    """What models were asked, by stage; nothing for rules."""
    stages = (("doc stage", status.counts.doc), ("chunk stage", status.counts.chunk))
    if not any(usage.requests for _, usage in stages):
        return
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column("")
    for name in ("requests", "tokens in", "cached", "tokens out"):
        table.add_column(name, justify="right")
    for name, usage in stages:
        cached = percentage(usage.cached_tokens, usage.prompt_tokens)
        cells = (whole(usage.requests), short(usage.prompt_tokens), cached, short(usage.new_tokens))
        _add(table, name, *cells)
    yield table


def _outcome(status: Status) -> Table:
    counts = status.counts
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    origin = "" if status.exact else "committed so far, as the workers say"
    _add(table, "documents", whole(counts.documents), "", origin)
    rows = [
        ("kept", counts.kept, ""),
        (
            "edited",
            counts.edited,
            f"{short(counts.lines_removed)} lines removed, "
            f"{short(counts.strings_replaced)} strings replaced",
        ),
        ("dropped", counts.dropped.total(), _reasons(counts.dropped)),
        ("quarantined", counts.quarantined.total(), _reasons(counts.quarantined)),
    ]
    for name, number, remark in rows:
        _add(table, name, whole(number), percentage(number, counts.documents), remark)
    if status.duplicates is not None:
        _add(table, "duplicates", whole(status.duplicates), "", "of kept and edited ones")
    if status.written is not None:
        part = percentage(status.written, counts.documents)
        _add(table, "written", whole(status.written), part, "documents in the corpus")
    part = percentage(counts.tokens_out, counts.tokens_in)
    unit = f"kept of {short(counts.tokens_in)}; tokens: {safe(short_name(status.token_unit))}"
    _add(table, "tokens", short(counts.tokens_out), part, unit)
    return table


def _add(table: Table, *cells: str) -> None:
    """A row of plain text: a string by itself would be read as markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _reasons(reasons: dict[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{safe(reason)} {whole(number)}" for reason, number in ordered)


def _workers(workers: tuple[WorkerStatus, ...]) -> RenderableType:
    rank = {state: place for place, state in enumerate(_ORDER)}
    ordered = sorted(workers, key=lambda worker: (rank.get(worker.state, -1), worker.worker))
    rows = [_cells(worker) for worker in ordered[:ROWS]]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    # A column without anything in it, such as Slurm's on a laptop, is only in the way.
    filled = [n for n in range(len(HEADER)) if any(row[n].plain for row in rows)]
    for n in filled:
        justify: Literal["left", "right"] = "left" if n < WORDS else "right"
        table.add_column(HEADER[n], justify=justify, overflow="ellipsis", no_wrap=True)
    for row in rows:
        table.add_row(*(row[n] for n in filled))
    rest = ordered[ROWS:]
    if not rest:
        return table
    alive = sum(1 for worker in rest if worker.state in ALIVE)
    more = f"and {len(rest)} more workers, {alive} of them at work (--json lists all)"
    return Group(table, Text(more, style="dim"))


def _cells(worker: WorkerStatus) -> tuple[Text, ...]:
    alive = worker.state in ALIVE
    shard = "" if worker.shard is None or not alive else str(worker.shard)
    rate = "" if worker.documents_per_s is None else short(worker.documents_per_s)
    return (
        Text(safe(worker.worker)),
        Text(safe(worker.host)),
        Text(safe(worker.job)),
        Text(safe(worker.state), style=_COLOURS.get(worker.state, "")),
        Text(safe(worker.slurm)),
        Text(f"{duration(worker.age_s)} ago"),
        Text(safe(shard)),
        Text(whole(worker.shards)),
        Text(whole(worker.documents)),
        Text(rate),
    )


def _failure(failure: Failure) -> Text:
    who = safe(failure.example) if failure.workers == 1 else f"{failure.workers} workers"
    line = Text.assemble((f"{who}: ", "bold red"), safe(failure.message, 400))
    return line.append(f"\n  {safe(failure.hint)}", style="dim")
