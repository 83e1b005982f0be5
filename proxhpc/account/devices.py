"""What a GPU can do at most, by the name that CUDA gives it."""

# Dense bfloat16 FLOPs per second of the makers' data sheets, sparsity left out (float16 for V100,
# T4, which have no bfloat16). The first name that a device's name contains is its kind.
PEAKS = (
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


def peak(device: str | None) -> float | None:
    """Dense bfloat16 FLOPs per second of a device; None for one that is not in the table.

    A slice of a GPU (MIG) is no whole one, and unknown.
    """
    if device is None or "MIG" in device.split():
        return None
    padded = f" {device.replace('-', ' ')} "
    return next((peak for name, peak in PEAKS if f" {name} " in padded), None)
