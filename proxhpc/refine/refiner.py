"""The refiner: one coroutine per document, from raw text to its ledger row.

It reads like the paper (§2): a doc program decides keep or drop; what is kept is cut into
windows; a chunk program edits each; the row says what came of it.
"""

import asyncio
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, TypeVar

from proxhpc.account.flops import Usage
from proxhpc.corpus.document import Document
from proxhpc.engines import make_engine
from proxhpc.engines.base import LARGE, Engine, EngineDiedError, RequestError
from proxhpc.errors import RetryError, StopError
from proxhpc.program.replay import Emitted, ReplayResult, doc_verdict, replay
from proxhpc.refine.memo import Memo, digest
from proxhpc.refine.pump import IN_FLIGHT_DOCUMENTS, Budget
from proxhpc.refine.stage import MEMO_BYTES, Answer, StageRunner
from proxhpc.refine.walk_stage import make_runner
from proxhpc.refine.windows import LineTokens
from proxhpc.run.ledger import Call, Row, quarantine, text_digest
from proxhpc.run.models import ModelRef
from proxhpc.spec.manifest import Manifest

T = TypeVar("T")
ERRORS_IN_A_ROW = 20  # then it is no matter of single documents


@dataclass(slots=True)
class _Spent:
    """What a document has taken so far: that stays in the account whatever becomes of it."""

    tokens: int = 0
    doc: Call | None = None
    windows: tuple[Call, ...] = ()


class Refiner:
    """Turns documents into ledger rows; any number at a time."""

    def __init__(
        self, manifest: Manifest, doc: StageRunner | None, chunk: StageRunner | None
    ) -> None:
        self.policy = manifest.policy
        self.doc, self.chunk = doc, chunk
        self.style = manifest.chunk_style
        self._last = chunk or doc
        self._copies: Memo[Row] | None = None
        if manifest.dedup.before == "exact":
            self._copies = Memo(MEMO_BYTES, _memory)
        self._room = _room(doc, chunk)
        self._orders = count()
        self._turn = asyncio.Lock()
        self._errors: set[str] = set()

    async def refine(self, document: Document) -> Row:
        """The document's row. What goes wrong with this document alone quarantines it."""
        spent = _Spent()
        try:
            row = await self._row(document, spent)
        except (RetryError, StopError, asyncio.CancelledError):
            raise
        except RequestError as error:
            return _set_aside(document, spent, "request_refused", str(error))
        except (OSError, MemoryError) as error:
            raise EngineDiedError(
                f"this machine cannot go on: {type(error).__name__}: {error}"
            ) from error
        except Exception as error:
            if "can't start new thread" in str(error):
                raise EngineDiedError(f"this machine cannot go on: {error}") from error
            return self._internal(document, spent, error)
        self._errors.clear()
        return row

    def _internal(self, document: Document, spent: _Spent, error: Exception) -> Row:
        """Set aside a document that met a defect of ours, unless nothing else is met any more."""
        self._errors.add(text_digest(document.text))  # copies meet the same
        if len(self._errors) >= ERRORS_IN_A_ROW:
            raise StopError(
                f"{ERRORS_IN_A_ROW} documents in a row met an error within proxhpc or the engine: "
                f"{type(error).__name__}: {error}",
                hint="the worker's log has the traceback; please report it",
            ) from error
        return _set_aside(document, spent, "internal_error", traceback.format_exc())

    @property
    def asked(self) -> dict[str, Usage]:
        """Model work done so far by level, committed or not."""
        stages = (stage for stage in (self.doc, self.chunk) if stage)
        return {stage.stage.level: stage.asked for stage in stages}

    async def close(self) -> None:
        """Close the engines."""
        engines = {id(s.engine): s.engine for s in (self.doc, self.chunk) if s}
        for engine in engines.values():
            await engine.close()

    async def _row(self, document: Document, spent: _Spent) -> Row:
        if self._copies is None:
            return await self._refine(document, spent)
        key = digest(document.text.encode("utf-8", "surrogatepass"))
        row, again = await self._copies.get(key, lambda: self._refine(document, spent))
        return row.copy(document) if again else row

    async def _refine(self, document: Document, spent: _Spent) -> Row:
        order = next(self._orders)
        tokens = await self._off_loop(document, self._count, document.text)
        spent.tokens = tokens.total
        if self._room is None:
            return await self._ask(document, tokens, order, spent)
        await self._room.acquire(tokens.total)
        try:
            return await self._ask(document, tokens, order, spent)
        finally:
            self._room.release(tokens.total)

    async def _ask(self, document: Document, tokens: LineTokens, order: int, spent: _Spent) -> Row:
        text, lines = document.text, tokens.lines
        answers: list[Answer] = []
        verdict: Emitted | None = None
        score: float | None = None
        if self.doc:
            answer = await self.doc.judge(text, lines, order)
            spent.doc = answer.call
            verdict = answer.call.emitted if answer.call else None
            score = answer.score
            answers.append(answer)
        dropped = verdict and doc_verdict(verdict, self.policy).action == "drop"
        if self.chunk and not dropped:
            chunk = self.chunk
            questions = await self._off_loop(document, chunk.questions, lines, tokens.counts, order)
            edits = await asyncio.gather(*map(chunk.edit, questions), return_exceptions=True)
            answered = [edit for edit in edits if isinstance(edit, Answer)]
            spent.windows = tuple(edit.call for edit in answered if edit.call)
            _raise_worst(edits)
            answers += answered
        windows = [call.window for call in spent.windows]
        outcome = await self._aside(
            document, replay, text, verdict, windows, self.policy, self.style
        )
        refined = tokens.total if outcome.text == text else 0
        if outcome.text and outcome.text != text:
            refined = await self._off_loop(document, tokens.of, outcome.text)
        flags = tuple(dict.fromkeys(answer.flag for answer in answers if answer.flag))
        row = _row(document, (spent.doc, spent.windows), outcome, (tokens.total, refined), flags)
        return row if score is None else replace(row, score=score)

    def _count(self, text: str) -> LineTokens:
        if self._last is None:
            return LineTokens(None, text, 0)
        return LineTokens(self._last.engine.tokenizer, text, self._last.window_tokens)

    async def _off_loop(self, document: Document, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function`, in a thread where it tokenises: that would hold up the engine."""
        if self._last is None or self._last.engine.tokenizer is None:
            return await self._aside(document, function, *arguments)
        return await asyncio.to_thread(function, *arguments)

    async def _aside(self, document: Document, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function`, for a large document in a thread, one at a time: Python has but one."""
        if len(document.text) < LARGE:
            return function(*arguments)
        async with self._turn:
            return await asyncio.to_thread(function, *arguments)


async def open_refiner(manifest: Manifest, models: Mapping[str, ModelRef]) -> Refiner:
    """Load the engines of a manifest; stages that share a model share its engine.

    `models` are those of the stages, by level; none for the rules.
    """
    engines: dict[str, Engine] = {}
    runners: dict[str, StageRunner] = {}
    options = manifest.engine
    # Engines side by side on one device share what one would have taken.
    equal = options.gpu_memory_utilization / max(1, len({ref.path for ref in models.values()}))
    try:
        for stage in manifest.stages:
            model = models.get(stage.level)
            key = str(model.path) if model else ""
            if key not in engines:
                share = {"gpu_memory_utilization": stage.gpu_memory_utilization or equal}
                engines[key] = await make_engine(
                    options.model_copy(update=share),
                    model,
                    stepwise=_stepwise(manifest, models, model),
                )
            runners[stage.level] = make_runner(stage, engines[key], manifest.policy)
    except BaseException:
        for engine in engines.values():
            await engine.close()
        raise
    return Refiner(manifest, runners.get("doc"), runners.get("chunk"))


def _room(doc: StageRunner | None, chunk: StageRunner | None) -> Budget | None:
    """A bound on the tokens of documents in flight, where that saves the engine work.

    A window's prompt then finds what it shares with its document's in the cache: not too many
    others came between. Elsewhere a bound would only keep the engine from larger batches.
    """
    if not (doc and chunk and doc.engine is chunk.engine and doc.engine.cache_tokens):
        return None
    if not (doc.shares_prefix and doc.stage.prompt == chunk.stage.prompt):
        return None
    return Budget(IN_FLIGHT_DOCUMENTS, doc.engine.cache_tokens // 2)


def _stepwise(manifest: Manifest, models: Mapping[str, ModelRef], model: ModelRef | None) -> bool:
    """Whether a stage of this model restricts single tokens of its answers."""
    return model is not None and any(
        stage.prompt == "walk" and stage.grammar != "none"
        for stage in manifest.stages
        if models[stage.level].path == model.path
    )


def _raise_worst(results: Sequence[object]) -> None:
    """Raise the error among results, if there is one: first what is not a single request's."""
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, RequestError)):
        raise error


def _set_aside(document: Document, spent: _Spent, reason: str, detail: str) -> Row:
    row = quarantine(document, reason, detail)
    return replace(row, doc=spent.doc, windows=spent.windows, tokens_in=spent.tokens)


def _row(
    document: Document,
    calls: tuple[Call | None, tuple[Call, ...]],
    outcome: ReplayResult,
    tokens: tuple[int, int],
    flags: tuple[str, ...],
) -> Row:
    raw = document.text.encode("utf-8", "surrogatepass")
    return Row(
        id=document.id,
        file=document.file,
        position=document.position,
        outcome=outcome.status,
        reason=outcome.reason,
        digest=text_digest(document.text),
        doc=calls[0],
        windows=calls[1],
        bytes_in=len(raw),
        bytes_out=len(outcome.text.encode("utf-8", "surrogatepass")),
        tokens_in=tokens[0],
        tokens_out=tokens[1],
        lines_removed=outcome.lines_removed,
        strings_replaced=outcome.strings_replaced,
        rejected=dict(outcome.rejected),
        flags=flags,
    )


def _memory(row: Row) -> int:
    """Bytes that a remembered row takes, roughly."""
    calls = [row.doc, *row.windows] if row.doc else list(row.windows)
    return 1000 + sum(400 + len(call.program.encode()) for call in calls)
