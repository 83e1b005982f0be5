"""Pre-training: token files, resuming, processes, and what a finished training leaves."""

import dataclasses
import json
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from proxhpc.cluster import job_step
from proxhpc.cluster.job_step import StepTask
from proxhpc.errors import RetryError, UserError
from proxhpc.train import pretrain as module
from proxhpc.train.pretrain import PretrainOptions, PretrainResult, pretrain
from proxhpc.train.processes import run_processes
from proxhpc.train.token_file import TokenFile

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

MODEL = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "attention_dropout": 0.1,
    "tie_word_embeddings": True,
}
OPTIONS = PretrainOptions(
    model=MODEL,
    tokens=6 * 4 * 32 + 5,
    context=32,
    batch=4,
    micro_batch=2,
    optimizer="muon",
    learning_rate=0.01,
    schedule="cosine",
    decay=1.0,
    average=0.9,
    milestones=(200,),
)
DOCUMENT = [("key", "<u8"), ("start", "<u8"), ("length", "<u4")]


def save_tokens(path: Path, documents: dict[int, list[int]]) -> Path:
    """Token ids of documents by their keys."""
    rows, ids = [], []
    for key, document in documents.items():
        rows.append((key, len(ids), len(document)))
        ids += document
    np.save(path, np.array(ids, np.uint16))
    np.save(path.with_suffix(".documents.npy"), np.array(rows, DOCUMENT))
    return path


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    documents = {key: (rng.zipf(1.4, 40 + key) % 64).tolist() for key in range(20)}
    return save_tokens(tmp_path_factory.mktemp("tokens") / "arm.npy", documents)


@pytest.fixture(scope="module")
def whole(tokens: Path, tmp_path_factory: pytest.TempPathFactory) -> PretrainResult:
    """A training that nothing interrupts."""
    return pretrain(OPTIONS, tokens, tmp_path_factory.mktemp("whole") / "out", lambda _: None)


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "model.safetensors"))


def losses(result: PretrainResult) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in result.losses.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def folders(result: PretrainResult) -> list[Path]:
    return [result.weights, *result.milestones.values()]


def difference(one: PretrainResult, other: PretrainResult) -> float:
    return max(
        float((weights(left)[name] - value).abs().max())
        for left, right in zip(folders(one), folders(other), strict=True)
        for name, value in weights(right).items()
    )


def test_a_finished_training(whole: PretrainResult, tokens: Path) -> None:
    assert (whole.steps, whole.tokens, whole.documents) == (6, 768, 16)
    assert whole.epochs == pytest.approx(24 * 32 / TokenFile(tokens, 32, 0).tokens, rel=0.05)
    assert [*whole.milestones] == [2]
    assert [row["tokens"] for row in losses(whole)] == [128 * step for step in range(1, 7)]
    # By hand, for a token: matrices of two layers and the head; scores and sums of attention over
    # 16.5 keys on average; a backward pass takes twice as much.
    matrices = 2 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 32) + 16 * 64
    assert whole.flops == 3 * 768 * (2 * matrices + 2 * 4 * 16 * 33 // 2)
    assert whole.parameters == sum(value.numel() for value in weights(whole.weights).values())
    assert not (whole.weights.parent / "state.pt").exists()
    again = pretrain(OPTIONS, Path(tokens), whole.weights.parent, print)
    assert again == whole, "a finished training is not repeated"
    with pytest.raises(UserError, match="started with other options"):
        pretrain(dataclasses.replace(OPTIONS, seed=1), tokens, whole.weights.parent, print)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_stops_after_a_step_and_the_rest_is_the_same(
    number: signal.Signals,
    whole: PretrainResult,
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handler, loss, calls = signal.getsignal(number), module._Pretraining.loss, []

    def stopping(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:  # the first half of the third step
            os.kill(os.getpid(), number)
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(module._Pretraining, "loss", stopping)
        with pytest.raises(RetryError, match=f"{number.name} after step 3"):
            pretrain(OPTIONS, tokens, tmp_path, print)
    assert signal.getsignal(number) == handler
    with pytest.raises(UserError, match="started with other options"):
        pretrain(dataclasses.replace(OPTIONS, seed=1), tokens, tmp_path, print)
    torch.rand(1)  # what else draws random numbers must not matter
    resumed = pretrain(OPTIONS, tokens, tmp_path, print)
    assert losses(resumed) == losses(whole)
    assert difference(resumed, whole) == 0


class Killed(BaseException):
    """As SIGKILL: nothing handles it."""


@pytest.mark.parametrize("moment", range(8))
def test_a_kill_at_any_write_changes_nothing(
    moment: int,
    whole: PretrainResult,
    tokens: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The weights and the losses are the same, whatever was written before."""
    options = dataclasses.replace(OPTIONS, save_minutes=0.0)
    left = [(moment + 1) * 2]

    def dying(function: Callable[..., Any]) -> Callable[..., Any]:
        def write(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return function(*arguments, **options)

        return write

    with monkeypatch.context() as patch:
        for name in ("append_line", "save_checkpoint", "write_atomic", "draft_path"):
            patch.setattr(module, name, dying(getattr(module, name)))
        with pytest.raises(Killed):
            pretrain(options, tokens, tmp_path, print)
    (tmp_path / ".weights.0.tmp").mkdir()
    resumed = pretrain(options, tokens, tmp_path, print)
    assert losses(resumed) == losses(whole)
    assert difference(resumed, whole) == 0
    assert not list(tmp_path.rglob(".*")), "no drafts are left"


def _train_both(tokens: Path, out: Path, log: Callable[[str], None]) -> int:
    for name, options in parallel_options().items():
        (out / name).mkdir(exist_ok=True)
        module._train(options, tokens, out / name, log)
    return torch.distributed.get_world_size()


def parallel_options() -> dict[str, PretrainOptions]:
    """Copies of the weights (DDP) and parts of them (FSDP). Muon computes in bfloat16."""
    keys = {"model": MODEL | {"attention_dropout": 0.0}, "tokens": 3 * 128}
    copies = dataclasses.replace(OPTIONS, **keys)
    return {
        "copies": copies,
        "shards": dataclasses.replace(copies, sharded=True, optimizer="adamw"),
    }


def test_two_tasks_of_a_job_step_equal_one_process_that_accumulates(
    tokens: Path, tmp_path: Path
) -> None:
    step = f"{os.getpid()}.0"

    def run(rank: int) -> int:
        task = StepTask(step, rank, 2, local_rank=0, local_count=1, address="127.0.0.1")
        return run_processes(1, _train_both, tokens, tmp_path, log=print, task=task)

    with ThreadPoolExecutor(2) as tasks:
        assert list(tasks.map(run, range(2))) == [2, 2]
    for name, options in parallel_options().items():
        two = pretrain(options, tokens, tmp_path / name, print)
        one = pretrain(options, tokens, tmp_path / f"one-{name}", print)
        assert difference(one, two) < 1e-4
        pairs = zip(losses(one), losses(two), strict=True)
        assert all(left["loss"] == pytest.approx(right["loss"], abs=1e-4) for left, right in pairs)


def test_a_task_finds_its_place_in_a_job_step(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"STEP_NUM_TASKS": 4, "NTASKS": 4, "JOB_NUM_NODES": 2, "PROCID": 3, "LOCALID": 1}
    names = {"JOB_ID": "7", "STEP_ID": "0", "JOB_NODELIST": "no-such-host[1-2]", "NODEID": "1"}
    for name, value in {**numbers, **names}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    shown = "NodeName=no-such-host1 NodeAddr=10.0.0.7 NodeHostName=h Port=1"
    monkeypatch.setattr(job_step.slurm, "run_command", lambda *_: shown)
    assert job_step.step_task() == StepTask("7.0", 3, 4, 1, 2, "10.0.0.7")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert job_step.step_task() is None


def test_all_activations_are_computed_twice_with_the_same_result(
    tokens: Path, tmp_path: Path
) -> None:
    options = dataclasses.replace(OPTIONS, model=MODEL | {"attention_dropout": 0.0})
    twice = dataclasses.replace(options, checkpointing=True)
    last = dataclasses.replace(options, average=0.0)
    results = [
        pretrain(o, tokens, tmp_path / str(n), print) for n, o in enumerate((options, twice, last))
    ]
    assert difference(*results[:2]) < 1e-6
    assert difference(*results[1:]) > 1e-3, "the weights are a moving average"


def test_training_continues_from_a_base_model(
    whole: PretrainResult, tokens: Path, tmp_path: Path
) -> None:
    keys = {"model": None, "base": whole.weights, "learning_rate": 1e-6, "average": 0.0}
    result = pretrain(dataclasses.replace(OPTIONS, **keys), tokens, tmp_path, print)
    before, after = weights(whole.weights), weights(result.weights)
    assert all(0 < float((after[n] - before[n]).abs().max()) < 1e-4 for n in before if "proj" in n)
    assert losses(result)[0]["loss"] < losses(whole)[0]["loss"]


def test_corpora_with_the_same_documents_are_read_in_the_same_order(tmp_path: Path) -> None:
    documents = {key * 7919: [key] * (3 + key % 5) for key in range(60)}
    fewer = {key: ids for key, ids in documents.items() if key % 3}

    def order(path: Path, seed: int, epoch: int = 0) -> list[int]:
        file = TokenFile(path, 4, seed)
        first = epoch * file.sequences
        ids = file.read(range(first, first + file.sequences))[:, :-1].flatten().tolist()
        return list(dict.fromkeys(ids))  # each document once

    raw = save_tokens(tmp_path / "raw.npy", documents)
    shuffled = dict(sorted(fewer.items(), key=lambda pair: -pair[0]))
    refined = save_tokens(tmp_path / "refined.npy", shuffled)
    kept = {ids[0] for ids in fewer.values()}
    expected = [number for number in order(raw, 1) if number in kept]
    assert order(refined, 1) in (expected, expected[:-1])  # the last tokens may not fill a sequence
    assert len({tuple(order(raw, seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4
    file = TokenFile(raw, 4, 1)
    ids = file.read(range(file.sequences))
    assert (ids[1:, 0] == ids[:-1, -1]).all(), "each token but the first is predicted once"
    stream = sorted([*ids[:, :-1].flatten(), ids[-1, -1]])
    assert len(stream) > file.tokens - 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": 127}, "127 tokens are less than one step of 4 sequences"),
        ({"micro_batch": 3}, "a batch of 4 sequences cannot be split over 1 process, each 3"),
        ({"context": 4096, "tokens": 1 << 20}, "too few for a sequence of 4,096"),
        ({"model": MODEL | {"model_type": "lama"}}, "the keys of the new model cannot be used"),
        ({"learning_rate": 1e30, "optimizer": "adamw"}, "the training diverged"),
    ],
)
def test_options_that_cannot_be_used(
    changes: dict[str, Any], message: str, tokens: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        pretrain(dataclasses.replace(OPTIONS, **changes), tokens, tmp_path, print)
    text = np.array([[1, 2]], np.int64)
    np.save(tmp_path / "bad.npy", text)
    with pytest.raises(UserError, match="holds no token ids"):
        TokenFile(tmp_path / "bad.npy", 2, 0)
