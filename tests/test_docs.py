"""What the documents say is what the program does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from proxhpc.cli.options import parser

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# argparse lays its help out differently from 3.13 on.
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="written with Python 3.11's argparse")
def test_the_command_page_is_current() -> None:
    check = [sys.executable, str(ROOT / "tools" / "write_cli_docs.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                words = line.partition("#")[0].strip()
                if re.match(r"(\.venv/bin/)?proxhpc ", words):
                    found.append(words)
    return sorted(set(found))


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_are_commands(command: str) -> None:
    import shlex

    parser().parse_args(shlex.split(command)[1:])


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 5
