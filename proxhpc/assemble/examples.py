"""Texts of the documents that the report shows: examples before and after, and duplicates.

They are stored with the merge, so the report needs neither the raw corpus nor its readers. Those of
examples are from the sketch phase, unless lines are removed after it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain

import zstandard

from proxhpc.assemble.line_edits import without_repeated_lines
from proxhpc.assemble.match_result import require_match
from proxhpc.assemble.replay import replay_records
from proxhpc.assemble.sketch import SketchReceipt
from proxhpc.assemble.stats import (
    ExampleTexts,
    decode_examples,
    encode_examples,
    example_texts,
)
from proxhpc.corpus.disk import write_atomic
from proxhpc.dedup.arrays import check_file
from proxhpc.dedup.hashes import RecordKey
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool
from proxhpc.run.shards import shard_groups


def replay_examples(pool: Pool, keys: Iterable[RecordKey]) -> list[ExampleTexts]:
    """The documents with these keys, in input order."""
    wanted: dict[int, list[int]] = defaultdict(list)
    for shard, number in sorted(set(keys)):
        wanted[shard].append(number)
    shards = pool.map("examples", partial(_texts, wanted=dict(wanted)), wanted)
    return [*chain.from_iterable(shards)]


def write_examples(
    pool: Pool,
    receipts: Sequence[SketchReceipt],
    keys: Iterable[RecordKey],
    known: Iterable[ExampleTexts],
) -> None:
    """Store the documents with these keys, in input order; some are `known`."""
    keys = set(keys)
    found = {text.key: text for text in [*known, *stored_examples(pool.run, receipts, keys)]}
    if rest := keys - found.keys():
        found |= {text.key: text for text in replay_examples(pool, rest)}
    write_atomic(pool.run.examples, encode_examples(found[key] for key in sorted(keys)))


def stored_examples(
    run: RunDir, receipts: Sequence[SketchReceipt], keys: set[RecordKey]
) -> Iterator[ExampleTexts]:
    """Yield the documents that the sketch phase has stored with some of these."""
    for receipt in receipts:
        if receipt.examples and keys & receipt.stats.example_keys:
            path = run.sketch_examples(receipt.group)
            check_file(path, receipt.examples)
            yield from decode_examples(zstandard.decompress(path.read_bytes()))


def read_examples(run: RunDir) -> list[ExampleTexts]:
    """What `write_examples` stored; nothing if the file does not exist."""
    try:
        return decode_examples(run.examples.read_bytes())
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
    return [example_texts(plan, shard, record) for record in records]
