"""How the batch script of a job is made: from a phase's resources to submitit's executor."""

import os
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from proxhpc.cluster import slurm
from proxhpc.cluster.work import Work
from proxhpc.plan import Plan
from proxhpc.rundir import RunDir
from proxhpc.site import Container, Resources, Site

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


def executor(
    run: RunDir, plan: Plan, site: Site, work: Work, *, intent: int, dependency: str = ""
) -> Any:
    """A submitit executor for `work`, whose jobs begin held and bear the run's and intent's tag."""
    import submitit

    resources = site.resources(work.phase)
    made = submitit.SlurmExecutor(
        folder=run.logs / f"{intent:04d}-{work.phase}", python=_python(run, plan, site, resources)
    )
    extra: dict[str, Any] = {
        "hold": True,
        "comment": f"{slurm.tag(plan.run_id)}:{work.phase}:{intent}",
        # The chain of jobs hangs on the control job, which may run again; what else dies is made
        # up for by a fresh submission.
        "requeue" if work.phase == "control" else "no-requeue": True,
        **resources.sbatch,
    }
    if work.delay:
        extra["begin"] = f"now+{work.delay}"
    if dependency:
        extra["dependency"] = dependency
    if resources.reservation:
        extra["reservation"] = resources.reservation
    if resources.mem:
        extra["mem"] = resources.mem
    given = str(extra.pop("exclude", "") or "")
    setup = [*resources.setup, AGAIN] if work.phase == "control" else [*resources.setup]
    wanted = {
        "job_name": f"{plan.manifest.name}-{work.phase}",
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gres": resources.gres,
        "exclude": ",".join(filter(None, (given, *work.exclude))) or None,
        "exclusive": resources.exclusive or None,
        "time": -(-resources.seconds // 60) if resources.seconds else None,
        "nodes": 1,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": resources.gpus * resources.tasks_per_node or None,
        "signal_delay_s": SIGNAL_SECONDS,
        "setup": setup or None,
        "srun_args": _pyxis(run, plan, resources.container),
        "array_parallelism": len(work.arguments),
        "additional_parameters": extra,
    }
    # submitit's own wckey is refused where keys are tracked and this one is unknown.
    made.update_parameters(wckey=None, **{k: v for k, v in wanted.items() if v is not None})
    return made


def text(made: Any, elements: int) -> str:
    """The batch script that this executor submits for so many elements."""
    parameters = made.parameters | ({"map_count": elements} if elements > 1 else {})
    from submitit.slurm.slurm import _make_sbatch_string

    script: str = _make_sbatch_string(
        command=made._submitit_command_str, folder=made.folder, **parameters
    )
    return script


def _python(run: RunDir, plan: Plan, site: Site, resources: Resources) -> str | None:
    """The command that is Python for a job; None for the one that runs this."""
    container = resources.container
    if container is None:
        return None if site.python is None else shlex.quote(site.python)
    python = shlex.quote(site.python or "python3")
    if container.kind == "pyxis":
        return python
    words = [container.kind, "exec"]
    words += ["--nv"] if resources.gpus or resources.gres else []
    for mount in _mounts(run, plan, container):
        words += ["--bind", mount]
    words += [*container.options, container.image]
    return " ".join([*map(shlex.quote, words), python])


def _pyxis(run: RunDir, plan: Plan, container: Container | None) -> list[str] | None:
    if container is None or container.kind != "pyxis":
        return None
    mounts = [m if ":" in m else f"{m}:{m}" for m in _mounts(run, plan, container)]
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        *container.options,
    ]


def _mounts(run: RunDir, plan: Plan, container: Container) -> list[str]:
    """The run directory, the inputs' folders, the models, and what the site says."""
    own = [str(run.root), *_folders(info.path.parent for info in (*plan.inputs, *plan.against))]
    for model in plan.models.values():
        # The files of a hub's snapshot are links to blobs that lie beside the snapshots.
        hub = model.path.parent.name == "snapshots"
        own.append(str(model.path.parent.parent if hub else model.path))
    return [*dict.fromkeys(own), *container.mounts]


def _folders(paths: Iterable[Path]) -> list[str]:
    """Few folders that hold all of these: those below one top folder share their common part."""
    tops: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(set(paths)):
        tops.setdefault(path.parts[:3], []).append(str(path))
    return [os.path.commonpath(inner) for inner in tops.values()]
