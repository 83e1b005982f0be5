"""Compare our worker with bare vLLM and with the published scripts.

    python tools/bench_worker.py corpus.jsonl.zst --model .cache/smollm2-135m

Three ways to refine the same documents, some of which are exact copies of others (--copies):

  worker     `proxhpc worker` on a planned run: reading, tokenizing, windows, ledger, commits
  bare       all requests of the worker, given to vLLM at once
  published  the doc stage over all documents, then the chunk stage over those that it keeps, with
             the published prompts and limits: 2000 new tokens for a verdict, 256 for a window

One model serves both stages. The worker runs in a new process, the other two in another; each
begins with an empty cache, and the start of its engine does not count. Prompt tokens count whether
cached or not; FLOPs count what was computed.
`bare` answers the same requests as `worker`, so the ratio of their prompt tokens per second is a
ratio of times. The order alternates between rounds; ratios are medians.
"""

import argparse
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson

import bench
from proxhpc.account.flops import Usage, flops
from proxhpc.engines import make_engine
from proxhpc.engines.base import Completion, Engine, Request
from proxhpc.engines.spawn import OrphanKiller, node_local_environment
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.refine.prompts import Prompts
from proxhpc.refine.windows import LineTokens
from proxhpc.run.models import resolve_model
from proxhpc.spec.refiner_file import load_profile

DOC_TOKENS, CHUNK_TOKENS = 2000, 256  # new tokens of the published scripts,
DOC_PROMPT, WINDOW = 2000, 1500  # tokens of their prompts and windows


@dataclass(frozen=True)
class Result:
    """The seconds and the work of one way; the worker's requests."""

    seconds: float
    usage: Usage
    requests: tuple[Request, ...] = ()


def sum_usage(answers: Sequence[Completion]) -> Usage:
    """What was computed for these answers."""
    counts = ((done.prompt_tokens, done.cached_tokens, done.new_tokens) for done in answers)
    return sum((Usage.of_request(*each) for each in counts), Usage())


class BareVLLM:
    """vLLM without our worker: takes a list of requests at once."""

    def __init__(self, options: argparse.Namespace) -> None:
        from vllm import LLM

        from proxhpc.engines.vllm_engine import nothing_compiled, run_in_core

        model = resolve_model(str(options.model))
        self.context = model.context_length(None)
        self.tokenizer = HFTokenizer(options.model)
        self.stop_ids = sorted({*model.stop_ids, *self.tokenizer.stop_ids})
        cpu = not Path("/dev/nvidiactl").exists()
        with nothing_compiled() if cpu else nullcontext():  # as our engine
            self.llm = LLM(
                model=str(options.model),
                dtype="float32" if cpu and options.dtype == "auto" else options.dtype,
                enforce_eager=cpu,
                max_model_len=self.context,
                enable_prefix_caching=True,
                generation_config="vllm",
                seed=0,
                **(run_in_core({}) if cpu else {}),
            )
        self.answer([Request("doc", [0], (), 0, 1)], caching=False)  # what only the first one needs

    def answer(
        self, requests: Sequence[Request], *, caching: bool
    ) -> tuple[list[Completion], float]:
        """Answer all requests, with an empty prefix cache or without one; the seconds."""
        from vllm.inputs import TokensPrompt

        from proxhpc.engines.vllm_engine import sampling_params

        self.llm.reset_prefix_cache()
        start = time.perf_counter()
        parameters = [sampling_params(request, self.stop_ids) for request in requests]
        for each in parameters:
            each.detokenize = True  # vLLM's default
            each.skip_reading_prefix_cache = not caching
        prompts = [TokensPrompt(prompt_token_ids=list(r.prompt)) for r in requests]
        outputs = self.llm.generate(prompts, parameters, use_tqdm=False)
        seconds = time.perf_counter() - start
        answers = [
            Completion(
                text=output.outputs[0].text,
                finish="stop",  # not used here
                prompt_tokens=len(output.prompt_token_ids),
                cached_tokens=max(output.num_cached_tokens or 0, 0),
                new_tokens=len(output.outputs[0].token_ids),
            )
            for output in outputs
        ]
        return answers, seconds

    def close(self) -> None:
        """End vLLM's processes, for which this one would wait."""
        self.llm.llm_engine.engine_core.shutdown()


def run_bare(engine: BareVLLM, requests: Sequence[Request]) -> Result:
    """Answer all requests of the worker at once."""
    answers, seconds = engine.answer(requests, caching=True)
    return Result(seconds, sum_usage(answers))


def run_published(engine: BareVLLM, texts: list[str]) -> Result:
    """Both stages, one after the other, over everything; no caching, as in the vLLM they pin."""
    tokenizer, prompts = engine.tokenizer, Prompts(load_profile("prox-plain"))
    start = time.perf_counter()
    doc_requests = []
    for text in texts:
        prompt, _ = prompts.doc_prompt(tokenizer, text, min(DOC_PROMPT, engine.context - 1))
        limit = min(DOC_TOKENS, engine.context - len(prompt))
        doc_requests.append(Request("doc", prompt, (), 0, limit))
    preparing = time.perf_counter() - start
    verdicts, doc_seconds = engine.answer(doc_requests, caching=False)
    start = time.perf_counter()
    chunk_requests = []
    for text, verdict in zip(texts, verdicts, strict=True):
        if "drop" in verdict.text:
            continue
        for lines, first in split_windows(tokenizer, text):
            # Their prompt is a string with <s>, to which the tokenizer adds another one.
            prompt = [*tokenizer.bos, *prompts.chunk_prompt(tokenizer, lines, first)]
            if len(prompt) < engine.context:  # vLLM would refuse the whole batch
                limit = min(CHUNK_TOKENS, engine.context - len(prompt))
                chunk_requests.append(Request("chunk", prompt, (), 0, limit))
    preparing += time.perf_counter() - start
    programs, chunk_seconds = engine.answer(chunk_requests, caching=False)
    return Result(preparing + doc_seconds + chunk_seconds, sum_usage([*verdicts, *programs]))


def split_windows(tokenizer: HFTokenizer, text: str) -> Iterator[tuple[list[str], int]]:
    """Windows as the published scripts make them: their lines and the number of the first."""
    lines = LineTokens(tokenizer, text, WINDOW).lines
    start = total = 0
    counts = tokenizer.count([f"[{n:03d}]{line}" for n, line in enumerate(lines)])
    for number, count in enumerate(counts):
        if number > start and total + count + 1 > WINDOW:
            yield lines[start:number], start
            start, total = number, 0
        total += count + 1
    yield lines[start:], start


class RecordingEngine:
    """Our engine; records its requests, and when it was closed."""

    closed = 0.0

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self.engine, self.requests = engine, requests
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.max_model_len, self.cache_tokens = engine.max_model_len, engine.cache_tokens
        self.min_in_flight = engine.min_in_flight

    async def close(self) -> None:
        """Record the time, and close. The last shard has been published by then."""
        self.closed = time.perf_counter()
        await self.engine.close()

    async def complete(self, request: Request) -> Completion:
        """Record the request, and answer it."""
        self.requests.append(request)
        return await self.engine.complete(request)


def run_others(
    options: argparse.Namespace, texts: list[str], requests: Sequence[Request]
) -> dict[str, Result]:
    """The ways without a worker, with one start of vLLM."""
    engine = BareVLLM(options)
    results = {"bare": run_bare(engine, requests), "published": run_published(engine, texts)}
    engine.close()
    return results


def run_worker(
    options: argparse.Namespace, texts: list[str], requests: Sequence[Request]
) -> dict[str, Result]:
    """Refine with one worker; its time until the last shard is published, without its start."""
    from proxhpc.status.heartbeats import latest_heartbeats
    from proxhpc.worker.worker import Assignment, run_worker

    recorded: list[Request] = []
    engines: list[RecordingEngine] = []

    async def make_recording_engine(*arguments: Any, **keywords: Any) -> Engine:
        engines.append(RecordingEngine(await make_engine(*arguments, **keywords), recorded))
        return engines[-1]

    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    rows = (orjson.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts))
    (folder / "in.jsonl").write_bytes(b"\n".join(rows))
    stage = {"model": str(options.model), "prompt": options.prompt}
    run = bench.make_run(
        folder,
        corpus={"paths": str(folder / "in.jsonl"), "id": "id"},
        stages=[{"level": level} | stage for level in ("doc", "chunk")],
        engine={"name": "vllm", "dtype": options.dtype},
    )
    start = time.perf_counter()
    with patch("proxhpc.refine.refiner.make_engine", make_recording_engine):
        run_worker(run.dir, Assignment(), lambda _: None)
    (heartbeat,) = latest_heartbeats(run.dir)
    shutil.rmtree(folder)
    counts = heartbeat.counts
    if counts.documents != len(texts) or counts.quarantined:
        raise SystemExit(f"not every document was refined: {counts}")
    seconds = engines[-1].closed - start - heartbeat.boot_seconds
    return {"worker": Result(seconds, counts.doc + counts.chunk, tuple(recorded))}


Run = Callable[[argparse.Namespace, list[str], Sequence[Request]], dict[str, Result]]


def run_watched(
    run: Run, options: argparse.Namespace, texts: list[str], requests: Sequence[Request]
) -> dict[str, Result]:
    """Run some ways, in a child process with which their engine ends."""
    os.dup2(2, 1)  # engines print what they like, but not between the results
    killer = OrphanKiller(node_local_environment())
    try:
        with killer.watching():
            return run(options, texts, requests)
    finally:
        killer.release()


def make_texts(options: argparse.Namespace) -> list[str]:
    """--limit documents, copies among them, in random order."""
    rng = random.Random(options.seed)
    copies = round(options.copies * options.limit)
    texts = bench.read_texts(options)
    rng.shuffle(texts)
    texts = texts[: options.limit - copies]
    texts += rng.choices(texts, k=copies)
    rng.shuffle(texts)
    return texts


def main() -> int:
    """Measure, and print rates and ratios."""
    parser = bench.make_parser(__doc__, limit=300)
    parser.add_argument("--model", type=Path, required=True, help="directory of a model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--prompt", default="prox-plain", help="the worker's prompt style")
    parser.add_argument("--copies", type=float, default=0.1, help="share of copies")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.model = options.model.resolve()
    shape = resolve_model(str(options.model)).shape
    if shape is None:
        raise SystemExit("the FLOPs of this model cannot be counted")
    texts = make_texts(options)
    requests: Sequence[Request] = ()

    def measure(run: Run) -> dict[str, Result]:
        nonlocal requests
        found: dict[str, Result] = bench.in_child(run_watched, run, options, texts, requests)
        requests = found["worker"].requests if "worker" in found else requests
        return found

    runs = {"worker": partial(measure, run_worker), "others": partial(measure, run_others)}
    rounds_of = bench.alternate(runs, options.rounds)
    results = {
        way: [found[way] for found in rounds] for rounds in rounds_of.values() for way in rounds[0]
    }
    print(f"{len(texts)} documents, {options.copies:.0%} copies, prompts {options.prompt}")
    table: list[tuple[str | float, ...]] = []
    for way, rounds in results.items():
        seconds, usage = statistics.median(r.seconds for r in rounds), rounds[-1].usage
        rates = [n / seconds for n in (usage.prompt_tokens, usage.new_tokens, len(texts))]
        cached = f"{usage.cached_tokens / usage.prompt_tokens:.1%}"
        work = f"{flops(shape, usage) / len(texts):.3e}"
        table.append((way, seconds, *rates, usage.requests, cached, work))
    header = ("", "seconds", "prompt tok/s", "new tok/s", "documents/s", "requests", "cached")
    bench.print_table((*header, "FLOPs/document"), table)

    def print_ratio(label: str, other: str, value: Callable[[Result], float]) -> None:
        ours, theirs = (list(map(value, results[way])) for way in ("worker", other))
        print(f"worker/{other}, {label}: {bench.median_ratio(ours, theirs):.3f}")

    print_ratio("prompt tokens/s", "bare", lambda r: r.usage.prompt_tokens / r.seconds)
    print_ratio("documents/s", "published", lambda r: 1 / r.seconds)
    print_ratio("FLOPs per document", "published", lambda r: flops(shape, r.usage))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
