"""Elements of job arrays that ended before their worker's first heartbeat, and their last words.

Shell lines of the site, containers and imports may fail before Python can report anything; then
only the log of the element says why.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from proxhpc.cluster.journal import Submission
from proxhpc.run.paths import RunDir

_TAIL_BYTES = 4096
_WORDS_CHARS = 300
_MAX_LOGS = 1000  # of a round, of which the last words are read
_OUT_OF_MEMORY = re.compile(
    r"oom.?kill|exceeded (job |step )?memory limit|: Out Of Memory|Cannot allocate memory", re.I
)
_NO_LOG = "there is no log: it was cancelled, or its node cannot write to {folder}"
# What begins lines that say that something failed, not what.
_REPORTS = ("srun: ", "slurmstepd: ", "slurmstepd-", "submitit ")
_DISK_FULL = re.compile("No space left on device|Disk quota exceeded|disk full")


@dataclass(frozen=True, slots=True)
class SilentElements:
    """The silent elements of a round: their ids, and the last words of most of them."""

    ids: tuple[str, ...]
    words: str
    log: Path  # of one of them

    def __str__(self) -> str:
        return f"ended before its worker began: {self.words or 'its log is empty'}"

    @property
    def may_pass(self) -> bool:
        """Whether the next round may succeed: a full disk, which shortens logs, may have space."""
        return not self.words or bool(_DISK_FULL.search(self.words))


def find_silent(
    run: RunDir, round_: Submission, spoke: Collection[str], queued: Collection[str]
) -> SilentElements | None:
    """Return the elements of a round that ended in silence; None if there are none.

    `spoke` are the jobs with heartbeats, `queued` those that have not ended. If none left a log,
    the arrays are returned.
    """
    folder = run.logs / f"{round_.number:04d}-{round_.phase}"
    arrays = {*round_.jobs.get(round_.phase, ())}
    known = {element.partition("_")[0] for element in (*spoke, *queued)}
    ended = round_.settled and not round_.abandoned and known.isdisjoint(arrays)
    if arrays and ended and not any(folder.glob("*_log.*")):
        return SilentElements(tuple(sorted(arrays)), _NO_LOG.format(folder=run.logs), folder)
    logs: dict[str, Path] = {}
    for path in sorted(folder.glob("*_0_log.err"))[:_MAX_LOGS] if folder.is_dir() else ():
        element = path.name.removesuffix("_0_log.err")
        in_round = element.partition("_")[0] in arrays
        if in_round and element not in spoke and element not in queued:
            logs[element] = path
    if not logs:
        return None
    words = {
        element: last_words(path) or last_words(path.with_suffix(".out"))
        for element, path in logs.items()
    }
    ((usual, _),) = Counter(words.values()).most_common(1)
    example = next(element for element in logs if words[element] == usual)
    return SilentElements(tuple(logs), usual, logs[example])


def last_words(path: Path) -> str:
    """Return a log's line about memory, else its last line that is no mere report, else its last.

    A line that ends with a colon belongs to the one after it. Returns "" if there is nothing but
    what submitit says of its progress.
    """
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read(_TAIL_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    lines = [line.strip() for line in lines if line.strip()]
    if lines[1:] and lines[-2].endswith(":"):
        lines[-2:] = [" ".join(lines[-2:])]
    memory = [line for line in lines if _OUT_OF_MEMORY.search(line)]
    others = [line for line in lines if not line.startswith(_REPORTS)]
    reports = [line for line in lines if not line.startswith("submitit INFO")]
    return (memory or others or reports or [""])[-1][:_WORDS_CHARS]


def out_of_memory(run: RunDir, element: str) -> str:
    """Return Slurm's message about an element that it killed for lack of memory, else ""."""
    logs = run.logs.glob(f"*/{glob.escape(element)}_*_log.err") if element else ()
    words = (last_words(path) for path in logs)
    return next((line for line in words if _OUT_OF_MEMORY.search(line)), "")
