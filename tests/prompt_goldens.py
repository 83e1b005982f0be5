"""The prompts of the shipped profiles, as lengths and digests of their token ids."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tiny_models import TEMPLATE, TEXT, edit_json, save_tokenizer

if TYPE_CHECKING:
    from proxhpc.engines.base import Tokenizer
    from proxhpc.refine.prompts import Prompts

GOLDEN = Path(__file__).parent / "golden" / "prompts.json"
LINES = ("Home | About", "", "  The <|im_end|> fox </s>", "naïve 漢字 🦊", "\ttab ")
SYSTEM = "Clean the text.\n\n- Keep <lid:1>."
"""For the profiles that come without a system prompt."""
THINKING = TEMPLATE.replace(
    "{% endif %}",
    "{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)
"""A chat template like Qwen3's."""


def save_sentencepiece(folder: Path) -> Path:
    """Write a small tokenizer.model of the kind that Llama has, and its configuration."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT]),
        model_writer=model,
        model_type="bpe",
        vocab_size=310,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    edit_json(folder / "config.json", model_type="llama")
    config = folder / "tokenizer_config.json"
    edit_json(config, tokenizer_class="LlamaTokenizer", bos_token="<s>", add_bos_token=True)
    return folder


def golden_prompts(folder: Path, llama: Path | None) -> dict[str, dict[str, dict[str, str]]]:
    """Return the prompts by tokenizer, profile and case; `folder` is for tokenizers that it writes.

    `llama` is a folder with Llama's tokenizer, if there is one.
    """
    from proxhpc.engines.tokenizer import HFTokenizer
    from proxhpc.spec.profile import CHAT_TEMPLATE, profile_names
    from proxhpc.spec.refiner_file import read_profile

    (folder / "model").mkdir()
    folders = {
        "byte-level BPE": save_tokenizer(folder / "tokenizer", THINKING),
        "SentencePiece": save_sentencepiece(folder / "model"),
    } | ({"Llama": llama} if llama else {})
    goldens: dict[str, dict[str, dict[str, str]]] = {}
    for kind, path in folders.items():
        tokenizer = HFTokenizer(path)
        goldens[kind] = {
            name: _cases(tokenizer, shipped_prompts(name))
            for name in profile_names()
            if kind == "byte-level BPE" or read_profile(name).frame != CHAT_TEMPLATE
        }
    return goldens


def shipped_prompts(name: str) -> "Prompts":
    """Return the prompts of a shipped profile, with SYSTEM if it comes without a system prompt."""
    from proxhpc.refine.prompts import Prompts
    from proxhpc.spec.refiner_file import RefinerFile, read_profile
    from proxhpc.spec.sections import Stage

    file = read_profile(name)
    if file.frame_has_system and "system" not in file.model_fields_set:
        file = RefinerFile.model_validate({"version": 1, "prompt": name, "system": SYSTEM})
    return Prompts.of_stage(file.complete(Stage(level="chunk"), name))


def _cases(tokenizer: "Tokenizer", prompts: "Prompts") -> dict[str, str]:
    whole, _ = prompts.doc_prompt(tokenizer, "\n".join(LINES) + "\n\n", 5000)
    budget = len(prompts.full_doc_prompt(tokenizer, "")) + 50
    truncated, _ = prompts.doc_prompt(tokenizer, "The quick brown fox jumps over it. " * 40, budget)
    return {
        "document": _digest(whole),
        "truncated document": _digest(truncated),
        "window": _digest(prompts.chunk_prompt(tokenizer, LINES, 0)),
        "window from 998": _digest(prompts.chunk_prompt(tokenizer, LINES, 998)),
        "no line": _digest(prompts.chunk_prompt(tokenizer, (), 0)),
        "number": _digest(tokenizer.encode(prompts.number(7))),
    }


def _digest(ids: Sequence[int]) -> str:
    return f"{len(ids)} {hashlib.sha256(json.dumps(list(ids)).encode()).hexdigest()[:16]}"
