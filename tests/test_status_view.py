"""The status page on terminals of different sizes."""

import io
import os
import pty
import time
from pathlib import Path

import pytest
from rich.console import Console

from proxhpc.launch.launch import Run
from proxhpc.status import Status, collect, render_status
from proxhpc.status.terminal import waiting
from runs import planned
from test_status import FakeQueue, beat, counts, job, owner, slurm_site


@pytest.fixture
def status(tmp_path: Path) -> Status:
    """A Slurm run of 30 workers, one of which failed and one of which died."""
    run: Run = planned(tmp_path)
    slurm_site(run)
    jobs = []
    for n in range(30):
        name, element = f"worker-123456_{n}-gpu-node-{n:04d}-48213", f"123456_{n}"
        who = owner(name, host=f"gpu-node-{n:04d}.cluster.example.org", job=element)
        state = {"state": "failed", "error": "RetryError", "message": "out of memory"}
        for age, documents in ((200, 1000), (5, 40_000)):
            work = {"documents": 10.0}  # a second
            more = state if n == 3 else {"shard": n, "shards": 12, "work": work}
            beat(run, who, age, counts=counts(documents).to_dict(), **more)
        if n not in (3, 5):
            jobs.append(job(run, element))
    return collect(run.dir, FakeQueue(jobs))


def lines(status: Status, width: int, height: int | None = None) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(render_status(status, height))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_a_narrow_terminal_has_fewer_columns_not_shorter_cells(status: Status, width: int) -> None:
    page = lines(status, width)
    assert "…" not in "".join(page)
    rows = [line.split() for line in page if "123456_" in line and "gpu-node" in line]
    rows = [row for row in rows if not row[0].endswith(":")]
    assert len(rows) >= 24
    states = [next(cell for cell in row if cell in ("failed", "gone", "working")) for row in rows]
    assert states[:3] == ["failed", "gone", "working"]
    assert all("40,000" in row for row in rows[:24])
    full_names = sum("worker-123456_" in cell for row in rows[:24] for cell in row)
    assert full_names == (24 if width > 100 else 0)


def test_the_progress_fits_into_50_columns(status: Status) -> None:
    bar = next(line for line in lines(status, 50) if "░" in line)
    assert bar.rstrip().endswith("0.0 %")
    assert any("documents/s" in line and "left" in line for line in lines(status, 50))


def test_the_end_of_the_page_stays_on_a_small_screen(status: Status) -> None:
    assert len(lines(status, 100)) > 40
    page = lines(status, 100, height=30)
    assert len(page) <= 30
    assert "failed" in "".join(page)
    assert any("more workers" in line for line in page)
    assert sum("gpu-node" in line for line in lines(status, 100, height=5)) >= 3


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_a_line_says_what_takes_long(
    seconds: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("proxhpc.status.terminal._PATIENCE_SECONDS", 0.1)
    with waiting("reading the inputs"):
        time.sleep(seconds)
    assert capsys.readouterr().err == ("reading the inputs …\n" if seconds else "")


def test_a_terminal_shows_that_something_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    screen, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as file:
        monkeypatch.setattr("sys.stderr", file)
        monkeypatch.setenv("TERM", "xterm")
        with waiting("reading the inputs"):
            time.sleep(0.2)
    assert b"reading the inputs \x1b[33m0:00:00" in os.read(screen, 4096)
    os.close(screen)
