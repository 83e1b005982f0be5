"""The report: totals and FLOPs computed by hand, and a page that escapes untrusted text."""

import base64
import hashlib
import io
import json
import re
from collections import Counter
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import orjson
import pytest
import zstandard
from rich.console import Console, RenderableType

from proxhpc.account.counts import Counts
from proxhpc.account.flops import ModelShape, Usage
from proxhpc.account.reasons import call_text, reason_text
from proxhpc.assemble.stats import CorpusStats
from proxhpc.assemble.summary import DuplicateCounts, FileCounts, MergeSummary, SharedIds
from proxhpc.assemble.write import PartReceipt
from proxhpc.cluster import tasks
from proxhpc.errors import RetryError, StopError, UserError
from proxhpc.launch.launch import Run, prepare_run
from proxhpc.program import syntax
from proxhpc.program.reference import Reason
from proxhpc.program.syntax import ParseReason
from proxhpc.report import load_report, write_report
from proxhpc.report.build import build_report
from proxhpc.report.html import report_page
from proxhpc.report.model import Report
from proxhpc.report.text import break_even_text
from proxhpc.report.view import render_report
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from proxhpc.status.heartbeats import sample_heartbeats
from proxhpc.status.terminal import short
from runs import EXECUTE_REASONS, document, local_site, manifest, planned, rows_of, write_jsonl

HOSTILE = "\x1b]0;owned\x07[red]<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\u202e"
SHAPE = ModelShape(
    hidden=8, layers=2, heads=4, head_dim=2, vocab=100, active=1152, parameters=1992 + 800
)
# By hand: attention 2·8·2·(4+2) = 192, MLP 3·8·16 = 384, two layers: 1152; head 8·100 = 800,
# norms 5·8 = 40, so N without the input embedding is 1152 + 800 + 40 = 1992.
BODY, HEAD, PAPER = 1152, 800, 1992
DOC = Usage(3, 300, 20, 290, 12, 20_000, logits=12)
CHUNK = Usage(2, 200, 0, 230, 32, 30_000, logits=32)


def counts() -> Counts:
    return Counts(
        documents=10,
        kept=3,
        edited=4,
        dropped=Counter(short=2),
        quarantined=Counter(invalid_json=1),
        rejected=Counter(unknown_call=5),
        flags=Counter(truncated=1),
        bytes_in=4000,
        bytes_out=2400,
        tokens_in=1000,
        tokens_out=600,
        lines_removed=11,
        strings_replaced=6,
        windows=9,
        doc=DOC,
        chunk=CHUNK,
    )


def summary(**changes: Any) -> MergeSummary:
    part = PartReceipt("m", "part-00000.jsonl.zst", 5, 3000, 900, "ab", 2000, 500, {0: 5}, {})
    values: dict[str, Any] = {
        "match_digest": "m",
        "counts": counts(),
        "duplicates": DuplicateCounts(2, sets=1, largest_set=3),
        "shared_ids": SharedIds(1, (("x", "a:0"),)),
        "written": 5,
        "text_bytes": 2000,
        "tokens": 500,
        "files": (
            FileCounts("a.jsonl", 6, 3, 2, 1, 0, 1, 4),
            FileCounts("b.jsonl", 4, 0, 2, 1, 1, 1, 1),
        ),
        "parts": (part,),
    }
    return MergeSummary(**values | changes)


def merged(run: RunDir, summary: MergeSummary) -> None:
    run.merge.mkdir(parents=True, exist_ok=True)
    summary.save(run)


def with_model(run: RunDir, shape: ModelShape | None = SHAPE, **sections: Any) -> None:
    """Let the plan name a model for both stages."""
    data = orjson.loads(run.plan.read_bytes())
    data["manifest"]["engine"] = {"name": "transformers"}
    for stage in data["manifest"]["stages"]:
        stage["model"] = "org/refiner"
        ref = {"name": "org/refiner", "path": "/m", "max_model_len": 2048,
               "snapshot": "abc", "stop_ids": [], "refiner": None}  # fmt: skip
        data["models"][stage["level"]] = ref | {"shape": asdict(shape) if shape else None}
    data["manifest"] |= sections
    run.plan.write_bytes(orjson.dumps(data))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return planned(tmp_path, 10).dir


def printed(report: Report) -> str:
    return printed_of(render_report(report))


def printed_of(page: RenderableType) -> str:
    out = io.StringIO()
    Console(file=out, width=160, highlight=False).print(page)
    return out.getvalue()


def test_totals_are_those_of_the_merge(run: RunDir) -> None:
    merged(run, summary())
    report = build_report(run)
    assert report.documents.model_dump() == {
        "read": 10,
        "kept": 3,
        "edited": 4,
        "dropped": {"short": 2},
        "quarantined": {"invalid_json": 1},
        "refined": 7,
        "duplicates": 2,
        "near_duplicates": 0,
        "url_duplicates": 0,
        "left_out": {},
        "written": 5,
        "written_ratio": 0.5,
    }
    assert (report.duplicate_sets.sets, report.duplicate_sets.largest_size) == (1, 3)
    assert report.shared_ids == 1
    assert report.token_unit == "UTF-8 bytes / 4 (estimate)"
    assert report.tokens.model_dump() == {
        "read": 1000,
        "refined": 600,
        "written": 500,
        "written_ratio": 0.5,
    }
    assert report.bytes.model_dump() == {
        "read": 4000, "refined": 2400, "written": 2000, "written_ratio": 0.5,
    }  # fmt: skip
    assert report.bytes_stored == 900
    assert [entry.written_ratio for entry in report.inputs] == [0.666667, 0.25]
    assert report.edits.rejected == {"unknown_call": 5}


def test_flops_are_those_computed_by_hand(run: RunDir) -> None:
    with_model(run)
    merged(run, summary())
    report = build_report(run)
    doc, chunk = (stage.flops for stage in report.stages)
    # 2·body·fed + 2·head·logits + 4·layers·heads·head size·attended
    assert doc.exact == 2 * BODY * 290 + 2 * HEAD * 12 + 4 * 2 * 4 * 2 * 20_000 == 1_967_360
    assert chunk.exact == 2 * BODY * 230 + 2 * HEAD * 32 + 4 * 2 * 4 * 2 * 30_000 == 2_501_120
    assert doc.paper_measured == 2 * PAPER * (300 + 12)
    assert doc.paper_corpus == 2 * PAPER * 1000
    assert report.flops.exact == 1_967_360 + 2_501_120
    assert report.stages[0].usage.cached_tokens == 20
    assert report.stages[0].parameters == PAPER + 800
    assert report.token_unit == "org/refiner"


def test_the_chunk_stage_reads_what_the_doc_stage_keeps(run: RunDir) -> None:
    with_model(run)
    total = counts()
    total.dropped = Counter(doc_program=2)
    total.tokens_chunk = 700
    merged(run, summary(counts=total))
    report = build_report(run)
    assert report.stages[0].tokens_read == 1000
    assert report.stages[1].tokens_read == 700
    assert report.flops.paper_corpus == 2 * PAPER * 1700
    assert report.flops.exact == 1_967_360 + 2_501_120


def test_an_unknown_shape_makes_flops_unknown_not_zero(run: RunDir) -> None:
    with_model(run, None, comparison={"parameters": 1000})
    merged(run, summary())
    report = build_report(run)
    assert set(report.flops.model_dump().values()) == {None}
    assert report.comparison.saved_flops == 6 * 1000 * 500
    assert report.comparison.break_even_parameters is None
    assert "unknown, because the shape of a model is" in report_page(report)


def test_rules_cost_no_flops(run: RunDir) -> None:
    merged(run, summary())
    assert set(build_report(run).flops.model_dump().values()) == {0}


def test_the_break_even_is_where_saved_training_pays_for_refining(run: RunDir) -> None:
    with_model(run, comparison={"parameters": 2000, "name": "tiny"})
    merged(run, summary())
    training = build_report(run).comparison
    refining = 1_967_360 + 2_501_120
    assert training.raw_flops == 6 * 2000 * 1000
    assert training.refined_flops == 6 * 2000 * 500
    assert training.saved_flops == 6 * 2000 * 500
    even = training.break_even_parameters
    assert 6 * even * 500 >= refining > 6 * (even - 1) * 500
    text = break_even_text(build_report(run))
    assert f"at least {short(even)} parameters" in text
    percent = 100 * refining / (6 * 2000 * 1000)
    assert f"tiny, this saves 50.0 % of the training FLOPs; refining took {percent:.3g} %" in text


def test_a_corpus_that_did_not_shrink_never_pays(run: RunDir) -> None:
    with_model(run, comparison={"parameters": 2000})
    merged(run, summary(tokens=1000))
    report = build_report(run)
    assert report.comparison.break_even_parameters is None
    assert "does not pay" in report_page(report)


@pytest.mark.parametrize(
    ("config", "parameters", "note"),
    [
        (json.dumps({"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2,
                     "num_attention_heads": 4, "head_dim": 2, "num_key_value_heads": 2,
                     "intermediate_size": 16, "vocab_size": 100}), PAPER, ""),
        (json.dumps({"model_type": "mamba"}), None, "mamba"),
        ("[]", None, "not a valid JSON object"),
        ("[" * 100_000, None, "not a valid JSON object"),
        ("{", None, "not a valid JSON object"),
        (None, None, "config.json is missing"),
    ],
)  # fmt: skip
def test_a_model_to_compare_with_may_be_a_directory(
    run: RunDir, tmp_path: Path, config: str | None, parameters: int | None, note: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with_model(run, comparison={"model": str(tmp_path)})
    merged(run, summary())
    training = build_report(run).comparison
    assert training.parameters == parameters
    assert note in training.note
    assert report_page(build_report(run))


def test_a_run_that_is_not_merged_has_no_report(run: RunDir) -> None:
    with pytest.raises(UserError, match="not merged yet"):
        build_report(run)
    with pytest.raises(UserError, match="no report yet"):
        load_report(run)


@pytest.mark.parametrize("changes", [{"written": 6}, {"duplicates": DuplicateCounts(1, 0, 1, 2)}])
def test_counts_that_do_not_balance_stop_the_report(run: RunDir, changes: dict[str, Any]) -> None:
    merged(run, summary(**changes))
    with pytest.raises(StopError):
        write_report(run)
    assert not run.report_json.exists()


def test_times_of_workers_are_added_up_and_stay_in_execution(run: RunDir) -> None:
    merged(run, summary())
    for name, busy in (("w1", 30.0), ("w2", 50.0)):
        log = ProgressLog(run, LeaseOwner(name, HOSTILE, 1, "1"), "refine")
        log.busy_seconds, log.boot_seconds, log.counts = busy, 10.0, counts()
        log.write("starting")
        log.write("failed", RetryError(HOSTILE))
    ProgressLog(run, LeaseOwner("m", "h", 1, "1"), "merge", busy_seconds=7.0).write("done")
    report = build_report(run)
    times = report.execution
    assert (times.workers, times.busy_seconds, times.boot_seconds) == (2, 80.0, 20.0)
    assert times.gpus.busy_seconds == 0
    run.site.write_bytes(orjson.dumps({"name": "s", "kind": "slurm", "gpus": 2}))
    gpus = build_report(run).execution.gpus
    assert (gpus.busy_seconds, gpus.boot_seconds) == (160.0, 40.0)
    run.site.write_bytes(orjson.dumps({"name": "s", "kind": "slurm", "gres": "gpu:a100:2"}))
    assert build_report(run).execution.gpus.busy_seconds is None
    assert times.tokens_per_worker_second == 12.5
    again = build_report(run)
    rest = {"execution": times}
    assert report.model_copy(update=rest) == again.model_copy(update=rest)


class Page(HTMLParser):
    """Tags and attributes of a page, and whether every one is closed."""

    VOID = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: set[str] = set()
        self.open: list[str] = []
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes |= {name for name, _ in attrs}
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def hostile_run(run: RunDir) -> None:
    total = counts()
    total.dropped = Counter({HOSTILE: 2})
    total.rejected = Counter({HOSTILE: 2})
    stats = CorpusStats(lost_tokens=Counter({f"dropped {HOSTILE}": 300}))
    files = summary().files
    named = (FileCounts(HOSTILE, 6, 3, 2, 1, 0, 1, 4), files[1])
    with_model(run, comparison={"parameters": 10, "name": "[red]<script>"})
    merged(run, summary(counts=total, files=named, stats=stats))
    log = ProgressLog(run, LeaseOwner("w1", HOSTILE, 1, "1"), "refine")
    log.write("failed", ValueError(HOSTILE))


def test_untrusted_text_is_escaped_on_the_page(run: RunDir) -> None:
    hostile_run(run)
    write_report(run)
    html = run.report_html.read_text(encoding="utf-8")
    parsed = Page(html)
    assert parsed.open == []
    assert not {"script", "img", "iframe", "link", "object", "form", "a"} & set(parsed.tags)
    assert not {name for name in parsed.attributes if name.startswith("on")}
    assert not {"src", "href", "style"} & parsed.attributes
    assert "<script>alert(1)</script>" in parsed.words, "the text is shown, escaped"
    assert not {"\x1b", "\x07", "\u202e"} & set(html)
    assert "http" not in html.replace('http-equiv="', "")


def test_the_security_policy_allows_only_our_own_style_sheet(run: RunDir) -> None:
    merged(run, summary())
    html = report_page(build_report(run))
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    assert policy
    assert policy[1].startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy[1]
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert digest in policy[1]


def test_control_characters_do_not_reach_the_terminal(run: RunDir) -> None:
    hostile_run(run)
    report = write_report(run)
    text = printed(report)
    assert not {"\x1b", "\x07", "\u202e"} & set(text)
    assert "[red]<script>" in text
    assert run.report_json.read_bytes().isascii()
    assert load_report(run) == report


def test_the_page_lists_100_input_files_and_the_json_all(run: RunDir) -> None:
    one = summary()
    files = (*one.files, *(FileCounts(f"f{n}", 0, 0, 0, 0, 0, 0, 0) for n in range(300)))
    merged(run, summary(files=files))
    report = write_report(run)
    assert len(report.inputs) == 302
    assert "And 202 more files" in run.report_html.read_text()


def test_an_empty_corpus_can_be_reported(run: RunDir) -> None:
    nothing = summary(
        counts=Counts(), duplicates=DuplicateCounts(), shared_ids=SharedIds(), written=0,
        text_bytes=0, tokens=0, files=(), parts=(),
    )  # fmt: skip
    merged(run, nothing)
    report = write_report(run)
    assert report.documents.written_ratio is None
    assert "The input holds no documents." in printed(report)
    assert "No document has the text of another one." in run.report_html.read_text()


def unpacked(part: Path) -> bytes:
    with part.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()


def test_the_report_of_a_real_run_equals_sums_over_its_files(tmp_path: Path) -> None:
    rows: list[Any] = [document(number) for number in range(30)]
    rows += [
        document(3, id="again"),
        b"{broken",
        {"id": "n", "text": None},
        {"id": "s", "text": "a"},
    ]
    path = write_jsonl(tmp_path / "in" / "a.jsonl.zst", rows)
    run: Run = prepare_run(manifest(tmp_path, [path]), local_site(tmp_path), None)
    tasks.refine_task(str(run.dir.root), 0, 1)
    tasks.merge_task(str(run.dir.root), 1)
    report = write_report(run.dir)
    ledger = rows_of(run.dir, run.plan)
    texts = [
        orjson.loads(line)["text"]
        for part in sorted(run.dir.corpus.glob("part-*"))
        for line in unpacked(part).splitlines()
    ]
    assert report.documents.read == len(ledger) == 34
    assert report.documents.written == len(texts) == 30
    assert report.documents.duplicates == 1
    assert report.documents.quarantined == {"invalid_json": 1, "null_text": 1}
    assert report.bytes.written == sum(len(text.encode()) for text in texts)
    assert report.tokens.written == sum(-(-len(text.encode()) // 4) for text in texts)
    assert report.tokens.read == sum(row.tokens_in for row in ledger)
    assert Plan.load(run.dir).digest == report.execution.plan


def test_the_timeline_shows_rates_and_failures_of_workers(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """60 bins of a second: w1 reads 100 tokens a second and fails after 30, w2 40 to the end."""
    merged(run, summary())
    for name, lines in (
        ("w1", [(0, "starting", 0, 0), (10, "working", 1000, 0), (30, "failed", 3000, 0)]),
        ("w2", [(0, "working", 0, 0), (45, "working", 1800, 1), (60, "done", 2400, 1)]),
        ("w3", [(20, "working", 0, 0)]),
    ):
        log = ProgressLog(run, LeaseOwner(name, "node7", 1, "1"), "refine")
        for at, state, tokens, deaths in lines:
            monkeypatch.setattr("time.time", lambda at=at: 1e9 + at)
            log.counts, log.deaths = Counts(tokens_in=tokens), deaths
            log.write(state)
    timeline = build_report(run).execution.timeline
    assert timeline.seconds == 60
    assert timeline.tokens_per_second == (140.0,) * 30 + (40.0,) * 30
    workers = {one.worker: (one.end, one.failed, one.deaths_noted) for one in timeline.workers}
    assert workers == {
        "w1": ("failed", 0.5, ()),
        "w2": ("done", None, (0.75,)),
        "w3": ("gone", 0.3333, ()),
    }
    html = report_page(build_report(run))
    assert html.count("died without an error message") == 1
    assert html.count('class="noted"') == 1
    assert html.count('width="3" height="20"') == 2, "w1 and w3"


def test_a_long_history_is_sampled_evenly(run: RunDir) -> None:
    log = ProgressLog(run, LeaseOwner("w1", "node7", 1, "1"), "refine")
    for number in range(2000):
        log.counts = Counts(tokens_in=number)
        log.write("working")
    beats = sample_heartbeats(run.worker("w1"), 20)
    read = [beat.counts.tokens_in for beat in beats]
    assert read[0] == 0
    assert read[-1] == 1999
    assert 20 <= len(read) <= 22
    assert max(b - a for a, b in pairwise(read)) < 300


def test_a_damaged_examples_file_is_named(run: RunDir) -> None:
    merged(run, summary())
    run.examples.write_bytes(b'{"id": 1}\n')
    with pytest.raises(StopError, match="damaged"):
        build_report(run)


def test_every_reason_has_words() -> None:
    page = Path(__file__).parents[1] / "docs" / "run-directory.md"
    table = page.read_text().partition("## Quarantine")[2].partition("\n## ")[0]
    documented = re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", table, re.M)))
    assert len(documented) > 20
    flags = ["truncated", "line_too_long", "looped"]
    verdicts = ["doc_program", "unclear_verdict", "truncated_call"]
    programs = [*get_args(ParseReason), *EXECUTE_REASONS, *filter(None, get_args(Reason))]
    for code in (*documented, *flags, *verdicts, *programs):
        assert reason_text(code) != code
    assert reason_text("something_new") == "something_new"


def test_every_call_has_words() -> None:
    forms = (getattr(kind, "form", "") for kind in syntax.Statement.__subclasses__())
    printed_calls = {form.partition("(")[0] for form in forms if form[:1].isalpha()}
    assert len(printed_calls) >= 7
    for name in (*printed_calls, *syntax.NO_EDIT, *syntax.VERDICTS):
        assert call_text(name) != name
    assert call_text("something_new") == "something_new"
