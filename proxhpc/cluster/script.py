"""Batch scripts: from a phase's resources to submitit's executor."""

import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxhpc.cluster import slurm
from proxhpc.cluster.backend import TaskBatch
from proxhpc.cluster.queue import Tag
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import Container, PhaseName, Resources, Site

# A node on which every job fails at once is always idle, so it attracts the control job, too. A
# control job that fails is requeued away from its node. One that was cancelled is not RUNNING.
REQUEUE_ON_FAILURE = """\
requeue_on_failure() {
  code=$?
  unset SLURM_CLUSTERS
  trap "" TERM
  if [ $code -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 4 ] &&
     scontrol show job -o "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then
    scontrol requeue "$SLURM_JOB_ID" &&
    scontrol update jobid="$SLURM_JOB_ID" excnodelist="$SLURMD_NODENAME"
  fi
  exit $code
}
trap requeue_on_failure EXIT"""
# Some sites print a refusal on stdout, or a balance on stderr; submitit would drop either.
_SBATCH = """\
out=$(sbatch "$0" 2>&1); code=$?
if [ $code = 0 ]; then echo "$out"; else echo "$out" >&2; fi
exit $code"""
_OMITTED = "proxhpc-omitted"  # the value of a directive that is left out
SIGNAL_SECONDS = 90  # before the limit; workers watch the clock, so this is a second safeguard


@dataclass(frozen=True, slots=True)
class BatchJob:
    """What Slurm has to know of a job, apart from its resources."""

    name: str
    phase: PhaseName
    logs: Path
    comment: str  # identifies the job in the queue
    mounts: tuple[str, ...]  # directories that a container must see
    elements: int = 1
    excluded_nodes: tuple[str, ...] = ()
    delay_seconds: int = 0
    held: bool = False  # until it is released
    requeue: bool = False  # if it fails or its node does


def batch_executor(
    run: RunDir, plan: Plan, site: Site, batch: TaskBatch, *, intent: int, dependency: str = ""
) -> Any:
    """Return a submitit executor whose jobs are held and tagged with the run and the intent."""
    tag = Tag(plan.run_id, batch.phase, intent)
    job = BatchJob(
        name=tag.job_name(plan.manifest.name),
        phase=batch.phase,
        logs=run.logs / f"{intent:04d}-{batch.phase}",
        comment=tag.comment,
        mounts=run_mounts(run, plan),
        elements=len(batch.arguments),
        excluded_nodes=batch.excluded_nodes,
        delay_seconds=batch.delay_seconds,
        held=True,
        # All further steps depend on the control job. Other lost jobs are submitted afresh.
        requeue=batch.phase == "control",
    )
    executor = job_executor(job, site, dependency)
    if batch.minutes is not None:
        executor.update_parameters(time=batch.minutes)
    return executor


def job_executor(job: BatchJob, site: Site, dependency: str = "") -> Any:
    """Return a submitit executor for a job, with the resources that the site sets for its phase."""
    import submitit

    resources = site.resources(job.phase)
    executor: Any = submitit.SlurmExecutor(folder=job.logs, python=_python(job, site, resources))
    # Arrays are submitted by an instance that submitit makes, so a subclass would not do.
    type(executor)._make_submission_command = lambda _, path: ["sh", "-c", _SBATCH, str(path)]
    executor.site_words = []  # what the site prints when sbatch succeeds

    def read_answer(output: str) -> str:
        executor.site_words.extend(slurm.site_words(output))
        return slurm.read_job_id(output)

    type(executor)._get_job_id_from_submission_command = staticmethod(read_answer)
    type(executor)._make_submission_file_text = lambda self, command, _: _script(
        command, self.folder, self.parameters
    )
    options = _sbatch_options(job, resources, dependency)
    by_option = not {"gpus", "gpus-per-task"}.isdisjoint(options)
    site_excludes = str(options.pop("exclude", "") or "")
    parameters = {
        "job_name": "-".join(filter(None, (str(options.pop("job-name", "")), job.name))),
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "gres": resources.gres,
        "exclude": ",".join(filter(None, (site_excludes, *job.excluded_nodes))) or None,
        "exclusive": resources.exclusive or None,
        "nodes": resources.nodes,
        "ntasks_per_node": resources.tasks_per_node,
        "cpus_per_task": resources.cpus,
        "gpus_per_node": None if by_option else resources.gpus_per_node or None,
        "signal_delay_s": SIGNAL_SECONDS,
        "setup": [*resources.setup, *([REQUEUE_ON_FAILURE] if job.requeue else [])] or None,
        "srun_args": [
            f"--cpus-per-task={resources.cpus}",  # srun does not inherit it (Slurm 22.05)
            "--export=ALL",  # with sbatch --export=NONE, a step has no variables of its script
            *_pyxis_arguments(job, resources.container),
        ],
        "array_parallelism": job.elements,
        "additional_parameters": options,
    }
    # submitit sets a wckey, which clusters that track them refuse, and a limit of five minutes.
    executor.update_parameters(
        wckey=None,
        time=-(-resources.seconds // 60) if resources.seconds else None,
        **{name: value for name, value in parameters.items() if value is not None},
    )
    return executor


def _sbatch_options(job: BatchJob, resources: Resources, dependency: str) -> dict[str, Any]:
    """Return the options of sbatch that are no parameters of submitit."""
    options: dict[str, Any] = {"hold": True} if job.held else {}
    options["requeue" if job.requeue else "no-requeue"] = True
    options |= resources.sbatch
    options["comment"] = " ".join(filter(None, (str(options.get("comment", "")), job.comment)))
    # submitit writes its own parameters with underscores.
    dropped = (
        name if name in ("no-requeue", "open-mode") else name.replace("-", "_")
        for name in resources.omitted
    )
    options |= dict.fromkeys(dropped, _OMITTED)
    if job.delay_seconds:
        options["begin"] = f"now+{job.delay_seconds}"
    if dependency:
        options["dependency"] = dependency
    if resources.time_min is not None:
        options["time-min"] = resources.time_min
    if resources.reservation:
        options["reservation"] = resources.reservation
    if resources.mem:
        options["mem"] = resources.mem
    return options


def script_text(executor: Any, elements: int) -> str:
    """Return the batch script that an executor submits for this many elements."""
    parameters = executor.parameters | ({"map_count": elements} if elements > 1 else {})
    return _script(executor._submitit_command_str, executor.folder, parameters)


def _script(command: str, folder: Path, parameters: dict[str, Any]) -> str:
    from submitit.slurm.slurm import _make_sbatch_string

    text: str = _make_sbatch_string(command=command, folder=folder, **parameters)
    # submitit limits an array to as many jobs at once as it has; some sites refuse any such limit.
    text = re.sub(r"^(#SBATCH --array=\S+)%\d+$", r"\1", text, flags=re.MULTILINE)
    return "\n".join(line for line in text.split("\n") if not line.endswith(f"={_OMITTED}"))


def _python(job: BatchJob, site: Site, resources: Resources) -> str | None:
    """Return the command that starts Python in a job; None for the Python of this process."""
    container = resources.container
    if container is None:
        return None if site.python is None else shlex.quote(site.python)
    python = shlex.quote(site.python or "python3")
    if container.kind == "pyxis":
        return python
    command = [container.kind, "exec"]
    command += ["--nv"] if resources.gpus or resources.gres else []
    for mount in (*job.mounts, *container.mounts):
        command += ["--bind", mount]
    command += [*container.options, container.image]
    return " ".join([*map(shlex.quote, command), python])


def _pyxis_arguments(job: BatchJob, container: Container | None) -> list[str]:
    if container is None or container.kind != "pyxis":
        return []
    mounts = [m if ":" in m else f"{m}:{m}" for m in (*job.mounts, *container.mounts)]
    return [
        f"--container-image={container.image}",
        f"--container-mounts={','.join(mounts)}",
        *container.options,
    ]


def run_mounts(run: RunDir, plan: Plan) -> tuple[str, ...]:
    """Return the directories that a container must see to refine the documents of a run."""
    inputs = (info.path for info in (*plan.inputs, *plan.against))
    return container_mounts([run.root], inputs, (model.path for model in plan.models.values()))


def container_mounts(
    outputs: Iterable[Path], files: Iterable[Path], models: Iterable[Path]
) -> tuple[str, ...]:
    """Return the directories that a container must see to use these paths."""
    mounts = [*map(str, outputs), *_common_folders(path.parent for path in files)]
    for model in models:
        # Files of a Hugging Face snapshot are links to blobs in a folder beside the snapshots.
        in_hub_cache = model.parent.name == "snapshots"
        mounts.append(str(model.parent.parent if in_hub_cache else model))
    return tuple(dict.fromkeys(mounts))


def _common_folders(paths: Iterable[Path]) -> list[str]:
    """Return few folders that hold all of these: one for each folder two levels below the root."""
    by_top: dict[tuple[str, ...], list[str]] = {}
    for path in sorted(set(paths)):
        by_top.setdefault(path.parts[:3], []).append(str(path))
    return [os.path.commonpath(group) for group in by_top.values()]
