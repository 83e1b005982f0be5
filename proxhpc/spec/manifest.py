"""The manifest: what a run does, read from YAML."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import Field, ValidationInfo, field_validator

from proxhpc.program.policy import AnyPolicy, NamedPolicy, Policy
from proxhpc.program.replay import ProgramFormat
from proxhpc.spec.load import Config, Seed, Slug, Text, absolute, load_yaml
from proxhpc.spec.prove import Prove
from proxhpc.spec.sections import (
    Commit,
    Comparison,
    Corpus,
    Dedup,
    EngineOptions,
    Output,
    Sharding,
    Stage,
)
from proxhpc.spec.shipped import find_file
from proxhpc.spec.yaml_lines import Key, dotted, quoted

# Where a run writes, where it works, when it gives up and what its corpus is compared with do not
# change what it computes.
_NOT_COMPUTED: dict[str, Any] = {
    "run_dir": True,
    "site": True,
    "corpus": {"staging"},
    "dedup": {"against": {"__all__": {"staging"}}},
    "engine": {"max_unusable"},
    "prove": True,
}

_OF_PUBLIC_CODE = {
    "dialect": "prox",
    "numbering": "document",
    "blank_lines": "numbered",
    "window_overlap": 0,
    "grammar": "none",
}


class Manifest(Config):
    """What a run does."""

    name: Slug
    """Name of the run: letters, digits, `.`, `_` and `-`."""
    run_dir: Path = Field(default=Path("runs/{name}"), validate_default=True)
    """Run directory, relative to the manifest, on a file system that all nodes share. `{name}` is
    replaced by the name."""
    corpus: Corpus
    stages: tuple[Stage, ...] = Field(min_length=1, max_length=2)
    """A doc stage, a chunk stage, or both in this order."""
    engine: EngineOptions
    policy: AnyPolicy = Policy.model_validate({})
    """Limits under which programs are executed. `reference`: those of the public ProX code, for
    replication. `none`: no program is executed, so the corpus is the raw one without duplicates."""
    sharding: Sharding = Sharding()
    commit: Commit = Commit()
    dedup: Dedup = Dedup()
    output: Output = Output()
    comparison: Comparison | None = None
    prove: Prove | None = None
    site: Text | None = None
    """Site to run on: a file, relative to the manifest, or a [site's name](#site). `--site`
    overrides it."""
    seed: Seed = 0
    """Random seed."""

    @field_validator("run_dir")
    @classmethod
    def _named(cls, run_dir: Path, info: ValidationInfo) -> Path:
        text = str(run_dir).replace("{name}", info.data.get("name", "{name}"))
        return Path(absolute(text, info))

    @field_validator("policy", mode="before")
    @classmethod
    def _keys_or_reference(cls, policy: Any) -> Any:
        names = get_args(NamedPolicy)
        if isinstance(policy, dict | Policy) or policy in names:
            return policy
        choices = " or ".join(f'"{name}"' for name in names)
        raise ValueError(f"must be a mapping of keys or {choices}, not {quoted(policy)}")

    @field_validator("site")
    @classmethod
    def _file_or_name(cls, site: str | None, info: ValidationInfo) -> str | None:
        if site is None or not ("/" in site or site.endswith((".yaml", ".yml"))):
            return site
        return absolute(site, info)

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from (*self._models(), *self._lengths(), *self._decoding())
        levels = [stage.level for stage in self.stages]
        if len(levels) == 2 and levels != ["doc", "chunk"]:
            yield (
                ("stages", 1, "level"),
                f"a {levels[1]} stage cannot follow a {levels[0]} stage "
                "(possible: doc, chunk, or doc then chunk)",
            )

    def _models(self) -> Iterator[tuple[Key, str]]:
        for n, stage in enumerate(self.stages):
            if stage.model is None and self.engine.name != "rules":
                yield ("stages", n, "model"), f"required with engine.name: {self.engine.name}"
            if stage.engine is not None and self.engine.name == "rules":
                yield ("stages", n, "engine"), "not with engine.name: rules"

    def _lengths(self) -> Iterator[tuple[Key, str]]:
        for n, stage in enumerate(self.stages):
            limit = self.engine_of(stage).max_model_len
            by_tokens = stage.level == "chunk" and stage.window_chars is None
            window = stage.window_tokens if by_tokens else 0
            if limit is not None and window + stage.max_new_tokens >= limit:
                key = "window_tokens" if window else "max_new_tokens"
                need = f"{window} + {stage.max_new_tokens}" if window else stage.max_new_tokens
                yield (
                    ("stages", n, key),
                    f"{need} tokens leave no room for a prompt in engine.max_model_len: {limit}",
                )

    def _decoding(self) -> Iterator[tuple[Key, str]]:
        for n, stage in enumerate(self.stages):
            if stage.prompt == "walk":
                if self.policy == "reference":
                    yield ("stages", n, "prompt"), "walk is not for policy: reference"
                if "speculative_config" in self.engine_of(stage).options:
                    yield ("engine", "options", "speculative_config"), "not with prompt: walk"
            elif stage.grammar != "none" and self.engine.name != "vllm":
                yield ("stages", n, "grammar"), "only with engine.name: vllm"
            elif self.policy == "reference":
                for key, value in _OF_PUBLIC_CODE.items():
                    if getattr(stage, key) != value:
                        yield ("stages", n, key), f"must be {value} with policy: reference"

    def engine_of(self, stage: Stage) -> EngineOptions:
        """Return the engine options of a stage."""
        if (own := stage.engine) is None:
            return self.engine
        keys = {key: getattr(own, key) for key in ("dtype", "max_model_len")}
        changes = {key: value for key, value in keys.items() if value is not None}
        options = {**self.engine.options, **own.options}
        return self.engine.model_copy(update=changes | {"options": options})

    @property
    def program_format(self) -> ProgramFormat:
        """Dialect and line numbering of this run's chunk programs."""
        for stage in self.stages:
            if stage.level == "chunk":
                return ProgramFormat(stage.dialect, stage.numbering, stage.blank_lines)
        return ProgramFormat()

    def computed(self) -> dict[str, Any]:
        """Return everything that determines what the run computes, as JSON data."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude=_NOT_COMPUTED)
        return data


def load_manifest(path: Path, environ: Mapping[str, str] | None = None) -> Manifest:
    """Return the manifest in a YAML file or of a name, with absolute paths and `${VAR}` expanded.

    UserError lists every problem with file, line and key.
    """
    return load_yaml(find_file("manifest", path, environ), Manifest, environ=environ)


def diff(a: Manifest, b: Manifest) -> list[str]:
    """Return the keys in which two manifests differ; none if they compute the same."""
    return [dotted(key) for key in _differing(a.computed(), b.computed(), ())]


def _differing(a: Any, b: Any, key: Key) -> Iterator[Key]:
    if isinstance(a, dict) and isinstance(b, dict):
        for name in dict.fromkeys((*a, *b)):
            if name in a and name in b:
                yield from _differing(a[name], b[name], (*key, name))
            else:
                yield (*key, name)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for n, (left, right) in enumerate(zip(a, b, strict=True)):
            yield from _differing(left, right, (*key, n))
    elif type(a) is not type(b) or a != b:
        yield key
