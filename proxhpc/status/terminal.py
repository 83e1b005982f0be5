"""Untrusted text made safe for a terminal, and numbers in short form.

Ids, hosts, messages and documents may come from a corpus. None of them may move the cursor, set a
title or reverse the reading direction.
"""

import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.table import Table

# C0 and C1 controls (ESC, and CSI as one character), line and paragraph separators, bidirectional
# overrides (CVE-2021-42574), lone surrogates, byte order marks and tag characters.
_HARMFUL = re.compile(
    "[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
    "\U000e0000-\U000e007f]"
)
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_LARGEST = 1e15  # beyond it, powers of ten
_PATIENCE_SECONDS = 3.0  # before a line says what takes so long
_LINE_SECONDS = 30.0  # between two lines on how far it is
_PLAIN_WIDTH = 160  # columns, where the output is no terminal


def safe(text: object, limit: int | None = None) -> str:
    r"""Return one line without control characters: ESC becomes `\x1b`, a line end `\n`."""
    line = str(text)
    if limit is not None and len(line) > limit:
        line = line[: limit - 1] + "…"
    return _HARMFUL.sub(lambda match: ascii(match.group())[1:-1], line)


def safe_line(text: str, tab: str = "    ") -> str:
    """Return a line of a document made `safe`, with blanks for tabs."""
    return safe(text.replace("\t", tab))


class _PipeConsole(Console):
    """A console that leaves a closed pipe (`| head`) to `main`."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def make_console() -> Console:
    """Return standard output as a console: coloured on a terminal, wide and plain elsewhere."""
    if hasattr(sys.stdout, "reconfigure"):
        # A character that the terminal cannot show becomes a question mark, not a traceback.
        sys.stdout.reconfigure(errors="replace")
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return _PipeConsole(highlight=False, width=width)


@contextmanager
def waiting(what: str) -> Iterator[Callable[[str], None]]:
    """Show on stderr that `what` takes a while: a moving line, or one line outside a terminal.

    Yields a function that changes the line; outside a terminal, now and then it prints another.
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True, highlight=False)
    if console.is_terminal:
        columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(escape(what), total=None)
            yield lambda text: progress.update(task, description=escape(safe(text)))
        return
    line = threading.Timer(_PATIENCE_SECONDS, console.print, (f"{what} …",))
    line.daemon = True
    line.start()
    last = time.monotonic() + _PATIENCE_SECONDS - _LINE_SECONDS

    def change(text: str) -> None:
        nonlocal last
        if time.monotonic() - last >= _LINE_SECONDS:
            last = time.monotonic()
            line.cancel()
            console.print(safe(text), markup=False)

    try:
        yield change
    finally:
        line.cancel()


def plain_table(texts: Iterable[str], numbers: Iterable[str], *, wrap: bool = True) -> Table:
    """Return a table without lines: columns of texts, then columns of numbers, which may wrap."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in texts:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold", no_wrap=not wrap)
    return table


def whole(number: int | None) -> str:
    """Return `12,345`, or `?` if it is unknown."""
    return "?" if number is None else f"{number:,}"


def short(number: float | None) -> str:
    """Return `1.23M`, `4.95e+19`, or `?` if it is unknown."""
    if number is None:
        return "?"
    if abs(number) >= _LARGEST:
        return f"{number:.2e}"
    for size, unit in _UNITS:
        # The unit is chosen after rounding to three digits: 999.7 is 1k, not 1000.
        if abs(number) >= 0.9995 * size:
            return f"{_three_digits(number / size)}{unit}"
    return _three_digits(number)


def _three_digits(number: float) -> str:
    return f"{number:.0f}" if abs(number) >= 99.95 else f"{number:.3g}"


def percentage(part: float, total: float) -> str:
    """Return `12.3 %`; empty if the total is 0."""
    return f"{100 * part / total:.1f} %" if total else ""


def duration(seconds: float | None) -> str:
    """Return `2 h 05 min`, or `?` if it is unknown."""
    if seconds is None:
        return "?"
    total = max(0, round(seconds))
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
