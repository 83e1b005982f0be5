"""The tasks of a Slurm job step, which train one model together."""

import os
import re
import socket
from dataclasses import dataclass

from proxhpc.cluster import slurm


@dataclass(frozen=True, slots=True)
class StepTask:
    """A process among the tasks of its job step; `address` is that of the first one's node."""

    step: str
    rank: int
    count: int
    local_rank: int
    local_count: int
    address: str


def step_task() -> StepTask | None:
    """Return this process's place in its job step; None if it is the only task, or no task."""
    if int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1) == 1:
        return None
    from submitit.slurm.slurm import SlurmJobEnvironment

    environment = SlurmJobEnvironment()
    return StepTask(
        step=f"{os.environ['SLURM_JOB_ID']}.{os.environ['SLURM_STEP_ID']}",
        rank=environment.global_rank,
        count=environment.num_tasks,
        local_rank=environment.local_rank,
        local_count=environment.num_tasks // environment.num_nodes,
        address=_node_address(environment.hostnames[0]),
    )


def _node_address(node: str) -> str:
    """Return an address of a node: its name, or what Slurm has for a name that is no host's."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        shown = slurm.run_command("scontrol", "show", "node", "-o", node)
        found = re.search(r"\bNodeAddr=(\S+)", shown)
        return found[1] if found else node
    return node
