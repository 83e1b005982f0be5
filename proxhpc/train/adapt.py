"""From a recipe to the directory of a trained refiner."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxhpc.account.quantity import quantity
from proxhpc.corpus.disk import sync_directory, writing
from proxhpc.errors import UserError
from proxhpc.extras import require_package
from proxhpc.run.models import TOKENIZER_FILES
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.refiner_file import NAME, RefinerFile
from proxhpc.train.card import model_card
from proxhpc.train.checkpoint import TrainingFolder, TrainingState
from proxhpc.train.loop import Loop
from proxhpc.train.processes import first_process_first, run_processes
from proxhpc.train.rows import Examples
from proxhpc.train.score import ValidationScores
from proxhpc.train.task import TrainingTask

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FINAL_FACTOR = 8  # the last evaluation has this many times the examples of the others


@dataclass(frozen=True, slots=True)
class Adapted:
    """The result of a training run: its last state, and the final scores of the best weights."""

    state: TrainingState
    scores: ValidationScores


def adapt(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    processes: int | None = None,
    log: Callable[[str], None] = print,
) -> Adapted:
    """Train a model and write its best weights into `out`.

    `processes` is the number of processes; None: one for each GPU. UserError if the examples or
    the base model do not fit the recipe. RetryError if the training is stopped by a signal; call
    again with `resume` to continue it.
    """
    for tracker in recipe.trackers:
        require_package(tracker, tracker, f"the tracker {tracker}")
    folder = TrainingFolder(out)
    folder.create(recipe, resume=resume)
    folder.remove_leftovers()
    _check_training_split(recipe, Examples(tuple(map(Path, recipe.examples))))
    adapted = run_processes(processes, _adapt, recipe, folder, log=log)
    assert adapted is not None  # from the first process
    return adapted


def _adapt(recipe: Recipe, folder: TrainingFolder, log: Callable[[str], None]) -> Adapted | None:
    """Train in one of the processes; the first one also writes the model."""
    examples = Examples(tuple(map(Path, recipe.examples)))
    with first_process_first() as is_first:
        task = _training_task(recipe, examples, folder)
    for reason, number in task.unused.items():
        log(f"{quantity(number, 'example is', 'examples are')} not used: {reason}")
    loop = Loop(recipe, task, folder, log)
    loop.run()
    if not is_first:
        return None
    loop.load_best()
    adapted = Adapted(loop.state, loop.validate(FINAL_FACTOR * recipe.validation))
    folder.check_owner()
    _write_model(recipe, task, examples, adapted, folder.out)
    return adapted


def _check_training_split(recipe: Recipe, examples: Examples) -> None:
    """Raise UserError if there is no example to train on."""
    if any(row.split == "train" for row in examples):
        return
    if any(True for _ in examples):
        hint = "all are from validation hosts (docs/annotate.md): add documents of other hosts"
    else:
        hint = "the files are empty: the summary beside each says what became of its documents"
    raise UserError(f"no example of the training split in {', '.join(recipe.examples)}", hint=hint)


def _training_task(
    recipe: Recipe, examples: Examples, folder: TrainingFolder
) -> TrainingTask[Any]:  # a WalkTask or a ProgramTask, each with its own kind of batch
    if recipe.prompt == "walk":
        from proxhpc.train.walk_task import WalkTask

        return WalkTask(recipe, examples, folder.tokenizer)
    from proxhpc.train.program_task import ProgramTask

    return ProgramTask(recipe, examples)


def _write_model(
    recipe: Recipe, task: TrainingTask[Any], examples: Examples, adapted: Adapted, out: Path
) -> None:
    """Write weights, tokenizer, refiner.json and the card into `out`."""
    refiner = RefinerFile.model_validate(
        {"version": 1, "prompt": recipe.prompt} | task.stages(adapted.scores)
    )
    model = task.exported()
    parameters = sum(p.numel() for p in model.parameters())
    card = model_card(recipe, examples, task.unused, adapted.state, adapted.scores, parameters)
    texts = {NAME: json.dumps(refiner.to_dict(), indent=2) + "\n", "README.md": card}
    _export(model, task.tokenizer_dir, texts, out)


def _export(model: "PreTrainedModel", tokenizer: Path, texts: Mapping[str, str], out: Path) -> None:
    """Write a model's files in bfloat16, prepared in a separate folder; `texts` come last."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    draft = out / "training" / "model"
    shutil.rmtree(draft, ignore_errors=True)
    with writing(draft):
        model.to(torch.bfloat16).save_pretrained(draft, safe_serialization=True)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, draft / name)
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        for path in sorted(draft.iterdir(), key=lambda path: (path.name in texts, path.name)):
            path.chmod(0o644)  # save_pretrained makes weights that only their owner can read
            os.replace(path, out / path.name)
        draft.rmdir()
    sync_directory(out)
