"""Every path of a run. Nobody else joins strings to make one."""

import re
from dataclasses import dataclass
from pathlib import Path

SHARDS_PER_FOLDER = 1000  # keeps every folder small enough to list on Lustre
_SAFE = re.compile(r"[A-Za-z0-9._-]{1,120}")


@dataclass(frozen=True, slots=True)
class RunDir:
    """The run directory: the only state a run has."""

    root: Path

    @property
    def manifest(self) -> Path:
        """The manifest as the user gave it."""
        return self.root / "manifest.yaml"

    @property
    def plan(self) -> Path:
        """The frozen plan."""
        return self.root / "plan.json"

    @property
    def site(self) -> Path:
        """The site of the latest launch; it may change between launches."""
        return self.root / "site.json"

    @property
    def submissions(self) -> Path:
        """Intents, receipts and releases, one line each, only ever appended."""
        return self.root / "submissions.jsonl"

    @property
    def leases(self) -> Path:
        """Who works on what, one file per live lease."""
        return self.root / "leases"

    @property
    def shards(self) -> Path:
        """Attempt files and published ledgers."""
        return self.root / "shards"

    @property
    def workers(self) -> Path:
        """One progress file per worker."""
        return self.root / "workers"

    @property
    def logs(self) -> Path:
        """Standard output and error of every job."""
        return self.root / "logs"

    def job_logs(self, job: str, pid: int) -> list[Path]:
        """Standard error of a job (an id as squeue prints it), or of a local process."""
        name = job if re.fullmatch(r"\d+(_\d+)?", job) else str(pid)
        return [*self.logs.glob(f"*/{name}_*_log.err")]

    @property
    def merge(self) -> Path:
        """Intermediate files of the merge."""
        return self.root / "merge"

    @property
    def merge_summary(self) -> Path:
        """Counts of the whole run; written last, so it says that the merge is done."""
        return self.merge / "summary.json"

    @property
    def corpus(self) -> Path:
        """The refined corpus."""
        return self.root / "corpus"

    @property
    def examples(self) -> Path:
        """Documents that the report shows."""
        return self.merge / "examples.jsonl"

    @property
    def report(self) -> Path:
        """The account of the run."""
        return self.root / "report"

    @property
    def report_json(self) -> Path:
        """The report's numbers; its presence says that the run is finished."""
        return self.report / "report.json"

    @property
    def report_html(self) -> Path:
        """The same for people."""
        return self.report / "report.html"

    def lease(self, name: str, attempt: int) -> Path:
        """The lease of attempt `attempt` on `name` (a shard's number or a phase)."""
        return self.leases / f"{_checked(name)}.a{attempt}"

    def shard_folder(self, shard: int) -> Path:
        """The folder that holds the files of `shard`."""
        return self.shards / f"{shard // SHARDS_PER_FOLDER:03d}"

    def attempt(self, shard: int, attempt: int) -> Path:
        """The frames that attempt `attempt` on `shard` has committed."""
        return self.shard_folder(shard) / f"{shard_name(shard)}.a{attempt}"

    def ledger(self, shard: int) -> Path:
        """The published ledger of `shard`; exists means done."""
        return self.shard_folder(shard) / ledger_name(shard)

    def worker(self, worker: str) -> Path:
        """The progress file of `worker`."""
        return self.workers / f"{_checked(worker)}.jsonl"

    def sketch(self, group: int) -> Path:
        """Hashes of the refined documents of one group of shards."""
        return self.merge / "sketch" / f"{group:05d}.npy"

    def bands(self, group: int) -> Path:
        """By what the documents of one group may equal others, sorted."""
        return self.merge / "sketch" / f"{group:05d}.bands"

    def signatures(self, group: int) -> Path:
        """MinHash signatures of one group's documents; no file without near-duplicates."""
        return self.merge / "sketch" / f"{group:05d}.minhash.npy"

    def sketch_receipt(self, group: int) -> Path:
        """Checked counts of one group; written after its hashes."""
        return self.merge / "sketch" / f"{group:05d}.json"

    def sketch_quarantine(self, group: int) -> Path:
        """Records of one group that were set aside; no file where there are none."""
        return self.merge / "sketch" / f"{group:05d}.quarantine.jsonl.zst"

    def duplicate_flags(self, group: int) -> Path:
        """Which documents of one group are duplicates: a bit for each of its hashes."""
        return self.merge / "match" / f"{group:05d}.npy"

    @property
    def pairs(self) -> Path:
        """Each duplicate, the document that is kept for it, and how alike they are, as numbers."""
        return self.merge / "match" / "pairs.npy"

    def match_files(self, source_digest: str) -> "MatchFiles":
        """Files of a match phase in progress; they are deleted at its end."""
        return MatchFiles(self.merge / "match" / source_digest)

    @property
    def match(self) -> Path:
        """What the match decided; written after everything else of it."""
        return self.merge / "match.json"

    @property
    def duplicates(self) -> Path:
        """Each duplicate and the document that is kept for it, by name."""
        return self.merge / "duplicates.jsonl.zst"

    @property
    def quarantine(self) -> Path:
        """Records that could not be read or refined, with the reason; no file without any."""
        return self.root / "quarantine" / "quarantine.jsonl.zst"

    @property
    def card(self) -> Path:
        """The corpus's dataset card."""
        return self.corpus / "README.md"

    @property
    def checksums(self) -> Path:
        """SHA-256 of every other file of the corpus; written last, so it says that it is whole."""
        return self.corpus / "SHA256SUMS"

    def part_receipt(self, part: int) -> Path:
        """What was written into one part of the corpus."""
        return self.merge / "parts" / f"{part:05d}.json"

    def part(self, part: int, suffix: str = "jsonl.zst") -> Path:
        """One part of the corpus; its format is its suffix."""
        return self.corpus / f"part-{part:05d}.{suffix}"

    @property
    def shuffled(self) -> Path:
        """Rows on their way to their places; gone when the corpus is whole."""
        return self.merge / "shuffled"

    def scattered(self, group: int) -> Path:
        """The rows of one group, by the bucket that they go to."""
        return self.shuffled / f"{group:05d}.rows"

    def folders(self) -> list[Path]:
        """The folders that a new run needs."""
        return [self.leases, self.shards, self.workers, self.logs, self.merge]


@dataclass(frozen=True, slots=True)
class VariantDir(RunDir):
    """Another corpus of a run, with the files of its merge beside it; the run is only read."""

    refined: Path  # root of the run

    @property
    def shards(self) -> Path:
        """The run's ledgers."""
        return self.refined / "shards"

    @property
    def corpus(self) -> Path:
        """The corpus: the directory itself."""
        return self.root

    @property
    def leases(self) -> Path:
        """Who is merging."""
        return self.merge / "leases"

    @property
    def variant(self) -> Path:
        """Of which run it is, and with which manifest."""
        return self.merge / "variant.json"


@dataclass(frozen=True)
class MatchFiles:
    """Files of a match phase in progress, in a folder named by what they are made from."""

    root: Path

    def found_pairs(self, task: int) -> Path:
        """Pairs of documents that one task found."""
        return self.root / f"{task:05d}.npy"

    @property
    def undecided(self) -> Path:
        """Pairs whose texts must be compared."""
        return self.root / "undecided.npy"

    @property
    def compared(self) -> Path:
        """The documents of the undecided pairs, ascending."""
        return self.root / "compared.npy"

    def shingles(self, group: int) -> Path:
        """Shingles of the compared documents of one group."""
        return self.root / f"{group:05d}.shingles"

    def similar_pairs(self, number: int) -> Path:
        """The duplicates among one block of the undecided pairs."""
        return self.root / f"{number:05d}.similar.npy"


def shard_name(shard: int) -> str:
    """What leases and files call a shard."""
    return f"{shard:05d}"


def ledger_name(shard: int) -> str:
    """File name of a shard's ledger."""
    return f"{shard_name(shard)}.ledger.zst"


def _checked(name: str) -> str:
    """`name`, which must be one plain path component."""
    if not _SAFE.fullmatch(name) or name.startswith("."):
        raise ValueError(f"not a file name: {name!r}")
    return name
