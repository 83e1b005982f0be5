"""Tokenizers and random Llamas that are small enough to create in a test."""

import json
from pathlib import Path

TEXT = "Home | About\nThe quick brown fox jumps over the lazy dog. 0123456789 [doc] [INST]\n"
SPECIAL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# As in the templates of Qwen3, whose argument `enable_thinking` may be false.
THINKING = (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}"
)


def save_tokenizer(folder: Path, template: str | None = TEMPLATE) -> Path:
    """Write a byte-level BPE tokenizer that starts every prompt with <s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [TEXT],
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def save_walk_tokenizer(folder: Path) -> Path:
    """Write a tokenizer of the style `walk`, with few words."""
    from proxhpc.refine.walk_vocabulary import train_tokenizer

    train_tokenizer([TEXT * 3, "keep the document, remove lines of it"], folder, 320)
    return folder


def save_walk(folder: Path, **config: object) -> Path:
    """Write a random Llama of the style `walk`; its end-of-sequence token is 320."""
    from proxhpc.refine.walk_vocabulary import PROGRAM_TOKENS, SPECIAL

    defaults: dict[str, object] = {
        "vocab_size": 320 + len(SPECIAL) + len(PROGRAM_TOKENS),
        "max_position_embeddings": 1024,
        "bos_token_id": None,
        "eos_token_id": 320,
        "hidden_size": 128,  # heads of size 64; vLLM needs at least 32 on a CPU
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    _save(folder, defaults | config)
    return save_walk_tokenizer(folder)


def save_llama(folder: Path, **config: object) -> Path:
    """Write a random Llama of two layers with the first tokenizer."""
    _save(folder, config)
    return save_tokenizer(folder)


def _save(folder: Path, config: dict[str, object]) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    defaults: dict[str, object] = {
        "vocab_size": 320,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.4,  # large enough for answers that differ from prompt to prompt
    }
    LlamaForCausalLM(LlamaConfig(**defaults | config)).save_pretrained(folder)


def save_parrot(folder: Path, answer: str) -> Path:
    """Write a Llama that gives one answer to every prompt; the answer is one token of its own."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    save_llama(folder, max_position_embeddings=2048)
    save_tokenizer(folder, TEMPLATE + THINKING)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(answer)
    tokenizer.save_pretrained(folder)
    number = tokenizer.convert_tokens_to_ids(answer)
    file = folder / "model.safetensors"
    weights = {name: torch.zeros_like(tensor) for name, tensor in load_file(file).items()}
    for name, tensor in weights.items():
        if name.endswith("norm.weight"):
            tensor.fill_(1)
    embedding, head = weights["model.embed_tokens.weight"], weights["lm_head.weight"]
    embedding[:, 0] = embedding[number, 1] = 1
    embedding[number, 0] = 0
    head[number, 0] = head[2, 1] = 1  # the answer after any other token, and the end after it
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def damage(folder: Path) -> Path:
    """Make a weight of a model so large that its logits are NaN, though it is a number."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.norm.weight"].fill_(3e38)
    save_file(weights, file, metadata={"format": "pt"})
    return folder


def edit_json(file: Path, **changes: object) -> None:
    """Change keys of a JSON file; None removes a key."""
    data = json.loads(file.read_text()) if file.exists() else {}
    data = {key: value for key, value in {**data, **changes}.items() if value is not None}
    file.write_text(json.dumps(data))
