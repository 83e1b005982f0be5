"""Shows documents before and after, with the programs that made the difference."""

from collections.abc import Iterable

from rich.console import Console

from proxhpc.inspect.document import Inspection, examine_document
from proxhpc.inspect.find import find_rows, not_found, sample_rows
from proxhpc.inspect.model import InspectOutput
from proxhpc.inspect.survivor import DuplicatePairs
from proxhpc.inspect.view import render_inspection
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.status.terminal import make_console

__all__ = [
    "Inspection",
    "inspect_documents",
    "render_inspection",
    "sample_documents",
    "show_document",
    "show_sample",
]


def inspect_documents(run: RunDir, query: str) -> list[Inspection]:
    """Every document with this id, or the one at `<input name>:<position>`.

    UserError with similar ids when there is none.
    """
    plan = Plan.load(run)
    pairs = DuplicatePairs(run, plan)
    items = [examine_document(plan, pairs, hit) for hit in find_rows(run, plan, query)]
    if not items:
        raise not_found(run, plan, query)
    return items


def sample_documents(
    run: RunDir, number: int, outcome: str = "", seed: int = 0
) -> list[Inspection]:
    """Documents chosen at random, of one outcome if given."""
    plan = Plan.load(run)
    pairs = DuplicatePairs(run, plan)
    rows = sample_rows(run, plan, pairs, number, outcome, seed)
    return [examine_document(plan, pairs, hit) for hit in rows]


def show_document(
    run: RunDir, query: str, *, as_json: bool = False, console: Console | None = None
) -> None:
    """Print the documents that `inspect_documents` returns."""
    _print(inspect_documents(run, query), as_json, console or make_console())


def show_sample(
    run: RunDir,
    number: int,
    *,
    outcome: str = "",
    seed: int = 0,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Print the documents that `sample_documents` returns, or that there are none."""
    console = console or make_console()
    items = sample_documents(run, number, outcome, seed)
    _print(items, as_json, console)
    if not items and not as_json:
        console.print(f"no {outcome} document" if outcome else "no document is refined yet")


def _print(items: Iterable[Inspection], as_json: bool, console: Console) -> None:
    if as_json:
        output = InspectOutput(documents=tuple(item.to_output() for item in items))
        console.file.write(f"{output.to_json()}\n")
        return
    for item in items:
        # A line of a document stays one line here, even on a narrow terminal.
        console.print(render_inspection(item), soft_wrap=True)
