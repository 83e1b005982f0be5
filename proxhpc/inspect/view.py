"""An inspected document on a terminal: facts, programs and the difference."""

from collections.abc import Callable, Iterator

from rich.console import RenderableType, group
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import reason_text
from proxhpc.inspect.diff import LineChange, Piece, diff_excerpt
from proxhpc.inspect.document import Inspection
from proxhpc.run.ledger import Call
from proxhpc.run.models import short_name
from proxhpc.status.terminal import percentage, safe, safe_line, whole

_CONTEXT = 3  # unchanged lines around a change
_MAX_DROPPED_LINES = 40  # lines shown of a document that does not reach the merge
OUTCOME_STYLES = {
    "kept": "green",
    "edited": "yellow",
    "dropped": "red",
    "duplicate": "magenta",
    "left_out": "magenta",
    "quarantined": "bold red",
}
SIGNS = {"same": " ", "removed": "-", "added": "+"}
_COLOURS = {"same": "", "removed": "red", "added": "green"}
_CHANGED = {"same": "", "removed": "bold white on red", "added": "bold black on green"}


@group()
def render_inspection(item: Inspection) -> Iterator[RenderableType]:
    """One document."""
    yield Rule(Text(safe(item.row.id or item.source, 200), style="bold"), align="left")
    yield _facts(item)
    for note in item.notes:
        yield Text(f"note: {safe(note)}", style="bold yellow")
    if item.row.doc is not None:
        yield Text("\ndoc program", style="bold").append_text(_remark(item.row.doc))
        yield _program(item.row.doc.program)
    for number, call in enumerate(item.row.windows, 1):
        title = f"\nchunk program {number} of {len(item.row.windows)}"
        if seen := item.window_numbers(call):
            title += f", lines {_label(seen[0])} to {_label(seen[-1])}"
        yield Text(title, style="bold").append_text(_remark(call))
        yield _program(call.program)
    if item.merge_program:
        yield Text("\nprogram of the merge, for repeated lines of the refined text", style="bold")
        yield _program(item.merge_program)
    yield Text("\ntext", style="bold")
    yield from _text(item)


def _facts(item: Inspection) -> Table:
    row = item.row
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    outcome = Text(safe(item.outcome), style=OUTCOME_STYLES.get(item.outcome, ""))
    if item.reason:
        reason = dict.fromkeys((item.reason, reason_text(item.reason)))
        outcome.append(f" ({safe(': '.join(reason))})", style="")
    unfinished = "" if item.published else ", not finished: this is an unpublished attempt"
    tokens = f"{_change(row.tokens_in, row.tokens_out)}, {safe(short_name(item.token_unit))}"
    rejected, lenient = (
        safe(", ".join(f"{reason_text(code)} {n}" for code, n in sorted(counts.items())))
        for counts in (row.rejected, row.lenient)
    )
    facts: list[tuple[str, Text]] = [
        ("source", Text(safe(item.source))),
        ("shard", Text("" if item.shard is None else f"{item.shard}{unfinished}")),
        ("outcome", outcome),
        ("left out", Text(_duplicate(item))),
        ("benchmark", Text(_benchmark(item))),
        ("bytes", Text(_change(row.bytes_in, row.bytes_out))),
        ("tokens", Text(tokens)),
        ("edits", Text(_edits(item))),
        ("not executed", Text(rejected)),
        ("read leniently", Text(lenient)),
        ("flags", Text(safe(", ".join(map(reason_text, row.flags))))),
        ("detail", Text(safe(row.detail, 2000))),
    ]
    for name, value in facts:
        if value.plain:
            table.add_row(Text(name), value)
    return table


def _duplicate(item: Inspection) -> str:
    survivor = item.duplicate_of
    if survivor is None:
        return ""
    if survivor.similarity is None:
        relation = "with the URL of a document that is, or is like,"
    elif survivor.similarity == 1:
        relation = "with the same text as"
    else:
        relation = f"{survivor.similarity:.0%} similar to"
    name = safe(survivor.id, 200)
    source = "" if survivor.id == survivor.source else f" ({safe(survivor.source)})"
    return f"{item.row.outcome}, but {relation} {name}{source}, which is in the corpus"


def _benchmark(item: Inspection) -> str:
    found = item.benchmark_item
    if found is None:
        return ""
    name = f"{safe(found.id, 200)} ({safe(found.source)})"
    return f"contains {found.share:.0%} of {name}: {safe(found.words, 400)}"


def _edits(item: Inspection) -> str:
    removed, replaced = item.row.lines_removed, item.row.strings_replaced
    parts = [f"lines removed: {whole(removed)}"] if removed else []
    parts += [f"strings replaced: {whole(replaced)}"] if replaced else []
    return ", ".join(parts)


def _change(before: int, after: int) -> str:
    return f"{whole(before)} → {whole(after)}  {percentage(after, before)}".rstrip()


def _remark(call: Call) -> Text:
    finishes = {"length": "cut at its token limit", "loop": "stopped because it repeated itself"}
    parts = []
    if call.prompt:
        cached = f", {whole(call.cached)} of them cached" if call.cached else ""
        parts.append(f"{whole(call.prompt)} tokens in{cached}, {whole(call.new)} out")
    if call.from_memo:
        parts.append("answer from the memo")
    if call.finish in finishes:
        parts.append(finishes[call.finish])
    return Text("".join(f"  ({part})" for part in parts), style="dim")


def _program(program: str) -> Text:
    if not program.strip():
        return Text("  empty: nothing changes", style="dim")
    lines = program.rstrip("\n").split("\n")
    return Text("\n".join(f"  {safe_line(line)}" for line in lines), style="cyan")


def _text(item: Inspection) -> Iterator[Text]:
    if item.before is None:
        yield Text("  the record could not be read; it begins:", style="dim")
        yield Text(f"  {safe(item.row.head[:2000].decode('utf-8', 'backslashreplace'))}")
        return
    if item.after == item.before:
        yield Text("  unchanged", style="dim")
        return
    max_lines = _MAX_DROPPED_LINES if item.after is None else None
    for change in diff_excerpt(item.before, item.after, _CONTEXT, max_lines):
        if isinstance(change, int):
            yield Text(f"        … {quantity(change, 'more line')}", style="dim")
        else:
            yield _line(item, change)


def _line(item: Inspection, change: LineChange) -> Text:
    label = "" if change.number < 0 else _label(item.number(change.number))
    return Text.assemble((f"{label:>7} ", "dim"), f"{SIGNS[change.kind]} ", change_text(change))


def change_text(change: LineChange, show: Callable[[Piece], str] | None = None) -> Text:
    """A line with what changed in it marked; `show` returns the safe text of a piece."""
    text = Text()
    for piece in change.pieces:
        style = _CHANGED if piece.changed else _COLOURS
        text.append(show(piece) if show else safe_line(piece.text), style=style[change.kind])
    return text


def _label(number: int | None) -> str:
    return "" if number is None else f"[{number:03d}]"
