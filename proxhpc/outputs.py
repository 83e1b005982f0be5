"""Base of the typed documents that `--json` prints; docs/json.md is generated from them."""

import json

from pydantic import BaseModel, ConfigDict


class OutputModel(BaseModel):
    """A JSON object with documented keys: the docstring below each field describes it in the docs.

    The outermost object has a field `format`, such as "proxhpc.status/1". Its number grows when a
    key is removed or changes its meaning; new keys may appear without that.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        from_attributes=True,  # `model_validate` copies a dataclass with the same fields
        defer_build=True,
    )

    def to_json(self) -> str:
        """Indented JSON text.

        It is ASCII, because some characters steer a terminal. Integers may exceed 64 bits, which
        rules out orjson. `format` comes first.
        """
        data = self.model_dump(mode="json")
        return json.dumps({key: data[key] for key in sorted(data, key="format".__ne__)}, indent=2)


class UsageTotals(OutputModel):
    """Sums over requests to a model."""

    requests: int
    """Requests that the engine answered."""
    prompt_tokens: int
    """Tokens of their prompts."""
    cached_tokens: int
    """Prompt tokens found in the prefix cache."""
    new_tokens: int
    """Tokens that the model generated."""
    fed: int
    """Tokens that went through the model's layers."""
    attended: int
    """Pairs of query and key in causal attention."""
    attended_decoding: int
    """Those of these pairs whose query is no prompt token."""
    attended_cached: int
    """Pairs that the prefix cache saved; not part of `attended`."""
    logits: int
    """Tokens at which the output head ran."""
    masked: int = 0
    """Those of the `attended` pairs that are outside of a sliding window; not computed."""
    masked_decoding: int = 0
    """Those of `attended_decoding` that are."""
    masked_cached: int = 0
    """Those of `attended_cached` that are."""
