"""The public ProX executor (GAIR-NLP/ProX, commit b3fcbb2), reproduced exactly for replication.

It differs from our executor in these points:

- A program is read line by line, by prefix. Strings end at the first comma, equals sign or
  closing parenthesis; without a closing parenthesis the last character is lost.
- Replacements apply to the whole document, in program order, before lines are removed.
- Errors are counted per document. Out-of-range removals are counted after adjacent ranges are
  merged, and are executed anyway.
- A document of fewer than eleven words becomes empty; one without words raises an error.

Large numbers in programs cost nothing. Memory is bounded by `MAX_CHARS` and time by `MAX_SCANNED`;
above these limits the public code would crash or hang, so the document is quarantined.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

MAX_CHARS = 1 << 24
"""The largest number of characters that a document may grow to."""
MAX_SCANNED = 1 << 31
"""The largest number of characters that a program's replacements may scan: about ten seconds."""

_MAX_REMOVED_SHARE = 0.95
_MAX_SHORT_WORDS = 10
_MIN_ERRORS = 2

Reason = Literal["", "reference_removed_share", "reference_short", "reference_errors"]


class ReferenceRunError(Exception):
    """The public code would raise, crash or hang here; `reason` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """The text that the public executor returns, with the rule that applied and counts.

    `removed` are ascending ranges [a, b) of the document's lines; replacements do not change the
    number of lines.
    """

    text: str
    reason: Reason
    errors: int
    lines_removed: int
    strings_replaced: int
    removed: tuple[tuple[int, int], ...] = ()


class _Machine:
    """The state of one execution: the text, the ranges to remove and the errors."""

    __slots__ = ("errors", "ranges", "remove_all", "replaced", "scanned", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.ranges: list[tuple[int, int]] = []
        self.remove_all = False
        self.errors = self.replaced = self.scanned = 0

    def step(self, line: str) -> None:
        """Execute one line of a program."""
        if line.startswith("remove_lines"):
            if "all=True" in line:
                self.remove_all = True
            else:
                self._remove(self._parameters(line))
        elif line.startswith("normalize"):
            self._normalize(self._parameters(line))

    def _parameters(self, line: str) -> list[str]:
        """Split the content of the first parentheses at commas; [] without an opening one."""
        opening = line.find("(")
        closing = line.find(")")
        self.errors += opening < 0 or closing < 0
        return line[opening + 1 : closing].split(",") if opening >= 0 else []

    def _remove(self, parameters: list[str]) -> None:
        if not parameters:
            return
        try:
            first, last = (int(_value(parameters[index])) for index in (0, 1))
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
    """Return the text between the first two equals signs. IndexError without one."""
    return parameter.split("=")[1]


def _merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort ranges by their first line and join those that touch or overlap.

    Reversed ranges are not skipped, and ranges with the same first line keep their order.
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

    ReferenceRunError: the public code would raise, or exceed MAX_CHARS or MAX_SCANNED.
    """
    machine = _Machine(text)
    for line in program.strip(" ").split("\n"):
        machine.step(line)
    lines = machine.text.split("\n")
    merged = _merged(machine.ranges)
    errors = machine.errors + sum(max(pair) >= len(lines) for pair in merged)
    ranges = [(max(first, 0), min(last + 1, len(lines))) for first, last in merged]
    ranges = [(0, len(lines))] if machine.remove_all else [(a, b) for a, b in ranges if a < b]
    removed = {number for pair in ranges for number in range(*pair)}
    kept = [line for number, line in enumerate(lines) if number not in removed]
    counts = (errors, len(lines) - len(kept), machine.replaced)
    return _apply_limits(text, "\n".join(kept), counts, tuple(ranges))


def _apply_limits(
    before: str,
    after: str,
    counts: tuple[int, int, int],
    removed: tuple[tuple[int, int], ...],
) -> ReferenceResult:
    """Apply the fixed limits in the order and floating-point arithmetic of the public code."""
    errors = counts[0]
    words_before, words_after = len(before.split()), len(after.split())
    if not words_before:
        raise ReferenceRunError("reference_zero_division")
    if words_after / words_before <= 1 - _MAX_REMOVED_SHARE and errors < _MIN_ERRORS:
        return ReferenceResult("", "reference_removed_share", *counts)
    if words_after <= _MAX_SHORT_WORDS:
        return ReferenceResult("", "reference_short", *counts)
    if errors < _MIN_ERRORS:
        return ReferenceResult(after, "", *counts, removed)
    return ReferenceResult(before, "reference_errors", errors, 0, 0)


def drops_document(program: str) -> bool:
    """Return True if the public code drops the document of this doc-level program."""
    return "drop" in program


def merge_programs(programs: Iterable[str]) -> str:
    """Join the programs of a document's windows as the public code does."""
    return "\n".join(program.strip(" ") for program in programs)
