"""The typed document of `proxhpc plan --json`."""

from typing import Literal

from proxhpc.evaluate.bootstrap import Score
from proxhpc.outputs import OutputModel
from proxhpc.run.estimate import WorkFigures

SpacePhase = Literal["refine", "sketch", "match", "scatter", "write", "finished"]


class ModelFigures(OutputModel):
    """The model of a stage."""

    name: str
    """Directory or hub id."""
    parameters: int | None
    """Number of its weights; null if its architecture is not known."""
    engine: dict[str, str]
    """Engine settings of the stage that differ from the run's."""


class CostEstimate(OutputModel):
    """What refining will take. The merge, queues and repeated work are left out."""

    basis: Literal["calibration", "flops"] | None
    """`calibration`: documents really refined (`--calibrate`). `flops`: `estimated_work.flops` at
    40 % of the GPU's peak, which no measurement supports. null: neither is known."""
    documents: int | None = None
    """Documents of the calibration."""
    host: str | None = None
    """Machine that refined them."""
    device: str | None
    """GPU: the calibration's, else the one that the site names, else A100; null on a CPU."""
    device_is_assumed: bool = False
    """True if the site does not name a known GPU."""
    gpu_hours: float | None
    """GPU-hours of all workers; null on a CPU."""
    core_hours: float | None = None
    """CPU core-hours of all workers; null without a calibration."""
    days: float | None
    """Time if all workers work all the time; null if the number of their GPUs is not known."""
    price: str | None
    """Price of the GPU-hours, if the site has `price_per_gpu_hour`."""


class KeptEstimate(OutputModel):
    """What will reach the merge, by the calibration; duplicates are not removed yet."""

    share: Score
    """Share of the tokens, with its 95 % interval; the calibration's places are resampled."""
    tokens: int
    """Tokens."""
    documents: int
    """Documents."""


class PhaseSpace(OutputModel):
    """What the run directory holds at the fullest moment of a phase."""

    phase: SpacePhase
    """The phase; `finished` is the run with its report."""
    bytes: int
    """Bytes on disk."""
    inodes: int
    """Files and folders."""


class PlanEstimate(OutputModel):
    """What `proxhpc plan` prints. Estimates are neither upper nor lower bounds."""

    format: Literal["proxhpc.plan/1"] = "proxhpc.plan/1"
    """Kind and version of this document."""
    name: str
    """Name of the run."""
    run_dir: str
    """Run directory."""
    site: str
    """Name of the site."""
    engine: str
    """Name of the engine."""
    models: dict[str, ModelFigures]
    """Models by level, `doc` and `chunk`."""
    workers: int
    """Workers at the same time."""
    workers_per_gpu: int
    """Workers that share a GPU."""
    shards: int
    """Shards, the units that workers lease."""
    files: int
    """Input files."""
    bytes_on_disk: int
    """Size of the input files."""
    estimated_bytes: int
    """Their size after decompression."""
    estimated_work: WorkFigures
    """Work of the whole run."""
    measured_work: WorkFigures | None
    """Work done so far, if the run has started."""
    tokens_counted_as: str
    """How tokens are estimated."""
    flops_counted_as: str | None
    """How FLOPs are estimated; null without a model."""
    cost: CostEstimate
    """Time of GPUs and CPUs."""
    kept: KeptEstimate | None
    """What is left of the text; null without a calibration."""
    corpus_bytes: int
    """Size of the corpus, compressed; without a calibration, if nothing is dropped."""
    space: tuple[PhaseSpace, ...]
    """Disk space by phase."""
    merge_memory_bytes: int
    """Memory of the merge, in all its processes on one node."""
    comparison_probability: dict[str, float] | None
    """Probability that two documents are compared, by similarity; null without `dedup.near`."""
    notes: tuple[str, ...]
    """Remarks about single input files, missing disk space, and a calibration that is damaged."""
    problems: tuple[str, ...] = ()
    """Why a launch would not work, as far as it is known before one."""

    @property
    def peak(self) -> PhaseSpace:
        """The phase that needs most disk space."""
        return max(self.space, key=lambda phase: phase.bytes)
