"""The wheel is the whole product: installed without the clone, it runs the demo."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from conftest import lack

ROOT = Path(__file__).parent.parent
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    built = subprocess.run(
        [*PIP, "wheel", "--no-deps", "--wheel-dir", str(out), str(ROOT)],
        capture_output=True,
        text=True,
        check=False,
    )
    if "hatchling" in built.stderr and built.returncode:
        lack("wheel", "pip finds no hatchling, which builds the wheel")
    assert built.returncode == 0, built.stderr
    [path] = out.iterdir()
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a fresh environment with the wheel, and with this one's dependencies."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    [packages] = (root / "lib").glob("python*/site-packages")
    # Files named *.pth in that folder are not read, so the clone stays out of sight.
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    install = ["install", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*PIP, "--python", str(root / "bin" / "python"), *install], check=True)
    return root / "bin"


def run(program: Path, *arguments: str, cwd: Path, status: int = 0) -> str:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PROXHPC"))}
    done = subprocess.run(
        [program, *arguments],
        cwd=cwd,
        env=inherited,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def test_the_wheel_has_all_files_of_the_package(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    listed = subprocess.run(
        ["git", "ls-files", "proxhpc", "manifests", "recipes", "slurm"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    files = [name for name in listed.stdout.splitlines() if (ROOT / name).exists()]
    expected = {n if n.startswith("proxhpc/") else f"proxhpc/shipped/{n}" for n in files}
    assert expected <= names
    assert "proxhpc/py.typed" in names
    assert not [name for name in names if name.startswith(("tests", "tools", "docs"))]


def test_the_demo_runs_from_the_wheel_in_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    program = environment / "proxhpc"
    code = "import proxhpc, proxhpc.spec.shipped as s; print(proxhpc.__file__, s.shipped_folder())"
    for path in run(environment / "python", "-c", code, cwd=tmp_path).split():
        assert path.startswith(str(environment.parent))
    assert "finished" in run(program, "launch", "demo", cwd=tmp_path)
    assert (tmp_path / "runs/demo/report/report.html").is_file()
    assert "finished" in run(program, "status", "runs/demo", cwd=tmp_path)
    shown = run(
        program, "inspect", "runs/demo", "--sample", "1", "--outcome", "edited", cwd=tmp_path
    )
    assert "remove_lines" in shown
    assert "agree" in run(program, "verify", "runs/demo", cwd=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_what_people_start_from_is_in_the_wheel(environment: Path, tmp_path: Path) -> None:
    program = environment / "proxhpc"
    version = run(environment / "python", "-m", "proxhpc", "--version", cwd=tmp_path)
    assert version == run(program, "--version", cwd=tmp_path)
    assert "FINEWEB_DIR" in run(program, "init", "manifest", "fineweb", cwd=tmp_path)
    run(program, "init", "sbatch", "refine", cwd=tmp_path)
    assert (tmp_path / "refine.sbatch").read_text() == (ROOT / "slurm/refine.sbatch").read_text()
    assert "local: local" in run(program, "doctor", "--manifest", "demo-rules", cwd=tmp_path)
    assert "known: base, embedded, embedded-verdicts" in run(
        program, "adapt", "x", "--out", "x", cwd=tmp_path, status=2
    )
