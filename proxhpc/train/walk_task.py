"""Teaching a walk: documents of the examples, batches, loss, and how well the model does."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from proxhpc.annotate.examples import DROPPED
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.refine.walk import Walk, WalkPage
from proxhpc.refine.walk_vocabulary import train_tokenizer
from proxhpc.run.models import resolve_model
from proxhpc.spec.recipe import Recipe
from proxhpc.train.distributed import Ranks
from proxhpc.train.rows import ExampleRow, some
from proxhpc.train.score import Decision, ValidationScores, best_bias, verdict_scores
from proxhpc.train.task import Cursor, Losses, load_base, packed
from proxhpc.train.walk_batch import BACK, Sampler, WalkBatch, collate_walks
from proxhpc.train.walk_loss import walk_loss
from proxhpc.train.walk_model import Learner, new_model
from proxhpc.train.walk_pages import (
    WalkExamples,
    WalkItem,
    WalkPages,
    verdict_item,
    walk_examples,
    window,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

TEXT_CHARS = 20_000  # of a document, for the tokenizer
PASSES = 2  # over a window to judge it; the second reads the first's answers


@dataclass(frozen=True, slots=True)
class _Judged:
    """A window of the validation: its row, its first line, its question."""

    row: int
    start: int
    item: WalkItem


class WalkTask:
    """A walk and everything it is taught with."""

    def __init__(self, recipe: Recipe, rows: Iterable[ExampleRow], folder: Path) -> None:
        """`rows` are gone through several times; `folder` gets the tokenizer of a new model.

        UserError without examples.
        """
        self._recipe, self._options = recipe, recipe.walk
        self.vocabulary = self._vocabulary(rows, folder)
        self.tokenizer = HFTokenizer(self.vocabulary)
        self._walk = walk = Walk(self.tokenizer)
        pages: list[WalkExamples] = []
        verdicts: list[WalkItem] = []
        self.unused = Counter[str]()
        self._pages: list[ExampleRow] = []
        self._verdicts: list[ExampleRow] = []
        for row in rows:
            if row.marks is None and row.chances is None:
                self.unused["strings are edited"] += 1  # an answer says which lines go, no more
                continue
            if row.split == "train" and row.level == "chunk":
                pages.append(walk_examples(row, walk, self._options))
            elif row.split == "train":
                verdicts.append(verdict_item(row, walk, self._options))
            elif row.level == "doc":
                self._verdicts.append(row)
            elif row.marks is not None:
                self._pages.append(row)
        if not pages:
            raise UserError(
                "no example of the training split is a window with marks or chances of its lines",
                hint="a walk learns from rows of level chunk that have `keep`: of gold records "
                "with line_labels, or where whole lines go (docs/adapt.md)",
            )
        self._sampler = Sampler(
            WalkPages(pages, walk, self._options), verdicts, walk.end, recipe.seed
        )
        self.module = Learner.make(self._model(), BACK)

    def _vocabulary(self, rows: Iterable[ExampleRow], folder: Path) -> Path:
        """The directory of the tokenizer: the base model's, or one made of the examples."""
        if self._recipe.base is not None:
            return resolve_model(self._recipe.base, offline=True).path
        assert self._recipe.shape is not None
        if not (folder / "tokenizer.json").exists():
            train = (row for row in rows if row.split == "train")
            texts = ("\n".join(row.lines)[:TEXT_CHARS] for row in train)
            train_tokenizer(texts, folder, self._recipe.shape.vocabulary)
        return folder

    def _model(self) -> Any:
        if self._recipe.shape is not None:
            return new_model(self._recipe.shape, self.tokenizer, self._recipe.seed)
        return load_base(self.vocabulary)

    @property
    def llama(self) -> Any:
        """The model to be written."""
        return self.module.llama

    def batches(self, cursor: Cursor, ranks: Ranks) -> Iterator[tuple[Cursor, WalkBatch]]:
        """Batches from the cursor on, each with that of the next."""
        options, tokens = self._options, self._recipe.batch_tokens
        return self._sampler.batches(cursor, ranks, tokens, options.history, options.documents)

    def loss(self, batch: WalkBatch, done: float) -> Losses:
        """The loss of a batch, with the share `done` of the training behind it."""
        return walk_loss(self.module, batch, self._options, done)

    def validate(self, most: int) -> ValidationScores:
        """Scores on `most` validation documents at random, at the best bias."""
        pages = some(self._pages, most, self._recipe.seed)
        margins = self._margins(pages)
        decisions = [
            Decision(row.lines, np.array(list(row.marks or "")) == DROPPED, margin)
            for row, margin in zip(pages, margins, strict=True)
        ]
        scores = best_bias(decisions) if decisions else {}
        rows = some(self._verdicts, most, self._recipe.seed)
        if rows:
            items = [verdict_item(row, self._walk, self._options) for row in rows]
            found = np.concatenate(self._ask(items))
            scores |= verdict_scores([row.marks == DROPPED for row in rows], found)
        return scores

    def stages(self, scores: ValidationScores) -> dict[str, dict[str, Any]]:
        """How the model is to be asked: with the biases that scored best."""
        biases = {"doc": scores.get("verdict_bias"), "chunk": scores.get("bias")}
        return {level: {"bias": bias} if bias else {} for level, bias in biases.items()}

    def _margins(self, rows: Sequence[ExampleRow]) -> "list[NDArray[np.float32]]":
        """Of each line of each row the log-odds of dropping it."""
        windows: list[_Judged] = []
        for number, row in enumerate(rows):
            page = walk_examples(row, self._walk, self._options)
            for span in self._walk.windows(WalkPage(row.lines, page.ids)):
                item = window(self._walk, page, span.start, span.stop)
                windows.append(_Judged(number, span.start, item))
        found = self._ask([one.item for one in windows])
        margins = [np.zeros(len(row.lines), np.float32) for row in rows]
        for one, values in zip(windows, found, strict=True):
            margins[one.row][one.start : one.start + len(values)] = values
        return margins

    def _ask(self, items: Sequence[WalkItem]) -> "list[NDArray[np.float32]]":
        """Of each step of each item the log-odds of dropping.

        A pass over all steps at once reads the answers of the pass before; in use each answer is
        read by those behind it.
        """
        order = sorted(range(len(items)), key=lambda number: items[number].size)
        found: dict[int, NDArray[np.float32]] = {}
        at = 0
        for group in packed([items[number] for number in order], 2 * self._recipe.batch_tokens):
            answers = [np.zeros(len(item.drop), bool) for item in group]
            for _ in range(PASSES):
                margins = self._group(group, answers)
                answers = [margin > 0 for margin in margins]
            found.update(zip(order[at : at + len(group)], margins, strict=True))
            at += len(group)
        return [found[number] for number in range(len(items))]

    def _group(
        self, items: Sequence[WalkItem], answers: "Sequence[NDArray[np.bool_]]"
    ) -> "list[NDArray[np.float32]]":
        import torch

        device = self.llama.device
        batch = collate_walks(items, answers, self._walk.end)
        with torch.inference_mode():
            last, _ = self.module.hidden(batch.inputs.to(device))
            logits = self.module.logits(last[batch.rows.to(device), batch.places.to(device)])
            chosen = logits.float().gather(1, batch.choices.to(device))
            margins = (chosen[:, 1] - chosen[:, 0]).cpu().numpy()
        ends = np.cumsum([len(item.drop) for item in items])
        return np.split(margins, ends[:-1])
