"""Bits of held-out texts and scores of tasks: by hand, with a small random model."""

import gzip
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.account.flops import ModelShape, pretraining_flops
from proxhpc.errors import UserError
from proxhpc.prove.heldout import TextScorer, sliding_windows, write_losses
from proxhpc.prove.tasks import read_questions, score_questions, task_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTEXT = 16
TEXTS = ["", "a", "naïve 漢字 <|end|>", "One day the fox ran home. " * 9, "x" * 40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with random weights and a tokenizer of bytes."""
    import torch
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM

    out = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False)])
    tokenizer.save(str(out / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|end|>"}
    (out / "tokenizer_config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=257,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.5,
        )
    ).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def scorer(folder: Path) -> TextScorer:
    return TextScorer(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> "PreTrainedModel":
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def bits(model: "PreTrainedModel", ids: Sequence[int], first: int) -> float:
    """Bits of the tokens from index `first` on, one at a time and all that fits before it."""
    import torch

    total = 0.0
    for index in range(first, len(ids)):
        before = torch.tensor([ids[max(0, index - CONTEXT) : index]])
        logits = model(before).logits[0, -1].double()
        total -= torch.log_softmax(logits, -1)[ids[index]].item() / math.log(2)
    return total


def test_bits_of_texts_that_fit_are_exact(scorer: TextScorer, model: "PreTrainedModel") -> None:
    short = [text for text in TEXTS if len(text.encode()) <= CONTEXT]
    found = scorer.score_texts(short)
    for text, value in zip(short, found, strict=True):
        ids = [256, *scorer.tokenizer.encode(text)]
        assert value == pytest.approx(bits(model, ids, 1), abs=1e-4)
    assert found[0] == 0


def test_a_long_text_is_scored_in_windows_and_alike_in_any_batch(
    scorer: TextScorer, model: "PreTrainedModel"
) -> None:
    import torch

    text = TEXTS[3]
    ids = [256, *scorer.tokenizer.encode(text)]
    total = 0.0
    for window in sliding_windows(0, ids, 1, CONTEXT + 1):
        logits = model(torch.tensor([window.ids[:-1]])).logits[0].double()
        nats = torch.nn.functional.cross_entropy(
            logits, torch.tensor(window.ids[1:]), reduction="none"
        )
        total += nats[window.first - 1 :].sum().item() / math.log(2)
    alone, together = scorer.score_texts([text])[0], scorer.score_texts(TEXTS)[3]
    assert alone == pytest.approx(total, rel=1e-5)
    assert together == pytest.approx(alone, rel=1e-5)


@given(st.integers(1, 60), st.integers(0, 20), st.integers(2, 17))
def test_windows_score_each_token_once_with_a_quarter_of_a_context(
    size: int, first: int, context: int
) -> None:
    ids = list(range(size))
    scored = []
    for window in sliding_windows(0, ids, first, context):
        assert len(window.ids) <= context
        assert window.first >= min(window.ids[window.first], context // 4)
        scored += window.ids[window.first :]
    assert scored == ids[max(first, 1) :]


def test_continuations_follow_the_end_of_a_long_context(
    scorer: TextScorer, model: "PreTrainedModel"
) -> None:
    encode = scorer.tokenizer.encode
    found = scorer.score_continuations([("ab", " cd"), ("ab ", "cd"), ("", "cd"), ("z" * 30, " q")])
    assert found[0] == pytest.approx(bits(model, encode("ab cd"), 2), abs=1e-4)
    assert found[1] == found[0]  # the space belongs to the continuation
    assert found[2] == pytest.approx(bits(model, [256, *encode("cd")], 1), abs=1e-4)
    cut = encode("z" * 15 + " q")  # as many tokens as the model reads to predict the last one
    assert found[3] == pytest.approx(bits(model, cut, 15), abs=1e-4)


def test_losses_have_exact_bytes_and_always_the_same_file(tmp_path: Path) -> None:
    for name in ("a.npy", "b.npy"):
        write_losses(tmp_path / name, np.arange(5.0), TEXTS)
    rows = np.load(tmp_path / "a.npy")
    assert rows["bytes"].tolist() == [len(text.encode()) for text in TEXTS]
    assert rows["bits"].tolist() == [0, 1, 2, 3, 4]
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def olmes(doc: int, choice: int, continuation: str, label: Any, context: str = "Q\nA:") -> Any:
    request = {"context": context, "continuation": continuation}
    return {"doc_id": doc, "idx": choice, "label": label, "request": request}


def written(path: Path, rows: list[Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def test_questions_of_olmes_and_lm_eval(tmp_path: Path) -> None:
    rows = [olmes(d, c, f" {word}", 1) for d in (0, 7) for c, word in enumerate(("no", "yes"))]
    rows += [olmes(1_000_000 + d, 0, " no", 1, "Answer:") for d in (0, 7)]
    path = written(tmp_path / "requests.jsonl.gz", rows)
    expected = ((("Q\nA:", " no"), ("Q\nA:", " yes")), 1)
    assert read_questions(path) == [expected, expected]
    arguments = {
        f"gen_args_{n}": {"arg_0": "Q\nA:", "arg_1": word} for n, word in enumerate((" no", " yes"))
    }
    samples = [{"doc_id": d, "target": "1", "arguments": arguments} for d in (0, 7)]
    assert read_questions(written(tmp_path / "samples.jsonl", samples)) == [expected, expected]
    single = written(tmp_path / "lambada.jsonl", [olmes(0, 0, " signs", ["signs"])])
    assert read_questions(single) == [((("Q\nA:", " signs"),), 0)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"doc_id": 1, "label": 0}], "requests.jsonl:1: not a request"),
        ([olmes(0, 0, "", 0)], "not a request"),
        ([olmes(0, 0, " a", 3)], "question 0 has no choice number 3"),
        ([olmes(0, 0, " a", -1)], "no choice number -1"),
        ([olmes(0, 0, " a", "x")], "not a request"),
        ([olmes("a", 0, " a", 0)], "not a request"),
        ([], "has no question"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, rows: list[Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(written(tmp_path / "requests.jsonl", rows))


def test_scores_of_questions_by_hand(tmp_path: Path, scorer: TextScorer) -> None:
    class Fixed(TextScorer):
        def __init__(self) -> None:
            pass

        def score_continuations(self, pairs: Sequence[tuple[str, str]]) -> Any:
            assert [pair[1] for pair in pairs] == [" ab", " abc", " é", " e"]
            return np.array([6.0, 8.5, 5.0, 5.0])

    rows = [olmes(0, 0, " ab", 1), olmes(0, 1, " abc", 1), olmes(1, 0, " é", 0)]
    questions = read_questions(written(tmp_path / "a.jsonl", [*rows, olmes(1, 1, " e", 0)]))
    # The first choice of each is the best; per character, and without its space, the second one.
    expected = [(8.5, 4, 2, 0, 1), (5.0, 3, 2, 1, 1)]
    assert score_questions(Fixed(), questions).tolist() == expected
    real = score_questions(scorer, questions)
    assert (real["gold_bits"] > 0).all()


def test_names_of_tasks() -> None:
    assert task_name(Path("/d/arc_easy/rc_0shot/requests.jsonl.gz")) == "arc_easy.rc_0shot"
    assert task_name(Path("/d/my task.jsonl")) == "my_task"
    assert task_name(Path("requests.jsonl")) == "task"


def test_a_model_that_is_damaged_is_a_clear_error(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot be loaded"):
        TextScorer(tmp_path)


@pytest.mark.parametrize(("model_type", "window"), [("llama", 6), ("mistral", 4)])
def test_flops_of_pretraining_by_hand(model_type: str, window: int) -> None:
    config = {
        "model_type": model_type,
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "intermediate_size": 20,
        "vocab_size": 50,
        "sliding_window": window,
    }
    shape = ModelShape.from_config(config)
    length, sequences = 6, 5
    forward = 0
    for position in range(length):
        for _ in range(3):  # layers: q, k, v, o, then gate, up, down
            forward += 2 * (8 * 8 + 8 * 4 + 8 * 4 + 8 * 8 + 3 * 8 * 20)
            forward += 2 * 2 * 8 * min(position + 1, window)  # scores and weighted sums
        forward += 2 * 8 * 50
    assert pretraining_flops(shape, sequences, length) == 3 * sequences * forward
