"""Compare the task scores of `proxhpc prove` with those of lm-eval.

    python tools/compare_lm_eval.py MODEL REQUESTS [REQUESTS ...] --lm-eval PYTHON [--limit N]

MODEL is a directory of transformers, REQUESTS are files of multiple-choice requests as OLMES writes
them. PYTHON is the interpreter of another environment with `pip install "lm_eval[hf]"`. lm-eval
reads the same questions from a task that is written for it, without network. Prints accuracy and
accuracy per character by both, and exits with 1 if they differ by more than 0.001.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import bench
from proxhpc.prove.heldout import TextScorer
from proxhpc.prove.tasks import Question, read_questions, score_questions, task_name

TOLERANCE = 1e-3
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{context}}}}"
doc_to_choice: choices
doc_to_target: gold
target_delimiter: " "
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


def write_task(folder: Path, name: str, questions: Sequence[Question]) -> None:
    """Write the task and its questions for lm-eval."""
    file = folder / f"{name}.jsonl"
    with file.open("w") as out:
        for choices, gold in questions:
            answers = [continuation.removeprefix(" ") for _, continuation in choices]
            row = {"context": choices[0][0], "choices": answers, "gold": gold}
            out.write(json.dumps(row) + "\n")
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, file=file))


def lm_eval_scores(
    python: str, model: Path, folder: Path, names: Sequence[str]
) -> dict[str, list[float]]:
    """Accuracy and accuracy per character of each task, by lm-eval."""
    command = [python, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--tasks", ",".join(names)]
    command += ["--batch_size", "32"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(command, check=True, env=os.environ | offline, stdout=sys.stderr)
    (result,) = (folder / "out").rglob("results_*.json")
    results = json.loads(result.read_text())["results"]
    return {name: [results[name]["acc,none"], results[name]["acc_norm,none"]] for name in names}


def main() -> int:
    """Print both scores of each task; return the exit status."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("requests", type=Path, nargs="+")
    parser.add_argument("--lm-eval", required=True, metavar="PYTHON")
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    scorer = TextScorer(arguments.model)
    ours: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for path in arguments.requests:
            questions = read_questions(path)[: arguments.limit]
            task = f"proxhpc_{task_name(path).replace('.', '_')}"
            write_task(folder, task, questions)
            scores = score_questions(scorer, questions)
            ours[task] = [float(scores[key].mean()) for key in ("right", "right_per_char")]
        theirs = lm_eval_scores(arguments.lm_eval, arguments.model, folder, list(ours))
    failed = False
    for task, pair in ours.items():
        for kind, mine, other in zip(("acc", "acc_norm"), pair, theirs[task], strict=True):
            failed |= abs(mine - other) > TOLERANCE
            print(f"{task:32}{kind:10}proxhpc {mine:.4f}   lm-eval {other:.4f}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
