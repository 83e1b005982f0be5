"""Runs a review on a terminal: reads keys, draws the screen."""

import os
import re
import signal
import sys
import termios
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from select import select

from rich.control import Control

from proxhpc.errors import UserError
from proxhpc.review.session import ReviewSession
from proxhpc.review.view import render_screen
from proxhpc.status.terminal import make_console

_KEY = re.compile(rb"\x1b[\[O][0-9;]*[A-Za-z~]|.", re.DOTALL)
_PARTIAL = re.compile(rb"\x1b(?:[\[O][0-9;]*)?\Z")
_NAMES = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[5~": "pageup", b"\x1b[6~": "pagedown",
    b"\x1b[H": "home", b"\x1b[1~": "home", b"\x1b[F": "end", b"\x1b[4~": "end",
    b"\r": "enter", b"\n": "enter", b"\x03": "q", b"\x04": "q",
}  # fmt: skip
_RESIZE_SECONDS = 0.5  # within which the screen follows a new size
_ESCAPE_SECONDS = 0.1  # within which the rest of a key arrives


def run_review(session: ReviewSession) -> None:
    """Show documents and do what keys say, until `q`. UserError without a terminal."""
    console = make_console()
    if not (sys.stdin.isatty() and console.is_terminal) or console.is_dumb_terminal:
        raise UserError(
            "review asks questions on a terminal, and this is none",
            hint="over ssh use `ssh -t`; --summary prints the estimates without asking",
        )
    keys: deque[str] = deque()
    with _raw_keyboard(sys.stdin.fileno()) as fd, console.screen() as screen:
        while not session.is_over:
            size = console.size
            console.control(Control.home())
            screen.update(render_screen(session, *size))
            while not keys and console.size == size:
                if select([fd], [], [], _RESIZE_SECONDS)[0]:
                    keys.extend(_read_keys(fd))
            if keys:
                session.press(keys.popleft())


def _read_keys(fd: int) -> list[str]:
    """The keys that were pressed; `q` if the terminal is gone."""
    data = more = os.read(fd, 1024)
    while more and _PARTIAL.search(data) and select([fd], [], [], _ESCAPE_SECONDS)[0]:
        more = os.read(fd, 1024)
        data += more
    keys = (key.replace(b"\x1bO", b"\x1b[") for key in _KEY.findall(data))
    names = [_NAMES.get(key, key.decode("ascii", "replace")) for key in keys]
    return names if more else [*names, "q"]


@contextmanager
def _raw_keyboard(fd: int) -> Iterator[int]:
    """Every key arrives at once and is not shown; the terminal is as before afterwards."""
    before = termios.tcgetattr(fd)
    raw = termios.tcgetattr(fd)
    raw[3] &= ~(termios.ECHO | termios.ICANON | termios.IEXTEN | termios.ISIG)
    handler = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    termios.tcsetattr(fd, termios.TCSADRAIN, raw)
    try:
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, handler)
