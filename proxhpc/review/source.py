"""What can be reviewed: a run, or a file with raw and refined texts."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from proxhpc.account.quantity import quantity
from proxhpc.assemble.rows import record_source
from proxhpc.corpus.disk import sha256_file
from proxhpc.corpus.inputs import printable_path, read_error
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import iter_objects
from proxhpc.inspect.document import examine_document
from proxhpc.inspect.find import FoundRow, find_rows, not_found, sample_groups
from proxhpc.inspect.survivor import DuplicatePairs
from proxhpc.review.document import DocumentHead, ReviewDocument, Stratum, make_document
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.status.totals import load_merge, run_counts

_MAX_SHARDS = 64  # ledgers that are read for a sample


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """A document to review, which `load` reads; None if it has no text or no lines to compare."""

    head: DocumentHead
    load: Callable[[], ReviewDocument | None]


@dataclass(frozen=True, slots=True)
class ReviewFilter:
    """Only documents with this outcome and reason; empty allows any."""

    outcome: str = ""
    reason: str = ""

    def accepts(self, stratum: Stratum) -> bool:
        """Whether documents of a stratum are wanted."""
        return self.outcome in ("", stratum.outcome) and self.reason in ("", stratum.reason)


Sample = Mapping[Stratum, list[ReviewItem]]


class ReviewSource(Protocol):
    """Documents by stratum. `key` changes when they do; `marks` is where marks are kept."""

    key: str
    marks: Path
    sizes: Mapping[Stratum, int]

    def sample(self, number: int, wanted: ReviewFilter, seed: int) -> Sample:
        """Up to `number` documents of each stratum, at random."""

    def find(self, query: str) -> list[ReviewItem]:
        """Every document with this id, or the one at this position. UserError if there is none."""


def open_review_source(path: Path) -> ReviewSource:
    """A run if the path is a directory, otherwise a file."""
    return RunReview(RunDir(path.absolute())) if path.is_dir() else FileReview(path)


class RunReview:
    """The documents of a run, also of one that is not finished."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.plan = run, Plan.load(run)
        self.key, self.marks = self.plan.digest, run.review
        self._pairs = DuplicatePairs(run, self.plan)
        counts = run_counts(load_merge(run), latest_heartbeats(run))
        kept = {"kept": counts.kept, "edited": counts.edited}
        sizes = {Stratum(outcome): number for outcome, number in kept.items()}
        for outcome in ("dropped", "quarantined"):
            for reason, number in getattr(counts, outcome).items():
                sizes[Stratum(outcome, reason)] = number
        self.sizes: Mapping[Stratum, int] = {
            stratum: number for stratum, number in sizes.items() if number
        }

    def sample(self, number: int, wanted: ReviewFilter, seed: int) -> Sample:
        """Up to `number` documents of each stratum, from a few shards."""

        def stratum_of(hit: FoundRow) -> Stratum | None:
            stratum = Stratum(hit.row.outcome, hit.row.reason)
            return stratum if hit.row.digest and wanted.accepts(stratum) else None

        strata = [stratum for stratum in self.sizes if wanted.accepts(stratum)]
        if self.sizes and not strata:
            return {}
        strata = strata or [Stratum("")]  # nothing is known yet: read what there is
        rows = sample_groups(self.run, self.plan, number, stratum_of, strata, seed, _MAX_SHARDS)
        return {stratum: [*map(self._item, hits)] for stratum, hits in rows.items()}

    def find(self, query: str) -> list[ReviewItem]:
        """Every document with this id or position."""
        items = [self._item(hit) for hit in find_rows(self.run, self.plan, query)]
        if not items:
            raise not_found(self.run, self.plan, query)
        return items

    def _item(self, hit: FoundRow) -> ReviewItem:
        row = hit.row
        head = DocumentHead(
            id=row.id,
            position=record_source(self.plan, row),
            stratum=Stratum(row.outcome, row.reason),
            programs=tuple(call.program for call in (row.doc, *row.windows) if call),
        )
        return ReviewItem(head, partial(self._load, hit, head))

    def _load(self, hit: FoundRow, head: DocumentHead) -> ReviewDocument | None:
        """StopError if the input has changed since it was refined."""
        item = examine_document(self.plan, self._pairs, hit)
        if item.document is None:
            return None
        # Where long lines were split, the ranges count the parts.
        removed = () if hit.row.cuts else item.removed
        return make_document(head, item.document.fields, item.document.text, item.after, removed)


class FileReview:
    """Rows with `original_text` and `text`: a part of a corpus, or what `refine` printed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.key = sha256_file(path)
        except OSError as error:
            raise read_error(path, error) from error
        name = path.name.removesuffix(".zst").removesuffix(".gz").removesuffix(".jsonl")
        self.marks = path.with_name(f"{name}.review.jsonl")
        self.sizes: Mapping[Stratum, int] = Counter(item.head.stratum for item in self._items())

    def sample(self, number: int, wanted: ReviewFilter, seed: int) -> Sample:
        """Up to `number` documents of each stratum (reservoir sampling)."""
        rng, seen = random.Random(seed), Counter[Stratum]()  # noqa: S311
        sample: dict[Stratum, list[ReviewItem]] = {}
        for item in self._items():
            if not wanted.accepts(item.head.stratum):
                continue
            seen[item.head.stratum] += 1
            chosen = sample.setdefault(item.head.stratum, [])
            if len(chosen) < number:
                chosen.append(item)
            elif (slot := rng.randrange(seen[item.head.stratum])) < number:
                chosen[slot] = item
        for chosen in sample.values():
            rng.shuffle(chosen)
        return sample

    def find(self, query: str) -> list[ReviewItem]:
        """Every document with this id or position."""
        items = [item for item in self._items() if query in (item.head.id, item.head.position)]
        if not items:
            documents = quantity(sum(self.sizes.values()), "document")
            raise UserError(
                f"no document {query!r} in {self.path}",
                hint=f"it has {documents}; give an id, or FILE:LINE",
            )
        return items

    def _items(self) -> Iterator[ReviewItem]:
        for location, row in iter_objects(self.path):
            provenance = row.get("proxhpc")
            provenance = provenance if isinstance(provenance, dict) else {}
            before, after = row.get("original_text"), row.get("text")
            outcome = "dropped" if after is None else "kept" if after == before else "edited"
            stratum = Stratum(
                str(provenance.get("outcome", outcome)), str(provenance.get("reason", ""))
            )
            if before is None and stratum.outcome == "quarantined":
                continue  # a record that could not be read
            if not isinstance(before, str) or not isinstance(after, str | None):
                raise UserError(
                    f"{location}: no raw text beside the refined one (original_text, text)",
                    hint="make such rows with `proxhpc refine --original`, or with"
                    " `output.original: true` in a manifest; or give the run directory",
                )
            number = location.rpartition(":")[2]
            position = f"{printable_path(Path(self.path.name))}:{number}"
            programs = tuple(str(provenance.get(level)) for level in ("doc", "chunk"))
            head = DocumentHead(str(row.get("id", position)), position, stratum, programs)
            yield ReviewItem(head, partial(make_document, head, row, before, after))
