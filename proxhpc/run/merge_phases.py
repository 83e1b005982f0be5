"""Names of the phases of the merge, and of the rounds of its match phase, in order."""

from typing import Literal, get_args

RoundName = Literal[
    "urls", "texts", "exact", "bands", "candidates", "ship", "verify", "read", "compare", "settle",
    "resolve", "name", "lines", "repeated", "finish", "ids", "collect",
]  # fmt: skip
MergePhaseName = Literal["sketch", "match", "start"] | RoundName | Literal["scatter", "write"]
"""In one job the match phase is `match`; in arrays it is `start` and the rounds."""

ROUND_NAMES: tuple[RoundName, ...] = get_args(RoundName)
MERGE_PHASES: tuple[MergePhaseName, ...] = (
    "sketch", "match", "start", *ROUND_NAMES, "scatter", "write",
)  # fmt: skip
