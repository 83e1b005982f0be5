"""Compare the speed of the default policy with that of the reference policy.

    python tools/bench_program.py corpus.jsonl.zst

Each document gets one window and a program of four calls on its lines, near both ends where
boilerplate usually is: four `remove_lines`, then three and a `normalize`. Both policies parse and
execute the same programs on one core. `equal` is the share of documents with the same result; they
differ where a limit of one policy keeps the original text or drops the document.
"""

import random
import time
from collections.abc import Sequence
from functools import partial

import bench
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay

POLICIES: dict[str, AnyPolicy] = {"reference": "reference", "default": Policy()}
Case = tuple[str, list[WindowProgram]]


def make_case(text: str, rng: random.Random, strings: int) -> Case:
    """A text and one window's program of four calls that fit it, `strings` of them on strings."""
    lines = text.split("\n")
    last = len(lines) - 1
    head, foot = min(rng.randrange(3), last), max(last - rng.randrange(3), 0)
    near, far = min(rng.randint(3, 12), last), max(last - rng.randint(3, 12), 0)
    ranges = ((near, near), (0, head), (foot, last), (far, far))
    calls = [f"remove_lines(start={start}, end={end})" for start, end in ranges[strings:]]
    for _ in range(strings):
        words = [word for word in rng.choice(lines).split() if word.isalnum()]
        at = rng.randrange(max(1, len(words) - 2))
        source = " ".join(words[at : at + 3]) or "Share"
        calls.append(f'normalize(source_str="{source}", target_str="")')
    return text, [WindowProgram(0, len(lines), ModelOutput("\n".join(calls), "stop"))]


def replay_all(cases: Sequence[Case], policy: AnyPolicy) -> tuple[float, list[str | None]]:
    """The seconds that replaying all cases takes, and the texts that result."""
    program_format = ProgramFormat()
    start = time.perf_counter()
    results = [replay(text, None, windows, policy, program_format) for text, windows in cases]
    return time.perf_counter() - start, [result.text for result in results]


def main() -> int:
    """Compare the policies without and with a call on strings."""
    parser = bench.make_parser(__doc__, limit=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="seed of the programs")
    options = parser.parse_args()
    texts = bench.read_texts(options)
    print(f"{len(texts)} documents, {sum(map(len, texts)) // len(texts)} characters on average")
    for strings in (0, 1):
        rng = random.Random(options.seed)
        cases = [make_case(text, rng, strings) for text in texts]
        ways = {name: partial(replay_all, cases, policy) for name, policy in POLICIES.items()}
        results = bench.alternate(ways, options.rounds)
        seconds = {name: [taken for taken, _ in each] for name, each in results.items()}
        print(f"\n{4 - strings} remove_lines, {strings} normalize")
        bench.print_speeds(seconds, len(cases), "documents", "reference")
        pairs = zip(*(each[0][1] for each in results.values()), strict=True)
        print(f"equal {sum(one == other for one, other in pairs) / len(cases):.3f}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
