"""What the documents and programs of a run are like, as integers that add, and a few examples.

Examples are the documents with the lowest hashes, seeded by the plan: each is as likely, and the
choice does not depend on shards, workers or order.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import xxhash

from proxhpc.assemble.replay import ReplayedRecord
from proxhpc.program.parse import parse_chunk, parse_doc
from proxhpc.program.syntax import Dialect, ProgramEnd
from proxhpc.run.ledger import Call
from proxhpc.run.plan import Plan

EXAMPLES_BY_OUTCOME = {"edited": 14, "dropped": 6}  # as many of each as a report shows


class ExampleRef(NamedTuple):
    """Where a document stands that a report may show."""

    hash: int
    outcome: str
    shard: int
    number: int


@dataclass(slots=True)
class CorpusStats:
    """Sums over documents that could be read; histograms count by octave (see `octave`).

    Raw is every document, refined those that reach the merge, duplicates among them.
    `calls` and `finishes` count what models wrote, by level and function or reason of its end.
    `lost_tokens` are raw ones, by status and reason of documents that do not reach the merge.
    """

    raw_tokens: Counter[int] = field(default_factory=Counter)
    refined_tokens: Counter[int] = field(default_factory=Counter)
    raw_lines: Counter[int] = field(default_factory=Counter)
    refined_lines: Counter[int] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    lost_tokens: Counter[str] = field(default_factory=Counter)
    examples: list[ExampleRef] = field(default_factory=list)

    def add(self, plan: Plan, shard: int, item: ReplayedRecord) -> None:
        """Take one more record of a shard."""
        row = item.row
        if item.document is not None:
            self.raw_tokens[log2_bucket(row.tokens_in)] += 1
            self.raw_lines[log2_bucket(item.document.text.count("\n") + 1)] += 1
        if item.text is not None:
            self.refined_tokens[log2_bucket(row.tokens_out)] += 1
            self.refined_lines[log2_bucket(item.text.count("\n") + 1)] += 1
        elif row.tokens_in:
            self.lost_tokens[f"{row.outcome} {row.reason}"] += row.tokens_in
        if row.doc is not None:
            self._program("doc", row.doc, "prox")
        for call in row.windows:
            self._program("chunk", call, plan.manifest.chunk_style.dialect)
        if row.outcome in EXAMPLES_BY_OUTCOME:
            place = f"{plan.digest} {row.file} {row.position}"
            number = xxhash.xxh3_64_intdigest(place.encode())
            self._take(ExampleRef(number, row.outcome, shard, item.number))

    def __iadd__(self, other: "CorpusStats") -> "CorpusStats":
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for example in other.examples:
            self._take(example)
        return self

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        out: dict[str, Any] = {
            name: dict(sorted(getattr(self, name).items())) for name in _COUNTERS
        }
        return out | {"examples": [list(example) for example in self.examples]}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "CorpusStats":
        """Read what `to_dict` wrote, as JSON or not."""
        traits = cls(examples=sorted(ExampleRef(*example) for example in data["examples"]))
        for name in _COUNTERS:
            by_octave = name in _BY_OCTAVE
            getattr(traits, name).update(
                {int(key) if by_octave else key: number for key, number in data[name].items()}
            )
        return traits

    def _program(self, level: str, call: Call, dialect: Dialect) -> None:
        self.finishes[f"{level} {call.finish}"] += 1
        if len(call.program) > _SHORT:
            names = _names(level, call.program, call.emitted.finish, dialect)
        else:
            names = _short_names(level, call.program, call.emitted.finish, dialect)
        for name in names:
            self.calls[f"{level} {name}"] += 1

    def _take(self, example: ExampleRef) -> None:
        self.examples.append(example)
        own = [other for other in self.examples if other.outcome == example.outcome]
        if len(own) > EXAMPLES_BY_OUTCOME[example.outcome]:
            self.examples.remove(max(own))
        self.examples.sort()


_BY_OCTAVE = ("raw_tokens", "refined_tokens", "raw_lines", "refined_lines")
_COUNTERS = (*_BY_OCTAVE, "calls", "finishes", "lost_tokens")
_SHORT = 200  # characters; most programs are that short and many are alike


def log2_bucket(number: int) -> int:
    """0 for 0, else k for numbers from 2^(k-1) to 2^k - 1."""
    return number.bit_length()


def _names(level: str, program: str, finish: ProgramEnd, dialect: Dialect) -> tuple[str, ...]:
    """Functions that a program calls, as often as it does."""
    read = parse_doc(program, finish) if level == "doc" else parse_chunk(program, dialect, finish)
    return tuple(str(statement).partition("(")[0] for statement in read.statements)


_short_names = lru_cache(maxsize=4096)(_names)
