"""Disk space, inodes and memory that a run needs, by phase."""

from dataclasses import dataclass

from proxhpc.assemble.benchmark import estimate_index
from proxhpc.assemble.match import round_names, round_units
from proxhpc.assemble.phases import in_arrays
from proxhpc.assemble.rounds import EXCHANGES, UnitKind, unit_count
from proxhpc.dedup.hashes import SKETCH_DTYPE
from proxhpc.dedup.lines import LINE_DTYPE
from proxhpc.dedup.sorting import DEFAULT_MEMORY
from proxhpc.plan.model import PhaseSpace, SpacePhase
from proxhpc.run.lease import HEARTBEAT_SECONDS
from proxhpc.run.paths import SHARDS_PER_FOLDER
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups
from proxhpc.spec.site import Site

# Measured on runs over web pages.
_PROGRESS_LINE = 1600  # bytes of a heartbeat or commit in a progress file
_SHARD_BYTES = 600  # of a shard in the plan, and of its ledger's summary
# For each document: its hashes for exact duplicates, and what the match phase leaves behind.
_HASH_BYTES, _MATCHED_BYTES = 40, 4
_PATCHES = 1.1  # how rows are made from raw lines, in relation to ledgers; both hold programs
_ROW_BYTES = 8  # of a column of the rows that rounds exchange
_LINE_CHARS = 100  # of the corpus for each line that is long enough to be compared
_FILES_OF_ROUNDS = 3  # that exist at the same time, for each unit
_SCATTERED = 1.15  # scattered rows in relation to the corpus, at a lower zstd level
_REPORT_BYTES = 400_000  # report, examples and listings
_INTERPRETER = 150 << 20  # bytes of memory of each process of the merge
_INDEX_FILES = 8  # of a benchmark, with folders
_GROUP_DOCUMENT = 32  # bytes of memory for each document of a group, in some rounds
_UNIT_KINDS: tuple[UnitKind, ...] = ("group", "exact", "key")

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
    output, near = plan.manifest.output, plan.manifest.dedup.near
    documents, groups = _sketched_documents(plan, sizes), len(shard_groups(plan))
    refined = sizes.ledger_bytes + _SHARD_BYTES * len(plan.shards) + _progress_bytes(plan, sizes)
    inodes, in_progress = _refine_inodes(plan, site)
    phases: list[tuple[SpacePhase, int, int]] = [("refine", refined, inodes + in_progress)]
    lines = sizes.corpus_bytes_raw // _LINE_CHARS if plan.manifest.dedup.lines else 0
    sketched = refined + documents * _sketch_bytes(plan) + lines * LINE_DTYPE.itemsize
    sketched += 0 if lines else round(_PATCHES * sizes.ledger_bytes)
    sketched += estimate_index(plan)
    inodes += 1 + groups * (5 + bool(near)) + _INDEX_FILES * len(plan.benchmarks)
    phases.append(("sketch", sketched, inodes))
    units = sum(unit_count(plan, kind) for kind in _UNIT_KINDS)
    in_lines = lines * EXCHANGES["lines"].columns * _ROW_BYTES  # bands have no files by then
    in_rounds = sketched + max(documents * _exchanged_bytes(plan), in_lines)
    phases.append(("match", in_rounds, inodes + _FILES_OF_ROUNDS * units))
    matched = sketched + documents * _MATCHED_BYTES
    # Flags, listings, clusters and programs.
    inodes += 6 + (2 + output.cluster_size + bool(lines)) * groups
    scattered, scattered_files = 0, 0
    if output.shuffle:
        scattered, scattered_files = round(_SCATTERED * sizes.corpus_bytes), 1 + groups
        phases.append(("scatter", matched + scattered, inodes + scattered_files))
    written = matched + sizes.corpus_bytes
    inodes += 2 + 2 * -(-sizes.corpus_bytes_raw // output.part_size)  # parts and receipts
    phases.append(("write", written + scattered, inodes + scattered_files))
    phases.append(("finished", written + _REPORT_BYTES, inodes + _FINISHED_INODES))
    return tuple(PhaseSpace(phase=name, bytes=size, inodes=n) for name, size, n in phases)


def estimate_memory(plan: Plan, site: Site, sizes: Sizes) -> int:
    """Return the memory of the merge in one job, whose phases run one after another."""
    processes = site.resources("merge").cpus
    documents = _sketched_documents(plan, sizes)
    groups = max(1, len(shard_groups(plan)))
    # What rounds may use, and what they need for each document of a group besides.
    in_groups = min(processes, groups) * documents // groups * _GROUP_DOCUMENT
    return processes * _INTERPRETER + DEFAULT_MEMORY + estimate_index(plan) + in_groups


def _progress_bytes(plan: Plan, sizes: Sizes) -> int:
    """Return the size of the workers' progress files; a shard is committed when it ends, too."""
    commits = len(plan.shards) + sizes.documents / plan.manifest.commit.documents
    return round(_PROGRESS_LINE * (commits + sizes.worker_seconds / HEARTBEAT_SECONDS))


def _sketched_documents(plan: Plan, sizes: Sizes) -> int:
    external = sum(info.estimated_records or 0 for info in plan.external)
    return sizes.documents_kept + external


def _sketch_bytes(plan: Plan) -> int:
    """Return the bytes of a document in the files of its group."""
    near = plan.manifest.dedup.near
    size = int(SKETCH_DTYPE.itemsize) + _HASH_BYTES
    return size + (near.bands * near.rows * _SLOT if near else 0)


def _exchanged_bytes(plan: Plan) -> int:
    """Return the bytes of a document in the exchange files that exist at the same time.

    With `near`, most are keys of bands. Later rounds need less, unless most documents are
    near-duplicates.
    """
    near = plan.manifest.dedup.near
    if near:
        return _ROW_BYTES * EXCHANGES["keys"].columns * near.bands
    if plan.manifest.dedup.url:
        return _ROW_BYTES * EXCHANGES["texts"].columns
    return 2 * EXCHANGES["copies"].columns * _ROW_BYTES


def _refine_inodes(plan: Plan, site: Site) -> tuple[int, int]:
    """Return the files of a refined run, and the leases and attempts of shards in progress.

    The workers were submitted once.
    """
    refine, merge = site.resources("refine"), site.resources("merge")
    shards, groups = len(plan.shards), len(shard_groups(plan))
    workers = min(refine.workers, shards)
    jobs = -(-workers // refine.tasks_per_node) + 3  # the merge, and a control job after each
    elements = merge.workers if 1 < merge.workers <= groups else 0
    if elements:  # arrays for sketch and write, one or more for the match, more control jobs
        rounds = [round_units(plan, name) for name in round_names(plan)]
        in_match = [min(elements, n) for n in rounds] if in_arrays(plan) else [1]
        jobs += 2 * elements + sum(in_match) + len(in_match) + 3
    folders = _RUN_FOLDERS + -(-shards // SHARDS_PER_FOLDER)
    files = _RUN_FILES + shards + workers + 2 * elements + LOG_FILES * jobs
    return folders + files, 2 * workers
