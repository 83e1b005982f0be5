"""Checkpoints of a training run: what it needs to resume with the same result."""

import pickle
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxhpc.corpus.disk import replacing, sha256_file, write_atomic, writing
from proxhpc.errors import UserError
from proxhpc.spec.recipe import Recipe

CHECKPOINT_VERSION = 3

# Keys of a recipe that may change when a training run is resumed.
_CHANGEABLE = frozenset(
    {
        *("steps", "hours", "epochs", "minutes", "save_minutes", "validation", "patience"),
        *("notes", "precision", "name", "checkpointing", "trackers"),
    }
)
_EXAMPLE_HASHES = "example_hashes"


@dataclass
class TrainingState:
    """The progress of a training run.

    `seconds` is the time of its steps. `position` is the next batch (task.BatchPosition). The best
    scores and their step are also stored with the best weights, and read from there on a resume.
    """

    step: int = 0
    seconds: float = 0.0
    position: tuple[int, int] = (0, 0)
    tokens: int = 0
    evaluated_step: int = 0
    best_scores: dict[str, float] | None = None
    best_step: int = 0
    evaluations: int = 0  # since the best


class TrainingFolder:
    """The folder `training` of a model's directory: checkpoints, log, tokenizer, pages of pairs."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out / "training"
        self.state = self.root / "state.pt"
        self.best = self.root / "best.pt"
        self.log = self.root / "log.jsonl"
        self.tokenizer = self.root / "tokenizer"
        self.pairs, self.held_out, self.examples = (
            self.root / f"{name}.jsonl.zst" for name in ("pairs", "held-out", "examples")
        )
        self.recipe = self.root / "recipe.yaml"
        self._owner, self._token = self.root / "owner", secrets.token_hex(8).encode()

    def create(self, recipe: Recipe, *, resume: bool) -> None:
        """Create the folder.

        UserError if it holds a training run and `resume` is false, or if `out` is the base model or
        holds files of something else.
        """
        if recipe.base is not None and self.out.resolve() == Path(recipe.base).resolve():
            raise UserError(
                f"{self.out} holds the base model, which would be overwritten",
                hint="give another --out",
            )
        if self.state.exists() and not resume:
            raise UserError(
                f"{self.out} already holds a training run",
                hint="continue it with --resume, give another --out, or delete it",
            )
        self._create()

    def create_for_pairs(self) -> None:
        """Create the folder, for a training run whose examples and recipe it holds, too.

        UserError if it holds another training run or files of something else.
        """
        if self.state.exists() and not self.pairs.exists():
            raise UserError(
                f"{self.out} already holds a training run that was not started with --pairs",
                hint="give another --out, or delete it",
            )
        self._create()

    def _create(self) -> None:
        self._check_foreign()
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def _check_foreign(self) -> None:
        """Raise UserError if `out` has files that no training run wrote there."""
        if self.root.is_dir() and any(self.root.iterdir()):
            own = {self.state, self.best, self.log, self.tokenizer, self.recipe, self._owner}
            own |= {self.pairs, self.held_out, self.examples}
            own |= {self.root / n for n in ("logs", "runs", "model", "examples.summary.json")}
            foreign = [p for p in self.root.iterdir() if p not in own and p.suffix != ".tmp"]
        else:  # so nothing was trained here yet, and no model was written
            found = [*self.out.iterdir()] if self.out.is_dir() else []
            foreign = [path for path in found if path != self.root]
        if foreign:
            more = f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""
            raise UserError(
                f"{self.out} has files that are not of a training run: {min(foreign).name}{more}",
                hint="give a new or empty directory as --out",
            )

    def remove_leftovers(self) -> None:
        """Without a checkpoint, remove the tokenizer and best weights, maybe of another recipe."""
        if not self.state.exists():
            shutil.rmtree(self.tokenizer, ignore_errors=True)
            self.best.unlink(missing_ok=True)

    def claim(self) -> None:
        """Take over the folder; an earlier training run elsewhere can no longer save."""
        write_atomic(self._owner, self._token)

    def check_owner(self) -> None:
        """Raise UserError if another training run has claimed the folder, or if it is gone."""
        with writing(self._owner):
            owner = self._owner.read_bytes()
        if owner != self._token:
            raise UserError(
                f"{self.out}: another training run was started there, so this one stops",
                hint="use a separate --out for each training run",
            )

    def save(self, path: Path, data: dict[str, Any]) -> None:
        """Replace a file atomically. Errors as `check_owner` and `disk.writing`."""
        self.check_owner()
        save_checkpoint(path, data)


def save_checkpoint(path: Path, data: dict[str, Any]) -> None:
    """Replace a file atomically with tensors and plain values."""
    import torch

    with replacing(path) as file:
        torch.save(data, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a file that `save_checkpoint` wrote, without executing code in it."""
    import torch

    try:
        data: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, OSError, RuntimeError, ValueError, pickle.PickleError) as error:
        raise UserError(
            f"{path} cannot be read: {str(error).partition(chr(10))[0] or 'it is truncated'}",
            hint="delete the folder and train again",
        ) from error
    return data


def recipe_fingerprint(recipe: Recipe) -> dict[str, Any]:
    """The keys of a recipe that must stay when a training run is resumed, and its files' hashes."""
    fixed = recipe.model_dump(mode="json", exclude={*_CHANGEABLE, "examples"})
    return fixed | {_EXAMPLE_HASHES: [sha256_file(Path(path)) for path in recipe.examples]}


def check_same_recipe(
    current: dict[str, Any], saved: dict[str, Any], folder: TrainingFolder
) -> None:
    """Raise UserError unless two fingerprints of recipes are equal."""
    differing = sorted(key for key in current if current[key] != saved.get(key))
    if not differing:
        return
    if _EXAMPLE_HASHES in differing:
        raise UserError(
            f"{folder.out}: its training run was started with other examples",
            hint="restore them, in their order, or give another --out",
        )
    raise UserError(
        f"{folder.out}: its training run was started with different {', '.join(differing)}",
        hint="restore these keys, or give another --out",
    )
