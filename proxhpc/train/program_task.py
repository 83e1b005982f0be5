"""Trains a base model to write programs as text, with the prompts of a profile."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from proxhpc.engines.drafts import pad_left
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.extras import require_package
from proxhpc.program.syntax import FIRST_LINE
from proxhpc.refine.prompts import Prompts
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.refiner_file import load_profile
from proxhpc.spec.sections import Level
from proxhpc.train.rows import ExampleRow, sample_examples
from proxhpc.train.score import ValidationScores, matches_labels, program_scores
from proxhpc.train.task import Batch, Losses, StageSettings, load_base, pack_batches, weighted_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

MAX_WINDOW_LINES = 300  # the most that a stage allows in a window
_POOL = 512  # examples that are sorted by size and packed into batches together
_GENERATE_BATCH = 8


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """The ids of a prompt and of the program that follows it, with its end."""

    prompt: "array[int]"
    program: "array[int]"
    weight: float

    @property
    def size(self) -> int:
        """Tokens of both."""
        return len(self.prompt) + len(self.program)


@dataclass(frozen=True, slots=True)
class ProgramBatch(Batch):
    """A batch whose programs have P tokens in all.

    Token p is `targets[p]`, predicted at `rows[p]`, `columns[p]` of the inputs, with `weight[p]`.
    """

    rows: "torch.Tensor"
    columns: "torch.Tensor"
    targets: "torch.Tensor"


class ProgramTask:
    """A base model with its examples. The loss counts only the programs' tokens."""

    def __init__(self, recipe: Recipe, rows: Iterable[ExampleRow]) -> None:
        """UserError if the model cannot be loaded or no example fits."""
        assert recipe.base is not None
        self._recipe = recipe
        ref = resolve_model(recipe.base, offline=True)
        self.tokenizer_dir = ref.path
        self.tokenizer = HFTokenizer(ref.path)
        self._end = _end_token(ref, self.tokenizer)
        self._context = ref.max_model_len
        max_tokens = min(recipe.max_tokens, self._context)
        self._prompts = Prompts(load_profile(recipe.prompt))
        self._train: list[TokenizedExample] = []
        self._validation: list[ExampleRow] = []
        self.unused = Counter[str]()
        self._levels: set[Level] = set()
        self._max_lines = 1  # of the windows in training
        for row in rows:
            example = self._tokenize(row)
            if example.size > max_tokens:
                self.unused[f"more than {max_tokens} tokens"] += 1
            elif row.split == "validation":
                self._validation.append(row)
            else:
                self._train.append(example)
                self._levels.add(row.level)
                if row.level == "chunk":
                    self._max_lines = max(self._max_lines, len(row.lines))
        if not self._train:
            raise UserError(
                f"no example of the training split has at most {max_tokens} tokens",
                hint="raise max_tokens, or make shorter windows: proxhpc annotate --windows",
            )
        self._max_program = max(len(example.program) for example in self._train)
        self.module = self.model = load_base(ref.path)
        self._adapters = add_adapters(self.model, recipe) if recipe.lora else None

    def _tokenize(self, row: ExampleRow) -> TokenizedExample:
        """Encode a row with the prompt that the stages of a run make.

        UserError if the row's program is of another dialect or differs from its labels.
        """
        if row.level == "chunk" and not matches_labels(row):
            raise UserError(
                f"example {row.id!r}: the program {row.program[:60]!r} is not valid in the dialect "
                "prox, or does not remove the lines labelled D",
                hint="make the examples with: proxhpc annotate --dialect prox",
            )
        if row.level == "doc":
            text = "\n".join(row.lines).rstrip()
            prompt = self._prompts.full_doc_prompt(self.tokenizer, text)
        else:
            prompt = self._prompts.chunk_prompt(self.tokenizer, row.lines, FIRST_LINE["prox"])
        program = array("I", [*self.tokenizer.encode(row.program), self._end])
        return TokenizedExample(array("I", prompt), program, row.weight)

    def epoch(self, number: int) -> Sequence[Callable[[], ProgramBatch]]:
        """All examples once, in random batches of similar sizes."""
        rng = np.random.default_rng([self._recipe.seed, number])
        order = rng.permutation(len(self._train)).tolist()
        groups: list[list[TokenizedExample]] = []
        for start in range(0, len(order), _POOL):
            pool = [self._train[index] for index in order[start : start + _POOL]]
            groups += pack_batches(pool, self._recipe.batch_tokens)
        shuffled = rng.permutation(len(groups)).tolist()
        return [partial(collate_programs, groups[index], self._end) for index in shuffled]

    def loss(self, batch: ProgramBatch, done: float) -> Losses:
        """The weighted cross-entropy of the programs' tokens."""
        from torch.nn import functional

        hidden = self.module.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state
        logits = self.module.get_output_embeddings()(hidden[batch.rows, batch.columns]).float()
        losses = functional.cross_entropy(logits, batch.targets, reduction="none")
        total = weighted_mean(losses, batch.weight)
        accuracy = (logits.argmax(1) == batch.targets).float().mean()
        return Losses(total, {"programs": float(total.detach()), "accuracy": float(accuracy)})

    def validate(self, max_examples: int) -> ValidationScores:
        """Scores of the programs generated for random validation examples."""
        rows = sample_examples(self._validation, max_examples, self._recipe.seed)
        prompts = [self._tokenize(row).prompt for row in rows]
        generated = generate(self.module, prompts, self._end, 2 * self._max_program, self._context)
        return program_scores(rows, [self.tokenizer.decode(ids) for ids in generated])

    def exported(self) -> "PreTrainedModel":
        """The model, with its adapters merged."""
        return self.model if self._adapters is None else self._adapters.merge_and_unload()

    def stages(self, scores: ValidationScores) -> dict[Level, StageSettings]:
        """Limits of prompt and answer: the largest in the training examples."""
        max_prompt = max(len(example.prompt) for example in self._train)
        doc: StageSettings = {"max_prompt_tokens": max_prompt, "max_new_tokens": self._max_program}
        chunk: StageSettings = doc | {
            "numbering": "window",
            "window_tokens": max_prompt,
            "window_lines": min(self._max_lines, MAX_WINDOW_LINES),
        }
        stages: dict[Level, StageSettings] = {"doc": doc, "chunk": chunk}
        return {level: keys for level, keys in stages.items() if level in self._levels}


def add_adapters(model: "PreTrainedModel", recipe: Recipe) -> Any:  # a model of peft
    """Put adapters into a model, which alone are trained, and return peft's model around it."""
    assert recipe.lora is not None
    require_package("peft", "lora", "lora")
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(recipe.seed)
    keys = {"r": recipe.lora.rank, "lora_alpha": recipe.lora.alpha}
    dropout = recipe.lora.dropout
    return get_peft_model(
        model, LoraConfig(**keys, lora_dropout=dropout, target_modules="all-linear")
    )


def collate_programs(examples: Sequence[TokenizedExample], pad: int) -> ProgramBatch:
    """Examples as one batch, padded with the id `pad`."""
    import torch

    width = max(example.size for example in examples)
    inputs = np.full((len(examples), width), pad)
    for row, example in enumerate(examples):
        inputs[row, : example.size] = example.prompt + example.program
    sizes = [len(example.program) for example in examples]
    rows = np.repeat(np.arange(len(examples)), sizes)
    columns = np.concatenate([np.arange(len(e.prompt), e.size) for e in examples])
    weight = np.repeat(np.array([example.weight for example in examples], np.float32), sizes)
    targets = inputs[rows, columns]
    # A token is predicted at the position before it.
    return ProgramBatch(*map(torch.as_tensor, (inputs, weight, rows, columns - 1, targets)))


def generate(
    model: "PreTrainedModel",
    prompts: Sequence[Sequence[int]],
    end: int,
    max_new_tokens: int,
    context: int,
) -> list[list[int]]:
    """Greedy answers, without their end token, of at most `max_new_tokens` within the context."""
    import torch
    from transformers import GenerationConfig

    answers: dict[int, list[int]] = {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    for start in range(0, len(order), _GENERATE_BATCH):
        group = order[start : start + _GENERATE_BATCH]
        room = context - len(prompts[group[-1]])  # learned position embeddings end there
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=min(max_new_tokens, room),
            eos_token_id=end,
            pad_token_id=end,
        )
        ids, mask = pad_left([prompts[index] for index in group], model.device)
        with torch.inference_mode():
            output = model.generate(ids, attention_mask=mask, generation_config=config)
        for index, answer in zip(group, output[:, ids.shape[1] :].tolist(), strict=True):
            answers[index] = answer[: answer.index(end)] if end in answer else answer
    return [answers[index] for index in range(len(prompts))]


def _end_token(ref: ModelRef, tokenizer: HFTokenizer) -> int:
    """The token that ends an answer. UserError if the model has none."""
    ends = [*tokenizer.stop_ids, *ref.stop_ids]
    if not ends:
        raise UserError(f"model {ref.name!r} has no end-of-sequence token")
    return ends[0]
