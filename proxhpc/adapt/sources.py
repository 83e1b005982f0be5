"""What a path on the command line teaches with: a run's programs, or pairs of texts."""

from collections.abc import Sequence
from pathlib import Path

from proxhpc.adapt.gold import Gold, GoldFields
from proxhpc.adapt.teachers import Source
from proxhpc.program.syntax import Dialect


def open_sources(paths: Sequence[Path], fields: GoldFields, dialect: Dialect) -> list[Source]:
    """A source for each path: a directory is a run, anything else a file of pairs."""
    return [Gold(path, fields, dialect) for path in paths]
