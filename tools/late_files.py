"""Makes Python see late what others change in a folder, as with the caches of NFS.

`tools/chaos.py` starts workers with a copy of this file as their `sitecustomize`. Answers about
files below LATE_FOLDER are used again for ten seconds while the file LATE_SWITCH exists. A process
sees its own changes at once, and what it opens is read from the disk.
"""

import os
import time
from collections.abc import Callable
from functools import wraps
from typing import Any

FOLDER, SWITCH = os.environ.get("LATE_FOLDER", "\0"), os.environ.get("LATE_SWITCH", "")
SECONDS = 10.0
Call = Callable[..., Any]


class Entries(list[Any]):
    """The answer of `os.scandir`, which may be used more than once."""

    def __enter__(self) -> "Entries":
        return self

    def __exit__(self, *_: object) -> None:
        pass


answers: dict[tuple[str, str], tuple[float, Any]] = {}
is_on = os.access


def seen_late(call: Call) -> Call:
    """Repeat the answers of a call, also that there is no such file."""

    @wraps(call)
    def answer(path: Any = ".", *arguments: Any, **options: Any) -> Any:
        name = os.fsdecode(path) if not isinstance(path, int) else ""
        if not name.startswith(FOLDER) or not is_on(SWITCH, os.F_OK):
            return call(path, *arguments, **options)
        key = (call.__name__, name)
        since, known = answers.get(key, (-SECONDS, None))
        if time.monotonic() - since >= SECONDS:
            try:
                known = call(path, *arguments, **options)
                known = Entries(known) if call.__name__ == "scandir" else known
            except FileNotFoundError as error:
                known = error
            answers[key] = (time.monotonic(), known)
        if isinstance(known, FileNotFoundError):
            raise FileNotFoundError(known.errno, known.strerror, name)
        return known

    return answer


def seen_at_once(call: Call) -> Call:
    """Forget all answers after a change that this process makes itself."""

    @wraps(call)
    def change(*arguments: Any, **options: Any) -> Any:
        try:
            return call(*arguments, **options)
        finally:
            answers.clear()

    return change


for function in ("stat", "lstat", "listdir", "scandir"):
    setattr(os, function, seen_late(getattr(os, function)))
for function in ("open", "link", "unlink", "remove", "rename", "replace", "mkdir", "rmdir"):
    setattr(os, function, seen_at_once(getattr(os, function)))
