"""What can be reviewed: a run, or a file with raw and refined texts; which of their documents."""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import zip_longest
from pathlib import Path

from proxhpc.account.quantity import quantity
from proxhpc.assemble.rows import record_source
from proxhpc.corpus.disk import sha256_file
from proxhpc.corpus.inputs import printable_path, read_error
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import iter_objects
from proxhpc.inspect.document import examine_document
from proxhpc.inspect.find import FoundRow, find_rows, not_found, sample_groups
from proxhpc.review.document import ReviewItem, ReviewTexts, Stratum
from proxhpc.review.estimate import stratum_order
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.status.totals import load_merge, run_counts

_MAX_SHARDS = 32  # ledgers that are read for a sample


Sample = Mapping[Stratum, list[ReviewItem]]


class RunReview:
    """The documents of a run, also of one that is not finished.

    `sizes` are its documents by stratum. `key` changes with them, and `marks` is where they are
    marked.
    """

    def __init__(self, run: RunDir) -> None:
        self.run, self.plan = run, Plan.load(run)
        self.key, self.marks = self.plan.digest, run.review
        counts = run_counts(load_merge(run), latest_heartbeats(run))
        kept = {"kept": counts.kept, "edited": counts.edited}
        sizes = {Stratum(outcome): number for outcome, number in kept.items()}
        for outcome in ("dropped", "quarantined"):
            for reason, number in getattr(counts, outcome).items():
                sizes[Stratum(outcome, reason)] = number
        self.sizes: Mapping[Stratum, int] = {
            stratum: number for stratum, number in sizes.items() if number
        }

    def sample(self, number: int, wanted: Stratum, seed: int) -> Sample:
        """Up to `number` documents of each wanted stratum, from a few shards."""

        def stratum_of(hit: FoundRow) -> Stratum | None:
            stratum = Stratum(hit.row.outcome, hit.row.reason)
            return stratum if hit.row.digest and wanted.includes(stratum) else None

        strata = [*filter(wanted.includes, self.sizes)]
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
        return ReviewItem(
            id=row.id,
            position=record_source(self.plan, row),
            stratum=Stratum(row.outcome, row.reason),
            programs=tuple(call.program for call in (row.doc, *row.windows) if call),
            read=partial(self._read, hit),
        )

    def _read(self, hit: FoundRow) -> ReviewTexts | None:
        """StopError if the input has changed since it was refined."""
        item = examine_document(self.plan, hit)  # as the refiner left it
        if item.document is None:
            return None
        # Where long lines were split, the ranges count the parts.
        removed = () if hit.row.cuts else item.removed
        return ReviewTexts(item.document.fields, item.document.text, item.after, removed)


class FileReview:
    """Rows with `original_text` and `text`: a part of a corpus, or what `refine` printed.

    Like a RunReview.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.key = sha256_file(path)
        except OSError as error:
            raise read_error(path, error) from error
        name = path.name.removesuffix(".zst").removesuffix(".gz").removesuffix(".jsonl")
        self.marks = path.with_name(f"{name}.review.jsonl")
        self.sizes: Mapping[Stratum, int] = Counter(item.stratum for item in self._items())

    def sample(self, number: int, wanted: Stratum, seed: int) -> Sample:
        """Up to `number` documents of each wanted stratum."""
        rng, seen = random.Random(seed), Counter[Stratum]()  # noqa: S311
        chosen = {
            stratum: rng.sample(range(size), min(number, size))
            for stratum, size in self.sizes.items()
            if wanted.includes(stratum)
        }
        items: dict[tuple[Stratum, int], ReviewItem] = {}
        for item in self._items():
            if seen[item.stratum] in chosen.get(item.stratum, ()):
                items[item.stratum, seen[item.stratum]] = item
            seen[item.stratum] += 1
        return {stratum: [items[stratum, n] for n in chosen[stratum]] for stratum in chosen}

    def find(self, query: str) -> list[ReviewItem]:
        """Every document with this id or position."""
        items = [item for item in self._items() if query in (item.id, item.position)]
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
            texts = partial(ReviewTexts, row, before, after)
            id_ = str(row.get("id", position))
            yield ReviewItem(id_, position, stratum, programs, texts)


ReviewSource = RunReview | FileReview


def open_review_source(path: Path) -> ReviewSource:
    """A run if the path is a directory, otherwise a file."""
    return RunReview(RunDir(path.absolute())) if path.is_dir() else FileReview(path)


def choose_items(source: ReviewSource, number: int, wanted: Stratum, seed: int) -> list[ReviewItem]:
    """Up to `number` documents of each stratum, the strata in turn. UserError if there is none."""
    sample = source.sample(number, wanted, seed)
    columns = [sample[stratum] for stratum in sorted(sample, key=stratum_order)]
    items = [item for row in zip_longest(*columns) for item in row if item]
    if not items:
        strata = sorted(source.sizes, key=stratum_order)
        names = (f"{s.outcome} with reason {s.reason}" if s.reason else s.outcome for s in strata)
        raise UserError(
            "no document to review",
            hint=f"there are documents {', '.join(names)}" if strata else "none is refined yet",
        )
    return items
