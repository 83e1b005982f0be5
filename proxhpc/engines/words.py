"""Encodes texts word by word and each word once, which is several times as fast.

Only for tokenizers whose tokens never cross the borders of these words.
"""

import json
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import accumulate, chain
from typing import Any, Self

MEMO_CHARS = 1 << 20  # of the words that are remembered: about 170,000, or 50 MB
_BLANK = "▁"  # SentencePiece's blank
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
_LONE = "\n0123456789"  # characters that few vocabularies have in longer tokens
_BYTES = {f"<0x{number:02X}>" for number in range(256)}
# What byte-level tokenizers split by: all split before a blank that follows no white space.
_BYTE_LEVEL_WORD = r"\s*\S+(?:(?=[^\S ])\s+\S*)*|\s+"
_NOT_SPACE = "\x1c\x1d\x1e\x1f"  # white space for Python only
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_SPLITS: list[Mapping[str, Any]] = [
    {"type": "Digits"},
    *({"type": "Split", "pattern": {"Regex": each}, "invert": False} for each in (_QWEN, _LLAMA3)),
]
_NORMALIZERS: list[Mapping[str, Any]] = [
    {"type": "NFC"},
    {"type": "NFKC"},
    {"type": "Replace", "pattern": {"Regex": r"\p{Nd}"}},
]
# Words that are encoded together, and those that may be: a blank and no other.
_TOGETHER = 64
_ONE_BLANK, _ONE_BLANK_MARK = r" \S+", rf"[ {_BLANK}][^ {_BLANK}]+"
_NOT_PLAIN = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


class Words:
    """The words of a tokenizer and their ids. Methods may be called from several threads."""

    def __init__(
        self,
        data: Mapping[str, Any],
        word: str,
        unsure: Collection[str],
        lead: Callable[[str, bool], bool] | None = None,
    ) -> None:
        """`data` is the tokenizer's JSON form, without what it puts before texts.

        `unsure` are characters of texts that it may split otherwise. `lead` returns whether a blank
        goes before a text, which may be the first of a prompt.
        """
        from tokenizers import Tokenizer

        self._backend = Tokenizer.from_str(json.dumps(data))
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True
        self._find, self._lead = re.compile(word).findall, lead
        self._unsure = re.compile(f"[{re.escape(''.join(unsure))}]").search if unsure else None
        blank = "Ġ" if lead is None else _BLANK
        self._begins = {n for token, n in data["model"]["vocab"].items() if token[:1] == blank}
        self._one_blank = re.compile(_ONE_BLANK if lead is None else _ONE_BLANK_MARK).fullmatch
        self._memo: dict[str, Sequence[int]] = {}
        self._room = MEMO_CHARS

    @classmethod
    def of(cls, serialized: str) -> Self | None:
        """Return the words of a tokenizer in JSON form; None if it is not known to have any."""
        data = json.loads(serialized)
        model, added = data["model"], [each for each in data["added_tokens"] if not each["special"]]
        if (
            model["type"] != "BPE"
            or any(model.get(key) for key in _NOT_PLAIN)
            or any(token["normalized"] for token in added)
        ):
            return None
        # A text without these characters has no added token.
        unsure = {"\n" if "\n" in token["content"] else token["content"][0] for token in added}
        normalizers = _steps(data["normalizer"], "normalizers")
        splits = _steps(data["pre_tokenizer"], "pretokenizers")
        if _is_byte_level(normalizers, splits):
            return cls(data, _BYTE_LEVEL_WORD, {*unsure, *_NOT_SPACE})
        lead, word = _lead(normalizers, splits), _sentencepiece_word(model)
        if lead is None or word is None:
            return None
        return cls(data | {"normalizer": _REPLACE, "pre_tokenizer": None}, word, unsure, lead)

    def cover(self, texts: Sequence[str]) -> bool:
        """Return whether these texts can be split into words."""
        return self._unsure is None or not any(map(self._unsure, texts))

    def encode(self, texts: Sequence[str], *, first: bool = True) -> list[list[int]]:
        """Return the ids of each text."""
        words, ids_of = self._split(texts, first)
        return [list(chain.from_iterable(map(ids_of, each))) for each in words]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of ids of each text."""
        words, ids_of = self._split(texts, True)
        return [sum(map(len, map(ids_of, each))) for each in words]

    def _split(
        self, texts: Sequence[str], first: bool
    ) -> tuple[list[list[str]], Callable[[str], Sequence[int]]]:
        """Return the words of each text, and the function that returns the ids of a word."""
        if lead := self._lead:
            texts = [f" {text}" if text and lead(text, first) else text for text in texts]
        words = [self._find(text) for text in texts]
        memo = self._memo  # another thread may replace it
        if new := set().union(*words).difference(memo):
            self._encode_new(new, memo)
            self._room -= sum(map(len, new))
            if self._room < 0:
                self._memo, self._room = {}, MEMO_CHARS
        return words, memo.__getitem__

    def _encode_new(self, words: set[str], memo: dict[str, Sequence[int]]) -> None:
        """Store the ids of words.

        Those with a blank before them and no other are encoded in groups, in half the time: every
        word has one token that begins with a blank, its first. A group in which there are more,
        because of the normalizer, is encoded singly.
        """
        grouped = [*filter(self._one_blank, words)]
        alone = [*words.difference(grouped)]
        groups = [grouped[at : at + _TOGETHER] for at in range(0, len(grouped), _TOGETHER)]
        for group, ids in zip(groups, self._encode_texts(map("".join, groups)), strict=True):
            starts = [at for at, number in enumerate(ids) if number in self._begins]
            if len(starts) == len(group) and not starts[0]:
                parts = map(slice, starts, [*starts[1:], len(ids)])
                memo.update(zip(group, map(ids.__getitem__, parts), strict=True))
            else:
                alone += group
        memo.update(zip(alone, self._encode_texts(alone), strict=True))

    def _encode_texts(self, texts: Iterable[str]) -> list[list[int]]:
        encoded = self._backend.encode_batch_fast([*texts], add_special_tokens=False)
        return [tokens.ids for tokens in encoded]

    def head(self, text: str, tokens: int) -> str:
        """The longest prefix of `text` that its first `tokens` tokens cover."""
        (words,), ids_of = self._split([text], True)
        totals = [*accumulate(map(len, map(ids_of, words)), initial=0)]
        whole = max(0, bisect_right(totals, tokens) - 1)
        # Less than 0 with a blank before the text.
        at = len(text) - sum(map(len, words[whole:]))
        if whole < len(words):
            offsets = self._backend.encode(words[whole], add_special_tokens=False).offsets
            at += max((end for _, end in offsets[: max(0, tokens - totals[whole])]), default=0)
        return text[: max(at, 0)]


def _steps(data: Mapping[str, Any] | None, key: str) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer or pre-tokenizer, which may be a sequence."""
    return (data[key] if data["type"] == "Sequence" else [data]) if data else []


def _is_one_of(step: Mapping[str, Any], known: Sequence[Mapping[str, Any]]) -> bool:
    return any(each.items() <= step.items() for each in known)


def _is_byte_level(
    normalizers: Sequence[Mapping[str, Any]], splits: Sequence[Mapping[str, Any]]
) -> bool:
    """Return whether texts become the words of `_BYTE_LEVEL_WORD`."""
    *before, last = splits or [{"type": ""}]
    return (
        last["type"] == "ByteLevel"
        and not last["add_prefix_space"]
        and all(_is_one_of(step, _NORMALIZERS) for step in normalizers)
        and all(_is_one_of(step, _SPLITS) for step in before)
        and (last["use_regex"] or any(step["type"] == "Split" for step in before))
    )


def _lead(
    normalizers: Sequence[Mapping[str, Any]], splits: Sequence[Mapping[str, Any]]
) -> Callable[[str, bool], bool] | None:
    """Return when a Llama puts a blank before a text; None if its tokenizer is another one."""
    if [*normalizers] == [{"type": "Prepend", "prepend": _BLANK}, _REPLACE] and not splits:
        return lambda text, first: True
    if normalizers or len(splits) != 1 or splits[0]["type"] != "Metaspace":
        return None
    if splits[0]["split"] or splits[0]["replacement"] != _BLANK:
        return None
    scheme = splits[0]["prepend_scheme"]
    return lambda text, first: (
        scheme != "never" and (first or scheme == "always") and text[0] not in (" ", _BLANK)
    )


def _sentencepiece_word(model: Mapping[str, Any]) -> str | None:
    """Return the pattern of words between which a Llama merges nothing; None if there is none."""
    merged = {
        "".join(each.split(" ") if isinstance(each, str) else each) for each in model["merges"]
    }
    if (
        not (model["byte_fallback"] and model["vocab"].keys() >= _BYTES)
        or model.get("ignore_merges")
        or any(_BLANK in token.lstrip(_BLANK) for token in merged)
    ):
        return None
    lone = "".join(set(_LONE).difference(*merged))
    others = rf"[ {_BLANK}]*[^ {_BLANK}{lone}]+|[ {_BLANK}]+"
    return rf"{others}|[{lone}]+" if lone else others
