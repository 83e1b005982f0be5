"""Every path of a prove directory.

prove.json                           the frozen section `prove`, the run and the inputs
rules/<arm>/                         run directory of an arm that rules refine
corpora/<arm>/                       deduplicated corpus of an arm with another policy
heldout/<set>.jsonl.zst              documents {"id", "host", "text"}, in a fixed order
heldout/<set>.json                   its counts, written last
tokens/tokenizer/                    the tokenizer of all arms
tokens/<arm>.npy                     token ids of the arm's documents, one after another
tokens/<arm>.documents.npy           a DOCUMENT row for each of them
tokens/<arm>.json                    its ArmReceipt, written last
trainings/<arm>-<seed>/              checkpoints, `weights/`, `train.jsonl` (loss curve)
trainings/<arm>-<seed>/result.json   its TrainingReceipt, written last
evaluations/<arm>-<seed>-<set>.npy   bits of each held-out document under the final weights
evaluations/<arm>-<seed>-<set>-<step>.npy   the same under the weights of a milestone
verdict.json, prove.html             written last
site.json, submissions.jsonl, leases/, workers/, logs/   as in a run
"""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from proxhpc.corpus.disk import write_atomic
from proxhpc.run.paths import RunDir

DOCUMENT = [("key", "<u8"), ("start", "<u8"), ("length", "<u4")]
"""numpy's dtype of a document in `<arm>.documents.npy`: a hash of its id, and its tokens."""


class ProveDir(RunDir):
    """The directory of `proxhpc prove`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.plan = root / "prove.json"
        self.corpora, self.rules = root / "corpora", root / "rules"
        self.heldout, self.tokens = root / "heldout", root / "tokens"
        self.trainings, self.evaluations = root / "trainings", root / "evaluations"
        self.tokenizer = self.tokens / "tokenizer"
        self.verdict = root / "verdict.json"
        self.page = root / "prove.html"

    def folders(self) -> list[Path]:
        """Return the folders that a new prove directory needs."""
        own = [self.heldout, self.tokens, self.trainings, self.evaluations]
        return [self.leases, self.workers, self.logs, *own]

    def heldout_set(self, name: str) -> Path:
        """Return the documents of a held-out set."""
        return self.heldout / f"{name}.jsonl.zst"

    def heldout_receipt(self, name: str) -> Path:
        """Return the counts of a held-out set."""
        return self.heldout / f"{name}.json"

    def arm_tokens(self, arm: str) -> Path:
        """Return the token ids of an arm."""
        return self.tokens / f"{arm}.npy"

    def arm_documents(self, arm: str) -> Path:
        """Return the documents of an arm: where their tokens are."""
        return self.tokens / f"{arm}.documents.npy"

    def arm_receipt(self, arm: str) -> Path:
        """Return the counts of an arm."""
        return self.tokens / f"{arm}.json"

    def training(self, arm: str, seed: int) -> Path:
        """Return the folder of a training."""
        return self.trainings / f"{arm}-{seed}"

    def training_receipt(self, arm: str, seed: int) -> Path:
        """Return what a finished training did."""
        return self.training(arm, seed) / "result.json"

    def evaluation(self, arm: str, seed: int, held_out: str, step: int | None = None) -> Path:
        """Return the bits of a held-out set's documents under a training's weights."""
        milestone = "" if step is None else f"-{step}"
        return self.evaluations / f"{arm}-{seed}-{held_out}{milestone}.npy"


class Receipt(BaseModel):
    """Base of the files that say that something is finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return the receipt in a file."""
        return cls.model_validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write the file, completely or not at all."""
        write_atomic(path, self.model_dump_json().encode())


class HeldOutReceipt(Receipt):
    """A held-out set: its documents, hosts and UTF-8 bytes, and what was left out by reason."""

    documents: int
    hosts: int
    bytes: int
    left_out: dict[str, int]


class ArmReceipt(Receipt):
    """An arm: documents, tokens and UTF-8 bytes to train on, and what was left out, by reason.

    `refining_flops` is what the arm's refining took in all, 0 if no model was asked; `raw_bytes`
    are the bytes that were refined.
    """

    documents: int
    tokens: int
    bytes: int
    left_out: dict[str, int]
    refining_flops: int
    raw_bytes: int
    digest: str  # SHA-256 of the token file


class Milestone(Receipt):
    """A checkpoint of a training that was evaluated, too."""

    step: int
    tokens: int
    flops: int


class TrainingReceipt(Receipt):
    """A finished training."""

    arm: str
    seed: int
    steps: int
    tokens: int  # that the model was trained on
    epochs: float  # of the arm's documents
    documents: int  # that were read, at least in part
    flops: int
    parameters: int
    digest: str  # SHA-256 of the SHA-256s of the files of the evaluated weights
    milestones: tuple[Milestone, ...] = ()
