"""Look at documents: before and after, with the programs that made the difference."""

import json
from collections.abc import Iterable

from rich.console import Console

from proxhpc.inspect import find as finder
from proxhpc.inspect.document import Inspection, examine_document
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

    UserError with the nearest ids when there is none.
    """
    plan = Plan.load(run)
    found = [examine_document(run, plan, row) for row in finder.find(run, plan, query)]
    if not found:
        raise finder.not_found(run, plan, query)
    return found


def sample_documents(run: RunDir, number: int, status: str = "", seed: int = 0) -> list[Inspection]:
    """Documents picked at random, of one status if given."""
    plan = Plan.load(run)
    return [
        examine_document(run, plan, found)
        for found in finder.sample_rows(run, plan, number, status, seed)
    ]


def show_document(
    run: RunDir, query: str, *, as_json: bool = False, console: Console | None = None
) -> None:
    """Print what `inspect` finds."""
    _print(inspect_documents(run, query), as_json, console or make_console())


def show_sample(
    run: RunDir,
    number: int,
    *,
    status: str = "",
    seed: int = 0,
    as_json: bool = False,
    console: Console | None = None,
) -> None:
    """Print what `sample` picks, or that there is nothing to pick from."""
    console = console or make_console()
    items = sample_documents(run, number, status, seed)
    _print(items, as_json, console)
    if not items and not as_json:
        console.print(f"no {status} document" if status else "no document is refined yet")


def _print(items: Iterable[Inspection], as_json: bool, console: Console) -> None:
    if as_json:
        # ASCII only: JSON leaves characters alone that a terminal may obey.
        console.file.write(f"{json.dumps([item.to_dict() for item in items], indent=2)}\n")
        return
    for item in items:
        # A line of a document is a line here too, however narrow the terminal.
        console.print(render_inspection(item), soft_wrap=True)
