"""A review on a terminal: the screen, and the table of estimates."""

from collections.abc import Iterator

from rich.console import Group, RenderableType, group
from rich.rule import Rule
from rich.text import Text

from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import reason_text
from proxhpc.inspect.view import OUTCOME_STYLES
from proxhpc.review.document import Stratum
from proxhpc.review.estimate import Estimate, ReviewSummary, summarize
from proxhpc.review.page import Page
from proxhpc.review.session import KEYS, ReviewSession
from proxhpc.status.terminal import plain_table, safe, whole

CHROME = 6
"""Rows of the screen that show no line of the document."""
_QUESTIONS = {
    "edited": "Are these changes right?",
    "kept": "Is it right to change nothing?",
    "dropped": "Is it right to drop this document?",
    "quarantined": "Is it right to leave this document out?",
}
_NAMES = {
    "documents_right": "documents all right",
    "removed_lines_right": "removed lines right (precision)",
    "lines_found": "lines to remove found (recall)",
    "changed_lines_right": "changed lines right",
    "drops_right": "dropped documents right (precision)",
    "drops_found": "documents to drop found (recall)",
}
_SHORT = {
    "removed_lines_right": "precision",
    "lines_found": "recall",
    "drops_right": "drops right",
}
_FOOT = "y right  w wrong  Space line goes/stays  d drop  s skip  u undo  ? help  q quit"
_SIGNS = "- removed  ~ + changed  ! not as it was done"


def render_screen(session: ReviewSession, width: int, height: int) -> RenderableType:
    """The whole screen."""
    page, room = session.page, max(1, height - CHROME)
    title, facts, body = Text("No document is left", "bold"), Text(), list[Text]()
    position, question = "", "u takes the last mark back, q quits."
    if session.skipped:
        skipped = quantity(session.skipped, "document")
        position = f"{skipped} skipped: the next review asks about them"
    if page:
        page.resize(width, room)
        item = page.document.item
        title, facts, body = Text(safe(item.id, 200), "bold"), _facts(page), page.draw()
        first, last = page.visible()[0][0] + 1, page.visible()[-1][0] + 1
        position = f"lines {first:,} to {last:,} of {len(page.lines):,}"
        question = _QUESTIONS.get(item.stratum.outcome, "")
        if page.is_touched:
            question = f"{'y' if item.stratum.is_kept else 'k'} keeps the lines as shown."
    if session.shows_help:
        body = [Text.assemble((f"{keys:18}", "bold"), text) for keys, text in KEYS.items()]
        body += [Text(), Text(_SIGNS)]
    rows: list[RenderableType] = [
        _with_progress(title, session, width),
        Rule(facts, align="left", style="dim"),
        *body[:room],
        *[Text()] * (room - len(body)),
        Rule(Text(position, style="dim"), align="right", style="dim"),
        Text(session.message or question, style="bold yellow" if session.message else "bold"),
        Text(_numbers(session), style="dim"),
        Text(_FOOT, style="dim"),
    ]
    for row in rows:
        if isinstance(row, Text):
            row.no_wrap, row.overflow = True, "ellipsis"
    return Group(*rows)


def _facts(page: Page) -> Text:
    item, document = page.document.item, page.document
    facts = [_stratum(item.stratum)]
    if removed := sum(line is None for line in document.refined):
        facts.append(f"{quantity(removed, 'line')} removed")
    if changed := len(page.edits) - removed:
        facts.append(f"{quantity(changed, 'line')} changed")
    style = OUTCOME_STYLES.get(item.stratum.outcome, "")
    if item.position != item.id:
        facts.append(item.position)
    return Text(safe(" · ".join(facts)), style)


def _with_progress(title: Text, session: ReviewSession, width: int) -> Text:
    """A title, and how far the review is at the right edge."""
    progress = f" {len(session.marks.marks):,} marked, {session.left:,} left"
    title.truncate(max(0, width - len(progress)), overflow="ellipsis", pad=True)
    return title.append(progress, "not bold dim")


def _numbers(session: ReviewSession) -> str:
    estimates = summarize("", session.marks.marks, session.source.sizes).estimates
    return "  ".join(
        f"{name} {_share(estimates[key])}" for key, name in _SHORT.items() if estimates[key].of
    )


def _stratum(stratum: Stratum) -> str:
    reason = f": {reason_text(stratum.reason)}" if stratum.reason else ""
    return f"{stratum.outcome}{reason}"


def _share(one: Estimate) -> str:
    """A share with its interval: `93 % (82–98)`."""
    if one.value is None or one.low is None or one.high is None:
        return "-"
    return f"{100 * one.value:.0f} % ({100 * one.low:.0f}–{100 * one.high:.0f})"


@group()
def render_review(summary: ReviewSummary) -> Iterator[RenderableType]:
    """The tables of a review: documents by outcome and reason, and estimates for all."""
    named = f", {summary.named:,} of them named with --id" if summary.named else ""
    yield Text(safe(f"{quantity(summary.marked, 'document')} marked{named}: {summary.marks}"))
    yield Text()
    table = plain_table([""], ("documents", "marked", "right", "share (95 %)"))
    for one in summary.strata:
        label = safe(_stratum(Stratum(one.outcome, one.reason)))
        documents = whole(one.documents or None)
        table.add_row(
            label, documents, whole(one.marked), whole(one.right.right), _share(one.right)
        )
    table.add_row()
    for key, name in _NAMES.items():
        if (share := summary.estimates[key]).of:
            table.add_row(name, "", whole(share.of), whole(share.right), _share(share))
    yield table
