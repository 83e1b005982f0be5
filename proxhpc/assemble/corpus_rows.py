"""Rows of the corpus: from patches where a group has them, else by a replay."""

from collections.abc import Iterator

import orjson

from proxhpc.assemble.line_edits import replay_corpus
from proxhpc.assemble.match_result import MatchResult
from proxhpc.assemble.patches import CorpusRow, patched_rows
from proxhpc.assemble.rows import corpus_row, with_cluster
from proxhpc.assemble.shape import Shapes
from proxhpc.assemble.sketch import require_receipt
from proxhpc.dedup.hashes import Sketch
from proxhpc.dedup.sorting import IntRows
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


def corpus_rows(
    run: RunDir, plan: Plan, match: MatchResult, group: int, documents: Sketch, clusters: IntRows
) -> Iterator[CorpusRow]:
    """Yield the rows of documents of one group, in input order, with their clusters.

    StopError names the input, ledger or file of the merge that is not as it was.
    """
    patched = patched_rows(run, plan, group, require_receipt(run, group).identity, documents)
    if patched is not None:
        for row, cluster in zip(patched, clusters.tolist(), strict=True):
            yield row._replace(line=with_cluster(row.line, cluster)) if cluster[0] else row
        return
    shapes, sort_keys = Shapes(plan.manifest.output), documents["sort_key"].tolist()
    records = replay_corpus(run, plan, match, group, documents)
    for record, sort_key, cluster in zip(records, sort_keys, clusters.tolist(), strict=True):
        fields, ledger_row = corpus_row(plan, record, cluster), record.row
        line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
        counts = ledger_row.file, ledger_row.bytes_out, ledger_row.tokens_out
        yield CorpusRow(line, sort_key, *counts, record.removed_tokens, shapes.of(fields))
