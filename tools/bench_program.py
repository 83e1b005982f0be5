"""Compare documents per second of the default policy with those of the reference policy.

    python tools/bench_program.py corpus.jsonl.zst

Each document gets one window and four calls on its own lines and words, in the form that
refiners write and both executors understand, at both ends of the document where boilerplate is:
either four `remove_lines`, or three and a `normalize` of words from anywhere. Both policies parse
and execute the same programs through `replay`, on one core, in turn, and the best of the rounds
counts. `equal` is the share of documents of which both make the same text; they differ where a
limit of either keeps the original or drops.
"""

import argparse
import contextlib
import gzip
import io
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import zstandard

from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.replay import Emitted, Style, WindowProgram, replay

POLICIES: dict[str, AnyPolicy] = {"default": Policy(), "reference": "reference"}
Case = tuple[str, list[WindowProgram]]


def read(path: Path, field: str, limit: int) -> Iterator[str]:
    """Yield up to `limit` texts of a JSON lines file, plain, gzip or zstd."""
    with contextlib.ExitStack() as stack:
        raw: IO[bytes] = stack.enter_context(path.open("rb"))
        if path.suffix == ".zst":
            raw = stack.enter_context(zstandard.ZstdDecompressor().stream_reader(raw))
        elif path.suffix == ".gz":
            raw = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw)))
        lines = io.TextIOWrapper(raw, encoding="utf-8", newline="\n")
        for number, line in enumerate(lines):
            if number == limit:
                return
            yield json.loads(line)[field]


def four_calls(text: str, rng: random.Random, strings: int) -> list[WindowProgram]:
    """Return one window with four calls that fit `text`, `strings` of them on strings."""
    lines = text.split("\n")
    last = len(lines) - 1
    head, foot = min(rng.randrange(3), last), max(last - rng.randrange(3), 0)
    near, far = min(rng.randint(3, 12), last), max(last - rng.randint(3, 12), 0)
    ranges = ((near, near), (0, head), (foot, last), (far, far))
    calls = [f"remove_lines(start={first}, end={stop})" for first, stop in ranges[strings:]]
    for _ in range(strings):
        words = [word for word in rng.choice(lines).split() if word.isalnum()]
        at = rng.randrange(max(1, len(words) - 2))
        source = " ".join(words[at : at + 3]) or "Share"
        calls.append(f'normalize(source_str="{source}", target_str="")')
    return [WindowProgram(0, len(lines), Emitted("\n".join(calls), "stop"))]


def run(cases: list[Case], policy: AnyPolicy) -> float:
    """Return the seconds that replaying every case takes."""
    style = Style()
    start = time.perf_counter()
    for text, windows in cases:
        replay(text, None, windows, policy, style)
    return time.perf_counter() - start


def main() -> int:
    """Compare the policies on a corpus, with and without strings."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--limit", type=int, default=20_000, help="documents to read (20000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the best counts (5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the programs (0)")
    options = parser.parse_args()
    texts = list(read(options.corpus, options.field, options.limit))
    if not texts:
        print(f"{options.corpus} holds no documents", file=sys.stderr)
        return 1
    print(f"{len(texts)} documents, {sum(map(len, texts)) // len(texts)} characters on average")
    for strings in (0, 1):
        rng = random.Random(options.seed)
        cases = [(text, four_calls(text, rng, strings)) for text in texts]
        print(f"\n{4 - strings} remove_lines, {strings} normalize")
        compare(cases, options.rounds)
    return 0


def compare(cases: list[Case], rounds: int) -> None:
    """Print documents per second of both policies and their ratio."""
    best = dict.fromkeys(POLICIES, float("inf"))
    for _ in range(rounds):
        for name, policy in POLICIES.items():
            best[name] = min(best[name], run(cases, policy))
    for name, seconds in best.items():
        rate = len(cases) / seconds
        print(f"  {name:<10} {rate:8.0f} documents/s {1e6 / rate:8.1f} us/document")
    made = [{replay(t, None, w, p, Style()).text for p in POLICIES.values()} for t, w in cases]
    print(f"  ratio      {best['reference'] / best['default']:8.2f}")
    print(f"  equal      {sum(len(texts) == 1 for texts in made) / len(cases):8.3f}")


if __name__ == "__main__":
    raise SystemExit(main())
