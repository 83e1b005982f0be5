"""The vocabulary of the style `walk`: its markers, and a tokenizer trained on given texts."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import UserError

TEXT_TOKENS = 4096  # more embeddings would be most of a tiny model
NUMBERS = 300  # maximum lines of a window
EIGHTHS = 8
LENGTHS = 6

END = "</s>"
DOC, DOC_MORE = "[doc]", "[doc+]"
DOC_END, DOC_END_MORE = "[/doc]", "[/doc+]"
VERDICT, VERDICT_END = "[judge]", "[/judge]"
LINE, GAP = "[line]", "[gap]"
KEEP_DOC, DROP_DOC = "keep_doc()\n", "drop_doc()\n"


position_token = "<P{}>".format
"""The marker of a window that begins in this eighth of its document."""
length_token = "<L{}>".format
"""The marker of the middle that is left out of a line of this length."""
number_token = "[{:03d}]".format
"""The marker after a line of a window."""
keep_token = "<keep {}>".format
"""The answer that keeps a line: a special token, which decoding leaves out."""
remove_token = "remove_lines(start={0}, end={0})\n".format
"""The answer that removes a line: one token, whose text is a statement."""

SPECIAL = (
    *(END, DOC, DOC_MORE, DOC_END, DOC_END_MORE, VERDICT, VERDICT_END, LINE, GAP),
    *map(position_token, range(EIGHTHS)),
    *map(length_token, range(LENGTHS)),
    *map(number_token, range(NUMBERS)),
    *map(keep_token, range(NUMBERS)),
)
# They end with a line feed, so no line of a text contains one.
PROGRAM_TOKENS = (KEEP_DOC, DROP_DOC, *map(remove_token, range(NUMBERS)))


def train_tokenizer(texts: Iterable[str], folder: Path, size: int = TEXT_TOKENS) -> None:
    """Train a tokenizer on the lines of `texts` and write its files into `folder`.

    It has `size` tokens of byte-level BPE, 256 of them bytes, then the markers. Text is normalized
    to NFKC with 0 for every digit. The same texts give the same files. UserError if there is too
    little text for `size` tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    zeros = normalizers.Replace(Regex(r"\p{Nd}"), "0")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), zeros])
    # No token mixes letters, digits and punctuation, or spells a marker.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_lines(texts), trainer)
    if tokenizer.get_vocab_size() != size:
        raise UserError(
            f"the texts give {tokenizer.get_vocab_size()} tokens instead of {size}",
            hint="train the tokenizer on more text, or with a smaller vocabulary",
        )
    if clashes := tokenizer.get_vocab().keys() & {*SPECIAL, *PROGRAM_TOKENS}:
        raise ValueError(f"tokens of text are markers: {sorted(clashes)}")
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
