"""Checks what a Slurm site allows: limits, partitions, accounting, containers."""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from proxhpc.account.quantity import quantity
from proxhpc.cluster import slurm
from proxhpc.cluster.limits import JobLimit, job_limits, running_limit
from proxhpc.cluster.script import BatchJob, job_executor, script_text
from proxhpc.doctor.finding import Finding
from proxhpc.errors import RetryError
from proxhpc.spec.site import PhaseName, Resources, Site
from proxhpc.spec.slurm_notation import parse_duration

MIN_JOB_SECONDS = 1800  # a worker loads its models, and then needs 5 to 15 minutes for a shard
MIN_KILL_WAIT_SECONDS = 30  # a worker may need as long to commit
PHASES: tuple[PhaseName, ...] = ("refine", "merge", "control")


def examine_slurm(site: Site) -> Iterator[Finding]:
    """Yield every finding about this machine's Slurm."""
    if why := slurm.why_unavailable():
        yield Finding.error("Slurm", why, "launch on a login node of the cluster")
        return
    try:
        config = slurm.read_config()
    except RetryError as error:
        yield Finding.error("slurmctld", error.message, "run this again when it answers")
        return
    version = config.get("SLURM_VERSION", "unknown")
    yield Finding.ok("Slurm", f"{version}, cluster {config.get('ClusterName', '?')}")
    yield _array_size(site, config)
    worker = site.resources("refine")
    limits = job_limits(worker.account, worker.qos)
    yield _submit_limit(site, limits)
    yield _running_limit(worker, limits)
    yield _requeue(config)
    yield _accounting(config)
    age = config.get("MinJobAge", "?")
    yield Finding.ok("MinJobAge", age, "a job that squeue no longer lists counts as ended")
    yield _kill_wait(config)
    yield from _partitions(site)
    yield _gpus(site)
    yield try_submission(site)
    yield _submission_from_jobs(site)


def _array_size(site: Site, config: dict[str, str]) -> Finding:
    size = site.max_array_size or slurm.max_array_size(config)
    elements = site.resources("refine").jobs
    if size < 1:
        jobs = quantity(elements, "job")
        consequence = f"the cluster does not support job arrays: workers are submitted as {jobs}"
        return Finding.warning("MaxArraySize", str(size), consequence)
    arrays = -(-elements // size)
    consequence = "one array holds all workers"
    if arrays > 1:
        consequence = f"the workers are submitted in {arrays} arrays"
    return Finding.ok("MaxArraySize", str(size), consequence)


def _submit_limit(site: Site, limits: Sequence[JobLimit]) -> Finding:
    check, resources = "jobs per user", site.resources("refine")
    known = (each.queued for each in limits if each.queued is not None)
    limit = site.max_submit_jobs or min(known, default=None)
    if limit is None:
        return Finding.ok(check, "no limit known", "all workers are submitted at once")
    # While a control job submits workers, it and the control job after them count, too.
    control_jobs = 2 if site.submit_from_jobs else 0
    if limit < 1 + control_jobs:
        consequence = "a run needs a worker and two control jobs; or set submit_from_jobs: false"
        return Finding.error(check, str(limit), consequence)
    if limit < resources.jobs + control_jobs:
        elements = limit - control_jobs
        consequence = f"{elements} of {resources.jobs} array elements are submitted at a time"
        return Finding.warning(check, str(limit), consequence)
    return Finding.ok(check, str(limit), "all workers are submitted at once")


def _running_limit(resources: Resources, limits: Sequence[JobLimit]) -> Finding:
    check, limit = "jobs at once", running_limit(limits, resources)
    if limit is None:
        return Finding.ok(check, "no limit known", "as many workers run as there is room for")
    if limit.jobs < 1:
        # No error: the partition's QOS, which is not read, may allow more.
        return Finding.warning(check, limit.words, "a worker's job may never start: ask for less")
    if limit.jobs < resources.jobs:
        consequence = f"{limit.jobs} of {quantity(resources.jobs, 'job')} run at once"
        return Finding.warning(check, limit.words, f"{consequence}; the others wait")
    return Finding.ok(check, limit.words, "all workers may run at once")


def _requeue(config: dict[str, str]) -> Finding:
    check, mode = "requeue, preemption", config.get("PreemptMode", "?")
    result = f"JobRequeue={config.get('JobRequeue', '?')}, PreemptMode={mode}"
    consequence = "workers are not requeued: new ones are submitted for missing shards"
    if "SUSPEND" in mode:
        consequence += "; a suspended worker loses its shard after two minutes, but no commit"
        return Finding.warning(check, result, consequence)
    return Finding.ok(check, result, consequence)


def _accounting(config: dict[str, str]) -> Finding:
    kind = config.get("AccountingStorageType", "").rpartition("/")[2] or "unknown"
    try:
        slurm.run_command("sacct", "-X", "-n", "-S", "now-1minute")
    except RetryError:
        consequence = "not needed: a run uses squeue and its own files"
        return Finding.ok("sacct", f"does not answer ({kind})", consequence)
    return Finding.ok("sacct", f"answers ({kind})", "used only to find nodes that fail")


def _kill_wait(config: dict[str, str]) -> Finding:
    result = config.get("KillWait", "?")
    match = re.match(r"\d+", result)
    if match and int(match.group()) < MIN_KILL_WAIT_SECONDS:
        consequence = "short: a cancelled worker may lose what it did since its last commit"
        return Finding.warning("KillWait", result, consequence)
    return Finding.ok("KillWait", result, "long enough to commit after SIGTERM")


def _partitions(site: Site) -> Iterator[Finding]:
    try:
        known = {partition.name: partition for partition in slurm.read_partitions()}
    except RetryError as error:
        yield Finding.warning("partitions", error.message)
        return
    for phase in PHASES:
        resources = site.resources(phase)
        default = next((name for name, partition in known.items() if partition.is_default), "")
        for name in filter(None, (resources.partition or default).split(",")):
            check = f"partition of {phase}"
            if name in known:
                yield _partition(check, known[name], resources)
            else:
                choices = f"choose one of {', '.join(sorted(known))}"
                yield Finding.error(check, f"{name}: not found", choices)


def _partition(check: str, partition: slurm.Partition, resources: Resources) -> Finding:
    result = (
        f"{partition.name}: time limit {partition.max_time.lower()}, "
        f"{quantity(partition.nodes, 'node')}, {partition.state.lower()}"
    )
    if partition.state != "UP":
        return Finding.error(check, result, "jobs do not start there: name another partition")
    max_seconds, seconds = parse_duration(partition.max_time), resources.seconds
    if max_seconds is not None and seconds is not None and seconds > max_seconds:
        consequence = f"the site asks for {resources.time}: such a job would stay pending forever"
        return Finding.error(check, result, consequence)
    if seconds is not None:
        return Finding.ok(check, result, f"jobs may run for {resources.time}")
    consequence = f"jobs may run for {partition.default_time.lower()}, the partition's default"
    default = parse_duration(partition.default_time)
    if default is None:
        consequence = (
            "without a limit, jobs wait for each planned maintenance: set time in the site"
        )
        return Finding.warning(check, result, consequence)
    if default is not None and default < MIN_JOB_SECONDS:
        return Finding.warning(check, result, f"{consequence}: set time in the site")
    return Finding.ok(check, result, consequence)


def _gpus(site: Site) -> Finding:
    resources = site.resources("refine")
    if not (resources.gpus or resources.gres):
        return Finding.ok("GPUs", "none requested", "rules and transformers run on the CPU")
    result = resources.gres or f"{resources.gpus} for each worker"
    consequence = "workers use the CUDA_VISIBLE_DEVICES that Slurm sets, numbers or UUIDs"
    if resources.tasks_per_node > 1:
        consequence = f"the {resources.tasks_per_node} workers of a node split its GPUs among them"
    if resources.workers_per_gpu > 1:
        consequence += f"; {resources.workers_per_gpu} share one"
    return Finding.ok("GPUs", result, consequence)


def try_submission(site: Site) -> Finding:
    """Ask sbatch whether it would accept a worker's job, without submitting one."""
    job = BatchJob("proxhpc-test", "refine", Path("logs"), "proxhpc-test", ())
    answer = slurm.check_script(script_text(job_executor(job, site), 1))
    result = answer.splitlines()[-1] if answer else "no answer"
    if " to start at " in answer:
        return Finding.ok("sbatch --test-only", result, "Slurm accepts a worker's job")
    return Finding.error("sbatch --test-only", result, "Slurm refuses a worker's job")


def _submission_from_jobs(site: Site) -> Finding:
    check = "submission from jobs"
    if site.submit_from_jobs:
        consequence = "a control job after each array takes the next step; if jobs may not call"
        return Finding.ok(check, "assumed", f"{consequence} sbatch, set submit_from_jobs: false")
    return Finding.ok(check, "turned off", "run `proxhpc launch` again when an array has ended")


def examine_containers(site: Site) -> Iterator[Finding]:
    """Yield findings about the container that the site asks for."""
    container = site.resources("refine").container
    names = ("apptainer", "singularity", "enroot")
    installed = [name for name in names if shutil.which(name)]
    if container is None:
        result = ", ".join(installed) or "none on this machine"
        yield Finding.ok("containers", result, "the site asks for none")
        return
    image = Path(container.image)
    if container.image.startswith("/") and not image.exists():
        yield Finding.error("container image", f"{image}: not found", "set another image")
    else:
        consequence = f"workers run in it with {container.kind}"
        yield Finding.ok("container image", container.image, consequence)
    if container.kind == "pyxis":
        if not _has_pyxis():
            consequence = "srun has no --container-image here: pyxis may be on the nodes only"
            yield Finding.warning("pyxis", "not found", consequence)
    elif container.kind not in installed:
        consequence = "it may be on the nodes, or appear after setup lines (module load …)"
        yield Finding.warning(container.kind, "not on PATH", consequence)


def _has_pyxis() -> bool:
    try:
        return "--container-image" in slurm.run_command("srun", "--help")
    except RetryError:
        return False
