"""One stage of the style `walk` on its engine: its questions, and answers that are programs."""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import replace

from proxhpc.engines.base import Completion, Engine, Request, Tokenizer
from proxhpc.errors import UserError
from proxhpc.program.policy import AnyPolicy
from proxhpc.refine import walk
from proxhpc.refine.stage import Answer, Question, StageRunner
from proxhpc.refine.walk import Walk, WalkPage
from proxhpc.refine.windows import Window
from proxhpc.spec.manifest import Stage


def make_runner(stage: Stage, engine: Engine, policy: AnyPolicy) -> StageRunner:
    """The stage on its engine. UserError when the model is not one for its style and limits."""
    if stage.prompt == "walk" and engine.tokenizer is not None:
        return WalkRunner(stage, engine, policy)
    return StageRunner(stage, engine, policy)


class WalkRunner(StageRunner):
    """A stage whose answers are one token a line, restricted to the window's own lines."""

    def _prepare(self, tokenizer: Tokenizer) -> None:
        self._walk = Walk(tokenizer)
        self._steps = self.stage.grammar != "none"
        if self.stage.level == "doc":
            self._need("max_prompt_tokens", self.budget, walk.JUDGE_TOKENS)
            return
        self._need("max_prompt_tokens", self.budget, walk.OVERHEAD + walk.LINE_TOKENS + 1)
        self._need("window_tokens", self.stage.window_tokens, walk.LINE_TOKENS + 1)
        self.window_tokens = min(self.stage.window_tokens, self.budget - walk.OVERHEAD)
        lines = self.stage.window_lines or walk.WINDOW_LINES
        self._window_lines = min(lines, self.stage.max_new_tokens - 1)

    def _need(self, key: str, given: int, least: int) -> None:
        if given < least:
            raise UserError(
                f"prompt walk: {key} of the {self.stage.level} stage comes to {given}, "
                f"the least is {least}",
                hint=f"raise {key} of this stage or engine.max_model_len",
            )

    async def judge(self, text: str, lines: Sequence[str], order: int = 0) -> Answer:
        """Ask whether to keep the document, of which the model sees the start and the end."""
        prompt = await asyncio.to_thread(self._walk.judge, lines)
        request = Request(
            "doc",
            array("I", prompt),
            lines,
            0,
            self.stage.max_new_tokens,
            self._stop,
            order=order,
            steps=self._walk.verdict_steps if self._steps else (),
            bias=self._walk.verdict_bias(self.stage.bias),
            odds=self._walk.verdicts if self.scored and self._steps else None,
        )
        return await self._answer(0, len(lines), request)

    def questions(
        self, lines: Sequence[str], counts: Sequence[int], order: int = 0
    ) -> list[Question]:
        """What to ask about windows that tile the document; `counts`, of whole lines, are unused.

        The model reads long lines shortened.
        """
        page = self._walk.page(lines)
        windows = self._walk.windows(page, self.window_tokens, self._window_lines)
        return [Question(w, None if w.blank else self._window(page, w, order)) for w in windows]

    def _window(self, page: WalkPage, window: Window, order: int) -> Request:
        size = window.stop - window.start
        return Request(
            "chunk",
            array("I", self._walk.prompt(page, window.start, window.stop)),
            page.lines[window.start : window.stop],
            0,
            size + self._steps,
            order=order,
            steps=self._walk.steps(size) if self._steps else (),
            bias=self._walk.bias(size, self.stage.bias),
        )

    async def _complete(self, request: Request) -> Completion:
        done = await super()._complete(request)
        # Where nothing makes a model end it need not: its answer is whole with a token a line.
        if request.level == "chunk" and not request.steps and done.finish == "length":
            return replace(done, finish="stop")
        return done

    def _program(self, done: Completion) -> str:
        return walk.program(done.text)
