"""Free memory and names of GPUs.

Free memory comes from nvidia-smi, because this process must not touch CUDA before its engine.
"""

import asyncio
import logging
import os
import re
import subprocess
import time
from pathlib import Path

_log = logging.getLogger(__name__)

# Variable: how many workers share this one's GPU, and `gpu_memory_utilization`.
WORKERS_PER_GPU = "PROXHPC_WORKERS_PER_GPU"
WAIT_S = 120.0
PAUSE_S = 2.0
AMD_DEVICE = Path("/dev/kfd")
_QUERY = ("--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")


def workers_per_gpu() -> int:
    """Return how many workers share this one's GPU."""
    return int(os.environ.get(WORKERS_PER_GPU) or 1)


async def wait_for_memory(share: float, devices: int = 1) -> None:
    """Wait until `share` of the memory of the first visible devices is free, as vLLM needs it.

    A process that has just ended can hold memory for a while. After WAIT_S the engine starts
    anyway and reports what it lacks. A device whose memory is unknown is not waited for.
    """
    default = ",".join(map(str, range(devices)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", default).split(",")
    names = [name for name in visible if name.strip()][:devices]
    deadline = time.monotonic() + WAIT_S
    while full := [name for name in names if await asyncio.to_thread(_is_full, name, share)]:
        if time.monotonic() > deadline:
            _log.warning("device %s: %.0f %% of its memory is not free", full[0], 100 * share)
            return
        await asyncio.sleep(PAUSE_S)


def _is_full(device: str, share: float) -> bool:
    """Return True if less than `share` of the memory is free; False if that is unknown."""
    try:
        result = subprocess.run(
            ["nvidia-smi", *_QUERY, "-i", device.strip()],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        free, total = map(int, result.stdout.split(","))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        _log.debug("nvidia-smi does not report the memory of device %s: %s", device, error)
        return False
    return free < share * total


def gpu_names() -> list[str]:
    """Return the GPUs of this machine that its drivers report; torch is not imported.

    AMD's driver has one device for all GPUs, which counts as one without a name.
    """
    try:
        done = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return [""] if AMD_DEVICE.exists() else []
    lines = re.findall(r"^GPU \d+: (.*?)(?: \(UUID.*)?$", done.stdout, re.M)
    return [str(name) for name in lines]


def count_gpus() -> int:
    """Return the number of GPUs of this machine, as `gpu_names` finds them."""
    return len(gpu_names())


def device_name(engine: str) -> tuple[str | None, int]:
    """Name of the GPUs that a loaded engine runs on, and how many; (None, 0) without GPUs.

    With vLLM a child process holds the GPUs: its platform asks the driver, so that this process
    needs no CUDA.
    """
    if engine == "rules":
        return None, 0
    import torch

    devices = int(torch.cuda.device_count())  # uses NVML if it can
    if not devices:
        return None, 0
    if engine == "vllm":
        from vllm.platforms import current_platform

        return str(current_platform.get_device_name()), devices
    return str(torch.cuda.get_device_name()), devices
