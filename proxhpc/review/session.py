"""A review: keys move through documents and mark them."""

from collections import deque
from collections.abc import Iterable

from proxhpc.account.quantity import quantity
from proxhpc.review.document import ReviewItem, differing
from proxhpc.review.marks import MarksFile
from proxhpc.review.page import Page
from proxhpc.review.source import ReviewSource

KEYS = {
    "y Enter": "right: the document and its lines as shown",
    "w": "wrong: nothing should be done to it",
    "Space": "the line goes, stays, or changes as it did",
    "k": "keep the document, with the lines as shown",
    "d": "drop the document",
    "arrows PgUp PgDn": "move; also Home and End",
    "n p": "next or previous changed line",
    "s": "skip: the next review asks again",
    "u": "undo: take back the last mark",
    "q": "quit: the next review continues here",
}


class ReviewSession:
    """Documents to mark, one after the other; a mark is on disk when `press` returns.

    `page` is None when no document is left.
    """

    def __init__(
        self,
        source: ReviewSource,
        items: Iterable[ReviewItem],
        marks: MarksFile,
        *,
        sampled: bool = True,
    ) -> None:
        """`sampled`: the items are a random sample."""
        self.source, self.marks, self.sampled = source, marks, sampled
        self.message, self.is_over, self.shows_help = "", False, False
        self.page: Page | None = None
        self._item: ReviewItem | None = None
        self.skipped = 0
        marked = {mark.position for mark in marks.marks}
        self._ahead = deque(item for item in items if item.position not in marked)
        self._next()

    @property
    def left(self) -> int:
        """Documents to mark, the one on the screen included."""
        return len(self._ahead) + (self.page is not None)

    def press(self, key: str) -> None:
        """Do what a key says. UserError or RetryError if a mark cannot be written."""
        self.message, was_help, self.shows_help = "", self.shows_help, False
        if key == "q":
            self.is_over = True
        elif key == "?":
            self.shows_help = not was_help
        elif key == "u":
            self._undo()
        elif self.page and not self._move(self.page, key) and not self._decide(self.page, key):
            self.message = "no such key: ? lists them"

    def _move(self, page: Page, key: str) -> bool:
        match key:
            case "up" | "down":
                page.move(1 if key == "down" else -1)
            case "pageup" | "pagedown":
                page.turn(1 if key == "pagedown" else -1)
            case "home" | "end":
                page.go_to(0 if key == "home" else len(page.lines) - 1)
            case "n" | "p":
                self._go_to_edit(page, 1 if key == "n" else -1)
            case " ":
                page.toggle()
            case _:
                return False
        return True

    def _decide(self, page: Page, key: str) -> bool:
        is_kept = page.document.item.stratum.is_kept
        match key:
            case "y" | "enter" if page.is_touched and not is_kept:
                self.message = "k keeps the document with these lines, d drops it"
            case "y" | "enter":
                self._mark(page, keep=is_kept)
            case "w" if is_kept and not page.edits:
                self.message = (
                    "nothing was changed here: Space marks a line that should go, d drops"
                )
            case "w":
                page.lines = list(page.document.lines)
                self._mark(page, keep=True)
            case "k" | "d":
                self._mark(page, keep=key == "k")
            case "s":
                self.skipped += 1
                self._next()
            case _:
                return False
        return True

    def _go_to_edit(self, page: Page, step: int) -> None:
        changed = differing(page.document.lines, page.lines)
        edits = sorted({*changed, *page.edits}, reverse=step < 0)
        found = next((edit for edit in edits if (edit - page.cursor) * step > 0), None)
        if found is None:
            self.message = f"no change {'below' if step > 0 else 'above'}"
        else:
            page.go_to(found)

    def _mark(self, page: Page, *, keep: bool) -> None:
        unseen = [number for number in page.edits if number not in page.seen]
        if keep and unseen:
            page.show(unseen[0])
            self.message = f"not on the screen yet: {quantity(len(unseen), 'change')}"
        elif keep and all(line is None for line in page.lines):
            self.message = "no line is left: d drops the document"
        else:
            self.marks.append(page.document.gold_record(page.lines, keep, page.seen, self.sampled))
            self._next()

    def _next(self) -> None:
        """Show the next document that can be shown."""
        self.page = self._item = None
        while self._ahead and self.page is None:
            self._show(self._ahead.popleft())

    def _show(self, item: ReviewItem) -> None:
        document = item.load()
        if document is None:
            self.message = f"{item.position} is left out: its texts cannot be compared by line"
        else:
            self._item, self.page = item, Page(document)

    def _undo(self) -> None:
        if not self.marks.marks:
            self.message = "nothing to undo"
            return
        (item, *_) = self.source.find(self.marks.marks[-1].position)
        self.marks.undo()
        if self._item:
            self._ahead.appendleft(self._item)
        self._show(item)
        self.message = "the mark is taken back: mark this document again"
