"""Teaching refiners: what is learnt from examples, the loop and its resumption, what is written."""

import atexit
import itertools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import yaml
import zstandard

from proxhpc.cli.main import main
from proxhpc.errors import RetryError, UserError
from proxhpc.refine.walk_vocabulary import train_tokenizer
from proxhpc.run.models import resolve_model
from proxhpc.spec.load import json_schema
from proxhpc.spec.recipe import Recipe, load_recipe
from proxhpc.spec.site import load_site
from proxhpc.train import loop
from proxhpc.train.adapt import Adapted, adapt
from proxhpc.train.card import card
from proxhpc.train.checkpoint import Folder, TrainingState
from proxhpc.train.distributed import Ranks, launch_processes
from proxhpc.train.generate import answers
from proxhpc.train.job import submit
from proxhpc.train.optimizer import Average
from proxhpc.train.program_task import ProgramTask, collate_programs
from proxhpc.train.rows import ExampleRow, Examples, read_example_rows
from proxhpc.train.score import Decision, best_bias, verdict_scores
from proxhpc.train.task import TrainingTask
from proxhpc.train.walk_task import WalkTask
from slurm_cluster import FINISHED, SlurmCluster
from tiny_models import save_llama

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parent.parent
GOOD = "The quick brown fox jumps over the lazy dog, and nobody minds at all."
BAD = "Home | About | Login"


def row(number: int, split: str = "train", **changes: Any) -> dict[str, Any]:
    """An example of a document whose lines are good or bad by the number."""
    marks = ["KD"[(number >> n) % 2] for n in range(6)]
    lines = [f"{GOOD} {n}" if mark == "K" else f"{BAD} {n}" for n, mark in enumerate(marks)]
    calls = [f"remove_lines(start={n}, end={n})" for n, mark in enumerate(marks) if mark == "D"]
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
        "keep": "".join(marks),
    }
    return data | changes


def doc_row(number: int, split: str = "train") -> dict[str, Any]:
    keep = number % 2
    own = {"level": "doc", "program": "keep_doc()" if keep else "drop_doc()"}
    made = row(63 * (1 - keep), split, id=f"{split}-doc-{number}", **own)
    made["text"] = "\n".join(made.pop("lines"))
    return made


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


def trained(recipe: Recipe, out: Path, **more: Any) -> Adapted:
    return adapt(recipe, out, say=lambda _: None, **more)


def weights(out: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(out / "model.safetensors"))


def log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "training/log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Matrices so small are slower with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_walk_is_learnt(examples: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    adapted = trained(walk_recipe(examples, steps=110, average=0.8, learning_rate=0.02), out)
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


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = walk_recipe(examples)
    trained(recipe, tmp_path / "whole")
    rate = loop.learning_rate

    def stopping(recipe: Recipe, step: int, done: float) -> float:
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return rate(recipe, step, done)

    monkeypatch.setattr(loop, "rate", stopping)
    with pytest.raises(RetryError, match="SIGTERM after step 3") as stopped:
        trained(recipe, tmp_path / "parts")
    assert "--resume" in (stopped.value.hint or "")
    monkeypatch.setattr(loop, "rate", rate)
    with pytest.raises(UserError, match="holds a training already"):
        trained(recipe, tmp_path / "parts")
    with pytest.raises(UserError, match="another learning_rate"):
        trained(walk_recipe(examples, learning_rate=0.1), tmp_path / "parts", resume=True)
    other = write(tmp_path / "other.jsonl.zst", [row(n) for n in range(1, 40)])
    with pytest.raises(UserError, match="begun with other examples"):
        trained(walk_recipe(other), tmp_path / "parts", resume=True)
    moved = Path(shutil.copyfile(examples, tmp_path / "moved.jsonl.zst"))
    adapted = trained(walk_recipe(moved), tmp_path / "parts", resume=True)
    assert adapted.progress.step == 6
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    assert [line["step"] for line in log(tmp_path / "parts")] == [6]


def test_the_last_weights_are_judged_by_whoever_goes_on(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, loss = walk_recipe(examples, steps=2, minutes=1e-9), WalkTask.loss

    def stopping(course: WalkTask, batch: Any, done: float) -> Any:
        if done == 0.5:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(course, batch, done)

    monkeypatch.setattr(WalkTask, "loss", stopping)
    with pytest.raises(RetryError, match="SIGTERM after step 2"):
        trained(recipe, tmp_path / "out")
    assert [line["step"] for line in log(tmp_path / "out")] == [1]
    monkeypatch.setattr(WalkTask, "loss", loss)
    for _ in range(2):
        trained(recipe, tmp_path / "out", resume=True)
        assert [line["step"] for line in log(tmp_path / "out")] == [1, 2]
    state = Folder(tmp_path / "out").load(tmp_path / "out/training/state.pt")
    made: list[dict[str, Any]] = []

    class Noted(Average):
        def __init__(self, module: Any, decay: float) -> None:
            super().__init__(module, decay)
            made.append(dict(self.weights))

    monkeypatch.setattr(loop, "Average", Noted)
    course = WalkTask(recipe, Examples((examples,)), tmp_path / "out/training/tokenizer")
    trainer = loop.Trainer(recipe, course, Folder(tmp_path / "out"), print, Ranks())
    average = trainer._average.weights
    assert all(average[name] is own for name, own in made[0].items()), "still where the model is"
    assert all(torch.equal(average[name], value) for name, value in state["average"].items())
    for damaged in (b"", b"no checkpoint", b"\x80\x02garbage"):
        (tmp_path / "out/training/state.pt").write_bytes(damaged)
        with pytest.raises(UserError, match=r"state\.pt cannot be read: ."):
            trained(recipe, tmp_path / "out", resume=True)


def test_of_two_trainings_in_one_folder_the_first_ends(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of two are never mixed; a call that is refused takes nothing."""
    recipe, rate, out = walk_recipe(examples), loop.learning_rate, tmp_path / "out"

    def joined(own: Recipe, step: int, done: float) -> float:
        if step == 2:
            monkeypatch.setattr(loop, "rate", rate)
            trained(recipe, out)
            kept.update(weights(out))
            with pytest.raises(UserError, match="another learning_rate"):
                trained(walk_recipe(examples, learning_rate=0.1), out, resume=True)
        return rate(own, step, done)

    kept: dict[str, Any] = {}
    monkeypatch.setattr(loop, "rate", joined)
    with pytest.raises(UserError, match="another training has begun there"):
        trained(walk_recipe(examples, learning_rate=0.002), out)
    assert kept
    assert all(torch.equal(kept[name], tensor) for name, tensor in weights(out).items())
    assert trained(recipe, out, resume=True).progress.step == 6


def test_a_training_whose_folder_is_gone_says_so(
    examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = loop.learning_rate

    def deleting(recipe: Recipe, step: int, done: float) -> float:
        shutil.rmtree(tmp_path / "out/training", ignore_errors=True)
        return rate(recipe, step, done)

    monkeypatch.setattr(loop, "rate", deleting)
    with pytest.raises(UserError, match=r"there is no directory .*out/training"):
        trained(walk_recipe(examples, steps=2), tmp_path / "out")


def test_a_training_that_diverges_says_so(examples: Path, tmp_path: Path) -> None:
    recipe = walk_recipe(examples, learning_rate=1e30, optimizer="adamw")
    with pytest.raises(UserError, match=r"diverged: no finite gradient at step [2-6]"):
        trained(recipe, tmp_path / "out")
    assert not (tmp_path / "out/training/state.pt").exists()


@pytest.mark.parametrize(
    ("rows", "said"), [([], "there are none at all"), ([row(1, "validation")], "hosts kept")]
)
def test_nothing_to_learn_from(rows: list[dict[str, Any]], said: str, tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl.zst", rows)
    with pytest.raises(UserError, match="no example of the training split") as caught:
        trained(walk_recipe(file), tmp_path / "out")
    assert said in caught.value.hint


def test_a_training_without_a_checkpoint_begins_anew(examples: Path, tmp_path: Path) -> None:
    left = tmp_path / "out/training/tokenizer"
    train_tokenizer(["of another recipe " * 9], left, 260)
    trained(walk_recipe(examples, steps=1), tmp_path / "out")
    words = json.loads((tmp_path / "out/tokenizer.json").read_text())["model"]["vocab"]
    assert len(words) == 300


def test_processes_learn_together(examples: Path, tmp_path: Path) -> None:
    recipe = walk_recipe(examples, steps=60, average=0.8, learning_rate=0.02)
    adapted = adapt(recipe, tmp_path / "out", processes=2, say=print)
    assert adapted.progress.step == 60
    assert adapted.scores["f1"] > 0.95
    again = adapt(recipe, tmp_path / "out", resume=True, processes=2, say=print)
    assert again.progress.step == 60, "and what is finished stays finished"


@pytest.mark.parametrize("kind", ["walk", "programs"])
def test_processes_share_the_batches(kind: str, examples: Path, tmp_path: Path) -> None:
    course: TrainingTask
    if kind == "walk":
        course = WalkTask(walk_recipe(examples), Examples((examples,)), tmp_path / "tokenizer")
    else:
        base = save_llama(tmp_path / "base", max_position_embeddings=1024)
        data = {"name": "x", "examples": [str(examples)], "base": str(base), "prompt": "compact"}
        recipe = Recipe.model_validate(data | {"steps": 1, "batch_tokens": 800})
        course = ProgramTask(recipe, Examples((examples,)))

    def taken(rank: int, count: int) -> list[bytes]:
        batches = course.batches((0, 0), Ranks(rank, count))
        first = itertools.takewhile(lambda pair: pair[0][0] == 0, batches)
        return [batch.inputs.numpy().tobytes() for _, batch in first]

    alone, left, right = taken(0, 1), taken(0, 2), taken(1, 2)
    assert len(left) == len(right) == -(-len(alone) // 2)
    assert set(left) | set(right) == set(alone)
    assert [left[0], right[0]] == alone[:2]
    few = [taken(rank, 3 * len(alone)) for rank in range(3 * len(alone))]
    assert all(len(one) == 1 for one in few), "no process is left without a batch"


def test_gradients_are_the_mean_of_all(tmp_path: Path) -> None:
    with launch_processes(2, _other_gradient) as ranks:
        one, unused = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))
        one.grad = torch.tensor([1.0, 2.0, 3.0])
        ranks.mean([one, unused])
    assert one.grad.tolist() == [3.0, 2.0, 1.0]
    assert unused.grad is not None
    assert unused.grad.tolist() == [[0.5, 0.5], [0.5, 0.5]]


def _other_gradient(ranks: Ranks) -> None:
    one, unused = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))
    one.grad, unused.grad = torch.tensor([5.0, 2.0, -1.0]), torch.ones(2, 2)
    ranks.mean([one, unused])


def test_a_process_that_dies_ends_the_training() -> None:
    with (
        pytest.raises(RetryError, match="ended with -9") as died,
        launch_processes(2, _killed) as ranks,
    ):
        ranks.agree(True, 0.0, "cpu")
    assert "--resume" in (died.value.hint or "")


def _killed(ranks: Ranks) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_whose_work_is_done_cannot_fail() -> None:
    """Python's own end aborts now and then, with threads of a group about."""
    with launch_processes(2, _aborted_at_its_end) as ranks:
        assert ranks.agree(True, 0.5, "cpu") == (True, 0.5)


def _aborted_at_its_end(ranks: Ranks) -> None:
    atexit.register(os.abort)
    ranks.agree(False, 0.0, "cpu")


def test_a_base_model_learns_programs(examples: Path, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    common = {"name": "more", "examples": [str(examples)], "base": str(base), "prompt": "compact"}
    recipe = Recipe.model_validate(
        common | {"steps": 8, "batch_tokens": 6000, "learning_rate": 1e-3, "validation": 2}
    )
    with pytest.raises(UserError, match="holds the base model, which would be replaced"):
        trained(recipe, base)
    adapted = trained(recipe, tmp_path / "out")
    assert [line["what"] for line in log(tmp_path / "out")] == ["judged"]
    assert adapted.scores["examples"] == 5
    ref = resolve_model(str(tmp_path / "out"))
    assert ref.refiner is not None
    assert ref.refiner.prompt == "compact"
    assert ref.refiner.chunk is not None
    assert (ref.refiner.chunk.numbering, ref.refiner.chunk.window_lines) == ("window", 6)
    before, after = weights(base), weights(tmp_path / "out")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(before[name].bfloat16(), after[name])


def test_only_programs_count(examples: Path, tmp_path: Path) -> None:
    base = save_llama(tmp_path / "base", max_position_embeddings=1024)
    data = {"name": "x", "examples": [str(examples)], "base": str(base), "prompt": "compact"}
    course = ProgramTask(Recipe.model_validate(data | {"steps": 1}), Examples((examples,)))
    lessons = [course._lesson(one) for one in list(Examples((examples,)))[:2]]
    batch = collate_programs(lessons, 2)
    for number, lesson in enumerate(lessons):
        own = batch.rows == number
        assert batch.targets[own].tolist() == list(lesson.program)
        first = int(batch.places[own][0])
        assert batch.inputs[number, : first + 1].tolist() == list(lesson.prompt)
    short = Recipe.model_validate(data | {"steps": 1, "max_tokens": 16})
    with pytest.raises(UserError, match="at most 16 tokens"):
        ProgramTask(short, Examples((examples,)))
    brief = doc_row(1) | {"text": "Short."}
    few = write(tmp_path / "few.jsonl.zst", [brief, row(1), row(2, "validation")])
    apart = max(len(lesson.prompt) for lesson in lessons) - 1
    course = ProgramTask(
        Recipe.model_validate(data | {"steps": 1, "max_tokens": apart}), Examples((few,))
    )
    assert course.unused == {f"more than {apart} tokens": 2}
    assert list(course.stages({})) == ["doc"], "and not what it has learnt nothing of"
    other = write(tmp_path / "line.jsonl.zst", [row(1), row(2, program="remove_lines(2, 2)")])
    with pytest.raises(UserError, match=r"'train-2': in the dialect prox 'remove_lines\(2, 2"):
        ProgramTask(Recipe.model_validate(data | {"steps": 1}), Examples((other,)))


def made(data: dict[str, Any], tmp_path: Path) -> ExampleRow:
    return next(read_example_rows([write(tmp_path / "one.jsonl.zst", [data])]))


def test_chances_and_labels(tmp_path: Path) -> None:
    from proxhpc.train.walk_pages import targets

    labelled = made(row(0, keep="KD?KKK", chance=[0.5] * 6), tmp_path)
    drop, sure = targets(labelled, trust=0.4)
    assert drop.tolist() == pytest.approx([0.2, 0.8, 0.5, 0.2, 0.2, 0.2])
    assert sure.tolist() == [True, True, False, True, True, True]
    taught = made(row(0, keep="??????", chance=[0, 1, 0.3, 0, 0, 0]), tmp_path)
    drop, sure = targets(taught, trust=0.4)
    assert drop.tolist() == pytest.approx([0, 1, 0.3, 0, 0, 0])
    assert sure.all()


def test_a_walk_leaves_out_what_it_cannot_answer(examples: Path, tmp_path: Path) -> None:
    strings = row(1, keep=None, program='normalize(source_str=" 0", target_str="")')
    rows = [row(n) for n in range(9)] + [strings, strings | {"split": "validation"}]
    file = write(tmp_path / "x.jsonl.zst", [*rows, strings | {"chance": [0.5] * 6}])
    recipe = walk_recipe(examples)
    course = WalkTask(recipe, Examples((file,)), tmp_path)
    assert len(course._sampler._pages._pages) == 10
    assert course.unused == {"strings are edited": 2}
    text = card(recipe, [], course.unused, TrainingState(), {}, 1)
    assert "\n\nOf these 2 are not used: strings are edited.\n\n## On" in text
    with pytest.raises(UserError, match="no such directory"):
        WalkTask(walk_recipe(examples, shape=None, base="/no/model"), [], tmp_path)
    only = write(tmp_path / "y.jsonl.zst", [strings])
    with pytest.raises(UserError, match="marks or chances of its lines"):
        WalkTask(recipe, Examples((only,)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"keep": "KD"}, "marks or chances do not fit 6 lines"),
        ({"keep": "KDXXXX"}, "marks 'KDXXXX'"),
        ({"split": None, "level": "doc", "text": "a", "program": "untouch_doc()"}, "KeyError"),
        ({"chance": [0.5]}, "do not fit"),
        ({"chance": [0.5] * 5 + [1.5]}, "not from 0 to 1"),
        ({"level": "page"}, "level 'page' is none of doc, chunk"),
        ({"split": "test"}, "split 'test' is none of train, validation"),
        ({"lines": [], "keep": ""}, "no list of one or more strings"),
        ({"lines": "abcdef"}, "no list of one or more strings"),
        ({"level": "doc", "text": 1}, "AttributeError"),
    ],
)
def test_rows_that_are_no_examples(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"at byte [1-9][0-9]+: no example: .*{said}"):
        list(read_example_rows([write(tmp_path / "x.jsonl.zst", [row(1), row(2, **changes)])]))


def test_a_job_has_a_process_for_each_gpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nexamples: a.jsonl.zst\nbase: b\nsteps: 2\n")
    given = ["adapt", str(path), "--out", str(tmp_path / "out"), "--site", "gpu"]
    assert main([*given, "--processes", "2"]) == 2
    assert "--processes is for training right here" in capsys.readouterr().err


def test_a_recipe_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: x\nexamples: [a.jsonl.zst]\nsteps: 3\nshape: {hidden: 100}\n")
    with pytest.raises(UserError, match=r"recipe\.yaml:4: shape: hidden must be a multiple of 64"):
        load_recipe(path)
    path.write_text("name: x\nexamples: [a.jsonl.zst]\nbase: b\nshape: {}\n")
    with pytest.raises(UserError, match="give either base or shape") as caught:
        load_recipe(path)
    assert "give either steps or hours" in caught.value.message
    path.write_text('name: x\nexamples: "a\\nb"\nbase: b\nsteps: 2\n')
    with pytest.raises(UserError, match="must be one line of text") as caught:
        load_recipe(path)
    assert "at least" not in caught.value.message
    path.write_text("name: x\nexamples: [a.jsonl.zst]\nbase: b\nsteps: 2\n")
    assert load_recipe(path).examples == (str(tmp_path / "a.jsonl.zst"),)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_are_recipes(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n")
    jsonschema.validate(yaml.safe_load(path.read_text()), json_schema(Recipe))
    recipe = load_recipe(path, {"EXAMPLES": "x.jsonl.zst", "MODEL": "m"})
    assert recipe.examples == (str(ROOT / "recipes/x.jsonl.zst"),)


def test_biases_are_those_that_score_best() -> None:
    margin = np.array([-2.0, -0.6, -0.4, 1.0] * 10)
    scores = verdict_scores([False, True, True, True] * 10, margin)
    assert (scores["verdict_bias"], scores["verdict_accuracy"]) == (0.75, 1.0)
    # 36 of 40 at 0 are about as good as 37 with a bias.
    margin = np.array([-2.0] * 17 + [2.0] * 3 + [2.0] * 19 + [-0.1])
    scores = verdict_scores([False] * 20 + [True] * 20, margin)
    assert (scores["verdict_bias"], scores["verdict_accuracy"]) == (0.0, 0.9)
    assert (
        verdict_scores([False, True, True, True], np.array([-2.0, -0.6, -0.4, 1.0]))["verdict_bias"]
        == 0.0
    )
    lines = ["a long line of text that stays", "menu", "another long line of text"]
    wanted = np.array([False, True, False])
    found = best_bias([Decision(lines, wanted, np.array([0.3, 2.0, -1.0]))])
    assert (found["bias"], found["f1"]) == (-0.5, 1.0)


def test_muon_moves_along_orthogonal_matrices() -> None:
    from proxhpc.train.optimizer import Muon

    matrix = torch.nn.Parameter(torch.zeros(8, 16))
    generator = torch.Generator().manual_seed(0)
    matrix.grad = torch.randn(8, 16, generator=generator)
    with torch.no_grad():
        Muon([matrix], 0.0).step(1.0)
    values = torch.linalg.svdvals(matrix.detach()) / (0.2 * 16**0.5)
    assert ((values > 0.6) & (values < 1.3)).all()
    assert float((matrix.detach() * matrix.grad).sum()) < 0


def test_windows_keep_their_lines_together(examples: Path, tmp_path: Path) -> None:
    recipe = walk_recipe(examples)
    course = WalkTask(recipe, Examples((examples,)), tmp_path)
    steps = course.batches((0, 0), Ranks())
    drawn = [next(steps) for _ in range(6)]
    again = course.batches(drawn[2][0], Ranks())
    for (cursor, batch), (same, copy) in zip(drawn[3:], again, strict=False):
        assert cursor == same
        assert torch.equal(batch.inputs, copy.inputs)
    for _, batch in drawn:
        assert batch.inputs.numel() <= recipe.batch_tokens
        # Whatever was moved and cut: a good line's number is still told to be kept.
        for number, place, step in zip(
            batch.number_rows, batch.number_places, batch.number_steps, strict=True
        ):
            line = batch.inputs[number, max(0, place - 3) : place].tolist()
            bar = course.tokenizer.encode("Login")[-1]
            if bar in line:
                assert batch.drop[step] == 1
    assert np.mean([float(batch.drop.mean()) for _, batch in drawn]) > 0.2


def test_a_training_is_a_slurm_job(
    slurm: SlurmCluster, examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm.env()[name])
    site = load_site(ROOT / "slurm/sites/local.yaml")
    out = tmp_path / "out"
    with pytest.raises(UserError, match="is no Slurm site"):
        submit(walk_recipe(examples), out, site)
    where = tmp_path / "slurm.yaml"
    where.write_text("name: test\ncpus: 1\ntime: 10\n")
    site = load_site(where)
    # Far too many steps: the job is told to end, as before its time limit.
    endless = submit(walk_recipe(examples, steps=100_000, save_minutes=0.001), out, site)
    slurm.until((out / "training/state.pt").exists, "a checkpoint", timeout=90)
    slurm.run("scancel", "--signal=USR2", endless)
    slurm.wait_jobs(endless, FINISHED)
    error = next((out / "training/logs").glob("*.err")).read_text()
    assert "training stopped by SIGUSR2" in error
    assert not (out / "model.safetensors").exists()
    step = Folder(out).load(out / "training/state.pt")["progress"]["step"]
    trained(walk_recipe(examples, steps=step + 2), out, resume=True)
    assert log(out)[-1]["step"] == step + 2
    slurm.reset()


def test_answers_stay_within_the_context() -> None:
    """Positions that a model has learnt end there."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=64, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(shape).eval()
    found = answers(model, [[5] * 13, [5] * 4], 0, 50, shape.n_positions)
    assert all(1 <= len(ids) <= 3 for ids in found)
