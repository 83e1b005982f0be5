"""Refiners of each published family refine documents from end to end, here and on a real Slurm."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxhpc.assemble.merge import merge_run
from proxhpc.cli.main import main
from proxhpc.launch.launch import prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.worker.worker import Assignment, run_worker
from runs import check_balance, local_site, manifest, rows_of, write_jsonl
from slurm_cluster import SlurmCluster
from test_slurm_run import finished, launch, site
from tiny_models import save_parrot

PAGE = """Home | Login

The old bridge was was built of grey stone [edit]
and it crosses the river at the
narrowest place of the whole valley.
Share this page"""
BRIDGE = """The old bridge was built of grey stone
and it crosses the river at the narrowest place of the whole valley."""

LIMITS = {"window_tokens": 1000, "max_new_tokens": 64}
# What a model of each family answers; nothing of it is edited by hand.
FAMILIES = {
    "prox": (
        "prox-llama2",
        """remove_lines(start=0, end=1)
remove_lines(start=5, end=5)
normalize(source_str="was was", target_str="was")
normalize(source_str=" [edit]", target_str="")
normalize(source_str="the\\nnarrowest", target_str="the narrowest")""",
        BRIDGE,
    ),
    "refinex": (
        "refinex",
        """remove_lines(1, 2)
remove_str(3, "was ")
remove_str(3, " [edit]")
remove_lines(start_line=6, end_line=6)""",
        "\n".join(PAGE.split("\n")[2:5]).replace(" [edit]", ""),
    ),
    "ultrax": (
        "ultrax",
        """<think>

</think>

remove_lines(1, 2)
replace_str(3, 'was was', 'was')
replace_str(3, ' [edit]', '')
replace_str(4, 'the\\nnarrowest', 'the narrowest')
remove_lines(6, 9)
add_line(6, 1, 'It is open.')""",
        f"{BRIDGE}\nIt is open.",
    ),
    "rescraper": (
        "rescraper",
        """<edit>
<extract>
rm 1
rm 5
<edit>
sub 2: " [edit]\"""",
        "\n".join(PAGE.split("\n")[1:5]).replace(" [edit]", ""),
    ),
}


@pytest.fixture
def cluster(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    yield slurm
    slurm.reset()


def family(tmp_path: Path, name: str) -> tuple[dict[str, object], str]:
    """The chunk stage of a family on a model that answers in its language, and the right text."""
    prompt, answer, wanted = FAMILIES[name]
    model = save_parrot(tmp_path / name, answer)
    (model / "system.txt").write_text("Clean the page.")
    profile = {"version": 1, "prompt": prompt, "system": {"file": "system.txt"}, "chunk": LIMITS}
    (model / "refiner.json").write_text(json.dumps(profile))
    return {"level": "chunk", "model": str(model)}, wanted


@pytest.mark.parametrize("name", FAMILIES)
def test_a_preview_of_each_family(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage, wanted = family(tmp_path, name)
    source = write_jsonl(tmp_path / "pages.jsonl", [{"id": "a", "text": PAGE}])
    engine = {"name": "transformers", "dtype": "float32"}
    path = manifest(tmp_path, [source], stages=[stage], engine=engine)
    assert main(["refine", str(source), "--manifest", str(path)]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["text"] == wanted


def test_runs_of_all_families(cluster: SlurmCluster, tmp_path: Path) -> None:
    """One of them on a real Slurm, the others in this process."""
    pages = [{"id": f"page-{n}", "text": f"{PAGE} {n}"} for n in range(4)]
    source = write_jsonl(tmp_path / "pages.jsonl.zst", pages)
    for name in FAMILIES:
        folder = tmp_path / name
        folder.mkdir()
        stage, wanted = family(folder, name)
        path = manifest(folder, [source], stages=[stage], engine={"name": "transformers"})
        run = RunDir(folder / "run")
        if name == "ultrax":
            launch(cluster, path, site(folder, workers=1), run.root)
            cluster.until(finished(run), f"the report of {name}", timeout=420)
        else:
            prepare_run(path, local_site(folder), None)
            run_worker(run, Assignment(), lambda _: None)
            merge_run(run)
        assert check_balance(run)["documents"] == len(pages)
        plan = Plan.load(run)
        for row, page in zip(rows_of(run, plan), pages, strict=True):
            text = row.replay(page["text"], plan.manifest.policy, plan.manifest.program_format).text
            assert text == wanted
