"""A run's model work: the paper's figures, sums by hand, and GPU time from heartbeats."""

import errno
import json
from pathlib import Path
from typing import Any

import orjson
import pytest

from proxhpc.account.counts import Counts
from proxhpc.account.devices import peak_flops
from proxhpc.account.flops import (
    ModelShape,
    Usage,
    cached_flops,
    flops,
    paper_flops,
)
from proxhpc.cli.main import main
from proxhpc.outputs import UsageTotals
from proxhpc.report.build import build_report, run_account
from proxhpc.run.estimate import count_work, estimate_work
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.ledger import Call, Row, tally
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from runs import planned
from test_flops import PROX_XS
from test_report import SHAPE, counts, merged, summary, with_model

A100 = "NVIDIA A100-SXM4-80GB"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return planned(tmp_path, 10).dir


def write_heartbeat(run: RunDir, name: str = "w1", **more: Any) -> ProgressLog:
    log = ProgressLog(run, LeaseOwner(name, "node7", 1, "1"), "refine", **more)
    log.write("done")
    return log


def test_the_published_figures(run: RunDir) -> None:
    """ProX, section 3.2 and appendix E.3: XS on 60B raw tokens, of which 19B reach stage 2."""

    with_model(run, ModelShape.from_config(PROX_XS), comparison={"parameters": 709_830_144})
    paper = Counts(documents=1, kept=1, tokens_in=60_000_000_000, tokens_chunk=19_000_000_000)
    write_heartbeat(run, counts=paper, busy_seconds=192 * 3600.0, device=A100, devices=1)
    account = run_account(run)
    assert f"{account.flops.paper_corpus:.2e}" == "4.95e+19"
    assert account.estimate.counted.flops == account.flops.paper_corpus
    # 192 A100 hours for 60B tokens are 3.2 a billion, and 87k tokens a second.
    assert account.execution.gpus.busy_seconds / 3600 == 192
    assert round(account.execution.tokens_per_worker_second / 1000) == 87


def test_the_paper_s_training_tokens_for_the_flops_of_refining() -> None:
    """Of the same appendix: 62.5B raw tokens, as 12B of the 0.7B model and 5B of the 1.7B one."""

    spent = paper_flops(ModelShape.from_config(PROX_XS), 81_500_000_000)
    assert f"{spent:.2e}" == "5.11e+19"
    # All weights but the input embedding of 32,000 rows.
    assert round(spent // (6 * (758_982_144 - 32_000 * 1536)) / 1e9, 1) == 12.0
    assert round(spent // (6 * (1_741_785_088 - 32_000 * 2048)) / 1e9, 1) == 5.1


def test_what_the_memo_and_the_cache_saved_is_counted_apart(run: RunDir) -> None:
    call = Call(0, 2, "untouch_doc()", "stop", 100, 40, 5)
    rows = [
        Row("a", 0, 0, "kept", doc=call, windows=(call,)),
        Row("b", 0, 9, "kept", doc=call, windows=(call._replace(from_memo=True),)),
        Row("c", 0, 18, "kept", windows=(call._replace(from_memo=True),)),
    ]
    total = tally(rows)
    one = Usage.of_request(100, 40, 5)
    assert total.doc == one + one
    assert total.chunk == one
    assert total.chunk_saved == one + one
    assert total.doc_saved == Usage()
    with_model(run)
    write_heartbeat(run, counts=total)
    doc, chunk = run_account(run).stages
    assert chunk.saved.memo.flops == 2 * flops(SHAPE, one)
    cache = doc.saved.prefix_cache
    assert (cache.tokens, cache.flops) == (80, 2 * cached_flops(SHAPE, one))
    assert doc.flops.prefill + doc.flops.decode == doc.flops.exact


def test_work_that_was_lost_and_redone(run: RunDir) -> None:
    with_model(run)
    merged(run, summary())
    more = Usage.of_request(50, 0, 3)
    usage = {"doc": counts().doc, "chunk": counts().chunk + more}
    write_heartbeat(run, counts=counts(), usage=usage)
    redone = build_report(run).execution.redone
    assert (redone["doc"].usage, redone["doc"].flops) == (usage_totals(Usage()), 0)
    assert (redone["chunk"].usage, redone["chunk"].flops) == (
        usage_totals(more), flops(SHAPE, more),
    )  # fmt: skip


def usage_totals(usage: Usage) -> UsageTotals:
    return UsageTotals.model_validate(usage)


def test_utilization_is_that_of_the_time_at_work(run: RunDir) -> None:
    with_model(run)
    for name in ("w1", "w2"):
        write_heartbeat(run, name, counts=counts(), usage={"doc": counts().doc},
                        busy_seconds=2.0, boot_seconds=7.0, device=A100, devices=2)  # fmt: skip
    gpus = run_account(run).execution.gpus
    assert (gpus.busy_seconds, gpus.boot_seconds) == (8.0, 28.0)
    used = 2 * flops(SHAPE, counts().doc) / (8.0 * 312e12)
    assert gpus.model_flops_utilization == round(used, 6)
    assert gpus.devices == (A100,)
    write_heartbeat(run, "w3", counts=counts(), busy_seconds=2.0, device="Some GPU", devices=1)
    assert run_account(run).execution.gpus.model_flops_utilization is None


def test_no_device_no_utilization(run: RunDir) -> None:
    write_heartbeat(run, counts=counts(), busy_seconds=2.0)
    gpus = run_account(run).execution.gpus
    assert (gpus.devices, gpus.model_flops_utilization) == ((), None)


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
def test_peak_flops_by_the_name_of_the_device(device: str | None, flops: float | None) -> None:
    assert peak_flops(device) == flops


def test_estimate_and_counts_follow_the_same_rule(run: RunDir) -> None:
    with_model(run)
    plan = Plan.load(run)
    everything = Counts(tokens_in=plan.estimated_tokens, tokens_chunk=plan.estimated_tokens)
    assert count_work(plan, everything).flops == estimate_work(plan).flops
    assert estimate_work(plan).documents == 10


def test_report_prints_the_account_so_far_of_a_run_that_is_not_merged(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    with_model(run, comparison={"parameters": 10})
    write_heartbeat(run, counts=counts())
    assert main(["report", str(run.root), "--json"]) == 0
    account = json.loads(capsys.readouterr().out)
    assert account == json.loads(run_account(run).to_json())
    assert account["format"] == "proxhpc.account/1"
    assert account["tokens"] == {
        "read": 1000, "refined": 600, "written": None, "written_ratio": None,
    }  # fmt: skip
    assert (
        account["comparison"]["refined_flops"] == 600 * account["comparison"]["raw_flops"] // 1000
    )
    assert main(["report", str(run.root)]) == 0
    out = capsys.readouterr().out
    assert "So far, about" in out
    assert f"proxhpc status {run.root}" in out
    page = run.report_html.read_text()
    assert "So far, about" in page
    assert "Duplicates" not in page
    assert not run.report_json.exists(), "it would mean that the run is finished"


def test_the_account_of_a_run_in_a_read_only_folder_is_printed(
    run: RunDir, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    write_heartbeat(run, counts=counts())
    monkeypatch.setattr(Path, "mkdir", refuse)
    assert main(["report", str(run.root)]) == 0
    shown = capsys.readouterr()
    assert "So far, about" in shown.out
    assert "the report was not rewritten" in shown.err


def test_report_writes_and_prints_the_report_of_a_merged_run(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    merged(run, summary())
    assert main(["report", str(run.root), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(run.report_json.read_bytes())
    assert report["format"] == "proxhpc.report/1"
    assert report["tokens"]["written"] == 500
    assert "in the corpus" in run.report_html.read_text()
    assert main(["report", str(run.root)]) == 0
    out = capsys.readouterr().out
    assert "So far" not in out
    assert str(run.corpus) in out


def test_plan_shows_what_a_started_run_has_read(
    run: RunDir, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(run.root), "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["measured_work"]["documents"] == 0
    write_heartbeat(run, counts=counts())
    assert main(["plan", str(run.root)]) == 0
    assert "measured so far" in capsys.readouterr().out
