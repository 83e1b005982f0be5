"""Documents judged again: what a row had been under another policy, from the programs it has."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from proxhpc.corpus.document import Document
from proxhpc.program.replay import ReplayResult, replay
from proxhpc.run.ledger import Row
from proxhpc.run.plan import Plan

if TYPE_CHECKING:
    from proxhpc.engines.base import Tokenizer

NOT_ASKED = "not_asked"


class PolicyChange:
    """Judges by the plan's policy documents that were refined under the one before."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._policy = plan.manifest.policy
        self._style = plan.manifest.chunk_style

    def apply(self, document: Document, row: Row, before: ReplayResult) -> tuple[Row, ReplayResult]:
        """The document's row and outcome now; `before` is what came of it under the old policy.

        A document that was dropped before the chunk stage, and now would not be, lacks the chunk
        programs: nobody knows what they would have been, and it is set aside.
        """
        doc = row.doc.emitted if row.doc else None
        windows = [call.window for call in row.windows]
        now = replay(document.text, doc, windows, self._policy, self._style)
        by_doc = before.status == "dropped" and before.reason == "doc_program"
        chunk = any(stage.level == "chunk" for stage in self._plan.manifest.stages)
        if by_doc and chunk and now.outcome != "dropped":
            now = ReplayResult("quarantined", "", now.rejected, NOT_ASKED)
        return self._row(document, row, before, now), now

    def _row(self, document: Document, row: Row, before: ReplayResult, now: ReplayResult) -> Row:
        return replace(
            row,
            outcome=now.status,
            reason=now.reason,
            bytes_out=len(now.text.encode("utf-8", "surrogatepass")),
            tokens_out=self._tokens(document, row, before, now),
            lines_removed=now.lines_removed,
            strings_replaced=now.strings_replaced,
            rejected=dict(now.rejected),
        )

    def _tokens(self, document: Document, row: Row, before: ReplayResult, now: ReplayResult) -> int:
        if now.text == before.text:
            return row.tokens_out
        if now.text in ("", document.text):
            return row.tokens_in if now.text else 0
        from proxhpc.refine.windows import LineTokens

        window = self._plan.manifest.stages[-1].window_tokens
        return LineTokens(self._tokenizer, document.text, window).of(now.text)

    @cached_property
    def _tokenizer(self) -> "Tokenizer | None":
        """The last stage's, which the workers counted with; None for the rules."""
        model = self._plan.models.get(self._plan.manifest.stages[-1].level)
        if model is None:
            return None
        from proxhpc.engines.tokenizer import HFTokenizer

        return HFTokenizer(model.path)
