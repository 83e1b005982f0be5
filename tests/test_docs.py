"""Links and commands in the documentation are valid, and generated pages are current."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from proxhpc.cli.options import parser
from proxhpc.errors import ProxError

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


# argparse lays its help out differently from 3.13 on.
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="written with Python 3.11's argparse")
def test_the_command_page_is_current() -> None:
    check = [sys.executable, str(ROOT / "tools" / "write_cli_docs.py"), "--check"]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            linked = page.parent / path if path else page
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands() -> list[str]:
    """Every proxhpc command in a code block."""
    lines = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), re.S):
            for line in block.splitlines():
                command = line.partition("#")[0].strip()
                if re.match(r"(\.venv/bin/)?proxhpc ", command):
                    lines.append(command)
    return sorted(set(lines))


@pytest.mark.parametrize("command", commands())
def test_commands_in_the_docs_can_be_parsed(command: str) -> None:
    parser().parse_args(shlex.split(command)[1:])


def test_there_are_commands_to_check() -> None:
    assert len(commands()) > 5


def test_every_exit_status_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    errors = [ProxError, *ProxError.__subclasses__()]
    for status in {0, 130, *(error.exit_code for error in errors)}:
        assert f"\n| {status} | " in page
