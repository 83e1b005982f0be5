"""The staging folder: copies of files behind URLs, which nodes without a network can read."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson

from proxhpc.account.quantity import SHOWN, memory_size, quantity, shorten
from proxhpc.corpus.disk import append_line, free_space, is_disk_full
from proxhpc.errors import ProxError, RetryError, UserError
from proxhpc.run.paths import RunDir, StagingDir
from proxhpc.run.remote import RemoteFile, RemoteListing, copy_file, draft_of, list_url
from proxhpc.spec.load import is_url
from proxhpc.spec.sections import Corpus

Report = Callable[[str], None]
"""Takes what is being done, as it goes on."""


def ignore(_: str) -> None:
    """Report nothing."""


_COPIES = 8  # at a time
_REPORT_SECONDS = 0.5


class Staging:
    """The staging folder of a corpus, with its index: what each copy is a copy of.

    The index is append-only: a line for each copy, written before the copy appears, and one for
    each URL of which all files are there. Later lines replace earlier ones.
    """

    def __init__(self, corpus: Corpus, run: RunDir) -> None:
        """The folder is the corpus's, or else `staging` beside the run directory."""
        folder = corpus.staging or os.path.abspath(run.root / "../staging")
        self.dir = StagingDir(Path(folder))
        self.urls = tuple(path for path in corpus.paths if is_url(path))
        self._files: dict[str, RemoteFile] = {}
        self._listings: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()
        if self.urls:
            self._load()

    def _load(self) -> None:
        try:
            lines = self.dir.index.read_bytes().splitlines()
        except (FileNotFoundError, NotADirectoryError):
            return
        for line in lines:
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue  # torn
            if "names" in entry:
                self._listings[entry["url"]] = entry
            else:
                self._files[entry["name"]] = RemoteFile(**entry)

    def listing(self, url: str) -> RemoteListing:
        """Return the files behind a URL; those of an earlier listing if it cannot be listed now.

        Errors as `list_url`, unless all files of an earlier listing are there.
        """
        try:
            return list_url(url)
        except ProxError as error:
            earlier = self._listings.get(url)
            if earlier is None or not self._files.keys() >= {*earlier["names"]}:
                raise
            files = tuple(self._files[name] for name in earlier["names"])
            if self.missing(files):
                raise
            amount = quantity(len(files), "file")
            note = f"{error.message}; using the {amount} staged on {earlier['at']}"
            return RemoteListing(files, earlier["folder"], (note,))

    def missing(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        """Return the files that are not staged. UserError if a copy is of another version."""
        absent, changed = [], []
        for file in files:
            known = self._files.get(file.name)
            try:
                size = self.dir.copy(file.name).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                absent.append(file)
                continue
            if known is None or size != known.size:
                was = "not a copy that was made here" if known is None else f"now {size:,} bytes"
                changed.append(f"{self.dir.copy(file.name)} is {was}")
            elif file.size not in (None, size) or file.version != known.version:
                changed.append(f"{file}, the copy is of {size:,} bytes, {known.version}")
        if changed:
            raise UserError(
                f"{quantity(len(changed), 'copy', 'copies')} in {self.dir.root} cannot be used:\n  "
                + "\n  ".join(shorten(changed)),
                hint="remove them to copy the files again, if no "
                "unfinished run reads them; or set corpus.staging to another folder",
            )
        return absent

    def require(self, files: Sequence[RemoteFile]) -> None:
        """Raise UserError if any of the files is not staged; it says what would be copied."""
        if missing := self.missing(files):
            size = memory_size(sum(file.size or 0 for file in missing))
            raise UserError(
                f"{quantity(len(missing), 'file')} (of {len(files):,}) with {size} must first be "
                f"copied to {self.dir.root}, which has {self._free()}:\n  "
                + "\n  ".join(shorten([*map(str, missing)])),
                hint="run `proxhpc plan MANIFEST --stage` where there is a network",
            )

    def stage(self, files: Sequence[RemoteFile], report: Report) -> None:
        """Copy the files that are not there, several at a time; what was begun goes on.

        Errors name the files that could not be copied; most others are copied first. UserError if
        they do not fit on the disk.
        """
        self._load()  # again: another process may have copied files
        missing = self.missing(files)
        total = sum(file.size or 0 for file in missing)
        drafts = [draft_of(file, self.dir.copy(file.name)) for file in missing]
        before = sum(draft.stat().st_size for draft in drafts if draft.exists())
        if total - before > free_space(self.dir.root)[1]:
            raise UserError(
                f"{memory_size(total - before)} are to be copied to {self.dir.root}, which has "
                f"{self._free()}",
                hint="free space there, or set corpus.staging to another folder",
            )
        moved, stop, failed, full = 0, threading.Event(), list[ProxError](), list[ProxError]()

        def advance(number: int) -> None:
            nonlocal moved
            with self._lock:
                moved += number

        started = time.monotonic()
        with ThreadPoolExecutor(_COPIES) as pool:
            try:
                pending = {pool.submit(self._copy, file, advance, stop) for file in missing}
                while pending and not stop.is_set():
                    ended, pending = wait(pending, _REPORT_SECONDS, FIRST_COMPLETED)
                    for copy in ended:
                        try:
                            copy.result()
                        except ProxError as error:
                            failed.append(error)
                    full = [error for error in failed if is_disk_full(error)]
                    if full or len(failed) >= SHOWN:
                        stop.set()
                    speed = moved / (time.monotonic() - started)
                    report(_progress(len(missing), before + moved, total, speed))
            finally:
                stop.set()
                pool.shutdown(cancel_futures=True)
        if full:
            left = len(self.missing(missing))
            raise RetryError(
                f"{full[0].message}; not copied yet: {quantity(left, 'file')} of {len(files):,}",
                hint="free space, or raise the quota of bytes or files there (df, df -i, lfs "
                "quota); the same command goes on from where it stopped",
            )
        if failed:
            final = any(isinstance(error, UserError) for error in failed)
            raise (UserError if final else RetryError)(
                "not all files were copied:\n  "
                + "\n  ".join(error.message for error in failed[:SHOWN]),
                hint="what was copied is kept: the same command goes on from there",
            )

    def record(self, url: str, listing: RemoteListing) -> None:
        """Note that all files behind a URL are staged."""
        names = [file.name for file in listing.files]
        if self._listings.get(url, {}).get("names") != names:
            at = time.strftime("%Y-%m-%d")
            entry = {"url": url, "at": at, "folder": listing.folder, "names": names}
            append_line(self.dir.index, orjson.dumps(entry))

    def _free(self) -> str:
        return f"{memory_size(free_space(self.dir.root)[1])} free (`proxhpc doctor` shows quotas)"

    def _copy(
        self, file: RemoteFile, advance: Callable[[int], None], stop: threading.Event
    ) -> None:
        def complete(size: int) -> None:
            with self._lock:
                self._files[file.name] = replace(file, size=size)
                append_line(self.dir.index, orjson.dumps(asdict(self._files[file.name])))

        copy_file(file, self.dir.copy(file.name), advance, stop, complete)


def _progress(files: int, done: int, total: int, speed: float) -> str:
    if done > total:  # the sizes of some are not known
        share, left = memory_size(done), ""
    else:
        left = f", about {(total - done) / speed / 60:,.0f} min left" if speed else ""
        share = f"{done / max(total, 1):.1%} of {memory_size(total)}"
    return f"copying {quantity(files, 'file')}: {share}, {memory_size(speed)}/s{left}"
