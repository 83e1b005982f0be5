"""Checks that engine, packages and GPUs of a run are there, for `plan`, `doctor` and `launch`."""

from collections.abc import Iterator

from proxhpc.corpus.inputs import TABLES
from proxhpc.corpus.parquet import require_pyarrow
from proxhpc.doctor.finding import Finding
from proxhpc.engines import require_engine
from proxhpc.engines.device import count_gpus
from proxhpc.engines.options import check_options
from proxhpc.errors import UserError
from proxhpc.extras import vllm_build
from proxhpc.run.plan import find_models
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.site import Resources, Site

# Of the kernels of vLLM 0.32; a worker that starts learns them from vLLM itself.
CPU_HEAD_SIZES = (32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)


def examine_needs(manifest: Manifest, site: Site) -> Iterator[Finding]:
    """Yield findings about what the workers of a run need on a site."""
    yield _engine(manifest, site)
    if manifest.engine.name == "vllm":
        yield _device(manifest, site)
    if _uses_parquet(manifest):
        try:
            require_pyarrow("parquet")
        except UserError as error:
            yield Finding.error("pyarrow", error.message, error.hint)
        else:
            yield Finding.ok("pyarrow", "installed", "for parquet files")


def require_needs(manifest: Manifest, site: Site) -> None:
    """Raise UserError if a run lacks something that it needs on a site."""
    errors = [found for found in examine_needs(manifest, site) if found.verdict == "error"]
    if errors:
        raise UserError(
            f"a launch would not work: {'; '.join(found.result for found in errors)}",
            hint="; ".join(found.consequence for found in errors),
        )


def _engine(manifest: Manifest, site: Site) -> Finding:
    name = manifest.engine.name
    container = site.resources("refine").container
    if name != "rules" and (container or site.python):
        where = "the container" if container else str(site.python)
        return Finding.warning(
            f"engine {name}", "not checked", f"workers need proxhpc and the engine in {where}"
        )
    try:
        require_engine(name)
    except UserError as error:
        return Finding.error(f"engine {name}", error.message, error.hint)
    try:
        for stage in manifest.stages:
            check_options(name, manifest.engine_of(stage).options)
    except UserError as error:
        return Finding.error("engine.options", error.message, error.hint)
    return Finding.ok(f"engine {name}", "installed", "workers use this Python environment")


def _device(manifest: Manifest, site: Site) -> Finding:
    """Look for the GPUs that vLLM needs; if it is built for a CPU, whether that fits the models."""
    check, resources = "GPUs for vllm", site.resources("refine")
    build = vllm_build()
    if not resources.container and "cpu" in build:
        return _heads(manifest) or Finding.ok(
            check, f"none needed by vllm {build}", "the engine runs on the CPU"
        )
    if site.kind == "local":
        found = count_gpus()
        if found:
            return Finding.ok(check, f"{found} on this machine", "workers share them")
        return Finding.error(
            check,
            "engine vllm needs a GPU, and this machine has none",
            "launch on a site with GPUs, or use `engine: {name: transformers}`",
        )
    if resources.gpus or _asks_for_gpus(resources):
        return Finding.ok(check, "the site asks for them", "see sbatch --test-only")
    if resources.exclusive:
        return Finding.warning(
            check, "the site asks for whole nodes", "they must have GPUs that need not be asked for"
        )
    return Finding.error(
        check,
        f"engine vllm needs a GPU, and site {site.name} asks for none",
        "set gpus or gres in the site, or use `engine: {name: transformers}`",
    )


def _heads(manifest: Manifest) -> Finding | None:
    """Return an error if a model has attention heads that vLLM cannot compute on a CPU."""
    try:
        models = find_models(manifest).values()
    except UserError:  # `plan` and `doctor` say so themselves
        return None
    for model in models:
        if model.shape and model.shape.head_dim not in CPU_HEAD_SIZES:
            sizes = ", ".join(map(str, CPU_HEAD_SIZES))
            return Finding.error(
                "heads for vllm",
                f"model {model.name!r} has attention heads of size {model.shape.head_dim}, and "
                f"vllm on a CPU only has {sizes}",
                "use `engine: {name: transformers}`, or a vllm that is built for GPUs",
            )
    return None


def _asks_for_gpus(resources: Resources) -> bool:
    options = [f"{name} {value}" for name, value in resources.sbatch.items()]
    return any("gpu" in option for option in (resources.gres or "", *options))


def _uses_parquet(manifest: Manifest) -> bool:
    corpora = [manifest.corpus, *manifest.dedup.against]
    patterns = [pattern for corpus in corpora for pattern in corpus.paths]
    return (
        manifest.output.format == "parquet"
        or any(corpus.format in ("parquet", "arrow") for corpus in corpora)
        or any(pattern.lower().endswith(tuple(TABLES)) for pattern in patterns)
    )
