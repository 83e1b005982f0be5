"""The shape of a throw-away Slurm cluster and the configuration files that make it."""

import contextlib
import getpass
import os
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Spec:
    """The shape of a cluster; `extra` lines go to the end of slurm.conf."""

    nodes: int = 4
    cpus: int = 2  # per node; may exceed what the host has
    mem_mb: int = 6000  # per node; likewise
    gpus: int = 0  # per node; numbered for CUDA_VISIBLE_DEVICES, with no device behind them
    accounting: bool = True  # without it `sacct` fails, as on sites that have none
    max_array_size: int = 1001  # Slurm's default
    partitions: tuple[str, ...] = (
        "PartitionName=main Nodes=ALL Default=YES",
        "PartitionName=whole Nodes=ALL OverSubscribe=EXCLUSIVE",
    )
    extra: tuple[str, ...] = ()

    @property
    def names(self) -> list[str]:
        """The node names, n1 to nN."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]


def write_config(root: Path, spec: Spec) -> None:
    """Writes every file that the daemons read, with ports that are free now."""
    key = root / "munge" / "key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    ports = free_ports(2 + spec.nodes)
    (root / "slurm.conf").write_text(slurm_conf(root, spec, ports))
    if spec.accounting:
        conf = root / "slurmdbd.conf"
        conf.touch(0o600)
        conf.write_text(slurmdbd_conf(root, ports[1]))
    if spec.gpus:
        # slurmd wants device files, and takes the number at a file's end for the card's.
        for number in range(spec.gpus):
            (root / f"gpu{number}").symlink_to(os.devnull)
        cards = f"File={root}/gpu[0-{spec.gpus - 1}]"
        (root / "gres.conf").write_text(f"NodeName=n[1-{spec.nodes}] Name=gpu {cards}\n")


def slurm_conf(root: Path, spec: Spec, ports: Sequence[int]) -> str:
    """The text of slurm.conf: everything below `root`, and as quick as Slurm can be made."""
    host, user = socket.gethostname().partition(".")[0], getpass.getuser()
    accounting = [
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost=127.0.0.1\nAccountingStoragePort={ports[1]}",
        f"AccountingStoragePass={root}/munge/socket",
        "AccountingStoreFlags=job_comment",
    ]
    gpus = f" Gres=gpu:{spec.gpus}" if spec.gpus else ""
    lines = [
        "ClusterName=proxhpc",
        f"SlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={ports[0]}",
        f"SlurmUser={user}\nSlurmdUser={user}",
        # cred_expire is also how long a requeued job waits; Slurm's default is 120 s.
        f"AuthType=auth/munge\nCredType=cred/munge\nAuthInfo=socket={root}/munge/socket,cred_expire=10",
        f"StateSaveLocation={root}/state\nSlurmdSpoolDir={root}/spool/%n",
        f"SlurmctldPidFile={root}/slurmctld.pid\nSlurmdPidFile={root}/%n.pid",
        f"SlurmdLogFile={root}/log/%n.steps",
        "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none",
        "SelectType=select/cons_tres\nSelectTypeParameters=CR_Core_Memory",
        f"DefMemPerCPU={spec.mem_mb // spec.cpus}",
        "MailProg=/bin/true\nMpiDefault=none\nSwitchType=switch/none",
        "ReturnToService=2\nJobRequeue=1\nKillWait=5\nMinJobAge=3600",
        # Short enough for a test of a dead node, long enough for a host that is busy.
        "SlurmdTimeout=15\nTCPTimeout=10\nMessageTimeout=20",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=sched_min_interval=50000,batch_sched_delay=0,sched_interval=2,"
        "bf_interval=2,bf_continue",
        f"MaxArraySize={spec.max_array_size}",
        # The nodes claim more than this host has.
        "SlurmdParameters=config_overrides",
        *(["GresTypes=gpu"] if spec.gpus else []),
        *(accounting if spec.accounting else ["AccountingStorageType=accounting_storage/none"]),
        *(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} "
            f"CPUs={spec.cpus} RealMemory={spec.mem_mb}{gpus}"
            for name, port in zip(spec.names, ports[2:], strict=True)
        ),
        *spec.partitions,
        *spec.extra,
    ]
    return "\n".join(lines) + "\n"


def slurmdbd_conf(root: Path, port: int) -> str:
    """The text of slurmdbd.conf."""
    user = getpass.getuser()
    lines = [
        f"DbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={port}\nSlurmUser={user}",
        f"AuthType=auth/munge\nAuthInfo=socket={root}/munge/socket",
        f"PidFile={root}/slurmdbd.pid",
        "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root",
    ]
    return "\n".join(lines) + "\n"


def free_ports(count: int) -> list[int]:
    """Distinct ports that were free a moment ago, below the range of outgoing connections."""
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
