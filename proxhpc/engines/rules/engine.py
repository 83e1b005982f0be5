"""The rules engine: no model, expert heuristics that write the same programs as one would.

The human-expert baseline of the ProX paper, a dry run of a cluster, and the deterministic engine of
the tests.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from difflib import get_close_matches
from heapq import heappop, heappush
from itertools import count
from typing import Literal, get_args

from proxhpc.engines.base import LARGE, Completion, Request, Tokenizer
from proxhpc.engines.rules import heuristics
from proxhpc.engines.rules.boilerplate import boilerplate_lines
from proxhpc.engines.rules.repetition import gopher_repetition
from proxhpc.errors import UserError

BURST = 0.005  # seconds of answers before the event loop comes round

Rule = Literal["c4", "gopher", "fineweb"]
RULES: tuple[Rule, ...] = get_args(Rule)

_Judge = Callable[[heuristics.ParsedDocument], str]
# The order of FineWeb's pipeline, cheap rules first; the first reason is the one reported.
_JUDGES: tuple[tuple[Rule, _Judge], ...] = (
    ("gopher", heuristics.gopher_quality),
    ("gopher", gopher_repetition),
    ("c4", heuristics.c4_document),
    ("fineweb", heuristics.fineweb),
)


class RulesEngine:
    """Answers from the lines of a request; the same lines give the same program, always.

    At level doc `keep_doc()` or `drop_doc()`, with the rule that condemns in a comment. At level
    chunk a `remove_lines(…)` for each run of lines that are page furniture (`boilerplate`) or, with
    "c4" among the rules, fall to C4's line rules, which spare prose only; `keep_all()` for none. An
    empty `rules` leaves the furniture alone.
    """

    name = "rules"
    tokenizer: Tokenizer | None = None
    max_model_len, cache_tokens = 2**31 - 1, 0

    def __init__(self, rules: Sequence[Rule] = RULES) -> None:
        """UserError for a rule that does not exist."""
        for rule in rules:
            if rule not in RULES:
                nearest = get_close_matches(str(rule), RULES, n=1)
                guess = f"did you mean {nearest[0]!r}? " if nearest else ""
                raise UserError(
                    f"engine rules: no rule is named {rule!r}",
                    hint=f"{guess}The rules are {', '.join(RULES)}.",
                )
        self.rules = frozenset(rules)
        self._waiting: list[tuple[int, int, Request, asyncio.Future[str]]] = []
        self._numbers = count()
        self._working: asyncio.Task[None] | None = None

    async def complete(self, request: Request) -> Completion:
        """Answer with a program; no tokens are counted, for none are read or written."""
        program = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (request.order, next(self._numbers), request, program))
        if self._working is None:
            self._working = asyncio.create_task(self._work())
        return Completion(await program, "stop", prompt_tokens=0, cached_tokens=0, new_tokens=0)

    async def close(self) -> None:
        """Nothing to free."""

    async def _work(self) -> None:
        """Answer what waits, lowest order first; signals, commits and heartbeat get their turns."""
        began = time.monotonic()
        try:
            while self._waiting:
                *_, request, program = heappop(self._waiting)
                if program.done():  # cancelled
                    continue
                try:
                    if sum(map(len, request.lines)) >= LARGE:
                        answer = await asyncio.to_thread(self._answer, request)
                    else:
                        answer = self._answer(request)
                except Exception as error:  # whoever asked has to know
                    if not program.done():
                        program.set_exception(error)
                else:
                    if not program.done():
                        program.set_result(answer)
                if time.monotonic() - began >= BURST:
                    await asyncio.sleep(0)
                    began = time.monotonic()
        finally:
            self._working = None

    def _answer(self, request: Request) -> str:
        return self._judge(request) if request.level == "doc" else self._edit(request)

    def _judge(self, request: Request) -> str:
        page = heuristics.ParsedDocument.of("\n".join(request.lines))
        for rule, judge in _JUDGES:
            if rule in self.rules and (reason := judge(page)):
                return f"drop_doc()  # {rule}: {reason}"
        return "keep_doc()"

    def _edit(self, request: Request) -> str:
        reasons = boilerplate_lines(request.lines)
        if "c4" in self.rules:
            for position, line in enumerate(request.lines):
                if not reasons[position] and line.strip() and (why := heuristics.c4_line(line)):
                    reasons[position] = f"c4: {why}"
        first = request.first_line
        calls = [
            f"remove_lines(start={first + start}, end={first + end})  # {why}"
            for start, end, why in _runs(request.lines, reasons)
        ]
        return "\n".join(calls) or "keep_all()"


def _runs(lines: Sequence[str], reasons: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """First and last line of each run of condemned lines, and its most frequent reason.

    Blank lines are never condemned, but those between two lines of a run go with them.
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
