"""Pairs of a raw and a clean page: read, matched, and split into pages to learn and to test."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from proxhpc.account.quantity import quantity
from proxhpc.corpus.hosts import VALIDATION, host_of, split_of
from proxhpc.corpus.inputs import read_error
from proxhpc.corpus.records import get_field
from proxhpc.corpus.writer import PartWriter
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import EDITED, GoldFields, aligned_labels, iter_objects

MIN_PAIRS = 20
HELD_OUT = 0.2
"""Share of the pages on which nothing is learned or chosen; the verdict is about them."""
_MIN_HOSTS = 20  # with fewer, a host is too much of the pages to be held out


@dataclass(frozen=True, slots=True)
class PagePair:
    """A page as it was crawled and as a person cleaned it; `host` may be empty."""

    id: str
    raw: str
    clean: str
    host: str


def read_page_pairs(
    raw: Path, clean: Path, keys: GoldFields, log: Callable[[str], None]
) -> list[PagePair]:
    """The pages of `raw` with the page of `clean` that has the same name or id.

    Each is a folder of .txt files or a JSON-lines file. `log` gets what has no counterpart.
    UserError if something cannot be read, or if there are fewer than MIN_PAIRS.
    """
    raw_pages = _unique(_pages(raw, keys, keys.noisy), raw)
    clean_pages = _unique(_pages(clean, keys, keys.gold), clean)
    for path, single in (
        (raw, raw_pages.keys() - clean_pages.keys()),
        (clean, clean_pages.keys() - raw_pages.keys()),
    ):
        if single:
            names = ", ".join(sorted(single)[:3]) + (", …" if len(single) > 3 else "")
            log(f"{path}: {quantity(len(single), 'page')} without a counterpart: {names}")
    pairs = [
        replace(page, clean=clean_pages[name].raw)
        for name, page in raw_pages.items()
        if name in clean_pages
    ]
    if len(pairs) < MIN_PAIRS:
        raise UserError(
            f"{quantity(len(pairs), 'pair')} of pages in {raw} and {clean}; a verdict needs at "
            f"least {MIN_PAIRS}",
            hint="files are matched by their names, JSON records by `id` (--fields id=KEY)",
        )
    return pairs


def _unique(pages: Iterable[PagePair], path: Path) -> dict[str, PagePair]:
    by_id: dict[str, PagePair] = {}
    for page in pages:
        if by_id.setdefault(page.id, page) is not page:
            raise UserError(f"{path}: there are several pages {page.id!r}")
    return by_id


def _pages(path: Path, keys: GoldFields, key: str) -> Iterator[PagePair]:
    """The pages of a folder or file, all as `raw`; a record's text is in `key` or `keys.text`."""
    if path.is_dir():
        files = sorted(path.rglob("*.txt"))
        if not files:
            raise UserError(f"{path}: there is no .txt file in this folder")
        for file in files:
            yield PagePair(str(file.relative_to(path)), _read_text(file), "", "")
        return
    for location, record in iter_objects(path):
        name, text = get_field(record, keys.id), get_field(record, key)
        text = get_field(record, keys.text) if text is None else text
        if name is None or not isinstance(text, str):
            missing = repr(keys.id) if name is None else f"{key!r} or {keys.text!r} with a text"
            raise UserError(f"{location}: no field {missing}", hint="--fields sets other names")
        yield PagePair(str(name), text, "", host_of(record, keys.host, keys.url))


def _read_text(file: Path) -> str:
    try:
        return file.read_text("utf-8-sig").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{file}: not UTF-8, at byte {error.start}") from error
    except OSError as error:
        raise read_error(file, error) from error


def split_pairs(pairs: Sequence[PagePair]) -> tuple[list[PagePair], list[PagePair]]:
    """The pages to learn from and those held out, which come from other hosts.

    Where hosts are few or unknown, pages are split by their texts, and have no host in the result.
    """
    learned, held_out = _split(pairs)
    hosts = Counter(pair.host for pair in pairs)
    validation = sum(split_of(pair.host, pair.raw) == "validation" for pair in learned)
    is_even = VALIDATION / 3 < validation / max(1, len(learned)) < VALIDATION * 3
    if "" not in hosts and len(hosts) >= _MIN_HOSTS and is_even and len(held_out) < len(pairs) / 2:
        return learned, held_out
    return _split([replace(pair, host="") for pair in pairs])


def _split(pairs: Sequence[PagePair]) -> tuple[list[PagePair], list[PagePair]]:
    """Split by host, or text without one, in an order that depends on nothing else."""

    def order(key: str) -> str:
        return hashlib.sha256(f"held out: {key}".encode("utf-8", "surrogatepass")).hexdigest()

    sizes = Counter(pair.host or pair.raw for pair in pairs)
    chosen: set[str] = set()
    number = 0
    for key in sorted(sizes, key=order):
        if number >= HELD_OUT * len(pairs):
            break
        chosen.add(key)
        number += sizes[key]
    is_held_out = [(pair.host or pair.raw) in chosen for pair in pairs]
    return (
        [pair for pair, held_out in zip(pairs, is_held_out, strict=True) if not held_out],
        [pair for pair, held_out in zip(pairs, is_held_out, strict=True) if held_out],
    )


def write_page_pairs(pairs: Iterable[PagePair], path: Path, *, edited: str = EDITED) -> None:
    """Write gold records with the labels of an alignment; `edited` is that of changed lines."""
    with PartWriter(path) as part:
        for pair in pairs:
            labels = aligned_labels(pair.raw, pair.clean).replace(EDITED, edited)
            record = {"id": pair.id, "host": pair.host}
            record |= {"text_noisy": pair.raw, "text_gold": pair.clean}
            part.write(record | ({"line_labels": labels} if labels else {}))
        part.close()
