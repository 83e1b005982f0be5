"""Baselines that a refiner should beat (simple line rules), and the oracle, an upper bound.

Each returns a byte for each line of a chunk-level record, 1 if the line is kept. The published
rules for documents are the engine `rules`, which runs like any refiner.
"""

from collections.abc import Callable

from proxhpc.engines.rules.heuristics import c4_line
from proxhpc.evaluate.gold import BOILERPLATE, GoldRecord
from proxhpc.evaluate.metrics import tokens

Baseline = Callable[[GoldRecord], bytes | None]
MIN_TOKENS = 8


def keep_all(gold: GoldRecord) -> bytes:
    """Keep every line."""
    return b"\1" * (gold.text.count("\n") + 1)


def c4_lines(gold: GoldRecord) -> bytes:
    """Keep the lines that C4's line rules keep (`heuristics.c4_line`)."""
    return bytes(not c4_line(line) for line in gold.text.split("\n"))


def eight_words(gold: GoldRecord) -> bytes:
    """Keep lines of at least 8 tokens."""
    return bytes(len(tokens(line)) >= MIN_TOKENS for line in gold.text.split("\n"))


def oracle(gold: GoldRecord) -> bytes | None:
    """Remove exactly the lines labelled as boilerplate; None if lines have no labels."""
    return bytes(label != BOILERPLATE for label in gold.labels) if gold.labels else None


BASELINES: dict[str, Baseline] = {
    "keep all": keep_all,
    "C4 line rule": c4_lines,
    "8 words": eight_words,
    "oracle": oracle,
}
