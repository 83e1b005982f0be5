"""What the report says in words: the sentence, its costs, what to do next, and its examples."""

import io
import json
import random
import shlex
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from proxhpc.account.counts import Counts
from proxhpc.assemble.examples import ExampleTexts
from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.stats import LARGEST, CorpusStats, ExampleRef
from proxhpc.assemble.summary import DuplicateCounts, FileCounts
from proxhpc.cli.options import parser
from proxhpc.cluster import tasks
from proxhpc.errors import UserError
from proxhpc.launch.launch import prepare_run
from proxhpc.report.advice import next_steps
from proxhpc.report.build import build_report, run_account
from proxhpc.report.examples import diff_rows, short_diff, typical_example
from proxhpc.report.html import report_page
from proxhpc.report.model import Report
from proxhpc.report.text import cost_text, sentence
from proxhpc.report.view import render_report
from proxhpc.run.lease import LeaseOwner
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.progress import ProgressLog
from proxhpc.spec.site import load_site
from runs import document, local_site, manifest, planned, write_jsonl
from test_report import counts, merged, summary, with_model


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return planned(tmp_path, 10).dir


def heartbeat(run: RunDir, name: str, role: str = "refine", up: float = 0.0, **more: Any) -> None:
    log = ProgressLog(run, LeaseOwner(name, "node7", 1, "1"), role, **more)
    log._started -= up
    log.write("done")


def report_of(run: RunDir, *, lost: dict[str, int] | None = None, **changes: Any) -> Report:
    """The report of `summary()` with other counts, in one input file."""
    total = counts()
    for name, value in changes.items():
        setattr(total, name, Counter(value) if isinstance(value, dict) else value)
    total.documents = total.in_corpus + total.dropped.total() + total.quarantined.total()
    duplicates = min(2, total.in_corpus)
    written = total.in_corpus - duplicates
    numbers = (total.kept, total.edited, total.dropped.total(), total.quarantined.total())
    files = (FileCounts("a.jsonl", total.documents, *numbers, duplicates, written),)
    stats = CorpusStats(lost_tokens=Counter(lost or {}))
    sizes = {"written": written, "files": files, "stats": stats}
    duplicate_counts = DuplicateCounts(duplicates, sets=1, largest_set=3)
    merged(run, summary(counts=total, duplicates=duplicate_counts, parts=(), **sizes))
    return build_report(run)


def test_the_sentence_has_shares_causes_cost_and_savings(run: RunDir) -> None:
    """Of 1,000 tokens: 250 too short, 600 left, so 150 edited away, and 100 in duplicates."""
    heartbeat(run, "w1", busy_seconds=90.0)
    assert sentence(report_of(run, lost={"dropped short": 250})) == (
        "50.0 % of the tokens and 50.0 % of the documents were removed: 25.0 % of the tokens in"
        " dropped documents (too few words left), 15.0 % in edited documents and 10.0 % in"
        " duplicates; this took 1 min 30 s of core time and saves 50.0 % of the FLOPs of a training"
        " epoch."
    )


def test_a_text_that_grew_has_no_negative_share(run: RunDir) -> None:
    report = report_of(run, tokens_in=400)
    assert "<b>0.0 %</b><span>fewer FLOPs" in report_page(report)
    text = sentence(report)
    assert text.startswith("The text grew by 25.0 % of its tokens, and 50.0 % of the documents")
    assert text.endswith(" and saves nothing in training.")


def test_a_run_without_removals_and_one_without_a_corpus_have_sentences(run: RunDir) -> None:
    total = Counts(documents=10, kept=10, tokens_in=1000, tokens_out=1000)
    files = (FileCounts("a", 10, 10, 0, 0, 0, 0, 10),)
    merged(run, summary(counts=total, duplicates=DuplicateCounts(), written=10, tokens=1000,
                        files=files, parts=()))  # fmt: skip
    report = build_report(run)
    assert sentence(report).startswith("Nothing was removed; this took ")
    assert sentence(report).endswith(" and saves nothing in training.")
    assert next_steps(report)[0].why == "Nothing was removed: look at some."
    total = Counts(documents=10, dropped=Counter(doc_program=10), tokens_in=9)
    stats = CorpusStats(lost_tokens=Counter({"dropped doc_program": 9}))
    files = (FileCounts("a", 10, 0, 0, 10, 0, 0, 0),)
    merged(run, summary(counts=total, duplicates=DuplicateCounts(), written=0, tokens=0, parts=(),
                        files=files, stats=stats))  # fmt: skip
    report = build_report(run)
    assert sentence(report).startswith(
        "Everything was removed: 100.0 % of the tokens in dropped documents (verdict of"
    )
    assert sentence(report).endswith(" and leaves nothing to train on.")
    assert not any("verify" in step.command for step in next_steps(report)), "nothing to publish"


def test_without_tokens_the_causes_are_shares_of_the_documents(run: RunDir) -> None:
    assert "No document is refined yet." in sentence(run_account(run))
    assert [step.command.split()[1] for step in next_steps(run_account(run))] == ["status"]
    heartbeat(run, "w1", counts=counts())
    text = sentence(run_account(run))
    assert text.startswith("So far, about ")
    assert (
        "were removed: 20.0 % of the documents dropped (too few words left) and 10.0 % quarantined"
        " (not valid JSON); this took " in text
    )


def site(run: RunDir, **keys: Any) -> None:
    run.site.write_bytes(orjson.dumps({"name": "s", "kind": "slurm"} | keys))


def test_cost_is_the_time_that_workers_held_their_gpus_and_cores(run: RunDir) -> None:
    """A worker of two GPUs held 2 h; one that a kill stopped is known by its work, 30 min."""
    merged(run, summary())
    heartbeat(run, "w1", up=7200.0, busy_seconds=100.0)
    heartbeat(run, "w2", busy_seconds=1500.0, boot_seconds=300.0)
    heartbeat(run, "m1", "merge", up=3600.0)
    site(run, gpus=2, cpus=8, price_per_gpu_hour="2.50 EUR", phases={"merge": {"cpus": 3}})
    cost = build_report(run).execution.cost
    assert round(cost.gpu_hours, 3) == 2 * 2.5
    assert round(cost.core_hours, 3) == 8 * 2.5 + 3
    assert cost.price == "12.50 EUR"
    assert cost_text(build_report(run).execution) == "5.0 GPU-hours (12.50 EUR)"
    assert "12.50 EUR" in report_page(build_report(run))
    site(run, cpus=8)
    assert build_report(run).execution.cost.price is None
    assert cost_text(build_report(run).execution) == "28.0 core-hours"


def test_one_document_is_not_one_documents(run: RunDir) -> None:
    heartbeat(run, "w1", counts=Counts(documents=1, kept=1, tokens_in=5, tokens_out=5))
    page = report_page(run_account(run))
    assert ">1 document read<" in page
    assert "1 documents" not in page


def test_the_gpus_of_plain_sbatch_are_unknown_not_free(run: RunDir) -> None:
    merged(run, summary())
    heartbeat(run, "w1", busy_seconds=60.0)
    site(run, gres="gpu:a100:2", price_per_gpu_hour="2 EUR")
    cost = build_report(run).execution.cost
    assert (cost.gpu_hours, cost.price) == (None, None)
    assert cost_text(build_report(run).execution) == "1 min 00 s of the workers' time"


@pytest.mark.parametrize("text", ["2.50 EUR", "3 €", "0.00035 credits"])
def test_a_price_is_a_number_and_a_currency(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nprice_per_gpu_hour: {text}\n")
    assert load_site(path).price_per_gpu_hour == text


@pytest.mark.parametrize("text", ["EUR 2", "2.5", "-1 EUR", "1 EUR a month", "1e3 EUR"])
def test_another_price_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(f"name: s\nprice_per_gpu_hour: '{text}'\n")
    with pytest.raises(UserError, match=r"a number and a currency, as in 2\.50 EUR"):
        load_site(path)


def test_an_unfinished_run_is_compared_with_the_estimate_for_the_same_texts(run: RunDir) -> None:
    with_model(run)
    plan = Plan.load(run)
    half = Counts(documents=2, kept=2, bytes_in=plan.estimated_bytes // 2)
    half.tokens_in = half.tokens_chunk = plan.estimated_tokens // 2
    heartbeat(run, "w1", counts=half, device="NVIDIA A100-SXM4-80GB", devices=1)
    account = run_account(run)
    estimate = account.estimate
    assert estimate.share == pytest.approx(0.5, abs=0.001)
    assert estimate.estimated.tokens == pytest.approx(half.tokens_in, abs=2)
    assert estimate.estimated.flops == pytest.approx(estimate.counted.flops, rel=0.01)
    assert estimate.estimated.documents is None, "long documents may come first"
    hours = estimate.estimated.flops / (312e12 * 0.4 * 3600)
    assert account.execution.cost.estimated_gpu_hours == pytest.approx(hours, abs=1e-6)
    merged(run, summary())
    assert build_report(run).estimate.share == 1
    assert build_report(run).estimate.estimated.documents == 10


def commands(report: Report) -> str:
    return "\n".join(step.command for step in next_steps(report))


@pytest.mark.parametrize(
    ("changes", "why", "command"),
    [
        ({"dropped": {"doc_program": 5}}, "The doc stage dropped 38.5 %", "--outcome dropped"),
        ({"quarantined": {"null_text": 1}}, "(mostly: text is null)", "--outcome quarantined"),
        ({"dropped": {"short": 1}}, "A limit of the policy dropped 11.1 %", "--policy"),
        ({"edited": 1, "kept": 3, "dropped": {}, "quarantined": {}}, "are duplicates",
         "--outcome duplicate"),
        ({"rejected": {"not_found": 7, "bad_arguments": 1}},
         "100.0 % of the statements were not executed (mostly: string not in the text)",
         "--sample 10"),
    ],
)  # fmt: skip
def test_numbers_that_need_a_look_come_first(
    run: RunDir, changes: dict[str, Any], why: str, command: str
) -> None:
    calm = {"kept": 3, "edited": 5, "dropped": {}, "quarantined": {}, "rejected": {}}
    calm_report = report_of(run, **calm)
    assert [step.command.split()[1] for step in next_steps(calm_report)] == [
        "inspect", "review", "verify", "evaluate"
    ]  # fmt: skip
    steps = next_steps(report_of(run, **calm | changes))
    assert why in steps[0].why
    assert command in steps[0].command
    assert why not in " ".join(step.why for step in next_steps(calm_report))


def test_statements_that_cannot_be_parsed_count_as_statements(run: RunDir) -> None:
    stats = CorpusStats(calls=Counter({"chunk remove_lines": 90, "doc keep_doc": 10}))
    rejected = Counter(bad_arguments=20, not_found=10)
    merged(run, summary(stats=stats, counts=replace(counts(), rejected=rejected)))
    assert "25.0 % of the statements were not executed" in next_steps(build_report(run))[0].why


def test_answers_without_an_end_are_noticed(run: RunDir) -> None:
    stats = CorpusStats(finishes=Counter({"chunk stop": 80, "chunk length": 15, "chunk loop": 5}))
    merged(run, summary(stats=stats, counts=replace(counts(), rejected=Counter())))
    why = next_steps(build_report(run))[0].why
    assert why.startswith("20.0 % of the answers have no end; max_new_tokens may be too small")


def test_every_suggested_command_is_one(tmp_path: Path) -> None:
    """Also where the run's path has blanks, and before the merge."""
    run = planned(tmp_path / "a b", 10).dir
    heartbeat(run, "w1", counts=counts())
    suggested = [step.command for step in next_steps(run_account(run))]
    bad = {"dropped": {"doc_program": 50, "short": 20}, "quarantined": {"null_text": 3}}
    suggested += commands(report_of(run, **bad)).split("\n")
    assert len(suggested) >= 8
    for command in suggested:
        words = shlex.split(command)
        assert words[0] == "proxhpc"
        parser().parse_args(words[1:])
        assert any(word.startswith(str(run.root)) for word in words)


def lines_of(report: Report, width: int) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(render_report(report))
    return out.getvalue().rstrip("\n").split("\n")


def test_the_summary_of_a_run_is_ten_lines(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.root.parent)
    heartbeat(run, "w1", up=5e6)
    site(run, gpus=1, price_per_gpu_hour="2.50 EUR")
    lost = {"dropped doc_program": 200, "quarantined request_refused": 100}
    changes = {"dropped": {"doc_program": 8}, "quarantined": {"request_refused": 1}, "rejected": {}}
    lines = lines_of(report_of(run, lost=lost, **changes), 80)
    assert len(lines) == 10
    assert [line.split()[0] for line in lines[-5:]] == [
        "documents", "tokens", "corpus", "report", "next"
    ]  # fmt: skip
    assert lines[-5].split()[1:] == ["16", "3", "4", "8", "1", "2", "5"]
    assert lines[-3].split() == ["corpus", "run/corpus"]
    next_command = "proxhpc inspect run --sample 10 --outcome dropped"
    assert lines[-1].split() == ["next", *shlex.split(next_command)]
    everything = "".join("".join(lines_of(report_of(run, lost=lost, **changes), 30)).split())
    assert "1,388.9GPU-hours(3,472.22EUR)" in everything, "nothing is cut on a narrow terminal"
    assert "--outcomedropped" in everything
    assert "…" not in everything


def refs(number: int) -> list[ExampleRef]:
    rng = random.Random(number)
    kinds = (LARGEST, "edited ", "dropped short", "quarantined poison")
    return [
        ExampleRef(rng.randrange(12) if kind == LARGEST else 0, rng.getrandbits(64), kind, 0, n)
        for n in range(80)
        for kind in (rng.choice(kinds),)
    ]


@given(st.integers(0, 1000), st.lists(st.integers(0, 79), max_size=6), st.randoms())
def test_examples_do_not_depend_on_groups_or_order(
    seed: int, cuts: list[int], rng: random.Random
) -> None:
    every = refs(seed)
    direct, merged_stats = CorpusStats(), CorpusStats()
    for ref in every:
        direct._add_example(ref)
    rng.shuffle(every)
    bounds = [0, *sorted(cuts), len(every)]
    for start, stop in pairwise(bounds):
        group = CorpusStats()
        for ref in every[start:stop]:
            group._add_example(ref)
        merged_stats += group
    assert merged_stats.examples == direct.examples == sorted(direct.examples)
    largest = [ref for ref in every if ref.kind == LARGEST]
    shares = sorted({ref.kept_share for ref in largest})[:6]
    lowest = [min(ref for ref in largest if ref.kept_share == share) for share in shares]
    assert [ref for ref in direct.examples if ref.kind == LARGEST] == lowest


def test_the_largest_removals_and_each_main_reason_are_shown(tmp_path: Path) -> None:
    """A menu of 1 to 5 lines over the same text, three short pages, and bad records."""
    body = document(0)["text"].partition("\n")[2]
    rows: list[Any] = [
        document(n, text="".join(f"Home {n} | Part {i} | Contact\n" for i in range(n)) + body)
        for n in range(1, 6)
    ]
    rows += [document(n, text=f"buy now {n} ### !!!") for n in range(30, 33)]
    path = write_jsonl(tmp_path / "in" / "a.jsonl", [*rows, b"{bad"])
    made = prepare_run(manifest(tmp_path, [path]), local_site(tmp_path), None)
    tasks.refine_task(str(made.dir.root), 0, 1)
    merge_run(made.dir)
    report = build_report(made.dir)
    largest = [one for one in report.examples if one.chosen == "largest"]
    assert report.examples[: len(largest)] == tuple(largest)
    assert [one.id for one in largest] == [f"doc-{n}" for n in range(5, 0, -1)]
    assert all(one.refined_tokens < one.raw_tokens for one in largest)
    reasons = [(one.outcome, one.reason) for one in report.examples if one.chosen == "reason"]
    assert reasons == [("dropped", reasons[0][1])] * 3
    assert len({one.source for one in report.examples}) == len(report.examples) <= 24


def example(before: str, after: str | None, sizes: tuple[int, int] = (9, 5)) -> ExampleTexts:
    outcome = "dropped" if after is None else "edited"
    return ExampleTexts(0, 0, "id", "a:0", outcome, "", *sizes, (), before, after, truncated=False)


def test_lines_stand_side_by_side() -> None:
    before = "menu\nThe first line stays.\nIt says colour here.\nlast\nend"
    after = "The first line stays.\nIt says color here.\nnew words\nlast\nend"
    rows = [
        row if isinstance(row, int) else tuple(line and line.text for line in row)
        for row in diff_rows(example(before, after))
    ]
    assert rows == [
        ("menu", None),
        ("The first line stays.", "The first line stays."),
        ("It says colour here.", "It says color here."),
        (None, "new words"),
        ("last", "last"),
        ("end", "end"),
    ]


def test_an_example_is_bounded_whatever_its_size(run: RunDir) -> None:
    rows = diff_rows(example("\n".join(["x" * 10_000, "menu"] * 3000), "one\ntwo"))
    shown = [line for row in rows if not isinstance(row, int) for line in row if line]
    assert len(shown) <= 64
    assert max(len(line.text) for line in shown) < 300
    assert sum(row if isinstance(row, int) else 1 for row in rows) >= 6000
    dropped = diff_rows(example("line\n" * 1000, None))
    assert len(dropped) == 16


def test_the_account_has_outcomes_without_tokens(run: RunDir) -> None:
    heartbeat(run, "w1", counts=counts())
    outcomes = json.loads(run_account(run).to_json())["outcomes"]
    assert outcomes == [
        {"outcome": "dropped", "reason": "short", "documents": 2, "raw_tokens": None},
        {"outcome": "quarantined", "reason": "invalid_json", "documents": 1, "raw_tokens": None},
        {"outcome": "edited", "reason": "", "documents": 4, "raw_tokens": None},
    ]


def test_the_example_on_the_terminal_lost_most_but_kept_more() -> None:
    gone, most, some = example("a\nb", None), example("a\nb", "b"), example("x\ny", "y", (9, 6))
    nearly_all = example("p\nq", "q", (90, 10))
    assert typical_example([gone, some, most, nearly_all]) is most
    assert typical_example([gone, nearly_all]) is nearly_all
    assert typical_example([gone]) is None


def test_the_short_diff_has_the_ends_of_many_lines() -> None:
    menu, text = [f"menu {n}" for n in range(30)], [f"text {n}" for n in range(6)]
    shown = short_diff(example("\n".join([*menu, *text]), "\n".join(text)))
    assert [line if isinstance(line, int) else line.text for line in shown] == [
        "menu 0", "menu 1", 26, "menu 28", "menu 29", "text 0", "text 1", 2, "text 4", "text 5",
    ]  # fmt: skip
    lines = [f"{'menu' if n % 2 else 'text'} {n}" for n in range(100)]
    *excerpt, rest = short_diff(example("\n".join(lines), "\n".join(lines[::2])))
    assert len(excerpt) + rest == 100
    assert len(excerpt) < 25
