"""Documents of a run before and after, with the programs that made the difference."""

from proxhpc.inspect.document import Inspection, examine_document
from proxhpc.inspect.find import find_rows, not_found, sample_rows
from proxhpc.inspect.survivor import MergeEffects
from proxhpc.inspect.view import render_inspection
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan

__all__ = ["Inspection", "inspect_documents", "render_inspection", "sample_documents"]


def inspect_documents(run: RunDir, query: str) -> list[Inspection]:
    """Every document with this id, or the one at `<input name>:<position>`.

    UserError with similar ids when there is none.
    """
    plan = Plan.load(run)
    effects = MergeEffects(run, plan)
    items = [examine_document(plan, hit, effects) for hit in find_rows(run, plan, query)]
    if not items:
        raise not_found(run, plan, query)
    return items


def sample_documents(
    run: RunDir, number: int, outcome: str = "", seed: int = 0
) -> list[Inspection]:
    """Documents chosen at random, of one outcome if given."""
    plan = Plan.load(run)
    effects = MergeEffects(run, plan)
    rows = sample_rows(run, plan, effects, number, outcome, seed)
    return [examine_document(plan, hit, effects) for hit in rows]
