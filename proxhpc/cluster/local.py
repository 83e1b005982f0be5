"""The jobs of a run as processes of this machine."""

import os
import signal
import time
from collections.abc import Container
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from proxhpc.cluster import slurm, tasks
from proxhpc.cluster.backend import Work, intend
from proxhpc.cluster.journal import Journal
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError, UserError
from proxhpc.faults import fault_point
from proxhpc.run.lease import LeaseOwner, Leases
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.process import descendants
from proxhpc.spec.site import PhaseName, Resources, Site

STOP_SECONDS = 60  # for a local process to commit and go
UNLIMITED_MINUTES = 60 * 24 * 365


@dataclass
class LocalBackend:
    """The same jobs as processes of this machine; they live as long as the launcher."""

    run: RunDir
    plan: Plan
    site: Site
    _jobs: dict[str, list[Any]] = field(default_factory=dict)

    def active(self, phase: PhaseName) -> int:
        """Processes of this phase that run."""
        return sum(1 for job in self._jobs.get(phase, []) if not job.done())

    def elements(self, resources: Resources) -> int:
        """As many as there are workers."""
        return resources.workers

    def submit(self, work: Work, then: Work | None) -> list[str]:
        """Start the processes; the launcher itself is what comes then."""
        journal = Journal(self.run)
        number = len(journal.read())
        intend(journal, number, work, arrays=1, chained=False)
        share = self.site.resources(work.phase)
        devices = _devices(share.gpus, len(work.arguments))
        started = self._jobs[work.phase] = []
        # A terminal's Ctrl-C is for the launcher, which lets its workers commit: submitit would
        # give them a second. They set handlers of their own for the other signals.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with slurm.clean_environment(), writing(self.run.logs):
                executor = self._executor(number, work)
                for own, arguments in zip(devices, work.arguments, strict=True):
                    call = (tasks.with_share, own, share.cpus, work.function, *arguments)
                    started.append(executor.submit(*call))
        finally:
            signal.signal(signal.SIGINT, before)
        for process in started:
            journal.write("receipt", number, phase=work.phase, job=process.job_id)
        journal.write("released", number)
        fault_point("all released")
        return [process.job_id for process in started]

    def follow(self, then: Work) -> bool:
        """Nothing to do: the launcher itself is what comes then."""
        return False

    def reconcile(self) -> list[str]:
        """Nothing to settle: processes need no release."""
        return []

    def failing(self, worked: Container[str]) -> dict[str, int]:
        """Nothing to tell: there is one machine only."""
        return {}

    def cancel(self) -> list[str]:
        """Tell the launcher to stop, which lets its processes commit. RetryError if elsewhere."""
        leases = Leases(self.run, LeaseOwner.current("cancel"), lambda job: None)
        held = leases.current("advance")
        if held is None:
            return []
        _, owner = held
        if (alive := owner.is_running()) is False:
            return []
        if alive is None:
            raise RetryError(
                f"the launcher of this run is process {owner.pid} on {owner.host}",
                hint="cancel there, or end it there with Ctrl-C",
            )
        os.kill(owner.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while owner.is_running():
            if time.monotonic() > deadline:
                raise RetryError(f"the launcher, process {owner.pid}, has not ended yet")
            time.sleep(0.2)
        return [f"launcher {owner.pid}"]

    def stop(self) -> None:
        """Tell every process to commit and go, wait for it, and end what does not go."""
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

    def _executor(self, intent: int, work: Work) -> Any:
        import submitit

        executor = submitit.LocalExecutor(
            folder=self.run.logs / f"{intent:04d}-{work.phase}", python=self.site.python
        )
        setup = list(self.site.resources(work.phase).setup)
        executor.update_parameters(timeout_min=UNLIMITED_MINUTES, tasks_per_node=1, setup=setup)
        return executor


def _devices(gpus: int, workers: int) -> list[str]:
    """CUDA_VISIBLE_DEVICES of each worker: its share of what the launcher may use."""
    if not gpus:
        return [""] * workers
    mine = os.environ.get("CUDA_VISIBLE_DEVICES")
    cards = mine.split(",") if mine else [str(card) for card in range(gpus * workers)]
    if len(cards) < gpus * workers:
        raise UserError(
            f"{workers} workers with {gpus} GPUs each, but CUDA_VISIBLE_DEVICES is {mine}",
            hint="lower workers or gpus in the site",
        )
    return [",".join(cards[n * gpus : (n + 1) * gpus]) for n in range(workers)]
