"""Words: texts that are encoded word by word have the ids of the tokenizer itself."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.engines.words import Words
from proxhpc.run.models import resolve_model
from tiny_models import save_tokenizer

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEXT = "The quick brown fox's 12 naïve tests.\n\n  They end </s> <think>here</think>!\n" * 9
PIECES = (
    *(
        " ",
        "  ",
        "\n",
        "\t",
        "\r",
        "\u00a0",
        "\u3000",
        "▁",
        "¨",
        "a",
        "The",
        " the",
        "1",
        "02",
        ".",
    ),
    *(",'", "'s", "!", "é", "漢", "</s>", "<think>", "<0x0A>", "[", "]", "\x1c", "\x85", "\u200b"),
    *("\u0301", "ﬁ", "０", "½", "😀", "quick", "keep_doc()\n", "\0"),
)
texts = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
KINDS = ("gpt2", "qwen", "legacy", "first", "always", "never", "embedded", "llama2")


def save_backend(folder: Path, kind: str) -> Path:
    """Train a byte-level tokenizer, or one like Llama 2's that puts blanks first as `kind` says."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
    from tokenizers import pre_tokenizers as pre
    from transformers import PreTrainedTokenizerFast

    if kind == "qwen":
        tokenizer = Tokenizer(models.BPE())
        split = pre.Split(Regex(QWEN), "isolated")
        tokenizer.pre_tokenizer = pre.Sequence([split, pre.ByteLevel(False, use_regex=False)])
        tokenizer.normalizer = normalizers.NFC()
        trainer = trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=["<unk>", "<s>", "</s>"],
            initial_alphabet=pre.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator([TEXT], trainer)
        tokenizer.add_tokens([AddedToken("<think>", normalized=False)])
    else:
        letters = sorted({*TEXT, "▁"} - {" ", "\n"})
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *letters]
        merges = [("▁", "T"), ("▁T", "h"), ("q", "u"), ("▁", "▁"), ("▁▁", "T"), (".", "'")]
        vocabulary = {name: n for n, name in enumerate([*tokens, *map("".join, merges)])}
        tokenizer = Tokenizer(
            models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
        if kind == "legacy":
            blanks = normalizers.Replace(" ", "▁")
            tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), blanks])
        else:
            tokenizer.pre_tokenizer = pre.Metaspace(prepend_scheme=kind, split=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[HFTokenizer, HFTokenizer]:
    """A tokenizer with words, and the same without."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "llama2":
        if "PROXHPC_DATA" not in os.environ:
            pytest.skip("PROXHPC_DATA names no folder with llama_tokenizer/")
        folder = Path(os.environ["PROXHPC_DATA"]) / "llama_tokenizer"
    elif request.param == "embedded":
        folder = resolve_model("embedded").path
    elif request.param == "gpt2":
        save_tokenizer(folder)
    else:
        save_backend(folder, request.param)
    by_words, whole = HFTokenizer(folder), HFTokenizer(folder)
    assert by_words._words is not None, "this tokenizer must be a fast one"
    whole._words = None
    return by_words, whole


@given(st.lists(texts | st.text(max_size=20), max_size=5), st.booleans())
def test_ids_are_those_of_the_whole_text(
    pair: tuple[HFTokenizer, HFTokenizer], found: list[str], first: bool
) -> None:
    by_words, whole = pair
    for text in found:
        assert by_words.encode(text, first=first) == whole.encode(text, first=first)
    expected = whole.encode_lines(found)
    assert by_words.encode_lines(found) == expected
    assert by_words.count(found) == [len(ids) for ids in expected]
    for text in found:
        size = len(whole.encode(text))
        for tokens in {-1, size // 2, size - 1, size} - {1}:  # 1 may be a blank before the text
            ours, theirs = by_words.head(text, tokens), whole.head(text, tokens)
            assert ours.rstrip() == theirs.rstrip()


def test_each_word_is_encoded_once_and_the_memo_is_bounded(
    pair: tuple[HFTokenizer, HFTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = pair[0]._words
    assert words is not None
    words.encode(["The quick fox", "The fox"])
    monkeypatch.setattr(words, "_backend", None)  # an unknown word would fail
    assert words.count(["The quick fox"]) == [len(words.encode(["The quick fox"])[0])]
    monkeypatch.undo()
    monkeypatch.setattr("proxhpc.engines.words.MEMO_CHARS", 100)
    monkeypatch.setattr(words, "_room", 0)
    for number in range(300):
        words.encode([f"word {number}x"])
    assert sum(map(len, words._memo)) <= 100
    assert len(words.encode(["The quick fox"])[0])


@pytest.mark.parametrize("key", ["dropout", "continuing_subword_prefix", "Unigram", "normalized"])
def test_other_tokenizers_read_whole_texts(tmp_path: Path, key: str) -> None:
    import json

    data = json.loads(HFTokenizer(save_tokenizer(tmp_path))._text.to_str())
    assert Words.of(json.dumps(data))
    if key == "Unigram":
        data["model"]["type"] = key
    elif key == "normalized":
        data["added_tokens"].append({"special": False, "normalized": True, "content": "x"})
    else:
        data["model"][key] = 0.5
    assert Words.of(json.dumps(data)) is None
