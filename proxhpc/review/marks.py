"""The file of marks: one gold record for each document, appended as soon as it is marked.

A record's first key, `review`, says what was reviewed: the key of the source, the document's
position, outcome and programs, and what became of its lines. So the file is enough to estimate from
and to continue with, and `proxhpc evaluate` and `proxhpc annotate` read it as it is.
"""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from proxhpc.corpus.disk import append_line, sync_directory, writing
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import BOILERPLATE, EDITED
from proxhpc.review.document import UNSEEN, Stratum

_START = b'{"review":{"source":"'


@dataclass(frozen=True, slots=True)
class Mark:
    """What a reviewer found right about one document.

    `labels` and `refined` have a letter for each line, what is right and what proxhpc did; both are
    empty if nobody decided on its lines. `sampled` is False for a document that was named.
    """

    position: str
    stratum: Stratum
    keep: bool
    labels: str
    refined: str
    sampled: bool

    @classmethod
    def of(cls, record: dict[str, Any]) -> "Mark":
        """Read a gold record of a review. KeyError, TypeError or ValueError if it is none."""
        review = record["review"]
        labels, refined = record.get("line_labels", ""), review.get("refined_labels", "")
        if len(labels) != len(refined):
            raise ValueError("labels and lines do not match")
        stratum = Stratum(review["outcome"], review["reason"])
        keep, sampled = bool(record["keep"]), bool(review["sampled"])
        return cls(review["position"], stratum, keep, labels, refined, sampled)

    def counts(self) -> Counter[str]:
        """Documents and lines by what was done with them, and how many of them are right.

        Lines that nobody saw are not counted.
        """
        counts = Counter(documents=1, to_drop=not self.keep)
        is_right = self.keep == self.stratum.is_kept
        for refined, label in zip(self.refined, self.labels, strict=True):
            if label == UNSEEN:
                continue
            is_right &= refined == label
            done = {BOILERPLATE: "removed", EDITED: "changed"}.get(refined, "unchanged")
            counts[done] += 1
            counts[f"{done}_right"] += refined == label
            counts["stayed"] += refined != BOILERPLATE
            counts["missed"] += label == BOILERPLATE != refined
            counts["to_remove"] += label == BOILERPLATE
        counts["documents_right"] = int(is_right)
        return counts


class MarksFile:
    """The marks in a file. Only one process may write it at a time."""

    def __init__(self, path: Path, source: str) -> None:
        """Read the file, if it exists. UserError unless all marks are those of `source`."""
        self.path, self.source = path, source
        self.marks: list[Mark] = []
        self._start = _START + source.encode() + b'",'
        self._ends = [0]
        data = path.read_bytes() if path.exists() else b""
        for number, line in enumerate(data.splitlines(keepends=True), 1):
            self._read(line, number)
        if self._ends[-1] < len(data):
            self._cut(self._ends[-1])  # the record of a process that died while it wrote

    def _read(self, line: bytes, number: int) -> None:
        is_whole = line.endswith(b"\n")
        if not is_whole and self._start.startswith(line[: len(self._start)]):
            return
        if line.startswith(_START) and not line.startswith(self._start):
            raise UserError(
                f"{self.path}: these marks are of another run, or the input has changed since",
                hint="name another file with --out; the old one stays gold for `proxhpc evaluate`",
            )
        try:
            if not (is_whole and line.startswith(self._start)):
                raise ValueError("another beginning")
            self.marks.append(Mark.of(orjson.loads(line)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.path}:{number}: not a record of proxhpc review",
                hint="name another file with --out",
            ) from error
        self._ends.append(self._ends[-1] + len(line))

    def append(self, record: dict[str, Any]) -> None:
        """Add a gold record; it is on disk when this returns."""
        is_new = not self.path.exists()
        review = {"source": self.source, **record["review"]}
        line = orjson.dumps(record | {"review": review}) + b"\n"
        append_line(self.path, line, fsync=True)
        if is_new:
            sync_directory(self.path.parent)
        self.marks.append(Mark.of(record))
        self._ends.append(self._ends[-1] + len(line))

    def undo(self) -> None:
        """Take back the last mark. UserError if another process has written to the file."""
        if self.path.stat().st_size != self._ends[-1]:
            raise UserError(
                f"{self.path}: another process has written to it",
                hint="let each reviewer write a file of their own with --out",
            )
        self._ends.pop()
        self._cut(self._ends[-1])
        self.marks.pop()

    def _cut(self, size: int) -> None:
        with writing(self.path):
            fd = os.open(self.path, os.O_RDWR)
            try:
                os.ftruncate(fd, size)
                os.fsync(fd)
            finally:
                os.close(fd)
