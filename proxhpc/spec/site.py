"""The site: where a run works, as one frozen model of a YAML file."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxhpc.errors import UserError
from proxhpc.spec.load import (
    Config,
    Flag,
    Positive,
    Slug,
    Text,
    Whole,
    absolute,
    base_of,
    load_yaml,
    nearest,
    refuse,
)
from proxhpc.spec.slurm_notation import (
    MANAGED_SBATCH_OPTIONS,
    Memory,
    TimeLimit,
    least_memory,
    parse_time,
)
from proxhpc.spec.yaml_lines import Key, quoted

PhaseName = Literal["refine", "merge", "control"]
Option = str | int | bool


def _option_names(value: Any) -> Any:
    """Return options under their long names: `--mail_type` is `mail-type`."""
    if not isinstance(value, dict):
        return value
    names = [str(name).removeprefix("--").replace("_", "-") for name in value]
    if len(set(names)) < len(names):
        raise ValueError("an option is given twice, once with dashes and once with underscores")
    return dict(zip(names, value.values(), strict=True))


class Container(Config):
    """The container that a phase's workers run in; `control` jobs never do, for they call sbatch.

    proxhpc must be installed in it. The run directory, the inputs' folder and the models are
    mounted.
    """

    kind: Literal["apptainer", "singularity", "pyxis"] = Field(
        description="`apptainer` (or `singularity`): the worker is run by `apptainer exec`. "
        "`pyxis`: by srun's `--container-image`."
    )
    image: Text = Field(
        description="Image file, relative to the site, or what the container's program takes as "
        "one, like `docker://…`."
    )
    mounts: tuple[Text, ...] = Field(
        default=(), description="Further mounts: `PATH`, or `FROM:TO`, or `FROM:TO:ro`."
    )
    options: tuple[Text, ...] = Field(
        default=(), description="Further options of `apptainer exec`, or of srun for pyxis."
    )

    @field_validator("image")
    @classmethod
    def _file(cls, image: str, info: ValidationInfo) -> str:
        if "://" in image or not image.endswith((".sif", ".sqsh", ".img", "/")):
            return image
        return absolute(image, base_of(info))


class ResourceRequest(Config):
    """What is asked of Slurm for one job."""

    account: Text | None = Field(default=None, description="Account that is charged.")
    partition: Text | None = Field(default=None, description="Partition, or several with commas.")
    qos: Text | None = Field(default=None, description="Quality of service.")
    constraint: Text | None = Field(default=None, description="Node features, as for `sbatch -C`.")
    reservation: Text | None = Field(default=None, description="Reservation.")
    time: TimeLimit | None = Field(
        default=None, description="Time limit: `HH:MM:SS`, `D-HH:MM:SS` or minutes."
    )
    cpus: Positive | None = Field(default=None, description="CPU cores of one worker.")
    mem: Memory | None = Field(
        default=None,
        description="Memory of a job on its node, for all its workers together, as in "
        "`32G`; `0`: all there is.",
    )
    gpus: Whole | None = Field(default=None, description="GPUs of one worker.")
    gres: Text | None = Field(
        default=None,
        description="Generic resources of one node, passed on as given; instead of `gpus`.",
    )
    exclusive: Flag | None = Field(
        default=None, description="Whole nodes, shared with no other job."
    )
    tasks_per_node: Positive | None = Field(
        default=None,
        description="Workers in one job on one node; more than 1 where nodes are given whole.",
    )
    setup: tuple[str, ...] | None = Field(
        default=None,
        description="Shell lines run on the node before the worker (`module load …`), yours and "
        "trusted; `$` in them is the shell's.",
    )
    container: Container | None = Field(
        default=None, description="Container that the worker runs in; see below."
    )
    sbatch: Annotated[
        dict[str, str | int | bool | None],
        BeforeValidator(_option_names, json_schema_input_type=dict[str, str | int | bool | None]),
    ] = Field(
        default_factory=dict,
        description="Further sbatch options by their long names; `true` for one without a value.",
    )

    @model_validator(mode="after")
    def _checked(self) -> Self:
        problems: list[tuple[Key, str]] = []
        if self.gpus and self.gres:
            problems.append((("gres",), "give either gpus or gres"))
        for name, value in self.sbatch.items():
            if name in MANAGED_SBATCH_OPTIONS:
                problems.append(
                    (("sbatch", name), f"not allowed here: {MANAGED_SBATCH_OPTIONS[name]}")
                )
            elif not re.fullmatch(r"[a-z][a-z0-9-]{1,39}", name):
                problems.append((("sbatch", name), "use the option's long name, like mail-type"))
            elif isinstance(value, str) and not value.isprintable():
                problems.append((("sbatch", name), f"must be one line, not {quoted(value)}"))
        for n, line in enumerate(self.setup or ()):
            if "\0" in line:
                problems.append((("setup", n), "holds a NUL character"))
        refuse(problems)
        return self


class PhaseOptions(ResourceRequest):
    """Overrides for one phase; what is not given is the site's."""


class RefineOptions(PhaseOptions):
    """Overrides for the workers that write programs."""

    workers: Positive | None = Field(default=None, description="Workers at a time.")


class MergeOptions(PhaseOptions):
    """Overrides for what makes the corpus of ledgers."""

    workers: Positive | None = Field(
        default=None,
        description="Elements, at a time, of the arrays that sketch and write a run of 32 MiB for "
        "each of them or more; 1, the default: one job does all.",
    )


class SitePhases(Config):
    """Overrides by phase. `merge` and `control` use no GPU unless asked to here."""

    refine: RefineOptions = Field(
        default=RefineOptions(), description="The workers that write programs."
    )
    merge: MergeOptions = Field(
        default=MergeOptions(), description="Running the programs, duplicates, the final corpus."
    )
    control: PhaseOptions = Field(
        default=PhaseOptions(), description="The small job that takes the run's next step."
    )


@dataclass(frozen=True, slots=True)
class Resources:
    """What one phase asks for, everything merged."""

    phase: PhaseName
    account: str | None
    partition: str | None
    qos: str | None
    constraint: str | None
    reservation: str | None
    time: str | None
    cpus: int
    mem: str | None
    gpus: int
    gres: str | None
    exclusive: bool
    tasks_per_node: int
    workers: int
    setup: tuple[str, ...]
    container: Container | None
    sbatch: Mapping[str, Option]

    @property
    def seconds(self) -> int | None:
        """The time limit in seconds; None is the partition's default."""
        return None if self.time is None else parse_time(self.time)

    @property
    def jobs(self) -> int:
        """Array elements that hold `workers` workers."""
        return -(-self.workers // self.tasks_per_node)


# CPU phases take nothing of a GPU worker's node; control reads a plan and submits jobs. What runs
# them is what launches: the launcher's own Python.
_CPU_PHASE: dict[str, Any] = {
    "gpus": 0,
    "gres": None,
    "exclusive": False,
    "tasks_per_node": 1,
    "container": None,
}
_DEFAULTS: dict[PhaseName, dict[str, Any]] = {
    "refine": {},
    "merge": _CPU_PHASE,
    "control": _CPU_PHASE | {"cpus": 1, "time": "00:30:00"},
}
_CONTROL_MEMORY = "4G"
_SLURM_ONLY = (
    *("account", "partition", "qos", "constraint", "reservation", "time", "mem", "gres"),
    *("exclusive", "tasks_per_node", "setup", "container", "sbatch"),
    *("max_array_size", "max_submit_jobs", "submit_from_jobs"),
)


class Site(ResourceRequest):
    """Where a run works. May change between launches of a run."""

    name: Slug = Field(description="Name of the site.")
    kind: Literal["slurm", "local"] = Field(
        default="slurm", description="`slurm`: job arrays. `local`: processes on this machine."
    )
    workers: Positive = Field(default=1, description="Workers at a time.")
    cpus: Positive = Field(default=1, description="CPU cores of one worker.")
    gpus: Whole = Field(default=0, description="GPUs of one worker.")
    exclusive: Flag = Field(default=False, description="Whole nodes, shared with no other job.")
    tasks_per_node: Positive = Field(
        default=1,
        description="Workers in one job on one node; more than 1 where nodes are given whole.",
    )
    setup: tuple[str, ...] = Field(
        default=(),
        description="Shell lines run on the node before the worker (`module load …`), yours and "
        "trusted; `$` in them is the shell's.",
    )
    python: Text | None = Field(
        default=None,
        description="Python on the nodes, absolute or relative to the site; default: this one, "
        "and `python3` in a container.",
    )
    max_array_size: Positive | None = Field(
        default=None, description="Slurm's MaxArraySize; asked of `scontrol` if not given."
    )
    max_submit_jobs: Positive | None = Field(
        default=None,
        description="Most jobs you may have in the queue, elements of arrays counted each; asked "
        "of `sacctmgr` if not given.",
    )
    stale_after: Positive | None = Field(
        default=None,
        ge=30,
        description="Seconds without a sign of life after which a worker's shards go to others, "
        "where neither its process nor its job can be asked; default 120. More where a file "
        "system stalls for longer; a worker that comes back late does no harm.",
    )
    submit_from_jobs: Flag = Field(
        default=True,
        description="Whether jobs may call `sbatch`. Where they may not, `proxhpc launch` goes on "
        "when it is run again.",
    )
    phases: SitePhases = Field(default=SitePhases(), description="Overrides by phase.")

    @field_validator("python")
    @classmethod
    def _interpreter(cls, python: str | None, info: ValidationInfo) -> str | None:
        if python is None or "/" not in python:
            return python  # a bare command is found on the node's PATH, after the setup lines
        return absolute(python, base_of(info))

    @model_validator(mode="after")
    def _local_keys(self) -> Self:
        if self.kind == "local":
            places: list[tuple[Key, ResourceRequest]] = [((), self)]
            places += [(("phases", n), getattr(self.phases, n)) for n in SitePhases.model_fields]
            refuse(
                ((*key, name), "only with kind: slurm")
                for key, request in places
                for name in _SLURM_ONLY
                if name in (fields := type(request).model_fields)
                and getattr(request, name) != fields[name].get_default(call_default_factory=True)
            )
        return self

    def resources(self, phase: PhaseName) -> Resources:
        """Return what `phase` asks for: its overrides, the phase's defaults, then the site."""
        overrides: PhaseOptions = getattr(self.phases, phase)
        merged = {name: getattr(self, name) for name in ResourceRequest.model_fields}
        merged |= _DEFAULTS[phase]
        if phase == "control" and self.mem is not None:
            merged["mem"] = least_memory(self.mem, _CONTROL_MEMORY)
        given = {name: getattr(overrides, name) for name in ResourceRequest.model_fields}
        merged |= {name: value for name, value in given.items() if value is not None}
        # One of gpus and gres, given for the phase, displaces the other of the site.
        if overrides.gpus is not None and overrides.gres is None:
            merged["gres"] = None
        elif overrides.gres is not None:
            merged["gpus"] = 0
        options = {**self.sbatch, **overrides.sbatch}
        merged["sbatch"] = {k: v for k, v in options.items() if v is not None and v is not False}
        defaults = {"refine": self.workers}
        workers = getattr(overrides, "workers", None) or defaults.get(phase, 1)
        return Resources(phase=phase, workers=workers, **merged)


def load_site(site: str | Path, environ: Mapping[str, str] | None = None) -> Site:
    """Return the site in a YAML file, or the one of that name in `slurm/sites`.

    Looked for in $PROXHPC_SITES, in the working directory and beside the package. UserError lists
    every problem with file, line and key. `${VAR}` is expanded, but not in setup lines.
    """
    path = Path(site)
    if not ("/" in str(site) or path.suffix in (".yaml", ".yml")):
        path = _find(str(site), os.environ if environ is None else environ)
    context = {"base": path.absolute().parent}
    return load_yaml(path, Site, environ=environ, verbatim=("setup",), context=context)


def _find(name: str, environ: Mapping[str, str]) -> Path:
    """Return the file of a named site; UserError names the sites there are."""
    own = environ.get("PROXHPC_SITES")
    folders = [Path(own)] if own else []
    folders += [Path("slurm/sites"), Path(__file__).parents[2] / "slurm" / "sites"]
    known = {p.stem: p for folder in reversed(folders) for p in sorted(folder.glob("*.yaml"))}
    if name in known:
        return known[name]
    raise UserError(
        f"no site named {quoted(name)}{nearest(name, known)}",
        hint=f"there are: {', '.join(sorted(known)) or 'none'}; or give a file, like ./{name}.yaml",
    )
