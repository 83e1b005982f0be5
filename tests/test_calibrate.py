"""`plan --calibrate`, and what it says of time, tokens, disk space and inodes against real runs."""

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml

from corpus_files import pack
from proxhpc.account.counts import Counts
from proxhpc.account.devices import named_gpu
from proxhpc.account.flops import ModelShape
from proxhpc.account.quantity import rounded
from proxhpc.assemble.match import round_names
from proxhpc.assemble.phases import MergePhaseName, run_share
from proxhpc.cli.main import main
from proxhpc.corpus import readers
from proxhpc.corpus.document import Document
from proxhpc.corpus.parquet import open_parquet
from proxhpc.errors import RetryError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.plan import entry, sample
from proxhpc.plan.calibrate import calibrate, calibrate_task
from proxhpc.plan.estimate import estimate_run
from proxhpc.plan.sample import PLACES, draw_places
from proxhpc.plan.view import cost_line
from proxhpc.report.build import run_account
from proxhpc.run.calibration import CalibratedPlace, Calibration, calibration_key, load_calibration
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import Plan
from proxhpc.spec.site import Site, load_site
from proxhpc.worker.worker import Assignment, run_worker
from runs import document, local_site, manifest, many_documents, planned, write_jsonl
from test_report_words import heartbeat

A100 = "NVIDIA A100-SXM4-80GB"


def read_ids(plan: Plan, documents: int, seed: int = 0) -> list[str]:
    places = draw_places(plan, documents, seed)
    return [getattr(record, "id", "") for place in places for record in place.records]


def test_a_sample_has_different_documents_of_all_files_and_depends_on_the_seed(
    tmp_path: Path,
) -> None:
    plan = planned(tmp_path, 60).plan
    ids = read_ids(plan, 30)
    assert len(set(ids)) == len(ids) == 30
    assert {int(name[4:]) < 20 for name in ids} == {True, False}, "both files"
    assert read_ids(plan, 30) == ids
    assert read_ids(plan, 30, seed=1) != ids
    assert len(set(read_ids(plan, 60))) > 50, "about all of them"
    assert len(set(read_ids(plan, 600))) == 60, "not more than there are"


def test_a_sample_larger_than_the_corpus_ends_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, 60).plan
    read_place = sample._read_place
    draws: list[int] = []

    def counted(*arguments: Any) -> sample.Place:
        draws.append(1)
        return read_place(*arguments)

    monkeypatch.setattr(sample, "_read_place", counted)
    assert len(set(read_ids(plan, 10_000))) > 55
    assert len(draws) < 1500


def test_files_of_one_record_and_empty_files_are_sampled(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / f"{n}.jsonl", [document(n)]) for n in range(40)]
    paths.append(write_jsonl(tmp_path / "empty.jsonl", []))
    plan = prepare_run(manifest(tmp_path, paths), None, None, freeze=False).plan
    assert len(set(read_ids(plan, 20))) == 20


def test_long_documents_are_not_drawn_more_often(tmp_path: Path) -> None:
    chooser = random.Random(1)
    rows = [{"id": "long" if chooser.random() < 0.5 else "short"} for _ in range(2000)]
    texts = {"long": "word " * 200, "short": "word"}
    path = write_jsonl(tmp_path / "in.jsonl", [row | {"text": texts[row["id"]]} for row in rows])
    plan = prepare_run(manifest(tmp_path, [path]), None, None, freeze=False).plan
    drawn = Counter(name for seed in range(20) for name in read_ids(plan, PLACES, seed))
    assert 0.44 < drawn["long"] / drawn.total() < 0.56


@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.zst", "parquet"])
def test_places_have_the_size_of_their_records_in_the_unit_of_the_plan(
    tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"in.{suffix}"
    rows = [document(n) for n in range(300)]
    if suffix == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=50)
        open_parquet(path).close()
    else:
        write_jsonl(path, rows)
    plan = prepare_run(manifest(tmp_path, [path]), None, None, freeze=False).plan
    places = [*draw_places(plan, 150, 0)]
    records = sum(len(place.records) for place in places)
    assert records == 150
    assert len(places) <= 150 // 3 + 20, "groups of three, fewer where they meet"
    size = sum(place.bytes for place in places)
    assert size == pytest.approx(plan.estimated_bytes * records / 300, rel=0.02)


def calibrated(run: Run, documents: int) -> Calibration:
    """Calibrate in this process."""
    run.dir.calibration.mkdir(parents=True)
    run.dir.calibration_plan.write_text(json.dumps(run.plan.to_dict()))
    calibrate_task(str(run.dir.root), documents, "here", 2)
    found = load_calibration(run.dir, run.plan)
    assert found is not None
    return found


def unfrozen(folder: Path, paths: list[Path], **sections: object) -> Run:
    path = manifest(folder, paths, **sections)
    return prepare_run(path, local_site(folder, workers=1), None, freeze=False)


def varied_documents(folder: Path, count: int) -> list[Path]:
    """Write documents of random sentences with a menu; one in twenty is there twice.

    The words are as frequent as in a language, so a large file compresses about as well as a
    sample.
    """
    chooser = random.Random(0)
    letters = "eeeettaaooiinnsshhrrdlucmfwypvbgkjqxz"
    words = ["".join(chooser.choices(letters, k=chooser.randrange(2, 10))) for _ in range(20_000)]
    words[:8] = ["the", "of", "and", "to", "that", "with", "have", "be"]  # or the rules drop it
    weights = [*accumulate(1 / (rank + 8) for rank in range(1, len(words) + 1))]

    def sentence() -> str:
        chosen = chooser.choices(words, cum_weights=weights, k=chooser.randrange(8, 20))
        return " ".join(chosen).capitalize() + "."

    texts = [
        "Home | About | Contact\n" + "\n".join(sentence() for _ in range(chooser.randrange(6, 40)))
        for _ in range(count)
    ]
    texts[::20] = texts[1::20]
    rows = [{"id": str(n), "text": text} for n, text in enumerate(texts)]
    return [
        write_jsonl(folder / "a.jsonl.zst", rows[::2]),
        write_jsonl(folder / "b.jsonl", rows[1::2]),
    ]


def used(folder: Path) -> tuple[int, int]:
    """Bytes of the files in a folder; files and folders."""
    paths = [folder, *folder.rglob("*")]
    sizes = [path.stat().st_size for path in paths if path.is_file()]
    return sum(sizes), len(paths)


@pytest.mark.parametrize("near", [True, False])
def test_space_of_each_phase_is_that_of_a_real_run(tmp_path: Path, near: bool) -> None:
    sections = {
        "sharding": {"tokens": 50_000},
        "commit": {"documents": 200},
        "dedup": {"near": {} if near else None},
        "output": {"shuffle": near},
    }
    run = unfrozen(tmp_path, varied_documents(tmp_path, 1000), **sections)
    result = calibrated(run, 100)
    expected = {phase.phase: phase for phase in estimate_run(run.plan, run.site, run.dir).space}
    run = prepare_run(tmp_path / "manifest.yaml", str(tmp_path / "site.yaml"), None)
    assert load_calibration(run.dir, run.plan) == result, "of the frozen plan, too"
    for path in (*run.dir.calibration.iterdir(), run.dir.calibration):
        path.unlink() if path.is_file() else path.rmdir()

    def check(phase: str, *earlier: tuple[int, int]) -> None:
        size, inodes = (max(values) for values in zip(used(run.dir.root), *earlier, strict=True))
        assert 1 / 1.15 < expected[phase].bytes / size < 1.15, (phase, expected[phase], size)
        # Of jobs, which this test has not, there are logs.
        assert inodes < expected[phase].inodes < 1.5 * (inodes + 16), (phase, inodes)

    assert result.total("documents_kept") > 60
    run_worker(run.dir, Assignment(), lambda job: True)
    check("refine")
    phases: tuple[MergePhaseName, ...] = ("sketch", "match", "scatter", "write")
    for phase in phases:
        in_rounds = []
        for name in ("start", *round_names(run.plan)) if phase == "match" else ():
            run_share(run.dir, name, (0, 1))
            in_rounds.append(used(run.dir.root))
        run_share(run.dir, phase, (0, 1))
        if phase in expected:
            check(phase, *in_rounds)


def test_calibration_is_stored_shown_and_used_by_launch_and_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = manifest(tmp_path, many_documents(tmp_path, 1), sharding={"tokens": 200_000})
    site = local_site(tmp_path, workers=1)
    assert main(["plan", str(path), "--site", site, "--calibrate", "150", "--json"]) == 0
    estimate = json.loads(capsys.readouterr().out)
    assert estimate["cost"]["basis"] == "calibration"
    assert estimate["cost"]["documents"] == 150
    assert estimate["cost"]["gpu_hours"] is None
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["calibration"]
    assert main(["plan", str(path), "--site", site]) == 0
    shown = capsys.readouterr().out
    assert "core time" in shown
    assert "95 % interval" in shown
    assert main(["launch", str(path), "--site", site]) == 0
    assert "refining takes about" in capsys.readouterr().out
    assert main(["launch", str(path), "--site", site]) == 0
    assert "refining takes" not in capsys.readouterr().out, "it is finished"
    report = json.loads((tmp_path / "run" / "report" / "report.json").read_bytes())
    counted = report["estimate"]["counted"]["tokens"]
    assert report["estimate"]["estimated"]["tokens"] == pytest.approx(counted, rel=0.2)
    cost = report["execution"]["cost"]
    assert cost["estimated_core_hours"] == pytest.approx(estimate["cost"]["core_hours"], abs=1e-6)
    assert cost["refining_core_hours"] > 0
    assert "core time of refining" in (tmp_path / "run" / "report" / "report.html").read_text()
    kept = estimate["kept"]
    tokens = report["tokens"]
    documents = report["documents"]
    assert documents["read"] == 1000
    assert kept["documents"] == pytest.approx(documents["kept"] + documents["edited"], rel=0.15)
    real = tokens["refined"] / tokens["read"]
    assert kept["share"]["low"] - 0.02 < real < kept["share"]["high"] + 0.02


def test_another_manifest_needs_another_calibration(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(30)])]
    run = unfrozen(tmp_path, paths)
    calibrated(run, 10)
    assert load_calibration(run.dir, unfrozen(tmp_path, paths).plan) is not None
    same = unfrozen(tmp_path, paths, output={"shuffle": True}, dedup={"near": {}})
    assert load_calibration(run.dir, same.plan) is not None, "no document is refined otherwise"
    other = unfrozen(tmp_path, paths, policy={"max_removed_share": 0.1})
    assert load_calibration(run.dir, other.plan) is None
    assert estimate_run(other.plan, other.site, other.dir).cost.basis is None


def test_a_damaged_calibration_is_ignored_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(3)])]
    path, site = manifest(tmp_path, paths), local_site(tmp_path)
    result = prepare_run(path, site, None, freeze=False).dir.calibration_result
    result.parent.mkdir(parents=True)
    result.write_text("{")
    for command in ("plan", "launch"):
        assert main([command, str(path), "--site", site]) == 0
        shown = capsys.readouterr().out.replace("\n", "")
        assert f"{result} is damaged and ignored" in shown


def test_a_calibration_that_fails_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(3)])]
    path, site = manifest(tmp_path, paths), local_site(tmp_path)
    assert main(["plan", str(path), "--site", site, "--calibrate", "0"]) == 2
    assert "--calibrate 0: it must be 1 or more" in capsys.readouterr().err
    run = prepare_run(path, site, None, freeze=False)
    log: list[str] = []
    paths[0].unlink()
    with pytest.raises(RetryError, match=r"calibration failed: .*no such input file") as caught:
        calibrate(run.dir, run.plan, run.site, 5, log.append)
    assert "its log is " in caught.value.hint
    assert log == ["refining 5 documents on this machine"]
    write_jsonl(paths[0], [document(1)])
    (tmp_path / "run" / "other").write_text("")
    assert main(["plan", str(path), "--site", site, "--calibrate", "2"]) == 2
    assert "is not empty" in capsys.readouterr().err


def with_model(plan: Plan) -> Plan:
    shape = ModelShape(1024, 24, 16, 16, vocab=32000, active=350_000_000, parameters=420_000_000)
    ref = ModelRef.from_dict(
        {"name": "org/m", "path": "/m", "max_model_len": 2048, "snapshot": "a",
         "stop_ids": [], "shape": asdict(shape), "refiner": None}
    )  # fmt: skip
    inputs = tuple(replace(info, estimated_bytes=10**12) for info in plan.inputs)
    return replace(plan, models={"chunk": ref}, inputs=inputs)


def slurm_site(folder: Path, **more: object) -> Site:
    path = folder / "slurm.yaml"
    path.write_text(yaml.safe_dump({"name": "s", "kind": "slurm", "workers": 8} | more))
    return load_site(path)


def test_without_a_calibration_flops_give_hours_of_the_sites_own_gpu(tmp_path: Path) -> None:
    run = planned(tmp_path)
    plan = with_model(run.plan)
    plan = replace(plan, shards=plan.shards * 100)
    site = slurm_site(tmp_path, gres="gpu:h100:2", price_per_gpu_hour="2 EUR")
    cost = estimate_run(plan, site, run.dir).cost
    work = estimate_run(plan, site, run.dir).estimated_work
    assert work.flops is not None
    hours = work.flops / (989.4e12 * 0.4 * 3600)
    assert (cost.basis, cost.device, cost.device_is_assumed) == ("flops", "H100", False)
    assert cost.gpu_hours == pytest.approx(hours)
    assert cost.days == pytest.approx(hours / (8 * 2 * 24))
    assert cost.price == f"{2 * hours:.2f} EUR"
    whole = slurm_site(tmp_path, gres="gpu:h100:4", tasks_per_node=4)
    assert estimate_run(plan, whole, run.dir).cost.days == pytest.approx(hours / (8 * 24))
    unknown = slurm_site(tmp_path, gpus=1, price_per_gpu_hour="2 EUR")
    estimate = estimate_run(plan, unknown, run.dir)
    assert (estimate.cost.device, estimate.cost.device_is_assumed) == ("A100", True)
    assert (estimate.cost.days, estimate.cost.price) == (None, None)
    assert "A100-hours" in cost_line(estimate)
    assert "worker" not in cost_line(estimate)


@pytest.mark.parametrize(
    ("options", "gpu"),
    [
        (["gpu:a100:4"], "A100"),
        (["gpu:nvidia_h200_nvl:1"], "H200 NVL"),
        (["gpu:h200:1", "h200"], "H200"),
        (["gpu:rtx_a6000:1"], "RTX A6000"),
        (["gpu:gh200:1"], "GH200"),
        (["gpu:l40s:1"], "L40S"),
        (["NVIDIA A100-SXM4-80GB"], "A100"),
        (["NVIDIA H200", "NVIDIA H200"], "H200"),
        (["gpu:2", "a100|h100"], None),
        (["gpu:2"], None),
        ([], None),
    ],
)
def test_a_gpu_is_found_in_the_options_of_a_site(options: list[str], gpu: str | None) -> None:
    assert named_gpu(options) == gpu


@pytest.mark.parametrize(
    ("number", "text"),
    [(2123.4, "2,100"), (5.49, "5.5"), (0.0312, "0.031"), (0.0, "0"), (99.7, "100")],
)
def test_estimates_are_rounded(number: float, text: str) -> None:
    assert rounded(number) == text


def test_days_and_hours_are_in_one_sentence(tmp_path: Path) -> None:
    run = planned(tmp_path)
    estimate = estimate_run(run.plan, run.site, run.dir)
    measured = estimate.cost.model_copy(
        update={"basis": "calibration", "device": "NVIDIA H200", "gpu_hours": 2123.4, "days": 5.52}
    )
    estimate = estimate.model_copy(update={"cost": measured, "workers": 16})
    assert cost_line(estimate) == "about 2,100 H200-hours, 5.5 days with 16 workers"
    short = measured.model_copy(update={"gpu_hours": 1e-4, "days": 1e-6})
    estimate = estimate.model_copy(update={"cost": short, "workers": 4})
    assert cost_line(estimate) == "under 1 s of H200 time, under 1 s with 4 workers"


def test_memory_grows_with_processes(tmp_path: Path) -> None:
    run = planned(tmp_path)
    plan = with_model(run.plan)
    one, four = (
        estimate_run(plan, slurm_site(tmp_path, cpus=cpus), run.dir).merge_memory_bytes
        for cpus in (1, 4)
    )
    assert one < four


def test_a_disk_that_is_too_small_is_noted(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(3)])]
    run = unfrozen(tmp_path, paths)
    assert estimate_run(run.plan, run.site, run.dir).notes == ()
    huge = tuple(replace(info, estimated_bytes=10**20) for info in run.plan.inputs)
    [note, *_] = estimate_run(replace(run.plan, inputs=huge), run.site, run.dir).notes
    assert note.startswith(f"{tmp_path} has ")
    assert "free bytes; the run needs about " in note


def test_a_plan_without_a_calibration_writes_nothing(tmp_path: Path) -> None:
    paths = [write_jsonl(tmp_path / "in.jsonl", [document(n) for n in range(3)])]
    assert main(["plan", str(manifest(tmp_path, paths)), "--site", local_site(tmp_path)]) == 0
    assert not os.path.lexists(tmp_path / "run")


def test_times_hold_for_the_site_that_was_measured(tmp_path: Path) -> None:
    run = unfrozen(tmp_path, [write_jsonl(tmp_path / "in.jsonl", [document(1), document(2)])])
    calibrated(run, 2)
    assert estimate_run(run.plan, run.site, run.dir).cost.basis == "calibration"
    elsewhere = estimate_run(run.plan, slurm_site(tmp_path, gpus=1), run.dir)
    assert elsewhere.cost.basis is None
    assert elsewhere.kept is not None, "the same tokens are kept everywhere"


def test_the_report_compares_gpu_hours_with_a_calibration_on_the_same_gpu(tmp_path: Path) -> None:
    run = planned(tmp_path, 10)
    on_gpu = Calibration(
        key=calibration_key(run.plan),
        places=(
            CalibratedPlace(documents=1, documents_kept=1, bytes=100, tokens=9, tokens_kept=9),
        ),
        device=A100,
        devices=2,
        site="here",
        cores=4,
        host="n1",
        seconds=5.0,
        boot_seconds=30.0,
        usage={},
        ledger_bytes=1,
        corpus_bytes=1,
        corpus_bytes_raw=1,
    )
    run.dir.calibration.mkdir()
    run.dir.calibration_result.write_text(on_gpu.to_json())
    done = Counts(documents=5, kept=5, bytes_in=run.plan.estimated_bytes // 2)
    heartbeat(run.dir, "w1", counts=done, device=A100, devices=2)
    heartbeat(run.dir, "w2", device=A100, devices=2)
    cost = run_account(run.dir).execution.cost
    seconds = run.plan.estimated_bytes / 2 / 100 * 5 + 2 * 30
    assert cost.estimated_gpu_hours == pytest.approx(2 * seconds / 3600, rel=1e-3)
    assert cost.estimated_core_hours == pytest.approx(4 * seconds / 3600, rel=1e-3)
    heartbeat(run.dir, "w3", device="NVIDIA H200", devices=2)
    assert run_account(run.dir).execution.cost.estimated_gpu_hours is None


@pytest.mark.parametrize("how", ["zstd, 9 pieces", "gzip, 1 piece", "gzip, 9 pieces"])
def test_a_place_in_a_large_compressed_file_is_entered_near_it(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry, "_LARGE", 1)
    monkeypatch.setattr(entry, "_STEP", 512 << 10)
    chooser = random.Random(7)
    words = ["".join(chooser.choices("abcdefghij", k=chooser.randint(2, 9))) for _ in range(3000)]
    texts = [" ".join(chooser.choices(words, k=300)) for _ in range(4000)]
    lines = [json.dumps({"id": str(n), "text": text}).encode() for n, text in enumerate(texts)]
    data = b"\n".join(lines)
    kind, pieces = how.split(",")[0], int(how.split()[1])
    path = tmp_path / f"a.jsonl.{'zst' if kind == 'zstd' else 'gz'}"
    path.write_bytes(pack(data, kind, pieces))
    plan = prepare_run(manifest(tmp_path, [path]), None, None, freeze=False).plan
    starts, decompressed = [*accumulate((len(line) + 1 for line in lines), initial=0)], [0]
    read_chunks = readers.read_chunks

    def counted(*arguments: Any) -> Iterator[bytes]:
        for chunk in read_chunks(*arguments):
            decompressed[0] += len(chunk)
            yield chunk

    monkeypatch.setattr(readers, "read_chunks", counted)
    for number in range(1, 9):
        position = len(data) * number // 9
        place = sample._read_place(plan, 0, position, 3, set())
        found = [record for record in place.records if isinstance(record, Document)]
        first = int(found[0].id)
        assert [record.text for record in found] == texts[first : first + 3]
        assert abs(starts[first] - position) < 0.12 * len(data)
    assert decompressed[0] < 0.25 * 8 * len(data), "without this, half of the file for each place"
