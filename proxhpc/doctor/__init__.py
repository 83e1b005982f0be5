"""What `proxhpc doctor` checks before a launch: limits, file system, models, and their effect."""

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from proxhpc.account.quantity import memory_size, quantity
from proxhpc.cluster import slurm
from proxhpc.doctor.filesystem import examine_disk
from proxhpc.doctor.finding import Diagnosis, Finding
from proxhpc.doctor.needs import examine_needs
from proxhpc.doctor.probe import probe
from proxhpc.doctor.scheduler import examine_containers, examine_slurm
from proxhpc.doctor.view import render_diagnosis
from proxhpc.errors import ProxError, UserError
from proxhpc.refine.preflight import freeze_prompts
from proxhpc.run.listing import find_inputs
from proxhpc.run.models import resolve_model
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.run.staging import Staging
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.sections import Level
from proxhpc.spec.site import Site, load_site

__all__ = ["Diagnosis", "Finding", "diagnose", "examine_site", "render_diagnosis"]


def diagnose(
    site_name: str | None,
    manifest_path: Path | None,
    run: Path | None,
    log: Callable[[str], None] | None = None,
) -> Diagnosis:
    """Check a site, and with a manifest also all that a run of it needs.

    Without a name, the site is the manifest's, or that of this machine. With `log`, short jobs
    look at two nodes, and `log` gets a line for each step; UserError on a site without Slurm.
    """
    manifest = load_manifest(manifest_path) if manifest_path else None
    site_name = site_name or (manifest and manifest.site) or "auto"
    if site_name != "auto":
        site = load_site(site_name)
    else:
        site = Site(name="auto", kind="slurm" if slurm.is_available() else "local")
    default_folder = manifest.run_dir if manifest else Path(os.environ.get("PROXHPC_RUNS", "runs"))
    models: list[tuple[str, Level]] = []
    if manifest and manifest.engine.name != "rules":
        models = [(stage.model, stage.level) for stage in manifest.stages if stage.model]
    folder = (run or default_folder).absolute()
    findings = [*examine_site(site, folder, models)]
    if manifest:
        findings += [*examine_needs(manifest, site), _inputs(manifest, folder)]
        missing = [f for f in findings if f.verdict == "error" and f.check.startswith("model ")]
        if models and not missing:
            findings.append(_prompts(manifest))
    if log is not None:
        if site.kind != "slurm":
            raise UserError(f"site {site.name} is local: there are no nodes to probe")
        findings += probe(site, folder, manifest.engine.name if manifest else "rules", log)
    works = all(finding.verdict != "error" for finding in findings)
    return Diagnosis(site=site.name, launch_would_work=works, findings=tuple(findings))


def _inputs(manifest: Manifest, folder: Path) -> Finding:
    corpus = manifest.corpus
    try:
        files = find_inputs(corpus, staging=Staging(corpus, RunDir(folder))).files
    except ProxError as error:
        return Finding.error("inputs", error.message, error.hint)
    return Finding.ok("inputs", quantity(len(files), "file"), "plan checks their content")


def examine_site(
    site: Site, folder: Path, models: Iterable[tuple[str, Level]]
) -> Iterator[Finding]:
    """Yield every finding about a site, the file system of `folder`, and the models of levels."""
    if site.kind == "slurm":
        yield from examine_slurm(site)
    else:
        yield Finding.ok("site", f"{site.name}: local", "workers are processes of this machine")
    yield from examine_containers(site)
    yield from examine_disk(folder)
    found: dict[Finding, Level] = {}
    for name, level in models:
        found.setdefault(_model(name, level), level)
    checks = [finding.check for finding in found]
    for finding, level in found.items():  # `embedded` is another model at each level
        if checks.count(finding.check) > 1:
            finding = finding.model_copy(update={"check": f"{finding.check} ({level})"})
        yield finding


def _prompts(manifest: Manifest) -> Finding:
    """The result of giving each stage its profile; its model is complete."""
    try:
        models = find_models(manifest)
        frozen = freeze_manifest(manifest, models)
        freeze_prompts(frozen, models)
        stages = frozen.stages
    except ProxError as error:
        return Finding.error("prompts", error.message, error.hint)
    names = [p if isinstance(p, str) else p.name for p in (stage.prompt for stage in stages)]
    result = ", ".join(f"{s.level}: {name}" for s, name in zip(stages, names, strict=True))
    return Finding.ok("prompts", result, "they fit the stages and models")


def _model(name: str, level: Level) -> Finding:
    try:
        model = resolve_model(name, level)
    except ProxError as error:
        return Finding.error(f"model {name}", error.message, error.hint)
    size = sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    result = f"{memory_size(size)} in {model.path}"
    return Finding.ok(f"model {name}", result, "complete: workers load it without the network")
