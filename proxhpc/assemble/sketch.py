"""Sketch: every refined document as fixed-width numbers, and the checked counts of a group.

Three files a group: 40 bytes a document in input order, the keys by which it may equal others
(`bands`), and, where near-duplicates are looked for, its MinHash signature.
"""

import io
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from struct import Struct
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from proxhpc.account.counts import Counts
from proxhpc.assemble.bands import damaged, digest, write_bands
from proxhpc.assemble.minhash import Signer, band_keys, signatures
from proxhpc.assemble.replay import Refined, Tile, replay_shard
from proxhpc.assemble.rows import corpus_row, quarantine_row
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.writer import PartWriter
from proxhpc.errors import StopError
from proxhpc.faults import reach
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir

SKETCH = np.dtype(
    [
        ("high", "<u8"),  # XXH3-128 of the refined text, normalised
        ("low", "<u8"),
        ("id", "<u8"),  # XXH3-64 of the document's id
        ("chars", "<u4"),  # of the refined text
        ("size", "<u4"),  # bytes of the row as it would be written
        ("shard", "<u4"),
        ("number", "<u4"),  # of the record in its shard
    ]
)
_PACK = Struct("<QQQIIII")

MAX_GROUPS = 4096
MAX_SHARDS = 64
MIN_BYTES = 32 << 20
_TAIL = 4096  # bytes; the summary frame, which ends a ledger, lies within them

Sketch = npt.NDArray[np.void]


@dataclass(frozen=True)
class Receipt:
    """What one group came to. `ledgers` and its files' digests tell whether it is still so."""

    plan: str
    group: int
    ledgers: tuple[str, ...]
    hashes: str
    bands: str
    signatures: str
    documents: int
    counts: Counts
    tiles: tuple[tuple[Tile, ...], ...]  # by shard

    def encode(self) -> bytes:
        """JSON form."""
        data = vars(self) | {"counts": self.counts.to_dict()}
        data.pop("digest", None)
        return orjson.dumps(data, default=tuple, option=orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def decode(cls, raw: bytes) -> "Receipt":
        """Read what `encode` wrote."""
        data: dict[str, Any] = orjson.loads(raw)
        tiles = tuple(tuple(Tile(*tile) for tile in shard) for shard in data.pop("tiles"))
        counts = Counts.from_dict(data.pop("counts"))
        ledgers = tuple(data.pop("ledgers"))
        return cls(**data, ledgers=ledgers, counts=counts, tiles=tiles)

    @cached_property
    def digest(self) -> str:
        """Identifies the group's content; what is made of it carries this on."""
        return xxhash.xxh3_128_hexdigest(self.encode())


def groups(plan: Plan) -> list[range]:
    """Shards of each group: neighbours, of 32 MiB together or more in a large run.

    There are about 4,096 groups at most, unless of 64 shards each: three files a group are few
    for any quota, and a group is minutes of work.
    """
    limit = max(MIN_BYTES, plan.estimated_bytes // MAX_GROUPS)
    cuts, size = [0], 0
    for shard, about in enumerate(plan.shards):
        if size >= limit or shard - cuts[-1] == MAX_SHARDS:
            cuts.append(shard)
            size = 0
        size += about.estimated_bytes
    return [range(a, b) for a, b in pairwise([*cuts, len(plan.shards)])]


def sketch(run: RunDir, plan: Plan, group: int) -> Receipt:
    """Replay one group, unless that was done, and return what it came to."""
    shards = groups(plan)[group]
    ledgers = tuple(ledger_tail(run.ledger(shard)) for shard in shards)
    earlier = read_receipt(run, group)
    if earlier and (earlier.plan, earlier.ledgers) == (plan.digest, ledgers):
        return earlier
    run.sketch(group).parent.mkdir(parents=True, exist_ok=True)
    run.sketch_counts(group).unlink(missing_ok=True)
    work = _Group(run, plan, group)
    try:
        for shard in shards:
            work.add_shard(shard)
        receipt = work.finish(ledgers)
    finally:
        work.abandon()
    reach("sketch written")
    write_atomic(run.sketch_counts(group), receipt.encode())
    return receipt


def read_receipt(run: RunDir, group: int) -> Receipt | None:
    """The receipt of a group, None if it has none."""
    try:
        return Receipt.decode(run.sketch_counts(group).read_bytes())
    except FileNotFoundError:
        return None
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged(run.sketch_counts(group)) from error


def load_sketch(run: RunDir, receipt: Receipt) -> Sketch:
    """The hashes of a group, proved to be those of its receipt."""
    path = run.sketch(receipt.group)
    try:
        array = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise damaged(path) from error
    if array.dtype != SKETCH or xxhash.xxh3_128_hexdigest(array.data) != receipt.hashes:
        raise damaged(path)
    return array  # type: ignore[no-any-return]


def check_files(run: RunDir, receipt: Receipt) -> None:
    """Raise StopError unless the keys and signatures of a group are those of its receipt."""
    for path, known in (
        (run.bands(receipt.group), receipt.bands),
        (run.signatures(receipt.group), receipt.signatures),
    ):
        if known and digest(path) != known:
            raise damaged(path)


def ledger_tail(path: Path) -> str:
    """Identify a ledger by its length and its last bytes, which hold its own digest."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            return f"{size}-{xxhash.xxh3_64_hexdigest(file.read())}"
    except FileNotFoundError:
        raise StopError(
            f"there is no ledger {path}", hint="launch again: the shard is refined anew"
        ) from None


def normalise(text: str) -> str:
    """What the exact hash sees: NFC, lower case, and white space as single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def save_array(path: Path, array: npt.NDArray[Any]) -> str:
    """Write an array as .npy, whole or not at all; the file's digest."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_atomic(path, buffer.getvalue())
    return xxhash.xxh3_128_hexdigest(buffer.getbuffer())


@dataclass
class _Group:
    """The work on one group of shards."""

    run: RunDir
    plan: Plan
    group: int
    counts: Counts = field(default_factory=Counts)
    packed: bytearray = field(default_factory=bytearray)
    tiles: list[tuple[Tile, ...]] = field(default_factory=list)
    aside: PartWriter | None = None
    signer: Signer | None = None  # where near-duplicates are looked for

    def __post_init__(self) -> None:
        if near := self.plan.manifest.dedup.near:
            self.signer = Signer(near)

    def add_shard(self, shard: int) -> None:
        """Replay one shard and check that its documents add up."""
        tiles, counts = [], Counts()
        for item in replay_shard(self.run, self.plan, shard):
            if isinstance(item, Tile):
                tiles.append(item)
                counts.blank_lines += item.blank
                continue
            counts += item.row.count()
            if item.text is not None:
                self._add_document(shard, item)
            elif item.row.status == "quarantined":
                self._set_aside(item)
        counts.check(f"shard {shard}")
        if counts.documents != sum(tile.records for tile in tiles):
            raise StopError(f"shard {shard}: not every record is in one of its spans")
        self.counts += counts
        self.tiles.append(tuple(tiles))

    def finish(self, ledgers: tuple[str, ...]) -> Receipt:
        """Write the hashes and what was set aside; the receipt is the caller's to write."""
        aside = self.run.sketch_quarantine(self.group)
        if self.aside is not None:
            self.aside.close()
        else:
            aside.unlink(missing_ok=True)
        array = np.frombuffer(bytes(self.packed), SKETCH)
        if len(array) != self.counts.in_corpus:
            raise StopError(f"group {self.group}: {len(array)} of {self.counts.in_corpus} hashed")
        save_array(self.run.sketch(self.group), array)
        hashes = xxhash.xxh3_128_hexdigest(array.data)
        bands, signatures = self._write_keys(array)
        return Receipt(
            self.plan.digest,
            self.group,
            ledgers,
            hashes,
            bands,
            signatures,
            len(array),
            self.counts,
            tuple(self.tiles),
        )

    def abandon(self) -> None:
        """Remove what is unfinished; nothing is, after `finish`."""
        if self.aside is not None:
            self.aside.abandon()

    def _add_document(self, shard: int, item: Refined) -> None:
        text = item.text or ""
        row = orjson.dumps(corpus_row(self.plan, item), option=orjson.OPT_APPEND_NEWLINE)
        if len(row) >= 1 << 32:
            raise StopError(
                f"document {item.row.id!r} is too large for one row: {len(row)} bytes",
                hint="set corpus.max_record_bytes below 4GiB",
            )
        content = xxhash.xxh3_128_intdigest(normalise(text).encode())
        self.packed += _PACK.pack(
            content >> 64,
            content & 0xFFFFFFFFFFFFFFFF,
            xxhash.xxh3_64_intdigest(item.row.id.encode()),
            len(text),
            len(row),
            shard,
            item.number,
        )
        if self.signer is not None:
            self.signer.add(text)

    def _write_keys(self, array: Sketch) -> tuple[str, str]:
        """Write keys and signatures; the digests of the files, "" for one that there is not."""
        numbers = np.arange(len(array), dtype=np.uint32)
        bands = [(array["high"], numbers), (array["id"], numbers)]
        signed = self.run.signatures(self.group)
        near = self.plan.manifest.dedup.near
        if self.signer is None or near is None:
            signed.unlink(missing_ok=True)
            return write_bands(self.run.bands(self.group), bands), ""
        own, some = self.signer.finish()
        bands += [(keys, numbers[some]) for keys in band_keys(own[some], near.bands)]
        made = save_array(signed, signatures(own))
        return write_bands(self.run.bands(self.group), bands), made

    def _set_aside(self, item: Refined) -> None:
        if self.aside is None:
            self.aside = PartWriter(self.run.sketch_quarantine(self.group))
        self.aside.write(quarantine_row(self.plan, item))


def spans_of(receipt: Receipt) -> Iterator[Tile]:
    """All tiles of a group, in input order."""
    for shard in receipt.tiles:
        yield from shard
