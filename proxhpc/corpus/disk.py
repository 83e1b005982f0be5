"""Durable, atomic file operations: publish by link, replace, append a line.

They rely only on exclusive create, link and rename within one directory, which are atomic on NFS
and Lustre too. Locks may not work there.
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
from proxhpc.faults import fault_point

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_PERMISSION = {errno.EACCES, errno.EPERM, errno.EROFS}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an error that names `path`.

    RetryError if the disk or quota is full or the file system fails, UserError if writing is not
    allowed. FileExistsError passes unchanged: after an exclusive create it is an answer.
    """
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        raise _explain(path, error) from error


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error of `writing` is that a disk or a quota is full."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK_FULL


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`, in several writes if needed. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        if written == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        view, offset = view[written:], offset + written


def free_space(path: Path) -> tuple[Path, int, int | None]:
    """Return the nearest folder of `path` that exists, and its free bytes and inodes.

    The inodes are None where the file system has no limit of them. Quotas are not known.
    """
    folder = next(each for each in (path, *path.parents) if each.is_dir())
    free = os.statvfs(folder)
    return folder, free.f_bavail * free.f_frsize, free.f_favail if free.f_files else None


def sync_directory(directory: Path) -> None:
    """Make created, renamed and removed names in `directory` durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot sync a directory; their servers make names durable.
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
    finally:
        os.close(fd)


def draft_path(path: Path) -> Path:
    """Return a random hidden name beside `path`, unique across processes and nodes."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def publish(draft: Path, final: Path) -> bool:
    """Link the finished file `draft` to `final`; False if another file has that name already.

    `draft` keeps its name too. NFS may make a link and still report an error, if its reply was
    lost and the request was repeated; such a link counts as made.
    """
    with writing(final):
        try:
            os.link(draft, final)
        except FileExistsError:
            try:
                if not os.path.samefile(draft, final):
                    return False
            except FileNotFoundError:
                return False  # the process that was first has already removed it
        except OSError as error:
            if error.errno in _NO_LINKS and draft.exists():
                raise UserError(
                    f"cannot make hard links in {final.parent}: {error.strerror}",
                    hint="put the run directory on a file system with hard links "
                    "(NFS, Lustre, GPFS, ext4, xfs) where you can write",
                ) from error
            raise
        sync_directory(final.parent)
    return True


def create(path: Path, data: bytes) -> bool:
    """Create `path` with `data`, atomically and durably; return False if it exists already.

    It is linked because an exclusive open shows an empty file first and fails on old NFS (open(2)).
    """
    draft = draft_path(path)
    write_atomic(draft, data)
    try:
        return publish(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the content of `path` by `data`, atomically and durably."""
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a draft file opened for writing; at the end of the block it replaces `path` durably.

    If the block raises, the draft is removed and `path` stays as it was. Errors as in `writing`.
    """
    draft = draft_path(path)
    with writing(path):
        try:
            with draft.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            fault_point("draft written", path.parent.name)
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
    r"""Append `line` and b"\n" with a single write. Only one process may write a file at a time.

    After an incomplete line of a writer that died, the line starts on a new line.
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
    if error.errno in _DISK_FULL:
        return RetryError(
            f"disk full: cannot write {path.name} in {path.parent} ({error.strerror})",
            hint="free space or raise the quota there (df, lfs quota), then run `proxhpc launch` "
            "again; the run resumes where it stopped",
        )
    if error.errno in _NO_PERMISSION:
        return UserError(
            f"no permission to write {path}: {error.strerror}",
            hint="choose a directory that you can write to, or change its permissions",
        )
    if error.errno in (errno.ENOENT, errno.ENOTDIR) and not path.parent.is_dir():
        return UserError(f"cannot write {path}: there is no directory {path.parent}")
    if error.errno == errno.ENOTDIR:
        return UserError(
            f"cannot write {path}: it is a file, not a directory", hint="choose another path"
        )
    return RetryError(f"cannot write {path}: {error.strerror or error}")
