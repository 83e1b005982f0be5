"""Launch: plan and advance, in the foreground for local runs, handed over for Slurm ones."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import orjson

from proxhpc.assemble.merge import what_is_lost
from proxhpc.cluster import slurm
from proxhpc.cluster.backend import recorded_site
from proxhpc.cluster.local import LocalBackend
from proxhpc.cluster.submit import make_backend
from proxhpc.cluster.tasks import interrupt
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.errors import UserError
from proxhpc.launch.step import Step, advance, advance_lock, control_work, merge_work, refine_work
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, check_same_manifest, make_plan
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.site import PhaseName, Site, load_site

INTERRUPTIONS = (signal.SIGTERM, signal.SIGHUP)
TICK = 0.5  # seconds between two looks at local processes


@dataclass(frozen=True, slots=True)
class Run:
    """A planned run and the site it works on now."""

    dir: RunDir
    plan: Plan
    site: Site


def prepare_run(
    manifest_path: Path, site: str | None, root: Path | None, *, freeze: bool = True
) -> Run:
    """Plan a new run, or take up the one that is there; its site is recorded for later steps.

    Writes nothing unless `freeze`.
    """
    if manifest_path.is_dir():
        if root is not None:
            raise UserError(
                f"{manifest_path} is a directory: --run goes with a manifest",
                hint=f"proxhpc launch {manifest_path} goes on with the run that is there",
            )
        return _take_up(RunDir(manifest_path.absolute()), site, freeze)
    manifest = load_manifest(manifest_path)
    run = RunDir((root or manifest.run_dir).absolute())
    chosen = _site_of(run, manifest, site)
    if run.plan.exists():
        plan = Plan.load(run)
    elif not freeze:
        return Run(run, make_plan(manifest, run), chosen)
    else:
        make_plan(manifest, run).save(run, manifest_path.read_bytes())
        # Of two launches at once one made the plan; both go by that one.
        plan = Plan.load(run)
    check_same_manifest(plan, manifest)
    return _on_site(Run(run, plan, chosen), freeze)


def _take_up(run: RunDir, site: str | None, freeze: bool) -> Run:
    """A run by its directory: the manifest is in its plan, the site that of its last launch.

    A launch that was killed before it recorded one leaves the manifest's.
    """
    plan = Plan.load(run)
    return _on_site(Run(run, plan, _site_of(run, plan.manifest, site)), freeze)


def _on_site(run: Run, freeze: bool) -> Run:
    if run.site.kind == "slurm" and "%" in str(run.dir.root):
        raise UserError(
            f"{run.dir.root}: sbatch would read % and what follows as a pattern",
            hint="take a run directory without % in its path",
        )
    # Workers without a launcher need one; a later one is recorded by the launch that steps.
    if freeze and not run.dir.site.exists():
        _record(run)
    return run


def _record(run: Run) -> None:
    site = run.site.model_dump(mode="json", exclude_unset=True)
    write_atomic(run.dir.site, orjson.dumps(site))


def _site_of(run: RunDir, manifest: Manifest, given: str | None) -> Site:
    """The site that was given, else that of the latest launch, else the manifest's."""
    if given is None and run.site.exists():
        return recorded_site(run)
    return choose_site(manifest, given)


def choose_site(manifest: Manifest, given: str | None) -> Site:
    """The site named on the command line, else in the manifest, else by what the machine has."""
    name = given or manifest.site or "auto"
    if name != "auto":
        return load_site(name)
    if slurm.available():
        return Site(name="auto", kind="slurm", workers=4)
    return Site(name="auto", kind="local", workers=min(4, os.cpu_count() or 1))


def is_finished(run: RunDir) -> bool:
    """Whether a run has its report, and its corpus is still as the report says."""
    return run.report_json.exists() and not what_is_lost(run)


def launch(run: Run, on_tick: Callable[[Run], None]) -> Step:
    """Take the run as far as this process can; the last step taken.

    A Slurm run is handed over after one step. A local one is driven to its end, `on_tick` being
    called twice a second; Ctrl-C or SIGTERM lets its workers commit, and launching again goes on.
    A finished run whose corpus lost files is merged again.
    """
    if is_finished(run.dir):
        return Step("finished", "nothing", f"finished: the corpus is in {run.dir.corpus}")
    with advance_lock(run.dir) as lease:
        _record(run)
        again = _reopen(run.dir)
        backend = make_backend(run.dir, run.plan, run.site)
        # A closed terminal or a lost connection is an interruption too.
        before = {number: signal.signal(number, interrupt) for number in INTERRUPTIONS}
        try:
            step = advance(lease, run.plan, backend, by_hand=True)
            while isinstance(backend, LocalBackend) and step.phase not in ("report", "finished"):
                while backend.active("refine") or backend.active("merge"):
                    on_tick(run)
                    time.sleep(TICK)
                on_tick(run)
                step = advance(lease, run.plan, backend)
        finally:
            if isinstance(backend, LocalBackend):
                backend.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
    return replace(step, message=again + step.message)


def rehearse(run: Run) -> list[tuple[PhaseName, str, str]]:
    """Each phase's batch script, and what Slurm says of it; nothing is submitted or written.

    UserError for a local site, whose jobs have no scripts.
    """
    backend = make_backend(run.dir, run.plan, run.site)
    if isinstance(backend, LocalBackend):
        raise UserError(
            f"site {run.site.name} is local: its jobs are processes, not batch scripts",
            hint="proxhpc plan says what would happen",
        )
    refine, merge = run.site.resources("refine"), run.site.resources("merge")
    works = [refine_work(run.dir, refine, refine.jobs, len(run.plan.shards))]
    works.append(merge_work(run.dir, run.plan, merge, merge.jobs))
    if run.site.submit_from_jobs:
        works.append(control_work(run.dir))
    return backend.preview(works)


def cancel(run: RunDir) -> list[str]:
    """End every job of a run; ids or names for people. What was committed stays."""
    plan = Plan.load(run)
    return make_backend(run, plan, _site_of(run, plan.manifest, None)).cancel()


def _reopen(run: RunDir) -> str:
    """Take back that a run is merged where its corpus no longer is whole; what to say of it."""
    if not run.report_json.exists() or not (lost := what_is_lost(run)):
        return ""
    with writing(run.report_json):
        # The report first: without it a run is not finished, whatever happens in between.
        run.report_json.unlink()
        run.merge_summary.unlink()
    return f"the corpus is not whole, it lacks {lost}; it is made again\n"
