"""Refines files and folders of a person: finds the texts, and makes a manifest for a launch."""

import glob
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any

import yaml

from proxhpc.account.quantity import quantity
from proxhpc.corpus.inputs import KNOWN_SUFFIXES, SUFFIXES, InputInfo, describe_input, read_head
from proxhpc.corpus.probe import find_misread, guess_fields
from proxhpc.corpus.records import Fields
from proxhpc.corpus.signatures import name_content
from proxhpc.errors import UserError
from proxhpc.extras import how_to_install, is_installed
from proxhpc.launch.launch import Run, plan_run, this_machine
from proxhpc.preview import RefinerChoice, make_manifest
from proxhpc.run.listing import match_files
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import BYTES_PER_TOKEN, Plan, freeze_manifest
from proxhpc.spec.manifest import diff
from proxhpc.spec.sections import EMBEDDED, Corpus
from proxhpc.spec.site import Site

_SHOWN = 8  # names in a line, and lines about files that are left out
_HEAD = 4096  # bytes of a text file that are looked at
_MAX_ORDERED = 5  # text fields of which every order is tried
_SHARDS_PER_WORKER = 4
_MAX_RECORD_BYTES: int = Corpus.model_fields["max_record_bytes"].default
_MIN_SHARD, _MAX_SHARD = 50_000, 20_000_000  # tokens


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file to refine: `text` is the field with the text, "" in a text file; `names` are all."""

    info: InputInfo
    root: Path
    text: str = ""
    names: frozenset[str] = frozenset()

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return os.path.relpath(self.info.path, self.root.parent)

    @property
    def suffix(self) -> str:
        """The end of its name that tells its format."""
        return _suffix(self.info.path.name)

    def is_read_right(self, fields: Sequence[str]) -> bool:
        """Return whether the first of these fields that it has is the one with the text."""
        return not self.text or self.text == next((f for f in fields if f in self.names), "")


@dataclass(slots=True)
class FoundFiles:
    """The files to refine, and a line about each file that is left out."""

    files: list[FoundFile] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    _incomplete: set[tuple[Path, str]] = field(default_factory=set)  # where a file is left out

    def add(self, path: Path, named: Sequence[str], max_record_bytes: int) -> None:
        """Add a file, or those in a folder. `named` are the fields that the person names."""
        root = path.absolute()
        if not root.exists():
            raise UserError(f"no such file or folder: {path}")
        matches = match_files(glob.escape(str(root)) + ("/**" if root.is_dir() else ""))
        for name, why in sorted({**matches.left_out, **matches.unreadable}.items()):
            self._leave_out(Path(name), root, why)
        for file in map(Path, sorted(matches.files)):
            found = _look_at(file, root, named, max_record_bytes)
            if isinstance(found, FoundFile):
                self.files.append(found)
            else:
                self._leave_out(file, root, found)

    def _leave_out(self, path: Path, root: Path, reason: str) -> None:
        self.left_out.append(f"{os.path.relpath(path, root.parent)}: {reason}")
        self._incomplete.add((root, _suffix(path.name)))
        if path.is_dir():  # a pattern would stop at it
            self._incomplete.update((root, suffix) for suffix in SUFFIXES)

    def order_fields(self) -> list[str]:
        """Return the text fields, so that the first one that a record has is the right one.

        Files that are read right in no order with the others are left out.
        """
        names = [*dict.fromkeys(file.text for file in self.files if file.text)]
        orders = permutations(names) if len(names) <= _MAX_ORDERED else [tuple(names)]
        best = max(orders, key=lambda order: sum(f.is_read_right(order) for f in self.files))
        for file in [file for file in self.files if not file.is_read_right(best)]:
            self.files.remove(file)
            reason = f"its text is in {file.text!r}, but it has a field of other files' texts, too"
            self._leave_out(file.info.path, file.root, reason)
        return list(best)

    def patterns(self) -> list[str]:
        """Return glob patterns for exactly these files."""
        groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
        for file in self.files:
            groups[file.root, file.suffix].append(file.info.path)
        patterns = []
        for (root, suffix), paths in groups.items():
            if root.is_dir() and (root, suffix) not in self._incomplete:
                patterns.append(f"{glob.escape(str(root))}/**/*{suffix}")
            else:
                patterns += [glob.escape(str(path)) for path in paths]
        return patterns

    def describe(self) -> Iterator[str]:
        """Yield a line about the files, each text field, and each file that is left out."""
        kinds = Counter(file.suffix for file in self.files)
        amounts = ", ".join(f"{number:,} {suffix}" for suffix, number in sorted(kinds.items()))
        yield f"{quantity(len(self.files), 'file')}: {amounts}"
        for name in dict.fromkeys(file.text for file in self.files if file.text):
            files = [file.shown for file in self.files if file.text == name]
            more = f" and {len(files) - _SHOWN:,} more" if len(files) > _SHOWN else ""
            yield f'text: field "{name}" of {", ".join(files[:_SHOWN])}{more}'
        yield from self.describe_left_out()

    def describe_left_out(self) -> Iterator[str]:
        """Yield a line about each file that is left out."""
        yield from (f"left out: {line}" for line in self.left_out[:_SHOWN])
        if len(self.left_out) > _SHOWN:
            yield f"left out: {quantity(len(self.left_out) - _SHOWN, 'more file')}"


def complete_choice(choice: RefinerChoice) -> tuple[dict[str, Any], str]:
    """Return keys of a manifest, and a line about the models; by default the embedded one."""
    if choice.manifest:
        data = choice.open().model_dump(mode="json", exclude_unset=True)
        return data, f"stages and policy: those of {choice.manifest}"
    missing = [package for package in ("torch", "transformers") if not is_installed(package)]
    if not (choice.model or choice.doc_model or missing) and choice.engine != "rules":
        choice = replace(choice, model=EMBEDDED)
    data = choice.sections()
    if names := list(dict.fromkeys(filter(None, (choice.doc_model, choice.model)))):
        return data, f"model: {' and '.join(names)}, engine {data['engine']['name']}"
    # The doc stage of the rules is for web pages: it drops short texts, lists and tables.
    data["stages"] = data["stages"][1:]
    why = f": {' and '.join(missing)} not installed; {how_to_install('transformers')}"
    return data, "model: none, the rules" + ("" if choice.engine == "rules" else why)


def plan_folder(
    paths: Sequence[Path], out: Path, text: str, choice: RefinerChoice
) -> tuple[Run, list[str]]:
    """Plan a run in `out` over files and folders; return it with lines about what it does.

    UserError if no file can be refined, or `out` is in one of the folders.
    """
    run, site = RunDir(out.absolute()), this_machine()
    for path in paths:
        if path.is_dir() and run.root.resolve().is_relative_to(path.resolve()):
            raise UserError(
                f"--out {out} is in {path}, where nothing is written",
                hint="choose a directory outside of it",
            )
    data, about_models = complete_choice(choice)
    given = data.get("corpus", {})  # of a manifest
    limit = given.get("max_record_bytes", _MAX_RECORD_BYTES)
    found = FoundFiles()
    for path in paths:
        found.add(path, [text] if text else given.get("text", []), limit)
    fields = found.order_fields()
    if not found.files:
        raise UserError(
            "\n".join(
                [
                    f"no file that can be refined in {', '.join(map(str, paths))}",
                    *found.describe_left_out(),
                ]
            ),
            hint=f"known suffixes are {KNOWN_SUFFIXES}; --field NAME names the field with the text",
        )
    tokens = sum(file.info.estimated_bytes for file in found.files) // BYTES_PER_TOKEN
    shard = max(_MIN_SHARD, min(_MAX_SHARD, tokens // (_SHARDS_PER_WORKER * site.workers)))
    # Of equal size: a small one at the end would leave a worker without work.
    shard = max(_MIN_SHARD, -(-tokens // max(1, tokens // shard)))
    corpus = {"paths": found.patterns(), "text": fields or ["text"], "max_record_bytes": limit}
    if "id" in given or any("id" in file.names for file in found.files):
        corpus["id"] = given.get("id", "id")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", run.root.name).strip("-._")[:64] or "folder"
    data = {"sharding": {"tokens": shard}, "commit": {"seconds": 5.0}} | data
    data |= {"name": name, "run_dir": str(run.root), "corpus": corpus}
    data.pop("site", None)
    return _plan(data, run, site), [*found.describe(), about_models]


def _plan(data: dict[str, Any], run: RunDir, site: Site) -> Run:
    manifest = make_manifest(data)
    if run.plan.exists():
        plan = Plan.load(run)
        if keys := diff(plan.manifest, freeze_manifest(manifest, plan.models)):
            raise UserError(
                f"{run.root} has a run over other files or with other options: {', '.join(keys)}",
                hint=f"`proxhpc launch {run.root}` resumes it; or choose another --out",
            )
    text = "# Written by `proxhpc refine`. `proxhpc launch` with its directory resumes the run.\n"
    text += yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return plan_run(manifest, text.encode(), run, site)


def _look_at(
    path: Path, root: Path, named: Sequence[str], max_record_bytes: int
) -> FoundFile | str:
    """Return a file with its text field; why it is left out if it cannot be refined."""
    if not _suffix(path.name):
        suffix = path.suffix.lower()
        mend = ": unpack it" if suffix in (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar") else ""
        if suffix in (".html", ".htm", ".pdf", ".docx", ".epub"):
            mend = ": extract its text first"
        return f"not a known kind of file{mend}"
    info = describe_input(path)
    if info.format == "text":
        with path.open("rb") as file:
            is_text = b"\0" not in file.read(_HEAD)
        return FoundFile(info, root) if is_text else "binary, not text"
    if not info.size:
        return FoundFile(info, root)
    guess = guess_fields(info, max_record_bytes)
    first = named[0] if named else guess.text
    wanted = next((name for name in named if name in guess.names), first)
    if not guess.names:
        return name_content(read_head(path)) or "no record can be read"
    for _, bad in find_misread([info], Fields((wanted or "text",)), max_record_bytes):
        return bad.detail or bad.reason
    return FoundFile(info, root, wanted, guess.names)


def _suffix(name: str) -> str:
    """Return the known end of a file's name, as it is spelled there, or ""."""
    length = max((len(suffix) for suffix in SUFFIXES if name.lower().endswith(suffix)), default=0)
    return name[len(name) - length :]
