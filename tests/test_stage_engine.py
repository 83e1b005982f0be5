"""Engine settings of one stage: merged, checked, frozen, shown, and the engines that they make."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxhpc.doctor.needs import _engine
from proxhpc.engines.base import Engine
from proxhpc.errors import UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.plan.estimate import estimate_run
from proxhpc.plan.view import _rows
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.sections import EngineOptions
from proxhpc.spec.site import Site
from runs import document, local_site, manifest, write_jsonl

OWN = {"dtype": "float32", "options": {"attn_implementation": "eager"}}


def two_stages(folder: Path, **engine: Any) -> Path:
    source = write_jsonl(folder / "in.jsonl", [document(0)])
    stages = [{"level": level, "model": "embedded"} for level in ("doc", "chunk")]
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
    ("own", "dtypes"), [({}, ["auto"]), ({"engine": OWN}, ["auto", "float32"])]
)
def test_stages_with_other_settings_have_other_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: dict[str, Any], dtypes: list[str]
) -> None:
    import proxhpc.refine.refiner as module

    made: list[EngineOptions] = []
    make = module.make_engine

    async def record(options: EngineOptions, *arguments: Any, **keywords: Any) -> Engine:
        made.append(options)
        return await make(options, *arguments, **keywords)

    monkeypatch.setattr(module, "make_engine", record)
    loaded: Manifest = load_manifest(two_stages(tmp_path, **own))
    models = find_models(loaded)

    async def work() -> None:
        refiner = await open_refiner(freeze_manifest(loaded, models), models)
        await refiner.close()

    asyncio.run(work())
    assert [options.dtype for options in made] == dtypes
    shares = {round(options.gpu_memory_utilization * len(dtypes), 9) for options in made}
    assert shares == {0.9}
