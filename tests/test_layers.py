"""The house holds: imports go one way, heavy ones wait, the README's tree names every file."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "proxhpc"
# A module imports from its own line and from those above it.
LINES = [
    ["__init__", "errors", "faults"],
    ["program"],
    ["corpus"],
    ["account"],
    ["yamltree", "config", "slurm_notation", "sections", "manifest", "site"],
    ["rundir", "refiner_file", "models", "plan", "estimate"],
    ["refine"],
    ["assemble"],
    ["cluster"],
    ["status", "inspect", "report"],
    ["doctor", "verify"],
    ["here"],
    ["evaluate"],
    ["adapt"],
    ["advance", "launch", "variant"],
    ["options"],
    ["cli", "__main__"],
]
LINE = {room: number for number, line in enumerate(LINES) for room in line}
HEAVY = {"torch", "vllm", "transformers", "submitit", "pyarrow", "matplotlib", "numpy"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "proxhpc":
                yield from (f"proxhpc.{name.name}" for name in node.names)
            else:
                yield node.module or ""


def test_every_module_has_a_room() -> None:
    assert {room(path) for path in MODULES} <= set(LINE)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_one_way(path: Path) -> None:
    own = LINE[room(path)]
    for name in imports(path):
        first, _, rest = name.partition(".")
        target = rest.split(".")[0] if first == "proxhpc" else ""
        if target and target != "__version__":
            assert LINE[target] <= own, f"{path.name} imports {name} from a lower room"


@pytest.mark.parametrize(
    "arguments", [["--help"], ["launch", "--help"], ["schema", "manifest"], ["status", "nowhere"]]
)
def test_the_command_line_starts_light(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from proxhpc.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    allowed = ["numpy"] if arguments[0] == "status" else []
    found = done.stdout.rpartition("HEAVY ")[2].strip()
    assert found in ("[]", str(allowed))


def test_readme_tree_names_every_module() -> None:
    readme = (ROOT / "README.md").read_text()
    named = set(re.findall(r"[\w.-]+", readme))
    missing = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.name != "__init__.py" and path.name not in named
    ]
    assert not missing, f"not in the README's tree: {missing}"


def test_nothing_names_this_workplace() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    forbidden = re.compile("|".join([r"\.\./sh" + "ared", r"/wo" + r"rk/", r"pyp" + r"i\.org"]))
    for name in listed:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".sh", "") and path.is_file():
            assert not forbidden.search(path.read_text(errors="replace")), name
