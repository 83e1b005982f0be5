"""Jobs of a run on Slurm and as local processes: the only place that knows submitit."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxhpc.cluster import slurm, tasks
from proxhpc.cluster.journal import Journal, Submission
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError, UserError
from proxhpc.faults import reach
from proxhpc.plan import Plan
from proxhpc.refine.lease import slurm_element
from proxhpc.refine.process import descendants
from proxhpc.rundir import RunDir
from proxhpc.site import PhaseName, Resources, Site

SIGNAL_SECONDS = 90  # before the limit; workers stop by their own clock, this is the second net
STOP_SECONDS = 60  # for a local process to commit and go
UNLIMITED_MINUTES = 60 * 24 * 365


@dataclass(frozen=True, slots=True)
class Work:
    """Work for one phase: `function(*arguments)` for each tuple, as elements of an array."""

    phase: PhaseName
    function: Callable[..., Any]
    arguments: list[tuple[Any, ...]]
    about: dict[str, int]  # the state of the run, noted with the intent


class Backend(Protocol):
    """Where jobs run."""

    def active(self, phase: PhaseName) -> int:
        """Jobs of a phase that wait or run."""
        ...

    def submit(self, work: Work, then: Work | None) -> list[str]:
        """Start a job, and `then` when it has ended however it ends; ids for people."""
        ...

    def reconcile(self) -> list[str]:
        """Settle what a submitter left that died half way; one line for each case."""
        ...

    def elements(self, resources: Resources) -> int:
        """How many elements an array for these resources may have."""
        ...


@dataclass
class SlurmBackend:
    """Held arrays with a tag, recorded, then released."""

    run: RunDir
    plan: Plan
    site: Site
    queue: slurm.Queue

    def active(self, phase: PhaseName) -> int:
        """Elements of this phase in the queue, this job itself left out."""
        me = slurm_element()
        jobs = self.queue.jobs(self.plan.run_id)
        # What is being cleaned up works no more, and a control job starts before that is over.
        jobs = [job for job in jobs if job.state not in slurm.ENDING and job.id != me]
        return sum(1 for job in jobs if job.comment.split(":")[2] == phase)

    def elements(self, resources: Resources) -> int:
        """As many as the workers need, below MaxArraySize, which caps the index."""
        return min(resources.jobs, self.site.max_array_size or slurm.max_array_size())

    def submit(self, work: Work, then: Work | None) -> list[str]:
        """Submit held, record, chain the follow-up, release.

        RetryError or UserError when sbatch refuses; what is there by then is settled next time.
        """
        journal = Journal(self.run)
        number = len(journal.read())
        follow_up = then if self.site.submit_from_jobs else None
        _intend(journal, number, work, chained=follow_up is not None)
        first = self._held(journal, number, work, "")
        reach("array recorded")
        ids = [first]
        if follow_up is not None:
            ids.append(self._held(journal, number, follow_up, f"afterany:{first}"))
            reach("control recorded")
        self._release(journal, number, reversed(ids))
        return ids

    def reconcile(self) -> list[str]:
        """Release what is recorded whole, cancel what is not."""
        journal = Journal(self.run)
        entries = journal.read()
        out = [self._settle(journal, entry) for entry in entries if not entry.settled]
        # An sbatch that was given up as lost may have arrived after all.
        given_up = {f":{entry.intent}" for entry in entries if entry.abandoned}
        for job in self.queue.jobs(self.plan.run_id):
            if job.comment[job.comment.rfind(":") :] in given_up:
                slurm.run("scancel", job.id)
        self.queue.forget()
        return out

    def _settle(self, journal: Journal, entry: Submission) -> str:
        jobs = self.queue.jobs(self.plan.run_id)
        found = {job.array for job in jobs if job.comment.endswith(f":{entry.intent}")}
        recorded = [identity for ids in reversed(entry.jobs.values()) for identity in ids]
        if entry.complete:
            self._release(journal, entry.intent, [i for i in recorded if i in found])
            return f"released {entry.phase} jobs that an earlier launch left held"
        # An array without a receipt may lack its files (submitit moves them in place after sbatch
        # has answered), and one without its control job would be the last of the run.
        for identity in found:
            slurm.run("scancel", identity)
        journal.write("abandoned", entry.intent)
        return f"gave up a {entry.phase} submission that an earlier launch left half done"

    def _release(self, journal: Journal, number: int, ids: Iterable[str]) -> None:
        # The follow-up is let go before what it follows: should we die between, it is there.
        for identity in ids:
            slurm.run("scontrol", "release", identity)
            reach("one released")
        journal.write("released", number)
        reach("all released")
        self.queue.forget()

    def _held(self, journal: Journal, intent: int, work: Work, dependency: str) -> str:
        from submitit.core.utils import FailedJobError

        try:
            with slurm.clean_environment(), writing(self.run.logs):
                executor = self._executor(intent, work, dependency)
                jobs = executor.map_array(work.function, *zip(*work.arguments, strict=True))
        except FailedJobError as error:
            raise slurm.refusal(error) from error
        reach("control held" if work.phase == "control" else "array held")
        identity = str(jobs[0].job_id).partition("_")[0]
        journal.write("receipt", intent, phase=work.phase, job=identity)
        return identity

    def _executor(self, intent: int, work: Work, dependency: str) -> Any:
        import submitit

        resources = self.site.resources(work.phase)
        executor = submitit.SlurmExecutor(
            folder=self.run.logs / f"{intent:04d}-{work.phase}", python=self.site.python
        )
        extra: dict[str, Any] = {
            "hold": True,
            "comment": f"{slurm.tag(self.plan.run_id)}:{work.phase}:{intent}",
        }
        extra |= {"no-requeue": True, **resources.sbatch}
        if dependency:
            extra["dependency"] = dependency
        if resources.reservation:
            extra["reservation"] = resources.reservation
        if resources.mem:
            extra["mem"] = resources.mem
        wanted = {
            "job_name": f"{self.plan.manifest.name}-{work.phase}",
            "partition": resources.partition,
            "account": resources.account,
            "qos": resources.qos,
            "constraint": resources.constraint,
            "gres": resources.gres,
            "exclusive": resources.exclusive or None,
            "time": -(-resources.seconds // 60) if resources.seconds else None,
            "nodes": 1,
            "ntasks_per_node": resources.tasks_per_node,
            "cpus_per_task": resources.cpus,
            "gpus_per_node": resources.gpus * resources.tasks_per_node or None,
            "signal_delay_s": SIGNAL_SECONDS,
            "setup": list(resources.setup) or None,
            "array_parallelism": len(work.arguments),
            "additional_parameters": extra,
        }
        executor.update_parameters(**{k: v for k, v in wanted.items() if v is not None})
        return executor


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
        _intend(journal, number, work, chained=False)
        devices = _devices(self.site.resources(work.phase).gpus, len(work.arguments))
        started = self._jobs[work.phase] = []
        # A terminal's Ctrl-C is for the launcher, which lets its workers commit: submitit would
        # give them a second. They set handlers of their own for the other signals.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with slurm.clean_environment(), writing(self.run.logs):
                executor = self._executor(number, work)
                for own, arguments in zip(devices, work.arguments, strict=True):
                    call = (tasks.on_devices, own, work.function, *arguments)
                    started.append(executor.submit(*call))
        finally:
            signal.signal(signal.SIGINT, before)
        for process in started:
            journal.write("receipt", number, phase=work.phase, job=process.job_id)
        journal.write("released", number)
        reach("all released")
        return [process.job_id for process in started]

    def _executor(self, intent: int, work: Work) -> Any:
        import submitit

        executor = submitit.LocalExecutor(
            folder=self.run.logs / f"{intent:04d}-{work.phase}", python=self.site.python
        )
        setup = list(self.site.resources(work.phase).setup)
        executor.update_parameters(timeout_min=UNLIMITED_MINUTES, tasks_per_node=1, setup=setup)
        return executor

    def reconcile(self) -> list[str]:
        """Nothing to settle: processes need no release."""
        return []

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


def _intend(journal: Journal, number: int, work: Work, *, chained: bool) -> None:
    about = {"phase": work.phase, "count": len(work.arguments), "about": work.about}
    journal.write("intent", number, chained=chained, **about)
    reach("intent written")


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


def make_backend(run: RunDir, plan: Plan, site: Site) -> SlurmBackend | LocalBackend:
    """The backend of a site. RetryError where it wants Slurm and there is none."""
    if site.kind == "local":
        return LocalBackend(run, plan, site)
    if not slurm.available():
        raise RetryError(
            f"site {site.name} is a Slurm site, but there is no sbatch on this machine",
            hint="launch from a login node, or use --site local",
        )
    return SlurmBackend(run, plan, site, slurm.Queue())
