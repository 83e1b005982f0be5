"""The manifest: what a run does, as one frozen model of a YAML file."""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from proxhpc.errors import UserError
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.replay import Style
from proxhpc.spec.load import Config, Slug, Text, Whole, absolute, base_of, load_yaml, refuse
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
from proxhpc.spec.yaml_lines import Key, dotted, quoted

__all__ = [
    "Commit",
    "Comparison",
    "Corpus",
    "Dedup",
    "EngineOptions",
    "Manifest",
    "Output",
    "Sharding",
    "Stage",
    "diff",
    "find_inputs",
    "load_manifest",
]

# Where a run writes and on what it runs are no part of what it computes.
NOT_COMPUTED = frozenset({"run_dir", "site"})

_PATH = 400  # characters of a path that a message shows


class Manifest(Config):
    """What a run does."""

    name: Slug = Field(description="Name of the run: letters, digits, `.`, `_`, `-`.")
    run_dir: Path = Field(
        default=Path("runs/{name}"),
        validate_default=True,
        description="Directory of the run, on a file system that all nodes share; `{name}` is "
        "filled in. Relative to the manifest.",
    )
    corpus: Corpus
    stages: tuple[Stage, ...] = Field(
        min_length=1, max_length=2, description="One doc stage, one chunk stage, or doc then chunk."
    )
    engine: EngineOptions
    policy: AnyPolicy = Field(
        default=Policy.model_validate({}),
        description="Which programs are run and how far they may go.",
    )
    sharding: Sharding = Sharding()
    commit: Commit = Commit()
    dedup: Dedup = Dedup()
    output: Output = Output()
    comparison: Comparison | None = None
    site: Text | None = Field(
        default=None,
        description="Site to run on: a file, relative to the manifest, or a name (see sites). "
        "`--site` overrides it.",
    )
    seed: Whole = Field(default=0, description="Seed of everything random.")

    @field_validator("run_dir")
    @classmethod
    def _named(cls, run_dir: Path, info: ValidationInfo) -> Path:
        text = str(run_dir).replace("{name}", info.data.get("name", "{name}"))
        return Path(absolute(text, base_of(info)))

    @field_validator("policy", mode="before")
    @classmethod
    def _keys_or_reference(cls, policy: Any) -> Any:
        if isinstance(policy, dict | Policy) or policy == "reference":
            return policy
        raise ValueError(f'must be a mapping of keys or "reference", not {quoted(policy)}')

    @field_validator("site")
    @classmethod
    def _file_or_name(cls, site: str | None, info: ValidationInfo) -> str | None:
        if site is None or not ("/" in site or site.endswith((".yaml", ".yml"))):
            return site
        return absolute(site, base_of(info))

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse((*self._order(), *self._models(), *self._lengths(), *self._vllm_keys()))
        return self

    def _order(self) -> Iterator[tuple[Key, str]]:
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

    def _lengths(self) -> Iterator[tuple[Key, str]]:
        limit = self.engine.max_model_len
        for n, stage in enumerate(self.stages):
            window = stage.window_tokens if stage.level == "chunk" else 0
            if limit is not None and window + stage.max_new_tokens >= limit:
                key = "window_tokens" if window else "max_new_tokens"
                need = f"{window} + {stage.max_new_tokens}" if window else stage.max_new_tokens
                yield (
                    ("stages", n, key),
                    f"{need} tokens leave no room for a prompt in engine.max_model_len: {limit}",
                )

    def _vllm_keys(self) -> Iterator[tuple[Key, str]]:
        shares = [stage.gpu_memory_utilization for stage in self.stages]
        models = {stage.model for stage in self.stages}
        for n, stage in enumerate(self.stages):
            if stage.prompt == "walk":
                yield from self._walk(n)
            elif stage.grammar != "none" and self.engine.name != "vllm":
                yield ("stages", n, "grammar"), "only with engine.name: vllm"
            elif stage.grammar != "none" and self.policy == "reference":
                yield ("stages", n, "grammar"), "not with policy: reference, which reads otherwise"
            if shares[n] is None:
                continue
            key: Key = ("stages", n, "gpu_memory_utilization")
            if self.engine.name != "vllm":
                yield key, "only with engine.name: vllm"
            elif len(models) == 1:
                yield key, "there is one model only: use engine.gpu_memory_utilization"
            elif None in shares:
                yield key, "give it to both stages or to none"
            elif n == 1 and sum(share or 0 for share in shares) > 1:
                yield key, "both stages together take more than the device"

    def _walk(self, n: int) -> Iterator[tuple[Key, str]]:
        if self.policy == "reference":
            yield (
                ("stages", n, "prompt"),
                "walk is not for policy: reference, which reads otherwise",
            )
        if self.engine.ngram_tokens:
            yield ("engine", "ngram_tokens"), "not with prompt: walk, which quotes nothing"

    @property
    def chunk_style(self) -> Style:
        """How this run's chunk programs are read: dialect and line numbering."""
        for stage in self.stages:
            if stage.level == "chunk":
                return Style(stage.dialect, stage.numbering)
        return Style()

    def computed(self) -> dict[str, Any]:
        """Return, as plain JSON data, everything that decides what the run computes."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude=set(NOT_COMPUTED))
        return data

    def digest(self) -> str:
        """Return the SHA-256, in hex, of what the run computes; `run_dir` and `site` are none."""
        text = json.dumps(self.computed(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()


def load_manifest(path: str | Path, environ: Mapping[str, str] | None = None) -> Manifest:
    """Return the manifest in a YAML file, paths absolute and `${VAR}` expanded.

    UserError lists every problem with file, line and key.
    """
    path = Path(path)
    return load_yaml(path, Manifest, environ=environ, context={"base": path.absolute().parent})


def diff(a: Manifest, b: Manifest) -> list[str]:
    """Return the keys in which two manifests differ; empty if and only if the digests agree."""
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


def find_inputs(corpus: Corpus, key: Key = ("corpus",)) -> list[tuple[Path, str]]:
    """Return a corpus's files, each with the name that documents without an id are called by.

    The order is the patterns', and by name within one; a file counts once. Names are relative to
    the deepest folder that all patterns share, so they do not change when the corpus moves.
    UserError names every pattern without a file, `key` being where the manifest has the corpus.
    """
    patterns = corpus.paths
    root = os.path.commonpath([_fixed_folder(pattern) for pattern in patterns])
    found: dict[str, str] = {}
    empty = []
    for number, pattern in enumerate(patterns):
        paths = sorted(p for p in glob.iglob(pattern, recursive=True) if os.path.isfile(p))
        if not paths:
            where = dotted((*key, "paths", number))
            empty.append(
                f"{where}: no file matches {quoted(pattern, _PATH)}: {_why_empty(pattern)}"
            )
        found |= {path: os.path.relpath(path, root) for path in paths}
    if empty:
        raise UserError("\n".join(empty))
    for path in found:
        if not _is_utf8(path):
            raise UserError(
                f"{quoted(path, _PATH)}: the file's name is not UTF-8", hint="rename the file"
            )
    return [(Path(path), name) for path, name in found.items()]


def _fixed_folder(pattern: str) -> str:
    """Return the folder in front of a pattern's first wildcard."""
    parts = pattern.split("/")
    names = map(_unescaped, parts)
    wild = (
        n for n, (p, name) in enumerate(zip(parts, names, strict=True)) if glob.escape(name) != p
    )
    return _unescaped("/".join(parts[: next(wild, len(parts) - 1)])) or "/"


def _unescaped(pattern: str) -> str:
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def _why_empty(pattern: str) -> str:
    folder = Path(_fixed_folder(pattern))
    if os.path.isdir(_unescaped(pattern)):
        return "it is a folder; name the files, as in FOLDER/**/*.jsonl.zst"
    if folder.is_dir():
        return f"the folder {quoted(str(folder), _PATH)} has none"
    there = next((p for p in folder.parents if p.is_dir()), Path("/"))
    return f"the folder does not exist; the last one that does is {quoted(str(there), _PATH)}"


def _is_utf8(path: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in path)
