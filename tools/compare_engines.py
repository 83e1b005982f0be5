"""Count the requests to which vllm and transformers give the same answer, in float32.

    python tools/compare_engines.py corpus.jsonl.zst --model embedded [--free]

Each engine, in a separate process, answers for the same documents: a verdict on each, and a program
for each of their windows whatever the verdict. The table shows how many answers are the same, and
how many edits of each engine's programs were rejected. With --free no grammar restricts the model.
"""

from typing import Any

import bench

ENGINES = ("vllm", "transformers")


def ask(name: str, stage: dict[str, Any], texts: list[str]) -> tuple[list[str], int]:
    """The programs of one stage in order, and how many of their edits were rejected."""
    rows, _ = bench.refine(stage, {"name": name, "dtype": "float32"}, texts)
    if quarantined := [row.detail for row in rows if row.outcome == "quarantined"]:
        raise SystemExit(f"{name} quarantined documents: {quarantined[0]}")
    calls = [call for row in rows for call in ([row.doc] if row.doc else row.windows)]
    return [call.program for call in calls], sum(sum(row.rejected.values()) for row in rows)


def main() -> int:
    """Ask both engines, compare, print."""
    parser = bench.make_parser(__doc__, limit=200)
    parser.add_argument("--model", default="embedded", help="directory of the model")
    parser.add_argument("--prompt", help="its prompt style, if it has no refiner.json")
    parser.add_argument("--free", action="store_true", help="without a grammar")
    options = parser.parse_args()
    texts = bench.read_texts(options)
    stage = {"model": options.model}
    stage |= {"prompt": options.prompt} if options.prompt else {}
    stage |= {"grammar": "none"} if options.free else {}
    table = []
    for level in ("doc", "chunk"):
        answers = [bench.in_child(ask, name, {"level": level} | stage, texts) for name in ENGINES]
        (programs, rejected), (others, other_rejected) = answers
        same = sum(a == b for a, b in zip(programs, others, strict=True))
        share = f"{same / max(1, len(programs)):.4f}"
        table.append((level, len(programs), same, share, rejected, other_rejected))
    header = ("level", "requests", "same", "share", *(f"rejected, {name}" for name in ENGINES))
    bench.print_table(header, table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
