"""What GPUs there are and how full: this process must not touch CUDA before its engine.

Memory is asked of nvidia-smi.
"""

import asyncio
import logging
import os
import subprocess
import time

log = logging.getLogger(__name__)

WAIT_S = 120.0
PAUSE_S = 2.0
_QUERY = ("--query-gpu=memory.free,memory.total", "--format=csv,noheader,nounits")


async def wait_for_memory(share: float, devices: int = 1) -> None:
    """Wait until `share` of the memory of the first visible devices is free, as vLLM wants it.

    A process that has just ended may hold it for a while. After WAIT_S the engine is tried all
    the same and says what it lacks. Where memory cannot be told, nothing is waited for.
    """
    every = ",".join(map(str, range(devices)))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", every).split(",")
    names = [name for name in visible if name.strip()][:devices]
    end = time.monotonic() + WAIT_S
    while busy := [name for name in names if await asyncio.to_thread(_lacks, name, share)]:
        if time.monotonic() > end:
            log.warning("device %s: %.0f %% of its memory is not free", busy[0], 100 * share)
            return
        await asyncio.sleep(PAUSE_S)


def _lacks(device: str, share: float) -> bool:
    """Whether less than `share` of a device's memory is free; not where it cannot be told."""
    try:
        asked = subprocess.run(
            ["nvidia-smi", *_QUERY, "-i", device.strip()],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        free, total = map(int, asked.stdout.split(","))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.debug("the memory of device %s cannot be told: %s", device, error)
        return False
    return free < share * total


def device_name(engine: str) -> tuple[str | None, int]:
    """Name of the GPUs on which a loaded engine runs, and how many it may use; (None, 0) without.

    vLLM's child holds the GPUs: its platform asks the driver, and this process needs no CUDA.
    """
    if engine == "rules":
        return None, 0
    import torch

    devices = int(torch.cuda.device_count())  # of NVML, where it can
    if not devices:
        return None, 0
    if engine == "vllm":
        from vllm.platforms import current_platform

        return str(current_platform.get_device_name()), devices
    return str(torch.cuda.get_device_name()), devices
