"""Engine settings of one stage: merged, checked, frozen, shown, and the engines that they make."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from proxhpc.account.counts import Counts
from proxhpc.account.flops import Usage, flops, paper_flops
from proxhpc.doctor.needs import _engine
from proxhpc.engines.base import Engine
from proxhpc.errors import UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.plan.estimate import estimate_run
from proxhpc.plan.view import _rows
from proxhpc.refine.refiner import open_refiner
from proxhpc.report.compute import stage_report
from proxhpc.run.estimate import estimate_work
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.refiner_file import NAME
from proxhpc.spec.sections import EngineOptions
from proxhpc.spec.site import Site
from runs import document, local_site, manifest, write_jsonl
from tiny_models import save_walk

OWN = {"dtype": "float32", "options": {"attn_implementation": "eager"}}


def two_stages(folder: Path, model: str = "embedded", **engine: Any) -> Path:
    source = write_jsonl(folder / "in.jsonl", [document(0)])
    stages = [{"level": level, "model": model} for level in ("doc", "chunk")]
    stages[1] |= engine
    return manifest(folder, [source], engine={"name": "transformers"}, stages=stages)


def test_a_stage_may_have_its_own_settings_which_plan_freezes_and_shows(tmp_path: Path) -> None:
    plain = load_manifest(two_stages(tmp_path))
    path = two_stages(tmp_path, engine=OWN)
    run = prepare_run(path, local_site(tmp_path), None, freeze=True)
    doc, chunk = run.plan.manifest.stages
    assert run.plan.manifest.engine_of(doc) == plain.engine
    merged = run.plan.manifest.engine_of(chunk)
    assert (merged.name, merged.dtype, merged.options) == ("transformers", *OWN.values())
    assert run.plan.manifest.computed() != plain.computed()
    rows = _rows(estimate_run(run.plan, run.site, run.dir))
    assert rows["chunk model"].endswith("parameters, dtype: float32, attn_implementation: eager")
    assert rows["doc model"].endswith("parameters")


def test_the_embedded_refiner_has_a_smaller_model_for_verdicts(tmp_path: Path) -> None:
    run = prepare_run(two_stages(tmp_path), local_site(tmp_path), None, freeze=True)
    models = run.plan.models
    assert {ref.name for ref in models.values()} == {"embedded"}
    assert len({(ref.path, ref.snapshot, ref.digest) for ref in models.values()}) == 2
    shapes = {level: ref.shape for level, ref in models.items() if ref.shape}
    assert {level: shape.layers for level, shape in shapes.items()} == {"doc": 2, "chunk": 6}
    work = estimate_work(run.plan)
    assert work.flops == sum(paper_flops(shape, work.tokens) for shape in shapes.values())
    counts = Counts(doc=Usage.of_request(100, 0, 1), chunk=Usage.of_request(100, 0, 1))
    stages = run.plan.manifest.stages
    costs = {s.level: stage_report(run.plan, s, counts).flops.exact for s in stages}
    assert costs == {level: flops(shape, counts.doc) for level, shape in shapes.items()}
    assert 0 < costs["doc"] < costs["chunk"]


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ({"dtyp": "float32"}, r"stages\[1\].engine.dtyp: unknown key"),
        ({"options": {"trust_remote_code": True}}, "trust_remote_code: not allowed"),
        ({"options": {"model": "x"}}, r"options.model: not allowed"),
        ({"max_model_len": 32}, "leave no room for a prompt"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, engine: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_manifest(two_stages(tmp_path, engine=engine))


def test_an_option_that_the_engine_does_not_have_is_refused(tmp_path: Path) -> None:
    path = two_stages(tmp_path, engine={"options": {"attn_implementatio": "eager"}})
    site = Site.model_validate({"name": "here", "kind": "local"})
    finding = _engine(load_manifest(path), site)
    assert "'attn_implementatio' is unknown to transformers" in finding.result


@pytest.mark.parametrize(
    ("model", "own", "engines"),
    [
        ("walk", {}, [("walk", "auto")]),
        ("walk", {"engine": OWN}, [("walk", "auto"), ("walk", "float32")]),
        ("embedded", {}, [("verdicts", "auto"), ("embedded", "auto")]),
    ],
)
def test_stages_with_other_models_or_settings_have_other_engines(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    own: dict[str, Any],
    engines: list[tuple[str, str]],
) -> None:
    import proxhpc.refine.refiner as module

    if model == "walk":  # one model for both levels
        model = str(save_walk(tmp_path / model))
        refiner_file = {"version": 1, "prompt": "walk", "doc": {}, "chunk": {}}
        Path(model, NAME).write_text(json.dumps(refiner_file))
    made: list[tuple[ModelRef, EngineOptions]] = []
    make = module.make_engine

    async def record(options: EngineOptions, model: ModelRef, **keywords: Any) -> Engine:
        made.append((model, options))
        return await make(options, model, **keywords)

    monkeypatch.setattr(module, "make_engine", record)
    loaded: Manifest = load_manifest(two_stages(tmp_path, model, **own))
    models = find_models(loaded)

    async def work() -> None:
        refiner = await open_refiner(freeze_manifest(loaded, models), models)
        await refiner.close()

    asyncio.run(work())
    assert [(model.path.name, options.dtype) for model, options in made] == engines
    shares = {round(options.gpu_memory_utilization * len(made), 9) for _, options in made}
    assert shares == {0.9}
