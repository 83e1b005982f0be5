"""Statistics of a run's documents and programs, as additive integers, and a few examples.

Examples are the edited documents that lost the largest share of their tokens, and documents of
each outcome and reason at random: those with the lowest hashes, seeded by the plan. The choice does
not depend on shards, workers or order.
"""

import json
from bisect import insort
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import NamedTuple

import xxhash

from proxhpc.assemble.replay import ReplayedRecord
from proxhpc.assemble.rows import record_source
from proxhpc.dedup.hashes import RecordKey
from proxhpc.program.edits import count_usual_calls
from proxhpc.program.parse import parse_chunk, parse_doc
from proxhpc.program.syntax import Dialect, ProgramEnd
from proxhpc.run.ledger import Call
from proxhpc.run.plan import Plan

LARGEST = "largest"  # kind of the examples that lost most; others are of an outcome and a reason
_EXAMPLES_OF_KIND = {LARGEST: 6, "edited ": 6}
_EXAMPLES_OF_REASON = 3
_MIN_LARGEST_TOKENS = 64  # raw tokens; a shorter document says little
_MAX_CHARS = 1 << 16  # of a text; the report shows the beginning of a longer one
_MAX_PROGRAMS = 32  # of a document


@dataclass(frozen=True, slots=True)
class ExampleTexts:
    """A document for the report.

    `after` is None if the document does not reach the corpus. `truncated` shows whether `before` is
    only the beginning of a longer text.
    """

    shard: int
    number: int
    id: str
    source: str
    outcome: str
    reason: str
    tokens_in: int
    tokens_out: int
    programs: tuple[str, ...]
    before: str
    after: str | None
    truncated: bool

    @property
    def key(self) -> RecordKey:
        """Shard and record number."""
        return self.shard, self.number


def example_texts(plan: Plan, shard: int, record: ReplayedRecord) -> ExampleTexts:
    """A record of a shard as an example."""
    row, after = record.row, record.text
    programs = [call.program for call in (row.doc, *row.windows) if call]
    programs += [record.merge_program] if record.merge_program else []
    before = record.document.text if record.document else ""
    return ExampleTexts(
        shard=shard,
        number=record.number,
        id=row.id,
        source=record_source(plan, row),
        outcome=row.outcome,
        reason=row.reason,
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        programs=tuple(program[:_MAX_CHARS] for program in programs[:_MAX_PROGRAMS]),
        before=before[:_MAX_CHARS],
        after=after if after is None else after[:_MAX_CHARS],
        truncated=len(before) > _MAX_CHARS,
    )


def encode_examples(examples: Iterable[ExampleTexts]) -> bytes:
    """Examples as lines of JSON."""
    # Not orjson: a document outside of the corpus may hold what UTF-8 cannot encode.
    return "".join(f"{json.dumps(asdict(texts))}\n" for texts in examples).encode("ascii")


def decode_examples(data: bytes) -> list[ExampleTexts]:
    """What `encode_examples` wrote. KeyError, TypeError or ValueError if it is something else."""
    rows = [json.loads(line) for line in data.splitlines()]
    return [ExampleTexts(**row | {"programs": tuple(row["programs"])}) for row in rows]


class ExampleRef(NamedTuple):
    """A document that a report may show: record `number` of a shard; the lowest of a kind stay.

    `kind` is "OUTCOME REASON", or LARGEST with the share of tokens kept in thousandths. Of those
    with the same share, which may be copies of each other, only one stays.
    """

    kept_share: int
    hash: int
    kind: str
    shard: int
    number: int


@dataclass(slots=True)
class CorpusStats:
    """Sums over readable documents; histograms count by `log2_bucket`.

    Raw counts every document, refined those that reach the merge, including duplicates.
    `calls` and `finishes` count what models wrote, by "LEVEL FUNCTION" and "LEVEL FINISH".
    `lost_tokens` are raw tokens of documents that do not reach the merge, by "OUTCOME REASON".
    """

    raw_tokens: Counter[int] = field(default_factory=Counter)
    refined_tokens: Counter[int] = field(default_factory=Counter)
    raw_lines: Counter[int] = field(default_factory=Counter)
    refined_lines: Counter[int] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    finishes: Counter[str] = field(default_factory=Counter)
    lost_tokens: Counter[str] = field(default_factory=Counter)
    examples: list[ExampleRef] = field(default_factory=list)

    def add(self, plan: Plan, shard: int, record: ReplayedRecord) -> bool:
        """Count one more record of a shard; whether it is an example for now."""
        row, text = record.row, record.text
        raw = record.document.text if record.document else None
        lines = 0
        if raw is not None:
            lines = (record.result and record.result.lines) or raw.count("\n") + 1
            self.raw_tokens[log2_bucket(row.tokens_in)] += 1
            self.raw_lines[log2_bucket(lines)] += 1
        if text is not None:
            lines = lines if text is raw else text.count("\n") + 1
            self.refined_tokens[log2_bucket(row.tokens_out)] += 1
            self.refined_lines[log2_bucket(lines)] += 1
        elif row.tokens_in:
            self.lost_tokens[f"{row.outcome} {row.reason}"] += row.tokens_in
        if row.doc is not None:
            self._add_program("doc", row.doc, "prox")
        dialect = plan.manifest.program_format.dialect if row.windows else "prox"
        for call in row.windows:
            self._add_program("chunk", call, dialect)
        if record.document is not None and row.outcome != "kept":
            seeded = f"{plan.digest} {row.file} {row.position}"
            place = shard, record.number
            key = xxhash.xxh3_64_intdigest(seeded.encode())
            added = self._add_example(ExampleRef(0, key, f"{row.outcome} {row.reason}", *place))
            if row.outcome == "edited" and row.tokens_in >= _MIN_LARGEST_TOKENS:
                kept_share = 1000 * row.tokens_out // row.tokens_in
                added |= self._add_example(ExampleRef(kept_share, key, LARGEST, *place))
            return added
        return False

    @property
    def example_keys(self) -> set[RecordKey]:
        """The documents that are examples."""
        return {(example.shard, example.number) for example in self.examples}

    def __iadd__(self, other: "CorpusStats") -> "CorpusStats":
        for name in _COUNTERS:
            getattr(self, name).update(getattr(other, name))
        for example in other.examples:
            self._add_example(example)
        return self

    def _add_program(self, level: str, call: Call, dialect: Dialect) -> None:
        self.finishes[f"{level} {call.finish}"] += 1
        counts = count_usual_calls(call.program) if (level, dialect) == ("chunk", "prox") else None
        if counts is None:
            count = _count_calls if len(call.program) > _SHORT else _cached_counts
            counts = count(level, call.program, call.output.finish, dialect)
        for name, number in counts.items():
            self.calls[f"{level} {name}"] += number

    def _add_example(self, example: ExampleRef) -> bool:
        rivals = [other for other in self.examples if other.kind == example.kind]
        is_largest, share = example.kind == LARGEST, example.kept_share
        if is_largest and (same := [other for other in rivals if other.kept_share == share]):
            weakest = same[0]
        elif len(rivals) >= _EXAMPLES_OF_KIND.get(example.kind, _EXAMPLES_OF_REASON):
            weakest = rivals[-1]
        else:
            weakest = None
        if weakest is None or example < weakest:
            if weakest is not None:
                self.examples.remove(weakest)
            insort(self.examples, example)
            return True
        return False


_COUNTERS = [name for name in CorpusStats.__slots__ if name != "examples"]
_SHORT = 200  # characters; most programs are shorter, and many are identical


def log2_bucket(number: int) -> int:
    """0 for 0, else k for numbers from 2^(k-1) to 2^k - 1."""
    return number.bit_length()


def _count_calls(level: str, program: str, finish: ProgramEnd, dialect: Dialect) -> dict[str, int]:
    parsed = parse_doc(program, finish) if level == "doc" else parse_chunk(program, dialect, finish)
    return Counter(str(statement).partition("(")[0] for statement in parsed.statements)


_cached_counts = lru_cache(maxsize=4096)(_count_calls)
