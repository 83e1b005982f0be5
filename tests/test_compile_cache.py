"""The compile cache of a node: one engine fills it, and the others wait and read."""

import os
import threading
import time
from pathlib import Path

import pytest

from proxhpc.engines.compile_cache import shared_compile_cache
from proxhpc.engines.device import WORKERS_PER_GPU

NAME = "VLLM_CACHE_ROOT"


@pytest.fixture(autouse=True)
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in (NAME, "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "proxhpc-engine-1" / name))
    return tmp_path / f"proxhpc-{os.getuid()}"


def overlap(settings: list[str]) -> int:
    """Start an engine in each of these threads; return how many started at the same time."""
    running = most = 0

    def start(name: str) -> None:
        nonlocal running, most
        with shared_compile_cache(name):
            running += 1
            most = max(most, running)
            time.sleep(0.1)
            running -= 1

    threads = [threading.Thread(target=start, args=(name,)) for name in settings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return most


def test_the_first_engine_fills_the_cache_alone_and_others_use_it(node: Path) -> None:
    assert overlap(["a"]) == 1
    assert overlap(["a"] * 3) == 3
    root = Path(os.environ[NAME])
    assert root.is_relative_to(node)
    assert root.is_dir()
    assert overlap(["d"] * 4) == 3, "the first alone, then the others"
    assert overlap(["b", "c"]) == 2, "engines with other settings fill other caches"


def test_workers_that_share_a_gpu_start_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM measures the free memory while it starts."""
    overlap(["a"])
    monkeypatch.setenv(WORKERS_PER_GPU, "2")
    assert overlap(["a"] * 2) == 1


def test_a_start_that_fails_leaves_the_cache_to_the_next(node: Path) -> None:
    with pytest.raises(OSError, match="no GPU"), shared_compile_cache("a"):
        raise OSError("no GPU")
    assert not [*node.glob("*/complete")]
    assert overlap(["a"] * 2) == 1, "the second waits for the first"


def test_a_cache_of_the_user_is_kept_and_an_old_one_removed(
    node: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(NAME, "/scratch/mine")
    overlap(["a"])
    assert os.environ[NAME] == "/scratch/mine"
    (mark,) = node.glob("*/complete")
    os.utime(mark, (0, 0))
    overlap(["b"])
    assert not mark.parent.exists()


def test_a_folder_that_others_may_write_is_not_used(
    node: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node.mkdir()
    node.chmod(0o777)
    before = os.environ[NAME]
    assert overlap(["a"] * 2) == 2
    assert os.environ[NAME] == before
    assert "not a folder of yours alone" in caplog.text
