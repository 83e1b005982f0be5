"""What the training loop needs of a task: a module, batches, a loss and validation scores."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from proxhpc.spec.sections import Level
from proxhpc.train.score import ValidationScores

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BatchPosition = tuple[int, int]
"""An epoch, and how many of its batches all processes together have consumed."""
StageSettings = dict[str, int | float | str]
"""Keys of a manifest's stage."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tensors of a batch; `inputs` (B, width) are token ids, padded on the right.

    `weight` are the weights of its answers in the loss.
    """

    inputs: "torch.Tensor"
    weight: "torch.Tensor"

    def to(self, device: str) -> Self:
        """The same batch on `device`."""
        tensors = (getattr(self, field.name) for field in fields(self))
        return type(self)(*(tensor.to(device, non_blocking=True) for tensor in tensors))


BatchT = TypeVar("BatchT", bound=Batch)


@dataclass(frozen=True, slots=True)
class Losses:
    """The loss to minimize; `parts` are its terms, and accuracies, for the log."""

    total: "torch.Tensor"
    parts: dict[str, float]


class TrainingTask(Protocol[BatchT]):
    """A module with its training and validation examples.

    `module` holds all trained parameters, `model` is the part that is a language model, and
    `tokenizer_dir` has its tokenizer. `unused` counts the examples that are left out, by reason.
    """

    module: "torch.nn.Module"
    model: "PreTrainedModel"
    tokenizer_dir: Path
    unused: Counter[str]

    def epoch(self, number: int) -> Sequence[Callable[[], BatchT]]:
        """The batches of an epoch, each as the function that builds it.

        They depend only on the recipe and the number.
        """

    def loss(self, batch: BatchT, done: float) -> Losses:
        """The loss of a batch after the share `done` (0 to 1) of the training."""

    def validate(self, max_examples: int) -> ValidationScores:
        """Scores on a random sample of the validation split."""

    def exported(self) -> "PreTrainedModel":
        """The model to write, after the training."""

    def stages(self, scores: ValidationScores) -> dict[Level, StageSettings]:
        """The settings for prompting the model, for each level that it was trained on."""


def process_batches(
    task: TrainingTask[BatchT], position: BatchPosition, rank: int = 0, processes: int = 1
) -> Iterator[tuple[BatchPosition, BatchT]]:
    """Batches of a process from `position` on, without end, each with the position after it.

    In each turn every process gets one batch; these are different ones (see `shared_indices`).
    """
    epoch, consumed = position
    while True:
        batches = task.epoch(epoch)
        for after, index in shared_indices(len(batches), consumed, rank, processes):
            yield (epoch, after), batches[index]()
        epoch, consumed = epoch + 1, 0


def shared_indices(
    count: int, consumed: int, rank: int, processes: int
) -> Iterator[tuple[int, int]]:
    """A process's share of the `count` batches of an epoch, of which `consumed` are done.

    Yields pairs: the number that all have consumed after this turn, and the index of the batch. In
    the last turn some repeat batches from the start of the epoch if there are too few.
    """
    for start in range(consumed, count, processes):
        yield min(count, start + processes), (start + rank) % count


def load_base(path: Path) -> "PreTrainedModel":
    """The model in a directory, in float32. Code in the directory is never run."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        path, dtype="float32", local_files_only=True, trust_remote_code=False, use_safetensors=True
    )


def weighted_mean(values: "torch.Tensor", weights: "torch.Tensor") -> "torch.Tensor":
    """The weighted mean; 0 if there are no values."""
    return (values * weights).sum() / weights.sum().clamp(min=1e-9)


class TokenSized(Protocol):
    """Anything with a size in tokens."""

    @property
    def size(self) -> int:
        """Tokens."""


T = TypeVar("T", bound=TokenSized)


def pack_batches(items: Iterable[T], max_tokens: int) -> list[list[T]]:
    """Group items of similar sizes so that each group padded to its longest fits `max_tokens`.

    An item that is larger gets a separate group.
    """
    groups: list[list[T]] = [[]]
    for item in sorted(items, key=lambda item: item.size):
        if groups[-1] and (len(groups[-1]) + 1) * item.size > max_tokens:
            groups.append([])
        groups[-1].append(item)
    return groups if groups[-1] else []
