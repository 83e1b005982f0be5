"""The jobs that Slurm lists. An answer that cannot be read is an error, never an empty queue."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from proxhpc.cluster.slurm import TIMEOUT, run_command, show_job
from proxhpc.errors import RetryError

SNAPSHOT_AGE = 10.0  # seconds for which one answer of squeue is used
# squeue still lists such a job, but it does no more work.
ENDED_STATES = ("COMPLETING", "COMPLETED", "CANCELLED", "STAGE_OUT")
_WAITING_STATES = ("PENDING", "RUNNING", "CONFIGURING", "SUSPENDED", "REQUEUED", "STOPPED")
_IN_COMMENT = re.compile(r"proxhpc:(?P<run>[0-9a-f]+):(?P<phase>[a-z]+):(?P<intent>\d+)")
_IN_NAME = re.compile(r"-(?P<phase>[a-z]+)-(?P<run>[0-9a-f]{8})-(?P<intent>\d+)\Z")
_JOB_ID = re.compile(r"[0-9]+(_[0-9]+)?(\+[0-9]+)?")
_LOG = re.compile(r"/logs/[0-9]{4}-[a-z]+/[^/]+_log\.out")
_FIELDS = ("%i", "%T", "%r", "%a", "%q", "%S", "%j", "%k")


class Tag(NamedTuple):
    """The run, the phase and the intent that a job belongs to.

    It is in the job's comment and in its name, because some sites rewrite one of them.
    """

    run: str
    phase: str
    intent: int

    @classmethod
    def read(cls, name: str, comment: str) -> "Tag | None":
        """Return the tag in a job's comment or name, if there is one."""
        match = _IN_COMMENT.search(comment) or _IN_NAME.search(name)
        return cls(match["run"], match["phase"], int(match["intent"])) if match else None

    @property
    def comment(self) -> str:
        """The tag as a comment."""
        return f"proxhpc:{self.run}:{self.phase}:{self.intent}"

    def job_name(self, name: str) -> str:
        """Return the name of a job of the run `name`."""
        return f"{name}-{self.phase}-{self.run}-{self.intent}"


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """One job or array element in the queue."""

    id: str  # `123`, or `123_4` for an array element
    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str  # why it is pending
    account: str
    qos: str
    start: str  # when it started or may start, as Slurm writes it
    tag: Tag | None

    @property
    def phase(self) -> str:
        """The phase of the job; "" if it is not one of ours."""
        return self.tag.phase if self.tag else ""

    @property
    def array(self) -> str:
        """Id of the whole array, or of the job itself."""
        return self.id.partition("_")[0]

    @property
    def is_paused(self) -> bool:
        """Return True if the job waits until a time at which it may begin."""
        return self.state == "PENDING" and self.reason == "BeginTime"

    @property
    def is_held(self) -> bool:
        """Return True if the job does not start until it is released."""
        return self.state == "PENDING" and "held" in self.reason.lower()

    @property
    def has_ended(self) -> bool:
        """Return True if the job does no more work."""
        return self.state in ENDED_STATES


class Queue:
    """The user's jobs, as squeue lists them; it is asked at most every ten seconds."""

    def __init__(self, timeout: float = TIMEOUT) -> None:
        """An answer that takes longer than `timeout` seconds counts as none."""
        self._timeout = timeout
        self._jobs: list[QueuedJob] = []
        self._read_at = -SNAPSHOT_AGE
        self._gone: set[str] = set()  # jobs that have ended
        self._logs_as_we_do: dict[str, bool] = {}  # by array, of jobs without a tag

    def all_jobs(self) -> list[QueuedJob]:
        """Return every pending or running job of this user. RetryError without an answer."""
        if time.monotonic() - self._read_at >= SNAPSHOT_AGE:
            self._jobs = self._read()
            self._read_at = time.monotonic()
        return self._jobs

    def jobs(self, run_id: str, submitted: Mapping[str, str]) -> list[QueuedJob]:
        """Return the jobs of this run. RetryError if the answer of squeue cannot be trusted.

        `submitted` has the phase of each job of the run whose id is recorded, oldest first.
        """
        jobs = []
        for job in self.all_jobs():
            tag = job.tag
            if job.array in submitted and self.belongs_to(job, run_id):
                intent = tag.intent if tag and tag.run == run_id else -1
                jobs.append(replace(job, tag=Tag(run_id, submitted[job.array], intent)))
            elif tag and tag.run == run_id:
                jobs.append(job)
        listed = {job.array for job in self.all_jobs()}
        # Some sites' squeue hides jobs, or prints something else where proxhpc expects a list.
        for job_id in [*submitted][-2:]:
            if job_id not in listed and self._is_waiting(job_id):
                raise RetryError(
                    f"squeue does not list job {job_id}, which is in the queue by scontrol",
                    hint="look at what `squeue -a -u $USER` prints on this machine",
                )
        return jobs

    def belongs_to(self, job: QueuedJob, run_id: str) -> bool:
        """Return whether a job whose id the run has recorded is its job.

        Ids begin again at 1 when a cluster is installed anew. A site may remove our tags, but not
        the path of the log.
        """
        if job.tag:
            return job.tag.run == run_id
        if job.array not in self._logs_as_we_do:
            logs = (part.get("StdOut", "") for part in show_job(job.array, self._timeout))
            self._logs_as_we_do[job.array] = any(map(_LOG.search, logs))
        return self._logs_as_we_do[job.array]

    def is_queued(self, element: str) -> bool | None:
        """Return whether a job or array element is in the queue; None if that is unknown."""
        if shutil.which("squeue") is None:
            return None
        try:
            job = self._find(element)
            if job is None and time.monotonic() - self._read_at > 1.0:
                # It may have been submitted since the snapshot was taken.
                self.invalidate()
                job = self._find(element)
            if job is None:
                return self._is_waiting(element)
        except RetryError:
            return None
        return None if job.has_ended else True

    def _is_waiting(self, job_id: str) -> bool | None:
        """Return whether a job that squeue does not list waits or runs; None while it ends."""
        if job_id in self._gone:
            return False
        me = f"({os.getuid()})"  # somebody else may have a job with this id on a new cluster
        parts = show_job(job_id, self._timeout)
        is_mine = all(part.get("UserId", me).endswith(me) for part in parts)
        states = {part.get("JobState", "") for part in parts if is_mine}
        if states & {*_WAITING_STATES}:
            return True
        if "COMPLETING" in states:
            return None
        self._gone.add(job_id)
        return False

    def _find(self, element: str) -> QueuedJob | None:
        return next((job for job in self.all_jobs() if job.id == element), None)

    def invalidate(self) -> None:
        """Make the next call ask squeue, because jobs were submitted or cancelled."""
        self._read_at = -SNAPSHOT_AGE

    def _read(self) -> list[QueuedJob]:
        # -a: also jobs in partitions that are hidden from this user.
        command = ("squeue", "-a", "-h", "-r", "-u", str(os.getuid()), "-o", "\x1f".join(_FIELDS))
        lines = run_command(*command, timeout=self._timeout).splitlines()
        jobs = []
        others = []
        for line in lines:
            fields = line.strip(" \n").split("\x1f")
            if len(fields) == len(_FIELDS) and _JOB_ID.fullmatch(fields[0]):
                job_id, state, reason, account, qos, start, name, comment = fields
                tag = Tag.read(name, comment)
                jobs.append(QueuedJob(job_id, state, reason, account, qos, start, tag))
            elif line.strip() and not line.startswith("CLUSTER:"):  # which SLURM_CLUSTERS adds
                others.append(line.strip())
        if others and not jobs:
            raise RetryError(
                f"squeue prints no list of jobs, but: {others[0][:200]}",
                hint="proxhpc needs Slurm's own squeue on PATH, without a site's wrapper",
            )
        return jobs
