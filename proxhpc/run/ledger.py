"""The ledger: one row per document, one frame per commit, and a summary.

A shard's ledger is a file of zstd frames with JSON lines. A commit's frame has a header and the
rows of its documents in input order. A frame with `backoff` records that a worker died after the
preceding commit. The last frame is the summary.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import xxhash

from proxhpc.account.counts import Counts
from proxhpc.account.flops import ModelWork, Usage
from proxhpc.corpus.document import BadRecord, Document, SpanEnd
from proxhpc.corpus.frames import FrameWriter, read_frames
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.program.policy import AnyPolicy
from proxhpc.program.replay import ModelOutput, ProgramFormat, ReplayResult, WindowProgram, replay
from proxhpc.run.crash_backoff import CrashBackoff

LEDGER_VERSION = 2
QUARANTINE_BYTES = 64 * 1024  # of a quarantined record that its row stores


class Call(NamedTuple):
    """A program that a model wrote for lines [start, stop), and the tokens it took.

    `prompt` tokens went in, `cached` of them from the prefix cache, and `new` were generated. If
    `from_memo`, an earlier request with the same prompt took them. `work` is what the model
    computed, where that is not one pass for each new token. `shown` are the lines in the prompt, if
    those were more.
    """

    start: int
    stop: int
    program: str
    finish: str
    prompt: int
    cached: int
    new: int
    from_memo: bool = False
    work: ModelWork | None = None
    shown: tuple[int, int] | None = None

    @classmethod
    def decode(cls, values: Sequence[Any]) -> "Call":
        """Read what `encode` wrote."""
        call = cls(*values)
        if call.work is None and call.shown is None:
            return call
        work = None if call.work is None else ModelWork(*call.work)
        shown = None if call.shown is None else (call.shown[0], call.shown[1])
        return call._replace(work=work, shown=shown)

    def encode(self) -> list[Any]:
        """Return the JSON form; None at its end is left out."""
        work = self.work and list(self.work if self.work.window else self.work[:3])
        values: list[Any] = [*self[:-2], work, self.shown]
        while values[-1] is None:
            values.pop()
        return values

    @property
    def output(self) -> ModelOutput:
        """The program as the model wrote it."""
        return ModelOutput(self.program, "stop" if self.finish == "stop" else "length")

    @property
    def window(self) -> WindowProgram:
        """The program with its window."""
        return WindowProgram(self.start, self.stop, self.output, self.shown)

    @property
    def usage(self) -> Usage:
        """What this request took; nothing if it was answered from the memo."""
        return Usage() if self.from_memo else self._usage

    @property
    def saved_usage(self) -> Usage:
        """What the memo saved: the usage of the earlier request with the same prompt."""
        return self._usage if self.from_memo else Usage()

    @property
    def _usage(self) -> Usage:
        # An engine without a model reports no tokens: it did no model work.
        if not self.prompt:
            return Usage()
        return Usage.of_request(self.prompt, self.cached, self.new, self.work)


@dataclass(slots=True)  # not frozen, which would take longer to make
class Row:
    """The outcome of one document, and the programs that led to it.

    `score`, the log-odds of dropping the document before any bias, is not stored: no corpus depends
    on it, and its last digits depend on the batch. `cuts` are the characters at which lines that
    are longer than a window were split.
    """

    id: str
    file: int
    position: int
    outcome: str
    reason: str = ""
    digest: str = ""
    doc: Call | None = None
    windows: tuple[Call, ...] = ()
    bytes_in: int = 0
    bytes_out: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    lines_removed: int = 0
    strings_replaced: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    lenient: dict[str, int] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    cuts: tuple[int, ...] = ()
    detail: str = ""
    head: bytes = b""
    score: float | None = field(default=None, compare=False)

    def replay(self, text: str, policy: AnyPolicy, program_format: ProgramFormat) -> ReplayResult:
        """Apply the row's programs to the raw text, as `program.replay` does."""
        doc = self.doc.output if self.doc else None
        windows = [call.window for call in self.windows]
        return replay(text, doc, windows, policy, program_format, self.cuts)

    def encode(self) -> bytes:
        """Return a JSON line without line feed; empty fields are left out."""
        out: dict[str, Any] = {"id": self.id, "at": [self.file, self.position]}
        out["outcome"] = self.outcome
        if self.doc is not None:
            out["doc"] = self.doc.encode()
        if self.windows:
            out["win"] = [call.encode() for call in self.windows]
        for key, name in _OPTIONAL.items():
            if value := getattr(self, name):
                out[key] = value
        if self.head:
            out["head"] = base64.b64encode(self.head).decode()
        return orjson.dumps(out)

    @classmethod
    def decode(cls, line: bytes) -> "Row":
        """Read what `encode` wrote."""
        data = orjson.loads(line)
        file, position = data["at"]
        row = cls(data["id"], file, position, data["outcome"])
        for key, value in data.items():
            if name := _OPTIONAL.get(key):
                setattr(row, name, value)
        if "doc" in data:
            row.doc = Call.decode(data["doc"])
        if "win" in data:
            row.windows = tuple([Call.decode(call) for call in data["win"]])
        if "head" in data:
            row.head = base64.b64decode(data["head"])
        row.flags, row.cuts = tuple(row.flags), tuple(row.cuts)
        return row

    def add_to(self, total: Counts) -> None:
        """Add the row to totals."""
        total.documents += 1
        total.bytes_in += self.bytes_in
        total.bytes_out += self.bytes_out
        total.tokens_in += self.tokens_in
        total.tokens_out += self.tokens_out
        total.lines_removed += self.lines_removed
        total.strings_replaced += self.strings_replaced
        if self.outcome == "kept":
            total.kept += 1
        elif self.outcome == "edited":
            total.edited += 1
        elif self.outcome in ("dropped", "quarantined"):
            getattr(total, self.outcome)[self.reason] += 1
        if self.rejected:
            total.rejected.update(self.rejected)
        if self.lenient:
            total.lenient.update(self.lenient)
        if self.flags:
            total.flags.update(self.flags)
        if self.doc is not None and self.doc.prompt:
            total.doc += self.doc.usage
            total.doc_saved += self.doc.saved_usage
        if self.windows:
            total.windows += len(self.windows)
            total.tokens_chunk += self.tokens_in
            for call in self.windows:
                if call.prompt:  # else the engine has no model
                    total.chunk += call.usage
                    total.chunk_saved += call.saved_usage


_OPTIONAL = {
    "why": "reason",
    "xxh": "digest",
    "bi": "bytes_in",
    "bo": "bytes_out",
    "ti": "tokens_in",
    "to": "tokens_out",
    "lr": "lines_removed",
    "sr": "strings_replaced",
    "rej": "rejected",
    "len": "lenient",
    "flags": "flags",
    "cuts": "cuts",
    "detail": "detail",
}


def tally(rows: Iterable[Row]) -> Counts:
    """Return the totals of rows."""
    total = Counts()  # added to in place: adding Counts would take half of the reading time
    for row in rows:
        row.add_to(total)
    return total


def text_digest(text: str) -> str:
    """Return the XXH3-64, in hex, that ties a row to its document's raw text."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def bad_row(bad: BadRecord) -> Row:
    """Return the row of a record that could not be read."""
    return Row(
        id="",
        file=bad.file,
        position=bad.position,
        outcome="quarantined",
        reason=bad.reason,
        bytes_in=bad.size,
        detail=bad.detail,
        head=bad.head[:QUARANTINE_BYTES],
    )


def quarantine(document: Document, reason: str, detail: str) -> Row:
    """Return the row of a document that could not be refined."""
    raw = document.text.encode("utf-8", "surrogatepass")
    return Row(
        id=document.id,
        file=document.file,
        position=document.position,
        outcome="quarantined",
        reason=reason,
        digest=text_digest(document.text),
        bytes_in=len(raw),
        detail=detail[-2000:],
        head=raw[:QUARANTINE_BYTES],
    )


@dataclass(frozen=True, slots=True)
class CommitHeader:
    """First line of a commit's frame. `ends` are the ends of spans within this commit."""

    plan: str
    shard: int
    commit: int
    rows: int
    ends: tuple[SpanEnd, ...] = ()

    def encode(self) -> bytes:
        """Return a JSON line without line feed."""
        ends = [[e.file, e.position, e.at_eof, e.blank] for e in self.ends]
        data = {"v": LEDGER_VERSION, "plan": self.plan, "shard": self.shard, "commit": self.commit}
        return orjson.dumps(data | {"rows": self.rows, "ends": ends})

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "CommitHeader":
        """Convert the parsed first line of a frame."""
        ends = tuple(SpanEnd(*end) for end in data["ends"])
        return cls(data["plan"], data["shard"], data["commit"], data["rows"], ends)


@dataclass(slots=True)
class LedgerState:
    """What a ledger file holds so far: enough to append to it."""

    commits: int = 0
    counts: Counts = field(default_factory=Counts)
    span_ends: list[SpanEnd] = field(default_factory=list)
    last_position: tuple[int, int] | None = None  # file and position of the last committed record
    backoff: CrashBackoff = field(default_factory=CrashBackoff)
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    def add(self, header: CommitHeader, rows: list[Row], payload: bytes) -> Counts:
        """Add a commit and return its counts."""
        counts = _commit_counts(header, rows)
        self.commits += 1
        self.counts += counts
        self.backoff = self.backoff.passed(len(rows))
        self.span_ends += header.ends
        if rows:
            self.last_position = (rows[-1].file, rows[-1].position)
        self.digest.update(payload)
        return counts


def _commit_counts(header: CommitHeader, rows: list[Row]) -> Counts:
    counts = tally(rows)
    counts.blank_lines = sum(end.blank for end in header.ends)
    return counts


class LedgerWriter:
    """Appends the commits of one attempt, as whole frames."""

    def __init__(self, frames: FrameWriter, plan: str, shard: int, state: LedgerState) -> None:
        self.frames, self.plan, self.shard, self.state = frames, plan, shard, state

    def commit(self, rows: list[Row], ends: tuple[SpanEnd, ...] = ()) -> Counts:
        """Make `rows` durable and return their counts. RetryError if they cannot be written."""
        header = CommitHeader(self.plan, self.shard, self.state.commits, len(rows), ends)
        payload = b"\n".join([header.encode(), *(row.encode() for row in rows)])
        self.frames.append(payload)
        fault_point("commit synced")
        return self.state.add(header, rows, payload)

    def write_backoff(self, backoff: CrashBackoff) -> None:
        """Make what is known of deaths after the last commit durable."""
        head = {"v": LEDGER_VERSION, "plan": self.plan, "shard": self.shard}
        self.frames.append(orjson.dumps(head | {"backoff": backoff}))
        fault_point("death noted")
        self.state.backoff = backoff

    def finish(self) -> None:
        """Append the summary; the ledger is then ready to be published."""
        counts = self.state.counts
        counts.check(f"shard {self.shard}")
        summary = {
            "v": LEDGER_VERSION,
            "summary": True,
            "plan": self.plan,
            "shard": self.shard,
            "commit": self.state.commits,
            "digest": self.state.digest.hexdigest(),
            "counts": counts.to_dict(),
        }
        self.frames.append(orjson.dumps(summary))
        fault_point("summary written")

    def close(self) -> None:
        """Close the file."""
        self.frames.close()


def parse_frame(payload: bytes) -> tuple[dict[str, Any], list[Row]]:
    """Return a frame's first line, as a dict, and its rows."""
    head, lines = _split_frame(payload)
    return head, [Row.decode(line) for line in lines]


def _split_frame(payload: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Return a frame's first line, as a dict, and the lines of its rows."""
    first, *lines = payload.split(b"\n")
    return orjson.loads(first), lines


def resume(source: Path, target: FrameWriter, plan: str, shard: int) -> LedgerState:
    """Copy the commits of an earlier attempt to `target` and return the state after them.

    Copying stops at a torn frame, or one that is not this shard's next commit.
    """
    state = LedgerState()
    end = 0
    for frame in read_frames(source, strict=False):
        head, rows = parse_frame(frame.payload)
        if head.get("plan") != plan or head.get("shard") != shard:
            break
        if "backoff" in head:
            state.backoff = CrashBackoff(**head["backoff"])
            end = frame.end
            continue
        if head.get("commit") != state.commits or "summary" in head:
            break
        state.add(CommitHeader.decode(head), rows, frame.payload)
        end = frame.end
    target.copy(source, end)
    return state


def read_ledger(path: Path, plan: str, shard: int) -> Iterator[Row | SpanEnd]:
    """Yield the rows and span ends of a published ledger, checked against its summary.

    StopError names the file if it is incomplete, of another plan, or does not match its summary.
    """
    counts = Counts()
    for header, lines in _read_commits(path, plan, shard, counts):
        rows = [Row.decode(line) for line in lines]
        counts += _commit_counts(header, rows)
        yield from rows
        yield from header.ends


def read_rows(path: Path, plan: str, shard: int, numbers: Iterable[int]) -> Iterator[Row]:
    """Yield the rows with these ascending numbers, as `read_ledger`; others are not parsed.

    If the last commit is reached, the ledger is checked as a whole.
    """
    wanted, first = iter(numbers), 0
    number = next(wanted, None)
    for header, lines in _read_commits(path, plan, shard):
        while number is not None and number < first + header.rows:
            yield Row.decode(lines[number - first])
            number = next(wanted, None)
        if number is None:
            return
        first += header.rows
    raise _damaged(path, f"it has no record number {number}")


def _read_commits(
    path: Path, plan: str, shard: int, counts: Counts | None = None
) -> Iterator[tuple[CommitHeader, list[bytes]]]:
    """Yield the commits of a published ledger with the lines of their rows.

    At the end the ledger is checked against its summary, and so are `counts`, which are those of
    its rows by then.
    """
    commits, digest = 0, xxhash.xxh3_128()
    summary: dict[str, Any] | None = None
    for frame in read_frames(path, strict=True):
        if summary is not None:
            raise _damaged(path, "it has frames after the summary")
        head, lines = _split_frame(frame.payload)
        if head["plan"] != plan or head["shard"] != shard:
            raise _damaged(path, "it belongs to another plan or shard")
        if "backoff" in head:
            continue
        if head["commit"] != commits:
            raise _damaged(path, f"commit {commits} is missing")
        if "summary" in head:
            summary = head
            continue
        header = CommitHeader.decode(head)
        if header.rows != len(lines):
            raise _damaged(path, f"commit {header.commit} has {len(lines)} of {header.rows} rows")
        commits += 1
        digest.update(frame.payload)
        yield header, lines
    if summary is None:
        raise _damaged(path, "the summary is missing")
    if counts is not None:
        counts.check(str(path))
    recomputed = summary["counts"] if counts is None else counts.to_dict()
    if (digest.hexdigest(), recomputed) != (summary["digest"], summary["counts"]):
        raise _damaged(path, "the summary does not match the rows")


def _damaged(path: Path, problem: str) -> StopError:
    return StopError(
        f"damaged ledger {path}: {problem}",
        hint="delete this file and run `proxhpc launch` again; only this shard is refined again",
    )
