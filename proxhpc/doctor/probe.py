"""Short jobs on two nodes, with the script and the resources of a run's workers.

They show what cannot be seen from where one launches: whether Python and the engine start there,
which cores and GPUs a job gets, whether jobs may submit, and how late one node sees files that
another one writes or removes.
"""

import math
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from proxhpc.account.quantity import quantity
from proxhpc.cluster import script, slurm
from proxhpc.cluster.silent import last_words
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.doctor.finding import Finding
from proxhpc.engines import require_engine
from proxhpc.errors import ProxError, RetryError
from proxhpc.run.lease import STALE_AFTER
from proxhpc.spec.sections import EngineName
from proxhpc.spec.site import Site

START_SECONDS = 900  # for both jobs to start
PROBE_MINUTES = 5
PROBE_ROUNDS = 3  # of files written and removed
_ANSWER_SECONDS = 120  # for the other node to see a file
_POLL_SECONDS = 0.02
_STATE_SECONDS = 2.0  # between two questions to slurmctld


@dataclass(frozen=True, slots=True)
class NodeReport:
    """What a job found on its node."""

    node: str
    python: str
    problem: str  # why the engine cannot be imported; "" if it can
    cores: int
    gpus: int
    may_submit: str  # the answer of sbatch; "" if jobs may submit
    clock_skew: float  # seconds that the node is ahead of the file system's server


def probe(
    site: Site, folder: Path, engine: EngineName, log: Callable[[str], None]
) -> Iterator[Finding]:
    """Run the jobs and yield what they found; the folder is left as it was."""
    shared = folder / f".probe-{secrets.token_hex(4)}"
    jobs: list[Any] = []
    try:
        with writing(shared):
            shared.mkdir(parents=True)
        first = _start(site, shared, engine, 0, "", jobs, log)
        second = _start(site, shared, engine, 1, first.node, jobs, log)
        yield from _describe(site, engine, [first, second])
        log(f"{first.node} and {second.node} write files and wait to see them")
        yield _delays(site, _wait_for(shared / "delays.json", _ANSWER_SECONDS * PROBE_ROUNDS, jobs))
    except ProxError as error:
        yield Finding.error("probe", error.message, error.hint)
    finally:
        for job in jobs:
            job.cancel(check=False)
        shutil.rmtree(shared, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # if it is empty


def _start(
    site: Site,
    shared: Path,
    engine: EngineName,
    number: int,
    other_node: str,
    jobs: list[Any],
    log: Callable[[str], None],
) -> NodeReport:
    """Submit a job that avoids `other_node`; return its report. RetryError if it has none."""
    job = script.BatchJob(
        name="proxhpc-probe",
        phase="refine",
        logs=shared / "logs",
        comment="proxhpc-probe",
        mounts=(str(shared),),
        excluded_nodes=(other_node,) if other_node else (),
    )
    executor = script.job_executor(job, site)
    executor.update_parameters(time=PROBE_MINUTES)
    with slurm.submitting():
        jobs.append(executor.submit(probe_task, str(shared), number, engine))
    where = f" on another node than {other_node}" if other_node else ""
    log(f"waiting for job {jobs[-1].job_id}{where}")
    return NodeReport(**_wait_for(shared / f"{number}.json", START_SECONDS, jobs))


def _wait_for(path: Path, seconds: float, jobs: list[Any]) -> Any:
    """Return the JSON in a file as soon as it is there. RetryError if a job ends before that."""
    job_id = str(jobs[-1].job_id)
    deadline = time.monotonic() + seconds
    while not path.exists():
        states = {keys["JobState"] for keys in slurm.show_job(job_id)}
        os.listdir(path.parent)  # makes NFS look again
        if time.monotonic() > deadline:
            raise RetryError(
                f"job {job_id} ({', '.join(states)}) has not answered in {seconds:.0f} s",
                hint="the partition may be busy: try again, or name another one in the site",
            )
        if not states & {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING"} and not path.exists():
            words = last_words(path.parent / "logs" / f"{job_id}_0_log.err")
            raise RetryError(
                f"job {job_id} ended without an answer ({', '.join(states)}):"
                f" {words or 'its log is empty'}",
                hint="fix setup, python or container in the site",
            )
        time.sleep(_STATE_SECONDS)
    return orjson.loads(path.read_bytes())


def _describe(site: Site, engine: EngineName, reports: list[NodeReport]) -> Iterator[Finding]:
    resources = site.resources("refine")
    for report in reports:
        check = f"node {report.node}"
        if report.problem:
            yield Finding.error(check, report.problem, "workers cannot start there")
        elif report.python.split(".")[:2] != [*map(str, sys.version_info[:2])]:
            meaning = "its Unicode tables may split texts otherwise: use one Python on all nodes"
            yield Finding.warning(check, f"Python {report.python}, unlike here", meaning)
        else:
            yield Finding.ok(check, f"Python {report.python}", f"engine {engine} can be imported")
        wanted = resources.cpus
        if report.cores < wanted:
            found = f"{quantity(report.cores, 'core')} of {wanted}"
            yield Finding.warning(f"{check}, cores", found, "workers are slower than they could be")
        else:
            yield Finding.ok(f"{check}, cores", str(report.cores))
        if report.gpus < resources.gpus:
            found = f"{quantity(report.gpus, 'GPU')} of {resources.gpus}"
            yield Finding.error(f"{check}, GPUs", found, "an engine on a GPU cannot start there")
        if abs(report.clock_skew) > 60:
            yield Finding.warning(
                f"{check}, clock",
                f"{report.clock_skew:+.0f} s against the file server",
                "ages in status are wrong by that; leases use no clock of another machine",
            )
    answer = next((report.may_submit for report in reports if report.may_submit), "")
    check = "submission from jobs, tried"
    if not answer:
        yield Finding.ok(check, "sbatch accepts a job from a job", "control jobs take each step")
    elif site.submit_from_jobs:
        hint = "set submit_from_jobs: false; then run `proxhpc launch` again after each phase"
        yield Finding.error(check, answer, hint)
    else:
        yield Finding.ok(check, answer, "as submit_from_jobs: false says")


def _delays(site: Site, delays: dict[str, float]) -> Finding:
    """What the longest delays between two nodes mean for leases."""
    worst = max(delays.values())
    found = f"a file is seen after {delays['seen']:.1f} s, a removal after {delays['gone']:.1f} s"
    limit = site.stale_after or STALE_AFTER
    check = "file system between nodes"
    if worst * 4 > limit:
        value = math.ceil(worst * 4 / 30) * 30
        return Finding.warning(check, found, f"set stale_after: {value} in the site (now {limit})")
    return Finding.ok(check, found, f"stale_after, {limit:.0f} s, is long enough")


def probe_task(root: str, number: int, engine: EngineName) -> str:
    """Write a report, then write and remove files for the other node, or answer it; in the job."""
    shared = Path(root)
    report = _look(shared, engine)
    if os.environ.get("SLURM_PROCID", "0") == "0":
        write_atomic(shared / f"{number}.json", orjson.dumps(report))
        if number == 1:
            write_atomic(shared / "delays.json", orjson.dumps(_measure(shared)))
        else:
            _answer(shared)
    return report.node


def _look(shared: Path, engine: EngineName) -> NodeReport:
    problem = ""
    try:
        require_engine(engine)
        if engine != "rules":
            import torch  # noqa: F401  # what fails most often: its libraries
    except (ProxError, ImportError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    stamp = shared / f"clock-{socket.gethostname()}-{os.getpid()}"
    before = time.time()
    stamp.touch()
    skew = (before + time.time()) / 2 - stamp.stat().st_mtime
    answer = slurm.check_script("#!/bin/sh\n#SBATCH --time=1\ntrue\n")
    return NodeReport(
        node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
        python=".".join(map(str, sys.version_info[:3])),
        problem=problem,
        cores=len(os.sched_getaffinity(0)),
        gpus=len([gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]),
        may_submit="" if " to start at " in answer else answer.strip()[:500] or "no answer",
        clock_skew=round(skew, 3),
    )


def _measure(shared: Path) -> dict[str, float]:
    """Return the longest delays: half of the time until an answer to a file, and to its removal."""
    seen, gone = [], []
    for n in range(PROBE_ROUNDS):
        question, answer = shared / f"question-{n}", shared / f"answer-{n}"
        start = time.monotonic()
        question.touch()
        _until(answer.exists)
        seen.append((time.monotonic() - start) / 2)
        start = time.monotonic()
        question.unlink()
        _until((shared / f"gone-{n}").exists)
        gone.append(max(0.0, time.monotonic() - start - seen[-1]))
    return {"seen": round(max(seen), 3), "gone": round(max(gone), 3)}


def _answer(shared: Path) -> None:
    for n in range(PROBE_ROUNDS):
        question = shared / f"question-{n}"
        _until(question.exists)
        (shared / f"answer-{n}").touch()
        _until(partial(_is_gone, question))
        (shared / f"gone-{n}").touch()


def _is_gone(path: Path) -> bool:
    return not path.exists()


def _until(is_true: Callable[[], bool]) -> None:
    """Wait until something is true. RetryError after two minutes."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not is_true():
        if time.monotonic() > deadline:
            raise RetryError(f"the other node did not answer in {_ANSWER_SECONDS} s")
        time.sleep(_POLL_SECONDS)
