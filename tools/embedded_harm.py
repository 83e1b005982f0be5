"""The no-harm yardstick: how much of what should be kept a refiner drops and removes.

    python tools/embedded_harm.py DATA_DIR PAGES.jsonl.zst --out DIR [--packages DIR]
        [--model DIR --verdicts DIR] [--choose-bias] [--documents N]

It writes gold records to DIR/harm.jsonl.zst, and prints the scores of a refiner: --model has its
weights for lines, --verdicts those for verdicts. PAGES is from tools/embedded_data.py; only
documents of its validation hosts are taken. --choose-bias writes the bias of verdicts first, chosen
by the rule of `best_verdict_bias`; it needs only --verdicts. The groups:

doc NAME     pages of held-out documentation without their frame: any line that goes is a loss
page NAME    the same pages with their frame
text NAME    texts of the shared corpus of which nothing should go
new KIND     documents of PAGES by kind, without their frame
lang LANG    pages of PAGES by language, with the frames they have
web          web pages of the validation hosts: `long_lines_lost` is the measure
"""

import argparse
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from embedded_data import SOURCES, documentation
from embedded_data import row as page_row
from embedded_texts import languages
from package_files import Packages
from proxhpc.corpus.hosts import split_of
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.evaluate.gold import read_gold
from proxhpc.evaluate.result import SystemScores, evaluate
from proxhpc.preview import RefinerChoice
from proxhpc.refine.walk import Walk
from proxhpc.spec.refiner_file import NAME as REFINER_FILE
from proxhpc.spec.refiner_file import read_refiner
from proxhpc.train.card import markdown_table
from proxhpc.train.task import load_base
from proxhpc.train.walk_model import training_module
from train_embedded import EVALUATION_SOURCE, is_for_training, read, write

TEXTS = {  # sources of the shared corpus
    "dict-foldoc": "dictionary",
    "fortunes": "quotations",
    "jargon": "dictionary",
    "gnome": "gnome",
    "stack": "stackexchange",
    "arxiv": "arxiv",
}
WEB = "web"
BIASES = [quarter / 4 for quarter in range(-12, 13)]
MAX_DROPPED = 0.05  # of documentation, by the bias of verdicts
DOCUMENTATION = ("doc ", "new ", "text gnome")
MAX_CHARS = 15_000  # of the other documents: evaluation is slow


def record(group: str, row: dict[str, Any], *, bare: bool = False) -> dict[str, Any]:
    """A gold record without lines of unknown worth; `bare` has only good ones and a verdict."""
    lines, letters = row["text_noisy"].split("\n"), row["line_labels"]
    pairs = [
        (line, letter)
        for line, letter in zip(lines, letters, strict=True)
        if letter == "G" or (letter == "B" and not bare) or not line.strip()
    ]
    text = "\n".join(line for line, _ in pairs)
    labels = "".join(letter for _, letter in pairs)
    about = {"id": f"{group} {row['id']}", "source": group, "host": row["host"]}
    gold = "\n".join(line for line, letter in pairs if letter != "B")
    verdict = {"keep": 1} if bare else {}
    return about | {"text_noisy": text, "text_gold": gold, "line_labels": labels} | verdict


def whole(group: str, row: dict[str, Any]) -> dict[str, Any]:
    """A gold record of a text that is all good."""
    text = row["text"]
    labels = "G" * (text.count("\n") + 1)
    return record(group, row | {"host": "", "text_noisy": text, "line_labels": labels}, bare=True)


def candidates(
    data: Path, pages: Path, packages: Packages, documents: int
) -> Iterator[dict[str, Any]]:
    """Gold records of lines, of all groups; more of some than needed."""
    for source in yaml.safe_load(SOURCES.read_text(encoding="utf-8"))["held_out"]:
        defaults = {"licence": "", "lang": "en"}
        for variant in languages(defaults | source):
            for document in islice(documentation(packages, variant), documents):
                yield record(f"doc {source['host']}", page_row(document), bare=True)
                yield record(f"page {source['host']}", page_row(document))
    for row in read(data / "corpus_sample.jsonl.zst"):
        group = next((group for part, group in TEXTS.items() if part in row["source"]), None)
        if group:
            yield whole(f"text {group}", row)
    for row in read(pages):
        if split_of(row["host"], "") == "validation":
            if row["lang"] == "en":
                yield record(f"new {row['kind']}", row, bare=True)
            if "B" in row["line_labels"]:
                yield record(f"lang {row['lang']}", row)
    for row in read(data / "eval_dev.jsonl.zst"):
        if row["source"] != EVALUATION_SOURCE and split_of(row["host"], "") == "validation":
            yield record(WEB, row)


def sample(records: Iterable[dict[str, Any]], documents: int) -> Iterator[dict[str, Any]]:
    """Up to so many records of each group, chosen by their hashes."""
    groups = defaultdict(list)
    for each in records:
        if len(each["text_noisy"]) < MAX_CHARS or each["source"].startswith((WEB, "lang")):
            groups[each["source"]].append(each)
    for name, members in groups.items():
        members.sort(key=lambda each: hashlib.sha256(each["id"].encode()).digest())
        chosen = members[: documents * (4 if name == WEB else 1)]
        yield from chosen


def scores(model: Path, verdicts: Path, file: Path) -> str:
    """The scores of a refiner by group, as Markdown. Its two stages are scored separately."""
    records = read_gold([file])
    choice = RefinerChoice(engine="transformers", model=str(model), doc_model=str(verdicts))
    evaluation = evaluate([choice.open()], records, [file], rounds=0)
    dropped, rows = {}, []
    for group in evaluation.groups:
        system = group.systems[0]
        if group.level == "doc":
            dropped[group.name] = f"{1 - value(system, 'documents_kept'):.1%}"
    for group in evaluation.groups:
        if group.level == "chunk":
            system = group.systems[0]
            keep_all = next(each for each in group.systems if each.name == "keep all")
            rows.append(
                [
                    group.name.removeprefix("source="),
                    str(group.documents),
                    dropped.get(group.name, ""),
                    f"{1 - value(system, 'tokens_kept'):.1%}",
                    f"{value(system, 'long_lines_lost'):.1%}",
                    f"{value(system, 'token_f1'):.3f}",
                    f"{value(keep_all, 'token_f1'):.3f}",
                ]
            )
    return markdown_table(COLUMNS, rows)


COLUMNS = (
    "group",
    "documents",
    "dropped",
    "tokens removed",
    "long lines lost",
    "token F1",
    "of all",
)


def choose_bias(model: Path, harm: Path, data: Path) -> None:
    """Write the best bias of verdicts to the file of the model that gives them."""
    groups = verdict_log_odds(model, read(harm), "source", "text_noisy")
    documentation = [odds for group, _, odds in groups if group.startswith(DOCUMENTATION)]
    rows = read(data / "eval_docquality_dev.jsonl.zst")
    people = (row for row in rows if is_for_training(row["id"]))
    verdicts = [(odds, not keep) for _, keep, odds in verdict_log_odds(model, people, "id", "text")]
    bias = best_verdict_bias(documentation, verdicts)
    print(f"bias of verdicts: {bias}")
    path = model / REFINER_FILE
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["doc"] |= {"bias": bias}
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def verdict_log_odds(
    model: Path, rows: Iterable[dict[str, Any]], name: str, text: str
) -> Iterator[tuple[str, bool, float]]:
    """For each row with a verdict its key `name`, the verdict, and the log-odds of dropping it.

    They are against the likelier one of the other answers: to keep and to abstain.
    """
    import torch

    walk, module = Walk(HFTokenizer(model)), training_module(load_base(model))
    answers = [*walk.verdict_ids, walk.end]
    for row in rows:
        if "keep" in row:
            prompt = torch.tensor([walk.verdict_prompt(row[text].split("\n"))])
            with torch.inference_mode():
                last, _ = module.hidden(prompt)
                keep, drop, abstain = module.logits(last[0, -1])[answers].tolist()
            yield row[name], bool(row["keep"]), drop - max(keep, abstain)


def best_verdict_bias(
    documentation: Sequence[float], verdicts: Sequence[tuple[float, bool]]
) -> float:
    """The bias that follows people best, of those that drop at most MAX_DROPPED of documentation.

    `documentation` has the log-odds of pages that should stay; `verdicts` those of documents, and
    whether people drop them. The lowest of equal ones, and of all if each drops too much.
    """

    def share(bias: float) -> float:
        return sum(odds + bias > 0 for odds in documentation) / len(documentation)

    def correct(bias: float) -> int:
        return sum((odds + bias > 0) == is_dropped for odds, is_dropped in verdicts)

    harmless = [bias for bias in BIASES if share(bias) <= MAX_DROPPED]
    return max(harmless or BIASES[:1], key=correct)


def value(system: SystemScores, metric: str) -> float:
    """A score; 0 if undefined."""
    return system.scores[metric].value or 0.0


def main() -> None:
    """Write the records, and the scores of a model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA_DIR")
    parser.add_argument("pages", type=Path, metavar="PAGES")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="downloads (OUT/packages)")
    parser.add_argument("--model", type=Path, metavar="DIR", help="for lines; with --verdicts")
    parser.add_argument("--verdicts", type=Path, metavar="DIR", help="for verdicts")
    parser.add_argument("--choose-bias", action="store_true", help="write it for --verdicts")
    parser.add_argument(
        "--documents", type=int, default=40, metavar="N", help="of a group; 4N of web"
    )
    arguments = parser.parse_args()
    verdicts: Path | None = arguments.verdicts
    if arguments.choose_bias and not verdicts:
        parser.error("--choose-bias needs --verdicts")
    if arguments.model and not verdicts:
        parser.error("scores need --verdicts, too")
    if verdicts and not (arguments.model or arguments.choose_bias):
        parser.error("scores need --model, too")
    if verdicts:
        try:
            refiner = read_refiner(verdicts)
        except UserError as error:
            parser.error(f"--verdicts: {error.message}")
        if refiner is None or "doc" not in refiner.levels:
            parser.error(f"--verdicts: {verdicts / REFINER_FILE} has no `doc`")
    file = arguments.out / "harm.jsonl.zst"
    if not file.exists():
        packages = Packages(arguments.packages or arguments.out / "packages")
        found = candidates(arguments.data, arguments.pages, packages, arguments.documents)
        write(file, sample(found, arguments.documents))
    if verdicts and arguments.choose_bias:
        choose_bias(verdicts, file, arguments.data)
    if verdicts and arguments.model:
        print(scores(arguments.model, verdicts, file))


if __name__ == "__main__":
    main()
