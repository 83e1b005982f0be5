"""The site: where a run works, read from YAML."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, field_validator

from proxhpc.spec.load import (
    Config,
    Flag,
    Positive,
    Slug,
    Text,
    Whole,
    absolute,
    load_yaml,
    matching,
)
from proxhpc.spec.shipped import find_file
from proxhpc.spec.slurm_notation import (
    DROPPABLE_SBATCH_OPTIONS,
    GPU_SBATCH_OPTIONS,
    MANAGED_SBATCH_OPTIONS,
    Memory,
    TimeLimit,
    min_memory,
    parse_time,
)
from proxhpc.spec.yaml_lines import Key, quoted

Price = Annotated[
    str, *matching(r"[0-9]{1,9}(\.[0-9]{1,6})? \S{1,8}", "a number and a currency, as in 2.50 EUR")
]
PhaseName = Literal["refine", "merge", "train", "control"]
Option = str | int | bool


def _option_names(value: Any) -> Any:
    """Return options by their long names: `--mail_type` is `mail-type`."""
    if not isinstance(value, dict):
        return value
    names = [str(name).removeprefix("--").replace("_", "-") for name in value]
    if len(set(names)) < len(names):
        raise ValueError("an option is given twice, once with dashes and once with underscores")
    return dict(zip(names, value.values(), strict=True))


def _without_blanks(value: str) -> str:
    return re.sub(r"\s*,\s*", ",", value.strip())


class Container(Config):
    """The container that a phase's workers run in (never `control` jobs, which call sbatch).

    proxhpc must be installed in it. The run directory, the folder of the inputs and the models
    are mounted.
    """

    kind: Literal["apptainer", "singularity", "pyxis"]
    """`apptainer` (or `singularity`) runs the worker with `apptainer exec`; `pyxis` with srun's
    `--container-image`."""
    image: Text
    """Image file, relative to the site, or a reference such as `docker://…`."""
    mounts: tuple[Text, ...] = ()
    """More mounts: `PATH`, `FROM:TO` or `FROM:TO:ro`."""
    options: tuple[Text, ...] = ()
    """More options of `apptainer exec`, or of srun with pyxis."""

    @field_validator("image")
    @classmethod
    def _file(cls, image: str, info: ValidationInfo) -> str:
        if "://" in image or not image.endswith((".sif", ".sqsh", ".img", "/")):
            return image
        return absolute(image, info)


class ResourceRequest(Config):
    """Resources of a job."""

    account: Text | None = None
    """Account to charge."""
    partition: Annotated[Text, AfterValidator(_without_blanks)] | None = None
    """Partition, or several separated by commas."""
    qos: Text | None = None
    """Quality of service."""
    constraint: Text | None = None
    """Node features, as for `sbatch -C`."""
    reservation: Text | None = None
    """Reservation."""
    time: TimeLimit | None = None
    """Time limit: `HH:MM:SS`, `D-HH:MM:SS` or minutes."""
    time_min: TimeLimit | None = None
    """Shortest time limit with which a worker is useful. Each submission then asks for `time` or a
    half, a quarter, … of it, whichever Slurm would start first, and Slurm may shorten it to fit a
    gap (`--time-min`)."""
    cpus: Positive | None = None
    """CPU cores per worker."""
    mem: Memory | None = None
    """Memory of a job, for all its workers together, as in `32G`; `0` for all of the node's."""
    gpus: Whole | None = None
    """GPUs per worker."""
    gres: Text | None = None
    """Generic resources per node, passed on unchanged; instead of `gpus`."""
    exclusive: Flag | None = None
    """Whole nodes, not shared with other jobs."""
    tasks_per_node: Positive | None = None
    """Workers per job; more than 1 where jobs get whole nodes."""
    setup: tuple[str, ...] | None = None
    """Shell lines to run on the node before the worker, such as `module load …`. `$` is the
    shell's."""
    container: Container | None = None
    """Container that the worker runs in; see [`container`](#container)."""
    sbatch: Annotated[
        dict[str, str | int | bool | None],
        BeforeValidator(_option_names, json_schema_input_type=dict[str, str | int | bool | None]),
    ] = Field(default_factory=dict)
    """More sbatch options by their long names; `true` for one without a value, `false` to leave one
    out that the launcher or the site would set. `comment` and `job-name` come before the
    launcher's. Options of GPUs are for phases with GPUs."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        if self.gpus and self.gres:
            yield ("gres",), "give either gpus or gres"
        if self.mem and (others := {"mem-per-cpu", "mem-per-gpu"} & {*self.sbatch}):
            yield ("mem",), f"give either mem or {others.pop()}"
        for name, value in self.sbatch.items():
            is_dropped = value is False and name in DROPPABLE_SBATCH_OPTIONS
            if name in MANAGED_SBATCH_OPTIONS and not is_dropped:
                yield ("sbatch", name), f"not allowed here: {MANAGED_SBATCH_OPTIONS[name]}"
            elif not re.fullmatch(r"[a-z][a-z0-9-]{1,39}", name):
                yield ("sbatch", name), "use the option's long name, like mail-type"
            elif isinstance(value, str) and not value.isprintable():
                yield ("sbatch", name), f"must be one line, not {quoted(value)}"
        for n, line in enumerate(self.setup or ()):
            if "\0" in line:
                yield ("setup", n), "contains a NUL character"


class RefineOptions(ResourceRequest):
    """Overrides for the workers that run the models."""

    workers: Positive | None = None
    """Workers at the same time."""


class MergeOptions(ResourceRequest):
    """Overrides for the merge, which makes the corpus from the ledgers."""

    workers: Positive | None = None
    """Array elements for the sketch and write phases of runs with at least 32 MiB per element. 1,
    the default: one job runs all phases."""


class TrainOptions(ResourceRequest):
    """Overrides for the trainings of `proxhpc prove`."""

    workers: Positive | None = None
    """Trainings at the same time."""
    nodes: Positive | None = None
    """Nodes of each training. With `tasks_per_node` processes on each, which share its batches."""


class SitePhases(Config):
    """Overrides by phase. `merge` and `control` get no GPU unless you ask for one here."""

    refine: RefineOptions = RefineOptions()
    """The workers that run the models."""
    merge: MergeOptions = MergeOptions()
    """Executing the programs, deduplication, writing the corpus."""
    train: TrainOptions = TrainOptions()
    """The trainings of `proxhpc prove`: by default, with the resources of `refine`."""
    control: ResourceRequest = ResourceRequest()
    """The small job that submits the next phase."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a phase, with all overrides and defaults applied."""

    phase: PhaseName
    account: str | None
    partition: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    time: str | None
    time_min: str | None
    cpus: int
    mem: str | None
    gpus: int
    gres: str | None
    exclusive: bool
    tasks_per_node: int
    workers_per_gpu: int
    workers: int
    nodes: int
    setup: tuple[str, ...]
    container: Container | None
    sbatch: Mapping[str, Option]
    omitted: tuple[str, ...]

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds; None means the partition's default."""
        return None if self.time is None else parse_time(self.time)

    @property
    def lengths(self) -> list[int]:
        """Time limits to choose from, in seconds, the longest first; empty for the partition's."""
        if self.seconds is None:
            return []
        shortest = self.seconds if self.time_min is None else parse_time(self.time_min)
        halves = (self.seconds >> n for n in range(8))
        return [self.seconds, *(length for length in halves if shortest <= length < self.seconds)]

    @property
    def gpus_per_node(self) -> int:
        """GPUs of a job's workers; 0 with `gres`."""
        return self.gpus * -(-self.tasks_per_node // self.workers_per_gpu)

    @property
    def jobs(self) -> int:
        """Array elements needed for `workers` workers; of a training, all tasks are one worker."""
        return self.workers if self.phase == "train" else -(-self.workers // self.tasks_per_node)


# CPU phases do not need a GPU worker's resources. They run in the launcher's own Python, without a
# container.
_CPU_PHASE: dict[str, Any] = {
    "gpus": 0,
    "gres": None,
    "exclusive": False,
    "tasks_per_node": 1,
    "container": None,
}
_DEFAULTS: dict[PhaseName, dict[str, Any]] = {
    "refine": {},
    "merge": _CPU_PHASE | {"time_min": None},  # it needs its time
    "train": {},
    "control": _CPU_PHASE | {"cpus": 1, "time": "00:30:00", "time_min": None},
}
_CONTROL_MEMORY = "4G"
_SLURM_ONLY = (
    *(key for key in ResourceRequest.model_fields if key not in ("cpus", "gpus")),
    *("nodes", "max_array_size", "max_submit_jobs", "submit_from_jobs"),
)


class Site(ResourceRequest):
    """Where a run works; may change between launches."""

    name: Slug
    """Name of the site."""
    kind: Literal["slurm", "local"] = "slurm"
    """`slurm`: job arrays. `local`: processes on this machine."""
    workers: Positive = 1
    """Workers at the same time."""
    cpus: Positive = 1
    """CPU cores per worker."""
    gpus: Whole = 0
    """GPUs per worker."""
    exclusive: Flag = False
    """Whole nodes, not shared with other jobs."""
    tasks_per_node: Positive = 1
    """Workers per job; more than 1 where jobs get whole nodes."""
    workers_per_gpu: Positive = 1
    """Workers that share a GPU, for models too small to fill it; with `gpus: 1` or `gres`. `vllm`
    divides its memory among them. On Slurm, `tasks_per_node` must be a multiple."""
    setup: tuple[str, ...] = ()
    """Shell lines to run on the node before the worker, such as `module load …`. `$` is the
    shell's."""
    python: Text | None = None
    """Python on the nodes: a command, or a path, relative to the site. Default: the one that runs
    `proxhpc launch`; `python3` in a container."""
    max_array_size: Positive | None = None
    """Slurm's MaxArraySize. Default: what `scontrol` reports."""
    max_submit_jobs: Positive | None = None
    """Maximum jobs that you may have in the queue, counting array elements. Default: what
    `sacctmgr` reports."""
    stale_after: Positive | None = Field(default=None, ge=30)
    """Seconds without a heartbeat after which others take over a worker's shards, if neither its
    process nor its job can be checked. Default 120; raise it if the file system stalls for longer.
    A worker that comes back late does no harm."""
    submit_from_jobs: Flag = True
    """Whether jobs may call `sbatch`. If not, run `proxhpc launch` again after each phase."""
    price_per_gpu_hour: Price | None = None
    """Price of a GPU-hour and its currency, as in `2.50 EUR`; the report then shows what a run
    cost."""
    phases: SitePhases = SitePhases()
    """Overrides by phase."""

    @field_validator("python")
    @classmethod
    def _interpreter(cls, python: str | None, info: ValidationInfo) -> str | None:
        if python is None or "/" not in python:
            return python  # a command, looked up on the node's PATH after the setup lines
        return absolute(python, info)

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from super()._problems()
        if self.kind == "local":
            requests: list[tuple[Key, ResourceRequest]] = [((), self)]
            requests += [(("phases", n), getattr(self.phases, n)) for n in SitePhases.model_fields]
            for key, request in requests:
                for name, field in type(request).model_fields.items():
                    default = field.get_default(call_default_factory=True)
                    if name in _SLURM_ONLY and getattr(request, name) != default:
                        yield (*key, name), "only with kind: slurm"
        refine, train = self.resources("refine"), self.resources("train")
        if (sharing := refine.workers_per_gpu) > 1:
            if not (refine.gpus == 1 or refine.gres):
                yield ("workers_per_gpu",), "needs gpus: 1, or gres"
            if self.kind == "slurm" and refine.tasks_per_node % sharing:
                yield ("tasks_per_node",), "must be a multiple of workers_per_gpu"
        for each in (refine, train):
            if each.time_min and parse_time(each.time_min) > (each.seconds or 0):
                yield ("time_min",), "must be at most `time`, which it needs"
                break

    def resources(self, phase: PhaseName) -> Resources:
        """Return the resources of a phase: its overrides, else its defaults, else the site's."""
        overrides: ResourceRequest = getattr(self.phases, phase)
        merged = {name: getattr(self, name) for name in ResourceRequest.model_fields}
        merged |= _DEFAULTS[phase]
        if phase == "control" and self.mem is not None:
            merged["mem"] = min_memory(self.mem, _CONTROL_MEMORY)
        overridden = {name: getattr(overrides, name) for name in ResourceRequest.model_fields}
        merged |= {name: value for name, value in overridden.items() if value is not None}
        if phase == "train" and overrides.tasks_per_node is None:  # its processes share no GPU
            merged["tasks_per_node"] = max(1, self.tasks_per_node // self.workers_per_gpu)
        merged["workers_per_gpu"] = self.workers_per_gpu if phase == "refine" else 1
        # If the phase sets one of gpus and gres, the site's value of the other does not apply.
        if overrides.gpus is not None and overrides.gres is None:
            merged["gres"] = None
        elif overrides.gres is not None:
            merged["gpus"] = 0
        options = {**self.sbatch, **overrides.sbatch}
        merged["sbatch"] = {k: v for k, v in options.items() if v is not None and v is not False}
        merged["omitted"] = tuple(k for k in DROPPABLE_SBATCH_OPTIONS if options.get(k) is False)
        if not (merged["gpus"] or merged["gres"]):
            for name in GPU_SBATCH_OPTIONS:
                merged["sbatch"].pop(name, None)
        default = self.workers if phase in ("refine", "train") else 1
        workers = getattr(overrides, "workers", None) or default
        nodes = getattr(overrides, "nodes", None) or 1
        return Resources(phase=phase, workers=workers, nodes=nodes, **merged)


def load_site(site: str | Path, environ: Mapping[str, str] | None = None) -> Site:
    """Return the site in a YAML file, or the named site (see `find_file`).

    `${VAR}` is expanded except in setup lines. UserError lists every problem with file, line and
    key.
    """
    return load_yaml(find_file("site", site, environ), Site, environ=environ, verbatim=("setup",))
