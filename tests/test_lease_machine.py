"""A state machine of workers that crash, freeze and come back, with clocks that differ."""

import shutil
import tempfile
from collections import Counter
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


class SimulatedWorker:
    """A worker: the shard that it believes to hold, and whether it is frozen."""

    def __init__(self, machine: "LeaseMachine", number: int, generation: int) -> None:
        self.owner = LeaseOwner(f"w{number}-{generation}", "far-away", number, str(generation))
        self.leases = Leases(machine.run.dir, self.owner, lambda job: None)
        self.leaser = Leaser(machine.run.dir, machine.run.plan, self.leases, (number, WORKERS))
        self.shard: OpenShard | None = None
        self.todo: list[Document | SpanEnd] = []
        self.frozen = False
        self.heartbeats = 0


class LeaseMachine(RuleBasedStateMachine):
    """Documents may be refined several times, but each shard is published once and complete.

    `tick` advances the clock of the observer.
    """

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="leases-"))
        self.run = planned(self.folder, 24, sharding={"tokens": 600})
        self.workers = [SimulatedWorker(self, number, 0) for number in range(WORKERS)]
        self.generations = 0
        self.clock = 1000.0
        self.old_leases: dict[str, int] = {}
        self.published: dict[int, bytes] = {}
        self.publishers = Counter[int]()  # attempts that published their ledger, by shard

    def teardown(self) -> None:
        """From any state a new worker finishes everything, each document once."""
        try:
            self.finish()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    @rule(seconds=st.sampled_from([1.0, 40.0, STALE_AFTER + 1]))
    def tick(self, seconds: float) -> None:
        """Time passes; workers that are not frozen send heartbeats."""
        self.clock += seconds
        for worker in self.workers:
            if not worker.frozen:
                self._send_heartbeat(worker)

    @rule()
    def list_leases(self) -> None:
        """Store the list of leases; a worker may use it later."""
        self.old_leases = self.workers[0].leases.highest_attempts()

    @rule(number=numbers, late=st.booleans())
    def lease(self, number: int, late: bool) -> None:
        """Take the next shard, with the current list of leases or an old one."""
        worker = self.workers[number]
        if worker.frozen or worker.shard is not None:
            return
        if late:
            worker.leases.highest_attempts = lambda: dict(self.old_leases)  # type: ignore[method-assign]
        shard = self._with_clock(worker.leaser.next)
        worker.leases.__dict__.pop("highest_attempts", None)
        if isinstance(shard, OpenShard):
            worker.shard = shard
            worker.todo = [item for item in shard.items() if isinstance(item, Document | SpanEnd)]

    @rule(number=numbers, documents=st.integers(1, 4))
    def commit(self, number: int, documents: int) -> None:
        """Refine some documents and make them durable."""
        worker = self.workers[number]
        if worker.frozen or worker.shard is None:
            return
        shard = worker.shard
        for item in worker.todo[:documents]:
            if isinstance(item, SpanEnd):
                shard.span_ends.append(item)
            else:
                shard.rows.append(Row(item.id, item.file, item.position, "kept"))
        worker.todo = worker.todo[documents:]
        shard.commit()
        self._send_heartbeat(worker)
        if shard.lost:
            shard.writer.close()
            worker.shard = None

    @rule(number=numbers)
    def publish(self, number: int) -> None:
        """Publish a shard that is completely refined."""
        worker = self.workers[number]
        if worker.frozen or worker.shard is None or worker.todo:
            return
        shard, worker.shard = worker.shard, None
        shard.commit()
        if shard.lost:
            shard.writer.close()
            return
        self.publishers[shard.index] += shard.publish()

    @rule(number=numbers)
    def whole_shard(self, number: int) -> None:
        """Lease, commit and publish a shard, while others do nothing."""
        self.lease(number, late=False)
        self.commit(number, documents=30)
        self.publish(number)

    @rule(number=numbers)
    def publish_late(self, number: int) -> None:
        """Refine a shard, freeze, and publish it after others have published it."""
        worker = self.workers[number]
        self.lease(number, late=False)
        self.commit(number, documents=30)
        worker.frozen = True
        self.tick(STALE_AFTER + 1)
        other = (number + 1) % WORKERS
        for _ in range(2 * len(self.run.plan.shards)):
            self.whole_shard(other)
            self.tick(STALE_AFTER + 1)
        worker.frozen = False
        self.publish(number)

    @rule(number=numbers)
    def leave(self, number: int) -> None:
        """Give the shard back, as before a time limit."""
        worker = self.workers[number]
        if not worker.frozen and worker.shard is not None:
            shard, worker.shard = worker.shard, None
            shard.commit()
            shard.leave()

    @rule(number=numbers)
    def crash(self, number: int) -> None:
        """Die; a new worker starts in its place."""
        worker = self.workers[number]
        if worker.shard is not None:
            worker.shard.writer.close()
        self.generations += 1
        self.workers[number] = SimulatedWorker(self, number, self.generations)

    @rule(number=numbers)
    def tear(self, number: int) -> None:
        """Die while writing, so that the last frame is torn."""
        worker = self.workers[number]
        if worker.shard is None:
            return
        path = self.run.dir.attempt(worker.shard.index, worker.shard.lease.attempt)
        if path.exists():
            with path.open("ab") as file:
                file.write(b"\x28\xb5\x2f\xfd\x24torn")
        self.crash(number)

    @rule(number=numbers)
    def freeze(self, number: int) -> None:
        """Stop without noticing: no heartbeats and no steps."""
        self.workers[number].frozen = True

    @precondition(lambda self: any(worker.frozen for worker in self.workers))
    @rule(number=numbers)
    def thaw(self, number: int) -> None:
        """Continue, perhaps without the lease."""
        self.workers[number].frozen = False

    @invariant()
    def published_ledgers_never_change(self) -> None:
        for shard in range(len(self.run.plan.shards)):
            path = self.run.dir.ledger(shard)
            if path.exists():
                data = path.read_bytes()
                assert self.published.setdefault(shard, data) == data
                assert self.publishers[shard] == 1

    @invariant()
    def a_shard_has_few_files(self) -> None:
        """At most three, and one more for each worker that is taking it over."""
        for shard in range(len(self.run.plan.shards)):
            folder = self.run.dir.shard_folder(shard)
            files = [*folder.glob(f"{shard:05d}.*"), *self.run.dir.leases.glob(f"{shard:05d}.a*")]
            assert len(files) <= 3 + WORKERS

    def finish(self) -> None:
        """Freeze all workers, let a new one finish, and check the ledgers."""
        for worker in self.workers:
            worker.frozen = True
        self.generations += 1
        new = SimulatedWorker(self, 0, self.generations)
        self.workers[0] = new
        for _ in range(20 * len(self.run.plan.shards)):
            shard = self._with_clock(new.leaser.next)
            if shard is None:
                break
            if shard == "wait":
                self.clock += STALE_AFTER / 2
                continue
            new.shard = shard
            new.todo = [item for item in shard.items() if isinstance(item, Document | SpanEnd)]
            self.commit(0, len(new.todo) + 1)
            self.publish(0)
        rows = [
            item.id
            for shard in range(len(self.run.plan.shards))
            for item in read_ledger(self.run.dir.ledger(shard), self.run.plan.digest, shard)
            if isinstance(item, Row)
        ]
        assert rows == [f"doc-{number}" for number in range(24)]

    def _send_heartbeat(self, worker: SimulatedWorker) -> None:
        worker.heartbeats += 1
        with self.run.dir.worker(worker.owner.worker).open("ab") as file:
            file.write(b".\n")

    def _with_clock(self, function: "object") -> "object":
        """Call `function` with the clock of this simulation."""
        import proxhpc.run.lease as module

        real = module.time.monotonic
        module.time.monotonic = lambda: self.clock  # type: ignore[assignment]
        try:
            return function()  # type: ignore[operator]
        except RetryError:
            return None
        finally:
            module.time.monotonic = real


LeaseMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestLeases = LeaseMachine.TestCase
