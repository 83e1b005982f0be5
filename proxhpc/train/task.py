"""What a training loop asks of what is taught."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from proxhpc.train.distributed import Ranks
from proxhpc.train.score import ValidationScores

Cursor = tuple[int, int]
"""Where in its batches a training is: two numbers that the course gives a meaning."""


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss to follow, and its parts and signs of progress as numbers."""

    total: Any
    parts: dict[str, float]


class TrainingTask(Protocol):
    """What is taught: the module that learns, batches, loss, judgement.

    `module` may hold more than the model that is to be written, `llama`; `vocabulary` is the
    directory of its tokenizer. `unused` counts examples that are left out, by reason. A batch is a
    dataclass of tensors, `inputs` among them.
    """

    module: Any
    vocabulary: Path
    unused: Counter[str]

    @property
    def llama(self) -> Any:
        """The model to be written."""
        ...

    def batches(self, cursor: Cursor, ranks: Ranks) -> Iterator[tuple[Cursor, Any]]:
        """Batches of this process without end from the cursor on, each with that of the next.

        All processes have as many between two cursors, and no two the same ones.
        """
        ...

    def loss(self, batch: Any, done: float) -> Losses:
        """The loss of a batch, with the share `done` of the training behind it."""
        ...

    def validate(self, most: int) -> ValidationScores:
        """Scores on `most` validation examples at random."""
        ...

    def stages(self, scores: ValidationScores) -> dict[str, dict[str, Any]]:
        """How the model is to be asked, by level: keys of a manifest's stage."""
        ...


def own_turns(count: int, first: int, ranks: Ranks) -> Iterator[tuple[int, int]]:
    """Of `count` batches those that are this process's, from its `first` one on: turn and batch.

    Where they do not go round evenly, some are had twice.
    """
    for turn in range(first, -(-count // ranks.count)):
        yield turn, (turn * ranks.count + ranks.rank) % count


def load_base(path: Path) -> Any:
    """The model in a directory, in float32, to be taught on. No code of its own is run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype="float32", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


def weighted_mean(costs: Any, weight: Any) -> Any:
    """The weighted mean of tensors; 0 of nothing."""
    return (costs * weight).sum() / weight.sum().clamp(min=1e-9)


class Sized(Protocol):
    """What has a size in tokens."""

    @property
    def size(self) -> int:
        """Tokens."""
        ...


T = TypeVar("T", bound=Sized)


def packed(items: Sequence[T], tokens: int) -> list[list[T]]:
    """Items, shortest first, in groups of at most so many tokens with padding, or of one item."""
    groups: list[list[T]] = [[]]
    for item in items:
        if groups[-1] and (len(groups[-1]) + 1) * item.size > tokens:
            groups.append([])
        groups[-1].append(item)
    return groups if groups[-1] else []
