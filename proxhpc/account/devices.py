"""Peak FLOPs of GPUs, by their CUDA device name."""

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
