"""The refiner: one coroutine per document, from raw text to its ledger row.

It reads like the paper (§2): a doc program decides keep or drop; what is kept is cut into
windows; a chunk program edits each; the row says what came of it.
"""

import asyncio
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from proxhpc.corpus.document import Document
from proxhpc.errors import RetryError, StopError
from proxhpc.manifest import Manifest, Stage
from proxhpc.models import ModelRef
from proxhpc.plan import BYTES_PER_TOKEN
from proxhpc.program.replay import Emitted, Outcome, Style, doc_verdict, replay
from proxhpc.refine.engines import make_engine
from proxhpc.refine.engines.base import Completion, Engine, Request, RequestError, Tokenizer
from proxhpc.refine.ledger import Call, Row, set_aside, text_digest
from proxhpc.refine.prompts import prompt_style
from proxhpc.refine.windows import Window, cut_windows, pack

T = TypeVar("T")
ERRORS_IN_A_ROW = 20  # then it is no matter of single documents


@dataclass(frozen=True, slots=True)
class Answer:
    """The call that a request became, and how its document was flagged on the way."""

    call: Call | None
    flag: str = ""


class StageRunner:
    """One stage of the manifest on its engine."""

    def __init__(self, stage: Stage, engine: Engine) -> None:
        self.stage, self.engine = stage, engine
        self.prompt = prompt_style(stage.prompt)
        self.budget = min(
            stage.max_prompt_tokens or engine.max_model_len,
            engine.max_model_len - stage.max_new_tokens,
        )
        self.window_tokens = stage.window_tokens
        if engine.tokenizer:
            self.prompt.check(engine.tokenizer, self.budget)
            if stage.level == "chunk":
                room = self.budget - self.prompt.chunk_overhead(engine.tokenizer)
                self.window_tokens = min(stage.window_tokens, room)

    async def judge(self, text: str, lines: Sequence[str]) -> Answer:
        """Ask whether to keep the document; flagged when the model saw only its start."""
        prompt: list[int] = []
        truncated = False
        if tokenizer := self.engine.tokenizer:
            prompt, truncated = await asyncio.to_thread(
                self.prompt.doc_prompt, tokenizer, text, self.budget
            )
        completion = await self._complete(prompt, lines, 0)
        return Answer(_call(0, len(lines), completion), "truncated" if truncated else "")

    async def edit(self, lines: Sequence[str], window: Window) -> Answer:
        """Ask for the program of one window; none for a window that must not be sent."""
        if window.blank:
            return Answer(None)
        if window.too_long:
            return Answer(None, "line_too_long")
        own = lines[window.start : window.stop]
        first = window.start if self.stage.numbering == "document" else 0
        prompt: list[int] = []
        if tokenizer := self.engine.tokenizer:
            prompt = self.prompt.chunk_prompt(tokenizer, own, first)
            if len(prompt) > self.budget:
                return Answer(None, "window_too_long")
        completion = await self._complete(prompt, own, first)
        return Answer(_call(window.start, window.stop, completion))

    def windows(self, lines: Sequence[str]) -> list[Window]:
        """Windows that tile the document."""
        if tokenizer := self.engine.tokenizer:
            return cut_windows(tokenizer, lines, self.window_tokens, self.stage.numbering)
        counts = [_estimate(line) for line in lines]
        # Without a model nothing can be too long: each line is a window of its own at most.
        return pack(lines, counts, max(self.window_tokens, max(counts, default=0) + 1))

    async def _complete(
        self, prompt: Sequence[int], lines: Sequence[str], first: int
    ) -> Completion:
        stage = self.stage
        return await self.engine.complete(
            Request(stage.level, prompt, lines, first, stage.max_new_tokens)
        )


class Refiner:
    """Turns documents into ledger rows; any number at a time."""

    def __init__(
        self, manifest: Manifest, doc: StageRunner | None, chunk: StageRunner | None
    ) -> None:
        self.policy = manifest.policy
        self.doc, self.chunk = doc, chunk
        last = chunk or doc
        self.tokenizer = last.engine.tokenizer if last else None
        self.style = chunk_style(manifest)
        self._errors = 0

    async def refine(self, document: Document) -> Row:
        """The document's row. What goes wrong with this document alone quarantines it."""
        try:
            row = await self._refine(document)
        except (RetryError, StopError, asyncio.CancelledError):
            raise
        except RequestError as error:
            return set_aside(document, "request_refused", str(error))
        except (OSError, MemoryError) as error:
            raise RetryError(
                f"this machine cannot go on: {type(error).__name__}: {error}"
            ) from error
        except Exception as error:
            if "can't start new thread" in str(error):
                raise RetryError(f"this machine cannot go on: {error}") from error
            return self._internal(document, error)
        self._errors = 0
        return row

    def _internal(self, document: Document, error: Exception) -> Row:
        """Set aside a document that met a defect of ours, unless nothing else is met any more."""
        self._errors += 1
        if self._errors >= ERRORS_IN_A_ROW:
            raise StopError(
                f"{self._errors} documents in a row met an error within proxhpc or the engine: "
                f"{type(error).__name__}: {error}",
                hint="the worker's log has the traceback; please report it",
            ) from error
        return set_aside(document, "internal_error", traceback.format_exc())

    async def close(self) -> None:
        """Close the engines."""
        engines = {id(s.engine): s.engine for s in (self.doc, self.chunk) if s}
        for engine in engines.values():
            await engine.close()

    async def _refine(self, document: Document) -> Row:
        text, lines = document.text, document.text.split("\n")
        answers: list[Answer] = []
        verdict: Emitted | None = None
        doc_call: Call | None = None
        if self.doc:
            answer = await self.doc.judge(text, lines)
            doc_call = answer.call
            verdict = doc_call.emitted if doc_call else None
            answers.append(answer)
        dropped = verdict and doc_verdict(verdict, self.policy).action == "drop"
        calls: tuple[Call, ...] = ()
        if self.chunk and not dropped:
            chunk = self.chunk
            windows = await self._off_loop(chunk.windows, lines)
            edits = await asyncio.gather(*(chunk.edit(lines, window) for window in windows))
            calls = tuple(edit.call for edit in edits if edit.call)
            answers += edits
        outcome = replay(text, verdict, [c.window for c in calls], self.policy, self.style)
        tokens = await self._off_loop(_tokens, self.tokenizer, text, outcome)
        flags = tuple(dict.fromkeys(answer.flag for answer in answers if answer.flag))
        return _row(document, (doc_call, calls), outcome, tokens, flags)

    async def _off_loop(self, function: Callable[..., T], *arguments: Any) -> T:
        """Run `function`, in a thread where it tokenises: that would hold up the engine."""
        if self.tokenizer is None:
            return function(*arguments)
        return await asyncio.to_thread(function, *arguments)


def chunk_style(manifest: Manifest) -> Style:
    """How this run's chunk programs are to be read."""
    for stage in manifest.stages:
        if stage.level == "chunk":
            return Style(stage.dialect, stage.numbering)
    return Style()


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
                engines[key] = await make_engine(options.model_copy(update=share), model)
            runners[stage.level] = StageRunner(stage, engines[key])
    except BaseException:
        for engine in engines.values():
            await engine.close()
        raise
    return Refiner(manifest, runners.get("doc"), runners.get("chunk"))


def _call(start: int, stop: int, done: Completion) -> Call:
    return Call(
        start,
        stop,
        done.text,
        done.finish,
        done.prompt_tokens,
        done.cached_tokens,
        done.new_tokens,
    )


def _row(
    document: Document,
    calls: tuple[Call | None, tuple[Call, ...]],
    outcome: Outcome,
    tokens: tuple[int, int],
    flags: tuple[str, ...],
) -> Row:
    raw = document.text.encode("utf-8", "surrogatepass")
    return Row(
        id=document.id,
        file=document.file,
        position=document.position,
        status=outcome.status,
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


def _tokens(tokenizer: Tokenizer | None, text: str, outcome: Outcome) -> tuple[int, int]:
    """Tokens of the raw and of the refined text, each counted line by line."""
    before = _count(tokenizer, text)
    if outcome.status == "kept":
        return before, before
    return before, _count(tokenizer, outcome.text) if outcome.text else 0


def _count(tokenizer: Tokenizer | None, text: str) -> int:
    if tokenizer is None:
        return _estimate(text)
    lines = text.split("\n")
    return sum(tokenizer.count(lines)) + len(lines) - 1


def _estimate(text: str) -> int:
    return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)
