"""Measure what a large run directory costs: leases, status, launching again.

    python tools/bench_rundir.py [--workers 1000] [--shards 100000] [--processes 2] [--dir DIR]

It plans a run of many tiny shards in a temporary folder under --dir, which may be on Lustre or NFS,
and does what workers do, without refining anything: each process acts as a part of the workers and
leases, commits and publishes shards until half of them are done. Then it times `status`, how
`launch` reopens the run, and how a worker finds a free shard.
"""

import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import bench
from proxhpc.account.counts import Counts
from proxhpc.cluster.journal import Journal
from proxhpc.launch.launch import prepare_run
from proxhpc.run.lease import LeaseOwner, Leases
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan, Shard, make_plan
from proxhpc.run.progress import ProgressLog
from proxhpc.run.shards import missing_shards
from proxhpc.status.collect import collect
from proxhpc.worker.leaser import Leaser
from proxhpc.worker.shard import OpenShard


def plan_run(folder: Path, shards: int) -> RunDir:
    """Plan a run over one small file, in that many shards."""
    (folder / "in.jsonl").write_text('{"text": "A line of text."}\n')
    run = bench.make_run(folder, freeze=False, corpus={"paths": str(folder / "in.jsonl")})
    plan = make_plan(run.plan.manifest, run.dir)
    spans = plan.shards[0].spans
    plan = replace(plan, shards=tuple(Shard(spans, 100) for _ in range(shards)))
    plan.save(run.dir, (folder / "manifest.yaml").read_bytes())
    return run.dir


def act_as_workers(run: RunDir, first: int, last: int, workers: int, shards: int) -> None:
    """Act as the workers [first, last): lease, commit and publish their half of the shards."""
    plan = Plan.load(run)
    share = shards // (2 * workers)
    for number in range(first, last):
        owner = LeaseOwner(f"w{number}", f"node{number % 250}", number, "1")
        leaser = Leaser(run, plan, Leases(run, owner, lambda job: None), (number, workers))
        log = ProgressLog(run, owner, "refine")
        log.write("starting")
        for _ in range(share):
            shard = leaser.next()
            if not isinstance(shard, OpenShard):
                break
            log.counts += shard.commit()
            shard.publish()
            log.shards += 1
        log.counts += Counts(documents=share, kept=share)
        log.write("working")


def print_time(label: str, function: Callable[[], object]) -> None:
    """Print the shortest of three times that `function` takes."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    print(f"  {label:<44} {min(times):8.3f} s")


def reopen(run: RunDir) -> None:
    """Open the run as `launch` does."""
    opened = prepare_run(run.root, str(run.root.parent / "site.yaml"), None)
    Journal(opened.dir).read()
    sum(1 for _ in missing_shards(opened.dir, opened.plan))


def lease_next(run: RunDir, plan: Plan) -> None:
    """Lease a free shard as a new worker, and leave it."""
    leases = Leases(run, LeaseOwner.current("search"), lambda job: None)
    shard = Leaser(run, plan, leases, (0, 1)).next()
    assert isinstance(shard, OpenShard)
    shard.leave()


def main() -> int:
    """Make the run, finish half of it, and time operations on it."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dir", type=Path, help="a folder of the file system to measure")
    options = parser.parse_args()
    if options.processes < 1 or not 1 <= options.workers <= options.shards // 2:
        parser.error("there must be a process, a worker, and two shards for each worker")
    with tempfile.TemporaryDirectory(prefix="bench-rundir-", dir=options.dir) as name:
        run = plan_run(Path(name), options.shards)
        size = run.plan.stat().st_size / 2**20
        print(f"{options.workers} workers, {options.shards} shards, plan of {size:.1f} MiB")
        edges = [n * options.workers // options.processes for n in range(options.processes + 1)]
        start = time.perf_counter()
        processes = [
            multiprocessing.Process(
                target=act_as_workers, args=(run, first, last, options.workers, options.shards)
            )
            for first, last in pairwise(edges)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        if any(process.exitcode for process in processes):
            raise SystemExit("a process failed; see above")
        seconds = time.perf_counter() - start
        plan = Plan.load(run)
        done = options.shards - sum(1 for _ in missing_shards(run, plan))
        print(f"  {done} shards leased, committed and published in {seconds:.1f} s: ", end="")
        print(f"{done / seconds:.0f} a second by {options.processes} processes")
        files = sum(len(names) for _, _, names in os.walk(run.root))
        print(f"  {files} files, {files / done:.2f} for each finished shard")
        print_time("status", lambda: collect(run, None))
        print_time("load the plan", lambda: Plan.load(run))
        print_time("list missing shards", lambda: sum(1 for _ in missing_shards(run, plan)))
        print_time("reopen the run for a launch", lambda: reopen(run))
        print_time("lease a shard after the finished ones", lambda: lease_next(run, plan))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
