"""A training as a Slurm job, with what a site gives a worker that writes programs."""

import os
from pathlib import Path

from proxhpc.cluster import script, slurm
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError, UserError
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.site import Site
from proxhpc.train.adapt import adapt
from proxhpc.train.checkpoint import Folder


def submit(recipe: Recipe, out: Path, site: Site, *, resume: bool = False) -> str:
    """Submit the training; the job's id. What it says goes to `training/logs`.

    UserError where the site is none of Slurm, or Slurm refuses the job.
    """
    from submitit.core.utils import FailedJobError

    if site.kind != "slurm":
        raise UserError(
            f"site {site.name} is no Slurm site", hint="leave --site out to train right here"
        )
    if not slurm.available():
        raise RetryError(
            f"site {site.name} is a Slurm site, but there is no sbatch on this machine",
            hint="call this on a login node, or leave --site out to train right here",
        )
    Folder(out).begin(recipe, resume=resume)
    try:
        with slurm.clean_environment(), writing(out / "training"):
            made = script.executor_of(_job(recipe, out), site)
            job = made.submit(run_training, recipe.model_dump_json(), str(out), resume)
    except FailedJobError as error:
        raise slurm.refusal(error) from error
    return str(job.job_id)


def _job(recipe: Recipe, out: Path) -> script.BatchJob:
    return script.BatchJob(
        name=f"{recipe.name}-adapt",
        phase="refine",
        logs=out / "training" / "logs",
        comment=f"proxhpc-adapt:{recipe.name}",
        mounts=script.folders(
            [out], map(Path, recipe.examples), [Path(recipe.base)] if recipe.base else []
        ),
    )


def run_training(recipe: str, out: str, resume: bool) -> str:
    """What the job runs: the training of a recipe in JSON; its best score."""
    # With several tasks on a node one of them trains.
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return "another task trains"
    adapted = adapt(Recipe.model_validate_json(recipe), Path(out), resume=resume)
    return f"f1 {adapted.scores.get('f1', 0.0):.3f}"
