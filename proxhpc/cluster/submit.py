"""Submits the jobs of a run to Slurm: held and tagged arrays, recorded, then released."""

import time
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from proxhpc.account.quantity import quantity
from proxhpc.cluster import script, slurm
from proxhpc.cluster.backend import TaskBatch, record_intent
from proxhpc.cluster.journal import Journal, Submission
from proxhpc.cluster.local import LocalBackend
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError
from proxhpc.faults import fault_point
from proxhpc.run.lease import slurm_job_id
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import PhaseName, Resources, Site

EARLY_FAILURE_SECONDS = 600  # a worker that failed sooner had no time to do anything
EARLY_FAILURES = 3  # in a row on one node: then the node is at fault
CANCEL_SECONDS = 60  # for Slurm to end every job


@dataclass
class SlurmBackend:
    """Submits the jobs of one run; each submission is a transaction."""

    run: RunDir
    plan: Plan
    site: Site
    queue: slurm.Queue

    def active_elements(self, phase: PhaseName) -> int:
        """Return the number of elements of this phase in the queue, without this job."""
        return sum(1 for job in self._other_jobs() if job.phase == phase)

    def free_elements(self, resources: Resources) -> int:
        """Return the elements that the workers need and the limit on submitted jobs allows.

        RetryError if it allows none beside a control job.
        """
        limit = self.site.max_submit_jobs
        if limit is None:
            limit = slurm.submit_limit(resources.account, resources.qos)
        if limit is None:
            return resources.jobs
        queued = sum(job.state not in slurm.ENDED_STATES for job in self.queue.all_jobs())
        control_jobs = int(self.site.submit_from_jobs)
        if (free := limit - queued - control_jobs) < 1:
            raise RetryError(
                f"you may have {quantity(limit, 'job')} in the queue and have {queued};"
                f" this step submits {1 + control_jobs} or more",
                hint="run `proxhpc launch` again when some of them have ended",
            )
        return min(resources.jobs, free)

    def submit(self, batch: TaskBatch, follow_up: TaskBatch | None) -> list[str]:
        """Submit held arrays and a dependent follow-up job, record their ids, release them.

        MaxArraySize limits array indices, so many elements become several arrays. RetryError or
        UserError if sbatch refuses; the next launch cancels what was submitted until then.
        """
        journal = Journal(self.run)
        number = len(journal.read())
        control = follow_up if self.site.submit_from_jobs else None
        arrays = self._split_into_arrays(batch)
        record_intent(
            journal, number, batch, arrays=len(arrays), has_control_job=control is not None
        )
        ids = [self._submit_held(journal, number, array, "") for array in arrays]
        if control is not None:
            ids.append(self._submit_held(journal, number, control, f"afterany:{':'.join(ids)}"))
        self._release(journal, number, reversed(ids))
        return ids

    def ensure_follow_up(self, follow_up: TaskBatch) -> bool:
        """Submit `follow_up` behind the queued jobs unless a job of its phase is queued."""
        self.queue.invalidate()
        jobs = self._other_jobs()
        phases = {job.phase for job in jobs}
        if not self.site.submit_from_jobs or not jobs or follow_up.phase in phases:
            return False
        journal = Journal(self.run)
        number = len(journal.read())
        record_intent(journal, number, follow_up, arrays=1, has_control_job=False)
        arrays = dict.fromkeys(job.array for job in jobs)
        job_id = self._submit_held(journal, number, follow_up, f"afterany:{':'.join(arrays)}")
        self._release(journal, number, [job_id])
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
        abandoned = {f":{entry.number}" for entry in entries if entry.abandoned}
        for job in self.queue.jobs(self.plan.run_id):
            if job.comment[job.comment.rfind(":") :] in abandoned:
                slurm.run_command("scancel", job.id)
        self.queue.invalidate()
        return messages

    def failing_nodes(self, productive_jobs: Container[str]) -> dict[str, int]:
        """Return nodes whose last elements all failed within minutes, with the number of failures.

        Only elements since the last manual launch count: a person may have fixed the node before
        it. If every node fails, the cause is not a node, and none is returned.
        """
        submissions = Journal(self.run).since_manual_launch()
        arrays = [job for entry in submissions for job in entry.jobs.get(entry.phase, ())]
        failed_early: dict[str, list[bool]] = defaultdict(list)
        for element in slurm.ended_elements(arrays):
            early = element.has_failed and element.seconds < EARLY_FAILURE_SECONDS
            failed_early[element.node].append(early and element.id not in productive_jobs)
        failing = {
            node: len(elements)
            for node, elements in failed_early.items()
            if len(elements) >= EARLY_FAILURES and all(elements[-EARLY_FAILURES:])
        }
        return failing if len(failing) < len(failed_early) else {}

    def cancel(self) -> list[str]:
        """End every job of the run. RetryError if Slurm still lists one after a minute."""
        cancelled: dict[str, None] = {}
        deadline = time.monotonic() + CANCEL_SECONDS
        while True:
            self.queue.invalidate()
            jobs = [
                job
                for job in self.queue.jobs(self.plan.run_id)
                if job.state not in slurm.ENDED_STATES
            ]
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

    def _other_jobs(self) -> list[slurm.QueuedJob]:
        """Return the pending and running jobs of the run, without this one."""
        this_job = slurm_job_id()
        jobs = self.queue.jobs(self.plan.run_id)
        # A control job starts while the workers before it are still listed as COMPLETING.
        return [job for job in jobs if job.state not in slurm.ENDED_STATES and job.id != this_job]

    def _split_into_arrays(self, batch: TaskBatch) -> list[TaskBatch]:
        # Without arrays (MaxArraySize 0), an array of one element is submitted as a plain job.
        size = max(1, self.site.max_array_size or slurm.max_array_size(slurm.read_config()))
        count = len(batch.arguments)
        return [
            replace(batch, arguments=batch.arguments[i : i + size]) for i in range(0, count, size)
        ]

    def _settle(self, journal: Journal, entry: Submission) -> str:
        jobs = self.queue.jobs(self.plan.run_id)
        queued = {job.array for job in jobs if job.comment.endswith(f":{entry.number}")}
        recorded = [job_id for ids in reversed(entry.jobs.values()) for job_id in ids]
        if entry.is_complete:
            self._release(journal, entry.number, [job for job in recorded if job in queued])
            return f"released {entry.phase} jobs that an earlier launch left held"
        # An array without a receipt may lack its files: submitit moves them in place after sbatch
        # has answered. An array without its control job would have no successor.
        for job_id in queued:
            slurm.run_command("scancel", job_id)
        journal.write("abandoned", entry.number)
        return f"cancelled {entry.phase} jobs that an earlier launch submitted only in part"

    def _release(self, journal: Journal, number: int, ids: Iterable[str]) -> None:
        # The follow-up first: if this process dies in between, the arrays have a successor.
        for job_id in ids:
            slurm.run_command("scontrol", "release", job_id)
            fault_point("one released")
        journal.write("released", number)
        fault_point("all released")
        self.queue.invalidate()

    def _submit_held(self, journal: Journal, number: int, batch: TaskBatch, dependency: str) -> str:
        from submitit.core.utils import FailedJobError

        try:
            with slurm.clean_environment(), writing(self.run.logs):
                executor = script.batch_executor(
                    self.run, self.plan, self.site, batch, intent=number, dependency=dependency
                )
                jobs = executor.map_array(batch.function, *zip(*batch.arguments, strict=True))
        except FailedJobError as error:
            raise slurm.submission_error(error) from error
        fault_point("control held" if batch.phase == "control" else "array held")
        job_id = str(jobs[0].job_id).partition("_")[0]
        journal.write("receipt", number, phase=batch.phase, job=job_id)
        fault_point("control recorded" if batch.phase == "control" else "array recorded")
        return job_id


def make_backend(run: RunDir, plan: Plan, site: Site) -> SlurmBackend | LocalBackend:
    """Return the backend of a site. RetryError for a Slurm site on a machine without Slurm."""
    if site.kind == "local":
        return LocalBackend(run, site)
    if not slurm.is_available():
        raise RetryError(
            f"site {site.name} is a Slurm site, but this machine has no sbatch",
            hint="launch from a login node, or use --site local",
        )
    return SlurmBackend(run, plan, site, slurm.Queue())
