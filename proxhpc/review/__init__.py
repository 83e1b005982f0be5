"""People mark what was done with documents right or wrong; their marks are gold records."""

from itertools import zip_longest

from proxhpc.errors import UserError
from proxhpc.review.document import ReviewItem, Stratum
from proxhpc.review.estimate import stratum_order
from proxhpc.review.source import ReviewSource


def choose_items(source: ReviewSource, number: int, wanted: Stratum, seed: int) -> list[ReviewItem]:
    """Up to `number` documents of each stratum, the strata in turn. UserError if there is none."""
    sample = source.sample(number, wanted, seed)
    columns = [sample[stratum] for stratum in sorted(sample, key=stratum_order)]
    items = [item for row in zip_longest(*columns) for item in row if item]
    if not items:
        strata = sorted(source.sizes, key=stratum_order)
        names = (f"{s.outcome} with reason {s.reason}" if s.reason else s.outcome for s in strata)
        raise UserError(
            "no document to review",
            hint=f"there are documents {', '.join(names)}" if strata else "none is refined yet",
        )
    return items
