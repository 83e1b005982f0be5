"""Refine pre-training corpora on Slurm clusters with small language models."""

__version__ = "0.2.0"
