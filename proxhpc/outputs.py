"""Base of the typed documents that `--json` prints; docs/json.md is generated from them."""

from pydantic import BaseModel, ConfigDict


class OutputModel(BaseModel):
    """A JSON object with documented keys: the docstring below each field describes it.

    The outermost object has a field `format`, such as "proxhpc.status/1". Its number grows when a
    key is removed or changes its meaning; new keys may appear without that.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
