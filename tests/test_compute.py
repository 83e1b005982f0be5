"""A run's compute: what was published, sums from ledgers by hand, and what workers say of GPUs."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak
from proxhpc.account.flops import (
    ModelShape,
    Usage,
    cached_flops,
    flops,
    paper_flops,
    tokens_for,
)
from proxhpc.cli.main import main
from proxhpc.report import account, render_account
from proxhpc.run.estimate import counted, predicted_tokens
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.ledger import Call, Row
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from runs import planned
from test_flops import PROX_XS
from test_report import SHAPE, counts, merged, printed_of, summary, with_model

A100 = "NVIDIA A100-SXM4-80GB"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return planned(tmp_path, 10).dir


def says(run: RunDir, name: str = "w1", **more: Any) -> ProgressLog:
    """A worker's word."""
    log = ProgressLog(run, LeaseOwner(name, "node7", 1, "1"), "refine", **more)
    log.write("done")
    return log


def test_the_published_figures(run: RunDir) -> None:
    """ProX, section 3.2 and appendix E.3: XS on 60B raw tokens, of which 19B reach stage 2."""

    with_model(run, ModelShape.from_config(PROX_XS), comparison={"parameters": 709_830_144})
    found = Counts(documents=1, kept=1, tokens_in=60_000_000_000, tokens_chunk=19_000_000_000)
    says(run, counts=found, busy_seconds=192 * 3600.0, device=A100, devices=1)
    told = account(run)
    assert f"{told['flops']['paper_corpus']:.2e}" == "4.95e+19"
    assert told["estimate"]["counted"]["flops"] == told["flops"]["paper_corpus"]
    # 192 A100 hours for 60B tokens are 3.2 a billion, and 87k tokens a second.
    assert told["execution"]["gpus"]["busy_seconds"] / 3600 == 192
    assert round(told["execution"]["tokens_per_worker_second"] / 1000) == 87


def test_training_tokens_that_refining_would_have_paid_for() -> None:
    """Of the same appendix: 62.5B raw tokens, as 12B of the 0.7B model and 5B of the 1.7B one."""

    spent = paper_flops(ModelShape.from_config(PROX_XS), 81_500_000_000)
    assert f"{spent:.2e}" == "5.11e+19"
    # All weights but the input embedding of 32,000 rows.
    assert round(tokens_for(spent, 758_982_144 - 32_000 * 1536) / 1e9, 1) == 12.0
    assert round(tokens_for(spent, 1_741_785_088 - 32_000 * 2048) / 1e9, 1) == 5.1


def test_what_memory_copies_and_the_cache_spared_is_apart(run: RunDir) -> None:
    asked = Call(0, 2, "untouch_doc()", "stop", 100, 40, 5)
    rows = [
        Row("a", 0, 0, "kept", doc=asked, windows=(asked,)),
        Row("b", 0, 9, "kept", doc=asked, windows=(asked._replace(again=True),)),
        Row("c", 0, 18, "kept", windows=(asked._replace(again=True),), flags=("copy",)),
    ]
    total = sum((row.count() for row in rows), Counts())
    one = Usage.of_request(100, 40, 5)
    assert total.doc == one + one
    assert total.chunk == total.chunk_saved == total.chunk_copied == one
    assert total.doc_saved == total.doc_copied == Usage()
    with_model(run)
    says(run, counts=total)
    doc, chunk = account(run)["stages"]
    assert chunk["saved"]["memo"]["flops"] == chunk["saved"]["copies"]["flops"] == flops(SHAPE, one)
    assert doc["saved"]["prefix_cache"] == {
        "tokens": 80, "flops": 2 * cached_flops(SHAPE, one),
    }  # fmt: skip
    assert doc["flops"]["prefill"] + doc["flops"]["decode"] == doc["flops"]["exact"]


def test_what_was_lost_and_done_again(run: RunDir) -> None:
    with_model(run)
    merged(run, summary())
    more = Usage.of_request(50, 0, 3)
    asked = {"doc": counts().doc, "chunk": counts().chunk + more}
    says(run, counts=counts(), asked=asked)
    redone = account(run)["execution"]["redone"]
    assert redone["doc"] == {"usage": Usage().to_dict(), "flops": 0}
    assert redone["chunk"] == {"usage": more.to_dict(), "flops": flops(SHAPE, more)}


def test_utilisation_is_that_of_the_time_at_work(run: RunDir) -> None:
    with_model(run)
    for name in ("w1", "w2"):
        says(run, name, counts=counts(), asked={"doc": counts().doc}, busy_seconds=2.0,
             boot_seconds=7.0, device=A100, devices=2)  # fmt: skip
    gpus = account(run)["execution"]["gpus"]
    assert (gpus["busy_seconds"], gpus["boot_seconds"]) == (8.0, 28.0)
    used = 2 * flops(SHAPE, counts().doc) / (8.0 * 312e12)
    assert gpus["model_flops_utilisation"] == round(used, 6)
    assert gpus["devices"] == [A100]
    says(run, "w3", counts=counts(), busy_seconds=2.0, device="Some GPU", devices=1)
    assert account(run)["execution"]["gpus"]["model_flops_utilisation"] is None


def test_no_device_no_utilisation(run: RunDir) -> None:
    says(run, counts=counts(), busy_seconds=2.0)
    gpus = account(run)["execution"]["gpus"]
    assert (gpus["devices"], gpus["model_flops_utilisation"]) == ([], None)


@pytest.mark.parametrize(
    ("device", "flops"),
    [
        (A100, 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("Tesla V100-SXM2-32GB", 125e12),
        ("NVIDIA A10", None),
        ("NVIDIA L40", 181e12),
        (f"{A100} MIG 1g.10gb", None),
        (None, None),
    ],
)
def test_peaks_by_the_name_of_the_device(device: str | None, flops: float | None) -> None:
    assert peak(device) == flops


def test_estimate_and_truth_are_counted_by_one_rule(run: RunDir) -> None:
    with_model(run)
    plan = Plan.load(run)
    everything = Counts(tokens_in=plan.estimated_tokens, tokens_chunk=plan.estimated_tokens)
    assert counted(plan, everything).flops == predicted_tokens(plan).flops
    assert counted(plan, everything).a100_hours == predicted_tokens(plan).a100_hours
    assert predicted_tokens(plan).documents == 10


def test_an_account_before_the_merge_says_that_it_is_partial(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with_model(run, comparison={"parameters": 10})
    says(run, counts=counts())
    assert main(["flops", str(run.root), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["partial"]
    assert told["tokens"] == {"read": 1000, "written": 600}
    assert told["comparison"]["refined_tokens"] == 600
    assert main(["flops", str(run.root)]) == 0
    assert "so far: not merged yet" in capsys.readouterr().out
    merged(run, summary())
    assert not account(run)["partial"]
    assert account(run)["tokens"]["written"] == 500
    assert "so far" not in printed_of(render_account(account(run)))


def test_plan_shows_what_a_begun_run_has_read(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(run.root), "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["measured"]["documents"] == 0
    says(run, counts=counts())
    assert main(["plan", str(run.root)]) == 0
    assert "measured so far" in capsys.readouterr().out
