"""Training refiners: tasks and batches, the loop and its checkpoints, the exported model."""

import atexit
import itertools
import json
import os
import shutil
import signal
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml
import zstandard

from proxhpc.cli.main import main
from proxhpc.errors import RetryError, UserError
from proxhpc.refine.walk import Walk, WalkPage
from proxhpc.refine.walk_vocabulary import train_tokenizer
from proxhpc.run.models import resolve_model
from proxhpc.spec.load import load_yaml
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.refiner_file import read_refiner
from proxhpc.train.adapt import Adapted, adapt
from proxhpc.train.card import model_card
from proxhpc.train.checkpoint import TrainingFolder, TrainingState, load_checkpoint
from proxhpc.train.loop import Loop
from proxhpc.train.optimizer import OptimizerOptions, learning_rate
from proxhpc.train.processes import run_processes
from proxhpc.train.program_task import ProgramTask, collate_programs, generate
from proxhpc.train.rows import ExampleRow, Examples
from proxhpc.train.score import LineDecisions, best_bias, program_scores, verdict_scores
from proxhpc.train.task import TrainingTask, process_batches, shared_indices
from proxhpc.train.walk_model import attend_in_blocks, walk_loss
from proxhpc.train.walk_pages import drop_targets, random_index, verdict_item
from proxhpc.train.walk_task import WalkTask
from runs import schema_tool
from tiny_models import save_llama

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
GOOD = "The quick brown fox jumps over the lazy dog, and nobody minds at all."
BAD = "Home | About | Login"


def row(number: int, split: str = "train", **changes: Any) -> dict[str, Any]:
    """An example of a window whose lines are good or bad by the bits of `number`."""
    labels = ["KD"[(number >> n) % 2] for n in range(6)]
    lines = [f"{GOOD} {n}" if label == "K" else f"{BAD} {n}" for n, label in enumerate(labels)]
    calls = [f"remove_lines(start={n}, end={n})" for n, label in enumerate(labels) if label == "D"]
    data = {
        "id": f"{split}-{number}",
        "level": "chunk",
        "source": "made",
        "host": f"{number}.example",
        "split": split,
        "teacher": "gold",
        "of": len(lines),
        "program": "\n".join(calls) or "untouch_doc()",
        "weight": 1.0,
        "first": 0,
        "lines": lines,
        "before": [],
        "after": [],
        "keep": "".join(labels),
    }
    return data | changes


def doc_row(number: int, split: str = "train") -> dict[str, Any]:
    keep = number % 2
    keys = {"level": "doc", "program": "keep_doc()" if keep else "drop_doc()"}
    data = row(63 * (1 - keep), split, id=f"{split}-doc-{number}", **keys)
    data["text"] = "\n".join(data.pop("lines"))
    return data


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    data = b"".join(orjson.dumps(row) + b"\n" for row in rows)
    path.write_bytes(zstandard.compress(data))
    return path


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [row(n) for n in range(1, 63)] + [doc_row(n) for n in range(8)]
    rows += [row(n, "validation") for n in (5, 42, 27)] + [doc_row(n, "validation") for n in (0, 1)]
    return write(tmp_path_factory.mktemp("examples") / "examples.jsonl.zst", rows)


def walk_recipe(examples: Path, **changes: Any) -> Recipe:
    shape = {"layers": 2, "hidden": 64, "intermediate": 64, "kv_heads": 1, "vocabulary": 300}
    data = {
        "name": "tiny",
        "examples": [str(examples)],
        "shape": shape,
        "steps": 6,
        "batch_tokens": 900,
        "optimizer": "muon",
        "learning_rate": 0.01,
        "warmup": 5,
    }
    return Recipe.model_validate(data | changes)


def program_recipe(examples: Path, base: Path, **changes: Any) -> Recipe:
    data = {"name": "more", "examples": [str(examples)], "base": str(base), "prompt": "compact"}
    return Recipe.model_validate(data | {"steps": 1} | changes)


def trained(recipe: Recipe, out: Path, **options: Any) -> Adapted:
    return adapt(recipe, out, log=lambda _: None, **options)


def during_step(number: int, action: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Do something in the course of a step."""
    loss = Loop.loss

    def acting(loop: Loop[Any], model: Any, batch: Any) -> Any:
        if loop.state.step == number - 1:
            action()
        return loss(loop, model, batch)

    patch.setattr(Loop, "loss", acting)


def train_until_step_3(recipe: Recipe, out: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Send SIGTERM during the third step; the hint of the error."""
    with monkeypatch.context() as patch:
        during_step(3, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(RetryError, match="SIGTERM after step 3") as stopped:
            trained(recipe, out)
    return stopped.value.hint


def weights(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(out / "model.safetensors"))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices this small are slower with more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def same_weights(left: Path, right: Path) -> bool:
    others = weights(right)
    return all(torch.equal(others[name], tensor) for name, tensor in weights(left).items())


def test_a_walk_learns_its_examples(examples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapted = trained(
        walk_recipe(examples, steps=110, average=0.8, learning_rate=0.02, walk={"documents": 0.2}),
        out,
    )
    assert adapted.scores["f1"] > 0.95
    assert adapted.scores["verdict_accuracy"] == 1.0
    ref = resolve_model(str(out))
    assert ref.refiner is not None
    assert ref.refiner.levels == ["doc", "chunk"]
    assert {str(tensor.dtype) for tensor in weights(out).values()} == {"torch.bfloat16"}
    card = (out / "README.md").read_text()
    assert "| made | chunk | gold | train | 62 | 372 |" in card
    more = {"shape": None, "base": str(out), "steps": 1, "learning_rate": 1e-5}
    assert trained(walk_recipe(examples, **more), tmp_path / "more").scores["f1"] > 0.95


@pytest.mark.parametrize("name", ["README.md", "training/data.csv"])
def test_files_of_somebody_else_are_never_overwritten(
    examples: Path, tmp_path: Path, name: str
) -> None:
    notes = tmp_path / "out" / name
    notes.parent.mkdir(parents=True)
    notes.write_text("my notes")
    for resume in (False, True):
        with pytest.raises(UserError, match=rf"not of a training run: {notes.name}\n"):
            trained(walk_recipe(examples), tmp_path / "out", resume=resume)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [notes]


def test_a_stopped_training_resumes_with_the_same_result(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, parts = walk_recipe(examples), tmp_path / "parts"
    trained(recipe, tmp_path / "whole")
    hint = train_until_step_3(recipe, parts, monkeypatch)
    assert "--resume" in (hint or "")
    with pytest.raises(UserError, match="already holds a training run"):
        trained(recipe, parts)
    with pytest.raises(UserError, match="started with different learning_rate"):
        trained(walk_recipe(examples, learning_rate=0.1), parts, resume=True)
    other = write(tmp_path / "other.jsonl.zst", [row(n) for n in range(1, 40)])
    with pytest.raises(UserError, match="started with other examples"):
        trained(walk_recipe(other), parts, resume=True)
    moved = Path(shutil.copyfile(examples, tmp_path / "moved.jsonl.zst"))
    adapted = trained(walk_recipe(moved), parts, resume=True)
    assert adapted.state.step == 6
    assert same_weights(tmp_path / "whole", parts)
    assert [line["step"] for line in log(parts)] == [6]


def test_dropout_depends_only_on_the_seed(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"max_position_embeddings": 1024, "attention_dropout": 0.1}
    base = save_llama(tmp_path / "base", **sizes)
    keys = {"steps": 4, "batch_tokens": 1500, "learning_rate": 0.01, "warmup": 1, "validation": 1}
    recipe = program_recipe(examples, base, **keys)
    trained(recipe, tmp_path / "one")
    trained(recipe, tmp_path / "two")
    train_until_step_3(recipe, tmp_path / "parts", monkeypatch)
    torch.rand(1)  # what else draws random numbers must not matter
    trained(recipe, tmp_path / "parts", resume=True)
    assert same_weights(tmp_path / "one", tmp_path / "two")
    assert same_weights(tmp_path / "one", tmp_path / "parts")
    save_llama(base, **sizes | {"attention_dropout": 0.0})
    trained(recipe, tmp_path / "without")
    assert not same_weights(tmp_path / "one", tmp_path / "without"), "dropout has an effect"


def test_each_process_and_step_draws_other_random_numbers() -> None:
    from proxhpc.train.engine import step_seed

    seeds = {step_seed(*key) for key in itertools.product(range(3), range(3), range(3))}
    assert len(seeds) == 27


def test_a_kill_between_best_weights_and_state_loses_no_weights(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = walk_recipe(examples, minutes=1e-9)  # evaluates after each step
    folder = TrainingFolder(tmp_path / "out")
    folder.create(recipe, resume=False)
    scores = iter([0.5, 0.9, 0.6])
    monkeypatch.setattr(WalkTask, "validate", lambda *_: {"f1": next(scores)})

    def loop() -> Loop[Any]:
        task = WalkTask(recipe, Examples((examples,)), folder.tokenizer)
        return Loop(recipe, task, folder, lambda _: None)

    class Killed(BaseException):
        pass

    save = TrainingFolder.save

    def killed_save(folder: TrainingFolder, path: Path, data: dict[str, Any]) -> None:
        if path == folder.state and data["progress"]["step"] == 2:
            raise Killed
        save(folder, path, data)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingFolder, "save", killed_save)
        with pytest.raises(Killed):
            loop().run()
    best = load_checkpoint(folder.best)
    resumed = loop()
    resumed.engine.load()
    assert (resumed.state.step, resumed.state.best_step) == (1, 2)
    assert resumed.state.best_scores == {"f1": 0.9}
    folder.claim()
    resumed.evaluate()  # 0.6
    assert load_checkpoint(folder.best)["step"] == best["step"] == 2
    resumed.load_best()
    module = resumed.task.module.state_dict()
    assert all(torch.equal(module[name], value) for name, value in best["weights"].items())


def test_the_last_weights_are_evaluated_after_a_resume(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = walk_recipe(examples, steps=2, minutes=1e-9), tmp_path / "out"
    with monkeypatch.context() as patch:
        during_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM), patch)
        with pytest.raises(RetryError, match="SIGTERM after step 2"):
            trained(recipe, out)
    assert [line["step"] for line in log(out)] == [1]
    for _ in range(2):
        trained(recipe, out, resume=True)
        assert [line["step"] for line in log(out)] == [1, 2]


def test_a_checkpoint_is_checked(examples: Path, tmp_path: Path) -> None:
    recipe, out = walk_recipe(examples, steps=2), tmp_path / "out"
    trained(recipe, out)
    folder = TrainingFolder(out)
    saved = load_checkpoint(folder.state)
    folder.claim()
    folder.save(folder.state, saved | {"version": 1})
    with pytest.raises(UserError, match="started by another version of proxhpc"):
        trained(recipe, out, resume=True)
    for damaged in (b"", b"no checkpoint", b"\x80\x02garbage"):
        folder.state.write_bytes(damaged)
        with pytest.raises(UserError, match=r"state\.pt cannot be read: ."):
            trained(recipe, out, resume=True)


def test_the_earlier_of_two_trainings_in_a_folder_stops(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their files are never mixed, and a call that fails does not take over the folder."""
    recipe, out = walk_recipe(examples), tmp_path / "out"
    second: dict[str, Any] = {}
    loss = Loop.loss

    def start_second() -> None:
        monkeypatch.setattr(Loop, "loss", loss)
        trained(recipe, out)
        second.update(weights(out))
        with pytest.raises(UserError, match="different learning_rate"):
            trained(walk_recipe(examples, learning_rate=0.1), out, resume=True)

    during_step(3, start_second, monkeypatch)
    with pytest.raises(UserError, match="another training run was started there"):
        trained(walk_recipe(examples, learning_rate=0.002), out)
    assert second
    assert all(torch.equal(second[name], tensor) for name, tensor in weights(out).items())
    assert trained(recipe, out, resume=True).state.step == 6


def test_a_deleted_folder_is_an_error(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    during_step(1, lambda: shutil.rmtree(tmp_path / "out/training"), monkeypatch)
    with pytest.raises(UserError, match=r"there is no directory .*out/training"):
        trained(walk_recipe(examples, steps=2), tmp_path / "out")


def test_a_training_that_diverges_is_an_error(examples: Path, tmp_path: Path) -> None:
    recipe = walk_recipe(examples, learning_rate=1e30, optimizer="adamw")
    with pytest.raises(UserError, match=r"diverged: no finite gradient at step [2-6]"):
        trained(recipe, tmp_path / "out")
    assert not (tmp_path / "out/training/state.pt").exists()


@pytest.mark.parametrize(
    ("rows", "hint"), [([], "the files are empty"), ([row(1, "validation")], "validation hosts")]
)
def test_no_example_to_train_on(rows: list[dict[str, Any]], hint: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl.zst", rows)
    with pytest.raises(UserError, match="no example of the training split") as caught:
        trained(walk_recipe(file), tmp_path / "out")
    assert hint in caught.value.hint


def test_a_training_without_a_checkpoint_starts_from_scratch(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = walk_recipe(examples, steps=4), tmp_path / "out"
    train_tokenizer(["of another recipe " * 9], out / "training/tokenizer", 260)
    (out / "training/best.pt").write_bytes(b"of another recipe")
    train_until_step_3(recipe, out, monkeypatch)
    trained(recipe, out, resume=True)
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    assert len(tokenizer["model"]["vocab"]) == 300


def test_two_processes_equal_one_that_accumulates(examples: Path, tmp_path: Path) -> None:
    """Each answer has the same weight in a step, whichever process reads it."""
    keys = {"steps": 4, "optimizer": "adamw", "learning_rate": 0.001, "average": 0.5}
    recipe = walk_recipe(examples, **keys)
    adapted = trained(recipe, tmp_path / "two", processes=2)
    single = trained(walk_recipe(examples, **keys, accumulation=2), tmp_path / "one")
    assert adapted.state.step == single.state.step == 4
    assert adapted.state.tokens == pytest.approx(single.state.tokens, rel=0.2)
    one, two = (load_checkpoint(tmp_path / name / "training/best.pt") for name in ("one", "two"))
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, atol=1e-4, rtol=0)
    again = trained(recipe, tmp_path / "two", resume=True)
    assert again.state.step == 4, "a finished training has no more steps"


@pytest.mark.parametrize("kind", ["walk", "programs"])
def test_ranks_share_the_batches_of_an_epoch(kind: str, examples: Path, tmp_path: Path) -> None:
    task: TrainingTask[Any]
    if kind == "walk":
        task = WalkTask(walk_recipe(examples), Examples((examples,)), tmp_path / "tokenizer")
    else:
        base = save_llama(tmp_path / "base", max_position_embeddings=1024)
        task = ProgramTask(program_recipe(examples, base, batch_tokens=800), Examples((examples,)))

    def epoch(rank: int, count: int, consumed: int = 0) -> list[bytes]:
        batches = process_batches(task, (0, consumed), rank, count)
        first = itertools.takewhile(lambda pair: pair[0][0] == 0, batches)
        return [batch.inputs.numpy().tobytes() for _, batch in first]

    single, even, odd = epoch(0, 1), epoch(0, 2), epoch(1, 2)
    assert len(even) == len(odd) == -(-len(single) // 2)
    assert set(even) | set(odd) == set(single)
    assert [even[0], odd[0]] == single[:2]
    ranks = 3 * len(single)
    assert all(len(epoch(rank, ranks)) == 1 for rank in range(ranks)), "every rank has a batch"
    position, _ = next(process_batches(task, (0, 0), 1, 2))
    assert epoch(0, 1, position[1]) == single[2:], "one process resumes after a turn of two"


@pytest.mark.parametrize(("before", "turns", "after"), [(1, 300, 4), (4, 200, 1), (3, 100, 7)])
def test_another_number_of_processes_resumes_the_epoch(before: int, turns: int, after: int) -> None:
    """No batch is skipped, and only the last turn of the epoch may repeat some."""
    seen = Counter[int]()
    for rank in range(before):
        drawn = list(itertools.islice(shared_indices(1000, 0, rank, before), turns))
        seen.update(index for _, index in drawn)
    consumed, _ = drawn[-1]
    for rank in range(after):
        seen.update(index for _, index in shared_indices(1000, consumed, rank, after))
    assert set(seen) == set(range(1000))
    assert seen.total() - 1000 == -(1000 - before * turns) % after


def test_each_answer_of_a_step_counts_the_same(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    recipe = program_recipe(examples, base, accumulation=3, batch_tokens=1500, validation=1)
    folder = TrainingFolder(tmp_path / "out")
    folder.create(recipe, resume=False)
    loss, batches = Loop.loss, []

    def recording(loop: Loop[Any], model: Any, batch: Any) -> Any:
        mean = loss(loop, model, batch)
        batches.append((float(mean.detach()), float(batch["batch"].weight.sum())))
        return mean

    monkeypatch.setattr(Loop, "loss", recording)
    loop = Loop(recipe, ProgramTask(recipe, Examples((examples,))), folder, lambda _: None)
    loop.run()
    weights = [weight for _, weight in batches]
    assert len(set(weights)) == 3
    expected = sum(mean * weight for mean, weight in batches) / sum(weights)
    assert float(loop.engine.loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_training_and_validation_have_the_same_precision(
    precision: str, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    for name in ("loss", "validate"):
        function = getattr(WalkTask, name)

        def recording(*arguments: Any, function: Any = function) -> Any:
            seen.add((function.__name__, torch.is_autocast_enabled("cpu")))
            return function(*arguments)

        monkeypatch.setattr(WalkTask, name, recording)
    trained(walk_recipe(examples, steps=1, precision=precision), tmp_path / "out")
    is_reduced = precision == "bfloat16"
    assert seen == {("loss", is_reduced), ("validate", is_reduced)}


def test_the_death_of_a_process_ends_the_training() -> None:
    with pytest.raises(RetryError, match="signal SIGKILL") as died:
        run_processes(2, _killed, log=print)
    assert "--resume" in (died.value.hint or "")


def _killed(log: Callable[[str], None]) -> None:
    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def test_what_processes_return_say_and_raise(capsys: pytest.CaptureFixture[str]) -> None:
    """Python's finalization sometimes aborts while threads of a process group exist."""
    assert run_processes(2, _aborted_at_exit, 5, log=print) == 5
    assert sorted(capsys.readouterr().out.splitlines()) == ["process 0", "process 1"]
    with pytest.raises(UserError, match="no 7") as raised:
        run_processes(2, _aborted_at_exit, 7, log=print)
    assert raised.value.hint == "try 5"


def _aborted_at_exit(number: int, log: Callable[[str], None]) -> int:
    atexit.register(os.abort)
    log(f"process {torch.distributed.get_rank()}")
    torch.distributed.barrier()
    if number == 7:
        raise UserError("no 7", hint="try 5")
    return number + 10 * torch.distributed.get_rank()


def test_a_base_model_learns_programs(examples: Path, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    keys = {"steps": 8, "batch_tokens": 6000, "learning_rate": 1e-3, "validation": 2}
    recipe = program_recipe(examples, base, **keys)
    with pytest.raises(UserError, match="holds the base model, which would be overwritten"):
        trained(recipe, base)
    adapted = trained(recipe, tmp_path / "out")
    assert [line["event"] for line in log(tmp_path / "out")] == ["evaluation"]
    assert adapted.scores["examples"] == 5
    ref = resolve_model(str(tmp_path / "out"))
    assert ref.refiner is not None
    assert ref.refiner.prompt == "compact"
    assert ref.refiner.chunk is not None
    assert (ref.refiner.chunk.numbering, ref.refiner.chunk.window_lines) == ("window", 6)
    before, after = weights(base), weights(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name].bfloat16(), after[name])


def test_adapters_are_merged_and_training_ends_early_after_its_epochs(
    examples: Path, tmp_path: Path
) -> None:
    """LoRA, epochs, patience, recomputed activations, accumulation and a tracker."""
    pytest.importorskip("peft")
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    keys = {"steps": None, "epochs": 2, "batch_tokens": 6000, "learning_rate": 1e-2, "warmup": 1}
    keys |= {"lora": {"rank": 2}, "checkpointing": True, "accumulation": 2, "validation": 2}
    recipe = program_recipe(examples, base, **keys, trackers=["tensorboard"])
    adapted = trained(recipe, tmp_path / "out")
    epoch = len(ProgramTask(recipe, Examples((examples,))).epoch(0))
    assert adapted.state.step == pytest.approx(epoch, abs=1)  # two epochs, two batches a step
    before, after = weights(base), weights(tmp_path / "out")
    assert before.keys() == after.keys()
    for name, value in before.items():
        is_adapted = "_proj." in name
        assert torch.equal(value.bfloat16(), after[name]) is not is_adapted
    assert len(load_checkpoint(tmp_path / "out/training/best.pt")["weights"]) == 2 * 14
    assert list((tmp_path / "out/training/runs").rglob("events.*"))
    early = {"epochs": 50, "patience": 2, "minutes": 1e-9, "trackers": []}
    changes = recipe.model_dump(mode="json", exclude_unset=True) | early
    out = tmp_path / "early"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramTask, "validate", lambda *_: {"f1": -float(len(log_or_none(out)))})
        stopped = trained(Recipe.model_validate(changes), out)
    assert (stopped.state.best_step, stopped.state.step) == (1, 4)  # all processes learn of it late


def log_or_none(out: Path) -> list[dict[str, Any]]:
    return log(out) if (out / "training/log.jsonl").exists() else []


@pytest.mark.parametrize("key", ["epochs", "lora", "checkpointing"])
def test_a_walk_has_no_such_key(key: str, examples: Path) -> None:
    value: dict[str, Any] = {"epochs": 2, "lora": {}, "checkpointing": True}
    with pytest.raises(ValueError, match=f"{key}: not with prompt: walk"):
        walk_recipe(examples, **{"steps": None} if key == "epochs" else {}, **{key: value[key]})


def test_the_scores_of_the_paper(tmp_path: Path) -> None:
    rows = [example_row(row(n), tmp_path) for n in (5, 6)]  # lines 0 and 2; 1 and 2
    docs = [example_row(doc_row(n), tmp_path) for n in (0, 1, 3)]  # drop, keep, keep
    programs = ["remove_lines(start=0, end=0)", "remove_lines(start=1, end=3)"]
    scores = program_scores([*rows, *docs], [*programs, "keep_doc()", "keep_doc()", "drop_doc()"])
    assert scores["removed_line_f1"] == pytest.approx(2 * 3 / (4 + 4))
    assert scores["doc_f1"] == pytest.approx(2 * 1 / (2 + 2))
    assert scores["verdict_accuracy"] == pytest.approx(1 / 3)
    assert verdict_scores([True, False, False], np.array([-1.0, -1.0, 1.0]))["doc_f1"] == 0.5


def test_the_loss_counts_only_tokens_of_programs(examples: Path, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    task = ProgramTask(program_recipe(examples, base), Examples((examples,)))
    tokenized = [task._tokenize(one) for one in list(Examples((examples,)))[:2]]
    batch = collate_programs(tokenized, 2)
    for number, example in enumerate(tokenized):
        is_row = batch.rows == number
        assert batch.targets[is_row].tolist() == list(example.program)
        first = int(batch.columns[is_row][0])
        assert batch.inputs[number, : first + 1].tolist() == list(example.prompt)


def test_examples_that_a_base_model_cannot_use(examples: Path, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    with pytest.raises(UserError, match="at most 16 tokens"):
        ProgramTask(program_recipe(examples, base, max_tokens=16), Examples((examples,)))
    task = ProgramTask(program_recipe(examples, base), Examples((examples,)))
    limit = max(len(task._tokenize(one).prompt) for one in list(Examples((examples,)))[:2]) - 1
    short_doc = doc_row(1) | {"text": "Short."}
    few = write(tmp_path / "few.jsonl.zst", [short_doc, row(1), row(2, "validation")])
    task = ProgramTask(program_recipe(examples, base, max_tokens=limit), Examples((few,)))
    assert task.unused == {f"more than {limit} tokens": 2}
    assert list(task.stages({})) == ["doc"], "no stage without training examples"
    other = write(tmp_path / "line.jsonl.zst", [row(1), row(2, program="remove_lines(2, 2)")])
    with pytest.raises(UserError, match=r"'train-2': the program 'remove_lines\(2, 2\)' is not"):
        ProgramTask(program_recipe(examples, base), Examples((other,)))


def example_row(data: dict[str, Any], tmp_path: Path) -> ExampleRow:
    return next(iter(Examples((write(tmp_path / "one.jsonl.zst", [data]),))))


def test_labels_and_drop_probabilities_are_mixed(tmp_path: Path) -> None:
    labelled = example_row(row(0, keep="KD?KKK", chance=[0.5] * 6), tmp_path)
    drop, is_certain = drop_targets(labelled, trust=0.4)
    assert drop.tolist() == pytest.approx([0.2, 0.8, 0.5, 0.2, 0.2, 0.2])
    assert is_certain.tolist() == [True, True, False, True, True, True]
    by_teacher = example_row(row(0, keep="??????", chance=[0, 1, 0.3, 0, 0, 0]), tmp_path)
    drop, is_certain = drop_targets(by_teacher, trust=0.4)
    assert drop.tolist() == pytest.approx([0, 1, 0.3, 0, 0, 0])
    assert is_certain.all()


def test_examples_are_drawn_by_their_weights(examples: Path, tmp_path: Path) -> None:
    rows = [row(0, weight=3), row(1), doc_row(2) | {"weight": 3}, doc_row(3)]
    task = WalkTask(walk_recipe(examples), Examples((write(tmp_path / "x", rows),)), tmp_path)
    rng = np.random.default_rng(0)
    for rates in (task.pages.cumulative, task.cumulative):
        first = [random_index(rates, rng) == 0 for _ in range(2000)]
        assert np.mean(first) == pytest.approx(0.75, abs=0.05)


def test_a_walk_abstains_where_the_verdict_is_unknown(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = WalkTask(walk_recipe(examples), Examples((examples,)), tmp_path)
    keep, drop = task._walk.verdict_ids
    unknown, known = (
        verdict_item(example_row(data, tmp_path), task._walk, task._recipe.walk)
        for data in (doc_row(0) | {"program": "?"}, doc_row(0))
    )
    assert (unknown.choices.tolist(), unknown.drop.tolist()) == ([[task._walk.end, drop]], [0])
    assert (known.choices.tolist(), known.drop.tolist()) == ([[keep, drop]], [1])

    def logits(hidden: Any) -> Any:
        values = torch.zeros(len(hidden), drop + 1)
        values[:, [keep, drop, task._walk.end]] = torch.tensor([1.0, 2.0, 5.0])
        return values

    monkeypatch.setattr(task.module, "logits", logits)
    assert [float(values[0]) for values in task._log_odds([unknown, known])] == [-3, -3]


def test_attention_in_blocks_is_causal_attention() -> None:
    query, key, value = torch.randn(3, 2, 4, 300, 16, generator=torch.Generator().manual_seed(0))
    ours, _ = attend_in_blocks(torch.nn.Identity(), query, key, value, None, scaling=0.25)
    theirs = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(ours, theirs.transpose(1, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("share", "level", "unused"), [(0, "chunk", 10), (1, "doc", 65)])
def test_a_walk_may_be_trained_for_one_level(
    share: int, level: str, unused: int, examples: Path, tmp_path: Path
) -> None:
    recipe, out = walk_recipe(examples, steps=1, walk={"documents": share}), tmp_path / "out"
    scores = trained(recipe, out).scores
    refiner = read_refiner(out)
    assert refiner is not None
    assert refiner.levels == [level]
    if level == "chunk":
        assert "verdict_accuracy" not in scores
    else:  # the best weights are those of the best verdicts
        assert scores["f1"] == scores["verdict_accuracy"]
        assert "line_recall" not in scores
    assert (
        f"Of these {unused} are not used: walk.documents is {share}."
        in (out / "README.md").read_text()
    )
    rows = [row(1), row(2, "validation")] if share else [doc_row(1)]
    file = write(tmp_path / "x.jsonl.zst", rows)
    found = r"no (example|window) of the training split (is|has)"
    with pytest.raises(UserError, match=found) as error:
        trained(walk_recipe(file, walk={"documents": share}), tmp_path / "none")
    assert ("`walk.documents: 1`" in error.value.hint) == (share == 0)


def test_lines_that_are_edited_within_do_not_count(examples: Path, tmp_path: Path) -> None:
    program = 'normalize(source_str=" 0", target_str="")'
    file = write(tmp_path / "x.jsonl.zst", [row(2, keep="EDK?KK", program=program)])
    task = WalkTask(walk_recipe(examples), Examples((file,)), tmp_path)
    (page,) = task.pages.pages
    assert [bool(weight) for weight in page.weight] == [False, True, True, False, True, True]
    assert not task.unused


def test_a_walk_leaves_out_examples_that_edit_strings(examples: Path, tmp_path: Path) -> None:
    strings = row(1, keep=None, program='normalize(source_str=" 0", target_str="")')
    rows = [row(n) for n in range(9)] + [strings, strings | {"split": "validation"}]
    file = write(tmp_path / "x.jsonl.zst", [*rows, strings | {"chance": [0.5] * 6}])
    recipe = walk_recipe(examples)
    task = WalkTask(recipe, Examples((file,)), tmp_path)
    assert len(task.pages.pages) == 10
    assert task.unused == {"strings are edited": 2}
    text = model_card(recipe, [], task.unused, TrainingState(), {}, 1)
    assert "\n\nOf these 2 are not used: strings are edited.\n\n## Scores" in text
    with pytest.raises(UserError, match="no such directory"):
        WalkTask(walk_recipe(examples, shape=None, base="/no/model"), [], tmp_path)
    only = write(tmp_path / "y.jsonl.zst", [strings])
    with pytest.raises(UserError, match="labels or drop probabilities of its lines"):
        WalkTask(recipe, Examples((only,)), tmp_path)


@pytest.mark.parametrize(("layers", "is_found"), [(2, True), (4, False)])
def test_answers_of_a_new_shallow_walk_find_the_numbers_of_their_lines(
    layers: int, is_found: bool, examples: Path, tmp_path: Path
) -> None:
    recipe = walk_recipe(examples)
    assert recipe.shape is not None
    shape = recipe.shape.model_copy(update={"layers": layers, "hidden": 128})
    task = WalkTask(recipe.model_copy(update={"shape": shape}), Examples((examples,)), tmp_path)
    walk, ids = Walk(task.tokenizer), list(range(30, 60))
    prompt = walk.prompt(WalkPage((), [array("I", ids)] * 12), 0, 12)
    answers = [keep for keep, _ in walk.allowed_steps(12)[:-1]]
    task.model.set_attn_implementation("eager")
    inputs = torch.tensor([[*prompt, *answers]])
    (attention,) = task.model(input_ids=inputs, output_attentions=True).attentions[-1]
    found = [
        int(attention[0, len(prompt) - 1 + line, : len(prompt)].argmax()) == position
        for line, position in enumerate(walk.number_positions(prompt))
    ]
    assert (sum(found) >= 9) is is_found


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": "KD"}, "keep has 2 entries for 6 lines"),
        ({"keep": "KDXXXX"}, r"keep: String should match pattern .* \(it is 'KDXXXX'\)"),
        ({"level": "doc", "text": "a", "program": "untouch_doc()"}, r"\(it is 'untouch_doc\(\)'\)"),
        ({"split": None}, "split: Input should be 'train' or 'validation'"),
        ({"chance": [0.5]}, "chance has 1 entry for 6 lines"),
        (
            {"chance": [0.5] * 5 + [1.5]},
            r"chance\.5: Input should be less than or equal to 1 \(it is 1\.5\)",
        ),
        ({"level": "page"}, r"level: Input should be 'doc' or 'chunk' \(it is 'page'\)"),
        ({"split": "test"}, r"split: Input should be 'train' or 'validation' \(it is 'test'\)"),
        ({"lines": [], "keep": ""}, "lines: List should have at least 1 item"),
        ({"lines": [1, 2, 3, 4, 5, 6]}, r"lines\.0: Input should be a valid string"),
        ({"lines": "abcdef"}, "lines: Input should be a valid list"),
        ({"level": "doc", "text": 1}, "lines: Input should be a valid list"),
    ],
)
def test_invalid_examples_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl.zst", [row(1), row(2, **changes)])
    with pytest.raises(UserError, match=f"at byte [1-9][0-9]+: not an example: .*{message}"):
        list(Examples((file,)))


def test_a_job_has_a_process_for_each_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nexamples: a.jsonl.zst\nbase: b\nsteps: 2\n")
    given = ["adapt", str(path), "--out", str(tmp_path / "out"), "--site", "gpu"]
    assert main([*given, "--processes", "2"]) == 2
    assert "--processes cannot be combined with --site" in capsys.readouterr().err


def test_an_invalid_recipe_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nexamples: [a.jsonl.zst]\nsteps: 3\nshape: {hidden: 100}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml:4: shape: hidden must be a multiple of 64"):
        load_yaml(path, Recipe)
    path.write_text("name: x\nexamples: [a.jsonl.zst]\nbase: b\nshape: {}\n")
    with pytest.raises(UserError, match="give either base or shape") as caught:
        load_yaml(path, Recipe)
    assert "give either steps, hours or epochs" in caught.value.message
    path.write_text('name: x\nexamples: "a\\nb"\nbase: b\nsteps: 2\n')
    with pytest.raises(UserError, match="must be one line of text") as caught:
        load_yaml(path, Recipe)
    assert "at least" not in caught.value.message
    path.write_text("name: x\nexamples: [a.jsonl.zst]\nbase: b\nsteps: 2\n")
    assert load_yaml(path, Recipe).examples == (str(tmp_path / "a.jsonl.zst"),)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_valid(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), schema_tool().json_schema(Recipe))
    recipe = load_yaml(path, Recipe, environ={"EXAMPLES": "x.jsonl.zst", "MODEL": "m"})
    assert recipe.examples == (str(Path.cwd() / "x.jsonl.zst"),)


def test_the_smallest_of_the_best_biases_is_chosen() -> None:
    log_odds = np.array([-2.0, -0.6, -0.4, 1.0] * 10)
    scores = verdict_scores([False, True, True, True] * 10, log_odds)
    assert (scores["verdict_bias"], scores["verdict_accuracy"]) == (0.75, 1.0)
    # 36 of 40 right without a bias: within one standard error of 37 with a bias.
    log_odds = np.array([-2.0] * 17 + [2.0] * 3 + [2.0] * 19 + [-0.1])
    scores = verdict_scores([False] * 20 + [True] * 20, log_odds)
    assert (scores["verdict_bias"], scores["verdict_accuracy"]) == (0.0, 0.9)
    few = verdict_scores([False, True, True, True], np.array([-2.0, -0.6, -0.4, 1.0]))
    assert few["verdict_bias"] == 0.0
    lines = ["a long line of text that stays", "menu", "another long line of text"]
    dropped = np.array([False, True, False])
    scores = best_bias([LineDecisions(lines, dropped, np.array([0.3, 2.0, -1.0]))])
    assert (scores["bias"], scores["f1"]) == (-0.5, 1.0)
    # Without a bias the first document is worse, by less than the standard error of the mean.
    others = [LineDecisions(lines, dropped, np.array([odds, -1.0, odds])) for odds in (-1.0, 9.0)]
    scores = best_bias([LineDecisions(lines, dropped, np.array([0.3, 2.0, -1.0])), *others])
    assert scores["bias"] == 0.0
    assert 0 < scores["f1"] < 1


def optimizer_of(module: Any, rate: float, **keys: Any) -> Any:
    from proxhpc.train.engine import AveragingOptimizer

    options = {"optimizer": "muon", "learning_rate": rate, **keys}
    return AveragingOptimizer(module, OptimizerOptions(**options))


def small_module() -> Any:
    """A matrix within the layers, another matrix, and a vector."""
    module = torch.nn.Module()
    module.layers = torch.nn.ModuleList([torch.nn.Linear(16, 8, bias=False)])
    module.head = torch.nn.Linear(4, 8)
    return module


def test_muon_moves_along_orthogonal_matrices() -> None:
    module = small_module()
    matrix = module.layers[0].weight
    before = matrix.detach().clone()
    gradient = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    matrix.grad = gradient.clone()
    optimizer_of(module, 1.0, weight_decay=0.0).step()
    movement = matrix.detach() - before
    values = torch.linalg.svdvals(movement) / (0.2 * 16**0.5)  # as large as AdamW's step
    assert ((values > 0.6) & (values < 1.3)).all()
    assert float((movement * gradient).sum()) < 0


@pytest.mark.parametrize("name", ["muon", "adamw"])
def test_matrices_decay_and_vectors_do_not(name: str) -> None:
    module = small_module()
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer_of(module, 0.1, optimizer=name, weight_decay=0.5).step()
    after = dict(module.named_parameters())
    for key in ("layers.0.weight", "head.weight"):
        torch.testing.assert_close(after[key].detach(), before[key] * (1 - 0.1 * 0.5))
    assert torch.equal(after["head.bias"], before["head.bias"])


def test_the_moving_average_follows_the_weights() -> None:
    module = small_module()
    optimizer = optimizer_of(module, 0.1, average=0.8)
    values = [module.head.bias.detach().clone()]
    for _ in range(12):
        module.head.bias.grad = torch.randn(8)
        for parameter in (module.layers[0].weight, module.head.weight):
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        values.append(module.head.bias.detach().clone())
    mean = values[0]
    for step, value in enumerate(values[1:], 1):
        mean = mean.lerp(value, 1 - min(0.8, 1 - 1 / (step / 5 + 2)))
    with optimizer.averaged():
        torch.testing.assert_close(module.head.bias.detach(), mean)
    assert torch.equal(module.head.bias, values[-1])


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, [0.5, 1.0, 1.0, 0.51, 0.51, 0.02]),
        ({"schedule": "cosine", "decay": 1.0}, [0.5, 0.9064, 0.51, 0.1136, 0.1136, 0.02]),
        ({"min_learning_rate": 0.5, "decay": 1.0}, [0.5, 0.9, 0.75, 0.6, 0.6, 0.5]),
    ],
)
def test_the_learning_rate_warms_up_and_decays_to_its_floor(
    keys: dict[str, Any], expected: list[float]
) -> None:
    options = OptimizerOptions(learning_rate=1.0, warmup=2, decay=keys.pop("decay", 0.4), **keys)
    shares = [0.0, 0.2, 0.5, 0.8, 0.8, 1.0]
    rates = [learning_rate(options, step, done) for step, done in enumerate(shares)]
    assert rates == pytest.approx(expected, abs=1e-3)


def test_the_text_loss_fades_to_zero(examples: Path, tmp_path: Path) -> None:
    recipe = walk_recipe(examples, walk={"text_loss": 0.5})
    task = WalkTask(recipe, Examples((examples,)), tmp_path)
    _, batch = next(process_batches(task, (0, 0)))
    options = recipe.walk.model_copy(update={"text_loss": 0.0})

    def text_loss(done: float) -> tuple[float, float | None]:
        """The share of text in the loss, and its part before weighting."""
        with torch.no_grad():
            without = walk_loss(task.module, batch, options, done)
            losses = task.loss(batch, done)
        return float(losses.total - without.total), losses.parts.get("text")

    start, text = text_loss(0.0)
    assert text is not None
    assert start == pytest.approx(0.5 * text, rel=1e-3)
    for done in (0.25, 0.5, 0.9):
        assert text_loss(done)[0] == pytest.approx((1 - done) * start, rel=1e-3)
    assert text_loss(0.96) == (0, None)


def test_batches_resume_and_labels_stay_with_their_lines(examples: Path, tmp_path: Path) -> None:
    recipe = walk_recipe(examples)
    task = WalkTask(recipe, Examples((examples,)), tmp_path)
    batches = process_batches(task, (0, 0))
    drawn = [next(batches) for _ in range(6)]
    resumed = process_batches(task, drawn[2][0])
    for (position, batch), (same, copy) in zip(drawn[3:], resumed, strict=False):
        assert position == same
        assert torch.equal(batch.inputs, copy.inputs)
    for _, batch in drawn:
        assert batch.inputs.numel() <= recipe.batch_tokens
        # After all augmentation a bad line is still labelled as dropped.
        for number, column, step in zip(
            batch.number_rows, batch.number_columns, batch.number_steps, strict=True
        ):
            line = batch.inputs[number, max(0, column - 3) : column].tolist()
            login = task.tokenizer.encode("Login")[-1]
            if login in line:
                assert batch.drop[step] == 1
    assert np.mean([float(batch.drop.mean()) for _, batch in drawn]) > 0.2


def test_answers_stay_within_the_context() -> None:
    """A model with learned position embeddings has none beyond it."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(shape).eval()
    answers = generate(model, [[5] * 13, [5] * 4], 0, 50, shape.n_positions)
    assert all(1 <= len(ids) <= 3 for ids in answers)
