"""Launch: plan a run and advance it, to its end on this machine, by one step on Slurm."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from proxhpc.assemble.merge import describe_missing_files
from proxhpc.cluster import slurm
from proxhpc.cluster.backend import Backend, recorded_site
from proxhpc.cluster.local import LocalBackend
from proxhpc.cluster.submit import make_backend
from proxhpc.cluster.tasks import raise_interrupt
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.doctor.needs import require_needs
from proxhpc.errors import UserError
from proxhpc.launch.stage import stage_run
from proxhpc.launch.step import (
    StepResult,
    advance,
    advance_lock,
    control_batch,
    merge_batch,
    refine_batch,
)
from proxhpc.refine.preflight import freeze_prompts
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, check_same_manifest, make_plan
from proxhpc.run.shards import missing_shards
from proxhpc.run.staging import Report, ignore
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.shipped import find_file, shipped_files
from proxhpc.spec.site import PhaseName, Site, load_site

INTERRUPT_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed
POLL_SECONDS = 0.5  # between two checks of local processes


@dataclass(frozen=True, slots=True)
class Run:
    """A planned run and its current site."""

    dir: RunDir
    plan: Plan
    site: Site


def prepare_run(
    manifest_path: Path,
    site: str | None,
    root: Path | None,
    *,
    freeze: bool = True,
    stage: bool = False,
    report: Report = ignore,
) -> Run:
    """Plan a new run or open an existing one, and record its site for later steps.

    `manifest_path` may also be the name of a manifest, or a run directory. Writes nothing unless
    `freeze` or `stage`, which copies the files behind URLs. `report` is told what is done.
    """
    named = str(manifest_path) in shipped_files("manifest")
    if manifest_path.is_dir() and (not named or RunDir(manifest_path).plan.exists()):
        if root is not None:
            raise UserError(
                f"{manifest_path} is a directory, and --run needs a manifest",
                hint=f"proxhpc launch {manifest_path} resumes the run in that directory",
            )
        run = RunDir(manifest_path.absolute())
        plan = Plan.load(run)
        if stage:
            stage_run(plan.manifest, run, report)
        run_site = _choose_site(run, plan.manifest, site)
        _check_site(run, run_site)
        return _with_site(Run(run, plan, run_site), freeze)
    manifest_path = find_file("manifest", manifest_path)
    manifest = load_manifest(manifest_path)
    run = RunDir((root or manifest.run_dir).absolute())
    run_site = _choose_site(run, manifest, site)
    if stage:
        stage_run(manifest, run, report)
    text = manifest_path.read_bytes()
    return plan_run(manifest, text, run, run_site, freeze=freeze, report=report)


def plan_run(
    manifest: Manifest,
    source: bytes,
    run: RunDir,
    site: Site,
    *,
    freeze: bool = True,
    report: Report = ignore,
) -> Run:
    """Plan a new run or open an existing one of this manifest, whose text is `source`."""
    _check_site(run, site)
    if run.plan.exists():
        plan = Plan.load(run)
    elif not freeze:
        return Run(run, _make_plan(manifest, run, report), site)
    else:
        plan = _make_plan(manifest, run, report)
        require_needs(manifest, site)
        plan.save(run, source)
        # If two launches race, one writes the plan and both use it.
        plan = Plan.load(run)
    check_same_manifest(plan, manifest)
    if freeze and manifest.engine.max_unusable != plan.manifest.engine.max_unusable:
        write_atomic(run.max_unusable, orjson.dumps(manifest.engine.max_unusable))
        plan = Plan.load(run)
    return _with_site(Run(run, plan, site), freeze)


def _make_plan(manifest: Manifest, run: RunDir, report: Report) -> Plan:
    plan = make_plan(manifest, run, report)
    return plan.freeze(freeze_prompts(plan.manifest, plan.models))


def _check_site(run: RunDir, site: Site) -> None:
    if site.kind == "slurm" and "%" in str(run.root):
        raise UserError(
            f"{run.root}: sbatch would expand the % in this path",
            hint="choose a run directory without % in its path (run_dir or --run DIR)",
        )


def _with_site(run: Run, freeze: bool) -> Run:
    # Workers that are started without `launch` need a recorded site. `launch` records its own.
    if freeze and not run.dir.site.exists():
        record_site(run.dir, run.site)
    return run


def record_site(run: RunDir, site: Site) -> None:
    """Store the site for later steps, and for workers that are started without `launch`."""
    write_atomic(run.site, orjson.dumps(site.model_dump(mode="json", exclude_unset=True)))


def _choose_site(run: RunDir, manifest: Manifest, name: str | None) -> Site:
    """Return the named site, else that of the latest launch, else the manifest's, else `auto`."""
    if name is None and run.site.exists():
        return recorded_site(run)
    name = name or manifest.site or "auto"
    if name != "auto":
        return load_site(name)
    if slurm.is_available():
        return Site(name="auto", kind="slurm", workers=4)
    return this_machine()


def this_machine() -> Site:
    """Return a site for this machine, without a scheduler."""
    return Site(name="auto", kind="local", workers=min(4, os.cpu_count() or 1))


def launch(run: Run, on_tick: Callable[[Run], None]) -> StepResult:
    """Advance the run as far as this process can; return the last step.

    A Slurm run continues by itself after one step. A local run is driven to its end, and `on_tick`
    is called twice a second; on Ctrl-C or SIGTERM its workers commit, and another launch resumes.
    A finished run whose corpus lost files is merged again.
    """
    if run.dir.report_json.exists() and not describe_missing_files(run.dir):
        return StepResult("finished", "finished")
    if next(missing_shards(run.dir, run.plan), None) is not None:
        require_needs(run.plan.manifest, run.site)
    with advance_lock(run.dir) as lease:
        record_site(run.dir, run.site)
        note = _reopen_incomplete(run.dir)
        backend = make_backend(run.dir, run.plan, run.site, lease)
        with interruptible(backend):
            step = advance(lease, run.plan, backend, manual=True)
            while isinstance(backend, LocalBackend) and step.phase not in ("report", "finished"):
                while backend.active_elements("refine") or backend.active_elements("merge"):
                    on_tick(run)
                    time.sleep(POLL_SECONDS)
                on_tick(run)
                step = advance(lease, run.plan, backend)
    return replace(step, message=note + step.message)


@contextmanager
def interruptible(backend: Backend) -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block like Ctrl-C; local processes then commit and stop."""
    handlers = {number: signal.signal(number, raise_interrupt) for number in INTERRUPT_SIGNALS}
    try:
        yield
    finally:
        if isinstance(backend, LocalBackend):
            backend.stop()
        for number, handler in handlers.items():
            signal.signal(number, handler)


def dry_run(run: Run) -> list[tuple[PhaseName, str, str]]:
    """Return each phase, its batch script, and the answer of `sbatch --test-only`; write nothing.

    UserError for a local site, whose jobs have no scripts.
    """
    backend = make_backend(run.dir, run.plan, run.site)
    if isinstance(backend, LocalBackend):
        raise UserError(
            f"site {run.site.name} is local: its jobs are processes without batch scripts",
            hint="proxhpc plan shows what a launch would do",
        )
    refine, merge = run.site.resources("refine"), run.site.resources("merge")
    batches = [refine_batch(run.dir, refine, refine.jobs, len(run.plan.shards))]
    batches.append(merge_batch(run.dir, run.plan, merge, merge.jobs))
    if run.site.submit_from_jobs:
        batches.append(control_batch(run.dir))
    return backend.preview_scripts(batches)


def cancel(run: RunDir) -> list[str]:
    """End every job of a run and return their ids or names. Committed work is kept."""
    plan = Plan.load(run)
    return make_backend(run, plan, _choose_site(run, plan.manifest, None)).cancel()


def _reopen_incomplete(run: RunDir) -> str:
    """Make a finished run unfinished if files of its corpus are missing; return a note on it."""
    if not run.report_json.exists() or not (missing := describe_missing_files(run)):
        return ""
    with writing(run.report_json):
        # The report first: a run without it is not finished, even if this process dies now.
        run.report_json.unlink()
        run.merge_summary.unlink()
    return f"the corpus lacks {missing}; merging again\n"
