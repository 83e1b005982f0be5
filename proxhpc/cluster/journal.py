"""The journal of submissions: what was meant, what Slurm made of it, what was let go.

A submission is a transaction: an fsynced intent, a held array tagged with it, a receipt with the
job's id, then the release. Whatever dies in between can be told from the journal and the queue.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from proxhpc.corpus.disk import append_line
from proxhpc.run.paths import RunDir


@dataclass(slots=True)
class Submission:
    """One intent, to submit arrays and perhaps a control job behind them, and what became of it."""

    intent: int
    phase: str
    count: int  # elements of all arrays together
    arrays: int
    chained: bool  # a control job belongs to it
    exclude: tuple[str, ...]  # nodes that were left out
    about: dict[str, int]  # the state of the run before it
    jobs: dict[str, list[str]] = field(default_factory=dict)  # ids by phase
    settled: bool = False  # released, or given up
    abandoned: bool = False

    @property
    def complete(self) -> bool:
        """Whether everything that was meant has a receipt."""
        submitted = len(self.jobs.get(self.phase, ())) == self.arrays
        return submitted and (not self.chained or "control" in self.jobs)


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
                out[number] = Submission(
                    number,
                    line["phase"],
                    line["count"],
                    line["arrays"],
                    line["chained"],
                    tuple(line["exclude"]),
                    line["about"],
                )
            elif number not in out:
                continue  # its intent was torn by a full disk: nothing was submitted for it
            elif event == "receipt":
                out[number].jobs.setdefault(line["phase"], []).append(line["job"])
            else:
                out[number].settled = True
                out[number].abandoned = event == "abandoned"
        return list(out.values())

    def since_by_hand(self) -> list[Submission]:
        """Those that were not given up, from the last one on that a person launched."""
        kept = [entry for entry in self.read() if not entry.abandoned]
        by_hand = [place for place, entry in enumerate(kept) if entry.about["by_hand"]]
        return kept[by_hand[-1] :] if by_hand else kept

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
                continue  # torn or empty: its writer died, and what it meant did not happen
            yield line
