"""Checkpoints: everything that a training needs to go on as if nothing had been."""

import pickle
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxhpc.corpus.disk import replacing, sha256_file, write_atomic, writing
from proxhpc.errors import UserError
from proxhpc.spec.recipe import Recipe

# Keys of a recipe that may change between two parts of a training.
_CHANGEABLE = frozenset(
    {"steps", "hours", "minutes", "save_minutes", "validation", "notes", "precision", "name"}
)

CONTENT = "content"
MOVED = frozenset({"examples", CONTENT})  # files may have other names, but no other content


@dataclass
class TrainingState:
    """How far a training is: steps done, seconds spent in them, the next batch, the best score.

    `judged_step` is the step after which weights were judged last, `best_step` that of the best.
    """

    step: int = 0
    seconds: float = 0.0
    cursor: tuple[int, int] = (0, 0)
    best: dict[str, float] | None = None
    best_step: int = 0
    tokens: int = 0
    judged_step: int = 0


class Folder:
    """Where a training keeps its state, beside the model it will write."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.root = out / "training"
        self.state = self.root / "state.pt"
        self.best = self.root / "best.pt"
        self.log = self.root / "log.jsonl"
        self.tokenizer = self.root / "tokenizer"
        self._owner, self._token = self.root / "owner", secrets.token_hex(8).encode()

    def begin(self, recipe: Recipe, *, resume: bool) -> None:
        """Make the folder.

        UserError where a training is there that is not to be gone on with, or the base model is.
        """
        if recipe.base is not None and self.out.resolve() == Path(recipe.base).resolve():
            raise UserError(
                f"{self.out} holds the base model, which would be replaced",
                hint="give another --out",
            )
        if self.state.exists() and not resume:
            raise UserError(
                f"{self.out} holds a training already",
                hint="go on with it: --resume; or give another --out, or delete it",
            )
        with writing(self.root):
            self.root.mkdir(parents=True, exist_ok=True)

    def clear(self) -> None:
        """Without a checkpoint forget the tokenizer, too: it may be of other examples."""
        if not self.state.exists():
            shutil.rmtree(self.tokenizer, ignore_errors=True)

    def claim(self) -> None:
        """Take the folder: whoever had it, perhaps on a node that was given up, saves no more."""
        write_atomic(self._owner, self._token)

    def check_owner(self) -> None:
        """Raise UserError where another training has taken the folder, or it is gone."""
        with writing(self._owner):
            owner = self._owner.read_bytes()
        if owner != self._token:
            raise UserError(
                f"{self.out}: another training has begun there, so this one ends",
                hint="give each training an --out of its own",
            )

    def save(self, path: Path, data: dict[str, Any]) -> None:
        """Write one file, whole or not at all. UserError where the folder is another's."""
        import torch

        self.check_owner()
        with replacing(path) as file:
            torch.save(data, file)

    def load(self, path: Path) -> dict[str, Any]:
        """Read what `save` wrote; no code in it is run."""
        import torch

        try:
            data: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (EOFError, OSError, RuntimeError, ValueError, pickle.PickleError) as error:
            raise UserError(
                f"{path} cannot be read: {str(error).partition(chr(10))[0] or 'it ends too soon'}",
                hint="delete the folder and train again",
            ) from error
        return data


def recipe_fingerprint(recipe: Recipe) -> dict[str, Any]:
    """What of a recipe must not change while a training goes on; of examples the content."""
    data: dict[str, Any] = recipe.model_dump(mode="json")
    found = {key: value for key, value in data.items() if key not in _CHANGEABLE}
    return found | {CONTENT: [sha256_file(Path(path)) for path in recipe.examples]}


def check_same_recipe(own: dict[str, Any], saved: dict[str, Any], folder: Folder) -> None:
    """Raise UserError where a training was begun with another recipe, as `taught_by` tells it."""
    if own[CONTENT] != saved.get(CONTENT, own[CONTENT]):  # older checkpoints do not say
        raise UserError(
            f"{folder.out}: its training was begun with other examples",
            hint="put them back, in their order, or give another --out",
        )
    differ = sorted(key for key in own if own[key] != saved.get(key) and key not in MOVED)
    if differ:
        raise UserError(
            f"{folder.out}: its training was begun with another {', '.join(differ)}",
            hint="put these keys back, or give another --out",
        )
