"""The transformers engine: batched greedy decoding on a CPU or one GPU, in a thread of its own."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxhpc.engines.base import (
    Completion,
    EngineDiedError,
    FinishReason,
    Request,
    RequestError,
    Tokenizer,
    check_request,
    end_of,
    is_loop,
)
from proxhpc.engines.drafts import Decoded, can_draft, draft, pad_left
from proxhpc.engines.generation import (
    ended_at,
    length_to_stop,
    make_choosers,
    make_scorer,
    make_stopping,
)
from proxhpc.engines.spawn import cores
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import ProxError, RetryError, UserError
from proxhpc.run.models import ModelRef

log = logging.getLogger(__name__)

LINGER_S = 0.01  # how long a batch that is not full waits for the next request
# What `from_pretrained` may be given beside what the engine sets itself.
OPTIONS = ("attn_implementation", "low_cpu_mem_usage", "quantization_config")


@dataclass(slots=True, eq=False)
class _Pending:
    request: Request
    future: asyncio.Future[Completion]
    loop: asyncio.AbstractEventLoop

    def answer(self, result: Completion | BaseException) -> None:
        """Hand the result over to the event loop that waits for it."""
        try:
            self.loop.call_soon_threadsafe(self._set, result)
        except RuntimeError:  # the loop has been closed: nobody waits any more
            log.debug("an answer came after its event loop had closed")

    def _set(self, result: Completion | BaseException) -> None:
        if self.future.done():
            return
        if isinstance(result, BaseException):
            self.future.set_exception(result)
        else:
            self.future.set_result(result)


class TransformersEngine:
    """Answers up to `batch_size` requests at a time; the batch gathers prompts of like length.

    `dtype` "auto" is bfloat16 on CUDA (float16 where the device has none) and float32 on a CPU.
    Nothing of the model's own generation defaults but its end-of-sequence tokens is used.
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
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load the model; this takes seconds. UserError when it cannot be loaded."""
        self._tokenizer = HFTokenizer(model.path)
        self.tokenizer: Tokenizer | None = self._tokenizer
        self.max_model_len = model.context_length(max_model_len)
        self._stop = frozenset({*model.stop_ids, *self._tokenizer.stop_ids})
        self._batch_size = batch_size
        self._device = device or default_device()
        if (cpus := cores()) and "OMP_NUM_THREADS" not in os.environ:
            _set_threads(cpus)
        self._model = _load(model, _dtype(dtype, self._device), self._device, options or {})
        self._waiting: list[_Pending] = []
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="transformers", daemon=True)
        self._thread.start()

    async def complete(self, request: Request) -> Completion:
        """Answer one request. RequestError when it is too long, EngineDiedError on failure."""
        check_request(request, self.max_model_len)
        if request.grammar is not None:
            raise RequestError(
                "the transformers engine cannot decode under a grammar",
                hint="use engine vllm, or a stage without a grammar",
            )
        loop = asyncio.get_running_loop()
        pending = _Pending(request, loop.create_future(), loop)
        with self._changed:
            if self._closing:
                raise ended_at()
            self._waiting.append(pending)
            self._changed.notify()
        return await pending.future

    async def close(self) -> None:
        """Stop at the next token, refuse what is open, free the device. Never raises."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join)
        self._model = None
        _free(self._device)

    def _work(self) -> None:
        while batch := self._next_batch():
            self._answer(batch)
        for pending in self._waiting:
            pending.answer(ended_at())

    def _next_batch(self) -> list[_Pending]:
        """The oldest request and those nearest to it in length; empty when closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            seen = 0
            while seen < len(self._waiting) < self._batch_size and not self._closing:
                seen = len(self._waiting)
                self._changed.wait(LINGER_S)
            self._waiting = [p for p in self._waiting if not p.future.cancelled()]
            if self._closing or not self._waiting:
                return [] if self._closing else self._next_batch()
            size = len(self._waiting[0].request.prompt)
            nearest = sorted(self._waiting, key=lambda p: abs(len(p.request.prompt) - size))
            batch = nearest[: self._batch_size]
            self._waiting = [p for p in self._waiting if p not in batch]
            return batch

    def _answer(self, batch: Sequence[_Pending]) -> None:
        """Answer a batch; in two halves, and so on, when the device's memory is too small."""
        try:
            completions = self._generate(
                [pending.request for pending in batch],
                lambda: self._closing or all(pending.future.cancelled() for pending in batch),
            )
        except Exception as error:  # whatever torch raises must reach those who wait
            if len(batch) > 1 and _out_of_memory(error):
                log.warning("no memory for %d prompts at a time: halving", len(batch))
                _free(self._device)
                self._answer(batch[: len(batch) // 2])
                self._answer(batch[len(batch) // 2 :])
                return
            for pending in batch:
                pending.answer(_failure(error))
            return
        for pending, completion in zip(batch, completions, strict=True):
            pending.answer(completion)

    def _generate(
        self, requests: Sequence[Request], given_up: Callable[[], bool]
    ) -> list[Completion]:
        """Greedy completions; RetryError where they are given up."""
        import torch

        with torch.inference_mode():
            if can_draft(self._model, requests, self._stop):
                answers = self._draft(requests, given_up)
            else:
                answers = self._decode(requests, given_up)
        return list(map(self._completion, requests, answers))

    def _draft(self, requests: Sequence[Request], given_up: Callable[[], bool]) -> list[Decoded]:
        """New tokens of each request, whole answers at a time."""

        def check() -> None:
            if given_up():
                raise ended_at()

        answers = draft(self._model, requests, check)
        lengths = [
            length_to_stop(answer.tokens, request.stop, self._tokenizer)
            for request, answer in zip(requests, answers, strict=True)
        ]
        return [
            answer._replace(tokens=answer.tokens[:length])
            for answer, length in zip(answers, lengths, strict=True)
        ]

    def _decode(self, requests: Sequence[Request], given_up: Callable[[], bool]) -> list[Decoded]:
        """New tokens of each request, one token of all of them at a time."""
        from transformers import LogitsProcessorList, StoppingCriteriaList

        ids, mask = pad_left([request.prompt for request in requests], self._device)
        width = ids.shape[1]
        longest = max(request.max_new_tokens for request in requests)
        ends = make_stopping(requests, self._tokenizer, width, given_up)
        scorer = make_scorer(requests)
        out = self._model.generate(
            ids,
            attention_mask=mask,
            generation_config=self._greedy(longest),
            stopping_criteria=StoppingCriteriaList([ends]),
            logits_processor=LogitsProcessorList([scorer, *make_choosers(requests, width)]),
        )
        rows = out[:, width:].tolist()
        lengths = zip(rows, ends.lengths, scorer.scores, strict=True)
        return [Decoded(row[:length], score) for row, length, score in lengths]

    def _greedy(self, max_new_tokens: int) -> Any:
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

    def _completion(self, request: Request, answer: Decoded) -> Completion:
        """The completion of an answer, which ends at the first stop token, before any padding."""
        new = answer.tokens
        end = next((i for i, token in enumerate(new) if token in self._stop), None)
        text = self._tokenizer.decode(new[:end])
        stop = end_of(text, request.stop)
        finish: FinishReason = "stop"
        if end is None and stop is None:
            # The limit comes first where both do, as in vLLM.
            full = len(new) >= request.max_new_tokens
            finish = "loop" if request.end_loops and not full and is_loop(new) else "length"
        return Completion(
            text=text[:stop],
            finish=finish,
            prompt_tokens=len(request.prompt),
            cached_tokens=0,
            new_tokens=len(new) if end is None else end + 1,
            score=answer.score,
            work=answer.work,
        )


def _load(model: ModelRef, dtype: Any, device: str, options: Mapping[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # stderr is for what proxhpc has to say
    if unknown := sorted(set(options) - set(OPTIONS)):
        raise UserError(
            f"engine transformers: unknown option {unknown[0]!r}",
            hint=f"engine.options may hold {', '.join(OPTIONS)}",
        )
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            model.path,
            dtype=dtype,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
        loaded = loaded.to(device).eval()
    except Exception as error:
        if _out_of_memory(error):
            raise RetryError(
                f"no memory on {device} to load {model.name}: {error}",
                hint="is another process on this device? A smaller dtype halves the need.",
            ) from error
        raise UserError(
            f"model {model.name!r} cannot be loaded: {type(error).__name__}: {error}",
            hint=f"the directory is {model.path}",
        ) from error
    # Unset fields of an explicit configuration are filled from this one, sampling included.
    loaded.generation_config = GenerationConfig()
    return loaded


def default_device() -> str:
    """Where models run if nobody says where."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _set_threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


def _dtype(name: str, device: str) -> Any:
    import torch

    if name == "auto":
        if not device.startswith("cuda"):
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def _out_of_memory(error: BaseException) -> bool:
    import torch

    # The CPU allocator raises a plain RuntimeError.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _failure(error: Exception) -> ProxError:
    """What to tell those who wait: that the engine has died, unless it was told to end."""
    if isinstance(error, ProxError):
        return error
    failure = EngineDiedError(
        f"the transformers engine failed: {type(error).__name__}: {error}",
        hint="out of memory? Lower engine.batch_size, or take a bigger device.",
    )
    failure.__cause__ = error
    return failure


def _free(device: str) -> None:
    import gc

    import torch

    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
