"""Files that are whole or absent: publish by link, replace atomically, append one line.

Only exclusive create, link and rename within one directory are trusted: they hold on NFS and
Lustre too, where locks may not.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from proxhpc.errors import RetryError, UserError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of its block into an error that names `path`.

    FileExistsError passes: an exclusive create which came second is an answer. RetryError where
    the disk or quota is full or the file system fails, UserError where writing is not allowed.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _explain(path, error) from error


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, going on after short writes. Raises OSError."""
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        if done == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[done:], offset + done


def sync_directory(directory: Path) -> None:
    """Make names created or removed in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems refuse to sync a directory; there the server keeps names.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def temporary(path: Path) -> Path:
    """Return a hidden name beside `path` that no other process on any node will choose."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def publish(tmp: Path, final: Path) -> bool:
    """Give the finished file `tmp` its final name; True if we were first, False if it existed.

    `tmp` keeps its own name too. A link that NFS carried out but reported as failed (its reply
    was lost and the request repeated) counts as ours.
    """
    with writing(final):
        try:
            os.link(tmp, final)
        except FileExistsError:
            try:
                ours = os.path.samefile(tmp, final)
            except FileNotFoundError:
                return False  # whoever was first has already taken it away again
            if not ours:
                return False
        except OSError as error:
            if error.errno in _NO_LINKS and tmp.exists():
                raise UserError(
                    f"{final.parent}: no hard link can be made there: {error.strerror}",
                    hint="put the run directory on a file system with hard links "
                    "(NFS, Lustre, GPFS, ext4, xfs), where you may write",
                ) from error
            raise
        sync_directory(final.parent)
    return True


def create(path: Path, data: bytes) -> bool:
    """Make `path` hold `data`, durably and whole; False if it exists, which leaves it alone.

    By link: an exclusive open has no content at first, and is broken on old NFS (open(2)).
    """
    tmp = temporary(path)
    write_atomic(tmp, data)
    try:
        return publish(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace `path` by `data`; a reader sees the old file or the new one, never a part."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a draft beside `path`, opened for writing, that replaces `path` durably at the end.

    If the block raises, the draft is removed and `path` stays as it was. Errors as in `writing`.
    """
    draft = temporary(path)
    with writing(path):
        try:
            with draft.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
        except BaseException:
            draft.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, line: bytes, *, fsync: bool = False) -> None:
    r"""Append `line` and one b"\n" with a single write. One process at a time writes a file.

    What a full disk or a dead writer left of a line never swallows the next one.
    """
    data = line.removesuffix(b"\n") + b"\n"
    with writing(path):
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            size = os.fstat(fd).st_size
            if size and os.pread(fd, 1, size - 1) != b"\n":
                data = b"\n" + data
            if os.write(fd, data) < len(data):
                os.ftruncate(fd, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if fsync:
                os.fsync(fd)
        finally:
            os.close(fd)


def _explain(path: Path, error: OSError) -> RetryError | UserError:
    if error.errno in _FULL:
        return RetryError(
            f"disk full: cannot write {path.name} in {path.parent} ({error.strerror})",
            hint="free space or raise the quota there (df, lfs quota), then launch again: "
            "the run goes on where it stopped",
        )
    if error.errno in _REFUSED:
        return UserError(
            f"no permission to write {path}: {error.strerror}",
            hint="choose a directory that you may write to, or change its permissions",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return UserError(f"cannot write {path}: there is no directory {path.parent}")
    if error.errno == errno.ENOTDIR:
        return UserError(
            f"cannot write {path}: it is a file, no directory", hint="name another place"
        )
    return RetryError(f"cannot write {path}: {error.strerror or error}")
