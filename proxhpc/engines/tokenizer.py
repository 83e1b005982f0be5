"""The tokenizer of a model directory, safe for text that looks like special tokens."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from proxhpc.errors import UserError

# Placeholder of the user's text in a rendered chat template; no template's filter changes it.
_SLOT = "PROXHPC0USER0TEXT"
_OTHER = "choose another `prompt` for this stage, as prox-llama2 or prox-plain"
# Where conversions of SentencePiece models fail: first word, runs of spaces, unknown letters.
_PROBE = "[INST] <<SYS>>\nA  line\n\n   naïve 漢字 </s> [/INST]"


class HFTokenizer:
    """Implements `base.Tokenizer` with the fast tokenizer of a Hugging Face directory.

    Special tokens that are written out in a text (`</s>`, `<|im_start|>`) are tokenized like any
    other text. Added tokens that are not special are recognized. Methods may be called from
    several threads.
    """

    def __init__(self, path: Path) -> None:
        """UserError if the directory has no tokenizer that loads without code from there."""
        from tokenizers import Tokenizer
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        try:
            loaded = AutoTokenizer.from_pretrained(
                path, trust_remote_code=False, local_files_only=True, use_fast=True
            )
        except Exception as error:  # three libraries raise many kinds for damaged files
            reason = str(error).strip().splitlines() or [""]
            raise UserError(
                f"cannot load the tokenizer in {path}: {reason[0]}",
                hint="if there is only tokenizer.model, install the packages sentencepiece and "
                "protobuf; otherwise its files may be damaged",
            ) from error
        if not isinstance(loaded, PreTrainedTokenizerFast):
            raise UserError(
                f"the tokenizer in {path} ({type(loaded).__name__}) has no fast version",
                hint="save one with transformers, which writes tokenizer.json",
            )
        self._hf_tokenizer = loaded
        self._text = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        self._markup = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
        for tokenizer in (self._text, self._markup):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        self._text.encode_special_tokens = True
        self._markup.encode_special_tokens = False
        self._added = {
            (added.content, bool(added.special)): int(number)
            for number, added in self._markup.get_added_tokens_decoder().items()
        }
        self._leaks: frozenset[int] = frozenset()
        self._leaks = self._find_leaks()
        if not (path / "tokenizer.json").exists() and (path / "tokenizer.model").exists():
            self._check_conversion(path / "tokenizer.model")
        self._frames: dict[tuple[str | None, str], tuple[list[int], str, str, list[int]]] = {}
        added = self._markup.encode("", add_special_tokens=True).ids
        self.bos: Sequence[int] = [i for i in added[:1] if i == loaded.bos_token_id]
        self.stop_ids: Sequence[int] = [i for i in [loaded.eos_token_id] if i is not None]

    def _find_leaks(self) -> frozenset[int]:
        """Special ids that a text gets nevertheless, from the vocabulary of a Unigram model.

        UserError if splitting the text does not prevent that.
        """
        specials = {
            number: name
            for (name, special), number in self._added.items()
            if special and number != self._hf_tokenizer.unk_token_id  # unknown letters have it
        }
        leaks = frozenset(
            number
            for number, name in specials.items()
            if number in self.encode(name) + self.encode(f"a{name}b") + self.encode(f"a {name} b")
        )
        self._leaks = leaks
        for number in leaks:
            if number in self.encode(f"a {specials[number]} b"):
                raise UserError(
                    f"this tokenizer reads {specials[number]!r} in a text as its special token",
                    hint="choose a model whose tokenizer distinguishes text and special tokens",
                )
        return leaks

    def _check_conversion(self, file: Path) -> None:
        """Raise UserError unless the converted tokenizer agrees with its SentencePiece model."""
        from sentencepiece import SentencePieceProcessor

        if self.encode(_PROBE) != SentencePieceProcessor(model_file=str(file)).encode(_PROBE):
            raise UserError(
                f"the tokenizer converted from {file} tokenizes differently from the file itself",
                hint="name its class in tokenizer_config.json, as "
                '"tokenizer_class": "LlamaTokenizer", or add a tokenizer.json',
            )

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; no special tokens are added or recognized."""
        # A batch of one, since only for batches the library releases the GIL and skips offsets.
        (tokens,) = self._text.encode_batch_fast([text], add_special_tokens=False)
        if self._leaks.isdisjoint(tokens.ids):
            return list(tokens.ids)
        return [number for _, piece in self._pieces(text) for number in piece.ids]

    def _pieces(self, text: str) -> list[tuple[str, Any]]:
        """Parts of the text and their tokens, split inside whatever would be a special token."""
        tokens = self._text.encode(text, add_special_tokens=False)
        if not self._leaks or self._leaks.isdisjoint(tokens.ids):
            return [(text, tokens)]
        splits = [
            start + 1
            for number, (start, end) in zip(tokens.ids, tokens.offsets, strict=True)
            if number in self._leaks and start + 1 < end
        ]
        if not splits:
            return [(text, tokens)]
        ends = [*splits, len(text)]
        parts = [text[start:end] for start, end in zip([0, *splits], ends, strict=True)]
        return [piece for part in parts for piece in self._pieces(part)]

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Token ids of each line, encoded separately."""
        batch = self._text.encode_batch_fast(list(lines), add_special_tokens=False)
        if not self._leaks:
            return [tokens.ids for tokens in batch]
        return [
            tokens.ids if self._leaks.isdisjoint(tokens.ids) else self.encode(line)
            for line, tokens in zip(lines, batch, strict=True)
        ]

    def count(self, lines: Sequence[str]) -> list[int]:
        """Number of tokens of each line, encoded separately."""
        return [len(ids) for ids in self.encode_lines(lines)]

    def head(self, text: str, tokens: int) -> str:
        """The longest prefix of `text` that its first `tokens` tokens cover."""
        ends: list[int] = []
        at = 0
        for part, piece in self._pieces(text):
            ends += [at + end for _, end in piece.offsets]
            at += len(part)
        if tokens >= len(ends):
            return text
        return text[: max(ends[: max(tokens, 0)], default=0)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, without special tokens."""
        text: str = self._text.decode(list(ids), skip_special_tokens=True)
        return text

    def special_id(self, token: str) -> int:
        """Id of a special token; UserError if the vocabulary does not have it."""
        number = self._added.get((token, True))
        if number is None:
            raise UserError(
                f"the model's vocabulary has no special token {token!r}",
                hint="choose another `prompt` for this stage: prox-plain or chat-template",
            )
        return number

    def added_id(self, token: str) -> int:
        """Id of an added token that is not special; UserError if there is none of that name."""
        number = self._added.get((token, False))
        if number is None:
            raise UserError(
                f"the model's vocabulary has no added token {token!r}",
                hint="use `prompt: walk` only with models trained for it",
            )
        return number

    def chat(
        self, system: str | None, user: str, arguments: Mapping[str, JsonValue] | None = None
    ) -> list[int]:
        """Ids of `user` in the model's chat template; UserError if it has none.

        `arguments` go to the template. `user` and the template's plain text around it are
        tokenized as one string. So the ids are those of the whole prompt, except that special
        tokens in `user` stay text.
        """
        key = (system, json.dumps(arguments or {}, sort_keys=True))
        if key not in self._frames:
            self._frames[key] = self._frame(system, arguments or {})
        before, left, right, after = self._frames[key]
        return [*before, *self.encode(f"{left}{user}{right}"), *after]

    def _frame(
        self, system: str | None, arguments: Mapping[str, JsonValue]
    ) -> tuple[list[int], str, str, list[int]]:
        """The template in four parts: ids, plain text, (the user's text), plain text, ids."""
        rendered = self._render(system, arguments)
        left, slot, right = rendered.partition(_SLOT)
        if not slot or _SLOT in right:
            raise UserError(
                "the model's chat template does not show the user's text exactly once", hint=_OTHER
            )
        if system is not None and system.strip() not in rendered:
            raise UserError(
                "the model's chat template does not show the system prompt",
                hint='set "system_turn": "user" in the profile',
            )
        special = {number for (_, special), number in self._added.items() if special}
        first = self._markup.encode(left, add_special_tokens=False)
        ends = [i + 1 for i, number in enumerate(first.ids) if number in special]
        last_end = ends[-1] if ends else 0
        left_start = first.offsets[last_end - 1][1] if last_end else 0
        last = self._markup.encode(right, add_special_tokens=False)
        starts = [i for i, number in enumerate(last.ids) if number in special]
        first_start = starts[0] if starts else len(last.ids)
        right_end = last.offsets[first_start][0] if starts else len(right)
        return first.ids[:last_end], left[left_start:], right[:right_end], last.ids[first_start:]

    def _render(self, system: str | None, arguments: Mapping[str, JsonValue]) -> str:
        template = self._hf_tokenizer.chat_template
        if not template:
            raise UserError("the model has no chat template", hint=_OTHER)
        for name in arguments:
            if name not in str(template):
                raise UserError(
                    f"the model's chat template has no argument {name!r}",
                    hint="leave it out of template_arguments in the profile",
                )
        messages = [{"role": "user", "content": _SLOT}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        fixed = {"tokenize": False, "add_generation_prompt": True}
        try:
            rendered = self._hf_tokenizer.apply_chat_template(messages, **{**arguments, **fixed})
        except Exception as error:  # the template is code of the model's author
            hint = 'if it has no system turn, set "system_turn": "user" in the profile'
            raise UserError(
                f"the model's chat template fails: {type(error).__name__}: {error}",
                hint=hint if system is not None else _OTHER,
            ) from error
        return str(rendered)
