"""Compare our worker with the bare engine and with the published scripts' schedule.

    python tools/bench_worker.py corpus.jsonl.zst --model DIR [--engine vllm|transformers]

Three ways to refine the same documents, of which `--copies` are exact copies of others:

  bare       every request that our worker makes, given to the engine all at once
  published  the doc stage over all documents, then the chunk stage over all that it keeps: their
             prompts, 2000 new tokens for a verdict, 256 for a window, every document asked about
  worker     `proxhpc worker` on a planned run: reading, tokenising, windows, ledger, commits

Each runs in a process of its own, with caches cold; its engine's start does not count. Tokens are
those of the requests: prompt tokens whether cached or not, FLOPs only what was computed. `bare` and
`worker` answer the same requests, so the ratio of their prompt tokens per second is one of time.
One model serves both stages. The order changes from round to round; ratios are medians.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from bench_program import read
from proxhpc.account.flops import Usage, flops
from proxhpc.engines import make_engine
from proxhpc.engines.base import Completion, Engine, Request
from proxhpc.engines.spawn import node_local_environment
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.launch.launch import prepare_run
from proxhpc.refine.prompts import prompt_style
from proxhpc.refine.windows import LineTokens
from proxhpc.run.models import resolve_model
from proxhpc.spec.manifest import EngineOptions, load_manifest

PUBLISHED = {"doc": 2000, "chunk": 256}  # most new tokens; and its prompts, and its windows:
PUBLISHED_PROMPT, PUBLISHED_WINDOW, PUBLISHED_STYLE = 2000, 1500, "prox-plain"


@dataclass(frozen=True)
class Result:
    """What one way took and did."""

    seconds: float
    usage: Usage
    requests: tuple[Request, ...] = ()


def usage_of(answers: Sequence[Completion]) -> Usage:
    """Sum of what was computed."""
    total = Usage()
    for done in answers:
        total += Usage.of_request(done.prompt_tokens, done.cached_tokens, done.new_tokens)
    return total


class Bare:
    """An engine without us: takes a list of requests, gives their answers and the seconds."""

    def __init__(self, options: EngineOptions, model: Path, *, caching: bool) -> None:
        self.options, self.model = options, resolve_model(str(model))
        self.context = self.model.context_length(options.max_model_len)
        self.stop_ids = sorted({*self.model.stop_ids, *HFTokenizer(model).stop_ids})  # as ours
        self.run = self._vllm if options.name == "vllm" else self._transformers
        if options.name == "vllm":
            from vllm import LLM

            cpu = not Path("/dev/nvidiactl").exists()
            self.llm = LLM(
                model=str(model),
                dtype="float32" if cpu and options.dtype == "auto" else options.dtype,
                enforce_eager=cpu,
                max_model_len=self.context,
                gpu_memory_utilization=options.gpu_memory_utilization,
                enable_prefix_caching=caching,
                generation_config="vllm",
                seed=0,
                **options.options,
            )

    def _vllm(self, requests: Sequence[Request]) -> tuple[list[Completion], float]:
        from vllm.inputs import TokensPrompt

        from proxhpc.engines.vllm_engine import sampling

        began = time.perf_counter()
        limits = [sampling(request, self.stop_ids) for request in requests]
        for limit in limits:
            limit.detokenize = True  # as it is unless one says otherwise
        prompts = [TokensPrompt(prompt_token_ids=list(r.prompt)) for r in requests]
        done = self.llm.generate(prompts, limits, use_tqdm=False)
        seconds = time.perf_counter() - began
        answers = [
            Completion(
                text=answer.outputs[0].text,
                finish="stop",  # nobody here asks
                prompt_tokens=len(answer.prompt_token_ids),
                cached_tokens=max(answer.num_cached_tokens or 0, 0),
                new_tokens=len(answer.outputs[0].token_ids),
            )
            for answer in done
        ]
        return answers, seconds

    def close(self) -> None:
        """End what vLLM started: it would be waited for at the end of this process."""
        if self.options.name == "vllm":
            self.llm.llm_engine.engine_core.shutdown()

    def _transformers(self, requests: Sequence[Request]) -> tuple[list[Completion], float]:
        async def work() -> tuple[list[Completion], float]:
            engine = await make_engine(self.options, self.model)
            began = time.perf_counter()
            answers = await asyncio.gather(*map(engine.complete, requests))
            seconds = time.perf_counter() - began
            await engine.close()
            return answers, seconds

        return asyncio.run(work())


def bare(folder: Path, requests: Sequence[Request]) -> Result:
    """All requests of the worker at once."""
    manifest = load_manifest(folder / "manifest.yaml")
    engine = Bare(manifest.engine, Path(str(manifest.stages[0].model)), caching=True)
    answers, seconds = engine.run(requests)
    engine.close()
    return Result(seconds, usage_of(answers))


def published(folder: Path, requests: Sequence[Request]) -> Result:
    """Both stages one after the other, over everything."""
    manifest = load_manifest(folder / "manifest.yaml")
    model = Path(str(manifest.stages[0].model))
    engine = Bare(manifest.engine, model, caching=False)  # as the vLLM that they pin
    tokenizer = HFTokenizer(model)
    style = prompt_style(PUBLISHED_STYLE)  # a frame of 30 tokens more would favour us
    texts = [row["text"] for row in _rows(folder)]
    began = time.perf_counter()
    asked = []
    for text in texts:
        prompt, _ = style.doc_prompt(tokenizer, text, min(PUBLISHED_PROMPT, engine.context - 1))
        limit = min(PUBLISHED["doc"], engine.context - len(prompt))
        asked.append(Request("doc", prompt, (), 0, limit))
    preparing = time.perf_counter() - began
    verdicts, judging = engine.run(asked)
    began = time.perf_counter()
    asked = []
    for text, verdict in zip(texts, verdicts, strict=True):
        if "drop" in verdict.text:
            continue
        for lines, first in _published_windows(tokenizer, text):
            # The string begins with the name of the first token, which so comes twice.
            prompt = [*tokenizer.bos, *style.chunk_prompt(tokenizer, lines, first)]
            if len(prompt) < engine.context:  # vLLM would refuse it, and the batch with it
                limit = min(PUBLISHED["chunk"], engine.context - len(prompt))
                asked.append(Request("chunk", prompt, (), 0, limit))
    preparing += time.perf_counter() - began
    edits, editing = engine.run(asked)
    engine.close()
    return Result(preparing + judging + editing, usage_of([*verdicts, *edits]))


def _published_windows(tokenizer: Any, text: str) -> Iterator[tuple[list[str], int]]:
    lines = LineTokens(tokenizer, text, PUBLISHED_WINDOW)
    numbered = tokenizer.count([f"[{n:03d}]{line}" for n, line in enumerate(lines.lines)])
    start = total = 0
    for number, count in enumerate(numbered):
        if number > start and total + count + 1 > PUBLISHED_WINDOW:
            yield lines.lines[start:number], start
            start, total = number, 0
        total += count + 1
    yield lines.lines[start:], start


class Recorded:
    """Our engine, with a list of what it was asked, and when it was closed."""

    closed = 0.0

    def __init__(self, engine: Engine, requests: list[Request]) -> None:
        self.engine, self.requests = engine, requests
        self.name, self.tokenizer = engine.name, engine.tokenizer
        self.max_model_len, self.cache_tokens = engine.max_model_len, engine.cache_tokens

    async def close(self) -> None:
        """Note the time, close it: by then the last shard is published."""
        self.closed = time.perf_counter()
        await self.engine.close()

    async def complete(self, request: Request) -> Completion:
        """Note the request, pass it on."""
        self.requests.append(request)
        return await self.engine.complete(request)


def worker(folder: Path, requests: Sequence[Request]) -> Result:
    """One worker on a planned run; its time is until the last shard is published, less its boot."""
    from proxhpc.status.heartbeats import latest
    from proxhpc.worker.worker import Assignment, run_worker

    asked: list[Request] = []
    engines: list[Recorded] = []

    async def recorded(*arguments: Any, **more: Any) -> Engine:
        engines.append(Recorded(await make_engine(*arguments, **more), asked))
        return engines[-1]

    run = prepare_run(folder / "manifest.yaml", str(folder / "site.yaml"), None)
    began = time.perf_counter()
    with patch("proxhpc.refine.refiner.make_engine", recorded):
        run_worker(run.dir, Assignment(), lambda _: None)
    (beat,) = latest(run.dir)
    counts = beat.counts
    if counts.documents != len(_rows(folder)) or counts.quarantined:
        raise SystemExit(f"not every document was refined: {counts}")
    seconds = engines[-1].closed - began - beat.boot_seconds
    return Result(seconds, counts.doc + counts.chunk, tuple(asked))


WAYS: dict[str, Callable[[Path, Sequence[Request]], Result]] = {
    "worker": worker,
    "bare": bare,
    "published": published,
}


def _child(way: str, folder: Path, requests: Sequence[Request], out: Any) -> None:
    os.dup2(2, 1)  # engines may say what they like, but not among the results
    node_local_environment()
    out.send(WAYS[way](folder, requests))


def measure(way: str, folder: Path, requests: Sequence[Request]) -> Result:
    """Run one way in a process of its own."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(way, folder, requests, its))
    process.start()
    its.close()
    try:
        result: Result = mine.recv()
    except EOFError:
        raise SystemExit(f"{way} failed; see above") from None
    process.join()
    return result


def _rows(folder: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / "in.jsonl").read_text().splitlines()]


def write_input(options: argparse.Namespace, folder: Path) -> int:
    """Write the documents, copies among them, the manifest and the site; how many documents."""
    rng = random.Random(options.seed)
    texts = [text for text in read(options.corpus, options.field, 10 * options.limit) if text]
    rng.shuffle(texts)
    copies = round(options.copies * options.limit)
    texts = texts[: options.limit - copies]
    texts += rng.choices(texts, k=copies)
    rng.shuffle(texts)
    rows = [json.dumps({"id": str(n), "text": text}) for n, text in enumerate(texts)]
    (folder / "in.jsonl").write_text("\n".join(rows))
    stage = {"model": str(options.model.resolve()), "prompt": options.prompt}
    manifest = {
        "name": "bench",
        "corpus": {"paths": "in.jsonl", "id": "id"},
        "stages": [{"level": level} | stage for level in ("doc", "chunk")],
        "engine": {"name": options.engine, "dtype": options.dtype},
        "dedup": {"before": "exact"},
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))
    (folder / "site.yaml").write_text(yaml.safe_dump({"name": "here", "kind": "local"}))
    return len(texts)


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """A copy of the input in a folder of its own, for a run."""
    with tempfile.TemporaryDirectory(prefix="bench-") as copy:
        for file in folder.iterdir():
            (Path(copy) / file.name).write_bytes(file.read_bytes())
        yield Path(copy)


def main() -> int:
    """Measure, and print rates and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--model", type=Path, required=True, help="directory of a model")
    parser.add_argument("--engine", choices=("vllm", "transformers"), default="vllm")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument(
        "--prompt", default="prox-plain", help="the worker's prompt style (prox-plain)"
    )
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--limit", type=int, default=300, help="documents, with copies (300)")
    parser.add_argument("--copies", type=float, default=0.1, help="share of copies (0.1)")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shape = resolve_model(str(options.model)).shape
    if shape is None:
        raise SystemExit("the FLOPs of this model cannot be counted")
    results: dict[str, list[Result]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(prefix="bench-input-") as name:
        documents = write_input(options, Path(name))
        requests: Sequence[Request] = ()
        for number in range(options.rounds):
            for way in list(WAYS) if number % 2 == 0 else ["published", "bare", "worker"]:
                with fresh(Path(name)) as folder:
                    result = measure(way, folder, requests)
                requests = result.requests or requests
                results[way].append(result)
                print(f"{way}: {result.seconds:.1f} s", file=sys.stderr)
    print(f"{documents} documents, {options.copies:.0%} copies, prompts {options.prompt}")
    print(f"{'':<10} {'seconds':>8} {'prompt tok/s':>13} {'new tok/s':>10}", end="")
    print(f" {'documents/s':>12} {'requests':>9} {'cached':>7} {'FLOPs/document':>15}")
    for way, rounds in results.items():
        seconds, usage = statistics.median(r.seconds for r in rounds), rounds[-1].usage
        prompt, new = usage.prompt_tokens / seconds, usage.new_tokens / seconds
        cached = usage.cached_tokens / usage.prompt_tokens
        print(f"{way:<10} {seconds:8.1f} {prompt:13.0f} {new:10.0f}", end="")
        print(f" {documents / seconds:12.2f} {usage.requests:9} {cached:7.1%}", end="")
        print(f" {flops(shape, usage) / documents:15.3e}")

    def ratio(what: str, other: str, value: Callable[[Result], float]) -> None:
        pairs = zip(results["worker"], results[other], strict=True)
        median = statistics.median(value(ours) / value(its) for ours, its in pairs)
        print(f"worker/{other}, {what}: {median:.3f}")

    ratio("prompt tokens/s", "bare", lambda r: r.usage.prompt_tokens / r.seconds)
    ratio("documents/s", "published", lambda r: 1 / r.seconds)
    ratio("FLOPs per document", "published", lambda r: flops(shape, r.usage))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
