"""Jobs of a run on Slurm and as local processes: the only place that knows submitit."""

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxhpc.cluster import slurm
from proxhpc.cluster.journal import Journal, Submission
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError
from proxhpc.plan import Plan
from proxhpc.refine.lease import slurm_element
from proxhpc.rundir import RunDir
from proxhpc.site import PhaseName, Resources, Site

SIGNAL_SECONDS = 90  # before the limit; workers stop by their own clock, this is the second net
ENDING = ("COMPLETING", "COMPLETED", "CANCELLED", "STAGE_OUT")
UNLIMITED_MINUTES = 60 * 24 * 365


@dataclass(frozen=True, slots=True)
class Job:
    """Work for one phase: `function(*arguments)` for each tuple, as elements of an array."""

    phase: PhaseName
    function: Callable[..., Any]
    arguments: list[tuple[Any, ...]]
    about: dict[str, int]  # the state of the run, noted with the intent


class Backend(Protocol):
    """Where jobs run."""

    kind: str

    def active(self, phase: PhaseName) -> int:
        """Jobs of a phase that wait or run."""
        ...

    def submit(self, job: Job, then: Job | None) -> list[str]:
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
    kind: str = "slurm"

    def active(self, phase: PhaseName) -> int:
        """Elements of this phase in the queue, this job itself left out."""
        me = slurm_element()
        jobs = self.queue.jobs(self.plan.run_id)
        # What is being cleaned up works no more, and a control job starts before that is over.
        jobs = [job for job in jobs if job.state not in ENDING and job.id != me]
        return sum(1 for job in jobs if job.comment.split(":")[2] == phase)

    def elements(self, resources: Resources) -> int:
        """As many as the workers need, below MaxArraySize, which caps the index."""
        return min(resources.jobs, self.site.max_array_size or slurm.max_array_size())

    def submit(self, job: Job, then: Job | None) -> list[str]:
        """Submit held, record, chain the follow-up, release."""
        journal = Journal(self.run)
        number = len(journal.read())
        first = self._held(journal, number, job, "")
        second = []
        if then is not None and self.site.submit_from_jobs:
            second = [(number + 1, self._held(journal, number + 1, then, f"afterany:{first}"))]
        # The follow-up is let go first: should we die between the two, it is there.
        for intent, identity in [*second, (number, first)]:
            slurm.run("scontrol", "release", identity)
            journal.write("released", intent)
        self.queue.forget()
        return [first, *(identity for _, identity in second)]

    def reconcile(self) -> list[str]:
        """Release what has a receipt, cancel what has none, give up what is not in the queue."""
        journal = Journal(self.run)
        out = []
        for entry in journal.read():
            if entry.released or entry.abandoned:
                continue
            out.append(self._settle(journal, entry))
        self.queue.forget()
        return out

    def _settle(self, journal: Journal, entry: Submission) -> str:
        mark = self._mark(entry.intent, entry.phase)
        found = {job.array for job in self.queue.all() if job.comment == mark}
        for identity in found & set(entry.jobs):
            slurm.run("scontrol", "release", identity)
            journal.write("released", entry.intent)
            return f"released {entry.phase} job {identity}, which an earlier launch left held"
        # Without a receipt the job's files may not be in place (submitit moves them after
        # sbatch has answered): it would only fail.
        for identity in found:
            slurm.run("scancel", identity)
        journal.write("abandoned", entry.intent)
        return f"gave up {entry.phase} submission {entry.intent}: it was never completed"

    def _held(self, journal: Journal, intent: int, job: Job, dependency: str) -> str:
        journal.write("intent", intent, phase=job.phase, count=len(job.arguments), about=job.about)
        with slurm.clean_environment(), writing(self.run.logs):
            executor = self._executor(intent, job, dependency)
            jobs = executor.map_array(job.function, *zip(*job.arguments, strict=True))
        identity = str(jobs[0].job_id).partition("_")[0]
        journal.write("receipt", intent, job=identity)
        return identity

    def _executor(self, intent: int, job: Job, dependency: str) -> Any:
        import submitit

        resources = self.site.resources(job.phase)
        executor = submitit.SlurmExecutor(
            folder=self.run.logs / f"{intent:04d}-{job.phase}", python=self.site.python
        )
        extra: dict[str, Any] = {"hold": True, "comment": self._mark(intent, job.phase)}
        extra |= {"no-requeue": True, **resources.sbatch}
        if dependency:
            extra["dependency"] = dependency
        if resources.reservation:
            extra["reservation"] = resources.reservation
        if resources.mem:
            extra["mem"] = resources.mem
        wanted = {
            "job_name": f"{self.plan.manifest.name}-{job.phase}",
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
            "array_parallelism": len(job.arguments),
            "additional_parameters": extra,
        }
        executor.update_parameters(**{k: v for k, v in wanted.items() if v is not None})
        return executor

    def _mark(self, intent: int, phase: str) -> str:
        return f"{slurm.tag(self.plan.run_id)}:{phase}:{intent}"


@dataclass
class LocalBackend:
    """The same jobs as processes of this machine; they live as long as the launcher."""

    run: RunDir
    plan: Plan
    site: Site
    kind: str = "local"
    _jobs: dict[str, list[Any]] = field(default_factory=dict)
    _submitted: int = 0

    def active(self, phase: PhaseName) -> int:
        """Processes of this phase that run."""
        return sum(1 for job in self._jobs.get(phase, []) if not job.done())

    def elements(self, resources: Resources) -> int:
        """As many as there are workers."""
        return resources.workers

    def submit(self, job: Job, then: Job | None) -> list[str]:
        """Start the processes; the launcher itself is what comes then."""
        import submitit

        resources = self.site.resources(job.phase)
        journal = Journal(self.run)
        number = len(journal.read())
        journal.write("intent", number, phase=job.phase, count=len(job.arguments), about=job.about)
        folder = self.run.logs / f"{number:04d}-{job.phase}"
        started = self._jobs.setdefault(job.phase, [])
        started.clear()
        with writing(self.run.logs):
            executor = submitit.LocalExecutor(folder=folder, python=self.site.python)
            executor.update_parameters(
                timeout_min=UNLIMITED_MINUTES,
                tasks_per_node=1,
                gpus_per_node=resources.gpus,
                setup=list(resources.setup),
            )
            gpus = resources.gpus
            for worker, arguments in enumerate(job.arguments):
                # Each worker its own cards; with none asked for, all are hidden.
                own = range(worker * gpus, (worker + 1) * gpus)
                executor.update_parameters(visible_gpus=list(own))
                started.append(executor.submit(job.function, *arguments))
        for process in started:
            journal.write("receipt", number, job=process.job_id)
        journal.write("released", number)
        return [process.job_id for process in started]

    def reconcile(self) -> list[str]:
        """Nothing to settle: processes need no release."""
        return []

    def stop(self) -> None:
        """Tell every process to commit and go, and wait for it."""
        running = [job for jobs in self._jobs.values() for job in jobs if not job.done()]
        for job in running:
            job._process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 60
        while any(not job.done() for job in running):
            if time.monotonic() > deadline:
                raise RetryError("local workers did not stop within a minute")
            time.sleep(0.2)


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
