"""The lease protocol against a model: workers that crash, stall, come back, and never agree."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxhpc.corpus.document import Document, SpanEnd
from proxhpc.errors import RetryError
from proxhpc.run.lease import STALE_AFTER, LeaseOwner, Leases
from proxhpc.run.ledger import Row, read_ledger
from proxhpc.worker.leaser import Leaser
from proxhpc.worker.shard import OpenShard
from runs import planned

WORKERS = 4
numbers = st.integers(0, WORKERS - 1)


class Life:
    """One worker: what it believes to hold, and whether it can move or be seen to live."""

    def __init__(self, machine: "LeaseMachine", number: int, birth: int) -> None:
        self.owner = LeaseOwner(f"w{number}-{birth}", "far-away", number, str(birth))
        self.leases = Leases(machine.run.dir, self.owner, lambda job: None)
        self.leaser = Leaser(machine.run.dir, machine.run.plan, self.leases, (number, WORKERS))
        self.shard: OpenShard | None = None
        self.todo: list[Document | SpanEnd] = []
        self.stalled = False
        self.beats = 0


class LeaseMachine(RuleBasedStateMachine):
    """Documents may be refined any number of times; each shard is published once, and whole.

    Observers have clocks of their own: `tick` is what one of them sees go by.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="leases-"))
        self.run = planned(self.folder, 24, sharding={"tokens": 600})
        self.lives = [Life(self, number, 0) for number in range(WORKERS)]
        self.births = 0
        self.clock = 1000.0
        self.old_look: dict[str, int] = {}
        self.published: dict[int, bytes] = {}
        self.publications = 0

    def teardown(self) -> None:
        """From any state: somebody new, with time enough, gets everything done, each once."""
        try:
            self.finish()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @rule(seconds=st.sampled_from([1.0, 40.0, STALE_AFTER + 1]))
    def tick(self, seconds: float) -> None:
        """Time goes by; who is not stalled shows that it lives."""
        self.clock += seconds
        for life in self.lives:
            if not life.stalled:
                self._beat(life)

    @rule()
    def look(self) -> None:
        """Remember what leases there are; somebody will act on it late."""
        self.old_look = self.lives[0].leases.highest_attempts()

    @rule(number=numbers, late=st.booleans())
    def lease(self, number: int, late: bool) -> None:
        """Take whatever is next, by a look at the leases of now or of some time ago."""
        life = self.lives[number]
        if life.stalled or life.shard is not None:
            return
        if late:
            life.leases.highest_attempts = lambda: dict(self.old_look)  # type: ignore[method-assign]
        found = self._looking(life, life.leaser.next)
        life.leases.__dict__.pop("highest_attempts", None)
        if isinstance(found, OpenShard):
            life.shard = found
            life.todo = [item for item in found.items() if isinstance(item, Document | SpanEnd)]

    @rule(number=numbers, documents=st.integers(1, 4))
    def commit(self, number: int, documents: int) -> None:
        """Refine some documents and make them durable."""
        life = self.lives[number]
        if life.stalled or life.shard is None:
            return
        shard = life.shard
        for item in life.todo[:documents]:
            if isinstance(item, SpanEnd):
                shard.span_ends.append(item)
            else:
                shard.rows.append(Row(item.id, item.file, item.position, "kept"))
        life.todo = life.todo[documents:]
        shard.commit()
        self._beat(life)
        if shard.lost:
            shard.writer.close()
            life.shard = None

    @rule(number=numbers)
    def publish(self, number: int) -> None:
        """Finish a shard of which nothing is left."""
        life = self.lives[number]
        if life.stalled or life.shard is None or life.todo:
            return
        shard, life.shard = life.shard, None
        shard.commit()
        if shard.lost:
            shard.writer.close()
            return
        shard.publish()
        self.publications += 1

    @rule(number=numbers)
    def whole_shard(self, number: int) -> None:
        """All of that at a stretch, while others stand still."""
        self.lease(number, late=False)
        self.commit(number, documents=30)
        self.publish(number)

    @rule(number=numbers)
    def stolen(self, number: int) -> None:
        """Finish a shard, stand still before publishing it, and come back when others have."""
        life = self.lives[number]
        self.lease(number, late=False)
        self.commit(number, documents=30)
        life.stalled = True
        self.tick(STALE_AFTER + 1)
        other = (number + 1) % WORKERS
        for _ in range(2 * len(self.run.plan.shards)):
            self.whole_shard(other)
            self.tick(STALE_AFTER + 1)
        life.stalled = False
        self.publish(number)

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        """Give the shard back, as before a time limit."""
        life = self.lives[number]
        if not life.stalled and life.shard is not None:
            shard, life.shard = life.shard, None
            shard.commit()
            shard.leave()

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        """Die on the spot; another worker begins in its place and knows nothing."""
        life = self.lives[number]
        if life.shard is not None:
            life.shard.writer.close()
        self.births += 1
        self.lives[number] = Life(self, number, self.births)

    @rule(number=numbers)
    def tear(self, number: int) -> None:
        """Die while writing: half a frame is left behind the last whole one."""
        life = self.lives[number]
        if life.shard is None:
            return
        path = self.run.dir.attempt(life.shard.index, life.shard.lease.attempt)
        if path.exists():
            with path.open("ab") as file:
                file.write(b"\x28\xb5\x2f\xfd\x24torn")
        self.crash(number)

    @rule(number=numbers)
    def stall(self, number: int) -> None:
        """Be stopped: no beat, no step, and no knowledge of it."""
        self.lives[number].stalled = True

    @precondition(lambda self: any(life.stalled for life in self.lives))
    @rule(number=numbers)
    def wake(self, number: int) -> None:
        """Go on where it stood, perhaps as a zombie."""
        self.lives[number].stalled = False

    @invariant()
    def published_ledgers_never_change(self) -> None:
        for shard in range(len(self.run.plan.shards)):
            path = self.run.dir.ledger(shard)
            if path.exists():
                data = path.read_bytes()
                assert self.published.setdefault(shard, data) == data

    @invariant()
    def a_shard_has_few_files(self) -> None:
        """Three over its life, one more for each thief in the act of taking it."""
        for shard in range(len(self.run.plan.shards)):
            folder = self.run.dir.shard_folder(shard)
            own = [*folder.glob(f"{shard:05d}.*"), *self.run.dir.leases.glob(f"{shard:05d}.a*")]
            assert len(own) <= 3 + WORKERS

    def finish(self) -> None:
        """Let everybody stand still but one new worker, and look at what it comes to."""
        for life in self.lives:
            life.stalled = True
        self.births += 1
        last = Life(self, 0, self.births)
        self.lives[0] = last
        for _ in range(20 * len(self.run.plan.shards)):
            found = self._looking(last, last.leaser.next)
            if found is None:
                break
            if found == "wait":
                self.clock += STALE_AFTER / 2
                continue
            last.shard = found
            last.todo = [item for item in found.items() if isinstance(item, Document | SpanEnd)]
            self.commit(0, len(last.todo) + 1)
            self.publish(0)
        rows = [
            item.id
            for shard in range(len(self.run.plan.shards))
            for item in read_ledger(self.run.dir.ledger(shard), self.run.plan.digest, shard)
            if isinstance(item, Row)
        ]
        assert rows == [f"doc-{number}" for number in range(24)]

    def _beat(self, life: Life) -> None:
        life.beats += 1
        with self.run.dir.worker(life.owner.worker).open("ab") as file:
            file.write(b".\n")

    def _looking(self, life: Life, look: "object") -> "object":
        """Call `look` while the observer's clock shows what this world's does."""
        import proxhpc.run.lease as module

        real = module.time.monotonic
        module.time.monotonic = lambda: self.clock  # type: ignore[assignment]
        try:
            return look()  # type: ignore[operator]
        except RetryError:
            return None
        finally:
            module.time.monotonic = real


LeaseMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestLeases = LeaseMachine.TestCase
