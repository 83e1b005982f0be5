"""A real small Llama on a real Slurm: it writes programs, and FLOPs are counted exactly."""

import json
import struct
from math import prod
from pathlib import Path

import pytest
import yaml

from proxhpc.run.ledger import Call, Row
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from runs import check_balance, manifest, rows_of, write_jsonl
from slurm_cluster import SlurmCluster
from test_slurm_run import finished, launch
from test_walk_stage import programs, refined
from tiny_models import save_walk

DOCUMENTS = 16
MAX_NEW = 12
REFINER = {"version": 1, "prompt": "walk", "doc": {"bias": -2.0}, "chunk": {"bias": 0.5}}


def pages() -> list[dict[str, str]]:
    """Short pages with navigation around a few sentences, which differ in more than numbers."""
    return [
        {
            "id": f"page-{n}",
            "text": f"Home | Shop {chr(65 + n)} | Cart ({n})\n"
            f"The {n}th lighthouse on the coast was built of grey stone.\n"
            f"Its lamp could be seen from {n + 10} miles away.\nClick here to subscribe!\n"
            f"Today a keeper still lives in it with {n % 5} cats.",
        }
        for n in range(DOCUMENTS)
    ]


def matmul_parameters(model: Path) -> tuple[int, dict[str, int]]:
    """Number of weights between embedding and head, from the weights' file."""
    config = json.loads((model / "config.json").read_text())
    body = 0
    for path in model.glob("*.safetensors"):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        for name, tensor in header.items():
            if name.endswith("proj.weight"):
                body += prod(tensor["shape"])
    return body, config


def by_hand(call: Call, body: int, config: dict[str, int]) -> int:
    """FLOPs of one request, token by token, without drafts."""
    width = config["num_attention_heads"] * (
        config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    )
    total = 0
    last = call.prompt + max(call.new - 1, 0)
    for position in range(call.cached, last):
        total += 2 * body + 4 * config["num_hidden_layers"] * width * (position + 1)
    return total + 2 * config["hidden_size"] * config["vocab_size"] * call.new


def run_engine(
    cluster: SlurmCluster, tmp_path: Path, stage: dict[str, object], engine: dict[str, object]
) -> list[Row]:
    """Refine the pages; check counts, ledger and report; return the rows."""
    source = write_jsonl(tmp_path / "pages.jsonl.zst", pages())
    path = manifest(
        tmp_path,
        [source],
        stages=[{"level": "doc"} | stage, {"level": "chunk", "window_tokens": 400} | stage],
        engine=engine,
        commit={"documents": 8},
        sharding={"tokens": 500},
    )
    site_file = tmp_path / "site.yaml"
    site = {"name": "test", "kind": "slurm", "workers": 1, "cpus": 2, "time": 15}
    # With another test on this machine, two threads of torch are much slower than one.
    site["setup"] = ["export OMP_NUM_THREADS=1"]
    site_file.write_text(yaml.safe_dump(site))
    run = RunDir(tmp_path / "run")
    launch(cluster, path, str(site_file), run.root)
    cluster.until(finished(run), "the report", timeout=420, seen=lambda: worker_log(run))
    assert check_balance(run)["documents"] == DOCUMENTS

    plan = Plan.load(run)
    assert len(plan.shards) > 1
    rows = rows_of(run, plan)
    assert [row.id for row in rows] == [f"page-{n}" for n in range(DOCUMENTS)]
    assert not [row.reason for row in rows if row.outcome == "quarantined"]
    calls = [call for row in rows for call in (row.doc, *row.windows) if call]
    assert all(call.prompt > 30 and 0 < call.new <= MAX_NEW for call in calls)
    assert any(call.program.strip() for call in calls)
    body, config = matmul_parameters(Path(str(stage["model"])))
    report = json.loads(run.report_json.read_bytes())
    assert report["flops"]["exact"] == sum(by_hand(call, body, config) for call in calls)
    requests = sum(stage["usage"]["requests"] for stage in report["stages"])
    assert requests == len(calls) >= DOCUMENTS
    assert report["execution"]["boot_seconds"] > 0
    return rows


def worker_log(run: RunDir) -> str:
    return "\n".join(path.read_text()[-2000:] for path in sorted(run.logs.rglob("*.err")))


@pytest.mark.timeout(480)
def test_transformers(slurm: SlurmCluster, smollm2: Path, tmp_path: Path) -> None:
    engine = {"name": "transformers", "dtype": "bfloat16", "batch_size": 8}
    stage = {"model": str(smollm2), "prompt": "chat-template", "max_new_tokens": MAX_NEW}
    run_engine(slurm, tmp_path, stage, engine)


@pytest.mark.timeout(480)
def test_vllm(slurm: SlurmCluster, vllm: None, tmp_path: Path) -> None:
    """A model with a refiner.json; it writes the same programs on another engine."""
    model = save_walk(tmp_path / "walk")
    (model / "refiner.json").write_text(json.dumps(REFINER))
    stage: dict[str, object] = {"model": str(model)}
    rows = run_engine(slurm, tmp_path, stage, {"name": "vllm", "dtype": "float32"})
    lines = [page["text"].split("\n") for page in pages()]
    again = programs(refined(model, "transformers", lines))
    pairs = list(zip(programs(rows), again, strict=True))
    assert sum(one == other for one, other in pairs) >= 0.99 * len(pairs)
    finishes = {call.finish for row in rows for call in (row.doc, *row.windows) if call}
    assert finishes == {"stop"}
