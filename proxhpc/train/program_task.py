"""Teaching a language model to write programs as text: prompts and programs of the examples."""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from proxhpc.engines.base import Tokenizer
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.refine.prompts import PromptStyle, prompt_style
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.spec.recipe import Recipe
from proxhpc.train.distributed import Ranks
from proxhpc.train.generate import answers
from proxhpc.train.rows import ExampleRow, some
from proxhpc.train.score import ValidationScores, program_scores, well_formed
from proxhpc.train.task import Cursor, Losses, load_base, own_turns, packed, weighted_mean

MOST_LINES = 300  # that a stage may be given in a window
_POOL = 512  # examples that batches of like sizes are made of


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """A prompt, and the program to be written behind it, its end included."""

    prompt: "array[int]"
    program: "array[int]"
    weight: float

    @property
    def size(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.program)


@dataclass(frozen=True, slots=True)
class ProgramBatch:
    """Tensors of a step: `inputs` (B, width), padded on the right.

    Token p of the programs is foretold at `rows[p]`, `places[p]`, is `targets[p]` and counts
    `weight[p]`.
    """

    inputs: Any
    rows: Any
    places: Any
    targets: Any
    weight: Any


class ProgramTask:
    """A base model and the programs it is to learn."""

    def __init__(self, recipe: Recipe, rows: Iterable[ExampleRow]) -> None:
        """UserError for a model that cannot be loaded, and where no example fits."""
        assert recipe.base is not None
        self._recipe = recipe
        ref = resolve_model(recipe.base, offline=True)
        self.vocabulary = ref.path
        self.tokenizer = HFTokenizer(ref.path)
        self._end = _end(ref, self.tokenizer)
        self._context = ref.max_model_len
        limit = ref.context_length(min(recipe.max_tokens, ref.max_model_len))
        self._style = prompt_style(recipe.prompt)
        self._train: list[TokenizedExample] = []
        self._held: list[ExampleRow] = []
        self.unused = Counter[str]()
        self._levels: set[str] = set()
        self._lines = 1  # most of a window that is learnt
        for row in rows:
            lesson = self._lesson(row)
            if lesson.size > limit:
                self.unused[f"more than {limit} tokens"] += 1
                continue
            if row.split == "validation":
                self._held.append(row)
                continue
            self._train.append(lesson)
            self._levels.add(row.level)
            if row.level == "chunk":
                self._lines = max(self._lines, len(row.lines))
        if not self._train:
            raise UserError(
                f"no example of the training split has at most {limit} tokens",
                hint="raise max_tokens, or make shorter windows: proxhpc annotate --windows",
            )
        self.module = load_base(ref.path)

    @property
    def llama(self) -> Any:
        """The model to be written."""
        return self.module

    def _lesson(self, row: ExampleRow) -> TokenizedExample:
        if row.level == "chunk" and not well_formed(row):
            raise UserError(
                f"example {row.id!r}: in the dialect prox {row.program[:60]!r} does not remove "
                "the lines that go, or is no program",
                hint="make the examples with: proxhpc annotate --dialect prox",
            )
        program = array("I", [*self.tokenizer.encode(row.program), self._end])
        asked = array("I", prompt(self._style, self.tokenizer, row))
        return TokenizedExample(asked, program, row.weight)

    def batches(self, cursor: Cursor, ranks: Ranks) -> Iterator[tuple[Cursor, ProgramBatch]]:
        """Batches from the cursor on, each with that of the next: epoch and turn in it."""
        epoch, first = cursor
        while True:
            chance = np.random.default_rng([self._recipe.seed, epoch])
            groups = self._grouped(chance)
            for turn, number in own_turns(len(groups), first, ranks):
                yield (epoch, turn + 1), collate_programs(groups[number], self._end)
            epoch, first = epoch + 1, 0

    def _grouped(self, chance: np.random.Generator) -> list[list[TokenizedExample]]:
        order = chance.permutation(len(self._train)).tolist()
        groups: list[list[TokenizedExample]] = []
        for at in range(0, len(order), _POOL):
            pool = sorted((self._train[n] for n in order[at : at + _POOL]), key=lambda x: x.size)
            groups += packed(pool, self._recipe.batch_tokens)
        return [groups[number] for number in chance.permutation(len(groups))]

    def loss(self, batch: ProgramBatch, done: float) -> Losses:
        """The cross-entropy of the programs' tokens."""
        from torch.nn import functional

        last = self.module.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state
        logits = self.module.get_output_embeddings()(last[batch.rows, batch.places]).float()
        costs = functional.cross_entropy(logits, batch.targets, reduction="none")
        total = weighted_mean(costs, batch.weight)
        right = (logits.argmax(1) == batch.targets).float().mean()
        return Losses(total, {"programs": float(total.detach()), "right": float(right)})

    def validate(self, most: int) -> ValidationScores:
        """Scores of the programs written for `most` validation examples at random."""
        rows = some(self._held, most, self._recipe.seed)
        lessons = [self._lesson(row) for row in rows]
        longest = max((len(lesson.program) for lesson in self._train), default=1)
        prompts = [lesson.prompt for lesson in lessons]
        written = answers(self.module, prompts, self._end, 2 * longest, self._context)
        texts = [self.tokenizer.decode(ids) for ids in written]
        return program_scores(rows, texts)

    def stages(self, scores: ValidationScores) -> dict[str, dict[str, Any]]:
        """How the model is to be asked: within the limits of what it has learnt."""
        longest = max(len(lesson.program) for lesson in self._train)
        room = max(len(lesson.prompt) for lesson in self._train)
        asked = {"max_prompt_tokens": room, "max_new_tokens": longest}
        lines = min(self._lines, MOST_LINES)
        chunk = {"numbering": "window", "window_tokens": room, "window_lines": lines}
        every: dict[str, dict[str, Any]] = {"doc": asked, "chunk": asked | chunk}
        return {level: keys for level, keys in every.items() if level in self._levels}


def prompt(style: PromptStyle, tokenizer: Tokenizer, row: ExampleRow) -> list[int]:
    """The prompt of an example, as engines will make it."""
    if row.level == "doc":
        return style.ask(tokenizer, "\n".join(row.lines).rstrip())
    return style.chunk_prompt(tokenizer, row.lines, FIRST_LINE["prox"])


def collate_programs(lessons: Sequence[TokenizedExample], pad: int) -> ProgramBatch:
    """One batch."""
    import torch

    width = max(lesson.size for lesson in lessons)
    inputs = np.full((len(lessons), width), pad)
    for row, lesson in enumerate(lessons):
        inputs[row, : lesson.size] = lesson.prompt + lesson.program
    sizes = [len(lesson.program) for lesson in lessons]
    rows = np.repeat(np.arange(len(lessons)), sizes)
    places = np.concatenate([np.arange(lesson.size)[len(lesson.prompt) :] for lesson in lessons])
    weight = np.repeat(np.array([lesson.weight for lesson in lessons], np.float32), sizes)
    targets = inputs[rows, places]
    return ProgramBatch(*map(torch.as_tensor, (inputs, rows, places - 1, targets, weight)))


def _end(ref: ModelRef, tokenizer: HFTokenizer) -> int:
    """The token that ends an answer. UserError where the model has none."""
    ends = [*tokenizer.stop_ids, *ref.stop_ids]
    if not ends:
        raise UserError(f"model {ref.name!r} has no end-of-sequence token")
    return ends[0]
