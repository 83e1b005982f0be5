"""Plans: runs of other versions are refused."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from proxhpc import __version__
from proxhpc.cli.main import main
from proxhpc.errors import StopError
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import local_site, planned

Harm = Callable[[dict[str, object]], object]


def edit_plan(tmp_path: Path, harm: Harm) -> Path:
    """Plan a run, change its plan.json, and return the run directory."""
    run = planned(tmp_path, 3).dir
    data = orjson.loads(run.plan.read_bytes())
    harm(data)
    run.plan.write_bytes(orjson.dumps(data))
    return run.root


@pytest.mark.parametrize(
    "verb", ["status", "verify", "report", "inspect", "merge", "worker", "launch"]
)
def test_a_run_of_version_0_1_is_refused(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = edit_plan(tmp_path, lambda data: data.update(version=2, code="0.1.0"))
    arguments = {
        "launch": [str(tmp_path / "manifest.yaml"), "--site", local_site(tmp_path)],
        "inspect": [str(root), "doc-1"],
    }
    assert main([verb, *arguments.get(verb, [str(root)])]) == 2
    assert capsys.readouterr().err.splitlines() == [
        f"proxhpc: {root} was planned by proxhpc 0.1.0; this is proxhpc {__version__} and cannot "
        "resume it. Use 0.1.0 to finish that run, or choose another run_dir."
    ]


@pytest.mark.parametrize("key", ["version", "code", "shards"])
def test_a_plan_without_a_key_is_damaged(tmp_path: Path, key: str) -> None:
    root = edit_plan(tmp_path, lambda data: data.pop(key))
    with pytest.raises(StopError, match=r"plan\.json is damaged"):
        Plan.load(RunDir(root))
