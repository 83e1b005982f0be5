"""What to do with a program's effects: limits, and the outcome at each."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["keep", "drop", "quarantine"]
"""At a limit: keep the text as it was, drop the document, or set it aside for a person."""

ReferencePolicy = Literal["reference"]
Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[int, Field(ge=0, le=1_000_000)]


class Policy(BaseModel):
    """Limits on what programs may do, and what happens at each; the defaults lose nothing good.

    Not used by the policy `reference`, which has the public code's own fixed limits.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    max_errors: Limit = Field(
        default=1,
        description="rejected statements that a window's program may have and still be executed",
    )
    on_errors: Action = Field(
        default="keep",
        description="above max_errors: keep the window's lines, or drop or quarantine all",
    )
    max_removed_share: Share = Field(
        default=0.95,
        description="largest share of a document's characters that edits may take away",
    )
    on_removed_share: Action = Field(default="keep", description="above max_removed_share")
    min_kept_words: Limit = Field(
        default=11, description="fewest words, separated by white space, that edits may leave"
    )
    min_kept_chars: Limit = Field(
        default=20,
        description="fewest characters that edits may leave of a script without spaces"
        " (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan); enough words suffice too",
    )
    on_short: Action = Field(default="drop", description="below min_kept_words and min_kept_chars")
    max_matches: Limit = Field(
        default=32, description="most occurrences that one normalize may replace in its window"
    )
    max_growth: Limit = Field(
        default=256, description="most characters that one statement may add to its window"
    )
    max_strings: Limit = Field(
        default=64, description="most different string edits of one window; it bounds the time"
    )
    whole_words: bool = Field(
        default=True, description="never replace a part of a word of a script that has spaces"
    )


AnyPolicy = Policy | ReferencePolicy
