"""Measure how often the intervals of `proxhpc prove` contain the true difference.

    python tools/prove_calibration.py [DRAWS]

Prints, for each kind of experiment, the share of synthetic experiments whose 95 % interval contains
the true difference, and the share of experiments without a difference that are called better. Exits
with 1 if a coverage is not within 93 % and 97 %.
"""

import sys
from dataclasses import dataclass

import numpy as np

from proxhpc.prove.statistics import paired_effects

TRUE = -0.02  # bits per byte


@dataclass(frozen=True, slots=True)
class Experiment:
    """Standard deviations, in bits per byte, of what makes differences vary."""

    name: str
    arms: int
    seeds: int
    hosts: int
    of_seeds: float
    of_hosts: float
    of_documents: float
    of_trainings: float  # of a document in a single training

    def draw(self, generator: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Losses less their means (arms, seeds, documents), and the documents' hosts.

        The standard deviations are those of differences of arms. Documents have long tails.
        """
        sizes = generator.geometric(0.6, self.hosts)
        host = np.repeat(np.arange(self.hosts), sizes)
        shape = (self.arms, self.seeds, len(host))
        hosts = generator.normal(0, self.of_hosts, (self.arms, 1, self.hosts))[..., host]
        documents = self.of_documents * generator.standard_t(3, (self.arms, 1, len(host)))
        noise = self.of_trainings * generator.standard_t(3, shape)
        seeds = generator.normal(0, self.of_seeds, (self.arms, self.seeds, 1))
        losses = seeds + hosts + (documents + noise) / np.sqrt(3)
        return losses / np.sqrt(2), [f"h{number}" for number in host]


# The first two have the variances measured with models of 1.3M parameters and 120k tokens.
EXPERIMENTS = (
    Experiment("gold text", 2, 3, 120, 0.007, 0.03, 0.06, 0.03),
    Experiment("short texts", 2, 3, 200, 0.002, 0.02, 0.05, 0.03),
    Experiment("seeds vary most", 2, 3, 200, 0.02, 0.02, 0.05, 0.03),
    Experiment("two seeds", 2, 2, 120, 0.004, 0.03, 0.06, 0.03),
    Experiment("five seeds, few hosts", 2, 5, 30, 0.005, 0.03, 0.06, 0.03),
    Experiment("four arms", 4, 3, 120, 0.015, 0.03, 0.06, 0.03),
)


def coverage(experiment: Experiment, draws: int, seed: int = 0) -> tuple[float, float]:
    """The share of intervals with the true difference, and the share below 0 without one."""
    generator = np.random.default_rng(seed)
    covered = better = 0
    for number in range(draws):
        losses, hosts = experiment.draw(generator)
        differences = losses[1:] - losses[:1] + TRUE
        effect = paired_effects(differences, hosts, rounds=300, seed=number)[0]
        half = effect.half_width
        assert half is not None
        covered += abs(effect.mean - TRUE) <= half
        better += effect.mean - TRUE < -half
    return covered / draws, better / draws


def main(draws: int) -> int:
    """Print a line for each experiment; return the exit status."""
    failed = False
    for experiment in EXPERIMENTS:
        covered, better = coverage(experiment, draws)
        failed |= not 0.93 <= covered <= 0.97
        print(f"{experiment.name:24}{covered:8.1%} covered{better:8.1%} falsely better")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 1000))
