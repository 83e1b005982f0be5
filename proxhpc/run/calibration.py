"""What `plan --calibrate` measured: documents of the inputs, really refined."""

from typing import Literal

import orjson
import xxhash
from pydantic import ValidationError

from proxhpc.outputs import OutputModel, UsageTotals
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan


class CalibratedPlace(OutputModel):
    """Consecutive records at a random place of the inputs."""

    documents: int
    """Records, unreadable ones included."""
    documents_kept: int
    """Of these, those that reach the merge."""
    bytes: int
    """Bytes of the records, after decompression."""
    tokens: int
    """Raw tokens."""
    tokens_kept: int
    """Refined tokens of the documents that reach the merge."""


class Calibration(OutputModel):
    """Documents drawn at random from the inputs, and what refining them took."""

    format: Literal["proxhpc.calibration/1"] = "proxhpc.calibration/1"
    """Kind and version of this document."""
    key: str
    """Digest of inputs, stages, models, engine and policy, for which the numbers are."""
    places: tuple[CalibratedPlace, ...]
    """Where the documents were read."""
    device: str | None
    """Name of the GPUs; null on a CPU."""
    devices: int
    """GPUs that refined the documents."""
    site: str
    """Name of the site whose resources refined the documents; the times hold for it alone."""
    cores: int
    """CPU cores that the site gives to a worker."""
    host: str
    """Name of the machine."""
    seconds: float
    """From the first request to the last row."""
    boot_seconds: float
    """Time to load the models."""
    usage: dict[str, UsageTotals]
    """Requests to the models by level."""
    ledger_bytes: int
    """Size of the rows in a ledger."""
    corpus_bytes: int
    """Size of the refined documents in the corpus, compressed."""
    corpus_bytes_raw: int
    """The same before compression."""

    def total(self, name: str) -> int:
        """Return the sum of a field over all places."""
        return sum(getattr(place, name) for place in self.places)

    def worker_seconds(self, size: float, workers: int) -> float:
        """Return the time of all workers together, loading included, for `size` bytes of records.

        The workers must be like the one that refined the documents.
        """
        return self.seconds / max(1, self.total("bytes")) * size + self.boot_seconds * workers


def calibration_key(plan: Plan) -> str:
    """Return the digest of all that changes what refining a document takes and gives."""
    data = [
        [info.fingerprint for info in plan.inputs],
        {level: model.to_dict() for level, model in plan.models.items()},
        plan.manifest.model_dump(
            mode="json",
            include=dict.fromkeys(("corpus", "stages", "engine", "policy", "output"), True),
            exclude={"engine": {"max_unusable"}, "output": {"shuffle", "part_size"}},
        ),
    ]
    return xxhash.xxh3_128_hexdigest(orjson.dumps(data, option=orjson.OPT_SORT_KEYS))


def load_calibration(run: RunDir, plan: Plan) -> Calibration | None:
    """Return the calibration of a run; None if there is none for this manifest."""
    try:
        found = Calibration.model_validate_json(run.calibration_result.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.key == calibration_key(plan) else None


def calibration_problem(run: RunDir) -> str:
    """Return why a calibration is ignored whatever the manifest, or ""."""
    try:
        Calibration.model_validate_json(run.calibration_result.read_bytes())
    except FileNotFoundError:
        return ""
    except ValidationError:
        return (
            f"{run.calibration_result} is damaged and ignored; `proxhpc plan --calibrate N` "
            "writes it again"
        )
    return ""
