"""Train a small Llama that writes programs, as a model for bench_worker.py.

    python tools/bench_model.py corpus.jsonl.zst OUT [--minutes 10]

It trains a random Llama with `annotate` and `adapt` on the programs of the rules engine. After some
minutes on a CPU the model writes well-formed programs and ends them, which is all that a benchmark
of speed needs. It is no refiner.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bench
from proxhpc.annotate.annotate import AnnotateOptions, annotate, open_sources
from proxhpc.spec.recipe import Recipe
from proxhpc.train.adapt import adapt
from proxhpc.worker.worker import Assignment, run_worker

CONTEXT = 2048
CALLS = ["keep_doc()", "drop_doc()", "keep_all()", "remove_lines(start=0, end=0)\n"]


def save_tokenizer(texts: Sequence[str], vocabulary: int, out: Path) -> None:
    """Train a byte-level BPE tokenizer on `texts`, and save it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*texts, *CALLS * len(texts)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(out)


def save_llama(vocabulary: int, hidden: int, layers: int, out: Path) -> None:
    """Save a Llama with random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(out)


def main() -> int:
    """Make examples, train and save."""
    parser = bench.make_parser(__doc__, limit=3000)
    parser.add_argument("out", type=Path, help="directory of the model")
    parser.add_argument("--minutes", type=float, default=10, help="of training")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        run = bench.make_run(
            folder,
            corpus={"paths": str(options.corpus.absolute()), "text": options.field},
            stages=[{"level": "doc"}, {"level": "chunk"}],
        )
        run_worker(run.dir, Assignment(), lambda _: None)
        examples, settings = folder / "examples.jsonl.zst", AnnotateOptions(untouched=0.5)
        annotate(open_sources([run.dir.root], examples, settings), examples, settings)
        save_tokenizer(bench.read_texts(options), options.vocabulary, folder / "base")
        save_llama(options.vocabulary, options.hidden, options.layers, folder / "base")
        recipe = {
            "name": "bench",
            "examples": str(examples),
            "base": str(folder / "base"),
            "prompt": "prox-plain",
            "max_tokens": CONTEXT,
            "hours": options.minutes / 60,
            "learning_rate": 1.5e-3,
            "average": 0.9,
            "precision": "bfloat16",
            "minutes": 60,
        }
        adapt(Recipe.model_validate(recipe), options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
