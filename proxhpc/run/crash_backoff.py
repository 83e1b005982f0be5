"""Crash backoff: smaller batches where workers die, until the document at fault is alone.

A document may kill a worker or an engine: it exhausts the memory, or breaks a kernel. With many
documents in flight nobody sees which one. So deaths are counted in the attempt's file, after the
last commit. After two deaths in a row at the same commit, the next documents are processed in
smaller and smaller batches, with nothing else in flight. A document that kills two workers while
it is alone in flight is quarantined, with the log tail of the last one.

Deaths for other reasons are counted too, but cost no document: a worker slows down only after two
deaths at the same commit, and gives up a document only after two more deaths with it alone.
"""

from dataclasses import dataclass, replace

from proxhpc.errors import StopError

MIN_DEATHS = 2  # in a row at the same commit: no coincidence
BATCHES = (64, 8, 1)  # documents in flight at each backoff level
MAX_DEATHS = 5  # in a row at one document, even though it is skipped by then
MAX_POISON = 8  # quarantined documents of a shard; more are not the documents' fault
TAIL_CHARS = 1500  # of a dead worker's log


@dataclass(frozen=True, slots=True)
class CrashBackoff:
    """The state after a commit: `deaths` in a row there, and the batch size from there on.

    `level` counts into BATCHES; 0 means no limit. `suspects` is the number of documents to process
    in such batches. The next document is `poison` if it was alone in flight at the last deaths.
    `given_up` counts the shard's quarantined documents, `log_tail` is the last dead worker's.
    """

    deaths: int = 0
    level: int = 0
    suspects: int = 0
    poison: bool = False
    given_up: int = 0
    log_tail: str = ""

    @property
    def batch(self) -> int | None:
        """Documents that may be in flight, with nothing else; None for no limit."""
        return BATCHES[self.level - 1] if self.level else None

    def died(self, log_tail: str, in_flight: int) -> "CrashBackoff":
        """Return the state after one more death, with up to `in_flight` documents in flight."""
        after = replace(self, deaths=self.deaths + 1, log_tail=log_tail[-TAIL_CHARS:])
        if self.level == len(BATCHES):
            return replace(after, poison=after.deaths >= MIN_DEATHS)
        if self.level or after.deaths >= MIN_DEATHS:
            suspects = self.batch or in_flight
            return replace(after, level=self.level + 1, suspects=suspects, deaths=0)
        return after

    def passed(self, documents: int) -> "CrashBackoff":
        """Return the state after a commit of this many documents."""
        if not documents:
            return self
        suspects, given_up = self.suspects - documents, self.given_up + self.poison
        if not self.level or suspects <= 0:
            return CrashBackoff(given_up=given_up)
        return replace(self, deaths=0, suspects=suspects, poison=False, given_up=given_up)

    def stop_error(self, shard: int) -> StopError | None:
        """Return the error that stops the run if the documents cannot be the reason, else None."""
        if self.given_up >= MAX_POISON:
            problem = f"{self.given_up} documents of shard {shard} each killed {MIN_DEATHS} workers"
        elif self.level == len(BATCHES) and self.deaths >= MAX_DEATHS:
            problem = f"{self.deaths} workers in a row died at the same document of shard {shard}"
        else:
            return None
        return StopError(
            f"{problem}; end of the last log: {self.log_tail}",
            hint="read the workers' logs, fix the problem, then run `proxhpc launch` again",
        )
