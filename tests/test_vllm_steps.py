"""Step restrictions and biases in vLLM's core: what its logits processor does to a batch."""

import math

from proxhpc.engines.base import Request
from proxhpc.engines.steps import STEPS_KEY


def test_the_step_processor_adds_the_bias_of_a_walk(vllm: None) -> None:
    """vLLM's own `logit_bias` costs ten milliseconds a step with a thousand requests."""
    import torch
    from vllm.v1.sample.logits_processor import BatchUpdateBuilder

    from proxhpc.engines.vllm_engine import sampling_params
    from proxhpc.engines.vllm_steps import StepProcessor

    steps = ((1, 2), (3, 4), (0,))
    asked = [
        Request("chunk", [1], (), 0, 3, steps=steps, bias=((2, -5.0), (4, 5.0))),
        Request("chunk", [1], (), 0, 3, steps=steps),
        Request("chunk", [1], (), 0, 3, bias=((3, 1.0),)),
    ]
    parameters = [sampling_params(request, [0]) for request in asked]
    assert [each.logit_bias for each in parameters] == [None, None, {3: 1.0}]
    assert parameters[1].extra_args == {STEPS_KEY: [[1, 2], [3, 4], [0]]}
    update, tokens = BatchUpdateBuilder(), [[1], [1], [1]]
    update.added.extend((row, each, [1], tokens[row]) for row, each in enumerate(parameters))
    processor = StepProcessor(None, torch.device("cpu"), False)
    processor.update_state(update.get_and_reset(3))
    none = -math.inf
    logits = processor.apply(torch.arange(18.0).reshape(3, 6))
    assert logits.tolist() == [
        [none, none, none, 3.0, 9.0, none],
        [none, none, none, 9.0, 10.0, none],
        [*map(float, range(12, 18))],
    ]
    tokens[0].append(3)  # the last step has one id, without a bias
    logits = processor.apply(torch.arange(18.0).reshape(3, 6))
    assert logits[0].tolist() == [0.0, *[none] * 5]
