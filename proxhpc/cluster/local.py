"""The jobs of a run as processes of this machine."""

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from proxhpc.account.quantity import quantity
from proxhpc.cluster import slurm, tasks
from proxhpc.cluster.backend import Backend, TaskBatch, record_intent
from proxhpc.cluster.journal import Journal
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError, UserError
from proxhpc.faults import fault_point
from proxhpc.run.lease import LeaseOwner, Leases
from proxhpc.run.paths import RunDir
from proxhpc.run.process import descendants
from proxhpc.spec.site import PhaseName, Resources, Site

STOP_SECONDS = 60  # for a local process to commit and exit
UNLIMITED_MINUTES = 60 * 24 * 365
_NO_GPU = ("", "-1", "NoDevFiles")  # entries of CUDA_VISIBLE_DEVICES at which CUDA stops reading


@dataclass
class LocalBackend(Backend):
    """Runs the jobs as child processes, which live as long as the launcher.

    It starts no follow-up: the launcher itself takes the next step.
    """

    run: RunDir
    site: Site
    _jobs: dict[str, list[Any]] = field(default_factory=dict)

    def active_elements(self, phase: PhaseName) -> int:
        """Return the number of running processes of this phase."""
        return sum(1 for job in self._jobs.get(phase, []) if not job.done())

    def free_elements(self, resources: Resources) -> int:
        """Return the number of workers."""
        return resources.workers

    def submit(self, batch: TaskBatch, follow_up: TaskBatch | None) -> list[str]:
        """Start the processes."""
        journal = Journal(self.run)
        number = len(journal.read())
        record_intent(journal, number, batch, arrays=1, has_control_job=False)
        resources = self.site.resources(batch.phase)
        gpus_by_worker = split_gpus(resources.gpus, len(batch.arguments), resources.workers_per_gpu)
        jobs = self._jobs[batch.phase] = []
        # A terminal sends Ctrl-C to every process. Only the launcher acts on it: it gives workers
        # a minute to commit, and submitit would give them a second. Workers install handlers for
        # the other signals.
        handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with slurm.clean_environment(), writing(self.run.logs):
                executor = self._executor(number, batch)
                for gpus, arguments in zip(gpus_by_worker, batch.arguments, strict=True):
                    call = (tasks.call_with_resources, gpus, resources.cpus, batch.function)
                    jobs.append(executor.submit(*call, *arguments))
        finally:
            signal.signal(signal.SIGINT, handler)
        for job in jobs:
            journal.write("receipt", number, phase=batch.phase, job=job.job_id)
        journal.write("released", number)
        fault_point("all released")
        return [job.job_id for job in jobs]

    def cancel(self) -> list[str]:
        """Stop the launcher, which lets its processes commit. RetryError if it is elsewhere."""
        leases = Leases(self.run, LeaseOwner.current("cancel"), lambda job: None)
        held = leases.current("advance")
        if held is None:
            return []
        _, launcher = held
        if (running := launcher.is_running()) is False:
            return []
        if running is None:
            raise RetryError(
                f"the launcher of this run is process {launcher.pid} on {launcher.host}",
                hint="cancel the run there, or stop the launcher with Ctrl-C",
            )
        os.kill(launcher.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while launcher.is_running():
            if time.monotonic() > deadline:
                raise RetryError(f"the launcher, process {launcher.pid}, has not stopped yet")
            time.sleep(0.2)
        return [f"launcher {launcher.pid}"]

    def stop(self) -> None:
        """Ask every process to commit and exit, wait, and kill those that do not."""
        running = [job for jobs in self._jobs.values() for job in jobs if not job.done()]
        for job in running:
            job._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(not job.done() for job in running) and time.monotonic() < deadline:
            time.sleep(0.2)
        for job in running:
            if not job.done():
                for pid in (*descendants(job._process.pid), job._process.pid):
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    def _executor(self, intent: int, batch: TaskBatch) -> Any:
        import submitit

        executor = submitit.LocalExecutor(
            folder=self.run.logs / f"{intent:04d}-{batch.phase}", python=self.site.python
        )
        executor.update_parameters(timeout_min=UNLIMITED_MINUTES, tasks_per_node=1)
        return executor


def split_gpus(gpus: int, workers: int, sharing: int = 1) -> list[str]:
    """Return each worker's CUDA_VISIBLE_DEVICES: its part of the GPUs that the launcher sees.

    `sharing` workers have the same part. UserError if they are too few. Unset means all GPUs; an
    empty variable means none.
    """
    if not gpus:
        return [""] * workers
    parts = -(-workers // sharing)
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is None:
        visible = [str(number) for number in range(gpus * parts)]
    else:
        entries = map(str.strip, variable.split(","))
        visible = list(takewhile(lambda entry: entry not in _NO_GPU, entries))
    if len(visible) < gpus * parts:
        raise UserError(
            f"{quantity(workers, 'worker')} with {quantity(gpus, 'GPU')} each:"
            f" {quantity(gpus * parts, 'GPU')} needed, but"
            f' CUDA_VISIBLE_DEVICES="{variable}" makes {len(visible)} visible',
            hint="set another CUDA_VISIBLE_DEVICES, or lower workers or gpus in the site",
        )
    firsts = (n // sharing * gpus for n in range(workers))
    return [",".join(visible[first : first + gpus]) for first in firsts]
