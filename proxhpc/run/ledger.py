"""The ledger: one row per document, one frame per commit, one summary, published last.

A shard's ledger is a file of zstd frames. Each frame holds a header line and the rows of one
commit, in input order, or a note of a worker's death behind the last commit; the last holds the
summary. All lines are JSON.
"""

import base64
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import xxhash

from proxhpc.account.counts import Counts
from proxhpc.account.flops import ModelWork, Usage
from proxhpc.corpus.document import Bad, Document, End
from proxhpc.corpus.frames import FrameWriter, read_frames
from proxhpc.errors import StopError
from proxhpc.faults import fault_point
from proxhpc.program.replay import Emitted, WindowProgram
from proxhpc.run.crash_backoff import CrashBackoff

LEDGER_VERSION = 2
QUARANTINE_BYTES = 64 * 1024  # how much of a quarantined record the ledger keeps


class Call(NamedTuple):
    """One answered request: lines [start, stop), the program as emitted, and its token counts.

    `prompt` n tokens went in, `cached` c of them from a prefix cache, `new` m were sampled; all
    of it for the first request of this prompt, where `again` says that this is a later one. `work`
    is what the model computed, where that is more or less than one pass for each new token.
    """

    start: int
    stop: int
    program: str
    finish: str
    prompt: int
    cached: int
    new: int
    again: bool = False
    work: ModelWork | None = None

    @classmethod
    def decode(cls, values: Sequence[Any]) -> "Call":
        """Read what `encode` wrote."""
        call = cls(*values)
        return call if call.work is None else call._replace(work=ModelWork(*call.work))

    def encode(self) -> list[Any]:
        """JSON form, without `work` where there is none."""
        return [*self[:-1], *([list(self.work)] if self.work else [])]

    @property
    def emitted(self) -> Emitted:
        """What the program language needs of it."""
        return Emitted(self.program, "stop" if self.finish == "stop" else "length")

    @property
    def window(self) -> WindowProgram:
        """The same as a window's program."""
        return WindowProgram(self.start, self.stop, self.emitted)

    @property
    def usage(self) -> Usage:
        """Model work of this request."""
        return Usage() if self.again else self._usage

    @property
    def saved_usage(self) -> Usage:
        """Model work that this request would have taken, had it not been answered before."""
        return self._usage if self.again else Usage()

    @property
    def _usage(self) -> Usage:
        # An engine without a model reports no tokens at all; it has done no model work.
        if not self.prompt:
            return Usage()
        return Usage.of_request(self.prompt, self.cached, self.new, self.work)


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one document, and the programs that say why.

    `score`, the log-odds of dropping it before any bias, is not written: its last digits depend on
    what shared a batch, and a run that goes on after a kill is to write the same bytes.
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
    flags: tuple[str, ...] = ()
    detail: str = ""
    head: bytes = b""
    score: float | None = field(default=None, compare=False)

    def encode(self) -> bytes:
        """One JSON line without its end; empty fields are left out."""
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
        values = {name: data[key] for key, name in _OPTIONAL.items() if key in data}
        if "flags" in values:
            values["flags"] = tuple(values["flags"])
        return cls(
            id=data["id"],
            file=data["at"][0],
            position=data["at"][1],
            outcome=data["outcome"],
            doc=Call.decode(data["doc"]) if "doc" in data else None,
            windows=tuple(Call.decode(call) for call in data.get("win", ())),
            head=base64.b64decode(data["head"]) if "head" in data else b"",
            **values,
        )

    def copy(self, document: Document) -> "Row":
        """The row of another document with the same text, about which no model was asked."""
        return replace(
            self,
            id=document.id,
            file=document.file,
            position=document.position,
            doc=self.doc and self.doc._replace(again=True),
            windows=tuple(call._replace(again=True) for call in self.windows),
            flags=(*self.flags, "copy"),
        )

    def count(self) -> Counts:
        """The row's share of the totals."""
        return tally([self])

    def add_to(self, total: Counts) -> None:
        """Add the row's share to a total."""
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
        if self.flags:
            total.flags.update(self.flags)
        copied = "copy" in self.flags
        if self.doc is not None and self.doc.prompt:
            total.doc += self.doc.usage
            if copied:
                total.doc_copied += self.doc.saved_usage
            else:
                total.doc_saved += self.doc.saved_usage
        if self.windows:
            total.windows += len(self.windows)
            total.tokens_chunk += self.tokens_in
            for call in self.windows:
                if not call.prompt:  # no model was asked
                    continue
                total.chunk += call.usage
                if copied:
                    total.chunk_copied += call.saved_usage
                else:
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
    "flags": "flags",
    "detail": "detail",
}


def tally(rows: Iterable[Row]) -> Counts:
    """What rows come to; added in place: half of a ledger's reading would go into sums of sums."""
    total = Counts()
    for row in rows:
        row.add_to(total)
    return total


def text_digest(text: str) -> str:
    """Digest that ties a row to the raw text it was made from (XXH3-64, hex)."""
    return xxhash.xxh3_64_hexdigest(text.encode("utf-8", "surrogatepass"))


def bad_row(bad: Bad) -> Row:
    """The quarantine row of a record that could not be read."""
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
    """The quarantine row of a document that could not be refined."""
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
class Header:
    """First line of a commit's frame. `ends` are the spans finished within this commit."""

    plan: str
    shard: int
    commit: int
    rows: int
    ends: tuple[End, ...] = ()

    def encode(self) -> bytes:
        """One JSON line without its end."""
        ends = [[e.file, e.position, e.at_eof, e.blank] for e in self.ends]
        data = {"v": LEDGER_VERSION, "plan": self.plan, "shard": self.shard, "commit": self.commit}
        return orjson.dumps(data | {"rows": self.rows, "ends": ends})

    @classmethod
    def decode(cls, data: dict[str, Any]) -> "Header":
        """From the parsed first line of a frame."""
        ends = tuple(End(*end) for end in data["ends"])
        return cls(data["plan"], data["shard"], data["commit"], data["rows"], ends)


@dataclass(slots=True)
class LedgerState:
    """What a ledger file holds so far; enough to go on behind it."""

    commits: int = 0
    counts: Counts = field(default_factory=Counts)
    span_ends: list[End] = field(default_factory=list)
    last_position: tuple[int, int] | None = None  # file and position of the last committed record
    backoff: CrashBackoff = field(default_factory=CrashBackoff)
    digest: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    def add(self, header: Header, rows: list[Row], payload: bytes) -> Counts:
        """Count one commit; its share of the counts."""
        share = tally(rows)
        share.blank_lines = sum(end.blank for end in header.ends)
        self.commits += 1
        self.counts += share
        self.backoff = self.backoff.passed(len(rows))
        self.span_ends += header.ends
        if rows:
            self.last_position = (rows[-1].file, rows[-1].position)
        self.digest.update(payload)
        return share


class LedgerWriter:
    """Appends the commits of one attempt; the file grows by whole frames only."""

    def __init__(self, frames: FrameWriter, plan: str, shard: int, progress: LedgerState) -> None:
        self.frames, self.plan, self.shard, self.progress = frames, plan, shard, progress

    def commit(self, rows: list[Row], ends: tuple[End, ...] = ()) -> Counts:
        """Make `rows` durable; their counts. RetryError when the file system will not take them."""
        header = Header(self.plan, self.shard, self.progress.commits, len(rows), ends)
        payload = b"\n".join([header.encode(), *(row.encode() for row in rows)])
        self.frames.append(payload)
        fault_point("commit synced")
        return self.progress.add(header, rows, payload)

    def note(self, care: CrashBackoff) -> None:
        """Make what is known of deaths behind the last commit durable."""
        head = {"v": LEDGER_VERSION, "plan": self.plan, "shard": self.shard, "care": care.to_dict()}
        self.frames.append(orjson.dumps(head))
        fault_point("death noted")
        self.progress.backoff = care

    def finish(self) -> Counts:
        """Append the summary; the file is then ready to be published."""
        counts = self.progress.counts
        counts.check(f"shard {self.shard}")
        summary = {
            "v": LEDGER_VERSION,
            "summary": True,
            "plan": self.plan,
            "shard": self.shard,
            "commit": self.progress.commits,
            "digest": self.progress.digest.hexdigest(),
            "counts": counts.to_dict(),
        }
        self.frames.append(orjson.dumps(summary))
        fault_point("summary written")
        return counts

    def close(self) -> None:
        """Close the file; what was committed stays."""
        self.frames.close()


def parse_frame(payload: bytes) -> tuple[dict[str, Any], list[Row]]:
    """First line of a frame, as a dict, and its rows."""
    first, *rest = payload.split(b"\n")
    return orjson.loads(first), [Row.decode(line) for line in rest]


def resume(source: Path, target: FrameWriter, plan: str, shard: int) -> LedgerState:
    """Copy the whole commits of an earlier attempt into `target`; the state behind them.

    A torn tail, and everything behind a frame that is not this shard's next commit, is left out.
    """
    state = LedgerState()
    end = 0
    for frame in read_frames(source, strict=False):
        head, rows = parse_frame(frame.payload)
        if head.get("plan") != plan or head.get("shard") != shard:
            break
        if "care" in head:
            state.backoff = CrashBackoff(**head["care"])
            end = frame.end
            continue
        if head.get("commit") != state.commits or "summary" in head:
            break
        state.add(Header.decode(head), rows, frame.payload)
        end = frame.end
    target.copy(source, end)
    return state


def read_ledger(path: Path, plan: str, shard: int) -> Iterator[Row | End]:
    """Rows and span ends of a published ledger, each frame verified, the summary proved.

    StopError names the file when it is not whole, not this plan's, or its sums are off.
    """
    progress = LedgerState()
    summary: dict[str, Any] | None = None
    for frame in read_frames(path, strict=True):
        if summary is not None:
            raise _damaged(path, "there are frames behind the summary")
        head, rows = parse_frame(frame.payload)
        if head["plan"] != plan or head["shard"] != shard:
            raise _damaged(path, "it belongs to another plan or shard")
        if "care" in head:
            continue
        if head["commit"] != progress.commits:
            raise _damaged(path, f"commit {progress.commits} is missing")
        if "summary" in head:
            summary = head
            continue
        header = Header.decode(head)
        if header.rows != len(rows):
            raise _damaged(path, f"commit {header.commit} lacks rows")
        progress.add(header, rows, frame.payload)
        yield from rows
        yield from header.ends
    if summary is None:
        raise _damaged(path, "the summary is missing")
    progress.counts.check(str(path))
    recomputed = (progress.digest.hexdigest(), progress.counts.to_dict())
    if recomputed != (summary["digest"], summary["counts"]):
        raise _damaged(path, "the summary does not match the rows")


def _damaged(path: Path, what: str) -> StopError:
    return StopError(
        f"damaged ledger {path}: {what}",
        hint="delete this file and launch again: only this shard is refined anew",
    )
