import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from proxhpc.engines import make_engine
from proxhpc.engines.base import (
    LOOP_COUNT,
    LOOP_TOKENS,
    Completion,
    Engine,
    EngineDiedError,
    Request,
    RequestError,
    count_repeated,
    is_loop,
)
from proxhpc.engines.drafts import Decoded
from proxhpc.engines.spawn import (
    ErrorLog,
    OrphanKiller,
    children_watched,
    node_local_environment,
)
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import RetryError, UserError
from proxhpc.program.grammar import DOC_GRAMMAR, chunk_grammar
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay
from proxhpc.program.syntax import FIRST_LINE, Dialect
from proxhpc.refine.prompts import Prompts
from proxhpc.run.models import ModelRef, resolve_model
from proxhpc.run.process import descendants, start_time
from proxhpc.spec.refiner_file import load_profile
from proxhpc.spec.sections import EngineOptions
from tiny_models import edit_json, save_llama, save_tokenizer

PROMPTS = [[1, *range(10 + i, 14 + 7 * i)] for i in range(8)]


def request(prompt: list[int], new: int = 12, stop: tuple[str, ...] = ()) -> Request:
    return Request("chunk", prompt, (), 0, new, stop)


async def ask(engine: Engine, *requests: Request) -> list[Any]:
    """Answers or exceptions to requests that are all in flight at once."""
    return await asyncio.gather(*map(engine.complete, requests), return_exceptions=True)


class Loop:
    """An event loop that lasts for several calls, as an engine needs it."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner()

    def __call__(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> ModelRef:
    pytest.importorskip("transformers")
    return resolve_model(str(save_llama(tmp_path_factory.mktemp("tiny") / "llama")))


def options(name: str = "transformers", **values: Any) -> EngineOptions:
    return EngineOptions(name=name, **values)


@pytest.fixture(scope="module")
def engine(tiny: ModelRef, loop: Loop) -> Iterator[Engine]:
    made = loop(make_engine(options(batch_size=3, dtype="float32"), tiny))
    yield made
    loop(made.close())


def step_by_step(model: ModelRef, prompt: list[int], new: int) -> list[int]:
    """Greedy tokens, without cache, padding or `generate`."""
    import torch
    from transformers import LlamaForCausalLM

    llama = LlamaForCausalLM.from_pretrained(model.path, dtype=torch.float32)
    ids = list(prompt)
    with torch.inference_mode():
        while len(ids) < len(prompt) + new:
            ids.append(int(llama(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] in model.stop_ids:
                break
    return ids[len(prompt) :]


def test_loading_prints_nothing(
    tiny: ModelRef, loop: Loop, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers.utils import logging

    logging.enable_progress_bar()
    loop(loop(make_engine(options(dtype="float32"), tiny)).close())
    assert capfd.readouterr() == ("", "")


def test_a_batch_gives_the_tokens_of_a_plain_loop(
    engine: Engine, tiny: ModelRef, loop: Loop
) -> None:
    """Padding, batching and different limits change nothing."""
    assert engine.tokenizer is not None
    limits = [1, 12, 3, 20, 7, 12, 2, 5]
    answers = loop(ask(engine, *(request(p, m) for p, m in zip(PROMPTS, limits, strict=True))))
    for prompt, limit, answer in zip(PROMPTS, limits, answers, strict=True):
        tokens = step_by_step(tiny, prompt, limit)
        stopped = tokens[-1] == 2
        assert answer == Completion(
            text=engine.tokenizer.decode(tokens[:-1] if stopped else tokens),
            finish="stop" if stopped else "length",
            prompt_tokens=len(prompt),
            cached_tokens=0,
            new_tokens=len(tokens),
        )
    assert len({answer.text for answer in answers}) > 4


def test_a_stop_string_ends_an_answer(engine: Engine, loop: Loop) -> None:
    """Text of its last token after the string is cut off; other answers of the batch continue."""
    check_stops(engine, [request(prompt, 20) for prompt in PROMPTS], loop)


def check_stops(engine: Engine, requests: list[Request], loop: Loop) -> None:
    """Repeat requests with a stop string from the middle of each answer, or without one."""
    free = loop(ask(engine, *requests))
    assert engine.tokenizer is not None
    asked = []
    for number, (first, answer) in enumerate(zip(requests, free, strict=True)):
        middle = len(answer.text) // 2
        string = answer.text[middle - 2 : middle + 1]
        stop = ("not in the answer", string) if number % 3 and string else ()
        asked.append(replace(first, stop=stop))
    stopped = 0
    for request_, whole, answer in zip(asked, free, loop(ask(engine, *asked)), strict=True):
        if not request_.stop:
            assert replace(answer, cached_tokens=0) == replace(whole, cached_tokens=0)
            continue
        string = request_.stop[1]
        assert answer.text == whole.text[: whole.text.index(string) + len(string)]
        assert answer.finish == "stop"
        assert answer.new_tokens <= whole.new_tokens
        stopped += answer.new_tokens < whole.new_tokens
    assert stopped >= 2


def test_a_loop_ends_an_answer(tmp_path: Path, loop: Loop) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_llama(tmp_path / "llama")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"] = weights["lm_head.weight"] * 0  # it repeats one token forever
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    engine = loop(make_engine(options(), resolve_model(str(folder))))
    asked = [replace(request(prompt, 150), bias=((100, 1.0),)) for prompt in PROMPTS]
    check_loops(engine, asked, loop)
    loop(engine.close())


def check_loops(engine: Engine, requests: list[Request], loop: Loop) -> None:
    """Answers end where they loop; a repetition that the lines have is quoted to its end."""
    free = loop(ask(engine, *requests))
    ended = loop(ask(engine, *(replace(asked, end_loops=True) for asked in requests)))
    assert engine.tokenizer is not None
    quoting = []
    for asked, whole, answer in zip(requests, free, ended, strict=True):
        assert whole.text.startswith(answer.text)
        if answer.finish != "loop":
            assert replace(answer, cached_tokens=0) == replace(whole, cached_tokens=0)
            continue
        assert LOOP_TOKENS[0] * LOOP_COUNT <= answer.new_tokens < whole.new_tokens
        limit = engine.max_model_len - len(asked.prompt)
        lines = ("Home", answer.text * 2)
        quoting.append((replace(asked, lines=lines, max_new_tokens=limit, end_loops=True), answer))
    assert quoting
    answers = loop(ask(engine, *(asked for asked, _ in quoting)))
    for (asked, short), answer in zip(quoting, answers, strict=True):
        assert (answer.finish, answer.prompt_tokens) == ("loop", len(asked.prompt))
        assert short.new_tokens < answer.new_tokens
        assert answer.text.startswith(short.text)
        if answer.work:  # an answer that vLLM ended and continued
            assert answer.work.logits == answer.new_tokens
            assert len(asked.prompt) < answer.cached_tokens + answer.work.fed


def test_a_loop_is_as_long_as_a_call() -> None:
    call = list(range(10))
    assert count_repeated([99, *call * 4]) == 40
    assert count_repeated([*call[3:], *call * 4]) == 47
    assert not count_repeated([*call * 4, 99])
    assert not count_repeated([99, *call * 3])
    assert not count_repeated([1, 2] * 15)  # like the dashes of a quoted line
    assert count_repeated([1, 2] * 16) == 32
    assert not count_repeated([*range(41)] * 4)


@pytest.fixture(scope="module", params=["tiny", "llama"])
def real_tokenizer(request: pytest.FixtureRequest) -> HFTokenizer:
    """The tests' tokenizer, with about one token a character, and Llama's."""
    pytest.importorskip("transformers")
    if request.param == "tiny":
        folder = request.getfixturevalue("tmp_path_factory").mktemp("tokenizer")
        return HFTokenizer(save_tokenizer(folder))
    if "PROXHPC_DATA" not in os.environ:
        pytest.skip("PROXHPC_DATA names no folder with llama_tokenizer/")
    return HFTokenizer(Path(os.environ["PROXHPC_DATA"]) / "llama_tokenizer")


REPETITIONS = {
    "entities": "&nbsp;" * 30,
    "divider": "* " * 40,
    "row of a table": "0 0 1 " * 20,
    "laughter": "ha" * 40,
    "Chinese": "广告 " * 20,
    "dashes": "-" * 900,
    "LaTeX": r"\\ \hline " * 20,
    "emoji": "\U0001f600" * 60,
    "damaged text": "\ufffd" * 200,
    "blanks": " " * 900,
    "rows": "0 0 1\n" * 30,
}


@pytest.mark.parametrize("name", REPETITIONS)
@pytest.mark.parametrize("escaped", [False, True])
def test_a_quotation_is_no_loop(real_tokenizer: HFTokenizer, name: str, escaped: bool) -> None:
    text = REPETITIONS[name]
    lines = f"Home\nThe brain {text} is here\na\nb".split("\n")
    body = text.replace("\\", "\\\\") if escaped else text
    body = body.replace("\n", "\\n")
    # A target may repeat the text, too, after a correction.
    calls = f'replace_str(2, "The brian {body}", "The brain {body}")\nremove_lines(3, 4)'
    ids = real_tokenizer.encode(calls)
    repeats = [end for end in range(1, len(ids)) if count_repeated(ids[:end])]
    assert not any(is_loop(ids[:end], lines, real_tokenizer) for end in repeats)
    assert repeats or name in ("dashes", "blanks", "damaged text", "LaTeX", "entities")
    looping = real_tokenizer.encode(f'replace_str(2, "The brian {body * 5}')
    ends = (end for end in range(1, len(looping)) if is_loop(looping[:end], lines, real_tokenizer))
    assert next(ends, None), "it repeats more than the line does"


@pytest.mark.parametrize(
    "answer",
    [
        "remove_lines(start=1, end=1)\n" * 20,
        'normalize("a ")\n' * 20,
        'normalize(source_str="' + "brain " * 200,
        "\n" * 200,
        "rm 4-5\n" * 40,
    ],
)
def test_an_answer_that_repeats_itself_is_a_loop(real_tokenizer: HFTokenizer, answer: str) -> None:
    lines = ["Home | a b", "The brain * * * * is here", "a "]
    ids = real_tokenizer.encode(answer)
    first = next(end for end in range(1, len(ids)) if is_loop(ids[:end], lines, real_tokenizer))
    assert first <= LOOP_COUNT * LOOP_TOKENS[-1]


def test_every_stop_token_of_the_model_stops(
    tmp_path: Path, tiny: ModelRef, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = step_by_step(tiny, PROMPTS[3], 12)
    assert len(set(tokens[:4])) == 4
    model = save_llama(tmp_path / "llama")
    # The end-of-sequence tokens of the model must be used, its sampling defaults must not.
    edit_json(
        model / "generation_config.json",
        do_sample=True,
        temperature=9.0,
        repetition_penalty=3.0,
        suppress_tokens=[tokens[0]],
        eos_token_id=[2, tokens[3]],
    )
    made = loop(make_engine(options(), resolve_model(str(model))))
    widths: list[int] = []
    generate = made._model.generate

    def measured(ids: Any, **arguments: Any) -> Any:
        out = generate(ids, **arguments)
        widths.append(out.shape[1] - ids.shape[1])
        return out

    monkeypatch.setattr(made._model, "generate", measured)
    answer, other = loop(ask(made, request(PROMPTS[3], 99), request(PROMPTS[0], 3)))
    loop(made.close())
    assert widths == [4]  # one batch, and it ends with its last row
    assert (answer.finish, answer.new_tokens) == ("stop", 4)
    assert (other.finish, other.new_tokens) == ("length", 3)
    assert answer.text == made.tokenizer.decode(tokens[:3])
    assert other.text == made.tokenizer.decode(step_by_step(tiny, PROMPTS[0], 3))


def test_a_wrong_request_does_not_affect_others(engine: Engine, loop: Loop) -> None:
    too_long, valid, empty, no_tokens, exact, grammar = loop(
        ask(
            engine,
            request([1] * 245, 12),
            request(PROMPTS[0]),
            request([]),
            request([1], 0),
            request([1] * 244, 12),
            replace(request([1], 3), grammar="a+"),
        )
    )
    assert isinstance(too_long, RequestError)
    assert "245 tokens and 12 new ones do not fit the model's context of 256" in str(too_long)
    for refused in (empty, no_tokens, grammar):
        assert isinstance(refused, RequestError)
    assert valid.prompt_tokens == len(PROMPTS[0])
    assert exact.prompt_tokens == 244


def test_a_batch_without_memory_is_halved(
    engine: Engine, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    generate = engine._generate  # type: ignore[attr-defined]

    def small_memory(requests: list[Request], check: object) -> list[Completion]:
        sizes.append(len(requests))
        if len(requests) > 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        if len(requests[0].prompt) == len(PROMPTS[2]):
            raise RuntimeError("broken")
        return list(generate(requests, check))

    monkeypatch.setattr(engine, "_generate", small_memory)
    first, second, third = loop(ask(engine, *map(request, PROMPTS[:3])))
    assert (first.prompt_tokens, second.prompt_tokens) == (5, 11)
    assert isinstance(third, EngineDiedError)  # counted as a crash: the document may be its cause
    assert "broken" in str(third)
    assert sorted(sizes) == [1, 1, 1, 2, 3]


def test_requests_can_be_cancelled_and_the_engine_closed(tiny: ModelRef, loop: Loop) -> None:
    async def work() -> None:
        engine = await make_engine(options(batch_size=2), tiny)
        tasks = [asyncio.create_task(engine.complete(request(p, 100))) for p in PROMPTS]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = asyncio.gather(*tasks, return_exceptions=True)
        await engine.close()
        kinds = {type(result) for result in await results}
        assert kinds <= {asyncio.CancelledError, Completion, RetryError}
        assert RetryError in kinds
        with pytest.raises(RetryError, match="closed"):
            await engine.complete(request([1]))

    loop(work())


def test_a_cancelled_answer_stops(tiny: ModelRef, loop: Loop) -> None:
    async def work() -> float:
        engine = await make_engine(options(batch_size=2), tiny)
        engine._model.register_forward_hook(lambda *_: time.sleep(0.1))  # type: ignore[attr-defined]
        long = [request(prompt, 200) for prompt in PROMPTS[:2]]
        gone = [asyncio.create_task(engine.complete(asked)) for asked in long]
        await asyncio.sleep(0.3)
        for task in gone:
            task.cancel()
        began = time.monotonic()
        assert (await engine.complete(request(PROMPTS[0], 2))).new_tokens <= 2
        left = asyncio.create_task(engine.complete(long[0]))
        await asyncio.sleep(0.3)
        await engine.close()
        with pytest.raises(RetryError, match="closed"):
            await left  # not a part of an answer
        return time.monotonic() - began

    assert loop(work()) < 8


def test_the_token_limit_precedes_a_loop(engine: Engine) -> None:
    looping = list(range(10, 18)) * 4
    for limit, finish in ((32, "length"), (33, "loop")):
        asked = replace(request([1], limit), end_loops=True)
        assert engine._completion(asked, Decoded(looping, None)).finish == finish  # type: ignore[attr-defined]


def test_a_core_on_a_cpu_runs_the_model_itself_and_compiles_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from proxhpc.engines.vllm_engine import nothing_compiled, run_in_core

    monkeypatch.setattr(os, "environ", {"VLLM_CPU_OMP_THREADS_BIND": "nobind"})
    assert set(run_in_core({})) == {"distributed_executor_backend"}
    assert run_in_core({"tensor_parallel_size": 2}) == {}
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "0-3"  # only another process can be bound
    assert run_in_core({}) == {}
    with nothing_compiled():
        assert os.environ["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in os.environ
    os.environ["TORCH_COMPILE_DISABLE"] = "0"
    with nothing_compiled():
        assert os.environ["TORCH_COMPILE_DISABLE"] == "0"
    assert os.environ["TORCH_COMPILE_DISABLE"] == "0"


def test_wrong_options_and_missing_packages(
    tiny: ModelRef, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="needs a model"):
        loop(make_engine(options(), None))
    with pytest.raises(UserError, match="'device_map' is unknown to transformers"):
        loop(make_engine(options(options={"device_map": "auto"}), tiny))
    with pytest.raises(UserError, match="max_model_len is 257"):
        loop(make_engine(options(max_model_len=257), tiny))
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="engine vllm needs the package vllm") as caught:
        loop(make_engine(options("vllm"), tiny))
    assert caught.value.hint.startswith("pip install 'vllm<0.33,>=")


def test_rules_need_no_model(loop: Loop) -> None:
    made = loop(make_engine(options("rules", rules=("c4",)), None))
    assert made.name == "rules"
    assert made.tokenizer is None


def test_signals_are_deferred_and_children_ignore_them() -> None:
    killer, log = OrphanKiller(), ErrorLog()
    received: list[int] = []
    numbers = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT)
    before = {n: signal.signal(n, lambda number, _: received.append(number)) for n in numbers}
    try:
        with children_watched(killer, log):
            os.kill(os.getpid(), signal.SIGTERM)
            child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
            child.start()
            os.kill(os.getpid(), signal.SIGUSR2)
            assert received == []
        assert received == [signal.SIGTERM, signal.SIGUSR2]
        os.kill(os.getpid(), signal.SIGINT)
        assert received[2:] == [signal.SIGINT]
        assert child.pid is not None
        for number in numbers:
            os.kill(child.pid, number)
        child.join(0.5)
        assert child.is_alive()
        assert child.pid in descendants(os.getpid())
        child.kill()
        child.join()
        assert start_time(child.pid) is None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        log.close()
        killer.release()


def test_the_environment_keeps_what_the_user_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_CACHE_ROOT": "/mine", "DO_NOT_TRACK": "0"})
    scratch = node_local_environment()
    assert os.environ["VLLM_CACHE_ROOT"] == "/mine"
    assert os.environ["DO_NOT_TRACK"] == "0"
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == scratch
    assert 20_000 <= int(os.environ["VLLM_PORT"]) < 32_000
    assert Path(os.environ["VLLM_RPC_BASE_PATH"]) == scratch
    assert node_local_environment() == scratch  # a second engine in this process
    killers = [OrphanKiller(scratch), OrphanKiller(scratch)]
    killers[0].release()
    assert scratch.exists()
    assert Path(os.environ["TRITON_CACHE_DIR"]).parent == scratch
    killers[1].release()
    assert not scratch.exists()
    assert os.environ["VLLM_CACHE_ROOT"] == "/mine"
    assert not {"TRITON_CACHE_DIR", "VLLM_RPC_BASE_PATH"} & set(os.environ)


def test_sockets_are_where_their_paths_are_not_too_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "environ", {})
    folder = tmp_path / ("x" * 70)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    scratch = node_local_environment()
    assert scratch.parent == folder
    assert "VLLM_RPC_BASE_PATH" not in os.environ
    OrphanKiller(scratch).release()
    assert list(folder.iterdir()) == []


ORPHAN = """
import os, signal, subprocess
from proxhpc.engines.spawn import OrphanKiller, node_local_environment
child = subprocess.Popen(["sleep", "60"])
OrphanKiller(node_local_environment()).watch({child.pid})
print(child.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_children_and_scratch_go_with_a_killed_parent(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ORPHAN],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    wait_gone(int(done.stdout))
    while list(tmp_path.iterdir()):  # until the test's time limit
        time.sleep(0.02)


def test_release_kills_watched_processes() -> None:
    child = subprocess.Popen(["sleep", "60"])
    killer = OrphanKiller()
    killer.watch({child.pid})
    killer.release()
    assert child.wait() == -signal.SIGKILL


def wait_gone(pid: int) -> None:
    """Wait for a process to end, up to the test's time limit."""
    while (stat := Path(f"/proc/{pid}/stat")).exists() and ") Z " not in stat.read_text():
        time.sleep(0.02)


# --- a real model, on both engines ---------------------------------------------------------

DOCUMENTS = [
    ["Home | About | Contact", "The fox is a small omnivorous mammal.", "Share on Facebook"],
    ["Skip to content", "", "Water boils at 100 degrees Celsius at sea level.", "© 2021"],
    ["Subscribe to our newsletter!", "Click here", "Read more >>"],
    ["def add(a, b):", "    return a + b"],
    ["Die Katze sitzt auf der Matte.", "Impressum"],
    ["1. Introduction", "We study the spectrum of a linear operator.", "[1] [2] [3]"],
    ["Price: $12.00 </s> <|im_end|>", "Add to cart"],
    ["The capital of France is Paris. It lies on the Seine. " * 12],
]


@pytest.fixture(scope="module")
def real(smollm2: Path) -> ModelRef:
    return resolve_model(str(smollm2))


def windows(engine: Engine, new: int = 16) -> list[Request]:
    assert engine.tokenizer is not None
    style = Prompts(load_profile("chat-template"))
    return [
        Request("chunk", style.chunk_prompt(engine.tokenizer, lines, 0), lines, 0, new)
        for lines in DOCUMENTS
    ]


@pytest.fixture(scope="module")
def core(real: ModelRef, vllm: None, loop: Loop) -> Iterator[Engine]:
    """One vLLM engine for all tests, since it takes a minute to start."""
    before = dict(os.environ)
    vllm_options = options("vllm", dtype="float32", max_model_len=1024)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the imports of vLLM and torch
        made = loop(make_engine(vllm_options, real))
    contexts = [made._engine._engine.engine_core.resources.ctx]
    made.contexts = contexts
    assert len(children(made)) == 1  # no process but the core
    yield made
    loop(made.close())
    loop(made.close())  # closing twice is allowed
    for context in contexts:
        context.destroy(linger=0)  # otherwise the garbage collector warns
    os.environ.clear()
    os.environ.update(before)
    assert not children(made) & descendants(os.getpid())


def children(core: Any) -> set[int]:
    """Process ids of the current vLLM engine."""
    return set(core._engine._children)


@pytest.fixture(scope="module")
def expected(real: ModelRef, loop: Loop) -> list[Completion]:
    """The answers of the transformers engine."""

    async def work() -> list[Completion]:
        engine = await make_engine(options(dtype="float32", max_model_len=1024), real)
        answers = await ask(engine, *windows(engine))
        await engine.close()
        return answers

    return list(loop(work()))


@pytest.mark.model
def test_both_engines_write_the_same_programs(
    core: Engine, expected: list[Completion], loop: Loop
) -> None:
    requests = windows(core)
    answers = loop(ask(core, *requests))
    assert [a.text for a in answers] == [e.text for e in expected]
    assert all(a.text.strip() for a in answers)
    for answer, wanted, asked in zip(answers, expected, requests, strict=True):
        assert (answer.finish, answer.new_tokens) == (wanted.finish, wanted.new_tokens)
        assert answer.prompt_tokens == wanted.prompt_tokens == len(asked.prompt)
    # Repeated, whole blocks of the longest prompt come from the cache.
    again = loop(core.complete(requests[-1]))
    assert 0 < again.cached_tokens < again.prompt_tokens
    assert again.text == answers[-1].text


@pytest.mark.model
def test_vllm_obeys_a_grammar(core: Engine, loop: Loop) -> None:
    asked = windows(core, 40)[0]
    grammar = r"remove_lines\(line_start=[0-9], line_end=[0-9]\)"
    answer, wrong = loop(
        ask(
            core,
            replace(asked, grammar=grammar),
            replace(asked, grammar="("),
        )
    )
    assert answer.finish == "stop"
    assert answer.text.startswith("remove_lines(line_start=")
    assert answer.text.endswith(")")
    assert isinstance(wrong, RequestError)


@pytest.mark.model
@pytest.mark.parametrize("dialect", ["prox", "refinex"])
def test_programs_of_a_windows_grammar_are_valid(
    core: Engine, loop: Loop, dialect: Dialect
) -> None:
    """Nothing that an untrained model writes is rejected."""
    first = FIRST_LINE[dialect]
    odd = [*DOCUMENTS[5], 'naïve 漢字 (a|b)* [x] {1,2} ^$ . ? + \\ "quoted" </s>']
    asked = []
    for lines in [*DOCUMENTS[:4], odd]:
        prompt = Prompts(load_profile("chat-template")).chunk_prompt(core.tokenizer, lines, first)
        for text in ((), lines):
            grammar = chunk_grammar(dialect, first, first + len(lines) - 1, lines=text)
            asked.append(Request("chunk", prompt, lines, first, 60, ("keep_all()",), grammar))
    answers = loop(ask(core, *asked))
    for question, answer in zip(asked, answers, strict=True):
        emitted = ModelOutput(answer.text, "stop" if answer.finish == "stop" else "length")
        text, policy = "\n".join(question.lines), Policy(min_kept_words=0, max_removed_share=1)
        windows = [WindowProgram(0, len(question.lines), emitted)]
        outcome = replay(text, None, windows, policy, ProgramFormat(dialect))
        assert set(outcome.rejected) <= {"truncated_call"}
    assert len({answer.text for answer in answers}) > 3
    verdict = loop(core.complete(replace(asked[0], level="doc", grammar=DOC_GRAMMAR)))
    assert verdict.text in ("keep_doc()", "drop_doc()")


@pytest.mark.model
def test_a_stop_string_ends_an_answer_of_vllm(core: Engine, loop: Loop) -> None:
    check_stops(core, windows(core), loop)


@pytest.mark.model
def test_a_loop_ends_an_answer_of_vllm(core: Engine, loop: Loop) -> None:
    check_loops(core, windows(core, 150), loop)


@pytest.mark.model
def test_vllm_sees_the_same_repetitions(vllm: None) -> None:
    from vllm.v1.core.sched.utils import check_sequence_repetition

    from proxhpc.engines.vllm_engine import _loop_detection

    params = _loop_detection()
    chooser = random.Random(3)
    found = 0
    for _ in range(3000):
        pattern = [chooser.randrange(3) for _ in range(chooser.randrange(1, 44))]
        ids = [chooser.randrange(3) for _ in range(9)] + pattern * chooser.randrange(2, 6)
        repeats = count_repeated(ids) > 0
        assert repeats == check_sequence_repetition(ids, params)
        found += repeats
    assert 300 < found < 2700


@pytest.mark.model
def test_vllm_survives_a_wrong_request_and_signals(core: Engine, loop: Loop) -> None:
    for pid in children(core):
        os.kill(pid, signal.SIGUSR1)
        os.kill(pid, signal.SIGUSR2)
    too_long, valid = loop(ask(core, request([1] * 1020, 12), windows(core, 4)[0]))
    assert isinstance(too_long, RequestError)
    assert valid.new_tokens == 4
    assert signal.getsignal(signal.SIGUSR2) is signal.SIG_DFL


@pytest.mark.model
def test_a_request_without_an_answer_counts_as_a_crash(
    vllm: None, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The document may be the cause, and crashes are counted. Closing ends open requests."""
    warnings.simplefilter("ignore")  # of the imports of vLLM and torch
    from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

    from proxhpc.engines.vllm_engine import VLLMEngine

    async def fails(*arguments: Any, **more: Any) -> AsyncIterator[Any]:
        raise EngineGenerateError
        yield

    async def aborts(*arguments: Any, **more: Any) -> AsyncIterator[Any]:
        yield SimpleNamespace(outputs=[SimpleNamespace(finish_reason="abort")])

    for generate in (fails, aborts):
        engine: Any = VLLMEngine.__new__(VLLMEngine)
        engine._engine, engine._death_reason, engine._stop = (
            SimpleNamespace(generate=generate),
            None,
            [2],
        )
        engine._request_ids, engine.max_model_len = iter(range(9)), 100
        (answer,) = loop(ask(engine, request([1])))
        assert isinstance(answer, EngineDiedError)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    errors: list[Exception] = []
    outputs = SimpleNamespace(propagate_error=errors.append)
    engine._engine = SimpleNamespace(output_processor=outputs, shutdown=lambda timeout: None)
    engine._killer, engine._children = OrphanKiller(node_local_environment()), set()
    loop(engine.close())
    assert [type(error) for error in errors] == [EngineDeadError]


@pytest.mark.model
def test_vllm_options_are_checked(core: Engine, real: ModelRef, loop: Loop) -> None:
    wrong = {
        "enforce_eagr": "did you mean 'enforce_eager'",
        "trust_remote_code": "multiple values for keyword argument 'trust_remote_code'",
    }
    for name, message in wrong.items():
        made = EngineOptions.model_construct(
            **{**options("vllm").model_dump(), "options": {name: True}}
        )
        with pytest.raises(UserError, match=name) as caught:
            loop(make_engine(made, real))
        assert message in str(caught.value)


@pytest.mark.model
def test_a_killed_core_is_replaced_once(
    core: Engine, expected: list[Completion], loop: Loop
) -> None:
    """The last test with this engine. Open requests are repeated to the new one."""

    async def killed(seconds: float, *requests: Request) -> list[Any]:
        tasks = asyncio.gather(*map(core.complete, requests), return_exceptions=True)
        await asyncio.sleep(seconds)
        for pid in children(core):
            os.kill(pid, signal.SIGKILL)
        return await tasks

    before = children(core)
    asked = windows(core)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        long = replace(asked[0], max_new_tokens=200)  # killed while it is answered
        first, *answers = loop(killed(0.5, long, *asked))
    core.contexts.append(core._engine._engine.engine_core.resources.ctx)  # type: ignore[attr-defined]
    assert [answer.text for answer in answers] == [e.text for e in expected]
    assert first.text.startswith(expected[0].text)
    assert not before & children(core)
    answers = loop(killed(0, *asked))  # sent, and no answer can have been read
    assert all(isinstance(answer, RetryError) for answer in answers)
    with pytest.raises(RetryError, match="died again"):
        loop(core.complete(asked[0]))
