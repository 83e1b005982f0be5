"""The programs by which the merge removes repeated lines, executed on refined texts."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import numpy as np

from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.match_result import MatchResult
from proxhpc.assemble.policy_change import last_tokenizer
from proxhpc.assemble.replay import ReplayedRecord, replay_documents
from proxhpc.dedup.arrays import check_file
from proxhpc.dedup.hashes import RecordKey, Sketch
from proxhpc.errors import StopError
from proxhpc.program.policy import Policy
from proxhpc.program.replay import (
    ModelOutput,
    ProgramFormat,
    ReplayResult,
    WindowProgram,
    replay,
)
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

_POLICY = Policy(strict=True, max_error_share=0, min_kept_words=0)


def remove_repeated_lines(text: str, program: str) -> ReplayResult:
    """Execute a program of the merge on a refined text."""
    window = WindowProgram(0, text.count("\n") + 1, ModelOutput(program, "stop"))
    return replay(text, None, [window], _POLICY, ProgramFormat())


def read_line_programs(
    run: RunDir, match: MatchResult, group: int
) -> Iterator[tuple[RecordKey, str]]:
    """Yield a group's programs that remove repeated lines, in input order, with their documents.

    StopError if their file is damaged.
    """
    if digest := match.line_programs[group]:
        path = run.match_files(match.digest).line_programs(group)
        check_file(path, digest)
        for row in read_listing(path):
            yield (row["shard"], row["record"]), row["program"]


def replay_corpus(
    run: RunDir, plan: Plan, match: MatchResult, group: int, documents: Sketch
) -> Iterator[ReplayedRecord]:
    """Replay these documents of a group, in input order, and remove their repeated lines."""
    keys = zip(documents["shard"].tolist(), documents["record"].tolist(), strict=True)
    records = replay_documents(run, plan, documents)
    return without_repeated_lines(run, plan, match, group, zip(keys, records, strict=True))


def without_repeated_lines(
    run: RunDir,
    plan: Plan,
    match: MatchResult,
    group: int,
    records: Iterable[tuple[RecordKey, ReplayedRecord]],
) -> Iterator[ReplayedRecord]:
    """Remove the repeated lines of replayed records of a group, which are in input order."""
    programs = read_line_programs(run, match, group)
    end = ((np.iinfo(np.int64).max, 0), "")
    at, program = next(programs, end)
    for key, record in records:
        while at < key:
            at, program = next(programs, end)
        yield _edited(plan, record, program) if at == key else record


def _edited(plan: Plan, record: ReplayedRecord, program: str) -> ReplayedRecord:
    """A record without the lines that a program removes."""
    text, row = record.text or "", record.row
    result = remove_repeated_lines(text, program)
    if result.outcome not in ("edited", "dropped"):
        raise StopError(
            f"the lines of document {row.id!r} that repeat others cannot be removed"
            f" ({result.reason or result.outcome})",
            hint="an input or a ledger changed during the merge; merge again",
        )
    tokens = _tokens(plan, text, row.tokens_out, result)
    size = len(result.text.encode("utf-8", "surrogatepass"))
    return replace(
        record,
        row=replace(row, bytes_out=size, tokens_out=tokens),
        text=result.text or None,
        merge_program=program,
        removed_tokens=row.tokens_out - tokens,
    )


def _tokens(plan: Plan, text: str, before: int, result: ReplayResult) -> int:
    """The tokens of the edited text, counted as those of the refined one, `before`."""
    from proxhpc.refine.windows import LineTokens  # with much else that few merges need

    tokenizer, limit = last_tokenizer(plan), plan.manifest.stages[-1].window_tokens
    if tokenizer is None:
        return LineTokens(None, result.text, limit).total
    lines = text.split("\n")
    removed = [line for start, stop in result.removed for line in lines[start:stop]]
    # A line counts one more than its tokens, for its line feed; the last one does not.
    return max(0, before - LineTokens(tokenizer, "\n".join(removed), limit).total - 1)
