"""What the merge did to documents: duplicates, documents left out otherwise, and removed lines."""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from proxhpc.inspect.model import BenchmarkItem, Survivor
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

if TYPE_CHECKING:
    from proxhpc.assemble.match_result import MatchResult
    from proxhpc.dedup.hashes import Sketch

Records = dict[tuple[int, int], int]  # shard and record of each in input order, numbered


@dataclass(frozen=True, slots=True)
class _GroupEffects:
    """A group's duplicates, documents left out for their lines, and benchmark rows by source."""

    number: int
    duplicates: Records
    left_out: Records
    hits: dict[str, dict[str, Any]]


class MergeEffects:
    """What the merge did to documents; nothing before the merge."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.run, self.plan = run, plan
        self._match: MatchResult | None = None
        self._group: _GroupEffects | None = None  # the latest
        # Without a summary the merge is not finished, or `verify --repair` has undone it.
        if run.merge_summary.exists():
            from proxhpc.assemble.match_result import read_match  # numpy: not before the merge

            self._match = read_match(run)

    def outcome(self, shard: int, record: int, source: str) -> str:
        """`duplicate` or `left_out` if the merge did not write a refined record, else ""."""
        if (shard, record) in self._of(shard).duplicates:
            return "duplicate"
        return "left_out" if self.left_out_reason(shard, record, source) else ""

    def survivor(self, shard: int, record: int) -> Survivor | None:
        """The survivor of a record; None if it is no duplicate."""
        group = self._of(shard)
        if self._match is None or (shard, record) not in group.duplicates:
            return None
        from proxhpc.assemble.listings import read_listing

        rows = read_listing(self.run.match_files(self._match.digest).duplicates(group.number))
        row = next(islice(rows, group.duplicates[shard, record], None))
        return Survivor(**row["survivor"], similarity=row["similarity"])

    def left_out_reason(self, shard: int, record: int, source: str) -> str:
        """Why a record that is no duplicate was left out; "" if it was not."""
        group = self._of(shard)
        if source in group.hits and group.hits[source]["left_out"]:
            return "benchmark"
        return "repeated_lines" if (shard, record) in group.left_out else ""

    def line_program(self, shard: int, record: int) -> str:
        """The program that removed a record's repeated lines; "" if there is none."""
        if self._match is None:
            return ""
        from proxhpc.assemble.line_edits import read_line_programs

        programs = read_line_programs(self.run, self._match, self._of(shard).number)
        return next((text for key, text in programs if key == (shard, record)), "")

    def benchmark_item(self, shard: int, source: str) -> BenchmarkItem | None:
        """The benchmark's item that a document contains, None if it contains none."""
        hit = self._of(shard).hits.get(source)
        return BenchmarkItem(**hit["item"]) if hit else None

    def _of(self, shard: int) -> _GroupEffects:
        """What the merge did to the group of a shard."""
        number = next(n for n, shards in enumerate(shard_groups(self.plan)) if shard in shards)
        if self._group is None or self._group.number != number:
            self._group = self._load(number)
        return self._group

    def _load(self, number: int) -> _GroupEffects:
        if self._match is None:
            return _GroupEffects(number, {}, {}, {})
        from proxhpc.assemble.listings import read_listing
        from proxhpc.assemble.match_result import load_flags
        from proxhpc.assemble.sketch import load_chosen

        digest, path = self._match.digest, self.run.sketch_benchmark(number)
        duplicates, left_out = (
            _numbered(load_chosen(self.run, number, chosen))
            for chosen in load_flags(self.run, digest, number, self._match.flags[number])
        )
        listed = read_listing(path) if self.plan.benchmarks and path.exists() else ()
        hits = {row["source"]: row for row in listed}
        return _GroupEffects(number, duplicates, left_out, hits)


def _numbered(documents: "Sketch") -> Records:
    keys = zip(documents["shard"].tolist(), documents["record"].tolist(), strict=True)
    return {key: number for number, key in enumerate(keys)}
