"""The journal of submissions: what was meant, what Slurm made of it, what was let go.

A submission is a transaction: an fsynced intent, a held array tagged with it, a receipt with the
job's id, then the release. Whatever dies in between can be told from the journal and the queue.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxhpc.corpus.frames import append_line
from proxhpc.rundir import RunDir


@dataclass(slots=True)
class Submission:
    """One intent and what became of it."""

    intent: int
    phase: str
    count: int
    about: dict[str, int]  # the state of the run before it
    jobs: list[str] = field(default_factory=list)
    released: bool = False
    abandoned: bool = False


class Journal:
    """`submissions.jsonl`: only the holder of the `advance` lease appends to it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def read(self) -> list[Submission]:
        """Every submission so far, in order."""
        out: dict[int, Submission] = {}
        for line in self._lines():
            event, number = line["event"], line["intent"]
            if event == "intent":
                out[number] = Submission(number, line["phase"], line["count"], line["about"])
            elif event == "receipt":
                out[number].jobs.append(line["job"])
            elif event == "released":
                out[number].released = True
            elif event == "abandoned":
                out[number].abandoned = True
        return list(out.values())

    def write(self, event: str, intent: int, **more: Any) -> None:
        """Append one line and make it durable."""
        line = {"t": round(time.time(), 3), "event": event, "intent": intent} | more
        append_line(self.run.submissions, orjson.dumps(line), fsync=True)

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.run.submissions.exists():
            return
        for raw in self.run.submissions.read_bytes().split(b"\n"):
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError:
                continue  # a torn line: its writer died, and what it meant did not happen
            yield line
