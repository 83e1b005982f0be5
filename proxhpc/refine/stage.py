"""One stage on its engine: what it asks about a document, and the calls that result."""

import asyncio
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from proxhpc.account.flops import Usage
from proxhpc.engines.base import Completion, Engine, Request, Tokenizer
from proxhpc.program.grammar import DOC_GRAMMAR, chunk_grammar
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.syntax import FIRST_LINE, last_calls
from proxhpc.refine.memo import Memo, memo_key
from proxhpc.refine.pages import PageReader, TextPage, plain_page
from proxhpc.refine.prompts import Prompts, ReadVerdict
from proxhpc.refine.windows import Limits, Window, make_window, pack
from proxhpc.run.ledger import Call
from proxhpc.spec.sections import Stage

T = TypeVar("T")
SPARE_TOKENS = 64  # by which a window's prompt may exceed the sum of its lines' tokens
SHORT_TEXT = 16_384  # characters, which take some milliseconds: a thread costs more than it saves
MEMO_BYTES = 16 * 1024 * 1024  # about 40,000 answers
# The token limit of a program has room for a call for every second token of the window, for quoting
# the window several times, and for what models write around programs: fences, comments, thoughts.
_CALL = 'normalize(source_str="", target_str="")\n'
_TOKENS_PER_CALL, _QUOTATIONS, _EXTRA_TOKENS = 2, 4, 128


@dataclass(frozen=True, slots=True)
class Answer:
    """The call that a request became, a flag for its document, and the engine's score."""

    call: Call | None
    flag: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class WindowRequest:
    """A window and its request; None if the model is not asked, with a flag if that is unusual."""

    window: Window
    request: Request | None = None
    flag: str = ""


class PageRequests(NamedTuple):
    """The requests for the windows of a document, and where long lines were split."""

    windows: list[WindowRequest]
    cuts: tuple[int, ...] = ()


async def off_loop(chars: int, function: Callable[..., T], *arguments: Any) -> T:
    """Run a function that tokenizes; in a thread if so many characters would block the engine."""
    if chars <= SHORT_TEXT:
        return function(*arguments)
    return await asyncio.to_thread(function, *arguments)


@lru_cache(maxsize=256)  # the windows of a stage have few different ones
def _encode_limits(*limits: Any) -> bytes:
    """Return what an answer depends on beside its prompt, as bytes."""
    return repr(limits).encode()


class StageRunner:
    """One stage of the manifest on its engine.

    With `scored`, verdicts have a score, if the style is `walk`. Runs do not use it, and it costs
    vLLM some time. `shares_prefix` is that of the prompts.
    """

    scored = False
    shares_prefix = False

    def __init__(self, stage: Stage, engine: Engine, policy: AnyPolicy) -> None:
        self.stage, self.engine, self.policy = stage, engine, policy
        self.budget = min(
            stage.max_prompt_tokens or engine.max_model_len,
            engine.max_model_len - stage.max_new_tokens,
        )
        self.window_tokens = stage.window_tokens
        # The public code reads answers to their end, also to blank windows; so replication does.
        self._stop = () if policy == "reference" else last_calls(stage.level, stage.dialect)
        self._asks_about_blank = policy == "reference" and stage.blank_lines == "numbered"
        self._memo: Memo[Completion] = Memo(MEMO_BYTES, lambda done: len(done.text.encode()))
        self._reader: PageReader | None = None
        self._read_verdict: ReadVerdict | None = None
        self.usage = Usage()  # of everything that the engine answered, committed or not
        self.pending_tokens = 0  # of prompts that the engine has not answered yet
        self.frame: tuple[int, ...] = ()  # the ids of an empty prompt
        self.context = engine.max_model_len  # tokens of the longest prompt with its answer
        if engine.tokenizer:
            self._prepare(engine.tokenizer)

    def _prepare(self, tokenizer: Tokenizer) -> None:
        """Prepare to ask a model; UserError if the profile's prompts are not possible."""
        self.prompts = Prompts.of_stage(self.stage)
        self.shares_prefix = self.prompts.shares_prefix
        if self.policy != "reference":
            self._stop += self.prompts.stop
        if self.stage.level == "chunk":
            self.frame = tuple(self.prompts.chunk_prompt(tokenizer, (), 0))
            limit = self.prompts.max_window_tokens(tokenizer, self.budget)
            self.window_tokens = min(self.stage.window_tokens, limit)
            exact = self.policy == "reference"
            self._reader = PageReader(
                self.stage, self._limits, self.prompts, tokenizer, exact=exact
            )
            if not exact:
                self._needs(len(self.frame) + self.window_tokens + SPARE_TOKENS)
        else:
            self.frame = tuple(self.prompts.full_doc_prompt(tokenizer, ""))
            self.prompts.check(tokenizer, self.budget)
            self._needs(self.budget)
            self._read_verdict = self.prompts.verdict
        (self._call_tokens,) = tokenizer.count([_CALL])

    def _needs(self, prompt: int) -> None:
        self.context = min(prompt, self.budget) + self.stage.max_new_tokens

    async def ask_verdict(self, text: str, lines: Sequence[str], order: int = 0) -> Answer:
        """Ask whether to keep the document; flagged if the model saw only its start.

        Documents of lower `order` are finished first.
        """
        prompt: Sequence[int] = ()
        truncated = False
        if tokenizer := self.engine.tokenizer:
            prompt, truncated = await off_loop(
                len(text), self.prompts.doc_prompt, tokenizer, text, self.budget
            )
        grammar = DOC_GRAMMAR if self.stage.grammar != "none" else None
        limit = self.stage.max_new_tokens
        request = Request("doc", prompt, lines, 0, limit, self._stop, grammar, order)
        return await self._answer(0, len(lines), request, "truncated" if truncated else "")

    @property
    def _limits(self) -> Limits:
        stage = self.stage
        return Limits(
            self.window_tokens, stage.window_lines, stage.window_chars, stage.window_overlap
        )

    def window_requests(
        self, lines: Sequence[str], counts: Sequence[int], order: int = 0
    ) -> PageRequests:
        """Return the requests for consecutive windows; `counts` are the tokens of the lines."""
        limits = self._limits
        if self._reader:
            page = self._reader.read(lines, counts)
        else:  # without a model no line is too long
            page = plain_page(self.stage, lines, counts)
            chars = limits.chars and max(limits.chars, *page.chars)
            limits = replace(limits, tokens=max(limits.tokens, *page.tokens), chars=chars)
        windows = pack(page.lines, page.tokens, limits, page.chars)
        requests = [item for window in windows for item in self._requests(page, window, order)]
        return PageRequests(requests, page.cuts)

    def _requests(self, page: TextPage, window: Window, order: int) -> Iterator[WindowRequest]:
        """Yield the request for a window, or for parts of it if its prompt turns out too long."""
        if window.blank and not self._asks_about_blank:
            yield WindowRequest(window)
            return
        request = self._request(page, window, order)
        start, stop = window.start, window.stop
        if len(request.prompt) <= self.budget:
            yield WindowRequest(window, request)
        elif stop - start == 1 and not window.overlap:
            yield WindowRequest(window, flag="line_too_long")
        else:
            middle = stop if window.overlap else (start + stop) // 2
            for low, high in pairwise(sorted({start, middle, stop})):
                part = make_window(page.lines, page.tokens, low, high)
                yield from self._requests(page, part, order)

    def _request(self, page: TextPage, window: Window, order: int) -> Request:
        lines = page.shown(window.first_shown, window.stop)
        first = self._number(page, window, window.first_shown)
        prompt: Sequence[int] = ()
        if tokenizer := self.engine.tokenizer:
            prompt = array("I", self.prompts.chunk_prompt(tokenizer, lines, first))
        limit, grammar = self._max_new_tokens(window), self._grammar(page, window)
        # A program may quote the window, which must not end it.
        text = "\n".join(lines)
        stop = tuple(string for string in self._stop if string not in text)
        end_loops = self.policy != "reference" and grammar is None
        return Request("chunk", prompt, lines, first, limit, stop, grammar, order, end_loops)

    def _number(self, page: TextPage, window: Window, line: int) -> int:
        restart = page.numbers[window.first_shown] if self.stage.numbering == "window" else 0
        return FIRST_LINE[self.stage.dialect] + page.numbers[line] - restart

    async def ask_program(self, item: WindowRequest) -> Answer:
        """Ask for the program of a window, unless the model must not be asked about it."""
        if item.request is None:
            return Answer(None, item.flag)
        window = item.window
        answer = await self._answer(window.start, window.stop, item.request)
        if answer.call is None or not window.overlap:
            return answer
        shown = window.first_shown, window.stop
        return replace(answer, call=answer.call._replace(shown=shown))

    def _max_new_tokens(self, window: Window) -> int:
        """Return the token limit of a window's program, so that nonsense ends early."""
        if self.engine.tokenizer is None:
            return self.stage.max_new_tokens
        calls = -(-window.tokens // _TOKENS_PER_CALL)
        limit = _EXTRA_TOKENS + calls * self._call_tokens + window.tokens * _QUOTATIONS
        return min(self.stage.max_new_tokens, limit)

    def _grammar(self, page: TextPage, window: Window) -> str | None:
        """Return the grammar of programs that edit the window's own lines."""
        if self.stage.grammar == "none":
            return None
        lines = page.shown(window.start, window.stop)
        first = self._number(page, window, window.start)
        text = lines if self.stage.grammar == "strings" else ()
        policy = self.policy if isinstance(self.policy, Policy) else None
        last = first + len(lines) - 1
        return chunk_grammar(self.stage.dialect, first, last, lines=text, policy=policy)

    async def _answer(self, start: int, stop: int, request: Request, flag: str = "") -> Answer:
        if not request.prompt:
            done, from_memo = await self.engine.complete(request), False
        else:
            # Equal prompts may differ in which answers are allowed.
            limits = request.max_new_tokens, request.stop, request.grammar
            rest = _encode_limits(*limits, request.steps, request.bias, request.odds)
            key = memo_key(array("I", request.prompt).tobytes(), rest)
            done, from_memo = await self._memo.get(key, lambda: self._complete(request))
        tokens = done.prompt_tokens, done.cached_tokens, done.new_tokens
        call = Call(start, stop, self._program(done), done.finish, *tokens, from_memo, done.work)
        return Answer(call, flag or ("looped" if done.finish == "loop" else ""), done.score)

    def _program(self, done: Completion) -> str:
        if self._read_verdict is None:
            return done.text
        return self._read_verdict(done.text, done.finish != "stop")

    async def _complete(self, request: Request) -> Completion:
        self.pending_tokens += len(request.prompt)
        try:
            done = await self.engine.complete(request)
        finally:
            self.pending_tokens -= len(request.prompt)
        tokens = done.prompt_tokens, done.cached_tokens, done.new_tokens
        self.usage += Usage.of_request(*tokens, done.work)
        return done
