"""Writes docs/cli.md from the command line's own help; `--check` only compares.

python tools/write_cli_docs.py [--check]
"""

import argparse
import os
import sys
from pathlib import Path

from proxhpc.cli.options import parser

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = "96"  # columns, so that the page does not depend on a terminal

HEAD = """\
# The command line

<!-- written by tools/write_cli_docs.py -->

Exit status: 0 done, 1 an error of the system that nobody foresaw, 2 the user must act (manifest,
option, path, permission), 3 one shard cannot go on, 4 the run must stop until a person has looked,
75 nothing is wrong and the same command may succeed later, 130 interrupted. `proxhpc --debug
COMMAND …` shows the traceback of an error.
"""


def page() -> str:
    """The whole page."""
    os.environ["COLUMNS"] = WIDTH
    top = parser()
    verbs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    parts = [HEAD, f"```text\n{top.format_help()}```\n"]
    parts += [f"## {name}\n\n```text\n{v.format_help()}```\n" for name, v in verbs.choices.items()]
    return "\n".join(parts)


def main() -> int:
    """Write or check."""
    if "--check" in sys.argv[1:]:
        if PAGE.read_text() == page():
            return 0
        print(f"{PAGE.name} is not current; run python tools/write_cli_docs.py")
        return 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
