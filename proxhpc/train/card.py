"""The model card: what the model is, what taught it, how it does."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from proxhpc import __version__
from proxhpc.spec.recipe import Recipe
from proxhpc.train.checkpoint import TrainingState
from proxhpc.train.rows import ExampleRow
from proxhpc.train.score import ValidationScores

TEXT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [pretraining-data, data-cleaning, prox, proxhpc]
---

# {name}

A refiner of pre-training corpora: it reads a document, or a window of its lines, and writes a
program that keeps or drops it, or edits it ([ProX](https://arxiv.org/abs/2409.17115)). Made by
`proxhpc adapt` {version}. `refiner.json` says how it is asked; name the directory as the `model`
of a manifest's stages, with the engine vllm or transformers.

## Recipe

{recipe}

{steps:,} steps, {tokens:,} tokens with padding, {minutes:,.0f} minutes of training; the weights
are those after step {best:,}, a moving average, as bfloat16.

## Examples

{examples}

## On the validation examples

By what the examples' own programs make, not by gold texts:

{scores}
"""


def card(
    recipe: Recipe,
    rows: Iterable[ExampleRow],
    unused: Mapping[str, int],
    progress: TrainingState,
    scores: ValidationScores,
    size: int,
) -> str:
    """The card's text, in Markdown; `size` are the model's parameters."""
    said = recipe.model_dump(mode="json", exclude_unset=True, exclude={"notes", "examples", "name"})
    about = [("parameters", f"{size:,}"), *_flat(said)]
    text = TEXT.format(
        name=recipe.name,
        version=__version__,
        recipe=markdown_table(("key", "value"), [(key, str(value)) for key, value in about]),
        steps=progress.step,
        tokens=progress.tokens,
        minutes=progress.seconds / 60,
        best=progress.best_step,
        examples="\n\n".join([_examples(rows), *_left_out(unused)]),
        scores=markdown_table(("score", "value"), [(k, f"{v:.4g}") for k, v in scores.items()]),
    )
    parts = [f"\n## {heading}\n\n{body}\n" for heading, body in recipe.notes.items()]
    return text + "".join(parts)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """Text that stays within its cell and is no markup."""
    for char in "\\|<>[]*_`":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())


def _flat(data: Mapping[str, Any], above: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in data.items():
        name = f"{above}{key}"
        found += _flat(value, f"{name}.") if isinstance(value, dict) else [(name, value)]
    return found


def _left_out(unused: Mapping[str, int]) -> list[str]:
    return [f"Of these {number:,} are not used: {why}." for why, number in unused.items()]


def _examples(rows: Iterable[ExampleRow]) -> str:
    """Examples and their lines by source, level, teacher and split."""
    examples, lines = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for row in rows:
        key = (row.source, row.level, row.teacher, row.split)
        examples[key] += 1
        lines[key] += len(row.lines)
    counted = [(*key, f"{examples[key]:,}", f"{lines[key]:,}") for key in sorted(examples)]
    return markdown_table(("source", "level", "teacher", "split", "examples", "lines"), counted)
