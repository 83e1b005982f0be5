"""Status: read from plan, ledgers, leases, progress files and the queue, without writing."""

import io
import json
import os
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from merging import refined
from proxhpc.account.counts import Counts
from proxhpc.account.flops import Usage
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.summary import DuplicateCounts, MergeSummary, SharedIds
from proxhpc.assemble.write import PartReceipt
from proxhpc.cluster.backend import TaskBatch, record_intent
from proxhpc.cluster.journal import Journal
from proxhpc.cluster.queue import QueuedJob, Tag
from proxhpc.corpus.disk import append_line
from proxhpc.errors import RetryError, StopError, UserError
from proxhpc.inspect.document import sample_documents
from proxhpc.launch.launch import Run
from proxhpc.report.build import build_report, run_account
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.progress import ProgressLog
from proxhpc.status import Status, Ticker, collect, render_status, show_status
from proxhpc.status.heartbeats import read_last_heartbeat
from proxhpc.status.terminal import duration, percentage, safe, short
from proxhpc.status.totals import RunTotals
from runs import planned

HOSTILE = "\x1b]0;owned\x07\x1b[31m[red]<script>\x9b2J\u202e\n"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return planned(tmp_path)


def owner(name: str = "w1", **more: Any) -> LeaseOwner:
    return replace(LeaseOwner(name, "node7", 12, "99", "77_1"), **more)


def counts(documents: int, **more: Any) -> Counts:
    return Counts(
        documents=documents,
        kept=documents,
        tokens_in=10 * documents,
        tokens_out=9 * documents,
        bytes_in=40 * documents,
        **more,
    )


def beat(run: Run, who: LeaseOwner, age: float, documents: int = 0, **more: Any) -> None:
    """One line of a progress file, written `age` seconds ago."""
    line = {
        "time": time.time() - age,
        "state": "working",
        "role": "refine",
        "owner": asdict(who),
        "shards": 0,
        "counts": counts(documents).to_dict(),
        "busy_seconds": 5.0,
        "boot_seconds": 2.0,
        "deaths": 0,
    }
    append_line(run.dir.worker(who.worker), orjson.dumps(line | more))


def publish(run: Run, *shards: int) -> None:
    for shard in shards:
        run.dir.ledger(shard).touch()


def slurm_site(run: Run) -> None:
    run.dir.site.write_bytes(orjson.dumps({"name": "c", "kind": "slurm"}))


class FakeQueue:
    def __init__(self, jobs: Sequence[QueuedJob] = (), error: str = "") -> None:
        self.answer, self.error = jobs, error

    def jobs(self, run_id: str, submitted: Mapping[str, str]) -> Sequence[QueuedJob]:
        if self.error:
            raise RetryError(self.error)
        return [job for job in self.answer if job.tag and job.tag.run == run_id]


def job(run: Run, identity: str, state: str = "RUNNING", reason: str = "None") -> QueuedJob:
    tag = Tag(run.plan.run_id, "refine", 0)
    return QueuedJob(identity, state, reason, "", "", "", tag)


def page(status: Status, *, terminal: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200, highlight=False)
    console.print(render_status(status))
    return out.getvalue()


def test_a_planned_run_shows_the_next_command(run: Run) -> None:
    status = collect(run.dir, None)
    assert (status.phase, status.shards.done) == ("planned", 0)
    assert status.shards.total == len(run.plan.shards)
    assert status.next_step == f"proxhpc launch {run.dir.root}"


def test_a_directory_that_is_no_run_is_a_user_error(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path in (tmp_path, file):
        with pytest.raises(UserError, match=r"no plan\.json"):
            collect(RunDir(path), None)


def test_counts_speed_and_time_left_are_sums_over_the_workers(run: Run) -> None:
    shards = len(run.plan.shards)
    publish(run, 0, 1)
    (run.dir.leases / "00002.a1").write_bytes(b"{}")
    for name, now in (("w1", 160), ("w2", 220)):
        who = owner(name, job="")
        beat(run, who, 101, 0, state="starting")
        beat(run, who, 61, 100)
        work = {"answered": 10 * now, "speed": now / 10, "documents": now / 100}
        beat(run, who, 1, now, shard=2, work=work)
    status = collect(run.dir, None)
    assert status.phase == "refining"
    assert (status.shards.done, status.shards.leased) == (2, 1)
    assert status.documents.read == 380
    assert status.speed.documents_per_s == 3.8
    assert status.speed.tokens_per_s == 38.0
    assert shards > 3
    text = page(status)
    assert f"2 / {shards} shards" in text
    assert "380" in text


def test_merge_workers_do_not_count_as_refining(run: Run) -> None:
    beat(run, owner("w1", job=""), 1, 7, state="done")
    beat(run, owner("m1", job=""), 1, 7, role="merge")
    assert collect(run.dir, None).documents.read == 7


def test_reasons_add_up_over_workers(run: Run) -> None:
    for name in ("w1", "w2"):
        more = counts(3, dropped=Counter(short=2), quarantined=Counter(invalid_json=1))
        beat(run, owner(name), 1, counts=more.to_dict())
    status = collect(run.dir, None)
    assert status.documents.dropped == {"short": 4}
    text = page(status)
    assert "too few words left: 4" in text
    assert "not valid JSON: 2" in text


@pytest.mark.parametrize("tail", [b'{"time": 1, "sta', b"\x00" * 40, b'{"time": 1}\n', b"[]\n"])
def test_a_torn_or_foreign_line_is_skipped(run: Run, tail: bytes) -> None:
    beat(run, owner(), 10, 5)
    beat(run, owner(), 5, 9)
    with run.dir.worker("w1").open("ab") as file:
        file.write(tail)
    assert collect(run.dir, None).workers[0].documents == 9


def test_every_torn_length_of_a_progress_file_can_be_read(run: Run) -> None:
    for documents in (5, 9):
        beat(run, owner(), 5, documents)
    path = run.dir.worker("w1")
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in (*range(0, len(whole), 7), len(whole) - 1, len(whole)):
        path.write_bytes(whole[:length])
        last = read_last_heartbeat(path)
        documents = last.counts.documents if last else None
        assert documents == (None if length < first else 5 if length < len(whole) else 9)


def test_a_long_history_is_read_from_its_end_only(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(300):
        beat(run, owner(), 300 - step, step)
    read: list[int] = []
    pread = os.pread

    def counted(fd: int, length: int, offset: int) -> bytes:
        data = pread(fd, length, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counted)
    last = read_last_heartbeat(run.dir.worker("w1"))
    assert last
    assert last.counts.documents == 299
    size = run.dir.worker("w1").stat().st_size
    assert sum(read) < 20_000 < size


def test_a_line_longer_than_one_read_is_found(run: Run) -> None:
    beat(run, owner(), 1, 3, message="x" * 100_000)
    last = read_last_heartbeat(run.dir.worker("w1"))
    assert last
    assert last.counts.documents == 3


def test_slurm_tells_which_workers_are_alive(run: Run) -> None:
    slurm_site(run)
    beat(run, owner("w1", job="77_1"), 500, 1)
    beat(run, owner("w2", job="77_2"), 5, 1)
    queue = FakeQueue(
        [
            job(run, "77_1"),
            job(run, "77_3", "PENDING", "Priority"),
            QueuedJob("5", "RUNNING", "", "", "", "", None),
        ]
    )
    status = collect(run.dir, queue)
    states = {worker.worker: (worker.state, worker.slurm) for worker in status.workers}
    assert states == {"w1": ("working", "RUNNING"), "w2": ("gone", "")}
    assert status.queue == {"refine PENDING (Priority)": 1, "refine RUNNING": 1}
    assert status.phase == "refining"
    assert "1 refine PENDING (Priority)" in page(status)


def test_without_a_queue_an_old_heartbeat_means_silent_not_gone(run: Run) -> None:
    slurm_site(run)
    beat(run, owner("w1"), 500, 1)
    for queue in (None, FakeQueue(error="squeue did not answer")):
        status = collect(run.dir, queue)
        assert status.workers[0].state == "silent"
        assert status.phase == "refining"
        assert "the queue cannot be read" in status.reason
        assert status.queue is None
    assert "squeue did not answer" in page(status)


def test_processes_of_this_machine_are_checked_directly(run: Run) -> None:
    me = LeaseOwner.current()
    beat(run, replace(me, worker="alive", job=""), 500, 1)
    beat(run, replace(me, worker="dead", job="", started="1"), 1, 1)
    states = {worker.worker: worker.state for worker in collect(run.dir, None).workers}
    assert states == {"alive": "working", "dead": "gone"}


def test_a_stopped_run_gives_the_reason_and_the_next_command(run: Run) -> None:
    slurm_site(run)
    beat(run, owner("w1"), 60, 5, state="stopped")
    beat(run, owner("w2"), 50, 5, state="failed", error="StopError",
         message="input changed since the plan: a.jsonl\nput it back")  # fmt: skip
    beat(run, owner("w3"), 40, 5, state="failed", error="RetryError", message="disk full")
    status = collect(run.dir, FakeQueue())
    assert (status.phase, status.reason) == ("stopped", "input changed since the plan: a.jsonl")
    assert status.next_step.endswith(str(run.dir.root))
    assert [failure.example for failure in status.failures] == ["w2", "w3"]
    assert "fix the problem" in status.failures[0].hint
    text = page(status)
    assert "disk full" in text
    assert "next: proxhpc launch" in text


def test_the_reason_is_that_of_the_latest_launch(run: Run) -> None:
    """Whatever the names of its workers."""
    slurm_site(run)
    for name, age, message in (("w1", 900, "a"), ("w0", 20, "b"), ("w2", 500, "c")):
        beat(run, owner(name), age, 5, state="failed", error="StopError", message=message)
    assert collect(run.dir, FakeQueue()).reason == "b"


def test_unusable_answers_are_a_warning(run: Run) -> None:
    def shown(flagged: int, refused: int) -> str:
        counted = counts(10, flags=Counter(unusable_answer=flagged)).to_dict()
        counted["quarantined"] = {"request_refused": refused, "not_a_number": 1}
        beat(run, owner("w1"), 1, counts=counted)
        return page(collect(run.dir, None))

    assert "cannot be used" not in shown(3, 1)
    assert "answers of a model cannot be used in 6 of 10 documents" in shown(3, 2)


def test_the_queue_is_not_read_for_a_local_run(run: Run) -> None:
    beat(run, owner("w1", job=""), 1, 5)
    status = collect(run.dir, FakeQueue(error="no Slurm here"))
    assert (status.queue, status.queue_problem) == (None, "")


def test_many_workers_with_one_message_are_one_failure(run: Run) -> None:
    for number in range(5):
        beat(run, owner(f"w{number}"), 1, state="failed", error="RetryError", message="disk full")
    (failure,) = collect(run.dir, FakeQueue()).failures
    assert (failure.workers, failure.message) == (5, "RetryError: disk full")


def test_the_hint_of_a_failed_merge_is_on_its_line_and_names_no_shards(run: Run) -> None:
    message = "disk full\n  free space"
    beat(run, owner(), 1, role="merge", state="failed", error="RetryError", message=message)
    (failure,) = collect(run.dir, None).failures
    assert failure.message == "RetryError: disk full; free space"
    assert "the next merge resumes" in failure.hint
    text = page(collect(run.dir, None))
    assert "other workers" not in text
    assert "\\n" not in text


def test_a_run_with_an_active_launcher_is_not_stopped(run: Run) -> None:
    beat(run, owner("w1", job=""), 60, 5, state="done")
    assert collect(run.dir, None).phase == "stopped"
    lease = run.dir.lease("advance", 1)
    me = LeaseOwner.current("a")
    lease.write_bytes(orjson.dumps(asdict(me)))
    assert collect(run.dir, None).phase == "refining"
    lease.write_bytes(orjson.dumps(asdict(replace(me, started="1"))))
    assert collect(run.dir, None).phase == "stopped"


def test_phases_follow_the_files(run: Run) -> None:
    beat(run, owner("w1", job=""), 1, 5)
    assert collect(run.dir, None).phase == "refining"
    publish(run, *range(len(run.plan.shards)))
    assert collect(run.dir, None).phase == "merging"
    assert "✓ refine   ▸ sketch   · match   · write   · report" in page(collect(run.dir, None))
    part = PartReceipt("m", run.dir.part(0).name, 56, 900, 5, "ab", 800, 200, {0: 56}, {})
    merged = MergeSummary(
        "m", counts(60), DuplicateCounts(4, 0, 2, 3), SharedIds(), 56, 800, 200, (), (part,)
    )
    merged.save(run.dir)
    run.dir.corpus.mkdir()
    for path in (run.dir.part(0), run.dir.card, run.dir.checksums):
        path.write_bytes(b"12345")
    status = collect(run.dir, None)
    assert (status.phase, status.exact, status.documents.read) == ("reporting", True, 60)
    beat(run, owner("w1", job=""), 0, 5, state="done")
    stopped = collect(run.dir, None)
    assert (stopped.phase, stopped.next_step) == ("stopped", f"proxhpc launch {run.dir.root}")
    assert stopped.reason.startswith("the corpus is written, the report is not, but no worker")
    assert "✓ write   ▸ report" in page(status)
    assert (status.documents.duplicates, status.documents.written) == (4, 56)
    rows = [line.split("  ")[0] for line in page(status).splitlines()]
    assert [row for row in rows if "kept" in row or "corpus" in row] == [
        "kept unchanged",
        "in the corpus",
    ]
    run.dir.report.mkdir()
    run.dir.report_json.write_text("{}")
    status = collect(run.dir, None)
    assert (status.phase, status.next_step) == ("finished", "")
    assert "56" in page(status)
    run.dir.part(0).write_bytes(b"1234")
    status = collect(run.dir, None)
    assert status.phase == "finished"
    assert "lacks part-00000.jsonl.zst" in status.reason
    assert status.next_step.startswith("proxhpc launch")


def test_a_run_with_pending_jobs_is_refining(run: Run) -> None:
    slurm_site(run)
    record_intent(
        Journal(run.dir),
        0,
        TaskBatch("refine", print, [(), ()], {}),
        arrays=1,
        has_control_job=True,
    )
    assert collect(run.dir, FakeQueue([job(run, "8_0", "PENDING")])).phase == "refining"
    assert collect(run.dir, FakeQueue()).phase == "stopped"


def test_a_run_whose_jobs_are_all_held_is_stopped(run: Run) -> None:
    slurm_site(run)
    held = [job(run, "7_0", "PENDING", "JobHeldUser"), job(run, "8", "PENDING", "JobHeldUser")]
    status = collect(run.dir, FakeQueue(held))
    assert (status.phase, status.next_step) == ("stopped", f"proxhpc launch {run.dir.root}")
    assert "held" in status.reason
    held[1] = job(run, "8", "PENDING", "Dependency")
    assert collect(run.dir, FakeQueue(held)).phase == "refining"


def test_a_damaged_file_is_named(run: Run) -> None:
    slurm_site(run)
    run.dir.merge_summary.write_bytes(b'{"coun')
    with pytest.raises(StopError, match=r"summary\.json is damaged"):
        collect(run.dir, FakeQueue())


def test_deaths_and_excluded_nodes_are_shown(run: Run) -> None:
    slurm_site(run)
    for number, nodes in enumerate([("n1",), ("n2", "n\x1b7")]):
        work = TaskBatch("refine", print, [()], {}, nodes)
        record_intent(Journal(run.dir), number, work, arrays=1, has_control_job=True)
    beat(run, owner("w1"), 1, 5, deaths=2)
    beat(run, owner("w2"), 1, 5, deaths=1)
    status = collect(run.dir, FakeQueue())
    assert (status.deaths, status.excluded_nodes) == (3, ("n2", "n\x1b7"))
    assert "resumed after a worker or engine died: 3 shards" in page(status)
    assert "excluded, because workers failed there within minutes: n2, n" in page(status)
    assert "\x1b" not in page(status)


def test_hostile_text_does_not_reach_the_terminal(run: Run) -> None:
    slurm_site(run)
    who = owner("w1", worker=HOSTILE, host=HOSTILE, job=HOSTILE)
    line = counts(1, dropped=Counter({HOSTILE: 1}), quarantined=Counter({HOSTILE: 1})).to_dict()
    more = {"counts": line, "state": "failed", "error": HOSTILE, "message": HOSTILE}
    append_line(
        run.dir.worker("x"),
        orjson.dumps({"time": 1.0, "role": "refine", "owner": asdict(who), "shards": 1} | more),
    )
    queue = FakeQueue([job(run, "1", HOSTILE, HOSTILE)])
    status = collect(run.dir, queue)
    text = page(status)
    harmful = {"\x1b", "\x07", "\x9b", "\u202e"}
    assert not harmful & set(text)
    for start in ("dropped", "quarantined", "Slurm:", "\\x1b]0;owned"):
        line = next(line for line in text.splitlines() if line.startswith(start))
        assert "[red]" in line, "markup is shown, not obeyed"
    out = io.StringIO()
    show_status(run.dir, as_json=True, queue=queue, console=Console(file=out))
    assert out.getvalue().isascii()
    assert not harmful & set(out.getvalue())
    assert json.loads(out.getvalue())["workers"][0]["message"] == HOSTILE


@given(st.text())
def test_safe_text_is_one_line_that_can_be_printed(text: str) -> None:
    out = safe(text)
    assert "\x1b" not in out
    assert "\n" not in out
    out.encode("utf-8")  # a lone surrogate would raise
    if text.isprintable():
        assert out == text


def test_on_a_terminal_the_colours_are_ours_alone(run: Run) -> None:
    beat(run, owner("w1", host="\x1b[5mnode"), 1, 5)
    text = page(collect(run.dir, None), terminal=True)
    assert "\x1b[32m" in text
    assert "\x1b[5m" not in text
    assert "\\x1b[5mnode" in text


def snapshot(root: Path) -> dict[str, tuple[int, int]]:
    stats = ((path, path.stat()) for path in sorted(root.rglob("*")))
    return {str(path): (each.st_mtime_ns, each.st_size) for path, each in stats}


@pytest.fixture
def read_only(run: Run) -> Iterator[Run]:
    beat(run, owner("w1"), 1, 5)
    folders = [run.dir.root, *(path for path in run.dir.root.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield run
    for folder in folders:
        folder.chmod(stat.S_IRWXU)


def test_status_writes_nothing(read_only: Run) -> None:
    before = snapshot(read_only.dir.root)
    collect(read_only.dir, FakeQueue())
    out = io.StringIO()
    show_status(read_only.dir, console=Console(file=out, width=150))
    assert "w1" in out.getvalue()
    assert run_account(read_only.dir).documents.read == 5
    assert sample_documents(read_only.dir, 1) == []
    assert snapshot(read_only.dir.root) == before


def test_merge_steps_are_shown_as_they_progress(tmp_path: Path) -> None:
    run = refined(tmp_path)
    shown: list[str] = []

    def check_page(phase: str, done: int, of: int) -> None:
        if phase in ("sketch", "write") and done < of:
            assert f"▸ {phase} {done}/{of}" in page(collect(run.dir, None)) or of == 1
            shown.append(phase)

    merge_run(run.dir, progress=check_page)
    assert Counter(shown)["write"] > 2
    assert set(shown) == {"sketch", "write"}
    assert "✓ write   ▸ report" in page(collect(run.dir, None))


def test_status_and_report_of_a_merged_run_have_the_same_totals(tmp_path: Path) -> None:
    run = refined(tmp_path)
    before = collect(run.dir, None)
    merge_run(run.dir)
    status, report = collect(run.dir, None), build_report(run.dir)
    for name in RunTotals.model_fields:
        assert getattr(status, name) == getattr(report, name), name
    assert status.documents.read == before.documents.read == 39
    assert before.documents.written is None
    assert status.documents.written == status.documents.refined - status.documents.duplicates


def test_model_requests_are_shown_by_stage(run: Run) -> None:
    assert "tokens out" not in page(collect(run.dir, None))
    total = counts(5)
    total.doc = Usage.of_request(100, 25, 3)
    ProgressLog(run.dir, owner("w1"), "refine", counts=total).write("working")
    lines = [line.split() for line in page(collect(run.dir, None)).splitlines()]
    assert ["doc", "stage", "1", "100", "25.0", "%", "3"] in lines
    assert not any("chunk" in line for line in lines), "a stage that asked nothing has no row"


def test_before_the_first_answer_the_page_says_why_no_speed_is_known(run: Run) -> None:
    beat(run, owner("w1", job=""), 1, 0, state="starting")
    status = collect(run.dir, None)
    assert "loading models" in page(status)
    assert "?" not in page(status)
    beat(run, owner("w1", job=""), 0, 0)
    assert "speed not known yet" in page(collect(run.dir, None))


def test_watching_ends_when_the_run_is_finished(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    beat(run, owner("w1", job=""), 1, 5)
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            run.dir.report.mkdir()
            run.dir.report_json.write_text("{}")

    monkeypatch.setattr("proxhpc.status.screen.time.sleep", sleep)
    for terminal in (True, False):
        pauses.clear()
        run.dir.report_json.unlink(missing_ok=True)
        run.dir.report.exists() and run.dir.report.rmdir()
        out = io.StringIO()
        console = Console(file=out, force_terminal=terminal, width=150, highlight=False)
        show_status(run.dir, watch=True, console=console)
        assert len(pauses) == 2
        assert "finished" in out.getvalue()
        assert ("\x1b" in out.getvalue()) == terminal
        if not terminal:
            assert out.getvalue().count("refining: 0.0 %") == 1, "a line only when it changed"


def test_a_ticker_refreshes_only_after_its_pause(run: Run) -> None:
    out = io.StringIO()
    with Ticker(run.dir, console=Console(file=out, width=150)) as ticker:
        for _ in range(50):
            ticker.tick(run)
    assert out.getvalue().count("planned") == 1


def test_json_has_every_field(run: Run) -> None:
    beat(run, owner("w1"), 1, 5)
    out = io.StringIO()
    show_status(run.dir, as_json=True, console=Console(file=out))
    data = json.loads(out.getvalue())
    assert set(data) == set(Status.model_fields)
    assert data["format"] == "proxhpc.status/1"
    assert data["documents"]["read"] == 5
    assert Status.model_validate(data) == Status.model_validate_json(out.getvalue())
    assert data["workers"][0]["host"] == "node7"


def test_status_starts_without_heavy_imports() -> None:
    code = "import proxhpc.status, sys; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "vllm", "transformers", "submitit", "pyarrow", "numpy"}
    assert not heavy & {name.partition(".")[0] for name in eval(done.stdout)}


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "0"),
        (999, "999"),
        (999.7, "1k"),
        (1234, "1.23k"),
        (2.5e13, "25T"),
        (4.95e19, "4.95e+19"),
    ],
)
def test_short_numbers(number: float, words: str) -> None:
    assert short(number) == words


def test_durations_and_percentages() -> None:
    assert [duration(s) for s in (None, 3, 75, 3700, 200_000)] == [
        "?", "3 s", "1 min 15 s", "1 h 01 min", "2 d 07 h",
    ]  # fmt: skip
    assert (percentage(1, 8), percentage(1, 0)) == ("12.5 %", "")
