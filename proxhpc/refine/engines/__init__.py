"""Engines: what writes the programs. Each is imported only when it is asked for."""

from typing import TYPE_CHECKING

from proxhpc.errors import UserError
from proxhpc.refine.engines.base import Engine

if TYPE_CHECKING:
    from proxhpc.manifest import EngineOptions
    from proxhpc.models import ModelRef


async def make_engine(options: "EngineOptions", model: "ModelRef | None") -> Engine:
    """The engine that `options` names, loaded and ready; blocks until it is.

    UserError when a model or a package is missing or does not load.
    """
    if options.name == "rules":
        from proxhpc.refine.engines.rules import RulesEngine

        return RulesEngine(options.rules)
    if model is None:
        raise UserError(
            f"engine {options.name} needs a model, and this stage names none",
            hint="give the stage a `model`, or use `engine: {name: rules}`",
        )
    if options.name == "vllm":
        from proxhpc.refine.engines.vllm_engine import VLLMEngine

        _need("vllm", "vllm")
        return VLLMEngine(
            model,
            dtype=options.dtype,
            gpu_memory_utilization=options.gpu_memory_utilization,
            max_model_len=options.max_model_len,
            options=options.options,
        )
    from proxhpc.refine.engines.transformers_engine import TransformersEngine

    _need("transformers", "transformers")
    _need("torch", "transformers")
    return TransformersEngine(
        model,
        dtype=options.dtype,
        batch_size=options.batch_size,
        max_model_len=options.max_model_len,
        options=options.options,
    )


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(
            f"engine {extra} needs the package {package}, which is not installed",
            hint=f"pip install 'proxhpc[{extra}]', or use `engine: {{name: rules}}`",
        )
