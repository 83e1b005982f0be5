"""Write docs/cli.md from the help texts of the command line.

python tools/write_cli_docs.py            write the page
python tools/write_cli_docs.py --check    exit 1 if it is not current
"""

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from proxhpc.cli.options import parser

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"
WIDTH = "96"  # columns, whatever the terminal

HEAD = """\
# The command line

<!-- written by tools/write_cli_docs.py -->

`python -m proxhpc` is the same program as `proxhpc`. Commands with `--json` print one JSON
document; [json.md](json.md) describes its keys. MANIFEST, SITE and RECIPE are a file, or the name
of a file in the current folder or of one that comes with proxhpc.
[Names](manifest.md#rules-for-both-files) has the details.

| exit status | meaning |
|---|---|
| 0 | done; also when the reader of a pipe has seen enough, as in `proxhpc inspect … \\| head` |
| 1 | an error of the operating system; `refine`: every document is quarantined, or there is none |
| 2 | a manifest, option, path or permission is wrong; `doctor`, `plan`: a launch would fail |
| 3 | one shard failed, others can continue |
| 4 | the run has to stop until you have looked at it; `verify`: something is damaged |
| 75 | nothing is wrong, and the same command may succeed later |
| 130 | interrupted; everything committed is kept, and a line says how to resume |

An error is one line on standard error. With `--debug`, before or after the command, it is a
traceback.
"""


def page() -> str:
    """Return the whole page."""
    os.environ["COLUMNS"] = WIDTH
    top = parser()
    return "\n".join([HEAD, f"```text\n{top.format_help()}```\n", *sections(top, "##")])


def sections(parser: argparse.ArgumentParser, heading: str) -> Iterator[str]:
    """The help of each command below a parser."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                name = command.prog.removeprefix("proxhpc ")
                yield f"{heading} {name}\n\n```text\n{command.format_help()}```\n"
                yield from sections(command, f"{heading}#")


def main() -> None:
    """Write or check the page."""
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text)
    elif PAGE.read_text() != text:
        sys.exit(f"{PAGE.name} is not current: run python tools/write_cli_docs.py")


if __name__ == "__main__":
    main()
