"""Looks at a site before anything is launched on it: what it allows, and what a run makes of it.

Every probe says what it found, what a run does about it, and whether a launch would work.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from proxhpc.cluster import slurm
from proxhpc.doctor.filesystem import examine_disk
from proxhpc.doctor.finding import Finding
from proxhpc.doctor.scheduler import examine_containers, examine_slurm
from proxhpc.doctor.view import render_findings
from proxhpc.errors import ProxError
from proxhpc.run.models import resolve_model
from proxhpc.spec.manifest import load_manifest
from proxhpc.spec.site import Site, load_site

__all__ = ["Finding", "examine_site", "render_findings", "subject", "summary"]


def subject(name: str, manifest: Path | None, run: Path | None) -> tuple[Site, Path, list[str]]:
    """The site of that name, where its runs would be, and the models that they would need."""
    given = load_manifest(manifest) if manifest else None
    if name == "auto":
        kind: Literal["slurm", "local"] = "slurm" if slurm.available() else "local"
        site = Site(name="auto", kind=kind)
    else:
        site = load_site(name)
    folder = run or (given.run_dir if given else Path(os.environ.get("PROXHPC_RUNS", "runs")))
    models: list[str] = []
    if given and given.engine.name != "rules":
        models = [stage.model for stage in given.stages if stage.model]
    return site, folder.absolute(), list(dict.fromkeys(models))


def examine_site(site: Site, folder: Path, models: list[str]) -> Iterator[Finding]:
    """Every finding about a site, the file system of `folder`, and models for offline use."""
    if site.kind == "slurm":
        yield from examine_slurm(site)
    else:
        yield Finding("site", f"{site.name}: local", "workers are processes of this machine")
    yield from examine_containers(site)
    yield from examine_disk(folder)
    for model in models:
        yield _model(model)


def summary(findings: list[Finding]) -> dict[str, Any]:
    """JSON form of everything."""
    good = all(finding.verdict != "bad" for finding in findings)
    return {"launch_would_work": good, "findings": [finding.to_dict() for finding in findings]}


def _model(name: str) -> Finding:
    try:
        model = resolve_model(name)
    except ProxError as error:
        return Finding(f"model {name}", error.message, error.hint, "bad")
    size = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    found = f"{size / 2**30:.1f} GiB in {model.path}"
    return Finding(f"model {name}", found, "whole: workers load it without the network")
