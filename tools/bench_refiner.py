"""Compare the text per second of two refining models on one core, with the transformers engine.

    python tools/bench_refiner.py corpus.jsonl.zst embedded .cache/smollm2-135m

Both refine the same documents window by window, each asked as its refiner.json says, or else in the
style `--prompt`. The second one, which need not have learned to end its programs, may answer with
`--tokens` tokens a window. One is less than any program has: the ratio is then that of a model that
answers for nothing. Seconds are those of the process on one thread, tokenizing and Python included.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench_program import read
from proxhpc.corpus.document import Document
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.manifest import Manifest


async def refine(stage: dict[str, Any], texts: Sequence[str], batch: int) -> dict[str, Any]:
    """Refine with one chunk stage; what it did, and how fast."""
    given = {"name": "x", "corpus": {"paths": "-"}, "stages": [{"level": "chunk"} | stage]}
    given["engine"] = {"name": "transformers", "dtype": "float32", "batch_size": batch}
    manifest = Manifest.model_validate(given, context={"base": Path.cwd()})
    models = find_models(manifest)
    refiner = await open_refiner(freeze_manifest(manifest, models), models)
    try:
        start = time.process_time()
        documents = [Document(str(n), text, 0, n) for n, text in enumerate(texts)]
        rows = await asyncio.gather(*map(refiner.refine, documents))
        seconds = time.process_time() - start
    finally:
        await refiner.close()
    calls = [call for row in rows for call in row.windows]
    size = sum(len(text.encode()) for text in texts)
    return {
        "model": stage["model"],
        "windows": len(calls),
        "prompt_tokens": sum(call.prompt for call in calls),
        "new_tokens": sum(call.new for call in calls),
        "seconds": round(seconds, 2),
        "kb_per_second": round(size / seconds / 1000, 2),
    }


def main() -> int:
    """Print a JSON object a model, and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("corpus", type=Path, help="JSON lines, plain, .gz or .zst")
    parser.add_argument("small", help="directory of the model to be measured, or embedded")
    parser.add_argument("large", help="directory of the model to compare it with")
    parser.add_argument("--field", default="text", help="field that holds the text (text)")
    parser.add_argument("--documents", type=int, default=40, help="documents to refine (40)")
    parser.add_argument("--batch", type=int, default=8, help="prompts at a time (8)")
    parser.add_argument("--prompt", default="prox-plain", help="of the second (prox-plain)")
    parser.add_argument("--tokens", type=int, default=1, help="of its answers (1)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = [text for text in read(options.corpus, options.field, options.documents) if text]
    other = {"prompt": options.prompt, "max_new_tokens": options.tokens}
    speeds = []
    for stage in ({"model": options.small}, {"model": options.large} | other):
        done = asyncio.run(refine(stage, texts, options.batch))
        print(json.dumps(done), flush=True)
        speeds.append(done["kb_per_second"])
    print(json.dumps({"documents": len(texts), "ratio": round(speeds[0] / speeds[1], 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
