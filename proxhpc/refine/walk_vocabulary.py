"""The vocabulary of the style `walk`: its markers, and a tokenizer trained on texts for them."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import UserError

SIZE = 4096  # tokens of text; an embedding of more would be most of a tiny model
NUMBERS = 300  # lines that a window may have
PLACES = 8
LENGTHS = 6

END = "</s>"
DOC, DOC_MORE = "[doc]", "[doc+]"
DOC_END, DOC_END_MORE = "[/doc]", "[/doc+]"
JUDGE, JUDGE_END = "[judge]", "[/judge]"
LINE, GAP = "[line]", "[gap]"
KEEP_DOC, DROP_DOC = "keep_doc()\n", "drop_doc()\n"


def position_token(eighth: int) -> str:
    """The marker of a window that begins in that eighth of its document."""
    return f"<P{eighth}>"


def length_token(bucket: int) -> str:
    """The marker of what was left out of a line of that length."""
    return f"<L{bucket}>"


def number_token(line: int) -> str:
    """The marker behind a line of a window."""
    return f"[{line:03d}]"


def keep_token(line: int) -> str:
    """The answer that keeps a line: a special token, so that decoded text has nothing of it."""
    return f"<keep {line}>"


def remove_token(line: int) -> str:
    """The answer that removes a line: one token, whose text is a statement of a program."""
    return f"remove_lines(start={line}, end={line})\n"


SPECIAL = (
    *(END, DOC, DOC_MORE, DOC_END, DOC_END_MORE, JUDGE, JUDGE_END, LINE, GAP),
    *map(position_token, range(PLACES)),
    *map(length_token, range(LENGTHS)),
    *map(number_token, range(NUMBERS)),
    *map(keep_token, range(NUMBERS)),
)
# These end with a line end, and lines have none: no line of a text can hold one.
PROGRAM_TOKENS = (KEEP_DOC, DROP_DOC, *map(remove_token, range(NUMBERS)))


def train_tokenizer(texts: Iterable[str], folder: Path, size: int = SIZE) -> None:
    """Write tokenizer.json and tokenizer_config.json into `folder`, made of the lines of `texts`.

    Byte-level BPE of `size` tokens, of them 256 bytes, then the markers. The model sees text in
    NFKC with 0 for every digit. The same texts give the same files. UserError when the texts are
    too few for so many tokens.
    """
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    tokenizer = Tokenizer(models.BPE())
    zeros = normalizers.Replace(Regex(r"\p{Nd}"), "0")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), zeros])
    # Letters, digits and punctuation are never of one token, and neither is a marker's text.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(texts), trainer)
    if tokenizer.get_vocab_size() != size:
        raise UserError(
            f"the texts give {tokenizer.get_vocab_size()} tokens, not {size}",
            hint="train the tokenizer on more text, or with a smaller vocabulary",
        )
    taken = tokenizer.get_vocab().keys() & {*SPECIAL, *PROGRAM_TOKENS}
    if taken:
        raise ValueError(f"tokens of text are markers: {sorted(taken)}")
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in PROGRAM_TOKENS])
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str().encode())
    write_atomic(folder / "tokenizer_config.json", json.dumps(config, indent=2).encode() + b"\n")


def _lines(texts: Iterable[str]) -> Iterator[list[str]]:
    for text in texts:
        yield [line.strip() for line in text.split("\n")]
