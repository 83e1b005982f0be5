"""Limits on the effects of programs, and the action at each limit."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Action = Literal["keep", "drop", "quarantine"]
"""At a limit: keep the original text, drop the document, or quarantine it for a person to check."""

NamedPolicy = Literal["reference", "none"]
"""`reference`: the fixed limits of the public code. `none`: no program is executed."""
Share = Annotated[float, Field(ge=0, le=1)]
Limit = Annotated[int, Field(ge=0, le=1_000_000)]


class Policy(BaseModel):
    """Limits on the effects of programs, and the action at each limit.

    A named policy does not use them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    strict: bool = False
    """read only well-formed programs: no leniency in form or in comparing text"""
    max_error_share: Share = 0.5
    """share of a window's statements up to which errors do not reject its program; a statement that
    finds nothing to edit is no error"""
    on_errors: Action = "keep"
    """above max_error_share: keep the window, or drop or quarantine the document"""
    max_removed_share: Share = 1.0
    """largest share of a document's characters that edits may remove"""
    on_removed_share: Action = "quarantine"
    """above max_removed_share"""
    min_kept_words: Limit = 11
    """smallest number of words after edits that removed more than short_loss; long strings
    (formulas, code) count a word for every 6 characters, scripts without spaces and Hangul a word
    for every 1.5"""
    short_loss: Share = 0.5
    """share of a document's characters below whose removal it is never too short"""
    on_short: Action = "drop"
    """below min_kept_words"""
    max_matches: Limit = 32
    """largest number of occurrences that one normalize may replace"""
    max_growth: Limit = 256
    """largest number of characters that one statement may add"""
    max_strings: Limit = 64
    """largest number of different string edits in a window; bounds time"""
    whole_words: bool = True
    """never replace part of a word, in scripts with spaces"""


AnyPolicy = Policy | NamedPolicy
