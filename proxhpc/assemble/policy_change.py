"""Outcomes of documents under another policy, from the programs that their rows hold."""

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from proxhpc.corpus.document import Document
from proxhpc.program.replay import ReplayResult
from proxhpc.run.ledger import Row
from proxhpc.run.plan import Plan

if TYPE_CHECKING:
    from proxhpc.engines.base import Tokenizer

NOT_ASKED = "not_asked"


class PolicyChange:
    """Applies the plan's policy to documents that were refined under an earlier one."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._policy = plan.manifest.policy
        self._format = plan.manifest.program_format

    def apply(self, document: Document, row: Row, before: ReplayResult) -> tuple[Row, ReplayResult]:
        """The document's row and result under the plan's policy; `before` is the earlier result.

        A document that only the earlier policy dropped before the chunk stage has no chunk
        programs. Nobody knows what they would have been, so it is quarantined.
        """
        now = row.replay(document.text, self._policy, self._format)
        dropped_by_doc = before.outcome == "dropped" and before.reason == "doc_program"
        has_chunk_stage = any(stage.level == "chunk" for stage in self._plan.manifest.stages)
        asked = not (dropped_by_doc and has_chunk_stage) or now.outcome == "dropped"
        if not asked and self._policy != "none":
            now = ReplayResult("quarantined", "", now.rejected, NOT_ASKED, lenient=now.lenient)
        new_row = replace(
            row,
            outcome=now.outcome,
            reason=now.reason,
            bytes_out=len(now.text.encode("utf-8", "surrogatepass")),
            tokens_out=self._tokens(document, row, before, now),
            lines_removed=now.lines_removed,
            strings_replaced=now.strings_replaced,
            rejected=dict(now.rejected),
            lenient=dict(now.lenient),
        )
        return new_row, now

    def _tokens(self, document: Document, row: Row, before: ReplayResult, now: ReplayResult) -> int:
        if now.text == before.text:
            return row.tokens_out
        if now.text in ("", document.text):
            return row.tokens_in if now.text else 0
        from proxhpc.refine.windows import LineTokens

        window = self._plan.manifest.stages[-1].window_tokens
        return LineTokens(last_tokenizer(self._plan), document.text, window).count_text(now.text)


def last_tokenizer(plan: Plan) -> "Tokenizer | None":
    """The last stage's tokenizer, with which the workers counted; None for the rules."""
    model = plan.models.get(plan.manifest.stages[-1].level)
    return None if model is None else _load_tokenizer(model.path)


@lru_cache(1)
def _load_tokenizer(path: Path) -> "Tokenizer":
    from proxhpc.engines.tokenizer import HFTokenizer

    return HFTokenizer(path)
