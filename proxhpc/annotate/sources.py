"""Opens the sources named on the command line: runs and files of gold records."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from proxhpc.annotate.gold import GoldSource
from proxhpc.annotate.labels import LabelSource
from proxhpc.annotate.programs import RunSource
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import GoldFields
from proxhpc.program.syntax import Dialect
from proxhpc.run.paths import RunDir


def check_output(out: Path, inputs: Iterable[Path]) -> Path:
    """`out`. UserError if it is one of the inputs."""
    if any(path.exists() and out.exists() and path.samefile(out) for path in inputs):
        raise UserError(f"--out {out} would overwrite an input", hint="name another file")
    return out


def open_sources(paths: Sequence[Path], fields: GoldFields, dialect: Dialect) -> list[LabelSource]:
    """A source for each path: a directory is a run, anything else a file of gold records."""
    return [
        RunSource(RunDir(path.absolute()), fields)
        if path.is_dir()
        else GoldSource(path, fields, dialect)
        for path in paths
    ]
