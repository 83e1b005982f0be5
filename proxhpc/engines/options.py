"""The names of `engine.options`, checked without importing an engine."""

import ast
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from proxhpc.errors import UserError

if TYPE_CHECKING:
    from proxhpc.spec.sections import EngineName

# Arguments of `from_pretrained` that a manifest may set; the engine sets the others.
TRANSFORMERS_OPTIONS = ("attn_implementation", "low_cpu_mem_usage", "quantization_config")


def check_options(engine: "EngineName", options: Mapping[str, object]) -> None:
    """Raise UserError for an option that the engine does not have."""
    known: tuple[str, ...] = ()
    if options and engine == "transformers":
        known = TRANSFORMERS_OPTIONS
    elif options and engine == "vllm":
        known = _vllm_options()
    for name in options if known else ():
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            guess = f"did you mean {nearest[0]!r}? " if nearest else ""
            source = "the arguments of vLLM's AsyncEngineArgs"
            if engine == "transformers":
                source = ", ".join(known)
            raise UserError(
                f"engine.options: {name!r} is unknown to {engine}",
                hint=f"{guess}engine.options takes {source}",
            )


@cache
def _vllm_options() -> tuple[str, ...]:
    """Fields of vLLM's arguments, from its source, since importing it takes 20 seconds."""
    spec = find_spec("vllm")
    folder = next(iter(spec.submodule_search_locations or ()), None) if spec else None
    if folder is None:
        return ()
    source = Path(folder, "engine", "arg_utils.py").read_text(encoding="utf-8")
    return tuple(
        field.target.id
        for part in ast.parse(source).body
        if isinstance(part, ast.ClassDef) and part.name in ("EngineArgs", "AsyncEngineArgs")
        for field in part.body
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
    )
