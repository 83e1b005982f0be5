"""The model's directory: weights, configuration, tokenizer, refiner.json and card."""

import os
import shutil
from pathlib import Path
from typing import Any

from proxhpc.corpus.disk import sync_directory, writing

# What a tokenizer may be made of; copied as it is.
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
)
PREPARED = "model"


def export(llama: Any, tokenizer: Path, texts: dict[str, str], out: Path) -> None:
    """Write a model and files of text into `out`, weights as bfloat16.

    All is prepared in a folder beside its place first; `texts` come last, in their order.
    """
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    made = out / "training" / PREPARED
    shutil.rmtree(made, ignore_errors=True)
    with writing(made):
        llama.to(torch.bfloat16).save_pretrained(made, safe_serialization=True)
        for name in TOKENIZER_FILES:
            if (tokenizer / name).is_file():
                shutil.copyfile(tokenizer / name, made / name)
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
        names = sorted(path.name for path in made.iterdir())
        for name in sorted(names, key=lambda name: name in texts):
            (made / name).chmod(0o644)  # as weights were not, which a group is to load
            os.replace(made / name, out / name)
        made.rmdir()
    sync_directory(out)
