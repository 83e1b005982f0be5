"""Launch: plan and advance, in the foreground for local runs, handed over for Slurm ones."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import orjson

from proxhpc.advance import Step, advance, alone, recorded_site
from proxhpc.cluster import slurm
from proxhpc.cluster.submit import LocalBackend, make_backend
from proxhpc.corpus.frames import write_atomic
from proxhpc.manifest import Manifest, load_manifest
from proxhpc.plan import Plan, check_same, make_plan
from proxhpc.rundir import RunDir
from proxhpc.site import Site, load_site

TICK = 0.5  # seconds between two looks at local processes


@dataclass(frozen=True, slots=True)
class Run:
    """A planned run and the site it works on now."""

    dir: RunDir
    plan: Plan
    site: Site


def prepare(
    manifest_path: Path, site: str | None, root: Path | None, *, freeze: bool = True
) -> Run:
    """Plan a new run, or take up the one that is there; its site is recorded for later steps.

    Writes nothing unless `freeze`.
    """
    if manifest_path.is_dir():
        return _take_up(RunDir(manifest_path.absolute()), site, freeze)
    manifest = load_manifest(manifest_path)
    run = RunDir((root or manifest.run_dir).absolute())
    chosen = choose_site(manifest, site)
    if run.plan.exists():
        plan = Plan.load(run)
    elif not freeze:
        return Run(run, make_plan(manifest), chosen)
    else:
        make_plan(manifest).save(run, manifest_path.read_bytes())
        # Of two launches at once one made the plan; both go by that one.
        plan = Plan.load(run)
    check_same(plan, manifest)
    return _on_site(Run(run, plan, chosen), freeze)


def _take_up(run: RunDir, site: str | None, freeze: bool) -> Run:
    """A run by its directory: the manifest is in its plan, the site that of its last launch."""
    plan = Plan.load(run)
    chosen = load_site(site) if site else recorded_site(run)
    return _on_site(Run(run, plan, chosen), freeze)


def _on_site(run: Run, freeze: bool) -> Run:
    if freeze:
        site = run.site.model_dump(mode="json", exclude_unset=True)
        write_atomic(run.dir.site, orjson.dumps(site))
    return run


def choose_site(manifest: Manifest, given: str | None) -> Site:
    """The site named on the command line, else in the manifest, else by what the machine has."""
    name = given or manifest.site or "auto"
    if name != "auto":
        return load_site(name)
    if slurm.available():
        return Site(name="auto", kind="slurm", workers=4)
    return Site(name="auto", kind="local", workers=min(4, os.cpu_count() or 1))


def launch(run: Run, on_tick: Callable[[Run], None]) -> Step:
    """Take the run as far as this process can; the last step taken.

    A Slurm run is handed over after one step. A local one is driven to its end, `on_tick` being
    called twice a second; Ctrl-C or SIGTERM lets its workers commit, and launching again goes on.
    """
    with alone(run.dir):
        backend = make_backend(run.dir, run.plan, run.site)
        step = advance(run.dir, run.plan, backend, by_hand=True)
        if not isinstance(backend, LocalBackend):
            return step
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            while step.phase not in ("report", "finished"):
                while backend.active("refine") or backend.active("merge"):
                    on_tick(run)
                    time.sleep(TICK)
                on_tick(run)
                step = advance(run.dir, run.plan, backend)
        finally:
            backend.stop()
            signal.signal(signal.SIGTERM, before)
    return step


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
