"""A document under review: what became of each line, and the gold record of what is right."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import xxhash

from proxhpc.annotate.gold import labels_of_pair
from proxhpc.evaluate.gold import BOILERPLATE, CONTENT, EDITED, GoldFields
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


@dataclass(frozen=True, slots=True)
class DocumentHead:
    """What a document is known by. `position` is FILE:POSITION; `programs` are its programs."""

    id: str
    position: str
    stratum: Stratum
    programs: tuple[str, ...]

    @property
    def digest(self) -> str:
        """A digest of the programs."""
        return xxhash.xxh3_64_hexdigest("\0".join(self.programs).encode("utf-8", "surrogatepass"))


@dataclass(frozen=True, slots=True)
class ReviewDocument:
    """A document with its lines and what they became.

    All lines of a document that does not stay are unchanged. `origin` are the fields of its record
    that name its host.
    """

    head: DocumentHead
    lines: tuple[str, ...]
    refined: tuple[NewLine, ...]
    origin: Mapping[str, str]

    def labels(self, new_lines: Sequence[NewLine], seen: Collection[int]) -> str:
        """A letter for each line, as in gold records."""
        return "".join(
            UNSEEN
            if number not in seen
            else BOILERPLATE
            if new is None
            else CONTENT
            if new == line
            else EDITED
            for number, (line, new) in enumerate(zip(self.lines, new_lines, strict=True))
        )

    def gold_record(
        self, new_lines: Sequence[NewLine], keep: bool, seen: Collection[int], sampled: bool
    ) -> dict[str, Any]:
        """What a reviewer found right, as a gold record with the key `review`.

        It has line labels if the document should be kept and somebody decided on its lines.
        """
        head, text = self.head, "\n".join(self.lines)
        review = {
            "position": head.position,
            "outcome": head.stratum.outcome,
            "reason": head.stratum.reason,
            "programs": head.digest,
            "sampled": sampled,
        }
        level: dict[str, Any] = {"text": text}
        if keep and (head.stratum.is_kept or tuple(new_lines) != self.refined):
            level = {
                "text_noisy": text,
                "text_gold": "\n".join(line for line in new_lines if line is not None),
                "line_labels": self.labels(new_lines, seen),
            }
            review["refined_labels"] = self.labels(self.refined, range(len(self.lines)))
        source = head.position.rpartition(":")[0]
        names = {"review": review, "id": head.id, "source": source, **self.origin}
        return {**names, **level, "keep": int(keep)}


def make_document(
    head: DocumentHead,
    fields: Mapping[str, Any],
    before: str,
    after: str | None,
    removed: Sequence[tuple[int, int]] = (),
) -> ReviewDocument | None:
    """A document from its record's fields; None if its texts cannot be compared line by line.

    `after` is None if it does not reach the corpus.
    """
    new_lines = refined_lines(before, before if after is None else after, removed)
    if new_lines is None:
        return None
    origin = {name: fields.get(name) for name in (GoldFields().host, GoldFields().url)}
    return ReviewDocument(
        head=head,
        lines=tuple(before.split("\n")),
        refined=new_lines,
        origin={name: value for name, value in origin.items() if isinstance(value, str)},
    )


def refined_lines(
    before: str, after: str, removed: Sequence[tuple[int, int]]
) -> tuple[NewLine, ...] | None:
    """What each line of a text became; None if that cannot be said line by line.

    `removed` are lines that are known to be removed. Texts are aligned for all other differences.
    """
    new_lines: list[NewLine] = [*before.split("\n")]
    for start, stop in removed:
        new_lines[start:stop] = [None] * (stop - start)
    left = [number for number, line in enumerate(new_lines) if line is not None]
    rest = "\n".join(line for line in new_lines if line is not None)
    if rest != after:
        labels = labels_of_pair(rest, after, EDIT_COSTS["prox"])
        if isinstance(labels, str):
            return None
        for edit in labels.edits or ():
            for number in left[edit.start : edit.stop]:
                new_lines[number] = edit.new
    return tuple(new_lines)
