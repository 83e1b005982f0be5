"""A new Llama for the style walk, and the head that tells labels at the lines while it learns."""

from typing import Any

from proxhpc.engines.base import Tokenizer
from proxhpc.refine import walk_vocabulary as vocabulary
from proxhpc.refine.walk_vocabulary import NUMBERS
from proxhpc.spec.recipe import Shape

BASE, CODE, SIDE = 0.02, 0.03, 0.02  # standard deviations


def new_model(shape: Shape, tokenizer: Tokenizer, seed: int) -> Any:
    """A Llama with random weights; its embeddings say which markers belong together.

    A line's number, and the answers to the line before it, share a code: so does a line's answer
    find its number.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    end = tokenizer.special(vocabulary.END)
    size = tokenizer.added(vocabulary.PROGRAM_TOKENS[-1]) + 1
    config = LlamaConfig(
        vocab_size=size,
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
        initializer_range=BASE,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed + 1)
    base, code = (
        torch.randn(NUMBERS + 1, shape.hidden, generator=generator) * size for size in (BASE, CODE)
    )
    side = torch.randn(shape.hidden, generator=generator) * SIDE
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for line in range(NUMBERS):
            table[tokenizer.special(vocabulary.number_token(line))] += base[line] + code[line]
            answer = base[line] + code[line + 1]
            table[tokenizer.special(vocabulary.keep_token(line))] += answer + side
            table[tokenizer.added(vocabulary.remove_token(line))] += answer - side
        for foot in (vocabulary.DOC_END, vocabulary.DOC_END_MORE):
            table[tokenizer.special(foot)] += code[0]
    return model


class Learner:
    """Factory of the module that learns: the Llama, and a head on its last layer but one."""

    @staticmethod
    def make(llama: Any, labels: int) -> Any:
        """A torch module; `hidden(inputs)` gives the last states and those the head reads."""
        import torch

        class Module(torch.nn.Module):  # type: ignore[misc]  # torch is untyped here
            def __init__(self) -> None:
                super().__init__()
                self.llama = llama
                self.labels = torch.nn.Linear(llama.config.hidden_size, labels)
                self._seen: Any = None
                layers = llama.model.layers
                layers[max(0, len(layers) - 2)].register_forward_hook(self._see)

            def _see(self, module: Any, inputs: Any, output: Any) -> None:
                self._seen = output[0] if isinstance(output, tuple) else output

            def hidden(self, inputs: Any) -> tuple[Any, Any]:
                last = self.llama.model(input_ids=inputs, use_cache=False).last_hidden_state
                seen, self._seen = self._seen, None
                return last, seen

            def logits(self, hidden: Any) -> Any:
                return hidden @ self.llama.get_input_embeddings().weight.T

        return Module()
