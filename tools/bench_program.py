"""Compare documents per second of the default policy with those of the reference policy.

    python tools/bench_program.py corpus.jsonl.zst

Each document gets one window and a program of four calls on its own lines and words, as refiners
write them: `remove_lines` at the head, at the foot and somewhere between, and a `normalize`, in
a form that both executors understand. Both parse and
execute the same programs through `replay`, on one core, in turn, and the best of the rounds
counts. `equal` is the share of documents of which both make the same text; they differ where a
limit of either keeps the original or drops.
"""

import argparse
import gzip
import io
import json
import random
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import zstandard

from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.replay import Emitted, Style, WindowProgram, replay

POLICIES: dict[str, AnyPolicy] = {"default": Policy(), "reference": "reference"}
Case = tuple[str, list[WindowProgram]]


def read(path: Path, field: str, limit: int) -> Iterator[str]:
    """Yield up to `limit` texts of a JSON lines file, plain, gzip or zstd."""
    raw = path.open("rb")
    if path.suffix == ".zst":
        stream = zstandard.ZstdDecompressor().stream_reader(raw)
    else:
        stream = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
    with raw, io.TextIOWrapper(stream, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines):
            if number == limit:
                return
            yield json.loads(line)[field]


def four_calls(text: str, rng: random.Random) -> list[WindowProgram]:
    """Return one window whose program cuts head, foot and a line between, and a string."""
    lines = text.split("\n")
    last = len(lines) - 1
    head, foot, inside = rng.randrange(3), rng.randrange(3), rng.randint(0, last)
    ranges = ((0, min(head, last)), (inside, inside), (max(last - foot, 0), last))
    calls = [f"remove_lines(start={first}, end={stop})" for first, stop in ranges]
    words = [word for word in rng.choice(lines).split() if word.isalnum()]
    at = rng.randrange(max(1, len(words) - 2))
    calls.append(
        f'normalize(source_str="{" ".join(words[at : at + 3]) or "Share"}", target_str="")'
    )
    return [WindowProgram(0, len(lines), Emitted("\n".join(calls), "stop"))]


def run(cases: list[Case], policy: AnyPolicy) -> float:
    """Return the seconds that replaying every case takes."""
    style = Style()
    start = time.perf_counter()
    for text, windows in cases:
        replay(text, None, windows, policy, style)
    return time.perf_counter() - start


def main() -> int:
    """Print documents per second of both policies and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--limit", type=int, default=20_000, help="documents to read (20000)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, the best counts (5)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the programs (0)")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    texts = read(options.corpus, options.field, options.limit)
    cases = [(text, four_calls(text, rng)) for text in texts]
    if not cases:
        print(f"{options.corpus} holds no documents", file=sys.stderr)
        return 1
    best = dict.fromkeys(POLICIES, float("inf"))
    for _ in range(options.rounds):
        for name, policy in POLICIES.items():
            best[name] = min(best[name], run(cases, policy))
    texts_by = [{replay(t, None, w, p, Style()).text for p in POLICIES.values()} for t, w in cases]
    equal = sum(len(made) == 1 for made in texts_by) / len(cases)
    print(
        f"documents   {len(cases)}, mean {sum(len(t) for t, _ in cases) // len(cases)} characters"
    )
    for policy, seconds in best.items():
        rate = len(cases) / seconds
        print(f"{policy:<11} {rate:10.0f} documents/s {1e6 / rate:8.1f} us/document")
    print(f"ratio       {best['reference'] / best['default']:10.2f}")
    print(f"equal       {equal:10.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
