"""Refines some documents as a worker would, here or in a job, and stores what that took."""

import asyncio
import os
import re
import socket
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import orjson
import zstandard

from proxhpc.account.counts import Counts
from proxhpc.account.quantity import quantity
from proxhpc.assemble.replay import ReplayedRecord
from proxhpc.assemble.rows import corpus_row
from proxhpc.cluster import script, slurm, tasks
from proxhpc.cluster.local import UNLIMITED_MINUTES, split_gpus
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.corpus.document import BadRecord, Document
from proxhpc.engines.device import device_name
from proxhpc.errors import RetryError, UserError
from proxhpc.outputs import UsageTotals
from proxhpc.plan.sample import Place, draw_places
from proxhpc.preview import NamedDocument, refine_in_order
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.calibration import CalibratedPlace, Calibration, calibration_key
from proxhpc.run.ledger import Row
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, check_new
from proxhpc.spec.site import Site

JOB_MINUTES = 60  # a short job starts sooner than a worker's
_POLL_SECONDS = 0.5
_REASON = re.compile(r"[\w.]+: .")  # the last line of a traceback


def calibrate(
    run: RunDir, plan: Plan, site: Site, documents: int, log: Callable[[str], None]
) -> None:
    """Refine `documents` random documents with a worker's resources, and store the calibration.

    On a Slurm site one job does it, with the options of the refine phase. UserError or RetryError
    if the job is refused or fails.
    """
    if not run.plan.exists():
        check_new(run)
    try:
        run.calibration_logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {run.calibration}: {error.strerror}") from error
    run.calibration_result.unlink(missing_ok=True)
    write_atomic(run.calibration_plan, orjson.dumps(plan.to_dict()))
    with slurm.submitting(), writing(run.calibration):
        job = _submit(run, plan, site, documents)
    where = f"in job {job.job_id}" if site.kind == "slurm" else "on this machine"
    log(f"refining {quantity(documents, 'document')} {where}")
    _wait(job)
    if not run.calibration_result.exists():
        raise RetryError(f"the calibration has no result; see {run.calibration_logs}")


def _submit(run: RunDir, plan: Plan, site: Site, documents: int) -> Any:
    import submitit

    resources = site.resources("refine")
    call = (calibrate_task, str(run.root), documents, site.name, resources.cpus)
    if site.kind == "local":
        executor = submitit.LocalExecutor(folder=run.calibration_logs, python=site.python)
        executor.update_parameters(timeout_min=UNLIMITED_MINUTES)
        gpus = split_gpus(resources.gpus, 1)[0]
        return executor.submit(tasks.call_with_resources, gpus, resources.cpus, *call)
    batch_job = script.BatchJob(
        name=f"{plan.manifest.name}-calibrate",
        phase="refine",
        logs=run.calibration_logs,
        comment=f"proxhpc-calibrate:{plan.manifest.name}",
        mounts=script.run_mounts(run, plan),
    )
    executor = script.job_executor(batch_job, site)
    seconds = resources.seconds or 60 * JOB_MINUTES
    executor.update_parameters(time=min(JOB_MINUTES, -(-seconds // 60)))
    return executor.submit(*call, resources.tasks_per_node, resources.workers_per_gpu)


def _wait(job: Any) -> None:
    """Wait for a job. RetryError if it fails; an interrupt cancels it."""
    try:
        while not job.done():
            time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        job.cancel()
        raise
    if error := job.exception():
        lines = str(error).strip().splitlines()
        reasons = [line for line in lines if _REASON.match(line)]
        raise RetryError(
            f"the calibration failed: {(reasons or lines)[-1]}",
            hint=f"its log is {job.paths.stderr}",
        ) from None


def calibrate_task(
    root: str,
    documents: int,
    site: str,
    cores: int,
    tasks_per_node: int = 1,
    workers_per_gpu: int = 1,
) -> str:
    """Refine the documents, in the job; return a line about it."""
    if os.environ.get("SLURM_PROCID", "0") != "0":  # one worker's share of the node is measured
        return "task 0 refines"
    if tasks_per_node > 1:
        tasks.narrow_gpus(0, tasks_per_node, workers_per_gpu)
    run = RunDir(Path(root))
    plan = Plan.from_dict(orjson.loads(run.calibration_plan.read_bytes()))
    result = asyncio.run(_measure(plan, documents, site, cores))
    write_atomic(run.calibration_result, result.to_json().encode())
    return f"{result.total('documents')} documents"


async def _measure(plan: Plan, documents: int, site: str, cores: int) -> Calibration:
    places = await asyncio.to_thread(lambda: [*draw_places(plan, documents, plan.manifest.seed)])
    records = [*chain.from_iterable(place.records for place in places)]
    started = time.monotonic()
    refiner = await open_refiner(plan.manifest, plan.models)
    ready = time.monotonic()
    try:
        named: list[NamedDocument] = [("", record) for record in records]
        rows = [row async for _, row in refine_in_order(refiner, iter(named))]
        seconds = time.monotonic() - ready
        usage = {k: UsageTotals.model_validate(used) for k, used in refiner.usage.items()}
    finally:
        await refiner.close()
    device, devices = device_name(plan.manifest.engine.name)
    ledger, corpus, corpus_raw = _sizes(plan, records, rows)
    return Calibration(
        key=calibration_key(plan),
        places=_count_places(places, rows),
        device=device,
        devices=devices,
        site=site,
        cores=cores,
        host=socket.gethostname(),
        seconds=round(seconds, 3),
        boot_seconds=round(ready - started, 3),
        usage=usage,
        ledger_bytes=ledger,
        corpus_bytes=corpus,
        corpus_bytes_raw=corpus_raw,
    )


def _count_places(places: list[Place], rows: list[Row]) -> tuple[CalibratedPlace, ...]:
    counted, remaining = [], iter(rows)
    for place in places:
        counts = Counts()
        for _ in place.records:
            next(remaining).add_to(counts)
        counted.append(
            CalibratedPlace(
                documents=counts.documents,
                documents_kept=counts.in_corpus,
                bytes=place.bytes,
                tokens=counts.tokens_in,
                tokens_kept=counts.tokens_out,
            )
        )
    return tuple(counted)


def _sizes(
    plan: Plan, records: list[Document | BadRecord], rows: list[Row]
) -> tuple[int, int, int]:
    """Return the bytes of the rows in a ledger, and of the corpus, compressed and not."""
    manifest, corpus = plan.manifest, []
    for number, (record, row) in enumerate(zip(records, rows, strict=True)):
        if isinstance(record, Document) and row.outcome in ("kept", "edited"):
            text = row.replay(record.text, manifest.policy, manifest.program_format).text
            refined = ReplayedRecord(number, row, record, text)
            corpus.append(orjson.dumps(corpus_row(plan, refined), option=orjson.OPT_APPEND_NEWLINE))
    raw = b"".join(corpus)
    ledger = zstandard.compress(b"\n".join(row.encode() for row in rows))
    return len(ledger), len(zstandard.compress(raw, manifest.output.level)), len(raw)
