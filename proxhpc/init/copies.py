"""Writes copies of shipped files, which people change for their own use."""

import re
from collections.abc import Callable
from pathlib import Path

from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import UserError
from proxhpc.spec.shipped import SHIPPED_VARIABLE, ShippedKind, shipped_files
from proxhpc.spec.yaml_lines import nearest, quoted

_SCHEMA_LINE = re.compile(r"# yaml-language-server: .*\n")  # the schema is not copied
_NEEDED = re.compile(r"\$\{(\w+)\}")  # variables without a default


def copy_shipped(kind: ShippedKind, name: str, path: Path) -> list[str]:
    """Copy a shipped file to `path`; return the environment variables that it needs.

    UserError if there is no such file, or if `path` exists.
    """
    known = shipped_files(kind)
    if name not in known:
        raise UserError(
            f"no {kind} named {quoted(name)} comes with proxhpc{nearest(name, known)}",
            hint=f"there are: {', '.join(known)}",
        )
    text = _SCHEMA_LINE.sub("", known[name].read_text(encoding="utf-8"))
    write_new(path, lambda: text)
    variables = dict.fromkeys(_NEEDED.findall(text)) if known[name].suffix == ".yaml" else ()
    return [name for name in variables if name != SHIPPED_VARIABLE]


def write_new(path: Path, make: Callable[[], str]) -> None:
    """Write the text that `make` returns. UserError if the file exists or cannot be written."""
    if path.exists():
        raise UserError(f"{path} exists", hint="give another FILE, or delete it")
    write_atomic(path, make().encode())
