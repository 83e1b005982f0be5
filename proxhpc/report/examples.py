"""Documents on the page: before and after, and samples of what was left out as a copy."""

from collections.abc import Iterator, Sequence

from proxhpc.assemble.examples import ExampleTexts
from proxhpc.inspect.diff import LineChange, Piece, diff_lines, hunks
from proxhpc.report.markup import untrusted_text
from proxhpc.status.terminal import whole

_CONTEXT = 2  # unchanged lines around a change
_LINES = 40  # of one document
DROPPED = 15  # of one that was dropped
CHARS = 240  # of a piece of a line; its middle is left out of a longer one
PROGRAM = 1500  # characters of the programs
SAMPLE = 300  # characters of a copy
_SIGNS = {"same": " ", "removed": "-", "added": "+"}


def example(one: ExampleTexts) -> str:
    """A document that opens to what changed in it."""
    outcome = f"{one.outcome}: {one.reason}" if one.reason else one.outcome
    place = "" if one.id == one.source else f" <span>{untrusted_text(one.source, 120)}</span>"
    summary = f"<b>{untrusted_text(outcome)}</b> {untrusted_text(one.id, 120)}{place}"
    programs = "\n".join(one.programs).strip()
    shown = f"<pre class=program>{_lines(programs[:PROGRAM])}</pre>" if programs else ""
    cut = "<p class=note>Only the beginning of this long document is shown.</p>" if one.truncated else ""
    return (
        f"<details><summary>{summary}</summary>\n{cut}{shown}"
        f"<pre class=diff>{''.join(_diff(one))}</pre></details>\n"
    )


def copies(size: int, name: str, one: ExampleTexts | None) -> str:
    """A set of duplicates: how many, the id of one, and how it begins."""
    words = one.before if one is not None and one.after is None else one.after if one else ""
    line = (words or "")[:SAMPLE].replace("\n", " ¶ ")
    shown = f"{untrusted_text(name, 120)}<span>{untrusted_text(line)}</span>"
    return f"<p class=copy><b>{whole(size)}</b> like {shown}</p>\n"


def _diff(one: ExampleTexts) -> Iterator[str]:
    before = one.before.split("\n")
    if one.after is None:
        changes: Sequence[LineChange | int] = [
            LineChange("removed", n, (Piece(line),)) for n, line in enumerate(before)
        ]
    else:
        changes = list(hunks(list(diff_lines(before, one.after.split("\n"))), _CONTEXT))
    limit = DROPPED if one.after is None else _LINES
    for change in changes[:limit]:
        if isinstance(change, int):
            yield _skipped(change)
        else:
            words = "".join(_piece(piece) for piece in change.pieces)
            yield f"<span class={change.kind}>{_SIGNS[change.kind]} {words}</span>"
    rest = sum(change if isinstance(change, int) else 1 for change in changes[limit:])
    if rest:
        yield _skipped(rest)


def _skipped(lines: int) -> str:
    return f"<span class=skipped>  … {whole(lines)} {'line' if lines == 1 else 'lines'}</span>"


def _piece(piece: Piece) -> str:
    words = piece.text
    if len(words) > CHARS:
        half = CHARS // 2
        words = f"{words[:half]} … {words[-half:]}"
    return f"<mark>{untrusted_text(words)}</mark>" if piece.changed else untrusted_text(words)


def _lines(words: str) -> str:
    return "\n".join(untrusted_text(line) for line in words.split("\n"))
