"""Measure what a run directory costs at scale: leases, status, and launching again.

    python tools/bench_rundir.py [--workers 1000] [--shards 100000] [--processes 2] [--dir DIR]

It plans a run of many tiny shards in a folder of its own and does to it what workers do, without
refining anything: each process plays its share of the workers, lease after lease, with a ledger
published for every shard of the first half. Then it times `status`, the state of a run as `launch`
takes it up again, and a worker's search for a shard. The file system is that of --dir; on Lustre or
NFS run it there.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import yaml

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
    """Plan a run over one small file, in so many shards."""
    (folder / "in.jsonl").write_text('{"text": "A line of text."}\n')
    manifest = {
        "name": "scale",
        "run_dir": str(folder / "run"),
        "corpus": {"paths": "in.jsonl"},
        "stages": [{"level": "chunk"}],
        "engine": {"name": "rules"},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "site.yaml").write_text("name: here\nkind: local\n")
    run = prepare_run(folder / "manifest.yaml", str(folder / "site.yaml"), None, freeze=False)
    plan = make_plan(run.plan.manifest, run.dir)
    span = plan.shards[0].spans
    plan = replace(plan, shards=tuple(Shard(span, 100) for _ in range(shards)))
    plan.save(run.dir, (folder / "manifest.yaml").read_bytes())
    return run.dir


def play(run: RunDir, first: int, last: int, workers: int, shards: int) -> None:
    """Be the workers [first, last): lease, commit, publish until half of the shards are done."""
    plan = Plan.load(run)
    each = shards // (2 * workers)
    for number in range(first, last):
        owner = LeaseOwner(f"w{number}", f"node{number % 250}", number, "1")
        leaser = Leaser(run, plan, Leases(run, owner, lambda job: None), (number, workers))
        log = ProgressLog(run, owner, "refine")
        log.write("starting")
        for _ in range(each):
            shard = leaser.next()
            if not isinstance(shard, OpenShard):
                break
            log.counts += shard.commit()
            shard.publish()
            log.shards += 1
        log.counts += Counts(documents=each, kept=each)
        log.write("working")


def timed(what: str, function: Callable[[], object], times: int = 3) -> float:
    """Print and return the shortest time that `function` takes, in seconds."""
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - began)
    print(f"  {what:<44} {best:8.3f} s")
    return best


def main() -> int:
    """Make the run, play it, and time what looks at it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dir", type=Path, help="on the file system to measure (else TMPDIR)")
    options = parser.parse_args()
    if options.processes < 1 or not 1 <= options.workers <= options.shards // 2:
        parser.error("there must be a process, a worker, and two shards for each worker")
    with tempfile.TemporaryDirectory(prefix="bench-rundir-", dir=options.dir) as name:
        run = plan_run(Path(name), options.shards)
        size = run.plan.stat().st_size
        print(f"{options.workers} workers, {options.shards} shards, plan of {size / 2**20:.1f} MiB")
        cuts = [n * options.workers // options.processes for n in range(options.processes + 1)]
        began = time.perf_counter()
        players = [
            multiprocessing.Process(
                target=play, args=(run, cuts[n], cuts[n + 1], options.workers, options.shards)
            )
            for n in range(options.processes)
        ]
        for player in players:
            player.start()
        for player in players:
            player.join()
        if any(player.exitcode for player in players):
            raise SystemExit("a player failed; see above")
        seconds = time.perf_counter() - began
        plan = Plan.load(run)
        done = options.shards - sum(1 for _ in missing_shards(run, plan))
        print(f"  {done} shards leased, committed and published in {seconds:.1f} s: ", end="")
        print(f"{done / seconds:.0f} a second by {options.processes} processes")
        files = sum(len(names) for _, _, names in os.walk(run.root))
        print(f"  {files} files, {files / done:.2f} for each finished shard")
        timed("status", lambda: collect(run, None))
        timed("loading the plan", lambda: Plan.load(run))
        timed("what is missing", lambda: sum(1 for _ in missing_shards(run, plan)))
        timed("launch, taking the run up again", lambda: _take_up(run))

        def search() -> object:
            leases = Leases(run, LeaseOwner.current("search"), lambda job: None)
            shard = Leaser(run, plan, leases, (0, 1)).next()
            assert isinstance(shard, OpenShard)
            shard.leave()
            return shard

        timed("a worker's first lease behind those done", search)
    return 0


def _take_up(run: RunDir) -> None:
    taken = prepare_run(run.root, str(run.root.parent / "site.yaml"), None)
    Journal(taken.dir).read()
    sum(1 for _ in missing_shards(taken.dir, taken.plan))


if __name__ == "__main__":
    raise SystemExit(main())
