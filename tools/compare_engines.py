"""Count the requests to which vllm and transformers give the same answer, in float32.

    python tools/compare_engines.py corpus.jsonl.zst --model embedded [--free]
    python tools/compare_engines.py corpus.jsonl.zst --folder models --prompt prox-plain

Each engine, in a separate process, answers for the same documents: a verdict on each, and a program
for each of their windows whatever the verdict. The table shows how many answers are the same, and
how many edits of each engine's programs were rejected. With --free no grammar restricts the model.

With --folder, the table has a line for each model in that folder: the programs of the chunk stage
that are the same, and the FLOPs of both engines as proxhpc counts them, divided by those that hooks
on the model count. Above it are models that an engine cannot use, with the reason.
"""

import json
import sys
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import bench
from flop_hooks import CountedModel
from proxhpc.account.flops import Usage, flops
from proxhpc.errors import ProxError, UserError
from proxhpc.run.ledger import Call
from proxhpc.run.models import resolve_model

ENGINES = ("vllm", "transformers")
OPTIONS = {"dtype": "float32", "max_unusable": 1.0}  # random models are compared, too


def ask(name: str, stage: dict[str, Any], texts: list[str]) -> tuple[list[Call], int]:
    """The calls of one stage in order, and how many edits of their programs were rejected."""
    rows, _ = bench.refine(stage, {"name": name} | OPTIONS, texts)
    if quarantined := [row.detail for row in rows if row.outcome == "quarantined"]:
        raise UserError(f"{name} quarantined documents: {quarantined[0]}")
    calls = [call for row in rows for call in ([row.doc] if row.doc else row.windows)]
    return calls, sum(sum(row.rejected.values()) for row in rows)


def count_flops(path: Path, calls: list[Call]) -> tuple[int, int]:
    """The FLOPs of these calls as proxhpc counts them, and as hooks do; 0 if it cannot."""
    shape = resolve_model(str(path)).shape
    if shape is None:
        return 0, 0
    usage = [Usage.of_request(call.prompt, call.cached, call.new, call.work) for call in calls]
    model = CountedModel(path)
    hooks = sum(model.count(call.prompt, call.cached, call.new) for call in calls)
    return sum(flops(shape, each) for each in usage), hooks


def compare_model(
    path: Path, stage: dict[str, Any], texts: list[str], children: dict[str, ProcessPoolExecutor]
) -> list[str | float]:
    """A model's line of the table. What an engine refuses is printed."""
    answers: dict[str, list[Call]] = {}
    for name in ENGINES:
        when = "plan"
        try:
            bench.plan_stage(stage, {"name": name} | OPTIONS)
            when = "start"
            answers[name], _ = children[name].submit(ask, name, stage, texts).result()
        except ProxError as error:
            print(f"{path.name}: {name} refuses it at {when}: {error.message}", flush=True)
    kind = json.loads((path / "config.json").read_text()).get("model_type", "")
    if not answers:
        return [path.name, kind, "refused", "", ""]
    calls = [call for each in answers.values() for call in each]
    counted, hooks = children["hooks"].submit(count_flops, path, calls).result()
    ratio = f"{counted / hooks:.6f}" if hooks else "unknown"
    if len(answers) < len(ENGINES):
        return [path.name, kind, f"{next(iter(answers))} only", "", ratio]
    pairs = list(zip(*answers.values(), strict=True))
    return [path.name, kind, sum(a.program == b.program for a, b in pairs), len(pairs), ratio]


def compare_folder(
    folder: Path, stage: dict[str, Any], texts: list[str]
) -> list[list[str | float]]:
    """The lines of the table of the models in a folder."""
    table = []
    with ExitStack() as stack:  # imports take longer than small models
        children = {n: stack.enter_context(bench.make_children()) for n in (*ENGINES, "hooks")}
        for path in sorted(file.parent for file in folder.glob("*/config.json")):
            model = {"level": "chunk", "model": str(path)}
            table.append(compare_model(path, stage | model, texts, children))
            print(*table[-1], file=sys.stderr, flush=True)
    return table


def compare_levels(stage: dict[str, Any], texts: list[str]) -> list[list[str | float]]:
    """The lines of the table of one model: for each level, what is the same."""
    table: list[list[str | float]] = []
    for level in ("doc", "chunk"):
        answers = [bench.in_child(ask, name, {"level": level} | stage, texts) for name in ENGINES]
        (calls, rejected), (others, other_rejected) = answers
        same = sum(a.program == b.program for a, b in zip(calls, others, strict=True))
        share = f"{same / max(1, len(calls)):.4f}"
        table.append([level, len(calls), same, share, rejected, other_rejected])
    return table


def main() -> int:
    """Ask both engines, compare, print."""
    parser = bench.make_parser(__doc__, limit=200)
    parser.add_argument("--model", default="embedded", help="directory of the model")
    parser.add_argument("--folder", type=Path, help="folder with directories of models")
    parser.add_argument("--prompt", help="its prompt style, if it has no refiner.json")
    parser.add_argument("--free", action="store_true", help="without a grammar")
    parser.add_argument("--tokens", type=int, help="most tokens of an answer")
    options = parser.parse_args()
    texts = bench.read_texts(options)
    stage: dict[str, Any] = {"prompt": options.prompt} if options.prompt else {}
    stage |= {"grammar": "none"} if options.free else {}
    stage |= {"max_new_tokens": options.tokens} if options.tokens else {}
    if options.folder is None:
        header = ["level", "requests", "same", "share", *(f"rejected, {name}" for name in ENGINES)]
        table = compare_levels(stage | {"model": options.model}, texts)
    else:
        header = ["model", "architecture", "same", "of", "FLOPs / hooks"]
        table = compare_folder(options.folder, stage, texts)
    bench.print_table(header, table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
