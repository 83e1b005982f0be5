"""Trains a walk: a small model that answers each line of a window with one token."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from proxhpc.annotate.examples import DROPPED
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.refine.walk import Walk, WalkPage, line_biases
from proxhpc.refine.walk_vocabulary import train_tokenizer
from proxhpc.run.models import resolve_model
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.sections import Level
from proxhpc.train.rows import ExampleRow, sample_examples
from proxhpc.train.score import LineDecisions, ValidationScores, best_bias, verdict_scores
from proxhpc.train.task import Losses, StageSettings, load_base, pack_batches
from proxhpc.train.walk_batch import WalkBatch, collate_walks
from proxhpc.train.walk_model import new_model, training_module, walk_loss
from proxhpc.train.walk_pages import (
    TrainingPage,
    WalkItem,
    WalkPages,
    random_index,
    training_page,
    verdict_item,
    window_item,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedModel

MAX_TEXT_CHARS = 20_000  # of a document, to train the tokenizer on
_POOL = 96  # random items that are sorted by size and packed into batches together
_MIN_ITEMS = 3  # of a batch
VALIDATION_PASSES = 2  # over a window; the second reads the answers of the first


class WalkTask:
    """A walk with its examples."""

    def __init__(self, recipe: Recipe, rows: Iterable[ExampleRow], folder: Path) -> None:
        """`rows` is iterated twice. A new model's tokenizer is trained and stored in `folder`.

        UserError if there is nothing to train on. Of a level that the recipe does not train, no
        example is used.
        """
        self._recipe = recipe
        self.tokenizer_dir = self._prepare_tokenizer(rows, folder)
        self.tokenizer = HFTokenizer(self.tokenizer_dir)
        self._walk = walk = Walk(self.tokenizer)
        pages: list[TrainingPage] = []
        self._verdicts: list[WalkItem] = []
        rates: list[float] = []  # how often each of these is drawn
        self._validation_pages: list[ExampleRow] = []
        self._validation_verdicts: list[ExampleRow] = []
        self.unused = Counter[str]()
        share = recipe.walk.documents
        untrained = {0.0: "doc", 1.0: "chunk"}.get(share)
        for row in rows:
            if row.level == untrained:
                self.unused[f"walk.documents is {share:g}"] += 1
            elif row.line_labels is None and row.drop_probabilities is None:
                self.unused["strings are edited"] += 1  # a walk can only remove lines
            elif row.split == "train" and row.level == "chunk":
                pages.append(training_page(row, walk, recipe.walk))
            elif row.split == "train":
                self._verdicts.append(verdict_item(row, walk, recipe.walk))
                rates.append(row.weight)
            elif row.level == "doc":
                self._validation_verdicts.append(row)
            elif row.line_labels is not None:
                self._validation_pages.append(row)
        if share == 1 and not self._verdicts:
            raise UserError(
                "no example of the training split is a document, and walk.documents is 1",
                hint="verdicts are learned from rows of level doc (docs/adapt.md)",
            )
        if share < 1 and not pages:
            raise UserError(
                "no window of the training split has labels or drop probabilities of its lines",
                hint="a walk needs rows of level chunk with `keep`: from gold records with "
                "line_labels, or where only whole lines are removed (docs/adapt.md); "
                "with `walk.documents: 1` it learns verdicts only",
            )
        self.pages = WalkPages(pages, walk, recipe.walk)
        self.cumulative = np.cumsum(rates)
        if recipe.shape is not None:
            self.model = new_model(recipe.shape, self.tokenizer, recipe.seed)
        else:
            self.model = load_base(self.tokenizer_dir)
        self.module = training_module(self.model)

    def _prepare_tokenizer(self, rows: Iterable[ExampleRow], folder: Path) -> Path:
        """The directory of the base model's tokenizer, or of one trained on the examples."""
        if self._recipe.base is not None:
            return resolve_model(self._recipe.base, offline=True).path
        assert self._recipe.shape is not None
        if not (folder / "tokenizer.json").exists():
            train = (row for row in rows if row.split == "train")
            texts = ("\n".join(row.lines)[:MAX_TEXT_CHARS] for row in train)
            train_tokenizer(texts, folder, self._recipe.shape.vocabulary)
        return folder

    def epoch(self, number: int) -> Sequence[Callable[[], WalkBatch]]:
        """A pool of random windows and documents, in random batches of similar sizes."""
        rng = np.random.default_rng([self._recipe.seed, number])
        verdict_share = self._recipe.walk.documents if self._verdicts else 0.0
        pool = [
            self._verdicts[random_index(self.cumulative, rng)]
            if rng.random() < verdict_share
            else self.pages.draw(rng)
            for _ in range(_POOL)
        ]
        groups = pack_batches(pool, self._recipe.batch_tokens)
        groups = [group for group in groups if len(group) >= _MIN_ITEMS] or groups
        shuffled = rng.permutation(len(groups)).tolist()
        return [
            partial(self._random_answers, groups[group], [self._recipe.seed, number, index])
            for index, group in enumerate(shuffled)
        ]

    def _random_answers(self, items: Sequence[WalkItem], seed: Sequence[int]) -> WalkBatch:
        """A batch with random history. With correct answers, the next usually equals the last."""
        rng = np.random.default_rng(seed)
        histories = [rng.random(len(item.drop)) < self._recipe.walk.history for item in items]
        return collate_walks(items, histories, self._walk.end, rng)

    def loss(self, batch: WalkBatch, done: float) -> Losses:
        """The loss of a batch after the share `done` (0 to 1) of the training."""
        return walk_loss(self.module, batch, self._recipe.walk, done)

    def validate(self, max_examples: int) -> ValidationScores:
        """Scores on random validation documents, at the best bias of lines and of verdicts.

        `f1` is that of lines; without lines it is the share of right verdicts.
        """
        scores: ValidationScores = {}
        pages = sample_examples(self._validation_pages, max_examples, self._recipe.seed)
        if pages:
            scores = best_bias(
                [
                    LineDecisions(row.lines, _is_dropped(row), log_odds + line_biases(row.lines, 0))
                    for row, log_odds in zip(pages, self._line_log_odds(pages), strict=True)
                ]
            )
        rows = sample_examples(self._validation_verdicts, max_examples, self._recipe.seed)
        if rows:
            items = [verdict_item(row, self._walk, self._recipe.walk) for row in rows]
            log_odds = np.concatenate(self._log_odds(items))
            verdicts = verdict_scores([bool(_is_dropped(row)[0]) for row in rows], log_odds)
            scores = {"f1": verdicts["verdict_accuracy"]} | verdicts | scores
        return scores

    def exported(self) -> "PreTrainedModel":
        """The model without the label head."""
        return self.model

    def stages(self, scores: ValidationScores) -> dict[Level, StageSettings]:
        """The biases with the best scores, of the levels that are trained."""
        biases: dict[Level, float] = {}
        if self._verdicts:
            biases["doc"] = scores.get("verdict_bias", 0.0)
        if self.pages.pages:
            biases["chunk"] = scores.get("bias", 0.0)
        return {level: {"bias": bias} if bias else {} for level, bias in biases.items()}

    def _line_log_odds(self, rows: Sequence[ExampleRow]) -> "list[NDArray[np.float32]]":
        """The log-odds that each line of each row is dropped."""
        items: list[WalkItem] = []
        for row in rows:
            page = training_page(row, self._walk, self._recipe.walk)
            for window in self._walk.windows(WalkPage(row.lines, page.ids)):
                items.append(window_item(self._walk, page, window.start, window.stop))
        return _split(np.concatenate(self._log_odds(items)), [len(row.lines) for row in rows])

    def _log_odds(self, items: Sequence[WalkItem]) -> "list[NDArray[np.float32]]":
        """The log-odds of dropping at each step of each item.

        All steps of an item are computed at once, each reading the answers of the pass before. In
        use, a step reads the answers of the steps before it.
        """
        log_odds: dict[int, NDArray[np.float32]] = {}  # by the identity of the item
        for group in pack_batches(items, 2 * self._recipe.batch_tokens):
            answers = [np.zeros(len(item.drop), bool) for item in group]
            for _ in range(VALIDATION_PASSES):
                values = self._forward(group, answers)
                answers = [steps > 0 for steps in values]
            log_odds.update(zip(map(id, group), values, strict=True))
        return [log_odds[id(item)] for item in items]

    def _forward(
        self, items: Sequence[WalkItem], answers: "Sequence[NDArray[np.bool_]]"
    ) -> "list[NDArray[np.float32]]":
        """One pass over items with `answers` as history."""
        import torch

        batch = collate_walks(items, answers, self._walk.end).to(self.model.device)
        with torch.inference_mode():
            last, _ = self.module.hidden(batch.inputs)
            logits = self.module.logits(last[batch.rows, batch.columns]).float()
            chosen = logits.gather(1, batch.choices)
            keep = chosen[:, 0].clone()
            verdicts = batch.is_verdict  # either answer but to drop keeps a document
            others = logits[verdicts][:, [self._walk.verdict_ids[0], self._walk.end]]
            keep[verdicts] = others.amax(1)
            log_odds = (chosen[:, 1] - keep).cpu().numpy()
        return _split(log_odds, [len(item.drop) for item in items])


def _split(values: "NDArray[np.float32]", sizes: Sequence[int]) -> "list[NDArray[np.float32]]":
    """Consecutive parts of these sizes."""
    return np.split(values, np.cumsum(sizes)[:-1])


def _is_dropped(row: ExampleRow) -> "NDArray[np.bool_]":
    return np.array([label == DROPPED for label in row.line_labels or ""], bool)
