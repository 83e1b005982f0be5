"""What a Slurm site allows: limits, partitions, accounting, containers."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from proxhpc.cluster import slurm
from proxhpc.doctor.finding import Finding
from proxhpc.errors import RetryError
from proxhpc.spec.site import Site

QUICK_KILL = 30  # seconds of KillWait below which a worker may not get to commit


def examine_slurm(site: Site) -> Iterator[Finding]:
    """Every finding about the Slurm that this machine belongs to."""
    if not slurm.available():
        yield Finding("sbatch", "not on PATH", "launch on a login node of the cluster", "bad")
        return
    try:
        config = _config(slurm.run_command("scontrol", "show", "config"))
    except RetryError as error:
        yield Finding("slurmctld", error.message, "try again when it answers", "bad")
        return
    version = config.get("SLURM_VERSION", "unknown")
    yield Finding("Slurm", f"{version}, cluster {config.get('ClusterName', '?')}", "")
    yield _array_size(site, config)
    yield _submit_limit(site)
    yield _requeue(config)
    yield _accounting(config)
    yield _age(config)
    yield _kill_wait(config)
    yield from _partitions(site)
    yield _gpus(site)
    yield _submission(site)
    yield _from_jobs(site)


def _config(text: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def _array_size(site: Site, config: dict[str, str]) -> Finding:
    size = site.max_array_size or int(config.get("MaxArraySize", str(slurm.DEFAULT_MAX_ARRAY_SIZE)))
    if size < 1:
        return Finding("MaxArraySize", str(size), "the cluster takes no job arrays", "bad")
    arrays = -(-site.resources("refine").jobs // size)
    so = "one array holds all workers" if arrays == 1 else f"the workers go in {arrays} arrays"
    return Finding("MaxArraySize", str(size), so)


def _submit_limit(site: Site) -> Finding:
    resources = site.resources("refine")
    limit = site.max_submit_jobs or slurm.submit_limit(resources.account, resources.qos)
    if limit is None:
        return Finding("jobs per user", "no limit known", "all workers are submitted at once")
    # A control job that runs counts too, while it submits workers and another one behind them.
    others = 2 if site.submit_from_jobs else 0
    if limit < 1 + others:
        so = "a run needs three at least: workers, and two control jobs; or submit_from_jobs: false"
        return Finding("jobs per user", str(limit), so, "bad")
    if limit < resources.jobs + others:
        so = f"{limit - others} of {resources.jobs} array elements are submitted at a time"
        return Finding("jobs per user", str(limit), so, "note")
    return Finding("jobs per user", str(limit), "all workers are submitted at once")


def _requeue(config: dict[str, str]) -> Finding:
    mode = config.get("PreemptMode", "?")
    found = f"JobRequeue={config.get('JobRequeue', '?')}, PreemptMode={mode}"
    so = "workers are submitted with --no-requeue: what is missing is submitted anew"
    if "SUSPEND" in mode:
        so += "; a suspended worker loses its shard after two minutes, and nothing else"
        return Finding("requeue, preemption", found, so, "note")
    return Finding("requeue, preemption", found, so)


def _accounting(config: dict[str, str]) -> Finding:
    kind = config.get("AccountingStorageType", "").rpartition("/")[2] or "unknown"
    try:
        slurm.run_command("sacct", "-X", "-n", "-S", "now-1minute")
    except RetryError:
        return Finding(
            "sacct", f"does not answer ({kind})", "not needed: squeue and the run's files"
        )
    return Finding("sacct", f"answers ({kind})", "asked only to find nodes that fail")


def _age(config: dict[str, str]) -> Finding:
    age = config.get("MinJobAge", "?")
    return Finding("MinJobAge", age, "a job that squeue shows no more is taken to have ended")


def _kill_wait(config: dict[str, str]) -> Finding:
    found = config.get("KillWait", "?")
    seconds = int(match.group()) if (match := re.match(r"\d+", found)) else QUICK_KILL
    if seconds < QUICK_KILL:
        so = "short: a worker that is cancelled may lose what it did since its last commit"
        return Finding("KillWait", found, so, "note")
    return Finding("KillWait", found, "time enough to commit after SIGTERM")


def _partitions(site: Site) -> Iterator[Finding]:
    try:
        rows = slurm.run_command("sinfo", "-a", "-h", "-o", "%R|%l|%D|%a|%G|%c|%m").splitlines()
    except RetryError as error:
        yield Finding("partitions", error.message, "", "note")
        return
    known = {row.split("|")[0]: row.split("|")[1:] for row in rows if row.count("|") == 6}
    for phase in ("refine", "merge", "control"):
        resources = site.resources(phase)
        for name in (resources.partition or "").split(","):
            if name and name not in known:
                so = f"there are {', '.join(sorted(known))}"
                yield Finding(f"partition of {phase}", f"{name}: not there", so, "bad")
            elif name:
                limit = known[name][0]
                most = slurm.parse_duration(limit)
                found = f"{name}: time limit {limit}, {known[name][1]} nodes, {known[name][2]}"
                asked = resources.seconds
                if most is not None and asked is not None and asked > most:
                    so = f"{resources.time} asked for: Slurm would let it wait for ever"
                    yield Finding(f"partition of {phase}", found, so, "bad")
                else:
                    yield Finding(
                        f"partition of {phase}", found, f"{resources.time or limit} asked"
                    )


def _gpus(site: Site) -> Finding:
    resources = site.resources("refine")
    if not (resources.gpus or resources.gres):
        return Finding("GPUs", "none asked for", "engines run on the CPU")
    asked = resources.gres or f"{resources.gpus} a worker"
    so = "CUDA_VISIBLE_DEVICES is passed on as it is, numbers or UUIDs"
    if resources.tasks_per_node > 1:
        so = f"each of {resources.tasks_per_node} workers on a node takes its share of those"
    return Finding("GPUs", asked, so)


def _submission(site: Site) -> Finding:
    """Whether sbatch would take the job; asks, and submits nothing."""
    resources = site.resources("refine")
    options = {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "reservation": resources.reservation,
        "gres": resources.gres,
        "time": resources.time,
        "mem": resources.mem,
        "cpus-per-task": resources.cpus,
        "ntasks-per-node": resources.tasks_per_node,
        "gpus-per-node": resources.gpus * resources.tasks_per_node or None,
        "exclusive": resources.exclusive or None,
        **resources.sbatch,
    }
    lines = [
        f"#SBATCH --{name}" + ("" if value is True else f"={value}")
        for name, value in options.items()
        if value is not None
    ]
    said = slurm.test_only("\n".join(["#!/bin/sh", *lines, "#SBATCH --nodes=1", "true", ""]))
    good = " to start at " in said
    return Finding(
        "sbatch --test-only",
        said.splitlines()[-1] if said else "said nothing",
        "a worker's job would be taken" if good else "a worker's job would be refused",
        "fine" if good else "bad",
    )


def _from_jobs(site: Site) -> Finding:
    if site.submit_from_jobs:
        so = "a control job behind each array takes the next step; set submit_from_jobs: false "
        return Finding("submission from jobs", "assumed", f"{so}where jobs may not call sbatch")
    return Finding(
        "submission from jobs", "not allowed", "launch again whenever an array has ended"
    )


def examine_containers(site: Site) -> Iterator[Finding]:
    """What there is for the container that the site asks for."""
    container = site.resources("refine").container
    here = [name for name in ("apptainer", "singularity", "enroot") if shutil.which(name)]
    if container is None:
        yield Finding("containers", ", ".join(here) or "none here", "the site asks for none")
        return
    image = Path(container.image)
    if container.image.startswith("/") and not image.exists():
        yield Finding("container image", f"{image}: not there", "give an image that is", "bad")
    else:
        yield Finding("container image", container.image, f"workers run in it by {container.kind}")
    if container.kind == "pyxis":
        try:
            there = "--container-image" in slurm.run_command("srun", "--help")
        except RetryError:
            there = False
        if not there:
            so = "srun knows no --container-image: the site has no pyxis, or only on its nodes"
            yield Finding("pyxis", "not seen", so, "note")
    elif container.kind not in here:
        so = "it may be there on the nodes, or after the setup lines (module load …)"
        yield Finding(container.kind, "not on this machine's PATH", so, "note")
