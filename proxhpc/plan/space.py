"""Disk space, inodes and memory that a run needs, by phase."""

from dataclasses import dataclass

from proxhpc.assemble.merge import DEFAULT_MEMORY
from proxhpc.assemble.shuffle import BUCKET
from proxhpc.dedup.bands import BYTES_PER_KEY
from proxhpc.dedup.hashes import SKETCH_DTYPE
from proxhpc.plan.model import PhaseSpace
from proxhpc.run.lease import HEARTBEAT_SECONDS
from proxhpc.run.paths import SHARDS_PER_FOLDER
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups
from proxhpc.spec.site import Site

# Measured on runs over web pages.
_PROGRESS_LINE = 1600  # bytes of a heartbeat or commit in a progress file
_SHARD_BYTES = 600  # of a shard in the plan, and of its ledger's summary
# For each document at the peak of the match phase: pairs, sets and flags.
_MATCH_BYTES, _NEAR_MATCH_BYTES = 4, 24
_SCATTERED = 1.15  # scattered rows in relation to the corpus, at a lower zstd level
_REPORT_BYTES = 400_000  # report, examples and listings
_INTERPRETER = 150 << 20  # bytes of memory of each process of the merge

_BAND_KEY = 12  # bytes of a key and its document
_SLOT = 2  # bytes of a signature's slot
LOG_FILES = 4  # of a job: script, pickled task, standard output and error
_RUN_FOLDERS = 6  # the run directory and the folders of a new run
_RUN_FILES = 5  # manifest, plan, site, submissions, and a lease of the launcher
_FINISHED_INODES = 10  # listings, examples, summary, card, checksums, report


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a run writes, estimated; `worker_seconds` is the time of all workers together."""

    documents: int
    documents_kept: int
    ledger_bytes: int
    corpus_bytes: int
    corpus_bytes_raw: int
    worker_seconds: float


def estimate_space(plan: Plan, site: Site, sizes: Sizes) -> tuple[PhaseSpace, ...]:
    """Return what the run directory holds in each phase. Ledgers and sketches stay for good."""
    shuffle = plan.manifest.output.shuffle
    refined = sizes.ledger_bytes + _SHARD_BYTES * len(plan.shards) + _progress_bytes(plan, sizes)
    sketched = refined + _sketched_documents(plan, sizes) * _sketch_bytes(plan)
    match_bytes = _NEAR_MATCH_BYTES if plan.manifest.dedup.near else _MATCH_BYTES
    matched = sketched + _sketched_documents(plan, sizes) * match_bytes
    scattered = round(_SCATTERED * sizes.corpus_bytes) if shuffle else 0
    inodes = _Inodes.of(plan, site, sizes)
    merged = inodes.refine + inodes.sketch + inodes.match
    phases = [
        PhaseSpace(phase="refine", bytes=refined, inodes=inodes.refine + inodes.in_progress),
        PhaseSpace(phase="sketch", bytes=sketched, inodes=inodes.refine + inodes.sketch),
        PhaseSpace(phase="match", bytes=matched, inodes=merged),
    ]
    if shuffle:
        phases.append(
            PhaseSpace(phase="scatter", bytes=matched + scattered, inodes=merged + inodes.scatter)
        )
    written = matched + sizes.corpus_bytes
    return (
        *phases,
        PhaseSpace(
            phase="write",
            bytes=written + scattered,
            inodes=merged + inodes.write + inodes.scatter,
        ),
        PhaseSpace(
            phase="finished",
            bytes=written + _REPORT_BYTES,
            inodes=merged + inodes.write + _FINISHED_INODES,
        ),
    )


def estimate_memory(plan: Plan, site: Site, sizes: Sizes) -> int:
    """Return the memory of the merge in one job, whose phases run one after another."""
    processes = site.resources("merge").cpus
    documents = _sketched_documents(plan, sizes)
    groups = max(1, len(shard_groups(plan)))
    by_phase = [
        min(DEFAULT_MEMORY, documents * BYTES_PER_KEY),
        # Bands and signatures of a group are sorted and compressed in memory.
        2 * min(processes, groups) * documents // groups * _sketch_bytes(plan),
    ]
    if plan.manifest.output.shuffle:
        # A bucket's rows as read and as decoded.
        by_phase.append(2 * min(processes * BUCKET, sizes.corpus_bytes_raw))
    return processes * _INTERPRETER + max(by_phase)


def _progress_bytes(plan: Plan, sizes: Sizes) -> int:
    """Return the size of the workers' progress files; a shard is committed when it ends, too."""
    commits = len(plan.shards) + sizes.documents / plan.manifest.commit.documents
    return round(_PROGRESS_LINE * (commits + sizes.worker_seconds / HEARTBEAT_SECONDS))


def _sketched_documents(plan: Plan, sizes: Sizes) -> int:
    external = sum(info.estimated_records or 0 for info in plan.against)
    return sizes.documents_kept + external


def _sketch_bytes(plan: Plan) -> int:
    """Return the bytes of a document in the files of its group."""
    near = plan.manifest.dedup.near
    size = int(SKETCH_DTYPE.itemsize) + 2 * _BAND_KEY  # hashes; keys of the text and of the id
    return size + (near.bands * (_BAND_KEY + near.rows * _SLOT) if near else 0)


@dataclass(frozen=True, slots=True)
class _Inodes:
    """Files and folders that each phase adds."""

    refine: int
    in_progress: int  # leases and attempts of shards in progress
    sketch: int
    match: int
    scatter: int
    write: int

    @classmethod
    def of(cls, plan: Plan, site: Site, sizes: Sizes) -> "_Inodes":
        """Count those of a run whose workers were submitted once."""
        refine, merge = site.resources("refine"), site.resources("merge")
        manifest, shards, groups = plan.manifest, len(plan.shards), len(shard_groups(plan))
        workers = min(refine.workers, shards)
        jobs = -(-workers // refine.tasks_per_node) + 3  # the merge, and a control job after each
        elements = merge.workers if 1 < merge.workers <= groups else 0
        if elements:  # arrays for sketch and write, a match job, more control jobs
            jobs += 2 * elements + 4
        parts = -(-sizes.corpus_bytes_raw // manifest.output.part_size)
        return cls(
            refine=_RUN_FOLDERS
            + _RUN_FILES
            + shards
            + -(-shards // SHARDS_PER_FOLDER)
            + workers
            + 2 * elements
            + LOG_FILES * jobs,
            in_progress=2 * workers,
            sketch=1 + groups * (4 if manifest.dedup.near else 3),
            match=3 + groups,
            scatter=1 + groups if manifest.output.shuffle else 0,
            write=2 + 2 * parts,
        )
