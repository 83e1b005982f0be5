"""Trains a model in a Slurm job with the resources that the site gives to a worker."""

import os
from pathlib import Path

from proxhpc.cluster import script, slurm
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError, UserError
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.site import Site
from proxhpc.train.adapt import adapt
from proxhpc.train.checkpoint import TrainingFolder


def submit(recipe: Recipe, out: Path, site: Site, *, resume: bool = False) -> str:
    """Submit the training and return the job's id. The job logs into `training/logs`.

    UserError if the site has no Slurm, or Slurm rejects the job.
    """
    if site.kind != "slurm":
        raise UserError(
            f"site {site.name} is not a Slurm site",
            hint="to train on this machine, leave --site out",
        )
    if why := slurm.why_unavailable():
        raise RetryError(
            f"site {site.name} is a Slurm site, and this machine has none: {why}",
            hint="run this on a login node; to train on this machine, leave --site out",
        )
    TrainingFolder(out).create(recipe, resume=resume)
    with slurm.submitting(), writing(out / "training"):
        executor = script.job_executor(_batch_job(recipe, out), site)
        job = executor.submit(run_training, recipe.model_dump_json(), str(out), resume)
    return str(job.job_id)


def _batch_job(recipe: Recipe, out: Path) -> script.BatchJob:
    return script.BatchJob(
        name=f"{recipe.name}-adapt",
        phase="refine",
        logs=out / "training" / "logs",
        comment=f"proxhpc-adapt:{recipe.name}",
        mounts=script.container_mounts(
            [out], map(Path, recipe.examples), [Path(recipe.base)] if recipe.base else []
        ),
    )


def run_training(recipe: str, out: str, resume: bool) -> str:
    """Run the training of a recipe in JSON, in the job; its best score as text."""
    if os.environ.get("SLURM_PROCID", "0") != "0":  # of several tasks the first one trains
        return "task 0 trains"
    adapted = adapt(Recipe.model_validate_json(recipe), Path(out), resume=resume)
    return f"f1 {adapted.scores.get('f1', 0.0):.3f}"
