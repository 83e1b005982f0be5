"""The shape of a temporary Slurm cluster, and its configuration files."""

import contextlib
import os
import pwd
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# cred_expire is also the time for which a requeued job waits (Slurm's default is 120 s).
# SlurmdTimeout is long, for a host that vLLM keeps busy. config_overrides lets nodes claim more
# than the host has.
SLURM_CONF = """\
ClusterName=proxhpc
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=10
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmdSpoolDir={root}/spool/%n
SlurmdPidFile={root}/%n.pid
SlurmdLogFile={root}/log/%n.steps
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={mem_per_cpu}
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=50000,batch_sched_delay=0,sched_interval=2,bf_interval=2
MaxArraySize={max_array_size}
JobRequeue=1
ReturnToService=2
KillWait=5
MinJobAge=3600
SlurmdTimeout=60
MessageTimeout=20
TCPTimeout=10
"""

ACCOUNTING = """\
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/munge/socket
AccountingStoreFlags=job_comment
"""

SLURMDBD_CONF = """\
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
"""


@dataclass(frozen=True, slots=True)
class Spec:
    """The shape of a cluster; `extra` lines of slurm.conf replace those with the same key.

    `job_submit` is a Lua plugin, for which `extra` needs `JobSubmitPlugins=lua`.
    """

    nodes: int = 4
    cpus: int = 2  # per node; may exceed what the host has
    mem_mb: int = 6000  # per node; may exceed what the host has
    gpus: int = 0  # per node; only numbers for CUDA_VISIBLE_DEVICES, without devices
    accounting: bool = True  # without it `sacct` fails, as on sites that have none
    max_array_size: int = 1001  # Slurm's default
    partitions: tuple[str, ...] = (
        "PartitionName=main Nodes=ALL Default=YES",
        "PartitionName=whole Nodes=ALL OverSubscribe=EXCLUSIVE",
    )
    extra: tuple[str, ...] = ()
    job_submit: str = ""

    @property
    def names(self) -> list[str]:
        """Return the node names, n1 to nN."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


def write_config(root: Path, spec: Spec) -> None:
    """Write every file that the daemons read, with ports that are free now."""
    key = root / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    ports = free_ports(2 + spec.nodes)
    (root / "slurm.conf").write_text(slurm_conf(root, spec, ports))
    if spec.job_submit:
        (root / "job_submit.lua").write_text(spec.job_submit)
    if spec.accounting:
        conf = root / "slurmdbd.conf"
        conf.touch(0o600)
        conf.write_text(SLURMDBD_CONF.format(root=root, port=ports[1], user=user_name()))
    if spec.gpus:
        # slurmd needs device files, and reads the GPU's number from the end of the file's name.
        for number in range(spec.gpus):
            (root / f"gpu{number}").symlink_to(os.devnull)
        cards = f"File={root}/gpu[0-{spec.gpus - 1}]"
        (root / "gres.conf").write_text(f"NodeName=n[1-{spec.nodes}] Name=gpu {cards}\n")


def slurm_conf(root: Path, spec: Spec, ports: Sequence[int]) -> str:
    """Return slurm.conf; `ports` are the controller's, slurmdbd's and one for each node."""
    host = socket.gethostname().partition(".")[0]
    text = SLURM_CONF.format(
        root=root,
        host=host,
        user=user_name(),
        port=ports[0],
        mem_per_cpu=spec.mem_mb // spec.cpus,
        max_array_size=spec.max_array_size,
    )
    keys = {line.partition("=")[0] for line in spec.extra}
    lines = (line for line in text.splitlines() if line.partition("=")[0] not in keys)
    text = "".join(f"{line}\n" for line in lines)
    if spec.accounting:
        text += ACCOUNTING.format(root=root, port=ports[1])
    if spec.gpus:
        text += "GresTypes=gpu\n"
    gres = f" Gres=gpu:{spec.gpus}" if spec.gpus else ""
    nodes = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
        f"CPUs={spec.cpus} RealMemory={spec.mem_mb}{gres}"
        for name, port in zip(spec.names, ports[2:], strict=True)
    ]
    return text + "\n".join([*nodes, *spec.partitions, *spec.extra]) + "\n"


def user_name() -> str:
    """Return the name of the user that the daemons run as, whatever the environment says."""
    return pwd.getpwuid(os.geteuid()).pw_name


def free_ports(count: int) -> list[int]:
    """Return distinct free ports below the range of outgoing connections."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(range(20000, 32000), 12000):
            if len(ports) == count:
                break
            server = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                server.bind(("127.0.0.1", port))
                ports.append(port)
    if len(ports) < count:
        raise OSError(f"no {count} free ports between 20000 and 32000")
    return ports
