"""From pairs of pages to a trained refiner and the verdict whether to use it."""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml

from proxhpc.account.quantity import quantity
from proxhpc.annotate.annotate import AnnotateOptions, annotate
from proxhpc.annotate.examples import UNKNOWN
from proxhpc.annotate.gold import GoldSource
from proxhpc.annotate.summary import AnnotationSummary
from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import RetryError, UserError
from proxhpc.evaluate.gold import GoldFields
from proxhpc.refine.walk_vocabulary import train_tokenizer
from proxhpc.spec.recipe import Recipe
from proxhpc.status.terminal import duration
from proxhpc.train.adapt import adapt
from proxhpc.train.checkpoint import TrainingFolder
from proxhpc.train.pairs import read_page_pairs, split_pairs, write_page_pairs
from proxhpc.train.rows import Examples
from proxhpc.train.verdict import RefinerVerdict, evaluate_refiner
from proxhpc.train.walk_task import MAX_TEXT_CHARS

PAGES_PER_MINUTE, MIN_MINUTES, MAX_MINUTES = 100, 3.0, 60.0
_LARGE = 3_000_000  # characters of training text that are worth a larger model
_VOCABULARIES = (4096, 2048, 1024, 512, 384, 256)  # 256 bytes are possible with any text


def teach(
    raw: Path,
    clean: Path,
    out: Path,
    *,
    fields: GoldFields = GoldFields(),  # noqa: B008
    minutes: float | None = None,
    processes: int | None = None,
    log: Callable[[str], None] = print,
) -> RefinerVerdict:
    """Train a refiner on pairs of pages and compare it on pages that were held out.

    Resumes what an earlier call with the same pairs did in `out`. UserError if the pairs cannot be
    used or `out` has files of something else; RetryError after a signal.
    """
    folder = TrainingFolder(out)
    folder.create_for_pairs()
    learned, held_out = split_pairs(read_page_pairs(raw, clean, fields, log))
    write_page_pairs(learned, folder.pairs, edited=UNKNOWN)
    write_page_pairs(held_out, folder.held_out)
    unit = "host" if learned[0].host else "page"
    log(
        f"{quantity(len(learned), 'page')} to learn from, {len(held_out):,} held out for the "
        f"verdict; no {unit} is on both sides"
    )
    options = AnnotateOptions(held_out=(folder.held_out,))
    _log_summary(annotate([GoldSource(folder.pairs)], folder.examples, options), log)
    recipe = fitted_recipe(out.name, folder.examples, minutes)
    length = duration(3600 * (recipe.hours or 0))
    log(f"training for {length}; Ctrl-C stops it, and the same command resumes")
    keys = recipe.model_dump(mode="json", exclude_unset=True)
    write_atomic(folder.recipe, yaml.safe_dump(keys, sort_keys=False).encode())
    try:
        with _one_thread():
            adapt(recipe, out, resume=True, processes=processes, log=log)
    except RetryError as error:
        raise RetryError(error.message, hint="to continue, run the same command again") from error
    verdict = evaluate_refiner(out, folder.held_out, log)
    card = out / "README.md"
    section = f"\n## Verdict\n\n**{verdict.advice}**: {verdict.reason}.\n"
    write_atomic(card, (card.read_text("utf-8") + section).encode())
    return verdict


def _log_summary(summary: AnnotationSummary, log: Callable[[str], None]) -> None:
    """What was left out of the examples."""
    for reason, number in summary.documents.left_out.items():
        log(f"{quantity(number, 'page')} left out: {reason.replace('_', ' ')}")
    unknown = sum(group.lines_unknown or 0 for group in summary.groups)
    if unknown:
        lines = quantity(unknown, "line is", "lines are")
        log(f"{lines} edited within: nothing is learned from them, the rest of the page counts")


def fitted_recipe(name: str, examples: Path, minutes: float | None) -> Recipe:
    """A recipe for a walk, by the amount of text in the examples.

    The length is a changeable key, so a resumed training may have other `minutes`; the rest depends
    on the examples only.
    """
    rows = (row for row in Examples((examples,)) if row.split == "train")
    texts = ["\n".join(row.lines)[:MAX_TEXT_CHARS] for row in rows]
    if minutes is None:
        minutes = min(MAX_MINUTES, max(MIN_MINUTES, len(texts) / PAGES_PER_MINUTE))
    is_large = sum(map(len, texts)) > _LARGE
    keys = {
        "name": re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "refiner",
        "examples": str(examples),
        "hours": minutes / 60,
        "minutes": max(minutes / 5, 0.01),
        "save_minutes": 0.5,
        "shape": {
            "layers": 3 if is_large else 2,
            "hidden": 256 if is_large else 128,
            "intermediate": 512 if is_large else 256,
            "vocabulary": _vocabulary(texts, 4096 if is_large else 1024),
            "kv_heads": 2,
        },
        "optimizer": "muon",
        "learning_rate": 0.003,
        "batch_tokens": 2000,
        "warmup": 20,
        "average": 0.99,
        "walk": {"documents": 0.0, "word_power": 0.7},
    }
    return Recipe.model_validate(keys)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one CPU core: several wait for each other longer than such small matrices take."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _vocabulary(texts: Sequence[str], most: int) -> int:
    """The largest vocabulary, up to `most`, that the texts suffice for."""
    with tempfile.TemporaryDirectory() as folder:
        for size in _VOCABULARIES:
            if size > most:
                continue
            try:
                train_tokenizer(texts, Path(folder), size)
            except UserError:
                continue
            return size
    return _VOCABULARIES[-1]
