"""The jobs of a run on Slurm: held arrays with a tag, recorded, then released."""

import time
from collections import defaultdict
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace

from proxhpc.cluster import script, slurm
from proxhpc.cluster.backend import Work, intend
from proxhpc.cluster.journal import Journal, Submission
from proxhpc.cluster.local import LocalBackend
from proxhpc.corpus.disk import writing
from proxhpc.errors import RetryError
from proxhpc.faults import fault_point
from proxhpc.run.lease import slurm_job_id
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.spec.site import PhaseName, Resources, Site

QUICK_SECONDS = 600  # a worker that ended badly within them had no time to do anything
QUICK_DEATHS = 3  # in a row on one node: then the node is at fault
CANCEL_SECONDS = 60  # for Slurm to let every job go


@dataclass
class SlurmBackend:
    """Submissions of one run, each a transaction."""

    run: RunDir
    plan: Plan
    site: Site
    queue: slurm.Queue

    def active(self, phase: PhaseName) -> int:
        """Elements of this phase in the queue, this job itself left out."""
        return sum(1 for job in self._others() if job.phase == phase)

    def elements(self, resources: Resources) -> int:
        """As many as the workers need, and the limit on submitted jobs leaves beside a follow-up.

        RetryError where it leaves none.
        """
        limit = self.site.max_submit_jobs
        if limit is None:
            limit = slurm.submit_limit(resources.account, resources.qos)
        if limit is None:
            return resources.jobs
        taken = sum(job.state not in slurm.ENDING for job in self.queue.all())
        more = int(self.site.submit_from_jobs)  # the control job behind the workers
        if (free := limit - taken - more) < 1:
            raise RetryError(
                f"you may have {limit} jobs in the queue, and have {taken}; {1 + more} are wanted",
                hint="launch again when some have ended",
            )
        return min(resources.jobs, free)

    def submit(self, work: Work, then: Work | None) -> list[str]:
        """Submit held, record, chain the follow-up, release.

        MaxArraySize caps an array's index, so many elements are several arrays. RetryError or
        UserError when sbatch refuses; what is there by then is settled next time.
        """
        journal = Journal(self.run)
        number = len(journal.read())
        follow_up = then if self.site.submit_from_jobs else None
        windows = self._windows(work)
        intend(journal, number, work, arrays=len(windows), chained=follow_up is not None)
        ids = [self._held(journal, number, window, "") for window in windows]
        if follow_up is not None:
            ids.append(self._held(journal, number, follow_up, f"afterany:{':'.join(ids)}"))
        self._release(journal, number, reversed(ids))
        return ids

    def follow(self, then: Work) -> bool:
        """Put `then` behind what is in the queue, unless a job of its phase is there."""
        self.queue.forget()
        jobs = self._others()
        phases = {job.phase for job in jobs}
        if not self.site.submit_from_jobs or not jobs or then.phase in phases:
            return False
        journal = Journal(self.run)
        number = len(journal.read())
        intend(journal, number, then, arrays=1, chained=False)
        arrays = dict.fromkeys(job.array for job in jobs)
        identity = self._held(journal, number, then, f"afterany:{':'.join(arrays)}")
        self._release(journal, number, [identity])
        return True

    def preview(self, works: Iterable[Work]) -> list[tuple[PhaseName, str, str]]:
        """Each work's phase, its batch script, and what `sbatch --test-only` says of it."""
        out = []
        for work in works:
            made = script.executor(self.run, self.plan, self.site, work, intent=0)
            text = script.script_text(made, len(self._windows(work)[0].arguments))
            out.append((work.phase, text, slurm.test_only(text)))
        return out

    def reconcile(self) -> list[str]:
        """Release what is recorded whole, cancel what is not."""
        journal = Journal(self.run)
        entries = journal.read()
        out = [self._settle(journal, entry) for entry in entries if not entry.settled]
        # An sbatch that was given up as lost may have arrived after all.
        given_up = {f":{entry.intent}" for entry in entries if entry.abandoned}
        for job in self.queue.jobs(self.plan.run_id):
            if job.comment[job.comment.rfind(":") :] in given_up:
                slurm.run_command("scancel", job.id)
        self.queue.forget()
        return out

    def failing(self, worked: Container[str]) -> dict[str, int]:
        """Nodes of which the last jobs ended badly within minutes, and how many did.

        Of those since a person last launched, who may have mended the node, and without elements
        that `worked`. Where all nodes fail the fault is not a node's, and none is named.
        """
        recent = Journal(self.run).since_by_hand()
        arrays = [job for entry in recent for job in entry.jobs.get(entry.phase, ())]
        nodes: dict[str, list[bool]] = defaultdict(list)
        for ended in slurm.ended_elements(arrays):
            quick = ended.failed and ended.seconds < QUICK_SECONDS and ended.id not in worked
            nodes[ended.node].append(quick)
        failing = {
            node: len(ends)
            for node, ends in nodes.items()
            if len(ends) >= QUICK_DEATHS and all(ends[-QUICK_DEATHS:])
        }
        return failing if len(failing) < len(nodes) else {}

    def cancel(self) -> list[str]:
        """End every job of the run. RetryError where Slurm does not let them go in a minute."""
        gone: dict[str, None] = {}
        deadline = time.monotonic() + CANCEL_SECONDS
        while True:
            self.queue.forget()
            jobs = [j for j in self.queue.jobs(self.plan.run_id) if j.state not in slurm.ENDING]
            if not jobs:
                return list(gone)
            if time.monotonic() > deadline:
                raise RetryError(f"{len(jobs)} jobs of this run are still in the queue")
            # Control jobs first: one that runs may be about to submit more.
            for job in sorted(jobs, key=lambda job: job.phase != "control"):
                if job.array not in gone or job.state == "PENDING":
                    slurm.run_command("scancel", job.array)
                gone[job.array] = None
            time.sleep(1)

    def _others(self) -> list[slurm.QueuedJob]:
        """The run's jobs but this one, that wait or work."""
        me = slurm_job_id()
        jobs = self.queue.jobs(self.plan.run_id)
        # What is being cleaned up works no more, and a control job starts before that is over.
        return [job for job in jobs if job.state not in slurm.ENDING and job.id != me]

    def _windows(self, work: Work) -> list[Work]:
        """The work in arrays that a cluster takes."""
        # Where it is 0 there are no arrays, and an array of one is submitted as a plain job.
        size = max(1, self.site.max_array_size or slurm.max_array_size())
        count = len(work.arguments)
        return [
            replace(work, arguments=work.arguments[i : i + size]) for i in range(0, count, size)
        ]

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
            slurm.run_command("scancel", identity)
        journal.write("abandoned", entry.intent)
        return f"gave up a {entry.phase} submission that an earlier launch left half done"

    def _release(self, journal: Journal, number: int, ids: Iterable[str]) -> None:
        # The follow-up is let go before what it follows: should we die between, it is there.
        for identity in ids:
            slurm.run_command("scontrol", "release", identity)
            fault_point("one released")
        journal.write("released", number)
        fault_point("all released")
        self.queue.forget()

    def _held(self, journal: Journal, intent: int, work: Work, dependency: str) -> str:
        from submitit.core.utils import FailedJobError

        try:
            with slurm.clean_environment(), writing(self.run.logs):
                made = script.executor(
                    self.run, self.plan, self.site, work, intent=intent, dependency=dependency
                )
                jobs = made.map_array(work.function, *zip(*work.arguments, strict=True))
        except FailedJobError as error:
            raise slurm.refusal(error) from error
        fault_point("control held" if work.phase == "control" else "array held")
        identity = str(jobs[0].job_id).partition("_")[0]
        journal.write("receipt", intent, phase=work.phase, job=identity)
        fault_point("control recorded" if work.phase == "control" else "array recorded")
        return identity


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
