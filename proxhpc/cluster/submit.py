"""Submits the jobs of a run to Slurm: held and tagged arrays, recorded, then released."""

import io
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Collection, Container, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace

from proxhpc.account.quantity import quantity
from proxhpc.cluster import script, slurm
from proxhpc.cluster.backend import TaskBatch, record_intent
from proxhpc.cluster.journal import Journal, Submission
from proxhpc.cluster.limits import JobLimit, count_jobs, job_limits, running_limit
from proxhpc.cluster.local import LocalBackend
from proxhpc.cluster.queue import Queue, QueuedJob
from proxhpc.cluster.silent import find_silent
from proxhpc.corpus.disk import writing
from proxhpc.errors import ProxError, RetryError, StopError
from proxhpc.faults import fault_point
from proxhpc.run.lease import Lease, slurm_job_id
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import PhaseName, Resources, Site

EARLY_FAILURE_SECONDS = 600  # a worker that failed sooner had no time to do anything
EARLY_FAILURES = 3  # in a row on one node: then the node is at fault
SAME_START_SECONDS = 600  # between starts, of which the longest job's is the best
CANCEL_SECONDS = 60  # for Slurm to end every job


@dataclass
class SlurmBackend:
    """Submits the jobs of one run; each submission is a transaction.

    `lease` is the `advance` lease, without which nothing is submitted or released.
    """

    run: RunDir
    plan: Plan
    site: Site
    queue: Queue
    lease: Lease | None = None
    site_words: list[str] = field(default_factory=list)  # printed when sbatch succeeded
    _ended: list[slurm.EndedElement] | None = None
    _set_aside: list[str] = field(default_factory=list)

    def active_elements(self, phase: PhaseName) -> int:
        """Return the number of elements of this phase in the queue, without this job."""
        return sum(1 for job in self._other_jobs() if job.phase == phase)

    def free_elements(self, resources: Resources) -> int:
        """Return the elements that the workers need and the limit on submitted jobs allows.

        RetryError if it allows none beside a control job.
        """
        limits = job_limits(resources.account, resources.qos)
        running = running_limit(limits, resources)
        if running and running.jobs < 1:
            self.site_words.append(f"{running.words}; a job asks for more, so it may never start")
        if self.site.max_submit_jobs is not None:
            limits = [JobLimit(self.site.max_submit_jobs)]
        control_jobs = int(self.site.submit_from_jobs)
        jobs = resources.jobs
        for limit in limits:
            if limit.queued is None:
                continue
            queued = self._count(limit)
            free = limit.queued - queued - control_jobs
            if free < 1:
                raise RetryError(
                    f"{limit} in the queue, and there are {queued};"
                    f" this step submits {1 + control_jobs} or more",
                    hint="run `proxhpc launch` again when some of them have ended",
                )
            jobs = min(jobs, free)
        return jobs

    def _count(self, limit: JobLimit) -> int:
        """Return how many jobs in the queue count for a limit."""
        own = sum(
            not job.has_ended
            and job.array not in self._set_aside
            and (not limit.accounts or job.account in limit.accounts)
            and limit.qos in ("", job.qos)
            for job in self.queue.all_jobs()
        )
        return max(own, count_jobs(limit)) if limit.everyone else own

    def submit(self, batch: TaskBatch, follow_up: TaskBatch | None) -> list[str]:
        """Submit held arrays and a dependent follow-up job, record their ids, release them.

        MaxArraySize limits array indices, so many elements become several arrays. RetryError or
        UserError if sbatch refuses; what was submitted until then is cancelled.
        """
        control = follow_up if self.site.submit_from_jobs else None
        batch = replace(batch, minutes=self._first_to_start(batch))
        return self._submit(batch, self._split_into_arrays(batch), control)

    def _first_to_start(self, batch: TaskBatch) -> int | None:
        """Return the minutes of the time limit that Slurm would start first; None for the site's.

        Of those that start within ten minutes of each other, the longest.
        """
        lengths = self.site.resources(batch.phase).lengths
        starts: list[tuple[float, int]] = []
        for seconds in lengths if len(lengths) > 1 else ():
            minutes = -(-seconds // 60)
            trial = replace(batch, minutes=minutes)
            executor = script.batch_executor(self.run, self.plan, self.site, trial, intent=0)
            start = slurm.expected_start(slurm.check_script(script.script_text(executor, 1)))
            if start is not None:
                starts.append((start, minutes))
        first = min((start for start, _ in starts), default=0.0)
        return max((m for start, m in starts if start - first < SAME_START_SECONDS), default=None)

    def _submit(
        self,
        batch: TaskBatch,
        arrays: list[TaskBatch],
        control: TaskBatch | None = None,
        dependency: str = "",
    ) -> list[str]:
        self._check_lease()
        self.drop_paused()
        journal = Journal(self.run)
        number = len(journal.read())
        record_intent(
            journal, number, batch, arrays=len(arrays), has_control_job=control is not None
        )
        try:
            ids = [self._submit_held(journal, number, array, dependency) for array in arrays]
            if control is not None:
                after = f"afterany:{':'.join(ids)}"
                ids.append(self._submit_held(journal, number, control, after))
            for job_id in ids:
                self._check_held(job_id)
            self._check_lease(number)
            self._release(journal, number, reversed(ids))
        except ProxError:
            if not self._lease_is_lost():
                self._abandon(journal, number)
            raise
        return ids

    def ensure_follow_up(self, follow_up: TaskBatch) -> bool:
        """Submit `follow_up` behind the queued jobs unless a job of its phase is queued."""
        self.queue.invalidate()
        jobs = self._other_jobs()
        phases = {job.phase for job in jobs}
        if not self.site.submit_from_jobs or not jobs or follow_up.phase in phases:
            return False
        arrays = dict.fromkeys(job.array for job in jobs)
        self._submit(follow_up, [follow_up], dependency=f"afterany:{':'.join(arrays)}")
        return True

    def preview_scripts(self, batches: Iterable[TaskBatch]) -> list[tuple[PhaseName, str, str]]:
        """Return each batch's phase, script, and the answer of `sbatch --test-only`."""
        previews = []
        for batch in batches:
            executor = script.batch_executor(self.run, self.plan, self.site, batch, intent=0)
            first_array = self._split_into_arrays(batch)[0]
            text = script.script_text(executor, len(first_array.arguments))
            previews.append((batch.phase, text, slurm.check_script(text)))
        return previews

    def reconcile(self) -> list[str]:
        """Release submissions that are recorded completely, cancel the others."""
        journal = Journal(self.run)
        entries = journal.read()
        messages = [self._settle(journal, entry) for entry in entries if not entry.settled]
        # The sbatch of an abandoned submission may have reached the controller late.
        abandoned = [entry for entry in journal.read() if entry.abandoned]
        numbers = {(self.plan.run_id, entry.number) for entry in abandoned}
        ids = {job_id for entry in abandoned for job_id in entry.job_ids}
        for job in self.queue.all_jobs():
            is_tagged = job.tag is not None and (job.tag.run, job.tag.intent) in numbers
            is_recorded = job.array in ids and self.queue.belongs_to(job, self.plan.run_id)
            if (is_tagged or is_recorded) and not job.has_ended:
                slurm.run_command("scancel", job.id)
        self.queue.invalidate()
        return messages

    def set_aside_paused(self) -> list[str]:
        """Ignore a round that waits for the end of its pause, and its control job."""
        rounds = [entry for entry in Journal(self.run).read() if not entry.abandoned]
        jobs = self._other_jobs()
        is_paused = bool(rounds) and rounds[-1].delay_seconds > 0
        if is_paused and all(job.state == "PENDING" for job in jobs):
            self._set_aside = sorted({job.array for job in jobs}, key=int)
        return self._set_aside

    def drop_paused(self) -> None:
        """Cancel the jobs that were set aside."""
        for array in self._set_aside:
            slurm.run_command("scancel", array)
        self._set_aside = []
        self.queue.invalidate()

    def release_held(self) -> list[str]:
        """Release jobs that Slurm or a person holds, such as one whose node failed to start it."""
        jobs = [job for job in self._other_jobs() if job.is_held]
        for job in jobs:
            try:
                slurm.run_command("scontrol", "release", job.id)
            except RetryError as error:
                raise RetryError(
                    f"job {job.id} is held ({job.reason}): {error.message}",
                    hint="ask the cluster's administrators, or run `proxhpc cancel`",
                ) from error
        self.queue.invalidate()
        return [job.id for job in jobs]

    def silent_round(self, phase: PhaseName, spoke: Collection[str]) -> tuple[str, int]:
        """Return why every element of the last round failed in silence, and on how many nodes.

        Causes that may pass, such as a full disk, are left out.
        """
        rounds = reversed(Journal(self.run).since_manual_launch())
        last = next((entry for entry in rounds if entry.phase == phase), None)
        if last is None:
            return "", 0
        arrays = {*last.jobs.get(phase, ())}
        failed = [
            each
            for each in self._ended_elements()
            if each.id.partition("_")[0] in arrays
            and each.state == "FAILED"
            and each.id not in spoke
        ]
        if len(failed) < last.elements:
            return "", 0
        silent = find_silent(self.run, last, spoke, ())
        if silent is None or silent.may_pass:
            return "", 0
        seconds = max(each.seconds for each in failed)
        message = (
            f"{len(failed)} of {quantity(last.elements, 'job')} failed within {seconds} s,"
            f" before a worker began: {silent.words}"
        )
        return message, len({each.node for each in failed})

    def failing_nodes(self, productive_jobs: Container[str]) -> dict[str, int]:
        """Return nodes whose last elements all failed within minutes, with the number of failures.

        Only elements since the last manual launch count: a person may have fixed the node before
        it. If no element worked on another node, the cause is not a node, and none is returned.
        """
        failed_early: dict[str, list[bool]] = defaultdict(list)
        for element in self._ended_elements():
            early = element.has_failed and element.seconds < EARLY_FAILURE_SECONDS
            failed_early[element.node].append(early and element.id not in productive_jobs)
        failing = {
            node: len(elements)
            for node, elements in failed_early.items()
            if len(elements) >= EARLY_FAILURES and all(elements[-EARLY_FAILURES:])
        }
        others = (failed for node, failed in failed_early.items() if node not in failing)
        return failing if any(False in failed for failed in others) else {}

    def _ended_elements(self) -> list[slurm.EndedElement]:
        """Return what ended since a person last launched; asked once in a step: sacct may hang."""
        if self._ended is None:
            submissions = Journal(self.run).since_manual_launch()
            arrays = [job for entry in submissions for job in entry.jobs.get(entry.phase, ())]
            self._ended = slurm.ended_elements(arrays)
        return self._ended

    def cancel(self) -> list[str]:
        """End every job of the run. RetryError if Slurm still lists one after a minute."""
        cancelled: dict[str, None] = {}
        deadline = time.monotonic() + CANCEL_SECONDS
        while True:
            self.queue.invalidate()
            jobs = [job for job in self._jobs() if not job.has_ended]
            if not jobs:
                return list(cancelled)
            if time.monotonic() > deadline:
                raise RetryError(f"{quantity(len(jobs), 'job')} of this run still in the queue")
            # Control jobs first: a running one may be about to submit more.
            for job in sorted(jobs, key=lambda job: job.phase != "control"):
                if job.array not in cancelled or job.state == "PENDING":
                    slurm.run_command("scancel", job.array)
                cancelled[job.array] = None
            time.sleep(1)

    def _jobs(self) -> list[QueuedJob]:
        return self.queue.jobs(self.plan.run_id, Journal(self.run).job_phases())

    def _other_jobs(self) -> list[QueuedJob]:
        """Return the pending and running jobs of the run, without this one."""
        this_job = slurm_job_id()
        # A control job starts while the workers before it are still listed as COMPLETING.
        jobs = (job for job in self._jobs() if job.array not in self._set_aside)
        return [job for job in jobs if not job.has_ended and job.id != this_job]

    def _split_into_arrays(self, batch: TaskBatch) -> list[TaskBatch]:
        # Without arrays (MaxArraySize 0), an array of one element is submitted as a plain job.
        size = max(1, self.site.max_array_size or slurm.max_array_size(slurm.read_config()))
        count = len(batch.arguments)
        return [
            replace(batch, arguments=batch.arguments[i : i + size]) for i in range(0, count, size)
        ]

    def _settle(self, journal: Journal, entry: Submission) -> str:
        if entry.is_complete:
            listed = {job.array for job in self._jobs()}
            recorded = reversed(list(entry.jobs.values()))
            ids = [job_id for ids in recorded for job_id in ids if job_id in listed]
            self._release(journal, entry.number, ids)
            return f"released {entry.phase} jobs that an earlier launch left held"
        # An array without a receipt may lack its files: submitit moves them in place after sbatch
        # has answered. An array without its control job would have no successor.
        self._abandon(journal, entry.number)
        return f"cancelled {entry.phase} jobs that an earlier launch submitted only in part"

    def _abandon(self, journal: Journal, number: int) -> None:
        """Cancel the jobs of a submission, as far as the queue or the journal knows them."""
        self.queue.invalidate()
        recorded = journal.read()[number].job_ids
        for array in dict.fromkeys(
            job.array
            for job in self._jobs()
            if job.array in recorded or (job.tag is not None and job.tag.intent == number)
        ):
            slurm.run_command("scancel", array)
        journal.write("abandoned", number)
        self.queue.invalidate()

    def _lease_is_lost(self) -> bool:
        return self.lease is not None and self.lease.is_lost()

    def _check_lease(self, number: int | None = None) -> None:
        """Raise RetryError if another launch has taken over while this process stood still.

        Jobs of submission `number` are cancelled if the other launch has given them up.
        """
        if not self._lease_is_lost():
            return
        entries = Journal(self.run).read()
        if number is not None and entries[number].abandoned:
            for job_id in entries[number].job_ids:
                slurm.run_command("scancel", job_id)
        raise RetryError("another launch has taken over this run and takes the next step")

    def _check_held(self, job_id: str) -> None:
        """Read a submitted job back. RetryError if Slurm does not hold it."""
        parts = slurm.show_job(job_id)
        if not parts or any(part["JobState"] != "PENDING" for part in parts):
            states = ", ".join(sorted({part["JobState"] for part in parts})) or "unknown"
            raise RetryError(f"job {job_id} was submitted held, but is {states}")

    def _release(self, journal: Journal, number: int, ids: Iterable[str]) -> None:
        # The follow-up first: if this process dies in between, the arrays have a successor.
        for job_id in ids:
            slurm.run_command("scontrol", "release", job_id)
            fault_point("one released")
        journal.write("released", number)
        fault_point("all released")
        self.queue.invalidate()

    def _submit_held(self, journal: Journal, number: int, batch: TaskBatch, dependency: str) -> str:
        self._check_lease(number)
        # submitit also prints a refusal, as it is; the error quotes it.
        silence = redirect_stderr(io.StringIO())
        with slurm.submitting(), writing(self.run.logs), silence:
            executor = script.batch_executor(
                self.run, self.plan, self.site, batch, intent=number, dependency=dependency
            )
            jobs = executor.map_array(batch.function, *zip(*batch.arguments, strict=True))
        self.site_words += executor.site_words
        fault_point("control held" if batch.phase == "control" else "array held")
        job_id = str(jobs[0].job_id).partition("_")[0]
        if self._lease_is_lost():
            slurm.run_command("scancel", job_id)
            self._check_lease(number)
        journal.write("receipt", number, phase=batch.phase, job=job_id)
        fault_point("control recorded" if batch.phase == "control" else "array recorded")
        return job_id


def make_backend(
    run: RunDir, plan: Plan, site: Site, lease: Lease | None = None
) -> SlurmBackend | LocalBackend:
    """Return the backend of a site. RetryError for a Slurm site on a machine without Slurm."""
    if site.kind == "local":
        return LocalBackend(run, site)
    if "SLURM_JOB_ID" in os.environ and shutil.which("sbatch") is None:
        raise StopError("there is no sbatch on this node", hint=slurm.SUBMIT_BY_HAND)
    for command in ("sbatch", "srun"):  # submitit needs srun here, and each job on its node
        if shutil.which(command) is None:
            raise RetryError(
                f"site {site.name} is a Slurm site, but this machine has no {command}",
                hint="launch from a login node, or use --site local",
            )
    return SlurmBackend(run, plan, site, Queue(), lease)
