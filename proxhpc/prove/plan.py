"""The frozen plan of a prove directory."""

import glob
import secrets
import time
from dataclasses import dataclass, replace
from pathlib import Path

import orjson
from pydantic import TypeAdapter, ValidationError

from proxhpc import __version__
from proxhpc.corpus.disk import create
from proxhpc.corpus.inputs import InputInfo, describe_input
from proxhpc.errors import StopError, UserError
from proxhpc.prove.layout import ProveDir
from proxhpc.prove.tasks import task_name
from proxhpc.run.listing import find_inputs
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, check_new
from proxhpc.spec.prove import Arm, Prove
from proxhpc.spec.sections import Corpus

PROVE_VERSION = 1
_ANOTHER = "choose another directory with --out DIR"


@dataclass(frozen=True)
class ProvePlan:
    """What a prove directory is about; it never changes."""

    id: str
    created: float
    code: str
    run: Path  # whose corpora are compared
    run_digest: str
    section: Prove
    held_out: dict[str, tuple[InputInfo, ...]]  # files of each set
    tasks: dict[str, Path]  # request files by name
    version: int = PROVE_VERSION

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The arm that the others are compared with, then the others."""
        first = self.section.baseline
        return (first, *(arm for arm in self.section.arms if arm is not first))

    @property
    def trainings(self) -> list[tuple[str, int]]:
        """Arm and seed of each training, seed by seed."""
        return [(arm.name, seed) for seed in self.section.seeds for arm in self.arms]

    def run_plan(self) -> Plan:
        """Return the plan of the run. StopError if it has become another run."""
        plan = Plan.load(RunDir(self.run))
        if plan.digest != self.run_digest:
            raise StopError(f"{self.run} has become another run", hint=_ANOTHER)
        return plan

    def job_plan(self) -> Plan:
        """Return the plan by which jobs are named and tagged, and containers mount folders."""
        plan = self.run_plan()
        manifest = plan.manifest.model_copy(update={"name": f"{plan.manifest.name}-prove"})
        base = self.section.training.base
        read = [*self.tasks.values(), *([Path(base, "config.json")] if base else [])]
        read += [info.path for infos in self.held_out.values() for info in infos]
        inputs = (*plan.inputs, *(replace(plan.inputs[0], path=path) for path in read))
        return replace(plan, run_id=self.id, manifest=manifest, inputs=inputs)

    @classmethod
    def load(cls, folder: ProveDir) -> "ProvePlan":
        """Return the plan of a prove directory. UserError if there is none."""
        try:
            data = orjson.loads(folder.plan.read_bytes())
            if data["version"] != PROVE_VERSION:
                raise UserError(
                    f"{folder.root} was planned by proxhpc {data['code']}", hint=_ANOTHER
                )
            return TypeAdapter(cls).validate_python(data)
        except FileNotFoundError:
            raise UserError(
                f"{folder.root} is not a prove directory: it has no prove.json",
                hint="`proxhpc prove MANIFEST` creates one",
            ) from None
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise StopError(f"{folder.plan} is damaged: {where}: {first['msg']}") from error
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise StopError(f"{folder.plan} is damaged: {error}") from error


def open_prove(folder: ProveDir, run: RunDir, section: Prove | None) -> ProvePlan:
    """Plan a new prove directory of a merged run, or open an existing one.

    UserError if the directory is of another run or another section.
    """
    run_plan = Plan.load(run)
    if not folder.plan.exists():
        if section is None:
            raise UserError(
                "the manifest has no section `prove`",
                hint="docs/prove.md shows one; run `proxhpc prove` with the changed manifest",
            )
        _create(folder, make_prove_plan(run, run_plan, section))
    plan = ProvePlan.load(folder)
    if plan.run_digest != run_plan.digest:
        raise UserError(f"{folder.root} is of another run: {plan.run}", hint=_ANOTHER)
    if section is not None and (keys := _differing(plan.section, section)):
        raise UserError(
            f"{folder.root} was planned with another prove.{', prove.'.join(keys)}",
            hint=f"restore these keys, or {_ANOTHER}",
        )
    return plan


def make_prove_plan(run: RunDir, run_plan: Plan, section: Prove) -> ProvePlan:
    """Return a new plan. UserError if a file is missing."""
    held_out = {}
    for number, each in enumerate(section.held_out):
        files = find_inputs(Corpus(paths=each.paths), ("prove", "held_out", number)).files
        held_out[each.name] = tuple(describe_input(path, "auto", name=name) for path, name in files)
    return ProvePlan(
        id=secrets.token_hex(4),
        created=round(time.time(), 3),
        code=__version__,
        run=run.root,
        run_digest=run_plan.digest,
        section=section,
        held_out=held_out,
        tasks=_task_files(section),
    )


def _task_files(section: Prove) -> dict[str, Path]:
    """Return the request files by the names of their tasks. UserError if two have one name."""
    files = [
        path for pattern in section.tasks for path in sorted(glob.glob(pattern, recursive=True))
    ]
    if section.tasks and not files:
        raise UserError(f"prove.tasks: no file matches {', '.join(section.tasks)}")
    tasks = {task_name(Path(path)): Path(path) for path in dict.fromkeys(files)}
    if len(tasks) < len(set(files)):
        raise UserError(
            "prove.tasks: two request files have the same name",
            hint="files are named as FOLDER/TASK/requests.jsonl.gz or TASK.jsonl.gz",
        )
    return tasks


def _create(folder: ProveDir, plan: ProvePlan) -> None:
    check_new(folder)
    try:
        for path in folder.folders():
            path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {folder.root}: {error.strerror}", hint=_ANOTHER) from error
    create(folder.plan, TypeAdapter(ProvePlan).dump_json(plan) + b"\n")


def _differing(before: Prove, now: Prove) -> list[str]:
    return [key for key in Prove.model_fields if getattr(before, key) != getattr(now, key)]
