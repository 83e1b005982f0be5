"""The refiner: one coroutine per document, from raw text to its ledger row.

It follows the paper (§2): a doc program keeps or drops the document; a kept document is split into
windows, and a chunk program edits each; the row records the outcome.
"""

import asyncio
import traceback
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from typing import Any, TypeVar

from proxhpc.account.flops import Usage
from proxhpc.corpus.document import Document
from proxhpc.engines import make_engine
from proxhpc.engines.base import LARGE_TEXT, Engine, EngineDiedError, RequestError
from proxhpc.engines.device import workers_per_gpu
from proxhpc.errors import RetryError, StopError
from proxhpc.program.replay import ModelOutput, ReplayResult, doc_verdict, replay
from proxhpc.refine.canary import UNUSABLE_FLAG, Canary, why_unusable
from proxhpc.refine.preflight import check_prompts, needed_context
from proxhpc.refine.pump import IN_FLIGHT_DOCUMENTS, Budget
from proxhpc.refine.stage import Answer, StageRunner, off_loop
from proxhpc.refine.walk_stage import make_runner
from proxhpc.refine.windows import LineTokens
from proxhpc.run.ledger import Call, Row, quarantine, text_digest
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import FrozenPrompt
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.sections import Stage

T = TypeVar("T")
MAX_ERRORS_IN_A_ROW = 20  # more are not the documents' fault


@dataclass(slots=True)
class _Spent:
    """Resources a document has used so far; counted whatever its outcome."""

    tokens: int = 0
    doc: Call | None = None
    windows: tuple[Call, ...] = ()
    cuts: tuple[int, ...] = ()
    score: float | None = None
    has_unusable_answer: bool = False
    asked: bool = False  # its last requests are made


class Refiner:
    """Turns documents into ledger rows, many at a time."""

    def __init__(
        self, manifest: Manifest, doc: StageRunner | None, chunk: StageRunner | None
    ) -> None:
        self.policy = manifest.policy
        self.doc, self.chunk = doc, chunk
        self.program_format = manifest.program_format
        self._last_stage = chunk or doc
        self._token_budget = _token_budget(doc, chunk)
        self._orders = count()
        self._large_text_lock = asyncio.Lock()
        self._errors: set[str] = set()
        stages = [runner.stage for runner in (doc, chunk) if runner]
        self.canary = Canary(stages, manifest.engine.max_unusable)
        self.asked_chars = 0  # of the documents in flight whose last requests are made

    async def refine(self, document: Document) -> Row:
        """Return the document's row; an error that concerns only this document quarantines it."""
        spent = _Spent()
        try:
            row = await self._refine(document, spent)
        except (RetryError, StopError, asyncio.CancelledError):
            raise
        except RequestError as error:
            return _quarantine(document, spent, error.reason, str(error))
        except (OSError, MemoryError) as error:
            raise EngineDiedError(
                f"out of resources on this machine: {type(error).__name__}: {error}"
            ) from error
        except Exception as error:
            if "can't start new thread" in str(error):
                raise EngineDiedError(f"out of resources on this machine: {error}") from error
            return self._internal_error(document, spent, error)
        finally:
            self.asked_chars -= len(document.text) * spent.asked
        self._errors.clear()
        return row

    def _internal_error(self, document: Document, spent: _Spent, error: Exception) -> Row:
        """Quarantine a document that met a defect; StopError if many in a row do."""
        self._errors.add(text_digest(document.text))  # the same text counts once
        if len(self._errors) >= MAX_ERRORS_IN_A_ROW:
            raise StopError(
                f"{MAX_ERRORS_IN_A_ROW} documents in a row failed with an internal error of "
                f"proxhpc or the engine: {type(error).__name__}: {error}",
                hint="the worker's log has the traceback; please report it",
            ) from error
        return _quarantine(document, spent, "internal_error", traceback.format_exc())

    @property
    def usage(self) -> dict[str, Usage]:
        """Model work done so far by level, committed or not."""
        stages = (stage for stage in (self.doc, self.chunk) if stage)
        return {stage.stage.level: stage.usage for stage in stages}

    @property
    def pending_tokens(self) -> int:
        """Tokens of prompts that the engines have not answered yet."""
        return sum(stage.pending_tokens for stage in (self.doc, self.chunk) if stage)

    @property
    def min_in_flight(self) -> int:
        """Documents in flight that keep all engines busy."""
        return sum(engine.min_in_flight for engine in self._engines())

    async def close(self) -> None:
        """Close the engines."""
        for engine in self._engines():
            await engine.close()

    def _engines(self) -> list[Engine]:
        return [*{id(s.engine): s.engine for s in (self.doc, self.chunk) if s}.values()]

    async def _refine(self, document: Document, spent: _Spent) -> Row:
        order = next(self._orders)
        tokens = await self._off_loop(document, self._count, document.text)
        spent.tokens = tokens.total
        if self._token_budget is None:
            return await self._ask(document, tokens, order, spent)
        await self._token_budget.acquire(tokens.total)
        try:
            return await self._ask(document, tokens, order, spent)
        finally:
            self._token_budget.release(tokens.total)

    async def _ask(self, document: Document, tokens: LineTokens, order: int, spent: _Spent) -> Row:
        text, lines = document.text, tokens.lines
        answers: list[Answer] = []
        verdict: ModelOutput | None = None
        if self.doc:
            if not self.chunk:
                self._count_asked(document, spent)
            ask = partial(self.doc.ask_verdict, text, lines, order)
            answer = await self._watch(self.doc, ask, order, spent)
            spent.doc = answer.call
            verdict = answer.call.output if answer.call else None
            spent.score = answer.score
            answers.append(answer)
        dropped = verdict and doc_verdict(verdict, self.policy).action == "drop"
        if self.chunk and not dropped:
            requests, spent.cuts = await self._off_loop(
                document, self.chunk.window_requests, lines, tokens.counts, order
            )
            asks = [partial(self.chunk.ask_program, request) for request in requests]
            self._count_asked(document, spent)
            results = await asyncio.gather(
                *(self._watch(self.chunk, ask, order, spent) for ask in asks),
                return_exceptions=True,
            )
            edits = [result for result in results if isinstance(result, Answer)]
            spent.windows = tuple(edit.call for edit in edits if edit.call)
            _raise_worst(results)
            answers += edits
        windows = [call.window for call in spent.windows]
        replayed = await self._in_thread_if_large(
            document,
            replay,
            text,
            verdict,
            windows,
            self.policy,
            self.program_format,
            spent.cuts,
        )
        tokens_out = tokens.total if replayed.text == text else 0
        if replayed.text and replayed.text != text:
            tokens_out = await self._off_loop(document, tokens.count_text, replayed.text)
        flags = tuple(dict.fromkeys(answer.flag for answer in answers if answer.flag))
        if spent.has_unusable_answer:
            flags += (UNUSABLE_FLAG,)
        return _row(document, spent, replayed, tokens_out, flags)

    async def _watch(
        self, runner: StageRunner, ask: Callable[[], Awaitable[Answer]], order: int, spent: _Spent
    ) -> Answer:
        """Return an answer after the canary has counted it, unless it was given before."""
        stage = runner.stage
        try:
            answer = await ask()
        except RequestError as error:
            self.canary.add(stage.level, order, error.reason, error.message)
            raise
        if call := answer.call:
            reason = why_unusable(stage, call, self.policy, self.program_format)
            spent.has_unusable_answer |= bool(reason)
            if not call.from_memo:
                self.canary.add(stage.level, order, reason, call.program)
        return answer

    def _count_asked(self, document: Document, spent: _Spent) -> None:
        spent.asked = True
        self.asked_chars += len(document.text)

    def _count(self, text: str) -> LineTokens:
        if self._last_stage is None:
            return LineTokens(None, text, 0)
        return LineTokens(self._last_stage.engine.tokenizer, text, self._last_stage.window_tokens)

    async def _off_loop(self, document: Document, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function`, which tokenizes unless the engine has no tokenizer."""
        if self._last_stage is None or self._last_stage.engine.tokenizer is None:
            return await self._in_thread_if_large(document, function, *arguments)
        return await off_loop(len(document.text), function, *arguments)

    async def _in_thread_if_large(
        self, document: Document, function: Callable[..., T], *arguments: Any
    ) -> T:
        """Run `function`, for a large document in a thread, one at a time because of the GIL."""
        if len(document.text) < LARGE_TEXT:
            return function(*arguments)
        async with self._large_text_lock:
            return await asyncio.to_thread(function, *arguments)


async def open_refiner(
    manifest: Manifest,
    models: Mapping[str, ModelRef],
    prompts: Mapping[str, FrozenPrompt] | None = None,
) -> Refiner:
    """Load the engines of a manifest; stages with the same model and settings share an engine.

    `models` are those of the stages, by level; none for the rules. `prompts` are those that a plan
    has frozen. Without `engine.max_model_len`, an engine's context is what its stages need.
    """
    engines: dict[str, Engine] = {}
    runners: dict[str, StageRunner] = {}
    keys = {stage.level: _engine_key(manifest, stage, models) for stage in manifest.stages}
    parts = len({*keys.values()}) * workers_per_gpu()
    share = manifest.engine.gpu_memory_utilization / parts
    try:
        for stage in manifest.stages:
            model = models.get(stage.level)
            key = keys[stage.level]
            if key not in engines:
                options = manifest.engine_of(stage)
                options = options.model_copy(update={"gpu_memory_utilization": share})
                stepwise = _stepwise(manifest, models, model)
                if model and options.max_model_len is None:
                    context = needed_context(manifest, models, model.path)
                    options = options.model_copy(update={"max_model_len": context})
                engines[key] = await make_engine(options, model, stepwise=stepwise)
            runners[stage.level] = make_runner(stage, engines[key], manifest.policy)
    except BaseException:
        for engine in engines.values():
            await engine.close()
        raise
    check_prompts(runners, prompts or {})
    return Refiner(manifest, runners.get("doc"), runners.get("chunk"))


def _engine_key(manifest: Manifest, stage: Stage, models: Mapping[str, ModelRef]) -> str:
    """Return what stages must have in common to share an engine."""
    model = models.get(stage.level)
    return f"{model.path if model else ''}\0{manifest.engine_of(stage).model_dump_json()}"


def _token_budget(doc: StageRunner | None, chunk: StageRunner | None) -> Budget | None:
    """Return a bound on the tokens of documents in flight, if it saves the engine work.

    With it, the cache still holds a document's prompt when its windows are asked about. Otherwise
    None: a bound would only make batches smaller.
    """
    if not (doc and chunk and doc.engine is chunk.engine and doc.engine.cache_tokens):
        return None
    if not (doc.shares_prefix and doc.stage.prompt == chunk.stage.prompt):
        return None
    return Budget(IN_FLIGHT_DOCUMENTS, doc.engine.cache_tokens // 2)


def _stepwise(manifest: Manifest, models: Mapping[str, ModelRef], model: ModelRef | None) -> bool:
    """Return whether a stage of this model restricts single tokens of its answers."""
    return model is not None and any(
        stage.prompt == "walk" and stage.grammar != "none"
        for stage in manifest.stages
        if models[stage.level].path == model.path
    )


def _raise_worst(results: Sequence[object]) -> None:
    """Raise an error among results, if any; one that concerns more than its request comes first."""
    errors = [result for result in results if isinstance(result, BaseException)]
    for error in sorted(errors, key=lambda error: isinstance(error, RequestError)):
        raise error


def _quarantine(document: Document, spent: _Spent, reason: str, detail: str) -> Row:
    row = quarantine(document, reason, detail)
    return replace(
        row, doc=spent.doc, windows=spent.windows, cuts=spent.cuts, tokens_in=spent.tokens
    )


def _row(
    document: Document,
    spent: _Spent,
    replayed: ReplayResult,
    tokens_out: int,
    flags: tuple[str, ...],
) -> Row:
    raw = document.text.encode("utf-8", "surrogatepass")
    return Row(
        id=document.id,
        file=document.file,
        position=document.position,
        outcome=replayed.outcome,
        reason=replayed.reason,
        digest=text_digest(document.text),
        doc=spent.doc,
        windows=spent.windows,
        bytes_in=len(raw),
        bytes_out=len(replayed.text.encode("utf-8", "surrogatepass")),
        tokens_in=spent.tokens,
        tokens_out=tokens_out,
        lines_removed=replayed.lines_removed,
        strings_replaced=replayed.strings_replaced,
        rejected=dict(replayed.rejected),
        lenient=dict(replayed.lenient),
        flags=flags,
        cuts=spent.cuts,
        score=spent.score,
    )
