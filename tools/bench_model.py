"""Train a small Llama that writes programs, as a model for bench_worker.py.

    python tools/bench_model.py corpus.jsonl.zst OUT [--minutes 6]

It learns what the rules engine answers, at both levels and in the prompt styles --styles. After
some minutes on a CPU it writes well-formed programs and ends them, which is all that a benchmark of
speed needs. It is no refiner.
"""

import asyncio
import itertools
import random
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import bench
from proxhpc.engines.base import Request
from proxhpc.engines.rules.engine import RulesEngine
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.refine.prompts import PromptStyle, prompt_style

CONTEXT = 2048
BATCH_TOKENS = 4096
CALLS = ["keep_doc()", "drop_doc()", "untouch_doc()", "remove_lines(start=0, end=0)\n"]
Example = tuple[list[int], list[int]]
"""Token ids of a prompt and of its answer."""


def train_tokenizer(texts: Sequence[str], vocabulary: int, out: Path) -> HFTokenizer:
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
    return HFTokenizer(out)


def program(level: str, lines: Sequence[str]) -> str:
    """The program of the rules for a document or window, without comments."""
    request = Request("doc" if level == "doc" else "chunk", (), lines, 0, 256)
    answer = asyncio.run(RulesEngine().complete(request)).text
    calls = [line.partition("  #")[0] for line in answer.split("\n")]
    return "untouch_doc()" if calls == ["keep_all()"] else "\n".join(calls[:15])


def examples(
    texts: Sequence[str], styles: Sequence[PromptStyle], tokenizer: HFTokenizer, rng: random.Random
) -> Iterator[Example]:
    """Yield examples without end, on windows at the start of documents, most of them short.

    Half of the documents are kept ones, or the model would learn to drop all.
    """
    verdicts = {text: program("doc", text.split("\n")) for text in texts}
    answers = ("keep_doc()", "drop_doc()")
    pools = [[text for text in texts if verdicts[text] == answer] for answer in answers]
    while True:
        text, style = rng.choice(rng.choice(list(filter(None, pools)))), rng.choice(styles)
        if rng.random() < 0.5:
            prompt, _ = style.doc_prompt(tokenizer, text, CONTEXT - 48)
            answer = verdicts[text]
        else:
            lines = text.split("\n")[: rng.choice((8, 20, 50, 120))]
            prompt, answer = style.chunk_prompt(tokenizer, lines, 0), program("chunk", lines)
        target = [*tokenizer.encode(answer), 2]
        if len(prompt) + len(target) <= CONTEXT:
            yield prompt, target


def batches(source: Iterator[Example]) -> Iterator[list[Example]]:
    """Yield batches of examples of similar length, with about BATCH_TOKENS tokens."""
    while True:
        pool = sorted(itertools.islice(source, 128), key=lambda pair: len(pair[0]) + len(pair[1]))
        ready, batch = [], list[Example]()
        for example in pool:
            if batch and (len(batch) + 1) * (len(example[0]) + len(example[1])) > BATCH_TOKENS:
                ready.append(batch)
                batch = []
            batch.append(example)
        random.Random(len(pool[0][0])).shuffle(ready)
        yield from ready or [batch]


def train(model: LlamaForCausalLM, source: Iterator[list[Example]], minutes: float) -> None:
    """Train on the answers, with a learning rate that falls to zero."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95))
    start = time.monotonic()
    for step in itertools.count(1):
        done = (time.monotonic() - start) / (60 * minutes)
        if done >= 1:
            return
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, step / 20, 2 * (1 - done))
        batch = next(source)
        width = max(len(prompt) + len(target) for prompt, target in batch)
        ids = torch.full((len(batch), width), 2)
        labels = torch.full((len(batch), width), -100)
        for row, (prompt, target) in enumerate(batch):
            ids[row, : len(prompt) + len(target)] = torch.tensor([*prompt, *target])
            labels[row, len(prompt) : len(prompt) + len(target)] = torch.tensor(target)
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {100 * done:.0f} %", file=sys.stderr)


def main() -> int:
    """Train and save."""
    parser = bench.make_parser(__doc__, limit=3000)
    parser.add_argument("out", type=Path, help="directory of the model")
    parser.add_argument("--styles", nargs="+", default=["prox-plain", "compact"])
    parser.add_argument("--minutes", type=float, default=6, help="of training")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    texts = bench.read_texts(options)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts, options.vocabulary, options.out)
    config = LlamaConfig(
        vocab_size=options.vocabulary,
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 4,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config)
    styles = [prompt_style(name) for name in options.styles]
    source = examples(texts, styles, tokenizer, random.Random(options.seed))
    train(model, batches(source), options.minutes)
    model.save_pretrained(options.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
