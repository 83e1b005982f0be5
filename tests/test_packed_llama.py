"""The packed Llama gives the answers of transformers, in all its precisions and kernels."""

import asyncio
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proxhpc.engines.base import Completion, NotANumberError, Request
from proxhpc.run.models import resolve_model
from test_drafts import random_requests
from tiny_models import save_llama, save_walk_tokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
from proxhpc.engines import packed_kernels as kernels  # noqa: E402
from proxhpc.engines.batching import oldest_batch  # noqa: E402
from proxhpc.engines.packed_llama import PackedLlama  # noqa: E402
from proxhpc.engines.tokenizer import _PlainTokenizer  # noqa: E402
from proxhpc.engines.transformers_engine import TransformersEngine, _dtype  # noqa: E402

PLAIN = {"num_key_value_heads": 4, "hidden_size": 128, "head_dim": 32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("packed") / "llama", **PLAIN)


@pytest.fixture(scope="module")
def engines(folder: Path) -> Iterator[dict[bool, TransformersEngine]]:
    model = resolve_model(str(folder))
    made = {
        packed: TransformersEngine(model, dtype="float32", stepwise=packed)
        for packed in (False, True)
    }
    yield made
    for engine in made.values():
        asyncio.run(engine.close())


def requests(seed: int, count: int) -> list[Request]:
    return [
        Request(**{name: getattr(request, name) for name in request.__slots__} | {"odds": (3, 4)})
        for request in random_requests(random.Random(seed), count)
    ]


def answers(engine: TransformersEngine, asked: list[Request]) -> list[Completion]:
    done = engine._generate(asked, lambda: None)
    assert all(isinstance(answer, Completion) for answer in done)
    return [answer for answer in done if isinstance(answer, Completion)]


@pytest.mark.parametrize("seed", range(8))
def test_answers_scores_and_work_are_those_of_transformers(
    engines: dict[bool, TransformersEngine], seed: int
) -> None:
    asked = requests(seed, 1 + seed)
    expected, packed = answers(engines[False], asked), answers(engines[True], asked)
    assert packed == expected
    assert [answer.work for answer in packed] == [answer.work for answer in expected]
    scores = [answer.score for answer in packed]
    assert scores == pytest.approx([answer.score for answer in expected], abs=1e-3)
    assert engines[True]._model is None  # transformers' model was not even loaded


def test_other_requests_load_the_model_of_transformers(folder: Path) -> None:
    engine = TransformersEngine(resolve_model(str(folder)), dtype="float32", stepwise=True)
    free = [Request("doc", [1, 20, 30], (), 0, 5)]
    try:
        packed = engine._packed
        assert engine._model is None
        first = answers(engine, free)
        assert engine._model is not None
        assert engine._packed is packed
        engine._packed = None
        assert answers(engine, free) == first
    finally:
        asyncio.run(engine.close())


def test_weights_that_are_not_numbers_are_seen(folder: Path, tmp_path: Path) -> None:
    broken = save_llama(tmp_path / "broken", **PLAIN)
    from safetensors.torch import load_file, save_file

    weights = load_file(broken / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(weights, broken / "model.safetensors", {"format": "pt"})
    for dtype in ("float32", "bfloat16", "auto"):
        engine = TransformersEngine(resolve_model(str(broken)), dtype=dtype, stepwise=True)
        try:
            assert engine._packed
            done = engine._generate(requests(1, 3), lambda: None)
            assert all(isinstance(answer, NotANumberError) for answer in done)
        finally:
            asyncio.run(engine.close())


@pytest.mark.parametrize(
    "change",
    [
        {"num_key_value_heads": 2},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"vocab_size": 20_000},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_architectures_are_left_to_transformers(
    tmp_path: Path, change: dict[str, object]
) -> None:
    folder = save_llama(tmp_path / "llama", **PLAIN | change)
    assert PackedLlama.load(folder, torch.float32) is None


def test_a_configuration_that_is_not_of_the_weights_is_left_to_transformers(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    assert PackedLlama.load(folder, torch.float32) is not None
    try:
        for change in ({"num_hidden_layers": 3}, {"intermediate_size": 32}, {"model_type": "x"}):
            (folder / "config.json").write_text(json.dumps(config | change))
            assert PackedLlama.load(folder, torch.float32) is None
    finally:
        (folder / "config.json").write_text(json.dumps(config))


def both(head: int, heads: int = 3, dtype: Any = torch.bfloat16) -> tuple[Any, Any]:
    """Kernels in C and with torch, for the same heads; without a dtype, of 8-bit matrices."""
    angles = torch.outer(torch.arange(700.0), 100.0 ** -torch.linspace(0, 1, head // 2))
    shape = kernels.Heads(heads, head, angles)
    compiled = kernels.make_kernels(shape, [64], dtype)
    kind = kernels.CompiledKernels if dtype else kernels.IntegerKernels
    if not isinstance(compiled, kind):
        pytest.skip("needs AVX512-BF16 (and AVX512-VNNI, without AMX) and a C compiler")
    return compiled, kernels.TorchKernels(shape, torch.float32)


def near(value: Any, expected: Any) -> bool:
    return bool(torch.allclose(value.float(), expected, rtol=0.02, atol=0.02))


def test_kernels_in_c_compute_rows_as_torch_does() -> None:
    compiled, plain = both(32)
    x = 10 * torch.randn((37, 64), generator=torch.Generator().manual_seed(1)).bfloat16()
    x[0, :4] = torch.tensor([90.0, -90.0, 200.0, -200.0])
    assert near(compiled.norm(x, 1e-6), plain.norm(x.float(), 1e-6))
    expected = plain.gated(x.float())
    assert bool(torch.allclose(compiled.gated(x).float(), expected, rtol=0.01, atol=0.01))
    x[5, 3] = float("nan")
    assert compiled.norm(x, 1e-6)[5].isnan().all()
    assert compiled.gated(x)[5, 3].isnan()


@pytest.mark.parametrize("broken", [False, True])
def test_products_of_bytes_are_near_those_of_torch(broken: bool) -> None:
    """Of rows with numbers of many sizes, none at all, and one that is not a number."""
    compiled, plain = both(32, dtype=None)
    state = torch.Generator().manual_seed(2)
    x = (torch.randn((128, 64), generator=state) * torch.logspace(-9, 9, 128)[:, None]).bfloat16()
    x[7], x[9, 1] = 0, float("nan") if broken else 1
    weights = [torch.randn(shape, generator=state) / 8 for shape in ((96, 64),) * 2 + ((64, 96),)]
    sets = {k: [k.gate_up(*weights[:2]), *map(k.matrix, weights[1:])] for k in (compiled, plain)}
    steps: list[Callable[[Any, Any, Any], Any]] = [
        lambda k, x, w: k.project(x, 1e-6, w[1]),
        lambda k, x, w: k.add(x.clone(), k.project(x, 1e-6, w[1]), w[2]),
        lambda k, x, w: k.feed(x.clone(), 1e-6, w[0], w[2]),
    ]
    for step in steps:
        values = [step(k, x.to(k.dtype), sets[k]).float() for k in (compiled, plain)]
        assert values[0].isnan().equal(values[1].isnan())
        assert bool(values[0][9].isnan().all()) == broken
        gap = (values[0] - values[1]).nan_to_num().norm(dim=1)
        assert bool((gap <= 0.03 * values[1].nan_to_num().norm(dim=1)).all())
        alone = step(compiled, x[64:].clone(), sets[compiled]).float()
        assert alone.equal(values[0][64:])  # a row's products do not depend on other rows


def test_a_wrong_scale_or_a_nan_in_the_weights_is_seen() -> None:
    compiled, _ = both(32, dtype=None)
    weight = torch.ones((32, 64))
    weight[3, 5], weight[4] = float("nan"), 0
    x = torch.ones((64, 64)).bfloat16()
    row = compiled.project(x, 1e-6, compiled.matrix(weight))[0].float()
    assert row.isnan().nonzero().flatten().tolist() == [3]
    assert row[4] == 0
    assert row[5] == pytest.approx(64, rel=0.01)


@pytest.mark.parametrize(("head", "size"), [(32, 5), (64, 8), (64, 97), (32, 160), (96, 333)])
def test_kernels_in_c_attend_as_torch_does(head: int, size: int) -> None:
    """Two sequences in one pass, then the end of the second one again, from an odd position on."""
    compiled, plain = both(head)
    random_state = torch.Generator().manual_seed(size)
    inner, rows = 3 * head, kernels.align(size, kernels.TILE)
    slots = kernels.align(size, kernels.KEYS)
    caches = {k: k.new_cache(0, 2 * slots + kernels.KEYS) for k in (compiled, plain)}
    for start in (0, size // 2 | 1):
        fed = size - start
        spans = [
            kernels.RowSpan(n * rows, kernels.align(fed, kernels.TILE), start, n * slots, slots)
            for n in range(2)
        ]
        at = torch.zeros(2 * rows, dtype=torch.long)
        slot = torch.full_like(at, 2 * slots)
        for n, span in enumerate(spans):
            at[span.row : span.row + fed] = torch.arange(start, size)
            slot[span.row : span.row + fed] = torch.arange(start, size) + n * slots
        x = torch.randn((2 * rows, 3 * inner), generator=random_state).div(2).bfloat16()
        results = []
        for k, dtype in ((compiled, torch.bfloat16), (plain, torch.float32)):
            k.put(caches[k], x.to(dtype)[:, inner:], at, slot)
            results.append(k.attend(x.to(dtype)[:, :inner].contiguous(), at, caches[k], spans))
        for span in spans:
            real = slice(span.row, span.row + fed)
            assert bool(torch.allclose(results[0][real].float(), results[1][real], atol=0.02))


def test_without_a_compiler_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernels.compile_library(32, lambda _: None) is None
    assert kernels.compile_library(32, lambda _: "/bin/false") is None
    monkeypatch.setattr(kernels, "compile_library", lambda _: None)
    heads = kernels.Heads(2, 32, torch.zeros((8, 16)))
    assert isinstance(kernels.make_kernels(heads, [64], torch.bfloat16), kernels.TorchKernels)


@pytest.mark.parametrize(("in_c", "dtype"), [(True, "auto"), (True, "bfloat16"), (False, "auto")])
def test_an_answer_does_not_depend_on_its_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch, in_c: bool, dtype: str
) -> None:
    if not in_c:
        monkeypatch.setattr(kernels, "compile_library", lambda _: None)
    engine = TransformersEngine(resolve_model(str(folder)), dtype=dtype, stepwise=True)
    try:
        asked = requests(3, 9)
        batch = answers(engine, asked)
        assert batch == [answer for request in asked for answer in answers(engine, [request])]
    finally:
        asyncio.run(engine.close())


def test_packed_batches_have_the_oldest_requests_up_to_a_number_of_tokens() -> None:
    asked = [
        Request("doc", [1] * n, (), 0, 1, order=order) for n, order in ((9, 2), (5, 0), (4, 1))
    ]
    assert oldest_batch(asked, 9) == [1, 2]
    assert oldest_batch(asked, 18) == [1, 2, 0]
    assert oldest_batch(asked, 3) == [1]


def test_the_embedded_model_loads_without_transformers() -> None:
    """It takes two seconds to import."""
    code = """if True:
        import asyncio, sys
        from proxhpc.engines.transformers_engine import TransformersEngine
        from proxhpc.run.models import resolve_model
        engine = TransformersEngine(resolve_model("embedded"), stepwise=True)
        asyncio.run(engine.close())
        print("transformers" in sys.modules)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_plain_tokenizer_is_what_transformers_loads(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = save_walk_tokenizer(tmp_path)
    plain, full = _PlainTokenizer.load(folder), AutoTokenizer.from_pretrained(folder)
    assert plain is not None
    assert (len(plain), plain.eos_token_id) == (len(full), full.eos_token_id)
    assert (plain.bos_token_id, plain.unk_token_id) == (full.bos_token_id, full.unk_token_id)
    text = "Home | 12 ½ </s>[doc]\n  lazy dog"
    expected = full(text, add_special_tokens=True).input_ids
    assert plain.backend_tokenizer.encode(text).ids == expected


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer_class": "LlamaTokenizer"},
        {"chat_template": "{{ messages }}"},
        {"eos_token": "<unknown>"},
        {"eos_token": {"content": "</s>", "lstrip": True}},
        {"add_bos_token": True},
    ],
    ids=str,
)
def test_other_tokenizers_are_left_to_transformers(
    tmp_path: Path, change: dict[str, object]
) -> None:
    file = save_walk_tokenizer(tmp_path) / "tokenizer_config.json"
    assert _PlainTokenizer.load(tmp_path) is not None
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert _PlainTokenizer.load(tmp_path) is None


VNNI = {"avx512_bf16", "avx512_vnni"}


@pytest.mark.parametrize(
    ("flags", "dtype", "expected"),
    [
        (VNNI, None, ("IntegerKernels", torch.bfloat16)),
        (VNNI, torch.bfloat16, ("CompiledKernels", torch.bfloat16)),
        (VNNI, torch.float32, ("TorchKernels", torch.float32)),
        (VNNI | {"amx_bf16"}, None, ("CompiledKernels", torch.bfloat16)),
        ({"amx_bf16"}, None, ("TorchKernels", torch.bfloat16)),
        ({"avx2"}, None, ("TorchKernels", torch.float32)),
    ],
)
def test_auto_reads_a_packed_model_as_the_processor_is_fastest(
    monkeypatch: pytest.MonkeyPatch,
    flags: set[str],
    dtype: Any,
    expected: tuple[str, Any],
) -> None:
    monkeypatch.setattr(kernels, "_processor_flags", lambda: frozenset(flags))
    library = object() if "avx512_bf16" in flags else None
    monkeypatch.setattr(kernels, "compile_library", lambda _: library)
    heads = kernels.Heads(2, 32, torch.zeros((8, 16)))
    made = kernels.make_kernels(heads, [64], dtype)
    assert (type(made).__name__, made.dtype) == expected
    odd = kernels.make_kernels(heads, [72], dtype)  # 8-bit panels and C need a multiple of 32
    assert type(odd) is kernels.TorchKernels


def test_auto_is_one_precision_in_both_engines() -> None:
    """Models that are not packed are read as vLLM reads them on a CPU."""
    assert _dtype("auto", "cpu") == torch.float32
    assert _dtype("bfloat16", "cpu") == torch.bfloat16
