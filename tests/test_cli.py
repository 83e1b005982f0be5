"""The command line itself: its help, its errors and exit statuses, and pipes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from proxhpc import __version__
from proxhpc.cli.main import COMMANDS, main
from proxhpc.cli.options import parser
from proxhpc.cluster import tasks
from proxhpc.errors import UserError
from runs import planned

ARGUMENTS = {
    "doctor": [],
    "refine": [],
    "evaluate": ["gold.jsonl"],
    "annotate": ["run", "--out", "examples.jsonl.zst"],
    "adapt": ["recipe.yaml", "--out", "model"],
    "inspect": ["run", "id"],
    "schema": ["site"],
}


def test_the_package_is_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "proxhpc", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"proxhpc {__version__}\n"


@pytest.mark.parametrize("verb", COMMANDS)
def test_debug_may_stand_before_or_behind_the_command(verb: str) -> None:
    command = [verb, *ARGUMENTS.get(verb, ["run"])]
    assert not parser().parse_args(command).debug
    assert parser().parse_args(["--debug", *command]).debug
    assert parser().parse_args([*command, "--debug"]).debug


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["status", str(tmp_path)]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("proxhpc: ")
    with pytest.raises(UserError):
        main([*command, "--debug"])


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", "--sample", "400"],
        ["inspect", "--sample", "400", "--json"],
        ["inspect", "--sample", "1"],
        ["inspect", "--sample", "1", "--json"],
        ["report", "--json"],
        ["report"],
    ],
)
def test_a_reader_may_close_the_pipe(refined_run: Path, arguments: list[str]) -> None:
    verb, *options = arguments
    command = [sys.executable, "-m", "proxhpc", verb, str(refined_run), *options]
    env = os.environ | {"PYTHONUNBUFFERED": ""}  # a short output is written only at exit
    with subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


@pytest.fixture(scope="module")
def refined_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = planned(tmp_path_factory.mktemp("run"), 400).dir
    tasks.refine_task(str(run.root), 0, 1)
    return run.root


def test_commands_for_jobs_and_scripts_come_last() -> None:
    listing = parser().format_help().partition("For jobs and scripts:\n")
    last = [line.split()[0] for line in listing[2].partition("\n\n")[0].splitlines()]
    assert last == ["worker", "advance", "schema"]
    assert all(f"\n  {verb} " in listing[0] for verb in COMMANDS.keys() - set(last))
