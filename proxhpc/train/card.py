"""The model card: the recipe, the examples and the scores of a model."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from proxhpc import __version__
from proxhpc.spec.recipe import Recipe
from proxhpc.train.checkpoint import TrainingState
from proxhpc.train.rows import ExampleRow
from proxhpc.train.score import ValidationScores

_TEMPLATE = """\
---
library_name: transformers
pipeline_tag: text-generation
tags: [pretraining-data, data-cleaning, prox, proxhpc]
---

# {name}

A refiner of pre-training corpora ([ProX](https://arxiv.org/abs/2409.17115)): it reads a document,
or a window of its lines, and writes a program that keeps, drops or edits it. Trained with
`proxhpc adapt` {version}. To use it, name this directory as the `model` of a manifest's stages,
with the engine vllm or transformers; `refiner.json` holds its prompt style and limits.

## Recipe

{recipe}

{steps:,} steps, {tokens:,} tokens with padding, {minutes:,.0f} minutes of training. The weights
are the moving average after step {best_step:,}, in bfloat16.

## Examples

{examples}

## Scores on the validation split

Measured against the programs of the examples, not against gold texts:

{scores}
"""


def model_card(
    recipe: Recipe,
    rows: Iterable[ExampleRow],
    unused: Mapping[str, int],
    state: TrainingState,
    scores: ValidationScores,
    parameters: int,
) -> str:
    """The card's text, in Markdown."""
    keys = recipe.model_dump(mode="json", exclude_unset=True, exclude={"notes", "examples", "name"})
    if recipe.base:
        keys["base"] = Path(recipe.base).name  # the card may be published, and its folder is not
    recipe_rows = [("parameters", f"{parameters:,}"), *_flatten(keys)]
    unused_lines = [f"Of these {number:,} are not used: {why}." for why, number in unused.items()]
    text = _TEMPLATE.format(
        name=recipe.name,
        version=__version__,
        recipe=markdown_table(("key", "value"), recipe_rows),
        steps=state.step,
        tokens=state.tokens,
        minutes=state.seconds / 60,
        best_step=state.best_step,
        examples="\n\n".join([_examples_table(rows), *unused_lines]),
        scores=markdown_table(("score", "value"), [(k, f"{v:.4g}") for k, v in scores.items()]),
    )
    return text + "".join(f"\n## {head}\n\n{body}\n" for head, body in recipe.notes.items())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; its cells are plain text."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(text: str) -> str:
    for char in "\\|<>[]*_`":
        text = text.replace(char, f"\\{char}")
    return " ".join(text.split())


def _flatten(keys: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested keys as dotted ones, with their values as text."""
    rows: list[tuple[str, str]] = []
    for key, value in keys.items():
        name = f"{prefix}{key}"
        rows += _flatten(value, f"{name}.") if isinstance(value, dict) else [(name, str(value))]
    return rows


def _examples_table(rows: Iterable[ExampleRow]) -> str:
    """Numbers of examples and lines by source, level, teacher and split."""
    examples, lines = Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for row in rows:
        key = (row.source, row.level, row.teacher, row.split)
        examples[key] += 1
        lines[key] += len(row.lines)
    cells = [(*key, f"{examples[key]:,}", f"{lines[key]:,}") for key in sorted(examples)]
    return markdown_table(("source", "level", "teacher", "split", "examples", "lines"), cells)
