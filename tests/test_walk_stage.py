"""Stages of the style `walk` on a real engine; both use one model."""

import asyncio
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proxhpc.corpus.document import Document
from proxhpc.engines.base import Request
from proxhpc.refine.refiner import Refiner, _token_budget, open_refiner
from proxhpc.refine.walk import Walk
from proxhpc.run.ledger import Row
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.refiner_file import NAME
from tiny_models import save_walk

WORDS = ["Home", "About", "Contact", "the brown", "fox", "jumps", "over", "a lazy", "dog", "den"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: more would slow such a small model down."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = save_walk(tmp_path_factory.mktemp("model") / "walk")
    file = {"version": 1, "prompt": "walk", "doc": {"bias": -2.0}, "chunk": {"window_lines": 30}}
    (folder / NAME).write_text(json.dumps(file))
    return folder


def pages(count: int, max_lines: int = 60) -> list[list[str]]:
    """Return documents of random lines, some of them blank."""
    rng = random.Random(3)
    return [
        [
            " ".join(rng.choices(WORDS, k=rng.randint(0, 9)))
            for _ in range(rng.randint(1, max_lines))
        ]
        for _ in range(count)
    ]


def opened(model: Path, engine: str, **chunk: Any) -> Any:
    """Open a refiner with the model's own settings, or with keys for its only stage, chunk."""
    stages = [{"level": level, "model": str(model)} for level in ("doc", "chunk")]
    stages = [stages[1] | chunk] if chunk else stages
    data = {"name": "x", "corpus": {"paths": "-"}, "stages": stages}
    data["engine"] = {"name": engine, "dtype": "float32"}
    manifest = Manifest.model_validate(data, context={"base": Path.cwd()})
    models = find_models(manifest)
    return open_refiner(freeze_manifest(manifest, models), models)


async def rows(refiner: Refiner, lines: list[list[str]]) -> list[Row]:
    """Refine documents, all in flight at the same time."""
    texts = ["\n".join(page) for page in lines]
    documents = [Document(str(n), text, 0, n) for n, text in enumerate(texts)]
    return await asyncio.gather(*map(refiner.refine, documents))


def refined(model: Path, engine: str, lines: list[list[str]], **chunk: Any) -> list[Row]:
    async def run() -> list[Row]:
        refiner = await opened(model, engine, **chunk)
        assert refiner.doc is None or refiner.doc.engine is refiner.chunk.engine
        try:
            return await rows(refiner, lines)
        finally:
            await refiner.close()

    return asyncio.run(run())


@pytest.fixture(scope="module")
def answers(model: Path) -> list[Row]:
    return refined(model, "transformers", pages(24))


def programs(rows: list[Row]) -> list[str]:
    return [call.program for row in rows for call in (row.doc, *row.windows) if call]


def test_both_stages_of_one_model(answers: list[Row]) -> None:
    """Every answer is a complete program for its window."""
    assert {row.outcome for row in answers} >= {"dropped", "edited"}
    verdicts = {row.doc.program for row in answers if row.doc}
    assert verdicts == {"keep_doc()", "drop_doc()"}
    windows = [window for row in answers for window in row.windows]
    assert len(windows) > 10
    for window in windows:
        size = window.stop - window.start
        assert 0 < size <= 30
        assert (window.finish, window.new) == ("stop", size + 1)
    assert not any(row.rejected or row.flags for row in answers)


def test_stages_share_an_engine_with_a_prefix_cache(model: Path) -> None:
    """Their prompts have no common beginning, so documents in flight are not bounded."""
    refiner = asyncio.run(opened(model, "transformers"))
    refiner.doc.engine.cache_tokens = 1000
    assert _token_budget(refiner.doc, refiner.chunk) is None
    asyncio.run(refiner.close())


def test_a_bias_keeps_or_removes(model: Path) -> None:
    page = [["Home", "The brown fox", "About"] * 5]
    kept, removed = (refined(model, "transformers", page, bias=bias)[0] for bias in (-100, 100))
    assert (kept.outcome, programs([kept])) == ("kept", [""])
    assert programs([removed]) == ["remove_lines(start=0, end=14)"]


def test_a_document_without_a_verdict_is_kept(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Walk, "verdict_bias", lambda walk, value: ((walk.end, 100.0),))
    for row in refined(model, "transformers", pages(4)):
        assert row.doc is not None
        assert (row.doc.program, row.doc.finish) == ("keep_doc()", "stop")
        assert row.outcome != "dropped"
        assert not row.rejected


def test_unrestricted_answers_are_read_as_they_are(model: Path) -> None:
    """A random model then writes anything, one token for each line."""
    rows = refined(model, "transformers", pages(2, 20), grammar="none")
    calls = [call for row in rows for call in row.windows]
    assert calls
    assert {call.finish for call in calls} == {"stop"}
    assert all(call.new <= call.stop - call.start for call in calls)
    assert all(row.rejected for row in rows if row.windows)


def requests(walk: Walk) -> Iterator[Request]:
    rng = random.Random(4)
    for lines in pages(7, 30):
        page = walk.page(lines)
        for window in walk.windows(page, 200, 30):
            size = window.stop - window.start
            prompt = walk.prompt(page, window.start, window.stop)
            bias = walk.bias(lines[window.start : window.stop], rng.choice([0.0, -0.5, 0.5]))
            limit = rng.choice([size + 1, size + 1, 3])  # also too few for the answer
            yield Request("chunk", prompt, (), 0, limit, steps=walk.allowed_steps(size), bias=bias)
        stop = rng.choice([(), ("keep_doc()", "drop_doc()")])
        doc = Request("doc", walk.verdict_prompt(lines), (), 0, 5, stop, steps=walk.verdict_steps)
        # The score does not include the bias.
        yield replace(doc, bias=walk.verdict_bias(rng.choice([0.0, -9.0])), odds=walk.verdict_ids)


def first_logits(engine: Any, request: Request) -> list[float]:
    """Return the model's logits of the first token, without a batch."""
    import torch

    with torch.inference_mode():
        logits = engine._model(torch.tensor([list(request.prompt)])).logits[0, -1]
    return list(logits.tolist())


def test_drafts_equal_greedy_decoding_in_fewer_passes(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from proxhpc.engines import drafts
    from proxhpc.engines.transformers_engine import TransformersEngine
    from proxhpc.run.models import resolve_model

    engine = TransformersEngine(resolve_model(str(model)), batch_size=6)
    assert engine.tokenizer
    walk = Walk(engine.tokenizer)
    all_requests = list(requests(walk))
    passes = 0

    def count_pass() -> None:
        nonlocal passes
        passes += 1

    for start in range(0, len(all_requests), 6):
        batch = all_requests[start : start + 6]
        assert drafts.can_draft(engine._model, batch, engine._stop)
        drafted = engine._generate(batch, lambda: bool(count_pass()))
        monkeypatch.setattr("proxhpc.engines.transformers_engine.can_draft", lambda *_: 0)
        plain = engine._generate(batch, lambda: False)
        assert drafted == plain
        for request, draft, greedy in zip(batch, drafted, plain, strict=True):
            expected = None
            if request.odds:
                logits = first_logits(engine, request)
                expected = pytest.approx(
                    logits[walk.verdict_ids[1]] - logits[walk.verdict_ids[0]], abs=1e-4
                )
            assert draft.score == expected
            assert greedy.score == expected
        monkeypatch.undo()
    tokens = sum(
        max(r.max_new_tokens for r in all_requests[n : n + 6])
        for n in range(0, len(all_requests), 6)
    )
    assert passes < tokens / 2
    free = replace(all_requests[0], steps=all_requests[0].steps[:-2])
    assert not drafts.can_draft(engine._model, [*all_requests, free], engine._stop)
    asyncio.run(engine.close())
