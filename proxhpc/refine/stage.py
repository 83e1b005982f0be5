"""One stage on its engine: what is asked about a document, and how it is answered."""

import asyncio
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxhpc.account.flops import Usage
from proxhpc.engines.base import Completion, Engine, Request, Tokenizer
from proxhpc.program.grammar import DOC_GRAMMAR, chunk_grammar
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.syntax import FIRST_LINE, NO_EDIT, VERDICTS
from proxhpc.refine.memo import Memo, digest
from proxhpc.refine.prompts import ReadVerdict, prompt_style
from proxhpc.refine.windows import Window, make_window, pack
from proxhpc.run.ledger import Call
from proxhpc.spec.manifest import Stage

MEMO_BYTES = 16 * 1024 * 1024  # some 40,000 answers
SPARE_CALLS = 2  # that a window's cap allows beside one for every second line
_CALL = "remove_lines(start=1000, end=1000)\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """The call that a request became, how its document was flagged, and the engine's score."""

    call: Call | None
    flag: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """A window and the request that asks about it; `flag` says why there must be none."""

    window: Window
    request: Request | None = None
    flag: str = ""


class StageRunner:
    """One stage of the manifest on its engine.

    `scored`: verdicts are asked for with their score, where the style has one. vLLM has a little
    more to do for that, and runs have no use for it. `alike`: as the prompt style says.
    """

    scored = False
    alike = False

    def __init__(self, stage: Stage, engine: Engine, policy: AnyPolicy) -> None:
        self.stage, self.engine, self.policy = stage, engine, policy
        self.budget = min(
            stage.max_prompt_tokens or engine.max_model_len,
            engine.max_model_len - stage.max_new_tokens,
        )
        self.window_tokens = stage.window_tokens
        # For replication of the public code its answers are read to their end, like there.
        last = VERDICTS if stage.level == "doc" else NO_EDIT
        self._stop = () if policy == "reference" else tuple(f"{name}()" for name in last)
        self._memo: Memo[Completion] = Memo(MEMO_BYTES, lambda done: len(done.text.encode()))
        self._number_costs: dict[int, int] = {}
        self._verdict: ReadVerdict | None = None
        self.asked = Usage()  # of all that the engine answered, whatever became of it
        if engine.tokenizer:
            self._prepare(engine.tokenizer)

    def _prepare(self, tokenizer: Tokenizer) -> None:
        """Get ready to ask a model. UserError where prompts of this style cannot be."""
        self.style = prompt_style(self.stage.prompt)
        self.shares_prefix = self.style.shares_prefix
        if self.stage.level == "chunk":
            room = self.style.chunk_room(tokenizer, self.budget)
            self.window_tokens = min(self.stage.window_tokens, room)
        else:
            self.style.check(tokenizer, self.budget)
            self._verdict = self.style.verdict
        (self._call_tokens,) = tokenizer.count([_CALL])

    async def judge(self, text: str, lines: Sequence[str], order: int = 0) -> Answer:
        """Ask whether to keep the document; flagged when the model saw only its start.

        Documents of lower `order` are to be done with first.
        """
        prompt: Sequence[int] = ()
        truncated = False
        if tokenizer := self.engine.tokenizer:
            prompt, truncated = await asyncio.to_thread(
                self.style.doc_prompt, tokenizer, text, self.budget
            )
        grammar = DOC_GRAMMAR if self.stage.grammar != "none" else None
        limit = self.stage.max_new_tokens
        request = Request("doc", prompt, lines, 0, limit, self._stop, grammar, order)
        return await self._answer(0, len(lines), request, "truncated" if truncated else "")

    def questions(
        self, lines: Sequence[str], counts: Sequence[int], order: int = 0
    ) -> list[Question]:
        """What to ask about windows that tile the document; `counts` are the lines' tokens."""
        if self.engine.tokenizer is None:
            # Without a model nothing can be too long: each line is a window of its own at most.
            budget = max(self.window_tokens, max(counts, default=0) + 1)
            windows = pack(lines, counts, budget, self.stage.window_lines)
            return [
                Question(w, None if w.blank else self._edit(lines, w, (), order)) for w in windows
            ]
        # Where numbers restart in each window, they are taken to have three digits.
        restart = self.stage.numbering == "window"
        costs = [
            count + self._number_cost(100 if restart else number)
            for number, count in enumerate(counts)
        ]
        return [
            question
            for window in pack(lines, costs, self.window_tokens, self.stage.window_lines)
            for question in self._ask(self.engine.tokenizer, lines, costs, window, order)
        ]

    def _ask(
        self,
        tokenizer: Tokenizer,
        lines: Sequence[str],
        costs: Sequence[int],
        window: Window,
        order: int,
    ) -> Iterator[Question]:
        """The question about a window; about its halves where its prompt is too long after all."""
        start, stop = window.start, window.stop
        if window.blank or window.too_long:
            yield Question(window, flag="line_too_long" if window.too_long else "")
            return
        prompt = self.style.chunk_prompt(tokenizer, lines[start:stop], self._first(window))
        if len(prompt) <= self.budget:
            yield Question(window, self._edit(lines, window, array("I", prompt), order))
        elif stop - start == 1:
            yield Question(window, flag="line_too_long")
        else:
            middle = (start + stop) // 2
            for low, high in ((start, middle), (middle, stop)):
                half = make_window(lines, costs, low, high, self.window_tokens)
                yield from self._ask(tokenizer, lines, costs, half, order)

    def _edit(
        self, lines: Sequence[str], window: Window, prompt: Sequence[int], order: int
    ) -> Request:
        own, first = lines[window.start : window.stop], self._first(window)
        limit, grammar = self._limit(window), self._grammar(own, first)
        # What stands in the window may be quoted, and must not end the program that quotes it.
        text = "\n".join(own)
        stop = tuple(mark for mark in self._stop if mark not in text)
        loops = self.policy != "reference"
        return Request("chunk", prompt, own, first, limit, stop, grammar, order, loops)

    def _number_cost(self, number: int) -> int:
        digits = len(str(number))
        if digits not in self._number_costs and self.engine.tokenizer:
            (cost,) = self.engine.tokenizer.count([self.style.number(number)])
            self._number_costs[digits] = cost
        return self._number_costs[digits]

    def _first(self, window: Window) -> int:
        """The number that the window's first line bears."""
        start = window.start if self.stage.numbering == "document" else 0
        return FIRST_LINE[self.stage.dialect] + start

    async def edit(self, question: Question) -> Answer:
        """Ask for the program of one window; none for a window that must not be asked about."""
        window = question.window
        if question.request is None:
            return Answer(None, question.flag)
        return await self._answer(window.start, window.stop, question.request)

    def _limit(self, window: Window) -> int:
        """Most tokens of a window's program.

        Room to remove every second line, the most ranges there can be, and to quote all of the
        window once. It ends endless repetition early, and costs no program that makes sense.
        """
        if self.engine.tokenizer is None:
            return self.stage.max_new_tokens
        ranges = (window.stop - window.start + 1) // 2
        most = (ranges + SPARE_CALLS) * self._call_tokens + window.tokens
        return min(self.stage.max_new_tokens, most)

    def _grammar(self, own: Sequence[str], first: int) -> str | None:
        if self.stage.grammar == "none":
            return None
        text = own if self.stage.grammar == "strings" else ()
        policy = self.policy if isinstance(self.policy, Policy) else None
        last = first + len(own) - 1
        return chunk_grammar(self.stage.dialect, first, last, lines=text, policy=policy)

    async def _answer(self, start: int, stop: int, request: Request, flag: str = "") -> Answer:
        """Have the engine answer, unless it has answered the same before."""
        if not request.prompt:
            done, again = await self.engine.complete(request), False
        else:
            # Texts that a tokenizer makes alike may yet differ in what may be answered.
            limits = request.max_new_tokens, request.stop, request.grammar
            rest = repr((*limits, request.steps, request.bias, request.odds))
            key = digest(array("I", request.prompt).tobytes(), rest.encode())
            done, again = await self._memo.get(key, lambda: self._complete(request))
        tokens = done.prompt_tokens, done.cached_tokens, done.new_tokens
        call = Call(start, stop, self._program(done), done.finish, *tokens, again, done.work)
        return Answer(call, flag or ("looped" if done.finish == "loop" else ""), done.score)

    def _program(self, done: Completion) -> str:
        """An answer as a program: that is what models write, unless asked for something else."""
        return self._verdict(done.text, done.finish != "stop") if self._verdict else done.text

    async def _complete(self, request: Request) -> Completion:
        done = await self.engine.complete(request)
        tokens = done.prompt_tokens, done.cached_tokens, done.new_tokens
        self.asked += Usage.of_request(*tokens, done.work)
        return done
