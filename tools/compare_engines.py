"""Count the answers that the engines vllm and transformers give alike, in float32.

    python tools/compare_engines.py corpus.jsonl.zst --model embedded [--free]

The same documents are asked about by both, each in a process of its own: verdicts, and programs of
all windows, whatever the verdict. Prints a JSON object a level: requests, how many had the same
program from both engines, and what of each the language or the policy rejected. `--free`: nothing
restricts what the model may answer.
"""

import argparse
import asyncio
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

from bench_program import read
from proxhpc.corpus.document import Document
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest

ENGINES = ("vllm", "transformers")
Programs = list[str]


async def ask(engine: str, stage: dict[str, Any], texts: list[str]) -> tuple[Programs, int]:
    """The programs of one stage in the order of the texts, and how much was rejected."""
    given = {"name": "x", "corpus": {"paths": "-"}, "stages": [stage]}
    given["engine"] = {"name": engine, "dtype": "float32"}
    manifest = Manifest.model_validate(given, context={"base": Path.cwd()})
    models = find_models(manifest)
    refiner = await open_refiner(freeze_manifest(manifest, models), models)
    try:
        documents = [Document(str(n), text, 0, n) for n, text in enumerate(texts)]
        rows = await asyncio.gather(*map(refiner.refine, documents))
    finally:
        await refiner.close()
    if lost := [row.detail for row in rows if row.outcome == "quarantined"]:
        raise SystemExit(f"{engine} set documents aside: {lost[0]}")
    calls = [call for row in rows for call in ([row.doc] if row.doc else row.windows)]
    return [call.program for call in calls], sum(sum(row.rejected.values()) for row in rows)


def child(engine: str, stage: dict[str, Any], texts: list[str], out: Any) -> None:
    """Answer in a process of one's own: vLLM and torch want one each."""
    out.send(asyncio.run(ask(engine, stage, texts)))


def answers(engine: str, stage: dict[str, Any], texts: list[str]) -> tuple[Programs, int]:
    """What an engine answers."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=child, args=(engine, stage, texts, its))
    process.start()
    its.close()
    try:
        found: tuple[Programs, int] = mine.recv()
    except EOFError:
        raise SystemExit(f"{engine} failed; see above") from None
    process.join()
    return found


def main() -> int:
    """Ask, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("--model", default="embedded", help="directory of the model (embedded)")
    parser.add_argument("--prompt", help="its prompt style, where it has no refiner.json")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--limit", type=int, default=200, help="documents (200)")
    parser.add_argument("--free", action="store_true", help="grammar: none")
    options = parser.parse_args()
    texts = [text for text in read(options.corpus, options.field, options.limit) if text]
    stage = {"model": options.model}
    stage |= {"prompt": options.prompt} if options.prompt else {}
    stage |= {"grammar": "none"} if options.free else {}
    for level in ("doc", "chunk"):
        found = {engine: answers(engine, {"level": level} | stage, texts) for engine in ENGINES}
        ours, theirs = (found[engine][0] for engine in ENGINES)
        same = sum(a == b for a, b in zip(ours, theirs, strict=True))
        told = {"level": level, "documents": len(texts), "requests": len(ours), "same": same}
        told["share"] = round(same / max(1, len(ours)), 4)
        rejected = {engine: found[engine][1] for engine in ENGINES}
        print(json.dumps(told | {"rejected": rejected}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
