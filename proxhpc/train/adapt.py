"""A training from its recipe to the model's directory."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from proxhpc.errors import UserError
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.refiner_file import NAME, RefinerFile
from proxhpc.train.card import card
from proxhpc.train.checkpoint import Folder, TrainingState
from proxhpc.train.distributed import Ranks, launch_processes, process_ranks
from proxhpc.train.export import export
from proxhpc.train.loop import Trainer
from proxhpc.train.rows import Examples
from proxhpc.train.score import ValidationScores
from proxhpc.train.task import TrainingTask

FINAL = 8  # times the validation on the way: programs take long to write


@dataclass(frozen=True, slots=True)
class Adapted:
    """A finished training: how far it went, and the best weights' scores in the end."""

    progress: TrainingState
    scores: ValidationScores


def adapt(
    recipe: Recipe,
    out: Path,
    *,
    resume: bool = False,
    processes: int | None = None,
    say: Callable[[str], None] = print,
) -> Adapted:
    """Train, and write the model with the best weights into `out`.

    In so many processes, each with batches of its own; None: one for each GPU here. UserError for
    examples or a base model that do not fit the recipe, RetryError when it is told to stop; the
    same call with `resume` goes on.
    """
    folder = Folder(out)
    folder.begin(recipe, resume=resume)
    folder.clear()
    examples = Examples(tuple(map(Path, recipe.examples)))
    if not any(row.split == "train" for row in examples):
        kept = "all are of hosts kept for validation (docs/annotate.md): add documents of others"
        none = "there are none at all: the summary beside the file says what became of documents"
        raise UserError(
            f"no example of the training split in {', '.join(recipe.examples)}",
            hint=kept if any(True for _ in examples) else none,
        )
    course = _course(recipe, examples, folder)
    for reason, number in course.unused.items():
        say(f"{number:,} examples are not used: {reason}")
    with launch_processes(
        processes or process_ranks(), _follow, recipe.model_dump_json(), out
    ) as ranks:
        trainer = Trainer(recipe, course, folder, say, ranks)
        trainer.run()
    trainer.take_best()
    adapted = Adapted(trainer.progress, trainer.scores(FINAL * recipe.validation))
    folder.check_owner()
    _write(recipe, trainer.course, examples, adapted, out)
    return adapted


def _follow(recipe: str, out: Path, ranks: Ranks) -> None:
    """What the other processes of a training do."""
    parsed, folder = Recipe.model_validate_json(recipe), Folder(out)
    examples = Examples(tuple(map(Path, parsed.examples)))
    course = _course(parsed, examples, folder)
    Trainer(parsed, course, folder, lambda _: None, ranks).follow()


def _course(recipe: Recipe, examples: Examples, folder: Folder) -> TrainingTask:
    if recipe.prompt == "walk":
        from proxhpc.train.walk_task import WalkTask

        return WalkTask(recipe, examples, folder.tokenizer)
    from proxhpc.train.program_task import ProgramTask

    return ProgramTask(recipe, examples)


def _write(
    recipe: Recipe, course: TrainingTask, examples: Examples, adapted: Adapted, out: Path
) -> None:
    levels = {row.level for row in examples if row.split == "train"}
    stages = course.stages(adapted.scores)
    refiner = RefinerFile.model_validate(
        {"version": 1, "prompt": recipe.prompt, **{k: v for k, v in stages.items() if k in levels}}
    )
    size = sum(p.numel() for p in course.llama.parameters())
    texts = {
        NAME: json.dumps(refiner.to_dict(), indent=2) + "\n",
        "README.md": card(recipe, examples, course.unused, adapted.progress, adapted.scores, size),
    }
    export(course.llama, course.vocabulary, texts, out)
