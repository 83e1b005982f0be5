"""The frozen plan of a run: inputs with fingerprints, shards, models, and the manifest."""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson
from pydantic import ValidationError

from proxhpc import __version__
from proxhpc.corpus.disk import publish, write_atomic
from proxhpc.corpus.document import Bad, Document, End, Span
from proxhpc.corpus.inputs import InputInfo, check_unchanged, describe
from proxhpc.corpus.parquet import need_pyarrow
from proxhpc.corpus.probe import misread
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import StopError, UserError
from proxhpc.program.policy import AnyPolicy
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.run.paths import SHARDS_PER_FOLDER, RunDir
from proxhpc.spec.manifest import Corpus, Manifest, diff, find_inputs
from proxhpc.spec.yaml_lines import Key, dotted, quoted

BYTES_PER_TOKEN = 4  # UTF-8 bytes, where no tokenizer counts; an estimate, and labelled so
PLAN_VERSION = 2

_DRAFT = re.compile(r"\.+plan-.*|\..*\.tmp")  # what a killed launch may leave of its plan
_ELSEWHERE = "choose another with run_dir in the manifest or --run DIR"


@dataclass(frozen=True, slots=True)
class Shard:
    """What one lease covers: spans of one or several files, in input order."""

    spans: tuple[Span, ...]
    estimated_bytes: int


@dataclass(frozen=True)
class Plan:
    """Everything a worker or a merge needs to know; never changed once written."""

    run_id: str
    created: float
    code: str
    manifest: Manifest
    inputs: tuple[InputInfo, ...]
    shards: tuple[Shard, ...]
    models: dict[str, ModelRef]
    against: tuple[
        InputInfo, ...
    ] = ()  # files of the corpus that duplicates are also looked for in
    digest: str = ""
    refined_under: AnyPolicy | None = None  # where the manifest's policy is another (variant.py)
    _checked: set[int] = field(default_factory=set, compare=False, repr=False)

    @cached_property
    def token_unit(self) -> str:
        """How the run counts tokens: a model's name, or the byte estimate."""
        for level in ("chunk", "doc"):
            if level in self.models:
                return self.models[level].name
        return f"UTF-8 bytes / {BYTES_PER_TOKEN} (estimate)"

    @property
    def estimated_bytes(self) -> int:
        """Decompressed input bytes, estimated."""
        return sum(info.estimated_bytes for info in self.inputs)

    @property
    def estimated_tokens(self) -> int:
        """Raw tokens, from the bytes."""
        return self.estimated_bytes // BYTES_PER_TOKEN

    def check_input(self, file: int) -> None:
        """Raise StopError when input `file` is not what it was at planning; looks once."""
        if file not in self._checked:
            check_unchanged(self.inputs[file])
            self._checked.add(file)

    def read(self, span: Span) -> Iterator[Document | Bad | End]:
        """Records of a span of one of the plan's inputs."""
        return _read(self.manifest.corpus, self.inputs[span.file], span)

    def read_against(self, span: Span) -> Iterator[Document | Bad | End]:
        """Records of a span of the corpus to compare with; StopError where a file has changed."""
        if self.manifest.dedup.against is None:
            raise ValueError("there is no corpus to compare with")
        check_unchanged(self.against[span.file])
        return _read(self.manifest.dedup.against, self.against[span.file], span)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, without the digest."""
        return {
            "version": PLAN_VERSION,
            "run_id": self.run_id,
            "created": self.created,
            "code": self.code,
            "manifest": self.manifest.model_dump(mode="json"),
            "models": {level: ref.to_dict() for level, ref in self.models.items()},
            "inputs": [asdict(info) | {"path": str(info.path)} for info in self.inputs],
            "against": [asdict(info) | {"path": str(info.path)} for info in self.against],
            "shards": [
                [shard.estimated_bytes, *([s.file, s.start, s.stop] for s in shard.spans)]
                for shard in self.shards
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """Read what `to_dict` wrote."""
        if data.get("version") != PLAN_VERSION:
            raise UserError(
                f"plan version {data.get('version')} is not {PLAN_VERSION}",
                hint="this run was planned by another proxhpc; go on with that version",
            )
        return cls(
            run_id=data["run_id"],
            created=data["created"],
            code=data["code"],
            manifest=Manifest.model_validate(data["manifest"]),
            inputs=_infos(data["inputs"]),
            against=_infos(data["against"]),
            shards=tuple(
                Shard(tuple(Span(*span) for span in spans), size) for size, *spans in data["shards"]
            ),
            models={k: ModelRef.from_dict(ref) for k, ref in data["models"].items()},
            digest=_digest(data),
        )

    @classmethod
    def load(cls, run: RunDir) -> "Plan":
        """The plan of a run. UserError when there is none."""
        try:
            raw = run.plan.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{run.root} is not a run directory: it has no plan.json",
                hint="proxhpc launch MANIFEST makes one",
            ) from None
        try:
            return cls.from_dict(orjson.loads(raw))
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise StopError(f"{run.plan} is damaged: {error}") from error

    def save(self, run: RunDir, manifest_text: bytes) -> None:
        """Write the plan, once and for all, and make the run's folders.

        UserError, and nothing written, where the directory holds what is no run's.
        """
        check_new(run)
        try:
            for folder in run.folders():
                folder.mkdir(parents=True, exist_ok=True)
            for shard in range(0, len(self.shards), SHARDS_PER_FOLDER):
                run.shard_folder(shard).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make the run directory {run.root}: {error.strerror}", hint=_ELSEWHERE
            ) from error
        draft = run.plan.with_name(f".plan-{secrets.token_hex(4)}")
        write_atomic(draft, orjson.dumps(self.to_dict(), option=orjson.OPT_APPEND_NEWLINE))
        try:
            # Link, not rename: of two launches at once, one makes the plan and both use it.
            first = publish(draft, run.plan)
        finally:
            draft.unlink()
        if first:
            write_atomic(run.manifest, manifest_text)


def check_new(run: RunDir) -> None:
    """Raise UserError unless a new run may be made there: nothing of anybody else's is in it.

    A run writes, replaces and deletes files in its directory, so it must be its own. The empty
    folders and drafts of a launch that was killed are.
    """
    try:
        names = sorted(os.listdir(run.root))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cannot make a run in {run.root}: {error.strerror}", hint=_ELSEWHERE
        ) from error
    own = {folder.name: folder for folder in run.folders()}
    foreign = [
        name
        for name in names
        if not _DRAFT.fullmatch(name) and (name not in own or _holds_files(own[name]))
    ]
    # Looked at last: another launch may have made its plan, and then files, in the meantime.
    if foreign and not run.plan.exists():
        raise UserError(
            f"{run.root} is no run and not empty: it has {quoted(foreign[0])}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""),
            hint=f"a run needs a directory of its own, new or empty; {_ELSEWHERE}",
        )


def _holds_files(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return True
    return any(files for _, _, files in os.walk(folder))


def check_outside(run: RunDir, paths: Iterable[Path]) -> None:
    """Raise UserError where an input file lies in the run directory, symlinks followed or not."""
    root = run.root.resolve()
    parents: dict[Path, Path] = {}
    for path in paths:
        named = parents.setdefault(path.parent, path.parent.resolve())
        if named.is_relative_to(root) or path.resolve().is_relative_to(root):
            raise UserError(
                f"the input {path} lies in the run directory {run.root}, where a run writes and"
                " deletes files",
                hint=_ELSEWHERE,
            )


def find_models(manifest: Manifest) -> dict[str, ModelRef]:
    """The stages' models by level, on disk and whole; none for the rules. UserError as ever."""
    return {
        stage.level: resolve_model(stage.model)
        for stage in manifest.stages
        if stage.model is not None and manifest.engine.name != "rules"
    }


def freeze_manifest(manifest: Manifest, models: Mapping[str, ModelRef]) -> Manifest:
    """The manifest with what its stages leave open taken from their models' refiner.json.

    UserError where the two do not go together.
    """
    stages = []
    for stage in manifest.stages:
        model = models.get(stage.level)
        refiner = model.refiner if model else None
        stages.append(refiner.complete(stage, model.name) if model and refiner else stage)
        if stages[-1].bias and stages[-1].prompt != "walk":
            raise UserError(
                f"the {stage.level} stage has a bias, which is only for prompt: walk",
                hint="its model has no refiner.json that says so: give the stage that prompt, "
                "or another model",
            )
    given = {key: getattr(manifest, key) for key in manifest.model_fields_set}
    try:
        return Manifest.model_validate(given | {"stages": tuple(stages)})
    except ValidationError as error:
        raise UserError(
            "the manifest and a model's refiner.json do not go together: "
            + "; ".join(str(problem["msg"]) for problem in error.errors()),
            hint="what a stage says itself comes first",
        ) from None


def make_plan(manifest: Manifest, run: RunDir) -> Plan:
    """Look at the place, the inputs and the models of a new run and cut its shards.

    Writes nothing. UserError when something is missing, or the place is not free.
    """
    check_new(run)
    if manifest.output.format == "parquet":
        need_pyarrow("output.format: parquet")
    inputs = _find(manifest.corpus, run, ("corpus",))
    other = manifest.dedup.against
    against = _find(other, run, ("dedup", "against")) if other else ()
    models = find_models(manifest)
    manifest = freeze_manifest(manifest, models)
    plan = Plan(
        run_id=secrets.token_hex(4),
        created=round(time.time(), 3),
        code=__version__,
        manifest=manifest,
        inputs=inputs,
        shards=tuple(
            split_into_shards(
                inputs, manifest.sharding.tokens * BYTES_PER_TOKEN, manifest.sharding.max_files
            )
        ),
        models=models,
        against=against,
    )
    return Plan.from_dict(orjson.loads(orjson.dumps(plan.to_dict())))


def _find(corpus: Corpus, run: RunDir, key: Key) -> tuple[InputInfo, ...]:
    """The files of a corpus. UserError where no record looked at has a text."""
    found = find_inputs(corpus, key)
    check_outside(run, (path for path, _ in found))
    inputs = tuple(describe(path, corpus.format, name=name) for path, name in found)
    wrong = misread(inputs, Fields(corpus.text, corpus.id), corpus.max_record_bytes)
    if wrong is not None:
        info, bad = wrong
        where = f"{info.path}, record at {bad.position}"
        raise UserError(
            f"no record has a text: {where}: {bad.reason}: {quoted(bad.detail, 500)[1:-1]}",
            hint=f"set {dotted((*key, 'text'))} to the field with the text"
            f" (and {dotted((*key, 'format'))}, if it is wrong)",
        )
    return inputs


def _read(corpus: Corpus, info: InputInfo, span: Span) -> Iterator[Document | Bad | End]:
    fields = Fields(corpus.text, corpus.id)
    return read_span(info, info.format, span, fields, corpus.max_record_bytes)


def _infos(data: list[dict[str, Any]]) -> tuple[InputInfo, ...]:
    return tuple(InputInfo(**info | {"path": Path(info["path"])}) for info in data)


def split_into_shards(
    inputs: tuple[InputInfo, ...], target: int, max_files: int
) -> Iterator[Shard]:
    """Shards of about `target` decompressed bytes, in input order.

    A file of more than one and a half targets is cut into equal spans of its own; smaller ones
    are gathered. The spans of a file tile it, whatever its true length.
    """
    spans: list[Span] = []
    size = 0
    for file, info in enumerate(inputs):
        pieces = max(1, round(info.estimated_bytes / target))
        if spans and (pieces > 1 or size + info.estimated_bytes > target * 1.25):
            yield Shard(tuple(spans), size)
            spans, size = [], 0
        if pieces > 1:
            for span in _pieces(file, info, pieces):
                yield Shard((span,), info.estimated_bytes // pieces)
            continue
        spans.append(Span(file))
        size += info.estimated_bytes
        if size >= target or len(spans) >= max_files:
            yield Shard(tuple(spans), size)
            spans, size = [], 0
    if spans:
        yield Shard(tuple(spans), size)


def _pieces(file: int, info: InputInfo, pieces: int) -> Iterator[Span]:
    length = info.rows if info.rows is not None else info.estimated_bytes
    cuts = [length * i // pieces for i in range(pieces)]
    yield from (Span(file, a, b) for a, b in zip(cuts, [*cuts[1:], None], strict=True))


def check_same_manifest(plan: Plan, manifest: Manifest) -> None:
    """Raise UserError when a started run's manifest was changed."""
    keys = diff(plan.manifest, freeze_manifest(manifest, plan.models))
    if keys:
        raise UserError(
            f"this run was started with another manifest; changed: {', '.join(keys)}",
            hint="undo the change, or start a new run: --run DIR (or another name)",
        )


def _digest(data: dict[str, Any]) -> str:
    canonical = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]
