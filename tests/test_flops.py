from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.account.flops import (
    ModelShape,
    Usage,
    break_even_parameters,
    cached_flops,
    decode_flops,
    flops,
    paper_flops,
    prefill_flops,
    training_flops,
)
from proxhpc.errors import UserError

KV_HEADS, INTERMEDIATE = 1, 16
TINY = ModelShape.from_config(
    {
        "model_type": "llama",
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": KV_HEADS,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": 32,
        "tie_word_embeddings": True,
    }
)
# These sizes give the published 354,284,800 parameters of the ProX XS refiners.
PROX_XS = {
    "model_type": "llama",
    "hidden_size": 1280,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 1,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def one_by_one(shape: ModelShape, n: int, c: int, m: int) -> int:
    """Return the FLOPs of a request, counted by token and matrix."""
    width, kv = shape.heads * shape.head_dim, KV_HEADS * shape.head_dim
    matrices = [
        (shape.hidden, width),
        (shape.hidden, kv),
        (shape.hidden, kv),
        (width, shape.hidden),
        (shape.hidden, INTERMEDIATE),
        (shape.hidden, INTERMEDIATE),
        (INTERMEDIATE, shape.hidden),
    ]
    total = 0
    for position in [*range(c, n), *range(n, n + max(m - 1, 0))]:
        for _ in range(shape.layers):
            total += sum(2 * a * b for a, b in matrices)
            total += shape.heads * (position + 1) * 2 * (2 * shape.head_dim)
    return total + m * 2 * shape.hidden * shape.vocab


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 20))
def test_the_flops_of_a_request_are_those_of_its_tokens(n: int, c: int, m: int) -> None:
    c = min(c, n - 1)
    assert flops(TINY, Usage.of_request(n, c, m)) == one_by_one(TINY, n, c, m)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20)), max_size=8))
def test_sums_of_usage_give_sums_of_flops(requests: list[tuple[int, int]]) -> None:
    usages = [Usage.of_request(n, n // 2, m) for n, m in requests]
    total = sum(usages, Usage())
    assert total.requests == len(requests)
    assert flops(TINY, total) == sum(flops(TINY, usage) for usage in usages)
    assert Usage(**asdict(total)) == total


def test_a_request_by_hand() -> None:
    # 3 prompt tokens attend to 1 + 2 + 3 keys. Of 4 new tokens 3 are fed, to 4 + 5 + 6 keys.
    assert Usage.of_request(3, 0, 4) == Usage(1, 3, 0, 6, 4, 21, 15, 0, 4)
    # With 2 cached tokens only the third is fed; the first two would attend to 1 + 2 keys.
    assert Usage.of_request(3, 2, 1) == Usage(1, 3, 2, 1, 1, 3, 0, 3, 1)
    # Per layer 8·8 + 2·8·4 + 8·8 of attention and 3·8·16 of MLP: 576.
    assert TINY.active == 2 * 576
    assert flops(TINY, Usage(fed=6, new_tokens=3, attended=21, logits=4)) == (
        2 * 1152 * 6 + 2 * 8 * 32 * 4 + 4 * 2 * 2 * 4 * 21
    )


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 20))
def test_prefill_decode_and_cached_flops(n: int, c: int, m: int) -> None:
    c = min(c, n - 1)
    usage, whole = Usage.of_request(n, c, m), Usage.of_request(n, 0, m)
    head = 2 * TINY.hidden * TINY.vocab
    # Prefill is the whole request without the head; decode is the rest.
    assert prefill_flops(TINY, usage) == one_by_one(TINY, n, c, 0 if m == 0 else 1) - bool(m) * head
    assert decode_flops(TINY, usage) == flops(TINY, usage) - prefill_flops(TINY, usage)
    assert decode_flops(TINY, usage) == decode_flops(TINY, whole)
    assert flops(TINY, usage) + cached_flops(TINY, usage) == flops(TINY, whole)


@pytest.mark.parametrize(("n", "c", "m"), [(3, 4, 1), (3, -1, 1), (3, 0, -1)])
def test_impossible_counts_are_refused(n: int, c: int, m: int) -> None:
    with pytest.raises(ValueError, match="impossible"):
        Usage.of_request(n, c, m)


def test_published_sizes() -> None:
    xs = ModelShape.from_config(PROX_XS)
    assert xs.parameters == 354_284_800
    assert xs.active == 272_302_080
    smol = ModelShape.from_config(SMOLLM2)
    assert smol.parameters == 134_515_008
    assert smol.head_dim == 64


def test_published_flops() -> None:
    """ProX, appendix E.3: both stages with XS on 60B and 62.5B raw tokens, 19B reach stage 2."""
    xs = ModelShape.from_config(PROX_XS)
    assert f"{paper_flops(xs, 60_000_000_000 + 19_000_000_000):.2e}" == "4.95e+19"
    spent = paper_flops(xs, 62_500_000_000 + 19_000_000_000)
    assert f"{spent:.2e}" == "5.11e+19"
    # The paper's figure: the cost of 12B training tokens of the 0.7B model.
    assert round(spent // (6 * (758_982_144 - 32000 * 1536)) / 1e9, 1) == 12.0


def test_training_and_break_even() -> None:
    assert training_flops(10, 7) == 420
    size = break_even_parameters(1_000, 100, 40)
    assert size == 3  # 360·N is saved: less than 1,000 for N = 2, more for N = 3
    assert 1_000 + training_flops(3, 40) <= training_flops(3, 100)
    assert 1_000 + training_flops(2, 40) > training_flops(2, 100)
    assert break_even_parameters(10**20 + 1, 10**9 + 1, 10**9) == (10**20 + 1 + 5) // 6
    assert break_even_parameters(1_000, 40, 40) is None


def test_configs_that_cannot_be_counted() -> None:
    with pytest.raises(UserError, match="mamba"):
        ModelShape.from_config({**SMOLLM2, "model_type": "mamba"})
    with pytest.raises(UserError, match="num_hidden_layers is '30'"):
        ModelShape.from_config({**SMOLLM2, "num_hidden_layers": "30"})
    with pytest.raises(UserError, match="vocab_size is None"):
        ModelShape.from_config({**SMOLLM2, "vocab_size": None})
