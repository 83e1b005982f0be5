"""A prove directory from a run to the verdict, with models of a few thousand parameters."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml

from proxhpc.account.flops import ModelShape
from proxhpc.assemble.merge import merge_run
from proxhpc.cluster import tasks
from proxhpc.corpus.hosts import split_of
from proxhpc.errors import StopError, UserError
from proxhpc.launch.launch import prepare_run, this_machine
from proxhpc.prove.arms import arm_rows, arm_source, plan_arm_run
from proxhpc.prove.layout import ArmReceipt, ProveDir, TrainingReceipt
from proxhpc.prove.plan import ProvePlan, open_prove
from proxhpc.prove.run import prepare_task, train_task
from proxhpc.prove.tokens import TrainingPool
from proxhpc.prove.train import arm_tokens, training_flops_of
from proxhpc.prove.verdict import write_verdict
from proxhpc.run.paths import RunDir
from proxhpc.spec.load import load_yaml
from proxhpc.spec.prove import Arm, Prove, Training, training_presets
from proxhpc.train.token_file import TokenFile
from runs import local_site, manifest, write_jsonl

GOLD = Path(__file__).parents[1] / "manifests" / "demo" / "gold.jsonl"
MODEL = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
TRAINING = {"model": MODEL, "vocabulary": 512, "tokens": 4100, "context": 64, "batch": 4}
TRAINING |= {"average": 0.9, "precision": "float32", "warmup": 2}
STEPS = 16


def documents(count: int) -> list[dict[str, Any]]:
    """Pages of real sentences between lines that the rules remove; three pages of a host."""
    pages = [orjson.loads(line)["text_gold"] for line in GOLD.read_bytes().splitlines()]
    lines = [line for page in pages for line in page.split("\n")]
    chooser = random.Random(0)
    frame = "Home | About | Contact"
    return [
        {
            "id": f"page-{n}",
            "url": f"http://host{n // 3}.org/{n}",
            "text": "\n".join([frame, *chooser.choices(lines, k=chooser.randrange(8, 30)), frame]),
        }
        for n in range(count)
    ]


def merged_run(folder: Path) -> RunDir:
    """A run that the rules refined, and beside it the files of its held-out sets."""
    rows = documents(90)
    corpus = write_jsonl(folder / "pages.jsonl", rows)
    # Hosts 20 to 29 are held out; host 20 is also in the corpus of the run.
    write_jsonl(folder / "gold.jsonl", rows[60:])
    write_jsonl(folder / "noise.jsonl", rows[75:81])
    path = manifest(folder, [corpus], stages=[{"level": "chunk"}])
    planned = prepare_run(path, local_site(folder), None)
    tasks.refine_task(str(planned.dir.root), 0, 1)
    merge_run(planned.dir)
    return planned.dir


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return merged_run(tmp_path_factory.mktemp("prove"))


def section(run: RunDir, **keys: Any) -> Prove:
    """A section with paths in the folder of the run."""
    folder = run.root.parent
    data: dict[str, Any] = {
        "arms": [{"name": "raw", "policy": "none"}, {"name": "refined"}],
        "training": TRAINING,
        "seeds": [0, 1],
        "held_out": [
            {"name": "gold", "paths": str(folder / "gold.jsonl")},
            {"name": "noise", "paths": str(folder / "noise.jsonl"), "control": True},
        ],
    }
    return Prove.model_validate(data | keys)


def prepared(run: RunDir, root: Path, **keys: Any) -> tuple[ProveDir, ProvePlan]:
    """A prove directory with its token files."""
    folder = ProveDir(root)
    plan = open_prove(folder, run, section(run, **keys))
    prepare_task(str(root), 1)
    return folder, plan


def receipts(folder: ProveDir, plan: ProvePlan) -> dict[tuple[str, int], TrainingReceipt]:
    return {
        each: TrainingReceipt.model_validate_json(folder.training_receipt(*each).read_bytes())
        for each in plan.trainings
    }


@pytest.fixture(scope="module")
def finished(run: RunDir, tmp_path_factory: pytest.TempPathFactory) -> tuple[ProveDir, ProvePlan]:
    """A prove directory with a verdict; no test changes it."""
    folder, plan = prepared(run, tmp_path_factory.mktemp("finished"))
    train_task(str(folder.root), 0, 1)
    write_verdict(folder, plan)
    return folder, plan


def test_arms_are_trained_on_the_same_number_of_tokens(
    finished: tuple[ProveDir, ProvePlan],
) -> None:
    folder, plan = finished
    done = receipts(folder, plan)
    assert {each.tokens for each in done.values()} == {STEPS * 4 * 64}
    assert {each.steps for each in done.values()} == {STEPS}
    assert len({each.digest for each in done.values()}) == 4
    shape = ModelShape.from_config(MODEL | {"vocab_size": 512, "tie_word_embeddings": False})
    # By hand: two FLOPs a weight and token, four a head, its size and pair; times three.
    attention = 4 * 32 * (64 * 65 // 2)
    one = 64 * 2 * (32 * (32 + 16 + 16 + 32) + 3 * 32 * 64 + 32 * 512) + attention
    assert done["raw", 0].flops == 3 * one * STEPS * 4
    assert done["raw", 0].parameters == shape.parameters
    assert [each.step for each in done["raw", 0].milestones] == [4, 8, 12]
    assert not done["refined", 0].milestones


def test_the_verdict_is_a_function_of_the_files(
    finished: tuple[ProveDir, ProvePlan], tmp_path: Path
) -> None:
    folder, plan = finished
    copy = ProveDir(tmp_path / "copy")
    shutil.copytree(folder.root, copy.root)
    copy.verdict.unlink()
    write_verdict(copy, plan)
    assert copy.verdict.read_bytes() == folder.verdict.read_bytes()
    assert copy.page.read_bytes() == folder.page.read_bytes()
    comparison = json.loads(folder.verdict.read_bytes())
    assert {each["arm"] for each in comparison["comparisons"]} == {"refined"}


def test_an_arm_has_the_documents_of_the_others_in_the_same_order(
    finished: tuple[ProveDir, ProvePlan],
) -> None:
    folder, _ = finished
    orders = []
    for arm in ("raw", "refined"):
        rows = np.load(folder.arm_documents(arm))
        tokens = TokenFile(folder.arm_tokens(arm), 64, 1)
        tokens.read([0])
        begin = {int(row["start"]): int(row["key"]) for row in rows}
        orders.append([begin[int(start)] for start in tokens._starts])
    raw, refined = orders
    assert sorted(raw) != raw
    assert [key for key in raw if key in set(refined)] == refined


def test_no_document_of_a_held_out_host_is_trained_on(
    run: RunDir, finished: tuple[ProveDir, ProvePlan]
) -> None:
    folder, plan = finished
    kept = [d.id for d in TrainingPool(folder, plan).documents(plan.arms[0])]
    assert kept == [f"page-{n}" for n in range(60)]
    receipt = ArmReceipt.model_validate_json(folder.arm_receipt("raw").read_bytes())
    assert receipt.documents == 60
    assert receipt.left_out == {"held_out_host": 30}
    assert receipt.tokens == len(np.load(folder.arm_tokens("raw")))


def test_hosts_that_a_refiner_learnt_from_can_be_left_out(run: RunDir, tmp_path: Path) -> None:
    folder, plan = prepared(run, tmp_path / "out", hosts="validation", training=TRAINING)
    kept = [d.id for d in TrainingPool(folder, plan).documents(plan.arms[0])]
    hosts = [f"host{n // 3}.org" for n in range(60)]
    expected = [f"page-{n}" for n in range(60) if split_of(hosts[n], "") == "validation"]
    assert 0 < len(kept) < 60
    assert kept == expected


def test_a_share_of_an_arm_is_part_of_every_larger_share(
    finished: tuple[ProveDir, ProvePlan],
) -> None:
    folder, plan = finished
    pool = TrainingPool(folder, plan)
    texts = {arm.name: {d.id: d.text for d in pool.documents(arm)} for arm in plan.arms}
    refined: list[set[str]] = []
    for share in (0.0, 0.3, 0.7, 1.0):
        mixed = {d.id: d.text for d in pool.documents(Arm(name="mix", share=share))}
        assert mixed.keys() == texts["raw"].keys()
        refined.append({key for key, text in mixed.items() if text == texts["refined"][key]})
        assert all(mixed[key] == texts["raw"][key] for key in mixed.keys() - refined[-1])
    assert not refined[0]
    assert refined[0] < refined[1] < refined[2] < refined[3] == texts["raw"].keys()
    assert 10 < len(refined[1]) < 30 < len(refined[2]) < 50


def test_a_corpus_and_rules_are_arms_of_their_own_runs(run: RunDir, tmp_path: Path) -> None:
    twice = write_jsonl(tmp_path / "twice.jsonl", [*documents(20), *documents(20)])
    arms = [
        {"name": "raw", "policy": "none"},
        {"name": "rules", "rules": ["c4"]},
        {"name": "other", "corpus": {"paths": str(twice), "id": "id"}},
    ]
    folder = ProveDir(tmp_path / "out")
    plan = open_prove(folder, run, section(run, arms=arms))
    for arm in plan.arms:
        if made := plan_arm_run(folder, plan, arm, this_machine()):
            tasks.refine_task(str(made.dir.root), 0, 1)
            merge_run(made.dir)
    prepare_task(str(folder.root), 1)
    rows = {arm.name: list(arm_rows(arm_source(folder, plan, arm))) for arm in plan.arms}
    assert len(rows["raw"]) == 90
    assert len(rows["other"]) == 20  # deduplicated, nothing else
    assert {d.text for d in rows["other"]} == {d["text"] for d in documents(20)}
    assert not any("Home | About" in d.text for d in rows["rules"])
    assert all("Home | About" in d.text for d in rows["raw"])


@pytest.mark.parametrize("equal", ["tokens", "pool", "flops"])
def test_what_is_equal_in_all_arms(
    run: RunDir, finished: tuple[ProveDir, ProvePlan], tmp_path: Path, equal: str
) -> None:
    folder, plan = finished
    copy = ProveDir(tmp_path / "copy")
    shutil.copytree(folder.root, copy.root)
    changed = plan.section.model_copy(update={"equal": equal})
    plan = ProvePlan(**{**vars(plan), "section": changed})
    raw, refined = plan.arms
    receipt = ArmReceipt.model_validate_json(folder.arm_receipt("refined").read_bytes())
    step, one = 4 * 64, training_flops_of(folder, plan.section.training, 4 * 64)
    assert receipt.tokens > 2 * TRAINING["tokens"]
    cost = 10 * one  # of refining as much text as is trained on in half of the steps
    costly = receipt.model_copy(
        update={"refining_flops": cost * receipt.tokens // (STEPS // 2 * step)}
    )
    copy.arm_receipt("refined").write_text(costly.model_dump_json())
    tokens = [arm_tokens(copy, plan, arm) for arm in (raw, refined)]
    if equal == "tokens":
        assert tokens == [STEPS * step] * 2
    elif equal == "pool":
        for arm, number in zip((raw, refined), tokens, strict=True):
            available = len(np.load(folder.arm_tokens(arm.name)))
            assert available - step <= number < available
    else:  # x steps of training and x / 8 · 10 of refining are 16 steps: x = 7.1
        assert tokens == [STEPS * step, 7 * step]


def start(run: RunDir, folder: ProveDir, site: str) -> "subprocess.Popen[bytes]":
    """The command, with a manifest that has the section."""
    path = run.root.parent / "with-prove.yaml"
    text = yaml.safe_load((run.root.parent / "manifest.yaml").read_text())
    path.write_text(yaml.safe_dump(text | {"prove": section(run).model_dump(mode="json")}))
    command = [sys.executable, "-m", "proxhpc", "prove", str(path), "--out", str(folder.root)]
    return subprocess.Popen([*command, "--site", site], stderr=subprocess.PIPE)


@pytest.mark.timeout(600)
def test_a_killed_command_continues_to_the_same_weights_and_verdict(
    run: RunDir, finished: tuple[ProveDir, ProvePlan], tmp_path: Path
) -> None:
    folder, plan = finished
    other, site = ProveDir(tmp_path / "other"), local_site(tmp_path)
    for number in (signal.SIGTERM, signal.SIGKILL):
        before = len(list(other.trainings.glob("*/train.jsonl")))
        command = start(run, other, site)
        while len(list(other.trainings.glob("*/train.jsonl"))) <= before:
            assert command.poll() is None, command.communicate()
            time.sleep(0.01)
        command.send_signal(number)
        command.communicate()
        assert command.returncode != 0
    command = start(run, other, site)  # trainings of the killed one may still be running
    _, errors = command.communicate()
    assert command.returncode == 0, errors
    assert receipts(other, plan) == receipts(folder, plan)
    assert other.verdict.read_bytes() == folder.verdict.read_bytes()
    assert other.page.read_bytes() == folder.page.read_bytes()


def test_a_directory_belongs_to_one_run_and_section(
    run: RunDir, finished: tuple[ProveDir, ProvePlan], tmp_path: Path
) -> None:
    folder, plan = finished
    assert open_prove(folder, run, None) == plan
    with pytest.raises(UserError, match=r"another prove\.seeds"):
        open_prove(folder, run, section(run, seeds=[0]))
    with pytest.raises(UserError, match="no section `prove`"):
        open_prove(ProveDir(tmp_path / "new"), run, None)
    nowhere = section(run, held_out=[{"name": "gold", "paths": str(tmp_path / "none.jsonl")}])
    with pytest.raises(UserError, match=r"prove\.held_out\[0\]\.paths\[0\]: no file matches"):
        open_prove(ProveDir(tmp_path / "new"), run, nowhere)
    damaged = ProveDir(tmp_path / "damaged")
    damaged.root.mkdir()
    damaged.plan.write_bytes(folder.plan.read_bytes()[:-20])
    with pytest.raises(StopError, match="is damaged"):
        open_prove(damaged, run, None)


def test_the_presets_have_the_published_sizes(tmp_path: Path) -> None:
    parameters, tokens = {}, {}
    for name in training_presets():
        path = tmp_path / "training.yaml"
        base = {"base": "somewhere"} if name.startswith("owm") else {}
        path.write_text(yaml.safe_dump({"preset": name} | base))
        training = load_yaml(path, Training)
        tokens[name] = training.tokens
        assert training.tokens % (training.batch * training.context) in (0, 120_000 % 1024)
        assert training.source
        if training.model:
            keys = {"tie_word_embeddings": False, "vocab_size": training.vocabulary}
            parameters[name] = ModelShape.from_config(keys | training.model).parameters
    assert parameters["prox-0.3b"] == 354_284_800  # as its model card says
    # By hand: 4 layers, an embedding that is also the head, 9 norms.
    layer = 128 * 32 * (4 + 2 * 4 + 4) + 3 * 128 * 384
    assert parameters["laptop"] == 4 * layer + 4096 * 128 + 9 * 128
    # Model sizes of DataDecide are without the embedding, but with the head.
    for name, width, published in (("150M", 768, 151_898_880), ("1B", 2048, 1_176_832_000)):
        assert abs(parameters[name] - 50304 * width - published) < 0.002 * published
    assert (tokens["prox-0.7b"], tokens["prox-1.7b"]) == (26_214_400_000, 52_428_800_000)
    assert all(tokens[name] == 15_728_640_000 for name in tokens if name.startswith("owm"))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"training": {"preset": "laptp"}}, 'no preset named "laptp"; did you mean "laptop"'),
        ({"arms": [{"name": "a-b"}, {"name": "b"}]}, "letters, digits"),
        ({"arms": [{"name": "a", "policy": "none", "rules": ["c4"]}, {"name": "b"}]}, "either"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "a name is given twice"),
        (
            {"arms": [{"name": "a", "corpus": {"paths": "s3://b/c"}}, {"name": "b"}]},
            "name a folder",
        ),
        ({"against": "c"}, "must be one of the arms raw, refined"),
        ({"held_out": [{"name": "a", "paths": "b", "control": True}]}, "no control"),
        ({"training": {"batch": 4, "micro_batch": 3}}, "must divide batch: 4"),
    ],
)
def test_a_wrong_section_is_explained(tmp_path: Path, keys: dict[str, Any], message: str) -> None:
    path = tmp_path / "section.yaml"
    path.write_text(yaml.safe_dump({"held_out": [{"name": "a", "paths": "b"}]} | keys))
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        load_yaml(path, Prove)
