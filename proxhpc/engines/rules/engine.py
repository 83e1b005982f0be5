"""The rules engine: expert heuristics write programs, without a model.

It is the human-expert baseline of the ProX paper, a cheap trial of a cluster, and the deterministic
engine of the tests.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import get_args

from proxhpc.engines.base import LARGE_TEXT, Completion, Request, Tokenizer
from proxhpc.engines.rules import heuristics
from proxhpc.engines.rules.boilerplate import boilerplate_lines
from proxhpc.engines.rules.repetition import gopher_repetition
from proxhpc.spec.sections import RuleSet

BURST_S = 0.005  # how long it answers before other tasks of the event loop may run

RULES: tuple[RuleSet, ...] = get_args(RuleSet)

# In the order of FineWeb's pipeline, cheap rules first. The first reason is reported.
_DOCUMENT_RULES: tuple[tuple[RuleSet, Callable[[heuristics.ParsedDocument], str]], ...] = (
    ("gopher", heuristics.gopher_quality),
    ("gopher", gopher_repetition),
    ("c4", heuristics.c4_document),
    ("fineweb", heuristics.fineweb),
)


class RulesEngine:
    """Answers from the lines of a request; the same lines always give the same program.

    At level doc, `keep_doc()` or `drop_doc()` with the reason in a comment. At level chunk, a
    `remove_lines(…)` for each run of lines that `boilerplate_lines` or, if "c4" is among the rules,
    C4's line rules remove; without any, `keep_all()`.
    """

    name = "rules"
    tokenizer: Tokenizer | None = None
    max_model_len, cache_tokens, min_in_flight = 2**31 - 1, 0, 64

    def __init__(self, rules: Sequence[RuleSet] = RULES) -> None:
        self.rules = frozenset(rules)
        self._waiting: list[tuple[int, int, Request, asyncio.Future[str]]] = []
        self._sequence = count()
        self._working: asyncio.Task[None] | None = None

    async def complete(self, request: Request) -> Completion:
        """Answer with a program; all token counts are 0."""
        program = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (request.order, next(self._sequence), request, program))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return Completion(await program, "stop", prompt_tokens=0, cached_tokens=0, new_tokens=0)

    async def close(self) -> None:
        """Nothing to free."""

    async def _work(self) -> None:
        """Answer waiting requests, lowest order first, with breaks for other tasks."""
        start = time.monotonic()
        try:
            while self._waiting:
                *_, request, program = heappop(self._waiting)
                if program.done():  # cancelled
                    continue
                try:
                    if sum(map(len, request.lines)) >= LARGE_TEXT:
                        answer = await asyncio.to_thread(self._answer, request)
                    else:
                        answer = self._answer(request)
                except Exception as error:  # the caller must see it
                    if not program.done():
                        program.set_exception(error)
                else:
                    if not program.done():
                        program.set_result(answer)
                if time.monotonic() - start >= BURST_S:
                    await asyncio.sleep(0)
                    start = time.monotonic()
        finally:
            self._working = None

    def _answer(self, request: Request) -> str:
        level = request.level
        return self._doc_program(request) if level == "doc" else self._chunk_program(request)

    def _doc_program(self, request: Request) -> str:
        document = heuristics.ParsedDocument.of("\n".join(request.lines))
        for rule, check in _DOCUMENT_RULES:
            if rule in self.rules and (reason := check(document)):
                return f"drop_doc()  # {rule}: {reason}"
        return "keep_doc()"

    def _chunk_program(self, request: Request) -> str:
        reasons = boilerplate_lines(request.lines)
        if "c4" in self.rules:
            for position, line in enumerate(request.lines):
                if not reasons[position] and line.strip() and (reason := heuristics.c4_line(line)):
                    reasons[position] = f"c4: {reason}"
        first = request.first_line
        calls = [
            f"remove_lines(start={first + start}, end={first + end})  # {reason}"
            for start, end, reason in _runs(request.lines, reasons)
        ]
        return "\n".join(calls) or "keep_all()"


def _runs(lines: Sequence[str], reasons: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """First and last line of each run of lines with a reason, and its most frequent reason.

    Blank lines have no reason, but those within a run are part of it.
    """
    start = end = -1
    tally: dict[str, int] = {}
    for position, line in enumerate(lines):
        if reason := reasons[position]:
            start = position if start < 0 else start
            end = position
            tally[reason] = tally.get(reason, 0) + 1
        elif start >= 0 and line.strip():
            yield start, end, max(tally, key=tally.__getitem__)
            start, tally = -1, {}
    if start >= 0:
        yield start, end, max(tally, key=tally.__getitem__)
