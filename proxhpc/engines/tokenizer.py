"""The tokenizer of a model directory, safe for text that looks like special tokens."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from itertools import chain
from pathlib import Path
from typing import Any, Self

from pydantic import JsonValue

from proxhpc.engines.words import Words
from proxhpc.errors import UserError
from proxhpc.spec.profile import JOIN

# Placeholders of texts in a rendered chat template; no template's filter changes them.
_SLOT, _SYSTEM_SLOT = "PROXHPC0USER0TEXT", "PROXHPC0SYSTEM0TEXT"
_OTHER = "choose another `prompt` for this stage, as prox-llama2 or prox-plain"
# In the JSON form of a tokenizer that puts a blank before the first text of a prompt only.
_FIRST_BLANK = '"prepend_scheme":"first"'
# Where conversions of SentencePiece models fail: first word, runs of spaces, unknown letters.
_PROBE = "[INST] <<SYS>>\nA  line\n\n   naïve 漢字 </s> [/INST]"

# Keys of a tokenizer_config.json that add nothing to tokenizer.json, and files that do.
_PLAIN_KEYS = {
    *("tokenizer_class", "bos_token", "eos_token", "unk_token", "pad_token"),
    *("clean_up_tokenization_spaces", "model_max_length"),
}
_MORE_FILES = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja")


class _PlainTokenizer:
    """What transformers makes of a tokenizer.json alone. Importing transformers takes 2 seconds."""

    chat_template = None

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Load a tokenizer; None if there is more to it than tokenizer.json."""
        from tokenizers import Tokenizer

        if any((path / name).exists() for name in _MORE_FILES):
            return None
        try:
            config = json.loads((path / "tokenizer_config.json").read_bytes())
            backend = Tokenizer.from_file(str(path / "tokenizer.json"))
        except Exception:  # `tokenizers` has no narrower one; transformers will say what is wrong
            return None
        if (
            not isinstance(config, dict)
            or config.get("tokenizer_class") != "PreTrainedTokenizerFast"
            or not _PLAIN_KEYS.issuperset(config)
        ):
            return None
        added = backend.get_added_tokens_decoder().items()
        special = {token.content: number for number, token in added if token.special}
        named = [value for key, value in config.items() if key.endswith("_token") and value]
        if not all(isinstance(name, str) and name in special for name in named):
            return None
        return cls(
            backend, {key: special[value] for key, value in config.items() if value in named}
        )

    def __init__(self, backend: Any, ids: Mapping[str, int | None]) -> None:
        self.backend_tokenizer = backend
        self.bos_token_id, self.eos_token_id = ids.get("bos_token"), ids.get("eos_token")
        self.unk_token_id = ids.get("unk_token")

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size())


def _load_with_transformers(path: Path) -> Any:
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
    return loaded


class HFTokenizer:
    """Implements `base.Tokenizer` with the fast tokenizer of a Hugging Face directory.

    Special tokens that are written out in a text (`</s>`, `<|im_start|>`) are tokenized like any
    other text. Added tokens that are not special are recognized. Methods may be called from
    several threads.
    """

    def __init__(self, path: Path) -> None:
        """UserError if the directory has no tokenizer that loads without code from there."""
        loaded = _PlainTokenizer.load(path) or _load_with_transformers(path)
        self._hf_tokenizer: Any = loaded
        serialized = loaded.backend_tokenizer.to_str()
        self._joins = _FIRST_BLANK in serialized
        self._text = self._rest = _backend(serialized, as_text=True)
        if self._joins:
            rest = serialized.replace(_FIRST_BLANK, '"prepend_scheme":"never"')
            self._rest = _backend(rest, as_text=True)
        self._markup = _backend(serialized, as_text=False)
        self._added = {
            (added.content, bool(added.special)): int(number)
            for number, added in self._markup.get_added_tokens_decoder().items()
        }
        self._leaks: frozenset[int] = frozenset()
        self._words: Words | None = None
        self._leaks = self._find_leaks()
        if not self._leaks:
            self._words = Words.of(serialized)
        if not (path / "tokenizer.json").exists() and (path / "tokenizer.model").exists():
            self._check_conversion(path / "tokenizer.model")
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
        texts = [text for name in specials.values() for text in (name, f"a{name}b", f"a {name} b")]
        found = zip(*[iter(self.encode_lines(texts))] * 3, strict=True)
        leaks = frozenset(
            number for number, ids in zip(specials, found, strict=True) if number in chain(*ids)
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

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        """Token ids of `text`; no special tokens are added or recognized.

        Some tokenizers put a blank before a text only if it is the `first` of a prompt.
        """
        if self._words and self._words.cover([text]):
            return self._words.encode([text], first=first)[0]
        tokenizer = self._text if first else self._rest
        # A batch of one, since only for batches the library releases the GIL and skips offsets.
        (tokens,) = tokenizer.encode_batch_fast([text], add_special_tokens=False)
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
        if self._words and self._words.cover(lines):
            return self._words.encode(lines)
        batch = self._text.encode_batch_fast(list(lines), add_special_tokens=False)
        return [
            tokens.ids if self._leaks.isdisjoint(tokens.ids) else self.encode(line)
            for line, tokens in zip(lines, batch, strict=True)
        ]

    def __len__(self) -> int:
        """One more than the highest token id."""
        return len(self._hf_tokenizer)

    @cached_property
    def text_ids(self) -> int:
        """One more than the highest id that a text can have."""
        special = {name for name, is_special in self._added if is_special}
        vocabulary: dict[str, int] = self._text.get_vocab(with_added_tokens=True)
        return 1 + max(number for name, number in vocabulary.items() if name not in special)

    def count(self, lines: Sequence[str]) -> list[int]:
        """Number of tokens of each line, encoded separately."""
        if self._words and self._words.cover(lines):
            return self._words.count(lines)
        return [len(ids) for ids in self.encode_lines(lines)]

    def head(self, text: str, tokens: int) -> str:
        """The longest prefix of `text` that its first `tokens` tokens cover."""
        if self._words and self._words.cover([text]):
            return self._words.head(text, tokens)
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

    def name_of(self, number: int) -> str:
        """The token with an id."""
        return str(self._text.id_to_token(number))

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

    def chat_frame(
        self, system: str | None, arguments: Mapping[str, JsonValue], *, merge: bool = False
    ) -> str:
        """The model's chat template as the `frame` of a profile; UserError if it has none.

        `arguments` go to the template. With `merge`, or if the template has no turn for it, the
        system prompt goes before the message. The ids of such a frame's prompts are those of the
        rendered template, but special tokens in texts stay text, and the date is today's for ever.
        """
        turn = None if merge else system
        rendered = self._render(turn, _SLOT, arguments, optional=turn is not None)
        if turn is not None and turn.strip() not in rendered:
            turn, rendered = None, self._render(None, _SLOT, arguments)
        before, slot, after = rendered.partition(_SLOT)
        if not slot or _SLOT in after:
            raise UserError(
                "the model's chat template does not show the user's text exactly once", hint=_OTHER
            )
        blank = f"\n {_SLOT}"
        trims = blank not in self._render(turn, blank, arguments)
        trims |= self._swallows(before, at_end=True) or self._swallows(after, at_end=False)
        message = "{message:trim}" if trims else "{message}"
        if turn is None:
            message = message if system is None else "{system}\n\n{message}"
            return f"{self._template(before)}{message}{self._template(after)}"
        shown = next(text for text in (turn, turn.strip()) if text in before + after)
        marked = self._render(_SYSTEM_SLOT, _SLOT, arguments, optional=True)
        if marked.replace(_SYSTEM_SLOT, shown) == rendered:  # otherwise it depends on the text
            before, _, after = marked.partition(_SLOT)
        name = "{system}" if shown == turn else "{system:trim}"
        parts = self._template(before), message, self._template(after)
        return "".join(parts).replace(_SYSTEM_SLOT, name)

    def _special_tokens(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Yield name, start and end of special tokens, with the blanks that they swallow."""
        names = {number: name for (name, is_special), number in self._added.items() if is_special}
        tokens = self._markup.encode(text, add_special_tokens=False)
        for number, (start, end) in zip(tokens.ids, tokens.offsets, strict=True):
            if number in names:
                yield names[number], start, end

    def _template(self, text: str) -> str:
        """Return marked-up text as part of a frame: special tokens are in braces."""
        parts: list[str] = []
        at = 0
        for name, start, end in self._special_tokens(text):
            parts += [_escape(text[at:start]), _placeholder(name, JOIN if self._joins else "")]
            at = end
        return "".join([*parts, _escape(text[at:])])

    def _swallows(self, text: str, *, at_end: bool) -> bool:
        """Return whether a special token at one end of the text swallows blanks beyond it."""
        beyond = f"{text} a" if at_end else f"a {text}"
        within = range(len(text) + 1) if at_end else range(2, len(beyond) + 1)
        tokens = self._special_tokens(beyond)
        return any(start not in within or end not in within for _, start, end in tokens)

    def _render(
        self,
        system: str | None,
        user: str,
        arguments: Mapping[str, JsonValue],
        *,
        optional: bool = False,
    ) -> str:
        """Render the template; if `optional`, an empty text for one that fails."""
        template = self._hf_tokenizer.chat_template
        if not template:
            raise UserError("the model has no chat template", hint=_OTHER)
        for name in arguments:
            if name not in str(template):
                raise UserError(
                    f"the model's chat template has no argument {name!r}",
                    hint="leave it out of template_arguments in the profile",
                )
        messages = [{"role": "user", "content": user}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        fixed = {"tokenize": False, "add_generation_prompt": True}
        try:
            rendered = self._hf_tokenizer.apply_chat_template(messages, **{**arguments, **fixed})
        except Exception as error:  # the template is code of the model's author
            if optional:
                return ""
            raise UserError(
                f"the model's chat template fails: {type(error).__name__}: {error}", hint=_OTHER
            ) from error
        return str(rendered)


def _backend(serialized: str, *, as_text: bool) -> Any:
    """The tokenizer in JSON form; special tokens in its inputs are read `as_text` or as such."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = as_text
    return tokenizer


@lru_cache(maxsize=4)
def load_tokenizer(path: Path) -> HFTokenizer:
    """The tokenizer of a directory, which this process loads once."""
    return HFTokenizer(path)


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _placeholder(special: str, suffix: str) -> str:
    if {"{", "}"} & set(special) or special.isidentifier():
        raise UserError(
            f"the model's chat template has the special token {special!r}, which no frame can have",
            hint="write a profile with a `frame`",
        )
    return f"{{{special}{suffix}}}"
