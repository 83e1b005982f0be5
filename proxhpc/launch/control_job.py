"""The control job of a run: one step in a process of its own, and again after errors that may pass.

This module imports little, and names the step instead of importing it: the job waits for most of
its time.
"""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from pkgutil import resolve_name

from proxhpc.errors import ProxError, StopError
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.progress import ProgressLog

CONTROL_RETRY_SECONDS = (10, 30, 60, 120, 240, 240)  # together within the control job's half hour


def step_name(step: Callable[[str], str]) -> str:
    """Return the name under which `run_control` finds a function."""
    return f"{step.__module__}:{step.__qualname__}"


def run_control(root: str, step: str) -> str:
    """Run a control job, which calls the named step with the run directory; return what that did.

    All later jobs depend on it, so it retries after errors that may pass, such as a busy slurmctld
    or another launch. Each try is a process, because it may be killed for lack of memory. A try
    first completes or cancels what the one before it submitted.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cancelled job does not retry
    run, owner = RunDir(Path(root)), LeaseOwner.current("control")
    # submitit does not write its result, and fails, if a full disk or a requeue cut one short.
    for draft in run.logs.glob(f"*/{owner.job}_*.save_tmp") if owner.job else ():
        draft.unlink(missing_ok=True)
    log = ProgressLog(run, owner, "control")
    for pause in (*CONTROL_RETRY_SECONDS, None):
        try:
            with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                message = pool.submit(_call, step, root).result()
        except StopError as error:
            # The job exits with 0: its node has not failed, so Slurm must not requeue it.
            log.write("failed", error)
            return f"stopped: {error}"
        except (ProxError, OSError, BrokenProcessPool) as error:
            if pause is None:
                log.write("failed", error)
                raise
            log.write("retrying", error)
            time.sleep(pause)
        else:
            if pause != CONTROL_RETRY_SECONDS[0]:
                log.write("done")  # instead of `retrying`
            return message
    raise AssertionError("the last try returns or raises")


def _call(step: str, root: str) -> str:
    message: str = resolve_name(step)(root)
    return message
