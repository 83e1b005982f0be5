"""Every path of a run. Other modules do not build paths of their own."""

import re
from dataclasses import dataclass
from pathlib import Path

SHARDS_PER_FOLDER = 1000  # so that folders can be listed quickly on Lustre
_SAFE = re.compile(r"[A-Za-z0-9._-]{1,120}")


@dataclass(frozen=True, slots=True)
class RunDir:
    """The run directory, which is all the state of a run."""

    root: Path

    @property
    def manifest(self) -> Path:
        """The manifest, as the user wrote it."""
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
        """The submission journal: a line for each intent, receipt and release."""
        return self.root / "submissions.jsonl"

    @property
    def leases(self) -> Path:
        """Folder of leases."""
        return self.root / "leases"

    @property
    def shards(self) -> Path:
        """Folder of attempts and published ledgers."""
        return self.root / "shards"

    @property
    def workers(self) -> Path:
        """Folder of the workers' progress files."""
        return self.root / "workers"

    @property
    def logs(self) -> Path:
        """Folder of the jobs' standard output and error."""
        return self.root / "logs"

    def job_logs(self, job: str, pid: int) -> list[Path]:
        """Return the standard error of a job, by its id in squeue, or of a local process."""
        name = job if re.fullmatch(r"\d+(_\d+)?", job) else str(pid)
        return [*self.logs.glob(f"*/{name}_*_log.err")]

    @property
    def merge(self) -> Path:
        """Folder of intermediate files of the merge."""
        return self.root / "merge"

    @property
    def merge_summary(self) -> Path:
        """Counts of the whole run; written last, so the merge is done if it exists."""
        return self.merge / "summary.json"

    @property
    def corpus(self) -> Path:
        """Folder of the refined corpus."""
        return self.root / "corpus"

    @property
    def examples(self) -> Path:
        """Documents that the report shows as examples."""
        return self.merge / "examples.jsonl"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.root / "report"

    @property
    def report_json(self) -> Path:
        """The report as JSON; the run is finished if it exists."""
        return self.report / "report.json"

    @property
    def report_html(self) -> Path:
        """The report as a page."""
        return self.report / "report.html"

    def lease(self, name: str, attempt: int) -> Path:
        """Return the lease of an attempt on `name`, a shard's number or a step."""
        return self.leases / f"{_checked(name)}.a{attempt}"

    def shard_folder(self, shard: int) -> Path:
        """Return the folder with the files of `shard`."""
        return self.shards / f"{shard // SHARDS_PER_FOLDER:03d}"

    def attempt(self, shard: int, attempt: int) -> Path:
        """Return the file with the commits of an attempt on `shard`."""
        return self.shard_folder(shard) / f"{shard_name(shard)}.a{attempt}"

    def ledger(self, shard: int) -> Path:
        """Return the published ledger of `shard`, which is finished if it exists."""
        return self.shard_folder(shard) / ledger_name(shard)

    def worker(self, worker: str) -> Path:
        """Return the progress file of `worker`."""
        return self.workers / f"{_checked(worker)}.jsonl"

    def sketch(self, group: int) -> Path:
        """Return the sketch of a group of shards: hashes and sizes of its refined documents."""
        return self.merge / "sketch" / f"{group:05d}.npy"

    def bands(self, group: int) -> Path:
        """Return the sorted keys by which a group's documents may match others."""
        return self.merge / "sketch" / f"{group:05d}.bands"

    def signatures(self, group: int) -> Path:
        """Return the MinHash signatures of a group; missing without `dedup.near`."""
        return self.merge / "sketch" / f"{group:05d}.minhash.npy"

    def sketch_receipt(self, group: int) -> Path:
        """Return the counts of a group, written after its other files."""
        return self.merge / "sketch" / f"{group:05d}.json"

    def sketch_quarantine(self, group: int) -> Path:
        """Return the quarantined records of a group; missing if there are none."""
        return self.merge / "sketch" / f"{group:05d}.quarantine.jsonl.zst"

    def duplicate_flags(self, group: int) -> Path:
        """Return the duplicates of a group: a bit for each of its documents."""
        return self.merge / "match" / f"{group:05d}.npy"

    @property
    def pairs(self) -> Path:
        """Each duplicate, its survivor and their similarity, as numbers."""
        return self.merge / "match" / "pairs.npy"

    def match_files(self, source_digest: str) -> "MatchFiles":
        """Return the files of a match phase in progress, which are deleted at its end."""
        return MatchFiles(self.merge / "match" / source_digest)

    @property
    def match(self) -> Path:
        """The receipt of the match phase, written after its other files."""
        return self.merge / "match.json"

    @property
    def duplicates(self) -> Path:
        """Each duplicate and its survivor, by id and source."""
        return self.merge / "duplicates.jsonl.zst"

    @property
    def quarantine(self) -> Path:
        """Quarantined records with their reasons; missing if there are none."""
        return self.root / "quarantine" / "quarantine.jsonl.zst"

    @property
    def card(self) -> Path:
        """The corpus's dataset card."""
        return self.corpus / "README.md"

    @property
    def checksums(self) -> Path:
        """SHA-256 of every other file of the corpus; the corpus is complete if it exists."""
        return self.corpus / "SHA256SUMS"

    def part_receipt(self, part: int) -> Path:
        """Return the receipt of a part: what was written to it."""
        return self.merge / "parts" / f"{part:05d}.json"

    def part(self, part: int, suffix: str = "jsonl.zst") -> Path:
        """Return a part of the corpus; its suffix is its format."""
        return self.corpus / f"part-{part:05d}.{suffix}"

    @property
    def shuffled(self) -> Path:
        """Folder of scattered rows; deleted when the corpus is complete."""
        return self.merge / "shuffled"

    def scattered(self, group: int) -> Path:
        """Return the scattered rows of a group, by bucket."""
        return self.shuffled / f"{group:05d}.rows"

    def folders(self) -> list[Path]:
        """Return the folders that a new run needs."""
        return [self.leases, self.shards, self.workers, self.logs, self.merge]


@dataclass(frozen=True, slots=True)
class VariantDir(RunDir):
    """Another corpus of a run, with the files of its merge; the run is only read."""

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
        """Folder of the lease on the merge."""
        return self.merge / "leases"

    @property
    def variant(self) -> Path:
        """The plan of its run and the manifest of this corpus."""
        return self.merge / "variant.json"


@dataclass(frozen=True)
class MatchFiles:
    """Files of a match phase in progress, in a folder named by what they are made from."""

    root: Path

    def found_pairs(self, task: int) -> Path:
        """Return the pairs of documents that a task found."""
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
        """Return the shingles of the compared documents of a group."""
        return self.root / f"{group:05d}.shingles"

    def similar_pairs(self, number: int) -> Path:
        """Return the duplicates among a block of the undecided pairs."""
        return self.root / f"{number:05d}.similar.npy"


def shard_name(shard: int) -> str:
    """Return the name of a shard in leases and files."""
    return f"{shard:05d}"


def ledger_name(shard: int) -> str:
    """Return the file name of a shard's ledger."""
    return f"{shard_name(shard)}.ledger.zst"


def _checked(name: str) -> str:
    """Return `name` if it is a plain file name; ValueError otherwise."""
    if not _SAFE.fullmatch(name) or name.startswith("."):
        raise ValueError(f"not a file name: {name!r}")
    return name
