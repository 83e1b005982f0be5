"""One stage on its engine: what it asks about a document, and the calls that result."""

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxhpc.account.flops import Usage
from proxhpc.engines.base import Completion, Engine, Request, Tokenizer
from proxhpc.program.grammar import DOC_GRAMMAR, chunk_grammar
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.syntax import FIRST_LINE, NO_EDIT, VERDICTS
from proxhpc.refine.memo import Memo, memo_key
from proxhpc.refine.prompts import Prompts, ReadVerdict
from proxhpc.refine.windows import Window, make_window, pack
from proxhpc.run.ledger import Call
from proxhpc.spec.sections import Stage

MEMO_BYTES = 16 * 1024 * 1024  # about 40,000 answers
_EXTRA_CALLS = 2  # in a window's token limit, beside one call for every second line
_LONG_CALL = "remove_lines(start=1000, end=1000)\n"


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
        # The public code reads answers to their end, so replication does, too.
        last = VERDICTS if stage.level == "doc" else NO_EDIT
        self._stop = () if policy == "reference" else tuple(f"{name}()" for name in last)
        self._memo: Memo[Completion] = Memo(MEMO_BYTES, lambda done: len(done.text.encode()))
        self._number_tokens: dict[int, int] = {}  # by number of digits
        self._read_verdict: ReadVerdict | None = None
        self.usage = Usage()  # of everything that the engine answered, committed or not
        if engine.tokenizer:
            self._prepare(engine.tokenizer)

    def _prepare(self, tokenizer: Tokenizer) -> None:
        """Prepare to ask a model; UserError if the profile's prompts are not possible."""
        self.prompts = Prompts.of_stage(self.stage)
        self.shares_prefix = self.prompts.shares_prefix
        if self.policy != "reference":
            self._stop += self.prompts.stop
        if self.stage.level == "chunk":
            limit = self.prompts.max_window_tokens(tokenizer, self.budget)
            self.window_tokens = min(self.stage.window_tokens, limit)
        else:
            self.prompts.check(tokenizer, self.budget)
            self._read_verdict = self.prompts.verdict
        (self._call_tokens,) = tokenizer.count([_LONG_CALL])

    async def ask_verdict(self, text: str, lines: Sequence[str], order: int = 0) -> Answer:
        """Ask whether to keep the document; flagged if the model saw only its start.

        Documents of lower `order` are finished first.
        """
        prompt: Sequence[int] = ()
        truncated = False
        if tokenizer := self.engine.tokenizer:
            prompt, truncated = await asyncio.to_thread(
                self.prompts.doc_prompt, tokenizer, text, self.budget
            )
        grammar = DOC_GRAMMAR if self.stage.grammar != "none" else None
        limit = self.stage.max_new_tokens
        request = Request("doc", prompt, lines, 0, limit, self._stop, grammar, order)
        return await self._answer(0, len(lines), request, "truncated" if truncated else "")

    def window_requests(
        self, lines: Sequence[str], counts: Sequence[int], order: int = 0
    ) -> list[WindowRequest]:
        """Return the requests for consecutive windows; `counts` are the tokens of the lines."""
        if self.engine.tokenizer is None:
            # Without a model no line is too long: the budget is at least that of the longest.
            budget = max(self.window_tokens, max(counts, default=0) + 1)
            windows = pack(lines, counts, budget, self.stage.window_lines)
            return [
                WindowRequest(w, None if w.blank else self._request(lines, w, (), order))
                for w in windows
            ]
        # Numbers that restart in each window are counted as if they had three digits.
        restart = self.stage.numbering == "window"
        costs = [
            count + self._count_number(100 if restart else number)
            for number, count in enumerate(counts)
        ]
        return [
            request
            for window in pack(lines, costs, self.window_tokens, self.stage.window_lines)
            for request in self._split(self.engine.tokenizer, lines, costs, window, order)
        ]

    def _split(
        self,
        tokenizer: Tokenizer,
        lines: Sequence[str],
        costs: Sequence[int],
        window: Window,
        order: int,
    ) -> Iterator[WindowRequest]:
        """Yield the request for a window, or for its halves if its prompt turns out too long."""
        start, stop = window.start, window.stop
        if window.blank or window.too_long:
            yield WindowRequest(window, flag="line_too_long" if window.too_long else "")
            return
        prompt = self.prompts.chunk_prompt(tokenizer, lines[start:stop], self._first_number(window))
        if len(prompt) <= self.budget:
            yield WindowRequest(window, self._request(lines, window, array("I", prompt), order))
        elif stop - start == 1:
            yield WindowRequest(window, flag="line_too_long")
        else:
            middle = (start + stop) // 2
            for low, high in ((start, middle), (middle, stop)):
                half = make_window(lines, costs, low, high, self.window_tokens)
                yield from self._split(tokenizer, lines, costs, half, order)

    def _request(
        self, lines: Sequence[str], window: Window, prompt: Sequence[int], order: int
    ) -> Request:
        window_lines = lines[window.start : window.stop]
        first = self._first_number(window)
        limit, grammar = self._max_new_tokens(window), self._grammar(window_lines, first)
        # A program may quote the window, which must not end it.
        text = "\n".join(window_lines)
        stop = tuple(string for string in self._stop if string not in text)
        end_loops = self.policy != "reference"
        return Request("chunk", prompt, window_lines, first, limit, stop, grammar, order, end_loops)

    def _count_number(self, number: int) -> int:
        digits = len(str(number))
        if digits not in self._number_tokens and self.engine.tokenizer:
            (count,) = self.engine.tokenizer.count([self.prompts.number(number)])
            self._number_tokens[digits] = count
        return self._number_tokens[digits]

    def _first_number(self, window: Window) -> int:
        """Return the number of the window's first line."""
        start = window.start if self.stage.numbering == "document" else 0
        return FIRST_LINE[self.stage.dialect] + start

    async def ask_program(self, item: WindowRequest) -> Answer:
        """Ask for the program of a window, unless the model must not be asked about it."""
        if item.request is None:
            return Answer(None, item.flag)
        window = item.window
        return await self._answer(window.start, window.stop, item.request)

    def _max_new_tokens(self, window: Window) -> int:
        """Return the token limit of a window's program.

        It leaves room to remove every second line, which is the most ranges there can be, and to
        quote the window once. It stops endless repetition early but never truncates a useful
        program.
        """
        if self.engine.tokenizer is None:
            return self.stage.max_new_tokens
        ranges = (window.stop - window.start + 1) // 2
        limit = (ranges + _EXTRA_CALLS) * self._call_tokens + window.tokens
        return min(self.stage.max_new_tokens, limit)

    def _grammar(self, window_lines: Sequence[str], first: int) -> str | None:
        if self.stage.grammar == "none":
            return None
        text = window_lines if self.stage.grammar == "strings" else ()
        policy = self.policy if isinstance(self.policy, Policy) else None
        last = first + len(window_lines) - 1
        return chunk_grammar(self.stage.dialect, first, last, lines=text, policy=policy)

    async def _answer(self, start: int, stop: int, request: Request, flag: str = "") -> Answer:
        """Return the engine's answer, or the stored one to the same request."""
        if not request.prompt:
            done, from_memo = await self.engine.complete(request), False
        else:
            # Equal prompts may differ in which answers are allowed.
            limits = request.max_new_tokens, request.stop, request.grammar
            rest = repr((*limits, request.steps, request.bias, request.odds))
            key = memo_key(array("I", request.prompt).tobytes(), rest.encode())
            done, from_memo = await self._memo.get(key, lambda: self._complete(request))
        tokens = done.prompt_tokens, done.cached_tokens, done.new_tokens
        call = Call(start, stop, self._program(done), done.finish, *tokens, from_memo, done.work)
        return Answer(call, flag or ("looped" if done.finish == "loop" else ""), done.score)

    def _program(self, done: Completion) -> str:
        """Return the program in an answer, which is all of it for most profiles."""
        if self._read_verdict is None:
            return done.text
        return self._read_verdict(done.text, done.finish != "stop")

    async def _complete(self, request: Request) -> Completion:
        done = await self.engine.complete(request)
        tokens = done.prompt_tokens, done.cached_tokens, done.new_tokens
        self.usage += Usage.of_request(*tokens, done.work)
        return done
