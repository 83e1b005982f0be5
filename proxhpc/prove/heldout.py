"""Bits that a language model needs for held-out texts, and their files."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

    Values = NDArray[np.float64]

_LOGITS = 1 << 25  # of a batch; float32 numbers, of which about three copies exist
LOSS_FIELDS = [("bits", "<f8"), ("bytes", "<i8")]


class ScoredWindow(NamedTuple):
    """Tokens that are read at once; those from index `first` on are scored, for `text`."""

    text: int
    ids: list[int]
    first: int


def sliding_windows(text: int, ids: list[int], first: int, context: int) -> Iterable[ScoredWindow]:
    """Windows of at most `context` tokens that score each token from `first` on once.

    Consecutive windows overlap by a quarter, so that scored tokens see at least a quarter of a
    context, or all that is before them. Nothing predicts the token at index 0.
    """
    first = max(first, 1)
    while first < len(ids):
        end = min(len(ids), context if first < context else first + context - context // 4)
        start = max(0, end - context)
        yield ScoredWindow(text, ids[start:end], first - start)
        first = end


class TextScorer:
    """A model directory with its tokenizer, as a source of probabilities of texts."""

    def __init__(self, path: Path) -> None:
        """Load the model in float32, on a GPU if there is one. UserError if it does not load."""
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.tokenizer = HFTokenizer(path)
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            model = AutoModelForCausalLM.from_pretrained(
                path, dtype=torch.float32, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # several libraries raise many kinds for damaged files
            raise UserError(
                f"model {path} cannot be loaded: {type(error).__name__}: {error}",
                hint="delete this directory and run `proxhpc prove` again, which trains it again",
            ) from error
        self._model: PreTrainedModel = model.to(self._device).eval()
        self._context = int(model.config.max_position_embeddings)
        # What a document begins after in training: bos, or the eos of the document before it.
        self._start = [*(self.tokenizer.bos or self.tokenizer.stop_ids)][:1]
        if not self._start:
            raise UserError(
                f"the tokenizer in {path} has no token for the beginning or end of a text",
                hint="set its eos_token",
            )

    def score_texts(self, texts: Sequence[str]) -> "Values":
        """Bits of each text as a document, all its tokens included."""
        pairs = [(self._start + self.tokenizer.encode(text), 1) for text in texts]
        return self._bits(pairs, whole=True)

    def score_continuations(self, pairs: Sequence[tuple[str, str]]) -> "Values":
        """Bits of each second text after the first; a context too long loses its beginning.

        Tokenization as in lm-eval: of both texts as one, without spaces at the end of the first.
        """
        requests = []
        for context, continuation in pairs:
            shared = context.rstrip()
            before = self.tokenizer.encode(shared) or self._start
            after = self.tokenizer.encode(context + continuation)
            requests.append((before + after[len(before) if shared else 0 :], len(before)))
        return self._bits(requests, whole=False)

    def _bits(self, requests: Sequence[tuple[list[int], int]], *, whole: bool) -> "Values":
        """Bits of the tokens from an index on; not `whole`: only of those in the last window."""
        import numpy as np

        windows: list[ScoredWindow] = []
        for text, (ids, first) in enumerate(requests):
            if whole:
                windows += sliding_windows(text, ids, first, self._context + 1)
            elif first < len(ids):
                kept = ids[-self._context - 1 :]  # the last token is only predicted
                windows.append(ScoredWindow(text, kept, max(1, first - (len(ids) - len(kept)))))
        windows.sort(key=lambda window: -len(window.ids))  # little padding
        bits = np.zeros(len(requests))
        size = max(1, _LOGITS // int(self._model.config.vocab_size))
        start = 0
        while start < len(windows):
            count = max(1, size // len(windows[start].ids))
            batch = windows[start : start + count]
            np.add.at(bits, [window.text for window in batch], self._window_bits(batch))
            start += count
        return bits

    def _window_bits(self, batch: Sequence[ScoredWindow]) -> "Values":
        import torch

        width = len(batch[0].ids)
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        targets = torch.full_like(ids, -100)  # padding is on the right, where nothing reads it
        for row, window in enumerate(batch):
            tokens = torch.tensor(window.ids)
            ids[row, : len(tokens)] = tokens
            targets[row, window.first : len(tokens)] = tokens[window.first :]
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=ids[:, :-1].to(self._device), use_cache=False
            ).logits
            nats = torch.nn.functional.cross_entropy(
                logits.float().flatten(0, 1),
                targets[:, 1:].flatten().to(self._device),
                reduction="none",
            )
        bits: Values = nats.double().view(len(batch), -1).sum(dim=1).cpu().numpy() / math.log(2)
        return bits


def write_losses(path: Path, bits: "Values", texts: Sequence[str]) -> None:
    """Write bits and UTF-8 bytes of each held-out text, as a .npy file."""
    import numpy as np

    from proxhpc.dedup.arrays import save_array

    losses = np.zeros(len(texts), dtype=LOSS_FIELDS)
    losses["bits"] = bits
    losses["bytes"] = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_array(path, losses)
