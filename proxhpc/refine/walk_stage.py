"""A stage of the prompt style `walk`: its requests, and its answers as programs."""

from array import array
from collections.abc import Sequence
from dataclasses import replace

from proxhpc.engines.base import Completion, Engine, Request, Tokenizer
from proxhpc.errors import UserError
from proxhpc.program.policy import AnyPolicy
from proxhpc.refine import walk
from proxhpc.refine import walk_vocabulary as vocabulary
from proxhpc.refine.stage import Answer, PageRequests, StageRunner, WindowRequest, off_loop
from proxhpc.refine.walk import Walk, WalkPage
from proxhpc.refine.windows import Window
from proxhpc.spec.sections import Stage


def make_runner(stage: Stage, engine: Engine, policy: AnyPolicy) -> StageRunner:
    """Return the stage on its engine; UserError if the model does not fit its style and limits."""
    if stage.prompt == "walk" and engine.tokenizer is not None:
        return WalkRunner(stage, engine, policy)
    return StageRunner(stage, engine, policy)


class WalkRunner(StageRunner):
    """A stage whose answers are one token a line, restricted to the window's lines."""

    def _prepare(self, tokenizer: Tokenizer) -> None:
        self._walk = Walk(tokenizer)
        self._restricted = self.stage.grammar != "none"
        if self.stage.level == "doc":
            self._check_limit("max_prompt_tokens", self.budget, walk.MAX_VERDICT_PROMPT)
            self._needs(walk.MAX_VERDICT_PROMPT)
            return
        min_prompt = walk.MAX_OVERHEAD + walk.MAX_LINE_TOKENS + 1
        self._check_limit("max_prompt_tokens", self.budget, min_prompt)
        self._check_limit("window_tokens", self.stage.window_tokens, walk.MAX_LINE_TOKENS + 1)
        self.window_tokens = min(self.stage.window_tokens, self.budget - walk.MAX_OVERHEAD)
        lines = self.stage.window_lines or walk.WINDOW_LINES
        self._window_lines = min(lines, self.stage.max_new_tokens - 1)
        self._needs(self.window_tokens + walk.MAX_OVERHEAD)

    def _check_limit(self, key: str, value: int, minimum: int) -> None:
        if value < minimum:
            raise UserError(
                f"prompt walk: {key} of the {self.stage.level} stage is {value}, but the "
                f"minimum is {minimum}",
                hint=f"raise {key} of this stage or engine.max_model_len",
            )

    async def ask_verdict(self, text: str, lines: Sequence[str], order: int = 0) -> Answer:
        """Ask whether to keep the document, of which the model sees the start and the end."""
        prompt = await off_loop(len(text), self._walk.verdict_prompt, lines)
        request = Request(
            "doc",
            array("I", prompt),
            lines,
            0,
            self.stage.max_new_tokens,
            self._stop,
            order=order,
            steps=self._walk.verdict_steps if self._restricted else (),
            bias=self._walk.verdict_bias(self.stage.bias),
            odds=self._walk.verdict_ids if self.scored and self._restricted else None,
        )
        return await self._answer(0, len(lines), request)

    def window_requests(
        self, lines: Sequence[str], counts: Sequence[int], order: int = 0
    ) -> PageRequests:
        """Return the requests for consecutive windows.

        `counts`, the tokens of whole lines, are not used: the model reads long lines shortened.
        """
        page = self._walk.page(lines)
        windows = self._walk.windows(page, self.window_tokens, self._window_lines)
        return PageRequests(
            [
                WindowRequest(w, None if w.blank else self._walk_request(page, w, order))
                for w in windows
            ]
        )

    def _walk_request(self, page: WalkPage, window: Window, order: int) -> Request:
        size = window.stop - window.start
        lines = page.lines[window.start : window.stop]
        return Request(
            "chunk",
            array("I", self._walk.prompt(page, window.start, window.stop)),
            lines,
            0,
            size + self._restricted,
            order=order,
            steps=self._walk.allowed_steps(size) if self._restricted else (),
            bias=self._walk.bias(lines, self.stage.bias),
        )

    async def _complete(self, request: Request) -> Completion:
        done = await super()._complete(request)
        if request.level == "doc" and not done.text and done.finish == "stop":  # it abstains
            return replace(done, text=vocabulary.KEEP_DOC.strip())
        # An unrestricted answer is complete after one token a line, even without an end.
        if request.level == "chunk" and not request.steps and done.finish == "length":
            return replace(done, finish="stop")
        return done

    def _program(self, done: Completion) -> str:
        return walk.read_program(done.text)
