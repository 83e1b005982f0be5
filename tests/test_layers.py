"""The architecture page is true: it names every file, and imports only point up in it."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxhpc"
HEAVY = {"torch", "vllm", "transformers", "submitit", "pyarrow", "matplotlib", "numpy"}


def printed() -> list[str]:
    """Files of the package as the tree in docs/architecture.md prints them, whole paths."""
    block = re.search(r"```text\n(proxhpc/\n.*?)```", PAGE.read_text(), re.S)
    assert block
    folders: list[str] = []
    files = []
    for line in block[1].splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        if name.endswith(".py"):
            files.append("/".join(folders))
    return files


def has_code(path: Path) -> bool:
    """Whether a module is more than a docstring."""
    return path.name != "__init__.py" or len(ast.parse(path.read_text()).body) > 1


PAGE = ROOT / "docs" / "architecture.md"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if has_code(path))
PRINTED = printed()


def imported(path: Path) -> Iterator[str]:
    """Files of the package that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{name.name}" for name in node.names]
        for name in names:
            if name.partition(".")[0] == "proxhpc":
                yield file_of(name)


def file_of(name: str) -> str:
    """The file of a module, or of the module that a dotted name is in."""
    while name:
        base = ROOT / name.replace(".", "/")
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return str(path.relative_to(ROOT))
        name = name.rpartition(".")[0]
    raise AssertionError


def test_the_tree_names_every_module_once() -> None:
    assert sorted(PRINTED) == [str(path.relative_to(ROOT)) for path in MODULES]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_those_printed_above_it(path: Path) -> None:
    above = PRINTED[: PRINTED.index(str(path.relative_to(ROOT)))]
    for target in imported(path):
        if has_code(ROOT / target):
            assert target in above, f"imports {target}, which stands below it"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["launch", "--help"], ["schema", "manifest"], ["status", "nowhere"]]
)
def test_the_command_line_starts_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from proxhpc.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    allowed = ["numpy"] if arguments[0] == "status" else []
    found = done.stdout.rpartition("HEAVY ")[2].strip()
    assert found in ("[]", str(allowed))


def test_nothing_names_this_workplace() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    forbidden = re.compile("|".join([r"\.\./sh" + "ared", r"/wo" + r"rk/", r"pyp" + r"i\.org"]))
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".sh", "") and path.is_file():
            assert not forbidden.search(path.read_text(errors="replace")), name
