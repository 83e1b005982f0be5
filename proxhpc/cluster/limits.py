"""The limits on jobs of accounts and QOS, as sacctmgr shows them. What it hides is unknown."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from proxhpc.account.quantity import quantity
from proxhpc.cluster.slurm import read_config, run_command, user_name
from proxhpc.errors import RetryError
from proxhpc.spec.site import Resources

_SHOW = ("sacctmgr", "-n", "-P", "show")


@dataclass(frozen=True, slots=True)
class JobLimit:
    """Limits on jobs, and which jobs count."""

    queued: int | None = None  # jobs in the queue; None is no limit
    running: Mapping[str, int] = field(default_factory=dict)  # at once: `job`, `cpu`, `gres/gpu`, …
    account: str = ""  # only jobs of this account count
    qos: str = ""  # only jobs with this QOS count
    everyone: bool = False  # jobs of all users count
    below: tuple[str, ...] = ()  # accounts below `account`, whose jobs count, too

    @property
    def accounts(self) -> tuple[str, ...]:
        """The accounts whose jobs count; empty for all."""
        return (self.account, *self.below) if self.account else ()

    @property
    def which(self) -> str:
        """The account and the QOS, in words; "" for all."""
        account = f" of account {self.account}" if self.account else ""
        return account + (f" with QOS {self.qos}" if self.qos else "")

    def __str__(self) -> str:
        """The limit on jobs in the queue, in words."""
        who = "all users together" if self.everyone else "you"
        return f"{who} may have {quantity(self.queued or 0, 'job')}{self.which}"


@dataclass(frozen=True, slots=True)
class RunningLimit:
    """What lets fewest jobs of a kind run at once: so many, by a limit in words."""

    jobs: int
    words: str


def job_limits(account: str | None, qos: str | None) -> list[JobLimit]:
    """Return the limits on jobs that this user submits to an account with a QOS, where known.

    The defaults are the user's on this cluster. Limits of groups hold for all accounts below. An
    array counts as its elements (slurm.conf(5), sacctmgr(1): MaxSubmitJobs, GrpTRES, …).
    """
    if shutil.which("sacctmgr") is None:
        return []
    which = f"account={account}" if account else "onlydefaults"
    grp = "GrpSubmitJobs,GrpJobs,GrpTRES"
    keys = f"format=Account,DefaultQOS,MaxSubmitJobs,MaxJobs,{grp}"
    try:
        cluster = f"cluster={read_config().get('ClusterName', '')}"
        own = _rows(run_command(*_SHOW, "assoc", f"user={user_name()}", cluster, which, keys), 7)
        account = own[0][0] if own else account
        query = (*_SHOW, "assoc", cluster, "user=", f"format=Account,ParentName,{grp}")
        groups = {row[0]: row for row in _rows(run_command(*query), 5)}
        qos_keys = f"format=Name,MaxSubmitJobsPerUser,MaxJobsPU,MaxTRESPU,{grp}"
        qos_rows = _rows(run_command(*_SHOW, "qos", qos_keys), 7)
    except RetryError:
        return []
    limits = []
    for name, _, *numbers in own:
        limits += [_limit(numbers[0], numbers[1], account=name), _limit(*numbers[2:], account=name)]
    while account in groups:
        name, parent, *numbers = groups[account]
        below = tuple(_accounts_below(name, groups))
        # The root account: all jobs of the cluster.
        who: dict[str, Any] = {"account": name, "below": below} if parent else {}
        limits.append(_limit(*numbers, everyone=True, **who))
        account = parent
    qos_names = {qos} if qos else {row[1] for row in own}
    for name, *numbers in qos_rows:
        if name in qos_names:
            limits.append(_limit(*numbers[:3], qos=name))
            limits.append(_limit(*numbers[3:], qos=name, everyone=True))
    return [limit for limit in limits if limit.queued is not None or limit.running]


def _limit(queued: str, jobs: str, tres: str = "", **who: Any) -> JobLimit:
    running = re.findall(r"([^=,]+)=(\d+)(?=,|$)", f"job={jobs},{tres}")
    most = {name: int(number) for name, number in running}
    return JobLimit(int(queued) if queued.isdigit() else None, most, **who)


def _accounts_below(account: str, groups: Mapping[str, Sequence[str]]) -> Iterator[str]:
    for name, parent, *_ in groups.values():
        if parent == account:
            yield name
            yield from _accounts_below(name, groups)


def _rows(output: str, columns: int) -> list[list[str]]:
    rows = (line.split("|") for line in output.splitlines())
    return [row for row in rows if len(row) == columns]


def count_jobs(limit: JobLimit) -> int:
    """Return how many jobs of all users count for a limit, as far as squeue shows them."""
    which = ["-A", ",".join(limit.accounts)] if limit.accounts else []
    which += ["-q", limit.qos] if limit.qos else []
    return len(run_command("squeue", "-a", "-h", "-r", *which, "-o", "%i").split())


def running_limit(limits: Sequence[JobLimit], resources: Resources) -> RunningLimit | None:
    """Return the limit that lets fewest of a phase's jobs run at once; None without any.

    A QOS overrides accounts. The partition's QOS, which overrides both, is not read, nor are memory
    and whole nodes compared: what a job gets of them is the partition's decision.
    """
    need = {
        "job": 1,
        "node": resources.nodes,
        "cpu": resources.cpus * resources.tasks_per_node,
        "gres/gpu": resources.gpus_per_node * resources.nodes,
    }
    of_qos = {(name, each.everyone) for each in limits if each.qos for name in each.running}
    found = [
        RunningLimit(most // need[name], f"{name}={most} for running jobs{limit.which}")
        for limit in limits
        for name, most in limit.running.items()
        if need.get(name) and (limit.qos or (name, limit.everyone) not in of_qos)
    ]
    return min(found, key=lambda each: each.jobs, default=None)
