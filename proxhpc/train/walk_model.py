"""The model of a walk: a small new Llama, the training module around it, and its loss."""

from typing import TYPE_CHECKING, Any

from proxhpc.engines.base import Tokenizer
from proxhpc.refine import walk_vocabulary as vocabulary
from proxhpc.refine.walk_vocabulary import NUMBERS
from proxhpc.spec.recipe import Shape, WalkOptions
from proxhpc.train.task import Losses, weighted_mean
from proxhpc.train.walk_batch import WalkBatch

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

BASE_STD, CODE_STD, SIDE_STD = 0.02, 0.03, 0.02  # standard deviations of initial embeddings
SHALLOW = 3  # with at most this many layers, a head is made to match codes, which must be larger:
SHALLOW_CODE_STD, MATCH_STD = 0.1, 2.4  # standard deviation of codes, and of that head's queries
LABEL_LINES = 3  # the label head predicts, at a line's number, its label and those of 2 before
END_LOSS, VERDICT_LOSS = 0.05, 0.5  # weights in the loss
QUERY_BLOCK = 128  # positions whose attention is computed at once, on a CPU
MIN_TEXT_SHARE = 0.05  # the text loss is skipped once it has faded below this share


def new_model(shape: Shape, tokenizer: Tokenizer, seed: int) -> "PreTrainedModel":
    """A Llama with random weights whose embeddings show which markers belong together.

    The number of a line and the answers to the line before it share a random code, so that each
    answer can find its line's number.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    end = tokenizer.special_id(vocabulary.END)
    config = LlamaConfig(
        vocab_size=tokenizer.added_id(vocabulary.PROGRAM_TOKENS[-1]) + 1,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.hidden // shape.heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=end,
        initializer_range=BASE_STD,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed + 1)
    is_shallow = shape.layers <= SHALLOW
    base, code = (
        torch.randn(NUMBERS + 1, shape.hidden, generator=generator) * std
        for std in (BASE_STD, SHALLOW_CODE_STD if is_shallow else CODE_STD)
    )
    side = torch.randn(shape.hidden, generator=generator) * SIDE_STD
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        for line in range(NUMBERS):
            embeddings[tokenizer.special_id(vocabulary.number_token(line))] += (
                base[line] + code[line]
            )
            answer = base[line] + code[line + 1]
            embeddings[tokenizer.special_id(vocabulary.keep_token(line))] += answer + side
            embeddings[tokenizer.added_id(vocabulary.remove_token(line))] += answer - side
        for end_of_prompt in (vocabulary.DOC_END, vocabulary.DOC_END_MORE):
            embeddings[tokenizer.special_id(end_of_prompt)] += code[0]
        if is_shallow:
            _match_codes(model, generator)
    return model


def _match_codes(model: "PreTrainedModel", generator: "torch.Generator") -> None:
    """Let a head of the last layer attend to tokens with equal codes.

    Its queries equal its keys, in the dimensions that rotary embeddings turn least. To learn this
    takes a small model longer than all the rest.
    """
    import torch

    attention, head_dim = model.model.layers[-1].self_attn, model.config.head_dim
    turned_least = torch.arange(head_dim) % (head_dim // 2) >= head_dim * 5 // 16
    rows = torch.randn(head_dim, model.config.hidden_size, generator=generator)
    rows *= turned_least[:, None] * MATCH_STD / model.config.hidden_size**0.5
    attention.k_proj.weight[:head_dim] = rows
    attention.q_proj.weight[:head_dim] = rows


def attend_in_blocks(
    module: "torch.nn.Module",
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    *,
    scaling: float,
    **_: Any,
) -> "tuple[torch.Tensor, None]":
    """Causal attention over (B, heads, positions, head size), as transformers calls it.

    On a CPU in bfloat16 it takes half the time of torch's own, whose backward pass is slow. Padding
    is at the end, where no other position reads it.
    """
    import torch

    is_mixed = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if is_mixed else query.dtype
    parts = []
    with torch.autocast(query.device.type, enabled=False):  # softmax would be in float32
        query, key, value = (query * scaling).to(dtype), key.to(dtype), value.to(dtype)
        for start in range(0, query.shape[2], QUERY_BLOCK):
            rows = query[:, :, start : start + QUERY_BLOCK]
            stop = start + rows.shape[2]
            scores = rows @ key[:, :, :stop].transpose(-1, -2)
            later = torch.ones(scores.shape[2:], dtype=torch.bool).triu(start + 1)
            weights = scores.masked_fill_(later, -torch.inf).softmax(-1)
            parts.append(weights @ value[:, :, :stop])
    return torch.cat(parts, 2).transpose(1, 2).contiguous(), None


def training_module(model: "PreTrainedModel") -> "torch.nn.Module":
    """A module of `model` and a label head on its last layer but one; only `model` is exported.

    `hidden(inputs)` returns the last hidden states and those that `label_head` reads.
    """
    import torch
    from transformers import AttentionInterface

    if model.device.type == "cpu" and not torch.cuda.is_available():
        AttentionInterface.register("blocks", attend_in_blocks)
        model.set_attn_implementation("blocks")

    class WalkModule(torch.nn.Module):  # type: ignore[misc]  # mypy skips torch
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.label_head = torch.nn.Linear(model.config.hidden_size, LABEL_LINES)
            self._label_states: torch.Tensor | None = None
            layers = model.model.layers
            layers[max(0, len(layers) - 2)].register_forward_hook(self._store_states)

        def _store_states(self, layer: torch.nn.Module, inputs: Any, output: Any) -> None:
            self._label_states = output[0] if isinstance(output, tuple) else output

        def hidden(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            last = self.model.model(input_ids=inputs, use_cache=False).last_hidden_state
            label_states, self._label_states = self._label_states, None
            return last, label_states

        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden @ self.model.get_input_embeddings().weight.T

    return WalkModule()


def walk_loss(
    module: "torch.nn.Module", batch: WalkBatch, options: WalkOptions, done: float
) -> Losses:
    """The loss of a batch after the share `done` (0 to 1) of the training.

    The sum of the cross-entropies of answers, verdicts, ends, labels at the lines' numbers and
    text. The weight of text falls linearly to 0.
    """
    import torch
    from torch.nn import functional

    last, label_states = module.hidden(batch.inputs)
    logits = module.logits(last[batch.rows, batch.columns]).float()
    log_probabilities = logits.gather(1, batch.choices) - logits.logsumexp(1, keepdim=True)
    drop, verdicts, lines = batch.drop, batch.is_verdict, ~batch.is_verdict
    losses = -((1 - drop) * log_probabilities[:, 0] + drop * log_probabilities[:, 1])
    entropy = torch.special.entr(drop) + torch.special.entr(1 - drop)
    parts = {
        "answers": weighted_mean(losses[lines], batch.weight[lines]),
        # The lowest possible loss of the answers, as their targets are probabilities.
        "noise": weighted_mean(entropy[lines], batch.weight[lines]),
    }
    total = parts["answers"]
    if verdicts.any():
        parts["verdicts"] = weighted_mean(losses[verdicts], batch.weight[verdicts])
        total = total + VERDICT_LOSS * parts["verdicts"]
    end_logits = module.logits(last[batch.ends[:, 0], batch.ends[:, 1]]).float()
    end_id = module.model.config.eos_token_id
    ends = torch.full((len(end_logits),), end_id, device=end_logits.device)
    parts["ends"] = functional.cross_entropy(end_logits, ends)
    total = total + END_LOSS * parts["ends"]
    if options.label_loss and len(batch.lines_before):
        parts["labels"] = _label_loss(module, batch, label_states)
        total = total + options.label_loss * parts["labels"]
    else:  # DDP waits for a gradient of every parameter
        total = total + 0 * sum(p.sum() for p in module.label_head.parameters())
    if options.text_loss and 1 - done > MIN_TEXT_SHARE and len(batch.text):
        rows, columns = batch.text[:, 0], batch.text[:, 1]
        text_logits = module.logits(last[rows, columns]).float()
        parts["text"] = functional.cross_entropy(text_logits, batch.inputs[rows, columns + 1])
        total = total + options.text_loss * (1 - done) * parts["text"]
    with torch.no_grad():
        predicted = log_probabilities[:, 1] > log_probabilities[:, 0]
        parts["accuracy"] = (predicted == (drop > 0.5)).float().mean()
        is_valid = (logits.argmax(1, keepdim=True) == batch.choices).any(1)
        parts["valid"] = is_valid.float().mean()
    return Losses(total, {name: float(value.detach()) for name, value in parts.items()})


def _label_loss(
    module: "torch.nn.Module", batch: WalkBatch, label_states: "torch.Tensor"
) -> "torch.Tensor":
    """The loss of the labels that the head predicts at the lines' numbers."""
    from torch.nn import functional

    logits = module.label_head(label_states[batch.number_rows, batch.number_columns].float())
    drop, weight = batch.drop[batch.number_steps], batch.weight[batch.number_steps]
    total = 0
    for back in range(LABEL_LINES):
        losses = functional.binary_cross_entropy_with_logits(
            logits[:, back], drop.roll(back), reduction="none"
        )
        total = total + weighted_mean(losses, weight * (batch.lines_before >= back)) / LABEL_LINES
    return total
