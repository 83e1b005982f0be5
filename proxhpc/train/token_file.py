"""A memory-mapped file of token ids, read in the order of a seed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.errors import UserError

if TYPE_CHECKING:
    from numpy.typing import NDArray


class TokenFile:
    """Sequences of a corpus: `name.npy` has the ids of its documents, one after another.

    `name.documents.npy` has a row for each document with the fields `key`, `start` and `length`.
    Each epoch reads the documents in the order of a hash of the seed, the epoch and the key, so
    that two corpora with the same keys are read in the same order.
    """

    def __init__(self, path: Path, context: int, seed: int) -> None:
        """UserError if there are not enough tokens for one sequence of `context` + 1 ids."""
        self._ids = _load(path)
        self._documents = np.load(path.with_suffix(".documents.npy"))
        self.tokens = int(self._documents["length"].sum(dtype=np.int64))
        self._context, self._seed = context, seed
        # In an epoch; each shares an id with the next.
        self.sequences = (self.tokens - 1) // context
        if self.sequences < 1:
            raise UserError(
                f"{path} has {self.tokens:,} tokens, too few for a sequence of {context:,}",
                hint="give more text, or a shorter context",
            )
        self._epoch = -1
        self._begin(0)

    def read(self, numbers: Sequence[int]) -> "NDArray[np.int64]":
        """The ids of these sequences, counted over all epochs; one row of context + 1 for each."""
        return np.stack([self._sequence(*divmod(n, self.sequences)) for n in numbers])

    def documents_read(self, sequences: int) -> int:
        """How many documents so many sequences touch."""
        self._begin(0)
        is_whole = sequences >= self.sequences
        tokens = self.tokens if is_whole else sequences * self._context + 1
        return int(self._ends.searchsorted(tokens)) + 1

    def _sequence(self, epoch: int, index: int) -> "NDArray[np.int64]":
        self._begin(epoch)
        position, left = index * self._context, self._context + 1
        pieces = []
        document = int(self._ends.searchsorted(position, side="right"))
        while left:
            end = int(self._ends[document])
            begin = int(self._starts[document]) - (int(self._ends[document - 1]) if document else 0)
            size = min(left, end - position)
            pieces.append(self._ids[begin + position : begin + position + size])
            position, left, document = position + size, left - size, document + 1
        sequence: NDArray[np.int64] = np.concatenate(pieces).astype(np.int64)
        return sequence

    def _begin(self, epoch: int) -> None:
        """Put the documents in the order of an epoch."""
        if epoch == self._epoch:
            return
        salt = _mixed(_mixed(np.array([self._seed]), np.uint64(0)), np.uint64(epoch))[0]
        hashes = _mixed(self._documents["key"], salt)
        # Equal keys: by place in the file.
        order = self._documents[np.argsort(hashes, kind="stable")]
        self._starts: NDArray[np.int64] = order["start"].astype(np.int64)
        self._ends: NDArray[np.int64] = order["length"].astype(np.int64).cumsum()  # in its stream
        self._epoch = epoch


def _load(path: Path) -> "NDArray[np.integer]":
    try:
        ids: NDArray[np.integer] = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as token ids: {error}") from error
    if ids.ndim != 1 or ids.dtype.kind != "u":
        raise UserError(
            f"{path} holds no token ids: its array has {ids.ndim} dimensions of {ids.dtype}",
            hint="it must be one row of uint16 or uint32",
        )
    return ids


def _mixed(values: "NDArray[np.integer]", salt: np.uint64) -> "NDArray[np.uint64]":
    """A hash of each value and the salt (the finalizer of SplitMix64)."""
    x = values.astype(np.uint64) + salt + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed
