"""The transformers engine: batched greedy decoding on a CPU or one GPU, in a thread."""

import asyncio
import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from proxhpc.account.flops import ModelWork
from proxhpc.engines.base import (
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
from proxhpc.engines.batching import next_batch, oldest_batch
from proxhpc.engines.drafts import Decoded, can_draft, draft, pad_left
from proxhpc.engines.generation import length_to_stop, make_processor, make_stopping
from proxhpc.engines.packed_llama import PackedLlama
from proxhpc.engines.spawn import slurm_cores
from proxhpc.engines.tokenizer import load_tokenizer
from proxhpc.errors import ProxError, RetryError, UserError
from proxhpc.run.models import ModelRef

_log = logging.getLogger(__name__)

PASS_TOKENS = {"cpu": 32, "cuda": 2048}  # that take as long as starting a pass, on a fast device
PACKED_TOKENS = 4096  # of a packed batch; more are no faster, and take more memory
LINGER_S = 0.01  # how long an incomplete batch waits for the next request


@dataclass(slots=True, eq=False)
class _Pending:
    request: Request
    future: Future[Completion] = field(default_factory=Future)

    def answer(self, result: Completion | BaseException) -> None:
        """Pass the result to whoever waits, if anyone still does."""
        if not self.future.set_running_or_notify_cancel():
            return
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class TransformersEngine:
    """Answers up to `batch_size` requests at a time, with prompts of similar length in a batch.

    Of these, requests of lower `order` come first. Packed prompts are batched by tokens.

    `dtype` "auto" is, as in the vLLM engine, float32 on a CPU and bfloat16 on a GPU, or float16
    where that is not supported; a packed model has the precision that is fastest there. Of the
    model's generation defaults only the end-of-sequence tokens are used.

    With `stepwise`, a small Llama on a CPU is read by `PackedLlama`, which is faster. The model of
    transformers is then loaded at the first request whose tokens are not restricted.
    """

    name = "transformers"
    cache_tokens = 0

    def __init__(
        self,
        model: ModelRef,
        *,
        dtype: str = "auto",
        batch_size: int = 8,
        device: str | None = None,
        max_model_len: int | None = None,
        stepwise: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model; this takes seconds. UserError when it cannot be loaded."""
        self._tokenizer = load_tokenizer(model.path)
        self.tokenizer: Tokenizer | None = self._tokenizer
        self.max_model_len = model.context_length(max_model_len)
        self._stop = frozenset({*model.stop_ids, *self._tokenizer.stop_ids})
        self._window = model.window
        self._batch_size = batch_size
        self._device = device or default_device()
        self._pass_tokens = PASS_TOKENS.get(self._device.partition(":")[0], 32)
        if (cores := slurm_cores()) and "OMP_NUM_THREADS" not in os.environ:
            import torch

            torch.set_num_threads(cores)
        options, precision = options or {}, _dtype(dtype, self._device)
        self._load = partial(_load_model, model, precision, self._device, options)
        self._packed: PackedLlama | None = None
        if stepwise and self._device == "cpu" and not options:
            self._packed = PackedLlama.load(model.path, None if dtype == "auto" else precision)
        self._model: Any = None if self._packed else self._load()
        self._model_lock = threading.Lock()
        self._waiting: list[_Pending] = []
        self._changed = threading.Condition()
        self._closing = False
        count = _num_threads() if self._packed else 1  # packed batches use one core each
        self.min_in_flight = 2 * batch_size * count
        self._threads = [
            threading.Thread(target=self._work, name="transformers", daemon=True)
            for _ in range(count)
        ]
        for thread in self._threads:
            thread.start()

    async def complete(self, request: Request) -> Completion:
        """Answer one request. RequestError if it is too long, EngineDiedError on failure."""
        check_request(request, self.max_model_len)
        if request.grammar is not None:
            raise RequestError(
                "the transformers engine cannot decode under a grammar",
                hint="use engine vllm, or a stage without a grammar",
            )
        pending = _Pending(request)
        with self._changed:
            if self._closing:
                raise _closed_error()
            self._waiting.append(pending)
            self._changed.notify()
        return await asyncio.wrap_future(pending.future)

    async def close(self) -> None:
        """Stop at the next token, refuse open requests, free the device. Never raises."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self._model = self._packed = None
        _free_memory(self._device)

    def _work(self) -> None:
        if self._packed:
            import torch

            torch.set_num_threads(1)  # of this thread
        while batch := self._next_batch():
            self._answer(batch)
        with self._changed:
            refused, self._waiting = self._waiting, []
        for pending in refused:
            pending.answer(_closed_error())

    def _next_batch(self) -> list[_Pending]:
        """The request of lowest order and some of similar length; empty when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            count = 0
            while count < len(self._waiting) < self._batch_size and not self._closing:
                count = len(self._waiting)
                self._changed.wait(LINGER_S)
            self._waiting = [p for p in self._waiting if not p.future.cancelled()]
            if self._closing or not self._waiting:
                return [] if self._closing else self._next_batch()
            requests = [pending.request for pending in self._waiting]
            if self._packed:
                chosen = oldest_batch(requests, PACKED_TOKENS)
            else:
                chosen = next_batch(requests, self._batch_size, self._pass_tokens)
            batch = [self._waiting[n] for n in chosen]
            self._waiting = [p for p in self._waiting if p not in batch]
            return batch

    def _answer(self, batch: Sequence[_Pending]) -> None:
        """Answer a batch; halve it as often as the device's memory is too small."""

        def check() -> None:
            if self._closing or all(pending.future.cancelled() for pending in batch):
                raise _closed_error()

        try:
            completions = self._generate([pending.request for pending in batch], check)
        except Exception as error:  # those who wait must see whatever torch raises
            if len(batch) > 1 and _is_out_of_memory(error):
                _log.warning("no memory for a batch of %d prompts: halving it", len(batch))
                _free_memory(self._device)
                self._answer(batch[: len(batch) // 2])
                self._answer(batch[len(batch) // 2 :])
                return
            for pending in batch:
                pending.answer(_engine_error(error))
            return
        for pending, completion in zip(batch, completions, strict=True):
            pending.answer(completion)

    def _generate(
        self, requests: Sequence[Request], check: Callable[[], None]
    ) -> list[Completion | NotANumberError]:
        """Greedy completions. `check` is called before each pass, to stop by an exception."""
        import torch

        with torch.inference_mode():
            model = self._packed
            if model is None or not can_draft(model, requests, self._stop):
                with self._model_lock:
                    model = self._model = self._model or self._load()
            if can_draft(model, requests, self._stop):
                drafts = draft(model, requests, check)
                answers = list(map(self._truncate_at_stop, requests, drafts))
            else:
                answers = self._decode(requests, check)
        return list(map(self._completion, requests, answers))

    def _truncate_at_stop(self, request: Request, answer: Decoded) -> Decoded:
        length = length_to_stop(answer.tokens, request.stop, self._tokenizer)
        return answer._replace(tokens=answer.tokens[:length])

    def _decode(self, requests: Sequence[Request], check: Callable[[], None]) -> list[Decoded]:
        """New tokens of each request, decoded one by one."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        ids, mask = pad_left([request.prompt for request in requests], self._device)
        width = ids.shape[1]
        max_new_tokens = max(request.max_new_tokens for request in requests)
        stopping = make_stopping(requests, self._tokenizer, width, check)
        processor = make_processor(requests, width)
        out = self._model.generate(
            ids,
            attention_mask=mask,
            generation_config=self._greedy_config(max_new_tokens),
            stopping_criteria=StoppingCriteriaList([stopping]),
            logits_processor=LogitsProcessorList([processor]),
        )
        rows = out[:, width:].tolist()
        lengths = zip(rows, stopping.lengths, processor.scores, strict=True)
        return [Decoded(row[:length], score) for row, length, score in lengths]

    def _greedy_config(self, max_new_tokens: int) -> Any:
        from transformers import GenerationConfig

        stop = sorted(self._stop)
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=stop or None,
            pad_token_id=stop[0] if stop else 0,
            use_cache=True,
        )

    def _completion(self, request: Request, answer: Decoded) -> Completion | NotANumberError:
        """The completion of an answer, which ends at the first stop token, before any padding."""
        if answer.score is not None and math.isnan(answer.score):
            return NotANumberError()
        new = answer.tokens
        end = next((i for i, token in enumerate(new) if token in self._stop), None)
        text = self._tokenizer.decode(new[:end])
        stop = find_stop_end(text, request.stop)
        finish: FinishReason = "stop"
        if end is None and stop is None:
            # The limit precedes the loop, as in vLLM.
            full = len(new) >= request.max_new_tokens
            ends_loop = request.end_loops and not full
            looped = ends_loop and is_loop(new, request.lines, self._tokenizer)
            finish = "loop" if looped else "length"
        prompt, size = len(request.prompt), len(new) if end is None else end + 1
        work = answer.work
        if self._window and work is None:
            work = ModelWork.of_passes(prompt, 0, size, self._window)
        return Completion(
            text=text[:stop],
            finish=finish,
            prompt_tokens=prompt,
            cached_tokens=0,
            new_tokens=size,
            score=answer.score,
            work=work,
        )


def _load_model(model: ModelRef, dtype: Any, device: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # stderr is for messages of proxhpc
    try:
        loaded, info = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
        loaded = loaded.to(device).eval()
    except Exception as error:
        if _is_out_of_memory(error):
            raise RetryError(
                f"no memory on {device} to load {model.name}: {error}",
                hint="check for other processes on this device, or use a smaller dtype",
            ) from error
        raise UserError(
            f"model {model.name!r} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"the directory is {model.path}",
        ) from error
    if missing := sorted(map(str, info["missing_keys"])):  # they would be random
        raise UserError(
            f"model {model.name!r}: its safetensors lack {missing[0]}"
            + (f" and {len(missing) - 1} more weights" if missing[1:] else ""),
            hint=f"copy or download the model again; the directory is {model.path}",
        )
    # `generate` fills unset fields of our configuration from this one, sampling included.
    loaded.generation_config = GenerationConfig()
    return loaded


def default_device() -> str:
    """The device on which models run by default: "cuda" if there is one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _num_threads() -> int:
    import torch

    return int(torch.get_num_threads())


def _dtype(name: str, device: str) -> Any:
    import torch

    if name == "auto":
        if not device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _is_out_of_memory(error: BaseException) -> bool:
    import torch

    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _engine_error(error: Exception) -> ProxError:
    """The error for those who wait: EngineDiedError, unless the engine was closed."""
    if isinstance(error, ProxError):
        return error
    failure = EngineDiedError(
        f"the transformers engine failed: {type(error).__name__}: {error}",
        hint="if memory ran out, lower engine.batch_size or use a larger device",
    )
    failure.__cause__ = error
    return failure


def _closed_error() -> RetryError:
    return RetryError("the transformers engine has been closed")


def _free_memory(device: str) -> None:
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
