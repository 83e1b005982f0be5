"""Peak FLOPs of GPUs, by their CUDA device name, and the GPU that a Slurm option names."""

import re
from collections.abc import Iterable

# Dense bfloat16 FLOPs per second from the vendors' data sheets (float16 for V100 and T4, which have
# no bfloat16). The first entry whose name occurs in a device's name applies.
_PEAK_FLOPS = (
    ("GH200", 989.4e12),
    ("GB200", 2500e12),
    ("B300", 2250e12),
    ("B200", 2250e12),
    ("H200 NVL", 835e12),
    ("H200", 989.4e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989.4e12),
    ("A100", 312e12),
    ("A30", 165e12),
    ("A40", 149.7e12),
    ("RTX A6000", 154.8e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("V100", 125e12),
    ("T4", 65e12),
    ("MI300X", 1307.4e12),
    ("MI250X", 383e12),
    ("MI210", 181e12),
)


def peak_flops(device: str | None) -> float | None:
    """Return a device's dense bfloat16 FLOPs per second, or None if unknown.

    A MIG slice of a GPU is unknown.
    """
    if device is None or "MIG" in device.split():
        return None
    padded = f" {device.replace('-', ' ')} "
    return next((flops for name, flops in _PEAK_FLOPS if f" {name} " in padded), None)


def named_gpu(options: Iterable[str]) -> str | None:
    """Return the GPU that options of sbatch name, as in `gpu:a100:4`; None if none or several."""
    text = re.sub(r"[^a-z0-9]+", " ", " ".join(options).lower())
    # A longer name contains shorter ones: "H200 NVL" is not an H200.
    found = set()
    for name, _ in sorted(_PEAK_FLOPS, key=lambda entry: -len(entry[0])):
        rest = re.sub(rf"\b{name.lower()}(?= |$)", "", text)
        if rest != text:
            found.add(name)
            text = rest
    return found.pop() if len(found) == 1 else None
