"""Train one of the embedded refiner's models: annotate, label, adapt and evaluate.

    python tools/train_embedded.py --make-env DIR/labeler      # lightgbm, scikit-learn
    python tools/train_embedded.py DATA_DIR --out DIR --hours 2 [--pages FILE] [--tests FILE]
                                   [--base DIR] [--threads 2] [--resume]
                                   [--publish proxhpc/embedded]
    python tools/train_embedded.py DATA_DIR --out DIR --hours 1 [...] --verdicts --layers 2
                                   --base proxhpc/embedded [--publish proxhpc/embedded/verdicts]

The refiner is two models, and each command trains one: without --verdicts the larger one, for
lines (DIR/model), with it the smaller one, for verdicts about documents (DIR/verdicts). With the
same --out both use the same examples.

DATA_DIR holds JSON lines:

eval_dev.jsonl.zst             pages with `text_noisy`, `text_gold`, `line_labels` (a letter a line:
                               G good, B bad), `source`, `host`, `id`; those of source `dragnet`
                               are for evaluation only
eval_docquality_dev.jsonl.zst  documents with `text`, `keep` (0 or 1), `unanimous`, `id`; half of
                               them, by a hash of the id, are for training, half for evaluation
corpus_sample.jsonl.zst        texts with `text`, `kind`, `lang`, `host`, `id`; the labeler labels
                               English ones of the kinds `web_html` and `pretraining`

PAGES, from tools/embedded_data.py, has pages and texts of other kinds and languages. Their lines
are labelled. They have no verdicts, so that the model learns to abstain: people's are about web
pages, and what is unlike these should stay. So should short parts of them.

TESTS, from tools/extractor_pages.py, has more web pages with labels, like those of eval_dev. Those
of validation hosts are for evaluation only.

With --base the training starts from the weights of an earlier refiner (for lines at a learning
rate of 0.0012), with --layers from those of its first layers.

Every step writes files to DIR and is skipped if they exist, so other inputs need another DIR; a
training run that was interrupted is continued with --resume. Seeds are fixed, but the number of
steps in --hours depends on the machine.
"""

import argparse
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from embedded_scores import evaluate_set, markdown
from proxhpc.annotate.annotate import AnnotateOptions, annotate
from proxhpc.annotate.gold import GoldSource
from proxhpc.corpus.disk import write_atomic
from proxhpc.corpus.hosts import split_of
from proxhpc.errors import UserError
from proxhpc.run.models import TOKENIZER_FILES, resolve_model
from proxhpc.spec.load import load_yaml
from proxhpc.spec.recipe import Recipe
from proxhpc.train.adapt import adapt
from proxhpc.train.task import load_base
from proxhpc.train.walk_pages import PAGE_POWER

ROOT = Path(__file__).parent.parent
LABELER = ROOT / "tools" / "labeler.py"
LABELER_PACKAGES = ("lightgbm>=4", "scikit-learn>=1.4", "zstandard>=0.22")
EVALUATION_SOURCE = "dragnet"  # its licence does not allow training
LABELED = "labeler"  # source of the documents that only the labeler has labelled
MIN_LINES, MIN_CHARS = 8, 200  # of a page, and of a document
PARTS = 5  # parts of a document that are labelled as documents, too
RECIPES = ROOT / "recipes"
BASE_LEARNING_RATE = 0.0012  # of lines, if their training starts from earlier weights
EXTRA_VALIDATION = 120  # documents of PAGES, at each level
HUMAN, SHORT = "human", "short"  # groups of documents: with people's verdicts, parts of PAGES
SHORT_LINES = (2, 4, 8, 16)  # of such a part; long lines are paragraphs
HELD_OUT = ("held-out-pages", "held-out-tests", "held-out-verdicts")
# A weight of PAGES is proportional to the number of those of its kind and language to this power.
KIND_POWER = -0.5
UNANIMOUS_WEIGHT = 2  # of a unanimous verdict, compared with another one
# Of the windows that are drawn, and of the documents whose verdicts are.
SHARES = {
    "chunk": {"gold": 0.56, LABELED: 0.12, "documentation": 0.1, "languages": 0.14, "texts": 0.08},
    "doc": {HUMAN: 0.02, LABELED: 0.5, "documentation": 0.1, "languages": 0.09, "texts": 0.08}
    | {SHORT: 0.21},
}

Rows = Iterator[dict[str, Any]]


def read(path: Path) -> Rows:
    """Objects of a file of JSON lines."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for line in io.BufferedReader(stream):
            yield json.loads(line)  # orjson refuses lone surrogates, which web pages have


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write JSON lines; lone surrogates, which annotate would refuse, become `?`."""
    texts = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lines = b"".join(text.encode("utf-8", "replace") for text in texts)
    write_atomic(path, zstandard.ZstdCompressor().compress(lines))


def is_for_training(name: str) -> bool:
    """Whether a document with a human verdict is for training; else it is for evaluation."""
    return hashlib.sha256(name.encode()).digest()[0] < 128


class Workspace:
    """The input files, and the files that the steps write."""

    def __init__(
        self,
        data: Path,
        out: Path,
        labeler_python: Path,
        extra: Path | None = None,
        tests: Path | None = None,
    ) -> None:
        self.data, self.labeler_python, self.extra, self.tests = data, labeler_python, extra, tests
        self.root = out / "data"
        self.root.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        """Path of a step's file."""
        return self.root / f"{name}.jsonl.zst"

    def rows(self, name: str) -> Rows:
        """Rows of a step's file."""
        return read(self.file(name))

    def inputs(self, name: str) -> Rows:
        """Rows of a file of the data directory."""
        return read(self.data / f"{name}.jsonl.zst")

    def is_missing(self, name: str) -> bool:
        """Whether a step must write this file; prints its path if so."""
        path = self.file(name)
        if missing := not path.exists():
            print(f"making {path}", flush=True)
        return missing

    def make(self, name: str, rows: Callable[["Workspace"], Rows]) -> Path:
        """Path of a file, which gets these rows if it does not exist."""
        if self.is_missing(name):
            write(self.file(name), rows(self))
        return self.file(name)

    def lacks_tests(self) -> bool:
        """Whether the examples were made without the TESTS that are given now."""
        held_out = self.file("held-out-tests")
        has_tests = held_out.exists() and any(read(held_out))
        return bool(self.tests) and self.file("pages").exists() and not has_tests

    def annotate(self, name: str, *sources: GoldSource) -> None:
        """Annotate sources into a file, without near-duplicates of what is for evaluation."""
        held_out = tuple(map(self.file, HELD_OUT))
        if self.is_missing(name):
            annotate(sources, self.file(name), AnnotateOptions(held_out=held_out))


def held_out_pages(work: Workspace) -> Rows:
    """The pages for evaluation."""
    return (row for row in work.inputs("eval_dev") if row["source"] == EVALUATION_SOURCE)


def training_pages(work: Workspace) -> Rows:
    """The other pages, and those of TESTS that are for training."""
    yield from (row for row in work.inputs("eval_dev") if row["source"] != EVALUATION_SOURCE)
    yield from _tests(work, "train")


def held_out_tests(work: Workspace) -> Rows:
    """The pages of TESTS for evaluation, without lines of unknown worth.

    Their gold texts have none of these: token F1 would take each one that is kept for a fault.
    """
    for row in _tests(work, "validation"):
        lines = zip(row["text_noisy"].split("\n"), row["line_labels"], strict=True)
        known = [(line, letter) for line, letter in lines if letter != "?"]
        text, letters = "\n".join(line for line, _ in known), "".join(each for _, each in known)
        yield row | {"text_noisy": text, "line_labels": letters}


def _tests(work: Workspace, split: str) -> Rows:
    rows = read(work.tests) if work.tests else iter(())
    return (row for row in rows if split_of(row["host"], row["id"]) == split)


def held_out_verdicts(work: Workspace) -> Rows:
    """The documents for evaluation."""
    rows = work.inputs("eval_docquality_dev")
    return (row for row in rows if not is_for_training(row["id"]))


def label_requests(work: Workspace) -> Rows:
    """What the labeler trains on and labels: lines of pages, and documents."""
    yield from _line_requests(work)
    yield from _document_requests(work)


def _line_requests(work: Workspace) -> Rows:
    for row in work.rows("gold-examples"):
        request = _request("chunk", row["id"], row["host"], row["lines"])
        yield request | {"labels": row["keep"], "train": row["split"] == "train"}
    for row in (*work.rows("held-out-pages"), *work.rows("held-out-tests")):
        yield _request("chunk", row["id"], row["host"], row["text_noisy"].split("\n"))
    for row in work.inputs("corpus_sample"):
        lines = row["text"].split("\n")
        if row["kind"] == "web_html" and row["lang"] == "en" and len(lines) >= MIN_LINES:
            yield _request("chunk", row["id"], row.get("host") or row["id"], lines)


def _document_requests(work: Workspace) -> Rows:
    """Documents with human verdicts; others and parts of them; gold texts of pages and parts."""
    for row in work.inputs("eval_docquality_dev"):
        request = _request("doc", row["id"], "", row["text"].split("\n"))
        label = "K" if row["keep"] else "D"
        yield request | {"labels": label, "train": is_for_training(row["id"])}
    rng = random.Random(0)
    for row in work.inputs("corpus_sample"):
        if row["kind"] == "pretraining" and row["lang"] == "en":
            yield from _parts(row["id"], row.get("host") or "", row["text"], rng)
    for row in work.rows("pages"):
        yield from _parts(f"gold {row['id']}", row["host"], row["text_gold"], rng)


def _parts(name: str, host: str, text: str, rng: random.Random) -> Rows:
    lines = text.split("\n")
    parts = [lines]
    for _ in range(PARTS):
        start = rng.randrange(len(lines))
        parts.append(lines[start : start + rng.choice((3, 8, 20, 50))])
    for number, part in enumerate(parts):
        if sum(map(len, part)) >= MIN_CHARS:
            yield _request("doc", f"{name} {number}", host, part)


def _request(level: str, name: str, host: str, lines: list[str]) -> dict[str, Any]:
    labels = "?" * (len(lines) if level == "chunk" else 1)
    about = {"level": level, "id": name, "host": host, "lines": lines}
    return about | {"labels": labels, "train": False}


def label(work: Workspace) -> None:
    """Run the labeler."""
    files = work.file("label-requests"), work.file("probabilities")
    subprocess.run([work.labeler_python, LABELER, *files], check=True)


def _probabilities(work: Workspace) -> dict[tuple[str, str], list[float]]:
    return {(row["level"], row["id"]): row["chance"] for row in work.rows("probabilities")}


def labelled_pairs(work: Workspace) -> Rows:
    """What only the labeler has labelled, as pairs for annotate."""
    probabilities = _probabilities(work)
    gold = {row["id"] for row in work.rows("gold-examples")}
    held_out = {row["id"] for name in HELD_OUT for row in work.rows(name)}
    for row in work.rows("label-requests"):
        if row["id"] in held_out or (row["level"] == "chunk" and row["id"] in gold):
            continue
        drop = probabilities[row["level"], row["id"]]
        pair = {"id": row["id"], "host": row["host"], "source": LABELED}
        pair["text"] = "\n".join(row["lines"])
        if row["level"] == "chunk":
            pair["line_labels"] = "".join("GB"[value > 0.5] for value in drop)
        else:
            pair["keep"] = row["labels"] == "K" if row["train"] else drop[0] < 0.5
        yield pair


def join_probabilities(work: Workspace) -> Rows:
    """The examples with the labeler's probabilities; its own labels are for training only."""
    extra = extra_groups(work)
    draws: Counter[tuple[str, str]] = Counter()  # by level and group
    rows = list(_groups(work, extra))
    for group, row in rows:
        if row["split"] == "train":
            lines = len(row["lines"]) if row["level"] == "chunk" else 1
            draws[row["level"], group] += row["weight"] * lines**PAGE_POWER
    chosen = Counter[str]()
    rows.sort(key=lambda pair: hashlib.sha256(pair[1]["id"].encode()).digest())
    for group, row in rows:
        level, is_training = row["level"], row["split"] == "train"
        if is_training:
            row["weight"] *= 1000 * SHARES[level][group] / draws[level, group]
        elif row["id"] in extra:
            chosen[level] += 1
            if chosen[level] > EXTRA_VALIDATION:
                continue
        yield row


def _groups(
    work: Workspace, extra: dict[str, tuple[str, float]]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Examples with their group, and their weight within it."""
    probabilities = _probabilities(work)
    is_human = {row["id"]: row["train"] for row in work.rows("label-requests")}
    unanimous = {row["id"] for row in work.inputs("eval_docquality_dev") if row["unanimous"]}
    for row in work.rows("all-examples"):
        if row["id"] in extra:
            row["source"], row["weight"] = extra[row["id"]]
            if row["level"] == "doc":
                row["program"] = "?"  # no verdict: people's are about other documents
            elif row["split"] == "train":
                yield from ((SHORT, part) for part in _short_part(row))
            yield row["source"], row
        elif _join(row, probabilities, is_human):
            if row["teacher"] == "human":
                weight = UNANIMOUS_WEIGHT if row["id"] in unanimous else 1
                copy = {"id": f"{row['id']} (training)", "split": "train", "weight": weight}
                yield HUMAN, row | copy
            yield LABELED if row["source"] == LABELED else "gold", row


def _short_part(row: dict[str, Any]) -> Rows:
    """A part of the text of a page of PAGES, as a document without a verdict."""
    good = [line for line, label in zip(row["lines"], row["keep"], strict=True) if label != "D"]
    rng = random.Random(row["id"])
    start = rng.randrange(len(good)) if good and rng.random() < 0.5 else 0
    text = "\n".join(good[start : start + rng.choice(SHORT_LINES)]).strip()
    if len(text) >= MIN_CHARS:
        about = {"id": f"{row['id']} (part)", "level": "doc", "program": "?", "text": text}
        kept = ("source", "host", "split", "teacher", "weight")
        yield about | {key: row[key] for key in kept} | {"of": text.count("\n") + 1}


def _join(
    row: dict[str, Any], probabilities: dict[tuple[str, str], list[float]], human: dict[str, bool]
) -> bool:
    """Add the labeler's probabilities to an example; returns whether it is of use."""
    is_gold = row["source"] != LABELED
    is_human = row["level"] == "doc" and human[row["id"]]
    if is_human:
        row["split"] = "validation"
    elif not is_gold and row["split"] != "train":
        return False
    row["chance"] = probabilities[row["level"], row["id"]]
    if not is_gold and row["level"] == "chunk":
        row["teacher"] = LABELED
        row["keep"] = "?" * len(row["lines"])
    elif row["level"] == "doc":
        row["teacher"] = "human" if is_human else LABELED
    return True


def extra_groups(work: Workspace) -> dict[str, tuple[str, float]]:
    """The group of each document of PAGES, and its weight: less for frequent kinds."""
    if work.extra is None:
        return {}

    def group(row: dict[str, Any]) -> str:
        if row["lang"] != "en":
            return "languages"
        is_documentation = row["kind"] in ("documentation", "mathematics")
        return "documentation" if is_documentation else "texts"

    kinds = {row["id"]: (group(row), row["kind"], row["lang"]) for row in read(work.extra)}
    counts = Counter(kinds.values())
    return {name: (kind[0], counts[kind] ** KIND_POWER) for name, kind in kinds.items()}


def make_examples(work: Workspace) -> Path:
    """The file of training examples."""
    work.make("held-out-pages", held_out_pages)
    work.make("held-out-tests", held_out_tests)
    work.make("held-out-verdicts", held_out_verdicts)
    gold = GoldSource(work.make("pages", training_pages))
    work.annotate("gold-examples", gold)
    work.make("label-requests", label_requests)
    if work.is_missing("probabilities"):
        label(work)
    labelled = GoldSource(work.make("labelled", labelled_pairs))
    extra = [GoldSource(work.extra)] if work.extra else []
    work.annotate("all-examples", gold, labelled, *extra)
    return work.make("examples", join_probabilities)


def validation_pages(work: Workspace) -> Rows:
    """The pages of validation hosts, as gold records."""
    ids = {row["id"] for row in work.rows("gold-examples") if row["split"] == "validation"}
    return (row for row in work.rows("pages") if row["id"] in ids)


def count_layers(base: Path) -> int:
    """The number of layers of a base model; UserError if it is none."""
    shape = resolve_model(str(base), offline=True).shape
    return shape.layers if shape else 0


def first_layers(base: Path, layers: int, folder: Path) -> Path:
    """The directory of a model of a base model's first layers, which is written to `folder`."""
    model = load_base(base)
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        if (base / name).is_file():
            shutil.copyfile(base / name, folder / name)
    return folder


def score_tables(work: Workspace, model: Path, *, verdicts: bool) -> str:
    """Scores of the model's lines or verdicts, as Markdown for its card."""
    pages, validation = work.file("held-out-pages"), work.make("validation", validation_pages)
    sets = {
        "Pages of validation hosts, on which the bias and the best weights were chosen": validation,
        f"Pages of {EVALUATION_SOURCE}, none of which are training data": pages,
    }
    if work.tests:
        title = "Pages of extractors' tests, of validation hosts; none of them are training data"
        sets[title] = work.file("held-out-tests")
    if verdicts:
        title = "Documents with human verdicts, none of which are training data"
        sets = {title: work.file("held-out-verdicts")}
    probabilities = _probabilities(work)
    return markdown(
        [
            evaluate_set(model, title, file, 160 if file == pages else None, probabilities)
            for title, file in sets.items()
        ]
    )


def make_env(folder: Path) -> None:
    """Make a virtual environment for the labeler."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
    subprocess.run([*pip, *LABELER_PACKAGES], check=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?", metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--hours", type=float, default=2.0, metavar="H")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--pages", type=Path, metavar="FILE", help="from tools/embedded_data.py")
    parser.add_argument("--tests", type=Path, metavar="FILE", help="from tools/extractor_pages.py")
    parser.add_argument("--base", type=Path, metavar="DIR", help="start from these weights")
    parser.add_argument("--layers", type=int, metavar="N", help="only the first layers of --base")
    parser.add_argument("--verdicts", action="store_true", help="train the model for verdicts")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted training")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="copy the model to DIR")
    parser.add_argument("--make-env", type=Path, metavar="DIR", help="the labeler's environment")
    arguments = parser.parse_args()
    if arguments.make_env and arguments.data is None:
        make_env(arguments.make_env)
        return
    if arguments.data is None or arguments.out is None:
        parser.error("DATA_DIR and --out are required to train")
    base: Path | None = arguments.base
    if base is None and (arguments.layers is not None or arguments.verdicts):
        parser.error("--layers and --verdicts need --base")
    if base and arguments.layers is not None:
        try:
            number = count_layers(base)
        except UserError as error:
            parser.error(f"--base: {error.message}")
        if not 1 <= arguments.layers <= number:
            parser.error(
                f"--layers {arguments.layers}: must be from 1 to {number}, those of {base}"
            )
    python = (arguments.make_env or arguments.out / "labeler") / "bin" / "python"
    work = Workspace(arguments.data, arguments.out, python, arguments.pages, arguments.tests)
    if work.lacks_tests():
        parser.error(
            f"--tests: the examples in {work.root} were made without any of its pages; delete this "
            "folder, or choose another --out"
        )
    if arguments.make_env:
        make_env(arguments.make_env)
    import torch

    torch.set_num_threads(arguments.threads)
    variables = {"EXAMPLES": str(make_examples(work).absolute()), "HOURS": str(arguments.hours)}
    if base and arguments.layers:
        base = first_layers(base, arguments.layers, arguments.out / "base")
    if base:
        variables["MODEL"] = str(base.absolute())
    name = "embedded-verdicts" if arguments.verdicts else "embedded"
    model = arguments.out / ("verdicts" if arguments.verdicts else "model")
    recipe = load_yaml(RECIPES / f"{name}.yaml", Recipe, environ=variables)
    if base and recipe.shape:
        keys = {"base": variables["MODEL"], "learning_rate": BASE_LEARNING_RATE}
        recipe = Recipe(**recipe.model_dump(exclude_unset=True, exclude={"shape"}) | keys)
    adapt(recipe, model, resume=arguments.resume)
    tables = score_tables(work, model, verdicts=arguments.verdicts)
    print(tables)
    card = (model / "README.md").read_text(encoding="utf-8")
    write_atomic(model / "README.md", f"{card}\n## Scores on gold records\n\n{tables}".encode())
    if arguments.publish:
        arguments.publish.mkdir(exist_ok=True)
        for file in filter(Path.is_file, model.iterdir()):
            shutil.copyfile(file, arguments.publish / file.name)


if __name__ == "__main__":
    main()
