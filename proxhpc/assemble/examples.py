"""Texts of the documents that the report shows: examples before and after, and duplicates.

They are stored with the merge, so the report needs neither the raw corpus nor its readers.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from proxhpc.assemble.line_edits import without_repeated_lines
from proxhpc.assemble.match_result import require_match
from proxhpc.assemble.replay import ReplayedRecord, replay_records
from proxhpc.assemble.rows import record_source
from proxhpc.corpus.disk import write_atomic
from proxhpc.dedup.hashes import RecordKey
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool
from proxhpc.run.shards import shard_groups

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


def write_examples(pool: Pool, keys: Iterable[RecordKey]) -> None:
    """Store the documents with these keys, in input order."""
    wanted: dict[int, list[int]] = defaultdict(list)
    for shard, number in sorted(set(keys)):
        wanted[shard].append(number)
    shards = pool.map("examples", partial(_texts, wanted=dict(wanted)), wanted)
    # Not orjson: a document outside of the corpus may hold what UTF-8 cannot encode.
    lines = (f"{json.dumps(asdict(texts))}\n" for of_shard in shards for texts in of_shard)
    write_atomic(pool.run.examples, "".join(lines).encode("ascii"))


def read_examples(run: RunDir) -> list[ExampleTexts]:
    """What `write_examples` stored; nothing if the file does not exist."""
    try:
        rows = [json.loads(line) for line in run.examples.read_bytes().splitlines()]
        return [ExampleTexts(**row | {"programs": tuple(row["programs"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise StopError(
            f"{run.examples} is damaged", hint="delete it; the report then has no examples"
        ) from error


def _texts(
    run: RunDir, plan: Plan, shard: int, *, wanted: Mapping[int, list[int]]
) -> list[ExampleTexts]:
    records = replay_records(run, plan, shard, wanted[shard])
    if plan.manifest.dedup.lines:
        group = next(n for n, shards in enumerate(shard_groups(plan)) if shard in shards)
        keyed = (((shard, record.number), record) for record in records)
        records = without_repeated_lines(run, plan, require_match(run), group, keyed)
    return [_example(plan, shard, record) for record in records]


def _example(plan: Plan, shard: int, record: ReplayedRecord) -> ExampleTexts:
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
