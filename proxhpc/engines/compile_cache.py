"""Code that engines compile, shared by the workers of a user on a node."""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from proxhpc.engines.device import workers_per_gpu
from proxhpc.engines.spawn import CACHES

_log = logging.getLogger(__name__)
_COMPLETE = "complete"  # file of a cache that an engine has filled and started with
_KEEP_SECONDS = 7 * 24 * 3600  # after its last use


@contextmanager
def shared_compile_cache(settings: str) -> Iterator[None]:
    """Let the engine that starts in the block use what an earlier one has compiled.

    The first engine with these settings fills the cache; others wait for it, and then only read.
    Workers that share a GPU start one at a time, since vLLM measures its free memory.
    Where the folder is not this user's alone, an engine has the cache that the environment names.
    """
    folder = _private_folder()
    if folder is None:
        yield
        return
    cache = folder / hashlib.sha256(settings.encode()).hexdigest()[:16]
    with ExitStack() as sharing, ExitStack() as filling:
        if workers_per_gpu() > 1:
            gpu = re.sub(r"\W", "-", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
            sharing.enter_context(_lock(folder / f"gpu{gpu[:99]}.lock"))
        filling.enter_context(_lock(cache.with_suffix(".lock")))
        if (cache / _COMPLETE).exists():
            filling.close()
        _remove_old(folder)
        _use(cache)
        yield
        (cache / _COMPLETE).touch()


def _private_folder() -> Path | None:
    """Return this user's folder on the node; None if others may write there."""
    folder = Path(tempfile.gettempdir(), f"proxhpc-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        _log.warning("no compile cache is shared: %s", error)
        return None
    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077:
        return folder
    _log.warning("no compile cache is shared: %s is not a folder of yours alone", folder)
    return None


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock of this node, which ends with the process."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:  # explicitly: an engine's process may have inherited the file
            fcntl.flock(file, fcntl.LOCK_UN)


def _use(cache: Path) -> None:
    """Point the variables at the cache that do not have a value of the user."""
    ours = f"{tempfile.gettempdir()}/proxhpc-"
    for name in CACHES:
        if os.environ.get(name, ours).startswith(ours):
            path = cache / name.lower()
            path.mkdir(parents=True, exist_ok=True)
            os.environ[name] = str(path)


def _remove_old(folder: Path) -> None:
    for mark in folder.glob(f"*/{_COMPLETE}"):
        if time.time() - mark.stat().st_mtime > _KEEP_SECONDS:
            shutil.rmtree(mark.parent, ignore_errors=True)
