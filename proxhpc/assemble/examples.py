"""Texts that the report shows: documents before and after, and some that were left out as copies.

They are kept with the merge, so that the report needs neither the raw corpus nor its readers.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice

from proxhpc.assemble.replay import ReplayedRecord, replay_shard
from proxhpc.assemble.rows import record_source
from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import StopError
from proxhpc.run.ledger import Call
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.pool import Pool

_MAX_CHARS = 1 << 16  # characters of a text; the rest of a longer one is not shown
_MAX_PROGRAMS = 32  # of a document


@dataclass(frozen=True, slots=True)
class ExampleTexts:
    """A document to be shown. `after` is None for what is not in the corpus, `cut` if too long."""

    shard: int
    number: int
    id: str
    source: str
    outcome: str
    reason: str
    programs: tuple[str, ...]
    before: str
    after: str | None
    truncated: bool

    @property
    def place(self) -> tuple[int, int]:
        """Shard and record."""
        return self.shard, self.number


def write_examples(pool: Pool, places: Iterable[tuple[int, int]]) -> None:
    """Keep the documents at these (shard, record), in input order."""
    wanted: dict[int, list[int]] = defaultdict(list)
    for shard, number in sorted(set(places)):
        wanted[shard].append(number)
    shown = pool.map("examples", partial(_texts, wanted=dict(wanted)), wanted)
    # Not orjson: a document that is not in the corpus may hold what UTF-8 cannot say.
    lines = (f"{json.dumps(asdict(one))}\n" for of_shard in shown for one in of_shard)
    write_atomic(pool.run.examples, "".join(lines).encode("ascii"))


def read_examples(run: RunDir) -> list[ExampleTexts]:
    """What `write_examples` kept, nothing for a run that was merged without."""
    try:
        rows = [json.loads(line) for line in run.examples.read_bytes().splitlines()]
        return [ExampleTexts(**row | {"programs": tuple(row["programs"])}) for row in rows]
    except FileNotFoundError:
        return []
    except (KeyError, TypeError, ValueError) as error:
        raise StopError(
            f"{run.examples} is damaged", hint="delete it: the report then has no examples"
        ) from error


def _texts(
    run: RunDir, plan: Plan, shard: int, *, wanted: Mapping[int, list[int]]
) -> list[ExampleTexts]:
    return [
        _shown(plan, shard, item)
        for item in replay_shard(run, plan, shard, wanted[shard])
        if isinstance(item, ReplayedRecord)
    ]


def _shown(plan: Plan, shard: int, item: ReplayedRecord) -> ExampleTexts:
    row, before, after = item.row, item.document.text if item.document else "", item.text
    return ExampleTexts(
        shard=shard,
        number=item.number,
        id=row.id,
        source=record_source(plan, row),
        outcome=row.outcome,
        reason=row.reason,
        programs=tuple(islice(_programs(row.doc, row.windows), _MAX_PROGRAMS)),
        before=before[:_MAX_CHARS],
        after=after if after is None else after[:_MAX_CHARS],
        truncated=len(before) > _MAX_CHARS,
    )


def _programs(doc: Call | None, windows: Iterable[Call]) -> Iterator[str]:
    if doc is not None:
        yield doc.program[:_MAX_CHARS]
    for call in windows:
        yield call.program[:_MAX_CHARS]
