"""Trains the embedded refiner: annotate, the classical labeler, adapt, evaluate, in one go.

    python tools/train_embedded.py DATA_DIR --out DIR --hours 2 [--threads 2] [--resume]
    python tools/train_embedded.py DATA_DIR --out DIR --publish proxhpc/embedded
    python tools/train_embedded.py --make-env DIR/labeler      # lightgbm, scikit-learn

DATA_DIR holds JSON lines:

eval_dev.jsonl.zst             pages with `text_noisy`, `text_gold`, `line_labels` (a letter a line:
                               G good, B bad), `source`, `host`, `id`; those of source `dragnet`
                               are for evaluation only
eval_docquality_dev.jsonl.zst  documents with `text`, `keep` (0 or 1), `unanimous`, `id`; half of
                               them, by a hash of the id, teach; the other half judges
corpus_sample.jsonl.zst        texts with `text`, `kind`, `lang`, `host`, `id`; `web_html` pages
                               and `pretraining` documents in English are labelled by the labeler

Every step leaves its files in DIR, and is not done again while they are there; a training that was
begun goes on with --resume only. Seeds are fixed; how many
steps the hours are depends on the machine.
"""

import argparse
import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import zstandard

from embedded_scores import judge, markdown
from proxhpc.annotate.annotate import Options, annotate
from proxhpc.annotate.gold import GoldSource
from proxhpc.corpus.disk import write_atomic
from proxhpc.spec.recipe import load_recipe
from proxhpc.train.adapt import adapt

ROOT = Path(__file__).parent.parent
LABELER = ROOT / "tools" / "labeler.py"
NEEDS = ("lightgbm>=4", "scikit-learn>=1.4", "zstandard>=0.22")
JUDGED_ONLY = "dragnet"  # its licence does not allow training
LABELED = "labeler"  # the source of what only the labeler has labelled
LEAST_LINES, LEAST_CHARS = 8, 200
PARTS = 2  # parts of a document that are documents of their own
RECIPE = ROOT / "recipes" / "embedded.yaml"

Rows = Iterator[dict[str, Any]]


def read(path: Path) -> Rows:
    """Objects of a file of JSON lines."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for line in io.BufferedReader(stream):
            yield json.loads(line)  # orjson refuses lone surrogates, which web pages have


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """A file of JSON lines; lone surrogates, which annotate would refuse, become `?`."""
    texts = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    lines = b"".join(text.encode("utf-8", "replace") for text in texts)
    write_atomic(path, zstandard.ZstdCompressor().compress(lines))
    return path


def teaches(name: str) -> bool:
    """Whether a document with a human verdict teaches; else it judges."""
    return hashlib.sha256(name.encode()).digest()[0] < 128


class Work:
    """The files of a training."""

    def __init__(self, data: Path, out: Path, python: Path) -> None:
        self.data, self.out, self.python = data, out, python
        self.root = out / "data"
        self.root.mkdir(parents=True, exist_ok=True)

    def file(self, name: str) -> Path:
        """The file of that name."""
        return self.root / f"{name}.jsonl.zst"

    def source(self, name: str) -> Rows:
        """The rows of a file of the data directory."""
        return read(self.data / f"{name}.jsonl.zst")

    def once(self, name: str, make: Callable[[], object]) -> Path:
        """The file of that name, made if it is not there."""
        path = self.file(name)
        if not path.exists():
            print(f"making {path}", flush=True)
            make()
        return path


def split_gold(work: Work) -> None:
    """Pages to learn from, and pages and documents to judge by."""
    pages = list(work.source("eval_dev"))
    write(work.file("judged"), (row for row in pages if row["source"] == JUDGED_ONLY))
    humans = list(work.source("eval_docquality_dev"))
    write(work.file("verdicts"), (row for row in humans if not teaches(row["id"])))
    write(work.file("pages"), (row for row in pages if row["source"] != JUDGED_ONLY))


def options(work: Work) -> Options:
    """Whole documents; what is judged by is kept clear of."""
    return Options(held_out=(work.file("judged"), work.file("verdicts")))


def to_label(work: Work) -> None:
    """What the labeler learns from and labels: pages' lines, and documents."""
    rows = list(_lines_to_label(work)) + list(_documents_to_label(work))
    write(work.file("to-label"), rows)


def _lines_to_label(work: Work) -> Rows:
    for row in read(work.file("gold-examples")):
        yield {
            **_asked("chunk", row["id"], row["host"], row["lines"]),
            "marks": row["keep"],
            "train": row["split"] == "train",
        }
    for row in work.source("eval_dev"):
        if row["source"] == JUDGED_ONLY:
            yield _asked("chunk", row["id"], row["host"], row["text_noisy"].split("\n"))
    for row in work.source("corpus_sample"):
        lines = row["text"].split("\n")
        if row["kind"] == "web_html" and row["lang"] == "en" and len(lines) >= LEAST_LINES:
            yield _asked("chunk", row["id"], row.get("host") or row["id"], lines)


def _documents_to_label(work: Work) -> Rows:
    """Documents with human verdicts; others, and parts of them; pages by their gold text."""
    for row in work.source("eval_docquality_dev"):
        asked = _asked("doc", row["id"], "", row["text"].split("\n"))
        mark = "K" if row["keep"] else "D"
        yield asked | {"marks": mark, "train": teaches(row["id"])}
    chance = random.Random(0)
    for row in work.source("corpus_sample"):
        if row["kind"] == "pretraining" and row["lang"] == "en":
            yield from _parts(row["id"], row.get("host") or "", row["text"], chance)
    for row in read(work.file("pages")):
        yield from _parts(f"gold {row['id']}", row["host"], row["text_gold"], chance)


def _parts(name: str, host: str, text: str, chance: random.Random) -> Rows:
    lines = text.split("\n")
    pieces = [lines]
    for _ in range(PARTS):
        start = chance.randrange(len(lines))
        pieces.append(lines[start : start + chance.choice((3, 8, 20, 50))])
    for number, piece in enumerate(pieces):
        if sum(map(len, piece)) >= LEAST_CHARS:
            yield _asked("doc", f"{name} {number}", host, piece)


def _asked(level: str, name: str, host: str, lines: list[str]) -> dict[str, Any]:
    marks = "?" * (len(lines) if level == "chunk" else 1)
    about = {"level": level, "id": name, "host": host, "lines": lines}
    return about | {"marks": marks, "train": False}


def label(work: Work) -> None:
    """Run the labeler."""
    chances = work.file("chances")
    subprocess.run([work.python, LABELER, work.file("to-label"), chances], check=True)


def labelled_pairs(work: Work) -> None:
    """What only the labeler has labelled, as pairs for annotate."""
    chances = _chances(work)
    known = {row["id"] for row in read(work.file("gold-examples"))}

    def rows() -> Rows:
        judged = {row["id"] for row in read(work.file("verdicts"))}
        judged |= {row["id"] for row in read(work.file("judged"))}
        for row in read(work.file("to-label")):
            if row["id"] in judged or (row["level"] == "chunk" and row["id"] in known):
                continue
            chance = chances[row["level"], row["id"]]
            pair = {"id": row["id"], "host": row["host"], "source": LABELED}
            pair["text"] = "\n".join(row["lines"])
            if row["level"] == "chunk":
                pair["line_labels"] = "".join("GB"[value > 0.5] for value in chance)
            else:
                pair["keep"] = row["marks"] == "K" if row["train"] else chance[0] < 0.5
            yield pair

    write(work.file("labelled"), rows())


def _chances(work: Work) -> dict[tuple[str, str], list[float]]:
    return {(row["level"], row["id"]): row["chance"] for row in read(work.file("chances"))}


def join(work: Work) -> None:
    """The examples with the labeler's chances; its own labels teach only."""
    chances = _chances(work)
    documents = {row["id"]: row["train"] for row in read(work.file("to-label"))}

    def rows() -> Rows:
        for row in read(work.file("all-examples")):
            own = row["source"] != LABELED
            human = row["level"] == "doc" and documents[row["id"]]
            if human:  # the labeler hands on what is learnt from these; they set the bias
                row["split"] = "validation"
            elif not own and row["split"] != "train":
                continue
            row["chance"] = chances[row["level"], row["id"]]
            if not own and row["level"] == "chunk":
                row["teacher"], row["weight"] = LABELED, 0.6
                row["keep"] = "?" * len(row["lines"])
            elif row["level"] == "doc":
                row["teacher"] = "human" if human else LABELED
            yield row

    write(work.file("examples"), rows())


def examples(work: Work) -> Path:
    """The examples to train with."""
    work.once("pages", lambda: split_gold(work))
    gold = GoldSource(work.file("pages"))
    made = work.file("gold-examples")
    work.once("gold-examples", lambda: annotate([gold], made, options(work)))
    work.once("to-label", lambda: to_label(work))
    work.once("chances", lambda: label(work))
    work.once("labelled", lambda: labelled_pairs(work))
    sources = [gold, GoldSource(work.file("labelled"))]
    every = work.file("all-examples")
    work.once("all-examples", lambda: annotate(sources, every, options(work)))
    return work.once("examples", lambda: join(work))


def validation(work: Work) -> None:
    """The pages of validation hosts as gold records."""
    held = {r["id"] for r in read(work.file("gold-examples")) if r["split"] == "validation"}
    rows = (row for row in read(work.file("pages")) if row["id"] in held)
    write(work.file("validation"), rows)


def scored(work: Work, model: Path) -> str:
    """Scores of the model for its card."""
    chances = _chances(work)
    held = work.once("validation", lambda: validation(work))
    sets = (
        ("Pages of other hosts; the bias and the best weights were chosen by these", held, None),
        (f"Pages of {JUDGED_ONLY}, which nothing was learnt from", work.file("judged"), 160),
        ("Documents with human verdicts that nothing was learnt from", work.file("verdicts"), None),
    )
    return markdown([judge(model, *one, chances) for one in sets])


def publish(model: Path, folder: Path) -> None:
    """Copy what a model's directory holds beside its training."""
    folder.mkdir(exist_ok=True)
    for file in sorted(model.iterdir()):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def make_env(folder: Path) -> None:
    """A virtual environment for the labeler."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", *NEEDS], check=True)


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", type=Path, nargs="?", metavar="DATA_DIR")
    parser.add_argument("--out", type=Path, metavar="DIR")
    parser.add_argument("--hours", type=float, default=2.0, metavar="H")
    parser.add_argument("--threads", type=int, default=2, metavar="N")
    parser.add_argument("--resume", action="store_true", help="go on with what is in DIR")
    parser.add_argument("--publish", type=Path, metavar="DIR", help="copy the model there")
    parser.add_argument("--make-env", type=Path, metavar="DIR", help="the labeler's environment")
    given = parser.parse_args()
    if given.make_env:
        make_env(given.make_env)
    if given.data is None and given.make_env:
        return
    if given.data is None or given.out is None:
        parser.error("DATA_DIR and --out are required to train")
    import torch

    torch.set_num_threads(given.threads)
    python = (given.make_env or given.out / "labeler") / "bin" / "python"
    work = Work(given.data, given.out, python)
    variables = {"EXAMPLES": str(examples(work).absolute()), "HOURS": str(given.hours)}
    recipe = load_recipe(RECIPE, variables)
    model = given.out / "model"
    adapt(recipe, model, resume=given.resume)
    scores = scored(work, model)
    print(scores)
    card = (model / "README.md").read_text(encoding="utf-8")
    write_atomic(model / "README.md", f"{card}\n## By gold data\n\n{scores}".encode())
    if given.publish:
        publish(model, given.publish)


if __name__ == "__main__":
    main()
