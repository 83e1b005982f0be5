"""The journal of submissions: intents, job ids and releases.

A submission is a transaction: an fsynced intent, a held array tagged with the intent's number, a
receipt with the job's id, then the release. If a launcher dies in between, the next one reads the
journal and the queue and completes or cancels the submission.
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
    """One intent to submit arrays and perhaps a control job after them, and its outcome."""

    number: int
    phase: str
    elements: int  # of all arrays together
    arrays: int
    has_control_job: bool
    excluded_nodes: list[str]
    run_state: dict[str, int]  # before the submission
    delay_seconds: int  # a pause before it
    t: float  # when, in seconds since 1970
    jobs: dict[str, list[str]] = field(default_factory=dict)  # ids by phase
    settled: bool = False  # released or abandoned
    abandoned: bool = False

    @property
    def job_ids(self) -> list[str]:
        """The recorded ids, of arrays and of the control job."""
        return [job_id for ids in self.jobs.values() for job_id in ids]

    @property
    def is_complete(self) -> bool:
        """Return True if every job of the intent has a receipt."""
        submitted = len(self.jobs.get(self.phase, ())) == self.arrays
        return submitted and (not self.has_control_job or "control" in self.jobs)


class Journal:
    """`submissions.jsonl`; only the holder of the `advance` lease appends to it."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def read(self) -> list[Submission]:
        """Return every submission so far, in order."""
        submissions: dict[int, Submission] = {}
        for line in self._lines():
            event, number = line.pop("event"), line.pop("intent")
            if event == "intent":
                submissions[number] = Submission(number, **line)
            elif number not in submissions:
                continue  # a full disk tore its intent: nothing was submitted for it
            elif event == "receipt":
                submissions[number].jobs.setdefault(line["phase"], []).append(line["job"])
            else:
                submissions[number].settled = True
                submissions[number].abandoned = event == "abandoned"
        return list(submissions.values())

    def since_manual_launch(self) -> list[Submission]:
        """Return the submissions since a person last launched, without abandoned ones."""
        submissions = [entry for entry in self.read() if not entry.abandoned]
        manual = [n for n, entry in enumerate(submissions) if entry.run_state["manual"]]
        return submissions[manual[-1] :] if manual else submissions

    def job_phases(self) -> dict[str, str]:
        """Return the phase of each recorded job, oldest first, without abandoned submissions."""
        entries = (entry for entry in self.read() if not entry.abandoned)
        phases = (item for entry in entries for item in entry.jobs.items())
        return {job_id: phase for phase, ids in phases for job_id in ids}

    def write(self, event: str, intent: int, **fields: Any) -> None:
        """Append one line and fsync it."""
        line = {"t": round(time.time(), 3), "event": event, "intent": intent} | fields
        append_line(self.run.submissions, orjson.dumps(line), fsync=True)

    def _lines(self) -> Iterator[dict[str, Any]]:
        if not self.run.submissions.exists():
            return
        for raw in self.run.submissions.read_bytes().split(b"\n"):
            try:
                line = orjson.loads(raw)
            except orjson.JSONDecodeError:
                continue  # empty, or torn: its writer died before acting on it
            yield line
