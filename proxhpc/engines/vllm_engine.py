"""The vLLM engine: AsyncLLM in this process, its core in a child, token ids in and out."""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from itertools import count
from multiprocessing import resource_tracker
from typing import Any

from proxhpc.engines.base import (
    LOOP_COUNT,
    LOOP_TOKENS,
    Completion,
    EngineDiedError,
    FinishReason,
    Request,
    RequestError,
    Tokenizer,
    check_request,
    end_of,
)
from proxhpc.engines.spawn import (
    OrphanKiller,
    drop_scratch,
    node_local_environment,
    signals_deferred,
)
from proxhpc.engines.steps import STEP_PROCESSOR, STEPS_KEY
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import RetryError, UserError
from proxhpc.run.models import ModelRef
from proxhpc.run.process import descendants, start_time

log = logging.getLogger(__name__)

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "loop"}
SHUTDOWN_S = 20.0  # what the core gets to end by itself before it is killed
# What the engine sets itself; anything else of AsyncEngineArgs may be an option.
MANAGED_ENGINE_OPTIONS = (
    "disable_log_stats",
    "dtype",
    "enable_prefix_caching",
    "generation_config",
    "gpu_memory_utilization",
    "logits_processors",
    "max_model_len",
    "model",
    "seed",
    "tokenizer",
    "trust_remote_code",
)


class VLLMEngine:
    """Many requests in flight, batched continuously by vLLM, with prefix caching.

    `dtype` "auto" is bfloat16 on a GPU (float16 where it has none) and float32 on a CPU. Make it
    in the event loop that will use it. `gpu_memory_utilization` is without effect on a CPU, where
    VLLM_CPU_KVCACHE_SPACE (GiB, here 2 unless set) bounds the cache. Requests may have `steps`
    where `stepwise`, which cannot be had together with speculation.
    """

    name = "vllm"

    def __init__(
        self,
        model: ModelRef,
        *,
        dtype: str = "auto",
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        stepwise: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Start the engine; this takes about a minute and blocks.

        UserError for wrong options, RetryError when the device is not ready for it.
        """
        asyncio.get_running_loop()  # AsyncLLM binds itself to the loop it is made in
        self._tokenizer = HFTokenizer(model.path)
        self.tokenizer: Tokenizer | None = self._tokenizer
        self.max_model_len = model.context_length(max_model_len)
        self._stop = sorted({*model.stop_ids, *self._tokenizer.stop_ids})
        self._stepwise = stepwise
        self._numbers = count()
        self._dead: str | None = None
        arguments: dict[str, Any] = {
            "model": str(model.path),
            "tokenizer": str(model.path),
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": self.max_model_len,
        }
        if stepwise:
            arguments["logits_processors"] = [STEP_PROCESSOR]
        self._scratch = node_local_environment()
        if stepwise:  # the interface of that processor; the other runner has another
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        self._tie = OrphanKiller()
        resource_tracker.ensure_running()  # this process's own, not a child of the engine
        before = descendants(os.getpid())
        try:
            with signals_deferred():
                self._engine = _start(arguments, dtype, options or {})
                self._children = descendants(os.getpid()) - before
                self._tie.watch(self._children)
            config = self._engine.vllm_config.cache_config
            self.cache_tokens: int = (config.num_gpu_blocks or 0) * config.block_size
        except BaseException:
            self._tie.watch(descendants(os.getpid()) - before)
            self._tie.release()
            drop_scratch(self._scratch)
            raise

    async def complete(self, request: Request) -> Completion:
        """Answer one request. RequestError when it is wrong, EngineDiedError when it died."""
        from vllm.exceptions import VLLMValidationError
        from vllm.inputs import TokensPrompt
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        check_request(request, self.max_model_len)
        if request.steps and not self._stepwise:
            raise RequestError("this vLLM was started without what restricts single tokens")
        if self._dead is not None:
            raise EngineDiedError(self._dead)
        prompt = TokensPrompt(prompt_token_ids=list(request.prompt))
        final = None
        try:
            async for output in self._engine.generate(
                prompt,
                sampling(request, self._stop),
                str(next(self._numbers)),
                priority=request.order,
            ):
                final = output
        except EngineDeadError as error:
            self._dead = "the vLLM engine has died; its last words are in the worker's log"
            raise EngineDiedError(self._dead) from error
        except EngineGenerateError as error:
            raise EngineDiedError(f"vLLM could not answer a request: {error.__cause__}") from error
        except (VLLMValidationError, ValueError) as error:
            raise RequestError(f"vLLM refuses a request: {error}") from error
        if final is None or final.outputs[0].finish_reason not in _FINISH:
            raise EngineDiedError("vLLM ended a request without an answer")
        return self._completion(final, request)

    async def close(self) -> None:
        """End the core and every other child, remove scratch files. Never raises."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._dead = "the vLLM engine has been closed"
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            # Who still waits for an answer of an engine that has not died would do so for ever.
            engine.output_processor.propagate_error(EngineDeadError())
            # Not in a thread: the loop would see the core end and report it as a crash.
            engine.shutdown(timeout=SHUTDOWN_S)
        except Exception:  # whatever state it is in, its processes are ended below
            log.warning("vLLM did not shut down cleanly", exc_info=True)
        await asyncio.to_thread(self._tie.release)
        drop_scratch(self._scratch)
        left = [pid for pid in self._children if start_time(pid) is not None]
        if left:
            log.warning("vLLM processes are still ending: %s", left)

    def _completion(self, final: Any, request: Request) -> Completion:
        answer = final.outputs[0]
        ids = list(answer.token_ids)
        text = self._tokenizer.decode(ids[:-1] if ids and ids[-1] in self._stop else ids)
        return Completion(
            text=text[: end_of(text, request.stop)],
            finish=_FINISH[answer.finish_reason],
            prompt_tokens=len(final.prompt_token_ids),
            cached_tokens=max(final.num_cached_tokens or 0, 0),
            new_tokens=len(ids),
            score=_score(answer.logprobs, request),
        )


def sampling(request: Request, stop_ids: Sequence[int]) -> Any:
    """Sampling parameters of vLLM for a request: greedy, and only the final answer handed out."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    grammar = request.grammar
    return SamplingParams(
        temperature=0.0,
        max_tokens=request.max_new_tokens,
        stop_token_ids=list(stop_ids),
        stop=list(request.stop),
        include_stop_str_in_output=bool(request.stop),
        detokenize=bool(request.stop),
        output_kind=RequestOutputKind.FINAL_ONLY,
        structured_outputs=StructuredOutputsParams(regex=grammar) if grammar else None,
        logit_bias=dict(request.bias) or None,
        extra_args={STEPS_KEY: [list(ids) for ids in request.steps]} if request.steps else None,
        **(_loops() if request.end_loops else {}),
        **({"logprob_token_ids": list(request.odds)} if request.odds and _can_score() else {}),
    )


def _score(logprobs: Any, request: Request) -> float | None:
    """Log-odds of the request's two ids, of vLLM's log-probabilities of every new token."""
    if not logprobs or request.odds is None:
        return None
    first, second = (logprobs[0][number].logprob for number in request.odds)
    return float(second - first)


@cache
def _can_score() -> bool:
    """Whether this vLLM tells the log-probabilities of tokens by id; told once if not."""
    from vllm import SamplingParams

    if hasattr(SamplingParams, "logprob_token_ids"):
        return True
    log.warning("this vLLM is too old to tell log-odds: answers have no score")
    return False


@cache
def _loops() -> dict[str, Any]:
    """The option that ends what `is_loop` tells, where this vLLM has it; told once if not."""
    try:
        from vllm.sampling_params import RepetitionDetectionParams
    except ImportError:
        log.warning("this vLLM is too old to end answers that repeat themselves: they run on")
        return {}
    found = RepetitionDetectionParams(
        min_pattern_size=LOOP_TOKENS[0], max_pattern_size=LOOP_TOKENS[-1], min_count=LOOP_COUNT
    )
    return {"repetition_detection": found}


def _start(arguments: dict[str, Any], dtype: str, options: Mapping[str, Any]) -> Any:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise missing_vllm(error) from error
    known = {
        name for name in AsyncEngineArgs.__dataclass_fields__ if name not in MANAGED_ENGINE_OPTIONS
    }
    for name in options:
        if name not in known:
            nearest = get_close_matches(name, known, n=1)
            guess = f"did you mean {nearest[0]!r}? " if nearest else ""
            reason = (
                "is set by proxhpc itself"
                if name in MANAGED_ENGINE_OPTIONS
                else "is unknown to vLLM"
            )
            raise UserError(
                f"engine.options: {name!r} {reason}",
                hint=f"{guess}engine.options takes the arguments of vLLM's AsyncEngineArgs",
            )
    from vllm.platforms import current_platform

    # What follows up on an answer goes before what is new, while the cache still has its prompt.
    options = {"scheduling_policy": "priority", **options}
    if current_platform.is_cpu():  # compiling small models there costs more than it gives
        options = {"enforce_eager": True, **options}
    try:
        args = AsyncEngineArgs(
            **arguments,
            dtype=_dtype(dtype),
            seed=0,
            trust_remote_code=False,
            enable_prefix_caching=True,
            generation_config="vllm",
            disable_log_stats=True,
            **options,
        )
        # The defaults of offline batches: a server's run 128 at a time where these run 1024.
        config = args.create_engine_config(usage_context=UsageContext.LLM_CLASS)
    except (ValueError, TypeError) as error:
        raise UserError(f"vLLM refuses its arguments: {error}") from error
    try:
        return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    except Exception as error:  # what the core says is in the log; here only that it failed
        raise RetryError(
            f"the vLLM engine did not start: {error}",
            hint="the reason is further up in this log; is another process on this device?",
        ) from error


def missing_vllm(error: ImportError) -> UserError:
    """What to say when vLLM cannot be imported."""
    return UserError(
        f"engine vllm: vLLM cannot be imported: {error}",
        hint="pip install 'proxhpc[vllm]'; or use `engine: {name: transformers}`",
    )


def _dtype(name: str) -> str:
    import torch
    from vllm.platforms import current_platform

    if name != "auto":
        return name
    if current_platform.is_cpu():
        return "float32"
    return "bfloat16" if torch.bfloat16 in current_platform.supported_dtypes else "float16"
