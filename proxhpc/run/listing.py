"""Lists the files of a corpus: those that its patterns match, and what cannot be read or listed."""

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NoReturn

from proxhpc.account.quantity import quantity, shorten
from proxhpc.corpus.inputs import InputInfo
from proxhpc.corpus.probe import Probe, probe_inputs
from proxhpc.corpus.records import Fields
from proxhpc.errors import UserError
from proxhpc.run.remote import RemoteFile, RemoteListing
from proxhpc.run.staging import Staging
from proxhpc.spec.load import is_url
from proxhpc.spec.sections import Corpus
from proxhpc.spec.yaml_lines import Key, dotted, quoted

_MAX_PATH = 400  # characters of a path in a message
_IRREGULAR = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(slots=True)
class Matches:
    """What a pattern matches.

    `files` have their device and inode. `unreadable` are files and folders with the reason, and
    `left_out` other matches with their kind.
    """

    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, path: str) -> None:
        """Add a path by what it is."""
        try:
            status = os.stat(path)
        except FileNotFoundError:
            if os.path.islink(path):
                self.add_broken_link(path)
        except OSError as error:
            self.unreadable[path] = error.strerror or str(error)
        else:
            if stat.S_ISREG(status.st_mode):
                self.files[path] = (status.st_dev, status.st_ino)
            else:
                self.left_out[path] = _IRREGULAR.get(stat.S_IFMT(status.st_mode), "not a file")

    def add_broken_link(self, path: str) -> None:
        """Add a link, unless what it links to exists."""
        if not os.path.exists(path):
            target = quoted(os.readlink(path), _MAX_PATH)
            self.unreadable[path] = f"a link to {target}, which does not exist"

    def inode_of(self, folder: str) -> frozenset[tuple[int, int]]:
        """Return device and inode of a folder; nothing if it does not exist."""
        try:
            status = os.stat(folder or "/")
        except OSError:
            return frozenset()  # list_folder names the problem
        return frozenset({(status.st_dev, status.st_ino)})

    def list_folder(self, folder: str) -> list["os.DirEntry[str]"]:
        """Return the entries of a folder; none if it is not one or cannot be listed."""
        try:
            with os.scandir(folder or "/") as entries:
                return list(entries)
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self.unreadable[folder] = f"the folder cannot be listed: {error.strerror}"
            return []


@dataclass(frozen=True, slots=True)
class Listing:
    """The files of a corpus, each with its name in the ids of documents without one, and notes.

    `remote` are those that are copies of files behind URLs.
    """

    files: list[tuple[Path, str]]
    notes: tuple[str, ...]
    remote: dict[Path, RemoteFile]


def match_files(pattern: str) -> Matches:
    """Return what an absolute pattern matches, by the rules of `glob`: `**` crosses folders.

    Unlike `glob`, nothing that cannot be read or listed is left out in silence, and a link to a
    folder above it is not followed.
    """
    matches = Matches()
    for path in _walk("", pattern.strip("/").split("/"), matches, frozenset()):
        matches.add(path)
    return matches


def find_inputs(corpus: Corpus, key: Key = ("corpus",), staging: Staging | None = None) -> Listing:
    """Return a corpus's files, sorted by pattern, then by path; each is listed once.

    Of several names of one file, the first is listed. Names are relative to the deepest folder that
    all patterns share, so they do not change when the corpus moves. UserError names every pattern
    that matches no file, what cannot be read, and files behind URLs that are not staged; `key` is
    the corpus's key in the manifest. Without `staging`, URLs are left out.
    """
    urls: dict[str, RemoteListing] = {}
    remote: dict[Path, RemoteFile] = {}
    if staging:
        urls = {url: staging.listing(url) for url in staging.urls}
        files = (file for listing in urls.values() for file in listing.files)
        remote = {staging.dir.copy(file.name): file for file in files}
        staging.require([*remote.values()])
    names: dict[tuple[int, int], str] = {}
    equal: dict[str, str] = {}
    left_out: dict[str, str] = {}
    problems, unreadable, folders = [], dict[str, str](), []
    for number, pattern in enumerate(corpus.paths):
        if staging and (listing := urls.get(pattern)):
            matches = Matches()
            for file in listing.files:
                matches.add(str(staging.dir.copy(file.name)))
            folders.append(str(staging.dir.copy(listing.folder)))
        elif is_url(pattern):
            continue
        else:
            matches = match_files(pattern)
            folders.append(_fixed_folder(pattern))
        unreadable |= matches.unreadable
        left_out |= matches.left_out
        if not matches.files and not matches.unreadable:
            pattern_key = dotted((*key, "paths", number))
            text = quoted(pattern, _MAX_PATH)
            why = _why_empty(pattern, matches)
            problems.append(f"{pattern_key}: no file matches {text}: {why}")
        for path, inode in sorted(matches.files.items()):
            first = names.setdefault(inode if inode[1] else (0, len(names)), path)
            if first != path:
                equal[path] = first
    problems += shorten([f"{path}: {why}" for path, why in sorted(unreadable.items())])
    if problems:
        hint = f"restore these, or leave them out of {dotted((*key, 'paths'))}"
        raise UserError("\n".join(problems), hint=hint if unreadable else "")
    for path in names.values():
        if re.search("[\ud800-\udfff]", path):
            raise UserError(
                f"{quoted(path, _MAX_PATH)}: the file's name is not UTF-8", hint="rename the file"
            )
    root = os.path.commonpath(folders or ["/"])
    named = [(Path(path), os.path.relpath(path, root)) for path in names.values()]
    notes = (note for listing in urls.values() for note in listing.notes)
    return Listing(named, (*notes, *_notes(left_out, equal, root)), remote)


def check_inputs(inputs: tuple[InputInfo, ...], corpus: Corpus, key: Key) -> tuple[InputInfo, ...]:
    """Return the files with a note on each of which many of the first records are no documents.

    UserError if no record that was read is one, or if a file has records but none has a text.
    """
    fields = Fields(corpus.text, corpus.id)
    probes = [*probe_inputs(inputs, fields, corpus.max_record_bytes, corpus.zstd_window)]
    if misread := [probe for probe in probes if probe.misread]:
        _refuse(misread, all_files=len(misread) == len(probes), key=key)
    if not any(probe.documents for probe in probes):
        lines = [
            f"{probe.info.path}: {probe.note or probe.info.note or 'it has no record'}"
            for probe in probes
        ]
        lines = lines or [f"{info.path}: the file is empty" for info in inputs]
        hint = f"check {dotted((*key, 'paths'))} and {dotted((*key, 'format'))}"
        raise UserError("no record is a document: " + "\n  ".join(shorten(lines)), hint=hint)
    notes = {
        probe.info.path: "; ".join(filter(None, (probe.info.note, probe.note))) for probe in probes
    }
    return tuple(replace(info, note=notes.get(info.path, info.note)) for info in inputs)


def _refuse(misread: list[Probe], *, all_files: bool, key: Key) -> NoReturn:
    hint = f"set {dotted((*key, 'text'))} to the field with the text"
    hint += f" (and {dotted((*key, 'format'))}, if it is wrong)"
    if not all_files:
        hint = (
            f"other files have one: list the fields of all files in {dotted((*key, 'text'))}, as in"
        )
        hint += f" [text, content], or leave these out of {dotted((*key, 'paths'))}"
    lines = [
        f"{probe.info.path}, record at {bad.position}: {bad.reason}: "
        + quoted(bad.detail, 500)[1:-1]
        for probe in misread
        if (bad := probe.misread)
    ]
    raise UserError("no record has a text: " + "\n  ".join(shorten(lines, 3)), hint=hint)


def _walk(
    folder: str, parts: list[str], matches: Matches, above: frozenset[tuple[int, int]]
) -> Iterator[str]:
    """Yield the paths in `folder` that match the parts; some may not exist."""
    part, rest = parts[0], parts[1:]
    if part != "**" and glob.escape(_unescaped(part)) == part:
        path = f"{folder}/{_unescaped(part)}"
        if rest:
            yield from _walk(path, rest, matches, above)
        elif os.path.lexists(path):
            yield path
        return
    if part == "**":
        above = above or matches.inode_of(folder)
        if rest:
            yield from _walk(folder, rest, matches, above)
    for entry in matches.list_folder(folder):
        path = f"{folder}/{entry.name}"
        hidden = entry.name.startswith(".")
        if part == "**":
            inode = _folder_inode(entry, matches) if not hidden else None
            if inode is None and not (hidden or rest):
                yield path
            elif inode is None and not hidden and entry.is_symlink() and "." not in entry.name:
                matches.add_broken_link(path)  # a name without a suffix: it may be of a folder
            elif inode in above:
                matches.left_out[path] = "a link to a folder above it"
            elif inode is not None:
                yield from _walk(path, parts, matches, above | {inode})
        elif fnmatchcase(entry.name, part) and (not hidden or part.startswith(".")):
            if not rest:
                yield path
            elif _folder_inode(entry, matches) is not None:
                yield from _walk(path, rest, matches, above)
            elif entry.is_symlink():
                matches.add_broken_link(path)


def _folder_inode(entry: "os.DirEntry[str]", matches: Matches) -> tuple[int, int] | None:
    """Return device and inode of a folder, also behind a link; None if it is not a folder."""
    try:
        if entry.is_dir():
            status = entry.stat()
            return status.st_dev, status.st_ino
    except OSError as error:
        matches.unreadable[entry.path] = error.strerror or str(error)
    return None


def _notes(left_out: dict[str, str], equal: dict[str, str], root: str) -> Iterator[str]:
    kinds = Counter(left_out.values())
    for kind, number in kinds.items():
        paths = [os.path.relpath(path, root) for path in sorted(left_out) if left_out[path] == kind]
        matches = quantity(number, "match is", "matches are")
        yield f"{matches} {kind} and left out: {', '.join(shorten(paths, 3))}"
    if equal:
        path, first = next(iter(sorted(equal.items())))
        yield (
            f"{quantity(len(equal), 'match is', 'matches are')} another name of a file that is "
            f"read already: {os.path.relpath(path, root)} is {os.path.relpath(first, root)}"
        )


def _fixed_folder(pattern: str) -> str:
    """Return the folder before a pattern's first wildcard."""
    parts = pattern.rstrip("/").split("/")
    wildcards = (n for n, part in enumerate(parts) if glob.escape(_unescaped(part)) != part)
    return _unescaped("/".join(parts[: next(wildcards, len(parts) - 1)])) or "/"


def _unescaped(pattern: str) -> str:
    return re.sub(r"\[([*?[])\]", r"\1", pattern)


def _why_empty(pattern: str, matches: Matches) -> str:
    folder = Path(_fixed_folder(pattern))
    if os.path.isdir(_unescaped(pattern)):
        return "it is a folder; name the files, as in FOLDER/**/*.jsonl.zst"
    if matches.left_out:
        path, kind = next(iter(matches.left_out.items()))
        more = f", as are {len(matches.left_out) - 1} more" if len(matches.left_out) > 1 else ""
        return f"{quoted(path, _MAX_PATH)} is {kind}{more}"
    if os.path.lexists(pattern):
        return "a file has this very name; write [[] for [, as in a[[]1].jsonl"
    if re.search(r"\{[^{}]*,[^{}]*\}", pattern):
        return "braces have no meaning here; write a list of patterns"
    if folder.is_dir():
        return f"the folder {quoted(str(folder), _MAX_PATH)} has none"
    existing = next((p for p in folder.parents if p.is_dir()), Path("/"))
    return f"the folder does not exist; {quoted(str(existing), _MAX_PATH)} does"
