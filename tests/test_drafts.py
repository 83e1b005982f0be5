"""Drafts: greedy answers in a few passes, and an exact count of what the model computed."""

import asyncio
import functools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxhpc.account.flops import ModelWork, Usage, flops
from proxhpc.engines.base import Completion, Request
from proxhpc.engines.drafts import cache_argument
from proxhpc.run.models import resolve_model
from test_walk_stage import opened, pages, rows
from tiny_models import save_llama, save_walk

STOP = 2


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    pytest.importorskip("transformers")
    from proxhpc.engines.transformers_engine import TransformersEngine

    folder = save_llama(tmp_path_factory.mktemp("drafts") / "llama")
    engine = TransformersEngine(resolve_model(str(folder)), dtype="float32", batch_size=4)
    yield engine
    asyncio.run(engine.close())


def answer(engine: Any, requests: list[Request]) -> list[Completion]:
    """Answers of one batch."""
    completions: list[Completion] = engine._generate(requests, lambda: False)
    return completions


def count_work(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[ModelWork]:
    """Record what each pass of the model computes, read off its attention mask."""
    import torch

    passes: list[ModelWork] = []
    forward = model.forward

    @functools.wraps(forward)  # `generate` looks at the signature
    def counted(*args: Any, **options: Any) -> Any:
        ids = args[0] if args else options["input_ids"]
        mask = options.get("attention_mask")
        if mask is None:  # nothing is padding
            past = options["past_key_values"].get_seq_length()
            mask = torch.ones((len(ids), past + ids.shape[1]), dtype=torch.long)
        out = forward(*args, **options)
        fed = mask[:, -ids.shape[1] :]
        pairs = mask.cumsum(1)[:, -ids.shape[1] :] * fed
        logits = mask[:, -out.logits.shape[1] :]
        passes.append(ModelWork(int(fed.sum()), int(pairs.sum()), int(logits.sum())))
        return out

    monkeypatch.setattr(model, "forward", counted)
    return passes


def total(works: list[ModelWork]) -> ModelWork:
    fed, attended, logits, *_ = zip(*works, strict=True)
    return ModelWork(sum(fed), sum(attended), sum(logits))


def work_of(completions: list[Completion]) -> ModelWork:
    """What completions say was computed, by the sums that the account is made of."""
    usage = sum(
        (
            Usage.of_request(done.prompt_tokens, done.cached_tokens, done.new_tokens, done.work)
            for done in completions
        ),
        Usage(),
    )
    return ModelWork(usage.fed, usage.attended, usage.logits)


def random_requests(rng: random.Random, count: int) -> list[Request]:
    """Requests with random prompts and steps; most answers need several passes."""
    requests = []
    for _ in range(count):
        size = rng.randint(1, 12)
        steps = [tuple(rng.sample(range(3, 300), rng.choice((1, 2, 2, 4)))) for _ in range(size)]
        prompt = [rng.randrange(3, 300) for _ in range(rng.randint(1, 40))]
        requests.append(Request("chunk", prompt, (), 0, size + 1, steps=(*steps, (STOP,))))
    return requests


def test_every_pass_of_a_draft_is_counted(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rejected drafts and tokens that are fed again count; padding does not."""
    rng = random.Random(1)
    passes = count_work(engine._model, monkeypatch)
    several = 0
    for size in (1, 1, 1, 2, 4, 6, 6):
        passes.clear()
        completions = answer(engine, random_requests(rng, size))
        assert work_of(completions) == total(passes)
        several += len(passes) > 2
    assert several >= 4


def test_an_answer_token_by_token_is_counted(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = count_work(engine._model, monkeypatch)
    for new in (1, 9):
        passes.clear()
        completions = answer(engine, [Request("chunk", [1, 20, 30, 40], (), 0, new)])
        assert completions[0].work is None
        assert work_of(completions) == total(passes)


def test_a_run_accounts_for_what_the_model_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the engine through the ledger's rows to the sums and FLOPs."""
    pytest.importorskip("transformers")
    from proxhpc.run.ledger import Row, tally

    model = save_walk(tmp_path / "walk")
    file = {"version": 1, "prompt": "walk", "doc": {"bias": -2.0}, "chunk": {"window_lines": 30}}
    (model / "refiner.json").write_text(json.dumps(file))
    passes: list[ModelWork] = []

    async def run() -> tuple[list[Row], Usage]:
        refiner = await opened(model, "transformers")
        counted = count_work(refiner.doc.engine._model, monkeypatch)
        try:
            written = await rows(refiner, pages(12))
        finally:
            await refiner.close()
        passes.extend(counted)
        return written, sum(refiner.usage.values(), Usage())

    written, asked = asyncio.run(run())
    read = [Row.decode(row.encode()) for row in written]
    assert read == written
    counts = tally(read)
    usage = counts.doc + counts.chunk
    assert usage == asked
    computed = total(passes)
    assert ModelWork(usage.fed, usage.attended, usage.logits) == computed
    assert usage.fed > usage.prompt_tokens + usage.new_tokens  # drafts were rejected
    shape = resolve_model(str(model)).shape
    assert shape is not None
    assert flops(shape, usage) == (
        2 * shape.active * computed.fed
        + 2 * shape.hidden * shape.vocab * computed.logits
        + 4 * shape.layers * shape.heads * shape.head_dim * computed.attended
    )


def test_equally_good_tokens_give_the_lowest_id(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As greedy decoding does, in whatever order a step names its tokens."""
    import torch

    head = engine._model.lm_head
    monkeypatch.setattr(head, "weight", torch.nn.Parameter(torch.zeros_like(head.weight)))
    steps = ((90, 30), (40, 80, 60), (70,), (200, 50, 100, 60), (33, 44), (STOP,))
    tied = Request("chunk", [1, 20, 30], (), 0, 6, steps=steps)
    short = Request("chunk", [1, 20, 30, 40], (), 0, 3, steps=((81, 80), (STOP,)))
    # A bias can make a tie, or break one.
    biased = replace(tied, bias=((90, 1.0), (80, 2.0), (60, 2.0), (200, 3.0), (100, 3.0)))
    requests = [tied, short, biased]
    drafted = answer(engine, requests)
    monkeypatch.setattr("proxhpc.engines.transformers_engine.can_draft", lambda *_: False)
    assert drafted == answer(engine, requests)
    expected = [[30, 40, 70, 50, 33], [80], [90, 60, 70, 100, 33]]
    assert [done.text for done in drafted] == [engine.tokenizer.decode(ids) for ids in expected]


def test_the_cache_has_the_name_that_the_model_knows() -> None:
    def old(input_ids: object, past_key_values: object = None) -> None: ...
    def new(input_ids: object, cache: object = None) -> None: ...

    assert [cache_argument(forward) for forward in (old, new)] == ["past_key_values", "cache"]
