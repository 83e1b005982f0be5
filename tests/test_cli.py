"""The command line itself: its help, its errors and exit statuses, and pipes."""

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from proxhpc import __version__
from proxhpc.cli.main import COMMANDS, main
from proxhpc.cli.options import parser
from proxhpc.cluster import tasks
from proxhpc.errors import UserError
from runs import PARAGRAPH, document, local_site, manifest, planned, write_jsonl

JOBS = ("worker", "advance", "schema")
ARGUMENTS = {
    "doctor": [],
    "refine": [],
    "evaluate": ["gold.jsonl"],
    "annotate": ["run", "--out", "examples.jsonl.zst"],
    "adapt": ["recipe.yaml", "--out", "model"],
    "init": ["site"],
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


def test_counts_agree_with_their_nouns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of one document, in every view of it."""
    path = manifest(tmp_path, [write_jsonl(tmp_path / "a.jsonl", [document(1)])])
    where, root = ["--site", local_site(tmp_path, workers=1)], str(tmp_path / "run")
    pair = {"text_noisy": f"Home\n{PARAGRAPH}", "text_gold": PARAGRAPH}
    gold = str(write_jsonl(tmp_path / "gold.jsonl", [pair]))
    for command in (
        ["plan", str(path), *where],
        ["launch", str(path), *where],
        ["status", root],
        ["report", root],
        ["inspect", root, "doc-1"],
        ["verify", root],
        ["merge", root, "--out", str(tmp_path / "other"), "--threshold", "0.9"],
        ["refine", "--diff", str(tmp_path / "a.jsonl")],
        ["annotate", gold, "--out", str(tmp_path / "examples.jsonl.zst")],
        ["evaluate", gold],
    ):
        assert main(command) == 0
    texts = [*capsys.readouterr(), *(p.read_text() for p in (tmp_path / "run").rglob("*.html"))]
    shown = re.sub(r"<(style|script).*?</\1>|<[^>]+>", " ", " ".join(texts), flags=re.S)
    assert re.findall(r"(?<![\d.,/])\b1 [a-z]+s\b(?!/s).{20}", shown) == []


def test_a_command_restores_how_often_garbage_is_collected(tmp_path: Path) -> None:
    before = gc.get_threshold()
    assert main(["status", str(tmp_path)]) == 2
    assert gc.get_threshold() == before


def test_the_first_page_lists_the_commands_that_people_type() -> None:
    page = parser().format_help()
    listed = [line.split()[0] for line in page.splitlines() if re.match("  [a-z]", line)]
    assert sorted([*listed, *JOBS]) == sorted(COMMANDS)
    assert max(map(len, page.splitlines())) <= 100


def test_commands_for_jobs_are_documented_all_the_same() -> None:
    page = (Path(__file__).parent.parent / "docs" / "cli.md").read_text()
    assert all(f"\n## {verb}\n" in page for verb in COMMANDS)
    assert "\n### init site\n" in page


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("lanch x", "proxhpc: error: argument COMMAND: there is no lanch; did you mean launch?"),
        ("xyz", "there is no xyz; choose from init, doctor, plan, .*, adapt, prove$"),
        (
            "launch demo --sites x",
            "proxhpc launch: error: there is no option --sites; did you mean",
        ),
        (
            "plan demo --zz",
            "proxhpc plan: error: there is no option --zz; see `proxhpc plan --help`",
        ),
        ("status a b", "proxhpc status: error: one argument too many: b$"),
        ("inspect a --outcome droped", "argument --outcome: .* did you mean dropped"),
        ("init", r"required: manifest\|recipe\|sbatch\|site$"),
    ],
)
def test_a_misspelt_word_is_named_with_what_was_meant(
    words: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as status:
        main(words.split())
    assert status.value.code == 2
    assert re.search(told, capsys.readouterr().err.strip())


def test_a_run_that_is_named_like_its_manifest_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = planned(tmp_path, run_dir="runs/small").dir
    monkeypatch.chdir(tmp_path)
    assert main(["status", "small"]) == 2
    told = capsys.readouterr().err
    assert f"{tmp_path}/small is not a run directory: there is no such directory" in told
    assert f"did you mean {run.root}?" in told


def test_the_program_alone_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as status:
        main([])
    assert status.value.code == 0
    assert "Before a run:" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--help"], ["launch", "--help"], ["schema", "site"]])
def test_help_may_be_piped_into_head(arguments: list[str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "proxhpc", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def complete(shell: str, line: str, tmp_path: Path) -> list[str]:
    """What a shell offers at the end of a command line."""
    script = tmp_path / f"script.{shell}"
    script.write_text(
        subprocess.run(
            [sys.executable, "-m", "proxhpc", "--print-completion", shell],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    if shell == "fish":
        code = f"source {script}; complete -C '{line}'"
    else:
        words = line.split(" ")
        code = (
            f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); "
            f"COMP_CWORD={len(words) - 1}; _shtab_proxhpc; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        )
    done = subprocess.run(
        [shell, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    return [found.split("\t")[0] for found in done.stdout.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_commands_options_and_files(shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on this machine")
    assert set(complete(shell, "proxhpc ", tmp_path)) >= {"launch", "status", "init"}
    assert not set(complete(shell, "proxhpc ", tmp_path)) & set(JOBS)
    assert "--dry-run" in complete(shell, "proxhpc launch --", tmp_path)
    (tmp_path / "mine.yaml").touch()
    assert "mine.yaml" in complete(shell, "proxhpc launch mi", tmp_path)


def test_zsh_reads_its_script(tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("no zsh on this machine")
    made = subprocess.run(
        [sys.executable, "-m", "proxhpc", "--print-completion", "zsh"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert made.startswith("#compdef proxhpc\n")
    assert "--dry-run" in made
    subprocess.run(["zsh", "-n"], input=made, text=True, check=True)
