"""The public ProX executor (GAIR-NLP/ProX, commit b3fcbb2), bit for bit, quirks included.

It exists for replication. Facts that shape it, all of them unlike our own executor:

- A program is read line by line, by prefix; strings end at the first comma, equals sign or
  closing parenthesis, and a missing parenthesis costs the last character.
- Replacements act on the whole document, in program order, before lines are removed.
- Errors are counted per document; out-of-range removals are counted after adjoining ranges
  were merged, and are executed all the same.
- A document shorter than eleven words is emptied, and one without words raises.

Nothing here depends on how large a number in a program is. Memory is bounded by `MAX_CHARS`
and time by `MAX_SCANNED`, beyond which the public code would die and we set the document aside.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MAX_CHARS = 1 << 24
"""Characters that a document may grow to."""
MAX_SCANNED = 1 << 31
"""Characters that all replacements of one program may read; some ten seconds."""

REMOVED_SHARE = 0.95
SHORT = 10
ERRORS = 2

Reason = Literal["", "reference_removed_share", "reference_short", "reference_errors"]


class ReferenceRunError(Exception):
    """The public code raises or exhausts the machine here; `reason` names how."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What the public executor returns and what it does not tell: which rule fired, counts.

    `removed` are the lines of the text that went, as ascending ranges [a, b): replacements keep
    their number.
    """

    text: str
    reason: Reason
    errors: int
    lines_removed: int
    strings_replaced: int
    removed: tuple[tuple[int, int], ...] = ()


class _Machine:
    """The state of one execution: the text, the ranges to remove and the errors."""

    __slots__ = ("errors", "everything", "ranges", "replaced", "scanned", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.ranges: list[tuple[int, int]] = []
        self.everything = False
        self.errors = self.replaced = self.scanned = 0

    def step(self, line: str) -> None:
        """Execute one line of a program."""
        if line.startswith("remove_lines"):
            if "all=True" in line:
                self.everything = True
            else:
                self._remove(self._parameters(line))
        elif line.startswith("normalize"):
            self._normalize(self._parameters(line))

    def _parameters(self, line: str) -> list[str]:
        """Split what the first parentheses hold at commas; [] without an opening one."""
        opening = line.find("(")
        closing = line.find(")")
        self.errors += opening < 0 or closing < 0
        return line[opening + 1 : closing].split(",") if opening >= 0 else []

    def _remove(self, parameters: list[str]) -> None:
        if not parameters:
            return
        try:
            first, last = (int(_value(parameters[place])) for place in (0, 1))
        except (IndexError, ValueError):
            self.errors += 1
        else:
            self.ranges.append((first, last))

    def _normalize(self, parameters: list[str]) -> None:
        if not 1 <= len(parameters) <= 2:
            return
        try:
            strings = [_value(parameter).strip('"') for parameter in parameters]
        except IndexError:
            self.errors += 1
            return
        if len(strings) == 1:
            self._replace(strings[0], "")
        elif strings[0] not in ("", " "):
            self._replace(strings[0], strings[1])

    def _replace(self, source: str, target: str) -> None:
        if not source:
            return
        self.scanned += len(self.text)
        if self.scanned > MAX_SCANNED:
            raise ReferenceRunError("reference_time")
        count = self.text.count(source)
        growth = count * (len(target) - len(source))
        if growth > 0 and len(self.text) + growth > MAX_CHARS:
            raise ReferenceRunError("reference_memory")
        if count:
            self.text = self.text.replace(source, target)
            self.replaced += count


def _value(parameter: str) -> str:
    """Return what stands between the first two equals signs. IndexError without one."""
    return parameter.split("=")[1]


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges by their first line, joined to the one before where they touch it.

    A range that ends before it starts is still one, and ties keep the program's order.
    """
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges, key=lambda pair: pair[0]):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return merged


def run_chunk(text: str, program: str) -> ReferenceResult:
    """Execute a document's merged program as the public code does.

    ReferenceRunError: it raises, or outgrows MAX_CHARS or MAX_SCANNED.
    """
    machine = _Machine(text)
    for line in program.strip(" ").split("\n"):
        machine.step(line)
    lines = machine.text.split("\n")
    merged = _merged(machine.ranges)
    errors = machine.errors + sum(max(pair) >= len(lines) for pair in merged)
    ranges = [(max(first, 0), min(last + 1, len(lines))) for first, last in merged]
    ranges = [(0, len(lines))] if machine.everything else [(a, b) for a, b in ranges if a < b]
    removed = {number for pair in ranges for number in range(*pair)}
    kept = [line for number, line in enumerate(lines) if number not in removed]
    counts = (errors, len(lines) - len(kept), machine.replaced)
    return _judged(text, "\n".join(kept), counts, tuple(ranges))


def _judged(
    before: str,
    after: str,
    counts: tuple[int, int, int],
    removed: tuple[tuple[int, int], ...],
) -> ReferenceResult:
    """Apply the fixed limits, in their order and in their floating-point arithmetic."""
    errors = counts[0]
    words, left = len(before.split()), len(after.split())
    if not words:
        raise ReferenceRunError("reference_zero_division")
    if left / words <= 1 - REMOVED_SHARE and errors < ERRORS:
        return ReferenceResult("", "reference_removed_share", *counts)
    if left <= SHORT:
        return ReferenceResult("", "reference_short", *counts)
    if errors < ERRORS:
        return ReferenceResult(after, "", *counts, removed)
    return ReferenceResult(before, "reference_errors", errors, 0, 0)


def drops(program: str) -> bool:
    """Return whether the public code drops a document whose doc-level program this is."""
    return "drop" in program


def merge_programs(programs: Iterable[str]) -> str:
    """One program of those of a document's windows, as the public code merges them."""
    return "\n".join(program.strip(" ") for program in programs)
