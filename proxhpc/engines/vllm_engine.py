"""The vLLM engine: AsyncLLM in this process and its core in a child process."""

import asyncio
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any

from proxhpc.account.flops import ModelWork
from proxhpc.engines.base import (
    LOOP_COUNT,
    LOOP_TOKENS,
    Completion,
    EngineDiedError,
    FinishReason,
    NotANumberError,
    Request,
    RequestError,
    Tokenizer,
    check_request,
    find_stop_end,
    is_loop,
)
from proxhpc.engines.compile_cache import shared_compile_cache
from proxhpc.engines.spawn import (
    ErrorLog,
    OrphanKiller,
    children_watched,
    node_local_environment,
    variables,
)
from proxhpc.engines.steps import BIAS_KEY, STEP_PROCESSOR, STEPS_KEY, step_biases
from proxhpc.engines.tokenizer import load_tokenizer
from proxhpc.errors import ProxError, RetryError, UserError
from proxhpc.extras import how_to_install
from proxhpc.run.models import ModelRef
from proxhpc.run.process import descendants, start_time

_log = logging.getLogger(__name__)

_FINISH: dict[str, FinishReason] = {"stop": "stop", "length": "length", "repetition": "loop"}
# By its path: vLLM replaces the name "uni" on a CPU.
_IN_CORE = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
SHUTDOWN_S = 20.0  # how long the core may take to end before it is killed


class VLLMEngine:
    """Many requests in flight, batched continuously by vLLM, with prefix caching.

    Create it in the event loop that will use it. `dtype` "auto" is bfloat16 on a GPU (float16 if
    the GPU lacks it) and float32 on a CPU. `gpu_memory_utilization` has no effect on a CPU, where
    VLLM_CPU_KVCACHE_SPACE (GiB, default 2) limits the cache. With `stepwise`, requests may have
    `steps`; that excludes speculative decoding.
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
        """Start the engine; blocks for about a minute.

        UserError for wrong options, RetryError if the device is not ready.
        """
        asyncio.get_running_loop()  # AsyncLLM is bound to the loop in which it is created
        self._tokenizer = load_tokenizer(model.path)
        self.tokenizer: Tokenizer | None = self._tokenizer
        self.max_model_len = model.context_length(max_model_len)
        self._stop = sorted({*model.stop_ids, *self._tokenizer.stop_ids})
        self._stepwise, self._window = stepwise, model.window
        self._request_ids = count()
        self._death_reason: str | None = None
        arguments: dict[str, Any] = {
            "model": str(model.path),
            "tokenizer": str(model.path),
            "gpu_memory_utilization": gpu_memory_utilization,
            "max_model_len": self.max_model_len,
        }
        if stepwise:
            arguments["logits_processors"] = [STEP_PROCESSOR]
        self._killer, self.log = OrphanKiller(node_local_environment()), ErrorLog()
        if stepwise:  # the version 2 runner has another interface for logits processors
            os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
        previous = descendants(os.getpid())
        try:
            with closing(self.log), children_watched(self._killer, self.log):
                self._engine = _start_engine(arguments, dtype, options or {})
                self._children = descendants(os.getpid()) - previous
                self._killer.watch(self._children)
            config = self._engine.vllm_config
            cache = config.cache_config
            self.cache_tokens: int = (cache.num_gpu_blocks or 0) * cache.block_size
            self.min_in_flight: int = 2 * config.scheduler_config.max_num_seqs
        except BaseException as error:
            self._killer.watch(descendants(os.getpid()) - previous)
            self._killer.release()
            if isinstance(error, RetryError):
                raise start_error(self.log.text(), error) from error
            raise

    async def complete(self, request: Request) -> Completion:
        """Answer one request. RequestError if vLLM refuses it, EngineDiedError if vLLM died."""
        from vllm.exceptions import VLLMValidationError
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        check_request(request, self.max_model_len)
        if request.steps and not self._stepwise:
            raise RequestError(
                "this vLLM engine was started without `stepwise`, so requests cannot have `steps`"
            )
        if self._death_reason is not None:
            raise EngineDiedError(self._death_reason)
        try:
            return self._completion(await self._generate(request), request)
        except EngineDeadError as error:
            self._death_reason = "the vLLM engine has died; the worker's log ends with its errors"
            raise EngineDiedError(self._death_reason) from error
        except EngineGenerateError as error:
            raise EngineDiedError(f"vLLM could not answer a request: {error.__cause__}") from error
        except (VLLMValidationError, ValueError) as error:
            raise RequestError(f"vLLM refuses a request: {error}") from error

    async def _generate(self, request: Request) -> list[Any]:
        """Return vLLM's outputs: one, and another for each time that a quotation looks like a loop.

        vLLM ends an answer at any repetition, because it knows nothing of the quoted lines. Where
        `is_loop` disagrees, the answer is continued, with all but its last tokens in the cache.
        """
        outputs: list[Any] = []
        ids: list[int] = []
        while True:
            # With its type, vLLM need not render it.
            prompt = {"type": "token", "prompt_token_ids": [*request.prompt, *ids]}
            limit = request.max_new_tokens - len(ids)
            parameters = sampling_params(replace(request, max_new_tokens=limit), self._stop)
            name = str(next(self._request_ids))
            stream = self._engine.generate(prompt, parameters, name, priority=request.order)
            parts = [part async for part in stream]
            if not parts or parts[-1].outputs[0].finish_reason not in _FINISH:
                raise EngineDiedError("vLLM finished a request without an answer")
            outputs.append(parts[-1])
            answer = parts[-1].outputs[0]
            ids += answer.token_ids
            if _FINISH[answer.finish_reason] != "loop" or is_loop(
                ids, request.lines, self._tokenizer
            ):
                return outputs

    async def close(self) -> None:
        """End all child processes and remove scratch files. Never raises."""
        from vllm.v1.engine.exceptions import EngineDeadError

        self._death_reason = "the vLLM engine has been closed"
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            # Otherwise requests that are still open would wait for ever.
            engine.output_processor.propagate_error(EngineDeadError())
            # Not in a thread: the event loop would take the end of the core for a crash.
            engine.shutdown(timeout=SHUTDOWN_S)
        except Exception:  # its processes are ended below in any case
            _log.warning("vLLM did not shut down cleanly", exc_info=True)
        await asyncio.to_thread(self._killer.release)
        if alive := [pid for pid in self._children if start_time(pid) is not None]:
            _log.warning("vLLM processes have not ended yet: %s", alive)

    def _completion(self, outputs: Sequence[Any], request: Request) -> Completion:
        answers = [output.outputs[0] for output in outputs]
        ids = [token for answer in answers for token in answer.token_ids]
        at_string = isinstance(answers[-1].stop_reason, str)
        if len(ids) < min(len(request.steps), request.max_new_tokens) and not at_string:
            raise NotANumberError  # `StepProcessor` has ended it
        text = self._tokenizer.decode(ids[:-1] if ids and ids[-1] in self._stop else ids)
        cached = [max(output.num_cached_tokens or 0, 0) for output in outputs]
        return Completion(
            text=text[: find_stop_end(text, request.stop)],
            finish=_FINISH[answers[-1].finish_reason],
            prompt_tokens=len(request.prompt),
            cached_tokens=cached[0],
            new_tokens=len(ids),
            score=_score(answers[0].logprobs, request),
            work=_work(outputs, cached, self._window) if len(outputs) > 1 or self._window else None,
        )


def sampling_params(request: Request, stop_ids: Sequence[int]) -> Any:
    """Sampling parameters of vLLM for a request: greedy; only the final answer is sent."""
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
        logit_bias=None if request.steps else dict(request.bias) or None,
        extra_args=_step_arguments(request) if request.steps else None,
        repetition_detection=_loop_detection() if request.end_loops and not grammar else None,
        logprob_token_ids=list(request.odds) if request.odds else None,
    )


def _step_arguments(request: Request) -> dict[str, Any]:
    """What `StepProcessor` reads of a request."""
    arguments: dict[str, Any] = {STEPS_KEY: [list(ids) for ids in request.steps]}
    if request.bias:
        arguments[BIAS_KEY] = step_biases(request.steps, request.bias)
    return arguments


def _work(outputs: Sequence[Any], cached: Sequence[int], window: int) -> ModelWork:
    """The work of an answer, of which each output is a part."""
    parts = (
        ModelWork.of_passes(
            len(output.prompt_token_ids), saved, len(output.outputs[0].token_ids), window
        )
        for output, saved in zip(outputs, cached, strict=True)
    )
    fed, attended, logits, masked, _ = map(sum, zip(*parts, strict=True))
    return ModelWork(fed, attended, logits, masked, window)


def _score(logprobs: Any, request: Request) -> float | None:
    """The request's score, from vLLM's log-probabilities of each new token."""
    if not logprobs or request.odds is None:
        return None
    first, second = (logprobs[0][number].logprob for number in request.odds)
    return float(second - first)


@cache  # each request has it
def _loop_detection() -> Any:
    """What vLLM takes for a loop: the same as `count_repeated`."""
    from vllm.sampling_params import RepetitionDetectionParams

    return RepetitionDetectionParams(
        min_pattern_size=LOOP_TOKENS[0], max_pattern_size=LOOP_TOKENS[-1], min_count=LOOP_COUNT
    )


def run_in_core(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options by which the core of vLLM on a CPU runs the model itself.

    By default vLLM starts another process, which is bound to cores of its own. It imports all
    again, and is needed only for that and for several devices.
    """
    parallel = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
    bound = os.environ.get("VLLM_CPU_OMP_THREADS_BIND") != "nobind"
    if bound or any(options.get(name, 1) != 1 for name in parallel):
        return {}
    return {"distributed_executor_backend": _IN_CORE}


def nothing_compiled() -> AbstractContextManager[None]:
    """Let processes that start in the block run as it is what vLLM compiles even in eager mode.

    Compiling costs each start 9 s of processor time, and needs a C++ compiler on the node.
    """
    name = "TORCH_COMPILE_DISABLE"
    return variables(**{name: os.environ.get(name, "1")})


def _settings(arguments: Mapping[str, Any], config: Any, options: Mapping[str, Any]) -> str:
    """What compiled code may depend on."""
    import torch
    import vllm

    versions = vllm.__version__, torch.__version__
    return repr((versions, arguments, str(config.model_config.dtype), sorted(options.items())))


def _start_engine(arguments: dict[str, Any], dtype: str, options: Mapping[str, Any]) -> Any:
    try:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM
    except ImportError as error:
        raise UserError(
            f"engine vllm: vLLM cannot be imported: {error}",
            hint=f"{how_to_install('vllm')}, or use `engine: {{name: transformers}}`",
        ) from error
    from vllm.platforms import current_platform

    # A document's next requests come before new documents, while its prefix is still cached.
    options = {"scheduling_policy": "priority", **options}
    if current_platform.is_cpu():  # compiling a small model takes longer than it saves
        options = {"enforce_eager": True, **run_in_core(options), **options}
    try:
        # A TypeError if one of `options` is among the arguments here.
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
        # The defaults of offline use run 1024 requests at a time, those of a server only 128.
        config = args.create_engine_config(usage_context=UsageContext.LLM_CLASS)
    except (ValueError, TypeError) as error:
        raise UserError(f"vLLM refuses its arguments: {error}") from error
    compiling: AbstractContextManager[None] = nullcontext()
    if not config.model_config.enforce_eager:
        compiling = shared_compile_cache(_settings(arguments, config, options))
    elif current_platform.is_cpu():
        compiling = nothing_compiled()
    try:
        with compiling:
            return AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    except Exception as error:  # only the core's log has the cause
        raise RetryError(
            f"the vLLM engine did not start: {error}",
            hint="the cause is further up in this log; check for other processes on this device",
        ) from error


# In the log of a core that did not start: an error, one that names no cause, and what a retry on
# another device or at another time may mend.
_ERROR = re.compile(r"(?:^|[\s.])([A-Z]\w*(?:Error|Exception)): (.*)")
_CONSEQUENCE = re.compile(r"initialization failed|See (root cause|stack trace)|failed to start")
_TEMPORARY = re.compile(
    r"out of memory|free memory|used by other processes|cannot allocate memory|"
    r"CUDA (driver )?error|NCCL|timed? ?out|already in use|no space left",
    re.I,
)
# Errors that are permanent by their class, or by what they say.
_PERMANENT = (
    *("AssertionError", "AttributeError", "ImportError", "KeyError", "ModuleNotFoundError"),
    *("NotImplementedError", "SafetensorError", "TypeError", "ValidationError", "ValueError"),
)
_UNSUPPORTED = re.compile(r"unsupported|not supported|not implemented", re.I)


def start_error(log: str, error: RetryError) -> ProxError:
    """Return the error of a core that died before its first answer, by the end of its log.

    UserError if it would not start on the next try either.
    """
    causes = [m for line in log.splitlines() if (m := _ERROR.search(line))]
    cause = next((m for m in reversed(causes) if not _CONSEQUENCE.search(m[2])), None)
    if cause is None:
        return error
    message = f"the vLLM engine did not start: {cause[1]}: {cause[2][:500]}"
    permanent = cause[1] in _PERMANENT or _UNSUPPORTED.search(cause[2])
    if permanent and not _TEMPORARY.search(cause[2]):
        return UserError(
            message,
            hint="no retry would help: change the section engine of the manifest or the model; "
            "more is further up in this log",
        )
    return RetryError(message, hint=error.hint)


def _dtype(name: str) -> str:
    import torch
    from vllm.platforms import current_platform

    if name != "auto":
        return name
    if current_platform.is_cpu():
        return "float32"
    return "bfloat16" if torch.bfloat16 in current_platform.supported_dtypes else "float16"
