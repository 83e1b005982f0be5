"""A document under review: what became of each line, and the gold record of what is right."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import xxhash

from proxhpc.annotate.gold import labels_of_pair
from proxhpc.evaluate.gold import BOILERPLATE, CONTENT, EDITED
from proxhpc.program.derive import EDIT_COSTS

UNSEEN = "?"
"""Label of a line that was never on the screen."""
NewLine = str | None
"""What a line becomes; None if it is removed."""


class Stratum(NamedTuple):
    """Documents with the same outcome and reason. Each stratum is sampled."""

    outcome: str
    reason: str = ""

    @property
    def is_kept(self) -> bool:
        """Whether such documents stay in the corpus, changed or not."""
        return self.outcome in ("kept", "edited")

    def includes(self, other: "Stratum") -> bool:
        """Whether the other one has this outcome and reason; an empty one includes any."""
        return all(mine in ("", its) for mine, its in zip(self, other, strict=True))


class ReviewTexts(NamedTuple):
    """A document before and after; `after` is None if it does not reach the corpus.

    `removed` are ranges of lines that are known to be removed, `fields` those of its record.
    """

    fields: Mapping[str, Any]
    before: str
    after: str | None
    removed: Sequence[tuple[int, int]] = ()


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """A document to review. `position` is FILE:POSITION, and `read` returns None without a text."""

    id: str
    position: str
    stratum: Stratum
    programs: tuple[str, ...]
    read: Callable[[], ReviewTexts | None]

    def load(self) -> "ReviewDocument | None":
        """The document; None if its texts cannot be compared line by line."""
        texts = self.read()
        lines = refined_lines(texts) if texts else None
        return ReviewDocument(self, texts, lines) if texts and lines else None


@dataclass(frozen=True)
class ReviewDocument:
    """A document, and what its lines became: all unchanged if it does not reach the corpus."""

    item: ReviewItem
    texts: ReviewTexts
    refined: tuple[NewLine, ...]

    @cached_property
    def lines(self) -> list[str]:
        """The lines of the raw text."""
        return self.texts.before.split("\n")

    def labels(self, new_lines: Sequence[NewLine], seen: Collection[int]) -> str:
        """A letter for each line, as in gold records."""
        letters = (
            BOILERPLATE if new is None else CONTENT if new == line else EDITED
            for line, new in zip(self.lines, new_lines, strict=True)
        )
        return "".join(c if number in seen else UNSEEN for number, c in enumerate(letters))

    def gold_record(
        self, new_lines: Sequence[NewLine], keep: bool, seen: Collection[int], sampled: bool
    ) -> dict[str, Any]:
        """What a reviewer found right, as a gold record with the key `review`.

        It has line labels if the document should be kept and somebody decided on its lines.
        """
        item, text = self.item, self.texts.before
        programs = "\0".join(item.programs).encode("utf-8", "surrogatepass")
        review = {
            "position": item.position,
            "outcome": item.stratum.outcome,
            "reason": item.stratum.reason,
            "programs": xxhash.xxh3_64_hexdigest(programs),
            "sampled": sampled,
        }
        level: dict[str, Any] = {"text": text}
        if keep and (item.stratum.is_kept or tuple(new_lines) != self.refined):
            level = {
                "text_noisy": text,
                "text_gold": "\n".join(line for line in new_lines if line is not None),
                "line_labels": self.labels(new_lines, seen),
            }
            review["refined_labels"] = self.labels(self.refined, range(len(self.refined)))
        origin = {name: self.texts.fields.get(name) for name in ("host", "url")}
        return {
            "review": review,
            "id": item.id,
            "source": item.position.rpartition(":")[0],
            **{name: value for name, value in origin.items() if isinstance(value, str)},
            **level,
            "keep": int(keep),
        }


def differing(lines: Sequence[NewLine], others: Sequence[NewLine]) -> list[int]:
    """The numbers of the lines that differ."""
    return [n for n, (line, other) in enumerate(zip(lines, others, strict=True)) if line != other]


def refined_lines(texts: ReviewTexts) -> tuple[NewLine, ...] | None:
    """What each line became; None if that cannot be said line by line.

    Texts are aligned for all differences but removed lines that are known.
    """
    new_lines: list[NewLine] = [*texts.before.split("\n")]
    if texts.after is None:
        return tuple(new_lines)
    for start, stop in texts.removed:
        new_lines[start:stop] = [None] * (stop - start)
    left = [number for number, line in enumerate(new_lines) if line is not None]
    rest = "\n".join(line for line in new_lines if line is not None)
    if rest != texts.after:
        labels = labels_of_pair(rest, texts.after, EDIT_COSTS["prox"])
        if isinstance(labels, str):
            return None
        for edit in labels.edits or ():
            for number in left[edit.start : edit.stop]:
                new_lines[number] = edit.new
    return tuple(new_lines)
