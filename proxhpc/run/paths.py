"""Every path of a run; other modules build no paths."""

import os
import re
from pathlib import Path

SHARDS_PER_FOLDER = 1000  # so that folders can be listed quickly on Lustre
_SAFE = re.compile(r"[A-Za-z0-9._-]{1,120}")


class RunDir:
    """The run directory, which is all the state of a run."""

    def __init__(self, root: Path, corpus: Path | None = None) -> None:
        """`corpus` is the folder of the refined corpus, by default the run's `corpus`."""
        self.root = root
        self.manifest = root / "manifest.yaml"  # as the user wrote it
        self.plan = root / "plan.json"
        self.site = root / "site.json"  # of the latest launch; it may change between launches
        self.max_unusable = root / "max_unusable.json"  # if a launch changed the plan's
        self.submissions = root / "submissions.jsonl"  # a line for each intent, receipt, release
        self.calibration = root / "calibration"  # documents refined by `plan --calibrate`
        self.calibration_plan = self.calibration / "plan.json"  # what they were refined under
        self.calibration_result = self.calibration / "result.json"
        self.calibration_logs = self.calibration / "logs"
        self.leases = root / "leases"
        self.shards = root / "shards"  # attempts and published ledgers
        self.workers = root / "workers"  # progress files
        self.restarts = root / "restarts"  # where compressed input files can be entered
        self.logs = root / "logs"  # standard output and error of jobs

        self.merge = root / "merge"  # intermediate files of the merge
        self.match = self.merge / "match.json"  # receipt of the match phase, its last file
        self.match_folder = self.merge / "match"  # files of the match phase's rounds
        self.match_source = self.match_folder / "source.json"  # what the match is made from
        self.benchmark_hits = self.merge / "benchmark.jsonl.zst"  # documents with parts of it
        self.duplicates = self.merge / "duplicates.jsonl.zst"  # each with its survivor
        self.examples = self.merge / "examples.jsonl"  # documents that the report shows
        self.shuffled = self.merge / "shuffled"  # scattered rows, until the corpus is complete
        self.merge_summary = self.merge / "summary.json"  # written last: the merge is done

        self.corpus = corpus or root / "corpus"
        self.card = self.corpus / "README.md"  # dataset card
        self.checksums = self.corpus / "SHA256SUMS"  # of all other files; written last
        self.quarantine = root / "quarantine" / "quarantine.jsonl.zst"  # missing if empty

        self.review = root / "review.jsonl"  # what people marked, as gold records

        self.report = root / "report"
        self.report_html = self.report / "report.html"
        self.report_json = self.report / "report.json"  # the run is finished if it exists

    def job_logs(self, job: str, pid: int) -> list[Path]:
        """Return the standard error of a job, by its id in squeue, or of a local process."""
        name = job if re.fullmatch(r"\d+(_\d+)?", job) else str(pid)
        return [*self.logs.glob(f"*/{name}_*_log.err")]

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
        return self.shard_folder(shard) / f"{shard_name(shard)}.ledger.zst"

    def worker(self, worker: str) -> Path:
        """Return the progress file of `worker`."""
        return self.workers / f"{_checked(worker)}.jsonl"

    def sketch(self, group: int) -> Path:
        """Return the sketch of a group of shards: hashes and sizes of its refined documents."""
        return self.merge / "sketch" / f"{group:05d}.npy"

    def sketch_hashes(self, group: int) -> Path:
        """Return the hashes of a group's texts, by which exact duplicates are found."""
        return self.merge / "sketch" / f"{group:05d}.hashes"

    def signatures(self, group: int) -> Path:
        """Return the MinHash signatures of a group; missing without `dedup.near`."""
        return self.merge / "sketch" / f"{group:05d}.minhash.npy"

    def sketch_lines(self, group: int) -> Path:
        """Return the hashes of a group's lines; missing without `dedup.lines`."""
        return self.merge / "sketch" / f"{group:05d}.lines.npy"

    def patches(self, group: int) -> Path:
        """Return how the rows of a group's documents are made from the lines of their records."""
        return self.merge / "sketch" / f"{group:05d}.patches"

    def sketch_receipt(self, group: int) -> Path:
        """Return the counts of a group, written after its other files."""
        return self.merge / "sketch" / f"{group:05d}.json"

    def sketch_quarantine(self, group: int) -> Path:
        """Return the quarantined records of a group; missing if there are none."""
        return self.merge / "sketch" / f"{group:05d}.quarantine.jsonl.zst"

    def sketch_examples(self, group: int) -> Path:
        """Return texts of a group that the report may show; missing if there are none."""
        return self.merge / "sketch" / f"{group:05d}.examples.jsonl.zst"

    def sketch_names(self, group: int) -> Path:
        """Return the names of a group's external records; missing for a group of shards."""
        return self.merge / "sketch" / f"{group:05d}.names.jsonl.zst"

    def benchmark_index(self, number: int, source: str) -> Path:
        """Return the folder with the hashes of a benchmark of `dedup.against`, made from source."""
        return self.merge / "benchmark" / f"{number:05d}-{source}"

    def sketch_benchmark(self, group: int) -> Path:
        """Return a group's documents with parts of a benchmark; missing if there are none."""
        return self.merge / "sketch" / f"{group:05d}.benchmark.jsonl.zst"

    def match_files(self, digest: str) -> "MatchFiles":
        """Return the files of the match phase with this digest."""
        return MatchFiles(self.match_folder / digest[:16])

    def part_receipt(self, part: int) -> Path:
        """Return the receipt of a part: what was written to it."""
        return self.merge / "parts" / f"{part:05d}.json"

    def part(self, part: int, suffix: str = "jsonl.zst") -> Path:
        """Return a part of the corpus; its suffix is its format."""
        return self.corpus / f"part-{part:05d}.{suffix}"

    def scattered(self, group: int) -> Path:
        """Return the scattered rows of a group, by bucket."""
        return self.shuffled / f"{group:05d}.rows"

    def folders(self) -> list[Path]:
        """Return the folders that a new run needs."""
        return [self.leases, self.shards, self.workers, self.logs, self.merge]


class VariantDir(RunDir):
    """Another corpus of a run, with the files of its merge; the run is only read."""

    def __init__(self, root: Path, run: Path) -> None:
        """The corpus is `root` itself; the ledgers are those of `run`."""
        super().__init__(root, corpus=root)
        self.shards = run / "shards"
        self.leases = self.merge / "leases"
        self.variant = self.merge / "variant.json"  # plan of the run and manifest of this corpus


class StagingDir(RunDir):
    """The folder of copies of files behind URLs, which several runs may read."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.index = root / "index.jsonl"  # a line for each copy

    def copy(self, name: str) -> Path:
        """Return the copy of a file."""
        return self.root / name

    def name_of(self, copy: Path) -> str:
        """Return the name of a file by its copy."""
        return os.path.relpath(copy, self.root)


class MatchFiles:
    """Files of the match phase, in a folder named by what they are made from."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def of_unit(self, kind: str, unit: int) -> Path:
        """Return a file of a unit of a round; they are deleted at the end of the phase."""
        return self.root / kind / f"{unit:05d}"

    def flags(self, group: int) -> Path:
        """Return the duplicates of a group: a bit for each of its documents."""
        return self.root / "flags" / f"{group:05d}.npy"

    def duplicates(self, group: int) -> Path:
        """Return the listing of a group's duplicates; missing if there are none."""
        return self.root / "duplicates" / f"{group:05d}.jsonl.zst"

    def clusters(self, group: int) -> Path:
        """Return the sets of a group's survivors; missing without `output.cluster_size`."""
        return self.root / "clusters" / f"{group:05d}.npy"

    def line_programs(self, group: int) -> Path:
        """Return the programs that remove a group's repeated lines; missing if there are none."""
        return self.root / "line_programs" / f"{group:05d}.jsonl.zst"


def shard_name(shard: int) -> str:
    """Return the name of a shard in leases and files."""
    return f"{shard:05d}"


def _checked(name: str) -> str:
    """Return `name` if it is a plain file name; ValueError otherwise."""
    if not _SAFE.fullmatch(name) or name.startswith("."):
        raise ValueError(f"not a file name: {name!r}")
    return name
