"""Engines, which write the programs. Each is imported only when it is used."""

from typing import TYPE_CHECKING

from proxhpc.engines.base import Engine
from proxhpc.errors import UserError

if TYPE_CHECKING:
    from proxhpc.run.models import ModelRef
    from proxhpc.spec.sections import EngineOptions


async def make_engine(
    options: "EngineOptions", model: "ModelRef | None", *, stepwise: bool = False
) -> Engine:
    """Load the engine that `options` names; blocks until it is ready.

    With `stepwise`, its requests may have `steps`. UserError if a model or a package is missing or
    does not load.
    """
    if options.name == "rules":
        from proxhpc.engines.rules.engine import RulesEngine

        return RulesEngine(options.rules)
    if model is None:
        raise UserError(
            f"engine {options.name} needs a model, and this stage names none",
            hint="give the stage a `model`, or use `engine: {name: rules}`",
        )
    if options.name == "vllm":
        return await _make_vllm(options, model, stepwise)
    from proxhpc.engines.transformers_engine import TransformersEngine

    _need("transformers", "transformers")
    _need("torch", "transformers")
    return TransformersEngine(
        model,
        dtype=options.dtype,
        batch_size=options.batch_size,
        max_model_len=options.max_model_len,
        options=options.options,
    )


async def _make_vllm(options: "EngineOptions", model: "ModelRef", stepwise: bool) -> Engine:
    from proxhpc.engines.device import wait_for_memory
    from proxhpc.engines.restarting import RestartingEngine
    from proxhpc.engines.vllm_engine import VLLMEngine

    _need("vllm", "vllm")
    devices = options.options.get("tensor_parallel_size")

    async def start() -> Engine:
        share = options.gpu_memory_utilization
        await wait_for_memory(share, devices if isinstance(devices, int) else 1)
        return VLLMEngine(
            model,
            dtype=options.dtype,
            gpu_memory_utilization=share,
            max_model_len=options.max_model_len,
            stepwise=stepwise,
            options=options.options,
        )

    return RestartingEngine(await start(), start)


def _need(package: str, extra: str) -> None:
    from importlib.util import find_spec

    if find_spec(package) is None:
        raise UserError(
            f"engine {extra} needs the package {package}, which is not installed",
            hint=f"pip install 'proxhpc[{extra}]', or use `engine: {{name: rules}}`",
        )
