"""How the batch script of a job is made: from a phase's resources to submitit's executor."""

import os
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxhpc.cluster import slurm
from proxhpc.cluster.backend import Work
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import Container, PhaseName, Resources, Site

# A node where everything fails at once is always free, so it gets the control job too. What ends
# badly by itself is put back, away from that node; what somebody cancels is not RUNNING by then.
AGAIN = """\
again() {
  code=$?
  trap "" TERM
  if [ $code -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 4 ] &&
     [ "$(squeue -a -h -j "$SLURM_JOB_ID" -o %T)" = RUNNING ]; then
    scontrol requeue "$SLURM_JOB_ID" &&
    scontrol update jobid="$SLURM_JOB_ID" excnodelist="$SLURMD_NODENAME"
  fi
  exit $code
}
trap again EXIT"""
SIGNAL_SECONDS = 90  # before the limit; workers stop by their own clock, this is the second net


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What a batch script runs, as far as Slurm is concerned.

    `comment` is how it is found in the queue, `mounts` are the directories that it reads and
    writes, for a container. `held`: it begins when it is released; `again`: it may be requeued.
    """

    name: str
    phase: PhaseName
    logs: Path
    comment: str
    mounts: tuple[str, ...]
    elements: int = 1
    exclude: tuple[str, ...] = ()
    delay: int = 0
    held: bool = False
    again: bool = False


def executor(
    run: RunDir, plan: Plan, site: Site, work: Work, *, intent: int, dependency: str = ""
) -> Any:
    """A submitit executor for `work`, whose jobs begin held and bear the run's and intent's tag."""
    job = BatchJob(
        name=f"{plan.manifest.name}-{work.phase}",
        phase=work.phase,
        logs=run.logs / f"{intent:04d}-{work.phase}",
        comment=f"{slurm.tag(plan.run_id)}:{work.phase}:{intent}",
        mounts=_mounts(run, plan),
        elements=len(work.arguments),
        exclude=work.exclude,
        delay=work.delay,
        held=True,
        # The chain of jobs hangs on the control job, which may run again; what else dies is made
        # up for by a fresh submission.
        again=work.phase == "control",
    )
    return executor_of(job, site, dependency)


def executor_of(job: BatchJob, site: Site, dependency: str = "") -> Any:
    """A submitit executor for a job, with what the site asks for its phase."""
    import submitit

    resources = site.resources(job.phase)
    made = submitit.SlurmExecutor(folder=job.logs, python=_python(job, site, resources))
    extra: dict[str, Any] = {
        "comment": job.comment,
        "requeue" if job.again else "no-requeue": True,
        **resources.sbatch,
    }
    if job.held:
        extra = {"hold": True} | extra
    if job.delay:
        extra["begin"] = f"now+{job.delay}"
    if dependency:
        extra["dependency"] = dependency
    if resources.reservation:
        extra["reservation"] = resources.reservation
    if resources.mem:
        extra["mem"] = resources.mem
    given = str(extra.pop("exclude", "") or "")
    wanted = {
        "job_name": job.name,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gres": resources.gres,
        "exclude": ",".join(filter(None, (given, *job.exclude))) or None,
        "exclusive": resources.exclusive or None,
        "time": -(-resources.seconds // 60) if resources.seconds else None,
        "nodes": 1,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus * resources.tasks_per_node or None,
        "signal_delay_s": SIGNAL_SECONDS,
        "setup": [*resources.setup, *([AGAIN] if job.again else [])] or None,
        "srun_args": _pyxis(job, resources.container),
        "array_parallelism": job.elements,
        "additional_parameters": extra,
    }
    # submitit's own wckey is refused where keys are tracked and this one is unknown.
    made.update_parameters(wckey=None, **{k: v for k, v in wanted.items() if v is not None})
    return made


def script_text(made: Any, elements: int) -> str:
    """The batch script that this executor submits for so many elements."""
    parameters = made.parameters | ({"map_count": elements} if elements > 1 else {})
    from submitit.slurm.slurm import _make_sbatch_string

    script: str = _make_sbatch_string(
        command=made._submitit_command_str, folder=made.folder, **parameters
    )
    return script


def _python(job: BatchJob, site: Site, resources: Resources) -> str | None:
    """The command that is Python for a job; None for the one that runs this."""
    container = resources.container
    if container is None:
        return None if site.python is None else shlex.quote(site.python)
    python = shlex.quote(site.python or "python3")
    if container.kind == "pyxis":
        return python
    words = [container.kind, "exec"]
    words += ["--nv"] if resources.gpus or resources.gres else []
    for mount in (*job.mounts, *container.mounts):
        words += ["--bind", mount]
    words += [*container.options, container.image]
    return " ".join([*map(shlex.quote, words), python])


def _pyxis(job: BatchJob, container: Container | None) -> list[str] | None:
    if container is None or container.kind != "pyxis":
        return None
    mounts = [m if ":" in m else f"{m}:{m}" for m in (*job.mounts, *container.mounts)]
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        *container.options,
    ]


def _mounts(run: RunDir, plan: Plan) -> tuple[str, ...]:
    """The run directory, the inputs' folders and the models."""
    inputs = (info.path for info in (*plan.inputs, *plan.against))
    return folders([run.root], inputs, (model.path for model in plan.models.values()))


def folders(
    written: Iterable[Path], files: Iterable[Path], models: Iterable[Path]
) -> tuple[str, ...]:
    """The directories to be seen in a container: those themselves, of files, and of models."""
    own = [*map(str, written), *_folders(path.parent for path in files)]
    for model in models:
        # The files of a hub's snapshot are links to blobs that lie beside the snapshots.
        hub = model.parent.name == "snapshots"
        own.append(str(model.parent.parent if hub else model))
    return tuple(dict.fromkeys(own))


def _folders(paths: Iterable[Path]) -> list[str]:
    """Few folders that hold all of these: those below one top folder share their common part."""
    tops: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(set(paths)):
        tops.setdefault(path.parts[:3], []).append(str(path))
    return [os.path.commonpath(inner) for inner in tops.values()]
