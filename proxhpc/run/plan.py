"""The frozen plan of a run: manifest, inputs with fingerprints, shards and models."""

import hashlib
import os
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, wraps
from itertools import accumulate, chain, pairwise
from pathlib import Path
from typing import Any, TypeVar

import orjson
from pydantic import ValidationError

from proxhpc import __version__
from proxhpc.account.quantity import quantity, shorten
from proxhpc.corpus.disk import create, write_atomic
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.inputs import InputInfo, check_unchanged, describe_input, reading_threads
from proxhpc.corpus.jsonl import RawLine
from proxhpc.corpus.parquet import require_pyarrow
from proxhpc.corpus.readers import Fields, read_lines, read_span
from proxhpc.corpus.restarts import RestartLog
from proxhpc.errors import StopError, UserError
from proxhpc.program.policy import AnyPolicy
from proxhpc.run.listing import check_inputs, find_inputs
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.run.paths import SHARDS_PER_FOLDER, RunDir
from proxhpc.run.staging import Report, Staging, ignore
from proxhpc.spec.load import reasons
from proxhpc.spec.manifest import Manifest, diff
from proxhpc.spec.profile import Profile
from proxhpc.spec.refiner_file import complete_stage
from proxhpc.spec.sections import Against, Corpus
from proxhpc.spec.yaml_lines import Key, quoted

T = TypeVar("T")

BYTES_PER_TOKEN = 4  # estimate without a tokenizer, in UTF-8 bytes
PLAN_VERSION = 5

_SIZED = ("none", "gzip", "zstd")
_DOUBLINGS = 8
_DRAFT = re.compile(r"\..*\.tmp")  # left behind by a launch that was killed
_OTHER_RUN_DIR = "choose another: run_dir in the manifest, --run DIR, or --out DIR of refine"


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of refining work: spans of one or several files, in input order."""

    spans: tuple[Span, ...]
    estimated_bytes: int


@dataclass(frozen=True, slots=True)
class FrozenPrompt:
    """A stage's profile with a chat template as it was rendered, and the ids of an empty prompt."""

    profile: Profile
    ids: tuple[int, ...]


def keep_with_plan(function: Callable[["Plan"], T]) -> Callable[["Plan"], T]:
    """Compute a function of a plan once for each plan."""

    @wraps(function)
    def kept(plan: "Plan") -> T:
        name = function.__qualname__
        if name not in plan._kept:
            plan._kept[name] = function(plan)
        value: T = plan._kept[name]
        return value

    return kept


@dataclass(frozen=True)
class Plan:
    """Everything that workers and the merge need; it never changes."""

    run_id: str
    created: float
    code: str
    manifest: Manifest
    inputs: tuple[InputInfo, ...]
    shards: tuple[Shard, ...]
    models: dict[str, ModelRef]
    against: tuple[InputInfo, ...] = ()  # files of the other corpora, dedup.against, in order
    against_counts: tuple[int, ...] = ()  # of the files of each
    listing_notes: tuple[str, ...] = ()
    prompts: dict[str, FrozenPrompt] = field(default_factory=dict)
    digest: str = ""
    refined_under: AnyPolicy | None = None  # if the manifest's policy is another (variant.py)
    restarts: Path | None = field(default=None, compare=False)  # the folder of the run's logs
    is_variant: bool = field(default=False, compare=False)  # the run is only read
    _checked: set[int] = field(default_factory=set, compare=False, repr=False)
    _logs: dict[str, RestartLog] = field(default_factory=dict, compare=False, repr=False)
    _kept: dict[str, Any] = field(default_factory=dict, init=False, compare=False, repr=False)

    @cached_property
    def token_unit(self) -> str:
        """The name of the model whose tokenizer counts tokens, or the byte estimate."""
        for level in ("chunk", "doc"):
            if level in self.models:
                return self.models[level].name
        return f"UTF-8 bytes / {BYTES_PER_TOKEN} (estimate)"

    @cached_property
    def frozen_manifest(self) -> Manifest:
        """The manifest with the frozen prompts, which do not change from day to day."""
        stages = tuple(
            stage.model_copy(update={"prompt": self.prompts[stage.level].profile})
            if stage.level in self.prompts
            else stage
            for stage in self.manifest.stages
        )
        return self.manifest.model_copy(update={"stages": stages})

    @property
    def estimated_bytes(self) -> int:
        """Decompressed bytes of the inputs, estimated."""
        return sum(info.estimated_bytes for info in self.inputs)

    @property
    def estimated_tokens(self) -> int:
        """Raw tokens, estimated from the bytes."""
        return self.estimated_bytes // BYTES_PER_TOKEN

    def estimated_bytes_of(self, span: Span) -> float:
        """Decompressed bytes of a span, estimated."""
        info = self.inputs[span.file]
        length = info.estimated_bytes if info.rows is None else info.rows
        stop = length if span.stop is None else min(span.stop, length)
        return max(0, stop - span.start) / max(1, length) * info.estimated_bytes

    def check_input(self, file: int) -> None:
        """Raise StopError if input `file` has changed since planning; checks only once."""
        if file not in self._checked:
            check_unchanged(self.inputs[file])
            self._checked.add(file)

    def read(
        self,
        span: Span,
        *,
        writable: bool = False,
        wanted: Callable[[int], bool] | None = None,
        restarts: RestartLog | None = None,
    ) -> Iterator[Document | BadRecord | SpanEnd]:
        """Yield the records of a span of an input. `writable`: note restart points in the run.

        With `wanted`, only those at positions for which it is true. `restarts` are used in place of
        the run's.
        """
        info = self.inputs[span.file]
        log = restarts or self._restart_log(info, f"{span.file:05d}", writable)
        return _read(self.manifest.corpus, info, span, log, wanted)

    @cached_property
    def against_files(self) -> list[tuple[Against, range]]:
        """Each of the other corpora, and the numbers of its files in `against`."""
        stops = [*accumulate(self.against_counts, initial=0)]
        ranges = (range(start, stop) for start, stop in pairwise(stops))
        return [*zip(self.manifest.dedup.against, ranges, strict=True)]

    def corpus_of(self, file: int) -> int:
        """The number in dedup.against of the corpus of a file of `against`."""
        return next(n for n, (_, files) in enumerate(self.against_files) if file in files)

    def against_files_of(self, mode: str) -> list[tuple[Against, range]]:
        """The items of `against_files` with this mode."""
        return [each for each in self.against_files if each[0].mode == mode]

    @property
    def external(self) -> tuple[InputInfo, ...]:
        """The files of other corpora whose documents are compared with those of the run."""
        return tuple(
            self.against[file] for _, files in self.against_files_of("duplicates") for file in files
        )

    @property
    def benchmarks(self) -> list[tuple[Against, range]]:
        """The items of `against_files` of which no document may contain parts."""
        return self.against_files_of("contained")

    def read_against(self, span: Span) -> Iterator[Document | BadRecord | SpanEnd]:
        """Yield the records of a span of another corpus; StopError if its file has changed."""
        info = self.against[span.file]
        corpus, _ = self.against_files[self.corpus_of(span.file)]
        check_unchanged(info)
        log = self._restart_log(info, f"against-{span.file:05d}", True)
        return _read(corpus, info, span, log)

    def read_lines(self, span: Span) -> Iterator[RawLine]:
        """Yield the records of a span of an input in bytes, as `readers.read_lines`."""
        info, corpus = self.inputs[span.file], self.manifest.corpus
        log = self._restart_log(info, f"{span.file:05d}", False)
        limit, window = corpus.max_record_bytes, corpus.zstd_window
        return read_lines(info, span, limit, max_window=window, restarts=log)

    def _restart_log(self, info: InputInfo, name: str, writable: bool) -> RestartLog | None:
        if self.restarts is None or not info.enterable:
            return None
        path = self.restarts / f"{name}.log"
        if name not in self._logs:
            writable = writable and not self.is_variant
            self._logs[name] = RestartLog(path, info.fingerprint, writable=writable)
        return self._logs[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, without the digest."""
        return {
            "version": PLAN_VERSION,
            "run_id": self.run_id,
            "created": self.created,
            "code": self.code,
            "manifest": self.manifest.model_dump(mode="json"),
            "models": {level: ref.to_dict() for level, ref in self.models.items()},
            "prompts": {
                level: [prompt.profile.model_dump(mode="json", exclude_unset=True), prompt.ids]
                for level, prompt in self.prompts.items()
            },
            "inputs": [asdict(info) | {"path": str(info.path)} for info in self.inputs],
            "against": [asdict(info) | {"path": str(info.path)} for info in self.against],
            "against_counts": self.against_counts,
            "notes": list(self.listing_notes),
            "shards": [
                [shard.estimated_bytes, *([s.file, s.start, s.stop] for s in shard.spans)]
                for shard in self.shards
            ],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        """Read what `to_dict` wrote."""
        return cls(
            run_id=data["run_id"],
            created=data["created"],
            code=data["code"],
            manifest=Manifest.model_validate(data["manifest"]),
            inputs=_infos(data["inputs"]),
            against=_infos(data["against"]),
            against_counts=tuple(data["against_counts"]),
            listing_notes=tuple(data.get("notes", ())),
            shards=tuple(
                Shard(tuple(Span(*span) for span in spans), size) for size, *spans in data["shards"]
            ),
            models={k: ModelRef.from_dict(ref) for k, ref in data["models"].items()},
            prompts={
                level: FrozenPrompt(Profile.model_validate(profile), tuple(ids))
                for level, (profile, ids) in data["prompts"].items()
            },
            digest=_digest(data),
        )

    @classmethod
    def load(cls, run: RunDir) -> "Plan":
        """Return the plan of a run. UserError if there is none, or another version made it."""
        try:
            raw = run.plan.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            why = "it has no plan.json" if run.root.exists() else "there is no such directory"
            hint = "`proxhpc launch MANIFEST` creates one"
            default = RunDir(run.root.parent / "runs" / run.root.name)
            if default.plan.exists():
                hint = f"did you mean {default.root}?"
            raise UserError(f"{run.root} is not a run directory: {why}", hint=hint) from None
        try:
            data = orjson.loads(raw)
            if data["version"] != PLAN_VERSION:
                code, here = data["code"], f"this is proxhpc {__version__} and"
                maker, use = f"proxhpc {code}", code
                if code == __version__:
                    here, maker, use = "this one", f"another build of proxhpc {code}", "that build"
                raise UserError(
                    f"{run.root} was planned by {maker}; {here} cannot resume it. Use {use} to "
                    "finish that run, or choose another run_dir."
                )
            plan = replace(cls.from_dict(data), restarts=run.restarts)
            if run.max_unusable.exists():
                return plan.allow_unusable(float(orjson.loads(run.max_unusable.read_bytes())))
            return plan
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise StopError(f"{run.plan} is damaged: {error}") from error

    def freeze(self, prompts: dict[str, FrozenPrompt]) -> "Plan":
        """Return the plan with these prompts, by level."""
        return Plan.from_dict(orjson.loads(orjson.dumps(replace(self, prompts=prompts).to_dict())))

    def allow_unusable(self, share: float) -> "Plan":
        """Return the plan with another `engine.max_unusable`, which may change between launches."""
        engine = self.manifest.engine.model_copy(update={"max_unusable": share})
        return replace(self, manifest=self.manifest.model_copy(update={"engine": engine}))

    def save(self, run: RunDir, manifest_text: bytes) -> None:
        """Make the run's folders and write the plan, unless there is one.

        UserError, and nothing is written, if the directory has files of something else.
        """
        check_new(run)
        try:
            for folder in run.folders():
                folder.mkdir(parents=True, exist_ok=True)
            for shard in range(0, len(self.shards), SHARDS_PER_FOLDER):
                run.shard_folder(shard).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot create the run directory {run.root}: {error.strerror}", hint=_OTHER_RUN_DIR
            ) from error
        # If two launches race, one creates its plan and both use it.
        if create(run.plan, orjson.dumps(self.to_dict(), option=orjson.OPT_APPEND_NEWLINE)):
            write_atomic(run.manifest, manifest_text)


def check_new(run: RunDir) -> None:
    """Raise UserError if the directory of a new run has files of something else.

    A run writes, replaces and deletes files in its directory. Empty folders, drafts of a launch
    that was killed, and a calibration are fine.
    """
    try:
        names = sorted(os.listdir(run.root))
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(
            f"cannot create a run in {run.root}: {error.strerror}", hint=_OTHER_RUN_DIR
        ) from error
    folders = {folder.name: folder for folder in run.folders()}
    foreign = [
        name
        for name in names
        if not _DRAFT.fullmatch(name)
        and name != run.calibration.name
        and (name not in folders or _holds_files(folders[name]))
    ]
    # The plan is checked last: another launch may have written it, and then other files, meanwhile.
    if foreign and not run.plan.exists():
        raise UserError(
            f"{run.root} is not empty and not a run directory: it contains {quoted(foreign[0])}"
            + (f" and {len(foreign) - 1} more" if len(foreign) > 1 else ""),
            hint=f"a run needs a new or empty directory; {_OTHER_RUN_DIR}",
        )


def _holds_files(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return True
    return any(files for _, _, files in os.walk(folder))


def check_outside(run: RunDir, paths: Iterable[Path]) -> None:
    """Raise UserError if an input file is inside the run directory, itself or behind a symlink."""
    root = run.root.resolve()
    parents: dict[Path, Path] = {}
    for path in paths:
        named = parents.setdefault(path.parent, path.parent.resolve())
        if named.is_relative_to(root) or path.resolve().is_relative_to(root):
            raise UserError(
                f"the input {path} is inside the run directory {run.root}, where the run writes "
                "and deletes files",
                hint=_OTHER_RUN_DIR,
            )


def find_models(manifest: Manifest) -> dict[str, ModelRef]:
    """Return the stages' models by level; none for the rules. UserError as `resolve_model`."""
    return {
        stage.level: resolve_model(stage.model, stage.level)
        for stage in manifest.stages
        if stage.model is not None and manifest.engine.name != "rules"
    }


def freeze_manifest(manifest: Manifest, models: Mapping[str, ModelRef]) -> Manifest:
    """Return the manifest with the profiles of its stages, and keys that those set.

    UserError if a stage contradicts its profile, or its model cannot use it.
    """
    stages = []
    for stage in manifest.stages:
        if model := models.get(stage.level):
            stage = complete_stage(stage, model.refiner, model.name)
            model.check_profile(stage.prompt)
        stages.append(stage)
    keys = {key: getattr(manifest, key) for key in manifest.model_fields_set}
    try:
        return Manifest.model_validate(keys | {"stages": tuple(stages)})
    except ValidationError as error:
        raise UserError(
            f"the manifest contradicts a profile: {reasons(error)}",
            hint="keys of a stage override those of its profile or its model's refiner.json",
        ) from None


def make_plan(manifest: Manifest, run: RunDir, report: Report = ignore) -> Plan:
    """Plan a new run: check its directory, inputs and models, and split the inputs into shards.

    `report` is told how many files have been read. Writes nothing. UserError if something is
    missing, or the directory is not free.
    """
    check_new(run)
    if manifest.output.format == "parquet":
        require_pyarrow("output.format: parquet")
    inputs, notes = _describe_corpus(manifest.corpus, run, ("corpus",), report)
    others: list[tuple[InputInfo, ...]] = []
    for number, corpus in enumerate(manifest.dedup.against):
        key: Key = ("dedup", "against", *([number] if len(manifest.dedup.against) > 1 else []))
        infos, more = _describe_corpus(corpus, run, key, report)
        others.append(infos)
        notes += more
    models = find_models(manifest)
    manifest = freeze_manifest(manifest, models)
    target = manifest.sharding.tokens * BYTES_PER_TOKEN
    shards = tuple(split_into_shards(inputs, target, manifest.sharding.max_files))
    plan = Plan(
        run_id=secrets.token_hex(4),
        created=round(time.time(), 3),
        code=__version__,
        manifest=manifest,
        inputs=inputs,
        shards=shards,
        models=models,
        against=_distinct_names([*chain.from_iterable(others)]),
        against_counts=tuple(map(len, others)),
        listing_notes=(*notes, *shorten(_pass_notes(inputs, shards))),
    )
    return Plan.from_dict(orjson.loads(orjson.dumps(plan.to_dict())))


def _describe_corpus(
    corpus: Corpus, run: RunDir, key: Key, report: Report
) -> tuple[tuple[InputInfo, ...], tuple[str, ...]]:
    """Return the files of a corpus, and notes on them. UserError as `check_inputs`."""
    listing = find_inputs(corpus, key, Staging(corpus, run))
    check_outside(run, (path for path, _ in listing.files))

    def describe(file: tuple[Path, str]) -> InputInfo:
        path, name = file
        info = describe_input(path, corpus.format, name=name, max_window=corpus.zstd_window)
        source = listing.remote.get(path)
        return replace(info, source=source.url, version=source.version) if source else info

    inputs = []
    with reading_threads(corpus.zstd_window) as threads:
        for info in threads.map(describe, listing.files):
            inputs.append(info)
            report(f"reading the inputs: {len(inputs):,} of {len(listing.files):,} files")
    report(f"reading the first records of {quantity(len(inputs), 'file')}")
    return check_inputs(tuple(inputs), corpus, key), listing.notes


def _read(
    corpus: Corpus,
    info: InputInfo,
    span: Span,
    restarts: RestartLog | None,
    wanted: Callable[[int], bool] | None = None,
) -> Iterator[Document | BadRecord | SpanEnd]:
    return read_span(
        info,
        info.format,
        span,
        Fields(corpus.text, corpus.id),
        corpus.max_record_bytes,
        max_window=corpus.zstd_window,
        restarts=restarts,
        wanted=wanted,
    )


def _infos(data: list[dict[str, Any]]) -> tuple[InputInfo, ...]:
    return tuple(InputInfo(**info | {"path": Path(info["path"])}) for info in data)


def _distinct_names(infos: Sequence[InputInfo]) -> tuple[InputInfo, ...]:
    """Return files of several corpora, named from the folder that all share if names are equal."""
    if len({info.name for info in infos}) == len(infos):
        return tuple(infos)
    folder = os.path.commonpath([info.path.parent for info in infos])
    return tuple(replace(info, name=os.path.relpath(info.path, folder)) for info in infos)


def split_into_shards(
    inputs: Sequence[InputInfo], target: int, max_files: int, first: int = 0
) -> Iterator[Shard]:
    """Yield shards of about `target` decompressed bytes, in input order.

    A file of more than one and a half targets is split into equal spans, a shard each; smaller
    files share a shard. The spans of a file cover it, whatever its true length. Files are numbered
    from `first` on.
    """
    spans: list[Span] = []
    size = 0
    for file, info in enumerate(inputs, first):
        pieces = max(1, round(info.estimated_bytes / target)) if info.format != "text" else 1
        if spans and (pieces > 1 or size + info.estimated_bytes > target * 1.25):
            yield Shard(tuple(spans), size)
            spans, size = [], 0
        if pieces > 1:
            for span in _split_file(file, info, pieces):
                size = info.estimated_bytes // pieces
                yield Shard((span,), size if span.start < info.estimated_bytes else 0)
            continue
        spans.append(Span(file))
        size += info.estimated_bytes
        if size >= target or len(spans) >= max_files:
            yield Shard(tuple(spans), size)
            spans, size = [], 0
    if spans:
        yield Shard(tuple(spans), size)


def _split_file(file: int, info: InputInfo, pieces: int) -> Iterator[Span]:
    length = info.rows if info.rows is not None else info.estimated_bytes
    starts = [length * i // pieces for i in range(pieces)]
    if info.compression not in _SIZED:  # the length is a guess: it may be many times more
        starts += [length + length // pieces * ((1 << i) - 1) for i in range(_DOUBLINGS)]
    yield from (Span(file, a, b) for a, b in zip(starts, [*starts[1:], None], strict=True))


def _pass_notes(inputs: tuple[InputInfo, ...], shards: tuple[Shard, ...]) -> list[str]:
    """Return a line for each file that is decompressed from its start by many processes."""
    spans = [shard.spans[0] for shard in shards]
    pieces = Counter(span.file for span in spans if span.start or span.stop is not None)
    return [
        f"{info.name}: a process that reads any of its {count} shards decompresses what is before, "
        f"so N workers cost about N/2 passes over the file: {_remedy(info)}"
        for file, count in pieces.items()
        if not (info := inputs[file]).enterable
    ]


def _remedy(info: InputInfo) -> str:
    if info.compression == "zstd" and info.format == "jsonl":
        return "it is one zstd frame; compress it with pzstd, which makes many, or split it"
    return "split it into smaller files"


def input_notes(plan: Plan, run: RunDir) -> list[str]:
    """Return what a person should know about the inputs, in a few lines.

    If the run has started, also how many files its patterns match that are not in its plan.
    """
    files = (*plan.inputs, *plan.against)
    lines = [f"{info.name}: {info.note}" for info in files if info.note]
    notes = [*plan.listing_notes, *shorten(lines)]
    if run.plan.exists():
        planned = {info.path for info in plan.inputs}
        try:
            new = [
                name
                for path, name in find_inputs(plan.manifest.corpus).files
                if path not in planned
            ]
        except UserError as error:
            return [*notes, error.message]
        if new:
            amount = quantity(len(new), "file is", "files are")
            notes.append(
                f"{amount} new since the plan and not part of this run, which cannot grow: "
                f"{', '.join(shorten(new, 3))}"
            )
    return notes


def check_same_manifest(plan: Plan, manifest: Manifest) -> None:
    """Raise UserError if the manifest of a started run was changed."""
    keys = diff(plan.manifest, freeze_manifest(manifest, plan.models))
    if keys:
        raise UserError(
            f"this run was started with another manifest; these keys differ: {', '.join(keys)}",
            hint="restore these keys, or start a new run: --run DIR (or another name)",
        )


def _digest(data: dict[str, Any]) -> str:
    canonical = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(canonical).hexdigest()[:32]
