"""Files behind URLs: lists them through fsspec, and copies them to disk."""

import base64
import glob
import hashlib
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from proxhpc.account.quantity import quantity
from proxhpc.corpus.disk import sync_directory, write_all, writing
from proxhpc.errors import ProxError, RetryError, UserError
from proxhpc.extras import require_package

_PIECE = 16 << 20  # bytes of a request
_PAUSES = (1.0, 5.0, 20.0, 60.0)  # seconds before another try, after failures in a row
_MAX_NAME = 200  # bytes of a folder's or file's name; file systems allow 255
_THREADS = 16  # that ask for the sizes of files
_COPY_YOURSELF = "copy the files yourself, and name the folder"
_WITHOUT_PACKAGE = f"; or {_COPY_YOURSELF}"
_HTTP = ("http://", "https://")
# Servers label compressed files with these (Apache's AddEncoding); their bytes are the file's.
_CODINGS = {"gzip": ".gz", "x-gzip": ".gz", "zstd": ".zst", "x-bzip2": ".bz2", "x-xz": ".xz"}

# What stores call the version of a file: the first of these that they give.
_CHECKSUMS = {"blob_id": "git", "md5Hash": "md5"}
_DIGESTS: dict[str, Callable[[int], Any]] = {
    "sha256": lambda _: hashlib.sha256(),
    "md5": lambda _: hashlib.md5(usedforsecurity=False),
    "git": lambda size: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False),
}
_TAGS = ("ETag", "etag", "xet_hash")
_TIMES = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file behind a URL, which names a commit if its store has commits.

    `name` is its path below the folder of all copies. `version` begins with its kind: `sha256`,
    `git` and `md5` are checksums of the content; it is "" if the store has none. `size` is None if
    an HTTP server sends the file in chunks and does not say how many.
    """

    url: str
    name: str
    size: int | None
    version: str

    def __str__(self) -> str:
        return f"{self.url} ({', '.join(filter(None, (_amount(self.size), self.version)))})"


@dataclass(frozen=True, slots=True)
class RemoteListing:
    """The files that a URL matches, sorted by name.

    `folder` is the path of the URL before its first wildcard, below the folder of all copies.
    """

    files: tuple[RemoteFile, ...]
    folder: str
    notes: tuple[str, ...] = ()


def list_url(pattern: str) -> RemoteListing:
    """Return the files that a URL matches, by the rules of `fsspec`; hidden ones are left out.

    UserError if there is none, a name is unsafe, a server compresses it on the way or a package is
    missing, and RetryError if the store does not answer.
    """
    fs, path = _open_store(pattern)
    try:
        fs.invalidate_cache()
        pinned = named = ""
        if pattern.startswith("hf://"):
            path, pinned, named = _at_commit(fs, path)
        found = fs.glob(path, detail=True) if glob.has_magic(path) else {path: _info(fs, path)}
        with ThreadPoolExecutor(_THREADS) as pool:
            sized = pool.map(lambda key: _sized(fs, key, found[key]), found)
            infos = dict(zip(found, sized, strict=True))
    except ProxError:
        raise
    except Exception as error:  # every store has its own
        kind = UserError if _is_final(error) else RetryError
        raise kind(f"cannot list {pattern}: {_cause(error)}") from error

    def name_of(key: str) -> str:
        scheme, _, rest = fs.unstrip_protocol(key).partition("://")
        rest = rest.lstrip("/")
        host, slash, below = rest.partition("/")
        rest = host.replace(":", "%3A") + slash + below  # a colon divides mounts of a container
        return f"{scheme}/{rest.replace(pinned, named, 1) if pinned else rest}"

    files = []
    for key, info in infos.items():
        hidden = key.rpartition("/")[2].startswith(".") and "/." not in path
        if info["type"] == "file" and not hidden:
            url = fs.unstrip_protocol(key)
            files.append(RemoteFile(url, _checked(name_of(key)), info.get("size"), _version(info)))
    if not files:
        why = "it is a folder; name the files in it" if infos else "nothing there has such a name"
        raise UserError(f"no file matches {pattern}: {why}")
    notes = [f"{pattern} is read at commit {pinned.rpartition('@')[2]}"] if pinned else []
    if folders := sum(info["type"] != "file" for info in infos.values()):
        notes.append(f"{quantity(folders, 'match', 'matches')} of {pattern}: no files, left out")
    files.sort(key=lambda file: file.name)
    fixed = re.split(r"[*?[]", path)[0]
    return RemoteListing(tuple(files), os.path.dirname(name_of(fixed)), tuple(notes))


def _open_store(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path there."""
    require_package("fsspec", "remote", f"copying {url}", _WITHOUT_PACKAGE)
    import fsspec

    scheme = url.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            from aiohttp import ClientTimeout

            # A proxy is used if the environment names it. A large file takes more than the default.
            # What a server compresses on the way would have neither the size nor the bytes listed.
            client = {"trust_env": True, "headers": {"Accept-Encoding": "identity"}}
            client["timeout"] = ClientTimeout(total=None, sock_connect=30, sock_read=60)
            options = {"client_kwargs": client | {"auto_decompress": False}}
        fs, path = fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        raise UserError(f"{url}: {error}", hint=f"install it with pip{_WITHOUT_PACKAGE}") from error
    except ValueError as error:
        raise UserError(f"{url}: {_cause(error)}") from error
    return fs, path


def _at_commit(fs: Any, path: str) -> tuple[str, str, str]:
    """Return a path on the hub at the newest commit of its revision, and its repository.

    The repository is returned twice: as it is named at the commit, and in the path's own words.
    Nothing changes while it is read at a commit. A bucket has none, and "" is returned for both.
    """
    resolved = fs.resolve_path(path)
    if not hasattr(resolved, "revision"):
        return path, "", ""
    from huggingface_hub import HfApi

    repository = {"repo_type": resolved.repo_type, "revision": resolved.revision}
    commit = HfApi().repo_info(resolved.repo_id, **repository).sha
    root = resolved.root.partition("@")[0] + f"@{commit}"
    return f"{root}/{resolved.path_in_repo}", root, resolved.root


def _sized(fs: Any, path: str, info: dict[str, Any]) -> dict[str, Any]:
    """Return what a store says of a file; pages of links name no sizes."""
    return _info(fs, path) if info["type"] == "file" and info.get("size") is None else info


def _info(fs: Any, path: str) -> dict[str, Any]:
    """Return what a store says of a file. Errors as `_described`."""
    if not path.startswith(_HTTP):
        return dict(fs.info(path))
    from fsspec.asyn import sync

    return dict(sync(fs.loop, _ask, fs, path))


async def _ask(fs: Any, url: str) -> dict[str, Any]:
    """Return what an HTTP server says of a file; its content is not read."""
    from aiohttp import ClientError

    session = await fs.set_session()
    # Some servers do not know HEAD, or give the size only with content.
    with suppress(ClientError, TimeoutError):
        async with session.head(fs.encode_url(url), allow_redirects=True) as answer:
            if answer.ok and answer.content_length:
                return _described(answer, url)
    async with session.get(fs.encode_url(url), headers={"Range": "bytes=0-0"}) as answer:
        if answer.status != 416:  # an empty file has no first byte
            answer.raise_for_status()
        return _described(answer, url)


def _described(answer: Any, url: str) -> dict[str, Any]:
    """Return size and version of the whole file that an HTTP server sends, or sends a part of.

    UserError if the server compresses it on the way, or would not say where it ends.
    """
    headers = answer.headers
    total = headers.get("Content-Range", "").rpartition("/")[2]
    size = int(total) if total.isdecimal() else None
    if size is None and answer.status == 200:
        size = answer.content_length
    coding = headers.get("Content-Encoding", "").strip().lower() or "identity"
    if coding == "aws-chunked":  # a label of uploads to S3, of bytes as they are
        coding = "identity"
    labelled = size is not None and url.endswith(_CODINGS.get(coding, "\0"))
    if coding != "identity" and not labelled:
        raise UserError(
            f"{url}: the server compresses it on the way ({coding}), although asked not to",
            hint=_COPY_YOURSELF,
        )
    if size is None and headers.get("Transfer-Encoding") != "chunked":
        raise UserError(f"{url}: the server does not say where it ends", hint=_COPY_YOURSELF)
    # In ASCII, because headers may have bytes of any encoding.
    told = {key: ascii(headers[key])[1:-1] for key in ("ETag", "Last-Modified") if key in headers}
    return {"name": url, "type": "file", "size": size, **told}


def _amount(size: int | None) -> str:
    return "unknown size" if size is None else f"{size:,} bytes"


def _version(info: dict[str, Any]) -> str:
    if lfs := info.get("lfs"):
        return f"sha256:{lfs['sha256']}"
    for key, kind in _CHECKSUMS.items():
        if value := info.get(key):
            return f"{kind}:{base64.b64decode(value).hex() if kind == 'md5' else value}"
    # W/ marks a tag of equal contents, which some answers have and others of the same file lack.
    texts = (str(info[key]).removeprefix("W/").strip('"') for key in _TAGS if info.get(key))
    tags = (f"etag:{text}" for text in texts)
    times = (f"modified:{_time(info[key])}" for key in _TIMES if info.get(key))
    return next(tags, "") or next(times, "")


def _time(value: Any) -> str:
    """Return a time in seconds: a listing and a question after one file give it in two forms."""
    if isinstance(value, float):
        value = datetime.fromtimestamp(value, UTC)
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value)


def _checked(name: str) -> str:
    """Return the name of a copy. UserError if it could be outside its folder, or be no name."""
    for part in name.split("/"):
        encoded = part.encode(errors="replace")
        if part in ("", ".", "..") or not part.isprintable() or len(encoded) > _MAX_NAME:
            raise UserError(
                f"a file of the store cannot be copied under its name: {name!r:.400}",
                hint="rename it there, or leave it out of the pattern",
            )
    return name


def draft_of(file: RemoteFile, target: Path) -> Path:
    """Return where a copy is until it is complete; that of another version has another name."""
    key = hashlib.blake2b(f"{file.size} {file.version}".encode(), digest_size=8).hexdigest()
    return target.with_name(f".{target.name}.{key}.part")


def copy_file(
    file: RemoteFile,
    target: Path,
    advance: Callable[[int], None],
    stop: threading.Event,
    complete: Callable[[int], None],
) -> None:
    """Copy a file to `target`, which appears when all is there; `complete` is told its size before.

    Goes on where an earlier copy ended, and tries again after failures. `advance` is told the bytes
    copied, negative if they must be copied again. UserError or RetryError names the file if it
    cannot be read, or has not the size, version and checksum that were listed.
    """
    draft, failures, moved = draft_of(file, target), 0, 0

    def count(number: int) -> None:
        nonlocal moved
        moved += number
        advance(number)

    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    while True:
        try:
            fs, path = _open_store(file.url)
            _fetch(fs, path, file, draft, count, stop)
            _verify(fs, path, file, draft)
            break
        except ProxError:
            raise
        except Exception as error:  # every store has its own
            if _is_final(error):
                raise UserError(f"cannot copy {file.url}: {_cause(error)}") from error
            failures, moved = 0 if moved > 0 else failures, 0
            if failures == len(_PAUSES) or stop.wait(_PAUSES[failures]):
                times = f"{quantity(failures + 1, 'failure')} in a row, the last"
                raise RetryError(f"cannot copy {file.url}: {times} {_cause(error)}") from error
            failures += 1
    complete(draft.stat().st_size)
    with writing(target):
        os.replace(draft, target)
        sync_directory(target.parent)


def _fetch(
    fs: Any,
    path: str,
    file: RemoteFile,
    draft: Path,
    advance: Callable[[int], None],
    stop: threading.Event,
) -> None:
    """Append what a draft lacks. UserError if the server sends another version."""
    with writing(draft), draft.open("ab", buffering=0) as out:
        done = out.tell()
        if not file.version or file.size is None or done > file.size:
            out.truncate(0)
            advance(-done if file.size is None else -min(done, file.size))
            done = 0
        if done == file.size:  # an earlier process was killed before the copy got its name
            os.fsync(out.fileno())
            return
    with _open_at(fs, path, done) as source, draft.open("ab", buffering=0) as out:
        if path.startswith(_HTTP) and not _goes_on(source.r, file, draft, done):
            out.truncate(0)
            advance(-done)
            done = 0
        # A file that has become longer is read to one piece behind its end, and then refused.
        while (file.size is None or done <= file.size) and not stop.is_set():
            piece = source.read(_PIECE)
            if not piece:
                break
            with writing(draft):
                write_all(out.fileno(), piece, done)
            done += len(piece)
            advance(len(piece))
        if stop.is_set():
            raise InterruptedError("copying was stopped")
        if file.size is not None and done < file.size:
            raise EOFError(f"it ends at byte {done:,} of {file.size:,}")
        with writing(draft):
            os.fsync(out.fileno())


def _goes_on(answer: Any, file: RemoteFile, draft: Path, start: int) -> bool:
    """Return whether an answer begins at `start`, or else at the start of the file.

    Refuses another version, so that bytes of two are never joined.
    """
    info = _described(answer, file.url)
    version = _version(info)
    same_kind = version.partition(":")[0] == file.version.partition(":")[0]
    sizes = {info["size"], file.size} - {None}
    if (same_kind and version != file.version) or len(sizes) > 1:
        _refuse(file, draft, info)
    content_range = answer.headers.get("Content-Range", "")
    if answer.status == 206 and not content_range.startswith(f"bytes {start}-"):
        raise EOFError(f"asked for bytes from {start}, the server sent {content_range}")
    return bool(answer.status == 206)


def _open_at(fs: Any, path: str, start: int) -> Any:
    if path.startswith(_HTTP):  # one request for the whole rest
        headers = {"Range": f"bytes={start}-"} if start else {}
        return fs.open(path, "rb", block_size=0, size=1, headers=headers)  # 1: do not ask for it
    source = fs.open(path, "rb", block_size=_PIECE, cache_type="none")
    source.seek(start)
    return source


def _verify(fs: Any, path: str, file: RemoteFile, draft: Path) -> None:
    """Refuse a draft that is not the version that was listed."""
    kind, _, wanted = file.version.partition(":")
    if kind in _DIGESTS:
        size = draft.stat().st_size
        with draft.open("rb") as data:
            digest = _DIGESTS[kind](size)
            found = hashlib.file_digest(data, lambda: digest).hexdigest()
        if found != wanted:
            _refuse(file, draft, f"its {kind} is {found}, not {wanted}")
    if kind not in ("sha256", "git"):  # those of a commit do not change
        fs.invalidate_cache()
        info = _info(fs, path)
        sizes = {file.size, info.get("size"), draft.stat().st_size}
        if _version(info) != file.version or len(sizes - {None}) > 1:
            _refuse(file, draft, info)


def _refuse(file: RemoteFile, draft: Path, problem: str | dict[str, Any]) -> NoReturn:
    """Remove a draft and raise UserError; the problem may be what the store says now."""
    draft.unlink()
    if isinstance(problem, dict):
        problem = f"it changed meanwhile to {_amount(problem.get('size'))}, {_version(problem)}"
    raise UserError(f"the copy of {file} is refused: {problem}", hint="copy it again")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_final(error: Exception) -> bool:
    """Return whether trying again cannot help; some stores call what they cannot reach missing."""
    statuses = [getattr(each, "status", 0) for each in _chain(error)]
    final = isinstance(error, FileNotFoundError | PermissionError | NotADirectoryError | ValueError)
    final |= any(400 <= status < 500 and status not in (408, 425, 429) for status in statuses)
    return (
        final
        and not any(
            isinstance(each, ConnectionError | TimeoutError | socket.gaierror)
            for each in _chain(error)
        )
        and max(statuses) < 500
    )


def _cause(error: Exception) -> str:
    """Return the error at the bottom of a chain, in one line."""
    *_, cause = _chain(error)
    if isinstance(cause, FileNotFoundError):
        return "there is no such file"
    if status := getattr(cause, "status", 0):
        name, text = f"the server answers {status}", getattr(cause, "message", "")
    else:
        name, text = f"{type(cause).__name__}:", str(cause)
    return f"{name} {' '.join(text.split())[:300]}".strip().removesuffix(":")
