"""What the merge did to documents: duplicates with their survivors, and removed lines."""

from itertools import islice
from typing import TYPE_CHECKING

from proxhpc.inspect.model import BenchmarkItem, Survivor
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups

if TYPE_CHECKING:
    from proxhpc.assemble.match_result import MatchResult

    GroupDuplicates = list[tuple[int, int]]  # shard and record of each, in input order


class DuplicatePairs:
    """The merge's pairs of duplicate and survivor; empty before the merge."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self.run, self.plan = run, plan
        self._match: MatchResult | None = None
        self._groups: dict[int, GroupDuplicates] = {}
        # Without a summary the merge is not finished, or `verify --repair` has undone it.
        if run.merge_summary.exists():
            from proxhpc.assemble.match_result import read_match  # numpy: not before the merge

            self._match = read_match(run)

    def records(self, shard: int) -> set[int]:
        """Record numbers of a shard's duplicates."""
        _, duplicates = self._duplicates(shard)
        return {record for other, record in duplicates if other == shard}

    def survivor(self, shard: int, record: int) -> Survivor | None:
        """The survivor of a record; None if it is no duplicate."""
        group, duplicates = self._duplicates(shard)
        if self._match is None or (shard, record) not in duplicates:
            return None
        from proxhpc.assemble.listings import read_listing

        rows = read_listing(self.run.match_files(self._match.digest).duplicates(group))
        row = next(islice(rows, duplicates.index((shard, record)), None))
        return Survivor(**row["survivor"], similarity=row["similarity"])

    def merge_program(self, shard: int, record: int) -> tuple[str, bool]:
        """The program that removed a record's repeated lines, and whether it was left out for them.

        "" if there is none.
        """
        if self._match is None or not self._match.lines:
            return "", False
        from proxhpc.assemble.line_edits import is_left_out, read_line_programs

        group = self._group(shard)
        programs = read_line_programs(self.run, self._match, group)
        program = next((text for key, text in programs if key == (shard, record)), "")
        return program, program != "" and is_left_out(self.run, self._match, group, (shard, record))

    def benchmark_item(self, shard: int, source: str) -> BenchmarkItem | None:
        """The benchmark's item that a document contains, None if it contains none."""
        path = self.run.sketch_benchmark(self._group(shard))
        if self._match is None or not self.plan.has_benchmark or not path.exists():
            return None
        from proxhpc.assemble.listings import read_listing

        items = (row["item"] for row in read_listing(path) if row["source"] == source)
        return next((BenchmarkItem(**item) for item in items), None)

    def _group(self, shard: int) -> int:
        return next(n for n, shards in enumerate(shard_groups(self.plan)) if shard in shards)

    def _duplicates(self, shard: int) -> tuple[int, "GroupDuplicates"]:
        """The group of a shard, and its duplicates."""
        group = self._group(shard)
        if self._match is None:
            return group, []
        if group not in self._groups:
            from proxhpc.assemble.match_result import load_duplicates

            documents = load_duplicates(
                self.run, self._match.digest, group, self._match.flags[group]
            )
            keys = documents["shard"].tolist(), documents["record"].tolist()
            self._groups = {group: [*zip(*keys, strict=True)]}
        return group, self._groups[group]
