"""What is known of deaths at one place of a shard, and how carefully to go on there.

A worker or engine may die of a document: it exhausts the memory, or breaks a kernel. Nobody
sees which one it was, for many are in flight. So deaths are counted where they happen, at the
commit behind which a worker stood, in the attempt's own file. After two in a row at one place the
documents behind it are taken in smaller batches, each alone in flight, down to the single one.
One of which two workers died, alone, is set aside with the last words of its worker.

A worker that was killed for another reason is counted too. It costs its successors no document:
two have to die behind the same commit before they slow down, and of one document alone before
that is given up.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from proxhpc.errors import StopError

DEATHS = 2  # in a row at one place: then it is not by chance
BATCHES = (64, 8, 1)  # documents alone in flight, after more and more deaths at a place
MAX_DEATHS = 5  # at one document: it is not asked about any more, and still they die
MAX_POISON = 8  # documents of one shard that may be given up; then it is no matter of documents
TAIL_CHARS = 1500  # characters of a dead worker's last words


@dataclass(frozen=True, slots=True)
class CrashBackoff:
    """The state behind a commit: `deaths` in a row there, and the size of batches from there on.

    `level` counts into BATCHES; 0 is the usual flight. `left` documents are under suspicion. The
    next document is `poison` if all of the deaths at the last level were its own. `given_up`
    counts those of the shard so far. `words` are the last ones of who died last.
    """

    deaths: int = 0
    level: int = 0
    suspects: int = 0
    poison: bool = False
    given_up: int = 0
    log_tail: str = ""

    @property
    def batch(self) -> int | None:
        """Documents that may be in flight, and nothing else beside them; None for no limit."""
        return BATCHES[self.level - 1] if self.level else None

    def died(self, words: str, suspects: int) -> "CrashBackoff":
        """One more death at this place, with up to `suspects` documents in flight."""
        after = replace(self, deaths=self.deaths + 1, log_tail=words[-TAIL_CHARS:])
        if self.level == len(BATCHES):
            return replace(after, poison=after.deaths >= DEATHS)
        if self.level or after.deaths >= DEATHS:
            left = self.batch or suspects
            return replace(after, level=self.level + 1, suspects=left, deaths=0)
        return after

    def passed(self, documents: int) -> "CrashBackoff":
        """The state behind a commit of so many documents more."""
        if not documents:
            return self
        left = self.suspects - documents
        if not self.level or left <= 0:
            return CrashBackoff(given_up=self.given_up + self.poison)
        return replace(
            self, deaths=0, suspects=left, poison=False, given_up=self.given_up + self.poison
        )

    def stop_error(self, shard: int) -> StopError | None:
        """What to say where it is no matter of single documents: the run must stop."""
        if self.given_up >= MAX_POISON:
            what = f"{self.given_up} documents of shard {shard} each killed {DEATHS} workers"
        elif self.level == len(BATCHES) and self.deaths >= MAX_DEATHS:
            what = f"{self.deaths} workers in a row died at the same place of shard {shard}"
        else:
            return None
        return StopError(
            f"{what}; the last one's words: {self.log_tail}",
            hint="look into the logs of the workers; mend it, then launch again",
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return asdict(self)
