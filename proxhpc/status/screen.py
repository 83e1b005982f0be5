"""Shows a run once, or again and again while it moves."""

import json
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

REFRESH = 2.0  # seconds between two looks
QUIET = 10.0  # the same where every look may be a new line
GENTLE = 4  # a look that took long is followed by a pause of so many times its length


def show_status(
    run: RunDir,
    *,
    watch: bool = False,
    as_json: bool = False,
    queue: QueueView | None = None,
    console: Console | None = None,
) -> None:
    """Print the state of a run; with `watch` again and again until it is finished."""
    console = console or make_console()
    if watch and not as_json:
        _watch(Ticker(run, queue, console))
        return
    status = Collector(run, queue).collect()
    if as_json:
        # ASCII only: JSON leaves characters alone that a terminal may obey.
        console.file.write(f"{json.dumps(status.to_dict(), indent=2)}\n")
    else:
        console.print(render_status(status))


def _watch(ticker: "Ticker") -> None:
    try:
        with ticker:
            while ticker.look().phase not in ("finished", "stopped"):
                time.sleep(ticker.pause)
            ticker.leave()
    except KeyboardInterrupt:
        ticker.console.print("no longer watching; the run goes on")


class Ticker:
    """A page that is drawn over itself at each look; on no terminal, a line when it changed.

    Nothing is read or drawn before the first look. The page vanishes at the end, unless `leave`
    was called.
    """

    def __init__(
        self, run: RunDir, queue: QueueView | None = None, console: Console | None = None
    ) -> None:
        self.run, self.queue = run, queue
        self.console = console or make_console()
        self._shortest = REFRESH if self.console.is_terminal else QUIET
        self.pause = self._shortest
        self._collector: Collector | None = None
        self._live: Live | None = None
        self._next = 0.0
        self._line = ""
        self._status: Status | None = None
        self._stay = False

    def tick(self, _: object = None) -> None:
        """Look again if it is time to; may be called as often as one likes."""
        if time.monotonic() >= self._next:
            self.look()

    def look(self) -> Status:
        """Look now, and draw."""
        began = time.monotonic()
        self._collector = self._collector or Collector(self.run, self.queue)
        self._status = status = self._collector.collect()
        if self.console.is_terminal:
            self._draw(status)
        elif (line := one_line(status)) != self._line:
            self.console.print(Text(line), soft_wrap=True)
            self._line = line
        now = time.monotonic()
        self.pause = max(self._shortest, GENTLE * (now - began))
        self._next = now + self.pause
        return status

    def leave(self) -> None:
        """Leave the last page on the screen."""
        self._stay = True

    def _draw(self, status: Status) -> None:
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(render_status(status), refresh=True)

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
        if self._stay and self._status is not None:
            self.console.print(render_status(self._status))
