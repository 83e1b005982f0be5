"""Compare how fast two models refine text, on one core with the transformers engine.

    python tools/bench_refiner.py corpus.jsonl.zst embedded .cache/smollm2-135m

Both models refine the same documents, window by window, or with --level doc as wholes, as their
refiner.json says or else with the prompt style --prompt. The second one need not have learned to
end its programs: it writes --tokens tokens a prompt. With one token, which is less than any
program, the ratio is a lower bound. Without a second model, the first one is compared with itself
as transformers computes it, in float32 and with padded prompts. Seconds are processor seconds,
including tokenization and Python.
"""

import torch

import bench


def main() -> int:
    """Print what each model did, and how fast."""
    parser = bench.make_parser(__doc__, limit=40)
    parser.add_argument("small", help="directory of the model to measure, or embedded")
    parser.add_argument("large", nargs="?", help="directory of the model to compare it with")
    parser.add_argument(
        "--level", choices=("chunk", "doc"), default="chunk", help="level of the stage"
    )
    parser.add_argument("--batch", type=int, default=8, help="prompts in a batch")
    parser.add_argument("--prompt", default="prox-plain", help="prompt style of the second model")
    parser.add_argument("--tokens", type=int, default=1, help="new tokens of the second model")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = bench.read_texts(options)
    size = sum(len(text.encode()) for text in texts) / 1000
    engine = {"name": "transformers", "batch_size": options.batch}
    padded: dict[str, object] = {}
    large = {"model": options.large, "prompt": options.prompt, "max_new_tokens": options.tokens}
    if options.large is None:  # packed prompts are for engines without options
        large = {"model": options.small}
        padded = {"dtype": "float32", "options": {"attn_implementation": "sdpa"}}
    table = []
    for stage, changes in (({"model": options.small}, {}), (large, padded)):
        rows, seconds = bench.refine({"level": options.level} | stage, engine | changes, texts)
        calls = [call for row in rows for call in (row.doc, *row.windows) if call]
        prompt, new = sum(call.prompt for call in calls), sum(call.new for call in calls)
        table.append((stage["model"], len(calls), prompt, new, seconds, size / seconds))
    header = ("", "prompts", "prompt tokens", "new tokens", "seconds", "kB/s")
    bench.print_table(header, table)
    print(f"{len(texts)} documents; the first is {table[1][4] / table[0][4]:.1f} times as fast")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
