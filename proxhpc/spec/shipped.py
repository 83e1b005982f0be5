"""Finds the files that come with proxhpc, such as manifests, and the files that people name."""

import os
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from proxhpc.errors import UserError
from proxhpc.spec.yaml_lines import nearest, quoted

ShippedKind = Literal["manifest", "site", "recipe", "sbatch"]

SHIPPED_VARIABLE = "PROXHPC_SHIPPED"
"""`${PROXHPC_SHIPPED}` in a YAML file is `shipped_folder`, unless the environment has another."""
_PATTERNS: dict[ShippedKind, str] = {
    "manifest": "manifests/*.yaml",
    "site": "slurm/sites/*.yaml",
    "recipe": "recipes/*.yaml",
    "sbatch": "slurm/*.sbatch",
}


@cache
def shipped_folder() -> Path:
    """Return the folder with `manifests`, `recipes` and `slurm`.

    A wheel has it inside the package; in a clone it is the folder above the package.
    """
    package = Path(str(files("proxhpc"))).resolve()
    inside = package / "shipped"
    return inside if inside.is_dir() else package.parent


def shipped_files(kind: ShippedKind) -> dict[str, Path]:
    """Return the shipped files of a kind by name, sorted."""
    return {path.stem: path for path in sorted(shipped_folder().glob(_PATTERNS[kind]))}


def schema_file(kind: ShippedKind) -> Path:
    """Return the JSON Schema of the files of a kind."""
    return (shipped_folder() / _PATTERNS[kind]).with_name("schema.json")


def shipped_kind(path: Path) -> ShippedKind | None:
    """Return of which kind a file is if it is a shipped one."""
    real = path.absolute().resolve()
    return next((kind for kind in _PATTERNS if real in shipped_files(kind).values()), None)


def base_folder(path: Path) -> Path:
    """Return the folder where the relative paths in a file start.

    It is the file's own; for a shipped file it is the current folder, where people work.
    """
    return Path.cwd() if shipped_kind(path) else path.absolute().parent


def find_file(
    kind: ShippedKind, given: str | Path, environ: Mapping[str, str] | None = None
) -> Path:
    """Return the file that a user names: a path, or a name without `.yaml`.

    Names are looked up in $PROXHPC_SITES and ./slurm/sites (sites only), in the current folder and
    among the shipped files. UserError lists the known names.
    """
    path, name = Path(given), str(given)
    if "/" in name or path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    folders = []
    if kind == "site":
        user_folder = (os.environ if environ is None else environ).get("PROXHPC_SITES")
        folders = [*([Path(user_folder)] if user_folder else []), Path("slurm/sites")]
    for folder in (*folders, Path()):
        if (file := folder / f"{name}.yaml").is_file():
            return file
    shipped = shipped_files(kind)
    if name in shipped:
        return shipped[name]
    own = {file.stem for folder in folders for file in folder.glob("*.yaml")}
    known = sorted(own.union(shipped))
    raise UserError(
        f"no {kind} named {quoted(name)}{nearest(name, known)}",
        hint=f"known: {', '.join(known) or 'none'}; or give a file, like ./{name}.yaml",
    )
