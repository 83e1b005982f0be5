"""Prints the status of a run, once or repeatedly."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from proxhpc.run.paths import RunDir
from proxhpc.status.collect import Collector, QueueView
from proxhpc.status.model import Status
from proxhpc.status.terminal import make_console
from proxhpc.status.view import one_line, render_status

REFRESH_SECONDS = 1.0  # on a terminal
LINE_SECONDS = 10.0  # elsewhere, where a refresh may print a line
PAUSE_FACTOR = 4  # the pause is at least this many times as long as the refresh took


def show_status(
    run: RunDir,
    *,
    watch: bool = False,
    as_json: bool = False,
    queue: QueueView | None = None,
    console: Console | None = None,
) -> None:
    """Print the status of a run; with `watch`, repeatedly until it is finished or stopped."""
    console = console or make_console()
    if watch and not as_json:
        _watch(Ticker(run, queue, console))
        return
    status = Collector(run, queue).collect()
    if as_json:
        console.file.write(f"{status.to_json()}\n")
    else:
        console.print(render_status(status))


def _watch(ticker: "Ticker") -> None:
    try:
        with ticker:
            while ticker.refresh().phase not in ("finished", "stopped"):
                time.sleep(ticker.pause)
            ticker.keep_page()
    except KeyboardInterrupt:
        ticker.console.print("stopped watching; the run continues")


class Ticker:
    """Redraws a status page on a terminal; elsewhere prints a line when it has changed.

    Reads and draws nothing before the first refresh. The page disappears at the end unless
    `keep_page` was called.
    """

    def __init__(
        self, run: RunDir, queue: QueueView | None = None, console: Console | None = None
    ) -> None:
        self.run, self.queue = run, queue
        self.console = console or make_console()
        self._min_pause = REFRESH_SECONDS if self.console.is_terminal else LINE_SECONDS
        self.pause = self._min_pause
        self._collector: Collector | None = None
        self._live: Live | None = None
        self._next_refresh = 0.0
        self._line = ""
        self._status: Status | None = None
        self._keep_page = False

    def tick(self, _: object = None) -> None:
        """Refresh if the pause is over; may be called at any rate."""
        if time.monotonic() >= self._next_refresh:
            self.refresh()

    def refresh(self) -> Status:
        """Collect the status, draw it and return it."""
        start = time.monotonic()
        self._collector = self._collector or Collector(self.run, self.queue)
        self._status = status = self._collector.collect()
        if self.console.is_terminal:
            self._draw(status)
        elif (line := one_line(status)) != self._line:
            self.console.print(Text(line), soft_wrap=True)
            self._line = line
        now = time.monotonic()
        self.pause = max(self._min_pause, PAUSE_FACTOR * (now - start))
        self._next_refresh = now + self.pause
        return status

    def keep_page(self) -> None:
        """Leave the last page on the screen at the end."""
        self._keep_page = True

    def _draw(self, status: Status) -> None:
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(render_status(status, self.console.height), refresh=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        if self._keep_page and self._status is not None:
            self.console.print(render_status(self._status))
