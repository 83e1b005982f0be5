"""Engines, which write the programs. Each is imported only when it is used."""

import math
import re
from typing import TYPE_CHECKING

from proxhpc.engines.base import (
    Engine,
    EngineDiedError,
    NotANumberError,
    Request,
    RequestError,
)
from proxhpc.engines.options import check_options
from proxhpc.errors import UserError
from proxhpc.extras import how_to_install, require_package, vllm_build

if TYPE_CHECKING:
    from proxhpc.run.models import ModelRef
    from proxhpc.spec.sections import EngineName, EngineOptions

_LEAST_VLLM = 0, 20  # as in pyproject.toml


async def make_engine(
    options: "EngineOptions", model: "ModelRef | None", *, stepwise: bool = False
) -> Engine:
    """Load the engine that `options` names; blocks until it is ready.

    With `stepwise`, its requests may have `steps`. UserError if a model or a package is missing or
    does not load, or if the model answers nothing.
    """
    if options.name == "rules":
        from proxhpc.engines.rules.engine import RulesEngine

        return RulesEngine(options.rules)
    if model is None:
        raise UserError(
            f"engine {options.name} needs a model, and this stage names none",
            hint="give the stage a `model`, or use `engine: {name: rules}`",
        )
    require_engine(options.name)
    check_options(options.name, options.options)
    try:
        if options.name == "vllm":
            return await _make_vllm(options, model, stepwise)
        from proxhpc.engines.transformers_engine import TransformersEngine

        engine = TransformersEngine(
            model,
            dtype=options.dtype,
            batch_size=options.batch_size,
            max_model_len=options.max_model_len,
            stepwise=stepwise,
            options=options.options,
        )
        await _ask_once(engine, stepwise)
    except RequestError as error:  # as all other requests would be
        raise UserError(f"model {model.name!r}: {error.message}", hint=error.hint) from error
    return engine


async def _ask_once(engine: Engine, stepwise: bool) -> None:
    """Ask for one token; an engine that does not answer, or not with a number, is closed."""
    prompt = engine.tokenizer.encode("The") if engine.tokenizer else []
    steps = ((0, 1),) if stepwise else ()
    request = Request("doc", prompt or [0], (), 0, 1, odds=(0, 1), steps=steps)
    try:
        done = await engine.complete(request)
        if done.score is not None and math.isnan(done.score):
            raise NotANumberError
    except BaseException:
        await engine.close()
        raise


async def _make_vllm(options: "EngineOptions", model: "ModelRef", stepwise: bool) -> Engine:
    from proxhpc.engines.device import wait_for_memory
    from proxhpc.engines.restarting import RestartingEngine
    from proxhpc.engines.vllm_engine import VLLMEngine, start_error

    devices = options.options.get("tensor_parallel_size")

    async def start() -> Engine:
        share = options.gpu_memory_utilization
        await wait_for_memory(share, devices if isinstance(devices, int) else 1)
        engine = VLLMEngine(
            model,
            dtype=options.dtype,
            gpu_memory_utilization=share,
            max_model_len=options.max_model_len,
            stepwise=stepwise,
            options=options.options,
        )
        try:
            await _ask_once(engine, stepwise)
        except EngineDiedError as error:  # a kernel that does not exist fails when it is called
            raise start_error(engine.log.text(), error) from error
        return engine

    return RestartingEngine(await start(), start)


def require_engine(name: "EngineName") -> None:
    """Raise UserError if a package that an engine needs is missing, or a vLLM that is too old."""
    packages = {"rules": (), "transformers": ("transformers", "torch"), "vllm": ("vllm",)}
    for package in packages[name]:
        alternative = ", or use `engine: {name: rules}`"
        require_package(package, name, f"engine {name}", alternative)
    version = re.match(r"(\d+)\.(\d+)", build := vllm_build()) if name == "vllm" else None
    if version and tuple(map(int, version.groups())) < _LEAST_VLLM:
        least = ".".join(map(str, _LEAST_VLLM))
        raise UserError(
            f"engine vllm needs vllm {least} or later; {build} is installed",
            hint=how_to_install("vllm"),
        )
