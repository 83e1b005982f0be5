"""What documents, programs and duplicates were like, as the report says it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from proxhpc.assemble.examples import ExampleTexts
from proxhpc.assemble.summary import MergeSummary

_LEVELS = ("doc", "chunk")


def statistics(merged: MergeSummary, shown: Sequence[ExampleTexts]) -> dict[str, Any]:
    """Outcomes, distributions, programs, sets of duplicates and which examples there are.

    In distributions, raw is every document that could be read, refined every one that reached the
    merge, duplicates among them.
    """
    found = merged.stats
    return {
        "outcomes": _outcomes(merged),
        "distributions": {
            "tokens": _bins(found.raw_tokens, found.refined_tokens),
            "lines": _bins(found.raw_lines, found.refined_lines),
        },
        "programs": {
            level: {
                "calls": _of_level(level, found.calls),
                "finishes": _of_level(level, found.finishes),
            }
            for level in _LEVELS
        },
        "duplicate_sets": _sets(merged),
        "examples": [_example(one) for one in shown if one.place in example_places(merged)],
    }


def example_places(merged: MergeSummary) -> set[tuple[int, int]]:
    """Shard and record of the documents that are shown as examples."""
    return {(example.shard, example.number) for example in merged.stats.examples}


def _outcomes(merged: MergeSummary) -> list[dict[str, Any]]:
    """Raw tokens by what became of them; they add up to the run's."""
    counts, lost = merged.counts, merged.stats.lost_tokens
    rows = [
        {"outcome": status, "reason": reason, "documents": number, "raw_tokens": tokens}
        for status in ("dropped", "quarantined")
        for reason, number in sorted(getattr(counts, status).items(), key=lambda pair: -pair[1])
        for tokens in [lost[f"{status} {reason}"]]
    ]
    edits = counts.tokens_in - lost.total() - counts.tokens_out
    copies = counts.tokens_out - merged.tokens
    left_out = merged.duplicates.documents
    return [
        *rows,
        {"outcome": "edited", "reason": "", "documents": counts.edited, "raw_tokens": edits},
        {"outcome": "duplicates", "reason": "", "documents": left_out, "raw_tokens": copies},
        {
            "outcome": "written",
            "reason": "",
            "documents": merged.written,
            "raw_tokens": merged.tokens,
        },
    ]


def _bins(raw: Mapping[int, int], refined: Mapping[int, int]) -> list[dict[str, int]]:
    """Both counters bin by bin, from the lowest to the highest one with anything in it."""
    filled = sorted({*raw, *refined})
    if not filled:
        return []
    return [
        {**_range(octave), "raw": raw.get(octave, 0), "refined": refined.get(octave, 0)}
        for octave in range(filled[0], filled[-1] + 1)
    ]


def _range(octave: int) -> dict[str, int]:
    return {"from": 1 << octave - 1, "to": (1 << octave) - 1} if octave else {"from": 0, "to": 0}


def _of_level(level: str, counter: Counter[str]) -> dict[str, int]:
    found = [(name.split(" ", 1), number) for name, number in counter.items()]
    own = [(name[1], number) for name, number in found if name[0] == level]
    return dict(sorted(own, key=lambda pair: (-pair[1], pair[0])))


def _sets(merged: MergeSummary) -> dict[str, Any]:
    found = merged.duplicates
    sizes = [
        {**_range(octave), "sets": number} for octave, number in enumerate(found.set_sizes) if number
    ]
    largest = [{"size": size, "id": name[0], "source": name[1]} for size, name in found.largest_sets]
    return {"sizes": sizes, "largest": largest}


def _example(one: ExampleTexts) -> dict[str, Any]:
    return {
        "id": one.id,
        "source": one.source,
        "status": one.outcome,
        "reason": one.reason,
        "bytes_shown": len(one.before.encode("utf-8", "surrogatepass")),
    }
