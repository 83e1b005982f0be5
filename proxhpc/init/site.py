"""Proposes a site for this machine's cluster, from what Slurm says and accepts."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from proxhpc.account.quantity import quantity
from proxhpc.cluster import slurm
from proxhpc.cluster.limits import job_limits
from proxhpc.doctor.scheduler import try_submission
from proxhpc.engines.device import count_gpus
from proxhpc.errors import RetryError
from proxhpc.spec.site import Site
from proxhpc.spec.slurm_notation import format_time, min_memory, parse_duration
from proxhpc.status.terminal import safe

_MAX_SECONDS = 8 * 3600  # of a job
_MAX_CPUS = 8  # of a worker on a shared node
_MAX_MEMORY_MB = 64 << 10  # of a worker
_MEMORY_SHARE = 0.9  # of a node's memory: the system needs some
_MAX_WORKERS = 16
_MAX_ACCOUNTS = 4  # to try in a partition

SiteKeys = dict[str, str | int | bool]


@dataclass(frozen=True, slots=True)
class Trial:
    """A worker's job in a partition: its keys in a site, and what Slurm answered to it."""

    partition: slurm.Partition
    nodes: slurm.NodeKind  # for which it is made
    keys: SiteKeys
    answer: str
    accepted: bool


def propose_site() -> str:
    """Return the text of a site file: for this machine's cluster or, without Slurm, for itself.

    What could not be read is a comment that says so. RetryError if slurmctld does not answer.
    """
    lines = _cluster_site() if slurm.is_available() else _local_site()
    return "\n".join(lines) + "\n"


def _local_site() -> Iterator[str]:
    gpus = count_gpus()
    yield f"# This machine has no Slurm ({slurm.why_unavailable()}): workers are processes."
    workers = gpus or min(4, os.cpu_count() or 1)
    yield from _dump({"name": "local", "kind": "local", "workers": workers, "gpus": min(gpus, 1)})


def _cluster_site() -> Iterator[str]:
    try:
        config = slurm.read_config()
    except RetryError as error:
        hint = "run this on a login node of the cluster, where `scontrol show config` works"
        raise RetryError(error.message, hint=hint) from error
    cluster = config.get("ClusterName", "cluster")
    yield f"# Cluster {safe(cluster)}, as `proxhpc init site` found it. Change what is wrong, then"
    yield "# check it: proxhpc doctor FILE"
    yield from _dump({"name": re.sub(r"[^A-Za-z0-9._-]", "-", cluster)[:64], "kind": "slurm"})
    accounts, partitions, problems = _read_accounts_and_partitions()
    memory = config.get("SelectTypeParameters", "unknown").upper()
    trials = [_try(partition, accounts, "MEMORY" in memory) for partition in partitions]
    worker = _best(trials, with_gpus=True)
    if worker is None:
        yield "# partition: Slurm accepts a worker's job in none; see below"
    else:
        yield from _worker_lines(worker, accounts)
    yield from (f"# could not be read: {problem}" for problem in problems)
    rule = ", ".join(slurm.memory_rule(config)) or "no default and no limit"
    yield f"# memory: {rule} (MB), SelectTypeParameters {safe(memory)}"
    limits = "; ".join(str(each) for each in job_limits(None, None) if each.queued is not None)
    yield f"# jobs in the queue: {limits or 'no limit is known'}"
    yield "# setup: [module load cuda]  # shell lines that a job needs before Python starts"
    merge = _best(trials, with_gpus=False)
    if worker and merge and merge is not worker and not merge.nodes.gpu_count:
        yield from _phase_lines(worker, merge)
    yield "# Partitions, and what Slurm answers to a worker's job there (sbatch --test-only):"
    yield from map(_describe, trials)


def _read_accounts_and_partitions() -> tuple[list[str], list[slurm.Partition], list[str]]:
    """Return the user's accounts, the partitions that are up, and what could not be read."""
    accounts: list[str] = []
    partitions: list[slurm.Partition] = []
    problems = []
    try:
        accounts = slurm.read_accounts()
    except RetryError as error:
        problems.append(f"account (Slurm charges your default one): {_one_line(error)}")
    try:
        partitions = slurm.read_partitions()
    except RetryError as error:
        problems.append(f"partitions: {_one_line(error)}")
    up = [partition for partition in partitions if partition.state == "UP" and partition.kinds]
    return accounts, up, problems


def _one_line(error: RetryError) -> str:
    return safe(" ".join(error.message.split()))


def _try(partition: slurm.Partition, accounts: Sequence[str], has_memory: bool) -> Trial:
    """Ask Slurm for a worker's job in a partition, until it accepts one of the accounts."""
    nodes = max(partition.kinds, key=lambda kind: (kind.gpu_count, kind.nodes))
    answer = ""
    for keys in _requests(partition, nodes, has_memory):
        for account in accounts[:_MAX_ACCOUNTS] or [""]:
            charged: SiteKeys = {"account": account} if account else {}
            site = Site.model_validate({"name": "trial", **charged, **keys})
            finding = try_submission(site)
            if finding.verdict == "ok":
                return Trial(partition, nodes, charged | keys, finding.result, accepted=True)
            answer = answer or finding.result
    return Trial(partition, nodes, {}, answer, accepted=False)


def _requests(
    partition: slurm.Partition, nodes: slurm.NodeKind, has_memory: bool
) -> Iterator[SiteKeys]:
    """Yield the keys of a job: with a number of GPUs, then with their type if that is needed."""
    workers = max(1, nodes.gpu_count)  # of a node
    cpus = max(1, nodes.cpus // workers)
    seconds = min(parse_duration(partition.max_time) or _MAX_SECONDS, _MAX_SECONDS)
    keys: SiteKeys = {"partition": partition.name, "time": format_time(seconds)}
    if partition.whole_nodes:
        keys |= {"exclusive": True, "tasks_per_node": workers, "cpus": cpus}
        keys |= {"mem": "0"} if has_memory else {}
    else:
        cpus = min(cpus, _MAX_CPUS)
        share = 1 / workers if nodes.gpu_count else cpus / max(1, nodes.cpus)
        memory = min(int(nodes.memory_mb * share * _MEMORY_SHARE), _MAX_MEMORY_MB)
        keys |= {"cpus": cpus}
        keys |= {"mem": f"{memory}M"} if has_memory else {}
    yield keys | ({"gpus": 1} if nodes.gpu_count else {})
    for name, number in nodes.gpus:
        if name:
            yield keys | {"gres": f"gpu:{name}:{number if partition.whole_nodes else 1}"}


def _best(trials: Sequence[Trial], *, with_gpus: bool) -> Trial | None:
    """Return an accepted job, if possible with GPUs or without; the default partition first."""
    accepted = [trial for trial in trials if trial.accepted]
    return max(
        accepted,
        key=lambda t: ((t.nodes.gpu_count > 0) == with_gpus, t.partition.is_default),
        default=None,
    )


def _worker_lines(worker: Trial, accounts: Sequence[str]) -> Iterator[str]:
    partition, nodes = worker.partition, worker.nodes
    others = [name for name in accounts if name != worker.keys.get("account")]
    notes = {
        "account": f"or {', '.join(others)}" if others else "your only one",
        "time": f"at most {partition.max_time}; a job that asks for none gets "
        f"{partition.default_time}",
        "mem": ", ".join(partition.memory_rule),
        "gpus": f"{_gpus(nodes)} in a node",
    }
    for key, value in worker.keys.items():
        note = f"  # {safe(notes[key])}" if notes.get(key) else ""
        yield from (line + note for line in _dump({key: value}))
    in_all = nodes.nodes * (nodes.gpu_count or max(1, nodes.cpus // int(worker.keys["cpus"])))
    yield f"workers: {min(in_all, _MAX_WORKERS)}  # at the same time"


def _phase_lines(worker: Trial, merge: Trial) -> list[str]:
    """Return the lines that send the merge and the control jobs to nodes without GPUs."""
    kept = {key: value for key, value in merge.keys.items() if key != "tasks_per_node"}
    control: SiteKeys = {key: kept[key] for key in ("account", "partition") if key in kept}
    memory = str(kept.get("mem", "0"))
    if worker.keys.get("mem") == "0" != memory:  # otherwise they would wait for a whole node
        control["mem"] = min_memory(memory, "4G")
    return _dump({"phases": {"merge": kept, "control": control}})


def _describe(trial: Trial) -> str:
    partition, nodes = trial.partition, trial.nodes
    hardware = f"{nodes.cpus} CPUs, {nodes.memory_mb:,} MB, {_gpus(nodes)}"
    return (
        f"#   {safe(partition.name)}: {quantity(partition.nodes, 'node')} ({hardware}), at most "
        f"{partition.max_time}: {'accepted' if trial.accepted else safe(trial.answer, 200)}"
    )


def _gpus(nodes: slurm.NodeKind) -> str:
    gpus = (f"{number} {name}" if name else quantity(number, "GPU") for name, number in nodes.gpus)
    return safe(" and ".join(gpus)) or "no GPU"


def _dump(keys: dict[str, object]) -> list[str]:
    """Return keys as lines of YAML."""
    return yaml.safe_dump(keys, sort_keys=False, width=1000).splitlines()
