"""Training examples: the programs do exactly what the teachers' labels ask for."""

import asyncio
import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard

from proxhpc.annotate.annotate import summary_path
from proxhpc.annotate.examples import WindowLimits, make_examples
from proxhpc.annotate.gold import labels_of_lines, labels_of_pair
from proxhpc.annotate.labels import SourceDocument, TeacherLabels
from proxhpc.annotate.leakage import NearDuplicateIndex
from proxhpc.annotate.programs import program_labels
from proxhpc.annotate.summary import SummaryCounter
from proxhpc.cli.main import main
from proxhpc.cluster import tasks
from proxhpc.corpus.document import Document
from proxhpc.corpus.hosts import VALIDATION, host_of, split_of
from proxhpc.errors import StopError
from proxhpc.program.derive import EDIT_COSTS
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay
from proxhpc.program.syntax import Dialect
from proxhpc.refine import teacher
from proxhpc.refine.refiner import Refiner
from proxhpc.refine.walk_stage import make_runner
from proxhpc.run.ledger import Call, Row
from proxhpc.spec.manifest import Manifest
from runs import PARAGRAPH, document, planned, rows_of, write_jsonl
from test_stage import ScriptedEngine
from tiny_models import edit_json, save_llama

WORDS = ("ab", "cd", "ef", "gh", "ij", "kl", "mn")
LIMITS = (WindowLimits(), WindowLimits(2), WindowLimits(3, 200), WindowLimits(5, 90))
# No limits: every valid statement is executed.
LOOSE = Policy(max_removed_share=1.0, min_kept_words=0, max_error_share=1.0)


def source_document(text: str, labels: TeacherLabels) -> SourceDocument:
    return SourceDocument("d", text, "s", "h.org", "t", lambda: labels)


def example_rows(
    text: str, labels: TeacherLabels, limits: WindowLimits, dialect: Dialect = "prox"
) -> list[dict[str, Any]]:
    """The rows of a document, none of whose windows may be skipped."""
    examples = list(make_examples(source_document(text, labels), labels, limits, dialect))
    assert all(isinstance(example, dict) for example in examples), examples
    return [example for example in examples if isinstance(example, dict)]


def executed(row: dict[str, Any], dialect: Dialect = "prox") -> str | None:
    """The result of a row's program; None if it removes all lines."""
    lines = row["lines"]
    window = WindowProgram(0, len(lines), ModelOutput(row["program"], "stop"))
    result = replay("\n".join(lines), None, [window], LOOSE, ProgramFormat(dialect, "window"))
    assert not result.rejected
    return None if result.lines_removed == len(lines) else result.text


def joined(rows: list[dict[str, Any]], dialect: Dialect = "prox") -> str:
    return "\n".join(part for row in rows if (part := executed(row, dialect)) is not None)


def read(path: Path) -> list[dict[str, Any]]:
    with zstandard.open(path, "rb") as file:
        return [orjson.loads(line) for line in file.read().splitlines()]


def annotate(*arguments: object, status: int = 0) -> None:
    assert main(["annotate", *map(str, arguments)]) == status


def pair(number: int, **more: Any) -> dict[str, Any]:
    gold = f"{PARAGRAPH}Number {number} of them ends with this line, as they all do."
    noisy = f"Home | About | Contact\n{gold}\nShare this page"
    url = f"https://www.host{number}.org:80/page"
    return {"id": f"p{number}", "text_noisy": noisy, "text_gold": gold, "url": url} | more


@pytest.mark.parametrize(
    ("counter", "message"),
    [
        (
            SummaryCounter(documents=1, documents_left_out=Counter(b=2, a=1)),
            "1 document, but 0 used and 3 left out (a: 1, b: 2)",
        ),
        (SummaryCounter(documents=2), "2 documents, but 0 used and 0 left out"),
        (
            SummaryCounter(created=4, examples_left_out=Counter(untouched=1)),
            "4 examples, but 0 written and 1 left out (untouched: 1)",
        ),
    ],
)
def test_counts_that_do_not_add_up_are_printed_with_reasons(
    counter: SummaryCounter, message: str
) -> None:
    with pytest.raises(StopError) as caught:
        counter.check()
    assert caught.value.message == message


def test_line_labels_become_removals() -> None:
    text = "a b\nc d\ne f\ng h\ni j"
    labels = labels_of_lines("BBG?B")
    (row,) = example_rows(text, labels, WindowLimits())
    assert row["program"] == "remove_lines(start=0, end=1)\nremove_lines(start=4, end=4)"
    assert (row["keep"], row["first"], row["of"]) == ("DDK?D", 0, 5)
    first, second, third = example_rows(text, labels, WindowLimits(2))
    assert [first["keep"], second["keep"], third["keep"]] == ["DD", "K?", "D"]
    assert second["program"] == "untouch_doc()"
    assert (second["before"], second["lines"]) == (["a b", "c d"], ["e f", "g h"])
    assert (third["first"], third["program"]) == (4, "remove_lines(start=0, end=0)")
    assert [row["program"] for row in example_rows(text, labels, WindowLimits(2), "refinex")] == [
        "remove_lines(1, 2)",
        "keep_all()",
        "remove_lines(1, 1)",
    ]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("dialect", ["prox", "ultrax"])
def test_the_programs_of_all_windows_make_the_gold_text(
    limits: WindowLimits, dialect: Dialect
) -> None:
    noisy = "Home | About\nThe cat sat on the matt.\nIt was warm there. [Edit]\n\nShare\nThe end."
    gold = "A word first.\nThe cat sat on the mat.\nIt was warm there.\n\nThe end."
    labels = labels_of_pair(noisy, gold, EDIT_COSTS[dialect])
    assert isinstance(labels, TeacherLabels)
    rows = example_rows(noisy, labels, limits, dialect)
    # A program of UltraX removes the blank lines of a window that it edits.
    written = joined(rows, dialect)
    assert written == gold or written.split("\n") == [line for line in gold.split("\n") if line]
    assert sum(len(row["lines"]) for row in rows) == 6
    assert "".join(row["keep"] for row in rows) == "EEEKDK"


def test_programs_of_rescraper_count_lines_with_text() -> None:
    rows = example_rows(
        "a b\n\nc d\n \ne f", labels_of_lines("GBBGB"), WindowLimits(3), "rescraper"
    )
    assert [row["program"] for row in rows] == [
        "<keep>\n<extract>\nrm 2\n<keep>",
        "<keep>\n<extract>\nrm 1\n<keep>",
    ]


def test_examples_of_programs_that_insert_lines_or_saw_more_than_their_window() -> None:
    text = "Menu here\nThe first line of it.\nThe second line of it.\nThe last line of it."
    insert = "add_line(2, 1, 'A line between them.')\nremove_lines(1, 1)"
    calls = (
        Call(0, 3, insert, "stop", 0, 0, 0),
        Call(3, 4, "remove_lines(1, 2)\nadd_line(4, 1, 'The end.')", "stop", 0, 0, 0, shown=(1, 4)),
    )
    row = Row("d", 0, 0, "edited", windows=calls)
    labels = program_labels(text, row, LOOSE, ProgramFormat("ultrax"))
    result = row.replay(text, LOOSE, ProgramFormat("ultrax"))
    assert result.rejected == {"other_window": 1}
    assert labels.discarded == {}
    assert labels.unknown == frozenset()
    for dialect in ("prox", "ultrax"):
        rows = example_rows(text, labels, WindowLimits(), dialect)
        assert joined(rows, dialect) == result.text
    split = program_labels(text, replace(row, cuts=(5,)), LOOSE, ProgramFormat("ultrax"))
    assert (split.edits, split.discarded) == (None, {("chunk", "split_lines"): 2})


def _random_calls(rng: random.Random, lines: list[str]) -> Iterator[Call]:
    """Random programs for consecutive random windows."""
    start = 0
    while start < len(lines):
        stop = min(len(lines), start + rng.randint(1, 5))
        statements = []
        for _ in range(rng.randint(0, 3)):
            a, b = sorted((rng.randrange(start, stop), rng.randrange(start, stop)))
            window = "\n".join(lines[start:stop])
            offset = rng.randrange(len(window))
            source = window[offset : offset + rng.randint(1, 12)].replace("\n", "\\n")
            statements += [
                f"remove_lines(start={a}, end={b})",
                f'normalize(source_str="{source}", target_str="{rng.choice(["", "u v"])}")',
            ]
        program = "\n".join(rng.sample(statements, len(statements) // 2))
        yield Call(start, stop, program or "untouch_doc()", "stop", 0, 0, 0)
        start = stop


def test_examples_of_a_run_repeat_what_its_programs_did() -> None:
    rng = random.Random(5)
    strings = 0
    for _ in range(500):
        lines = [" ".join(rng.choice(WORDS) for _ in range(4)) for _ in "12345678"]
        text = "\n".join(lines)
        calls = list(_random_calls(rng, lines))
        windows = [call.window for call in calls]
        result = replay(text, None, windows, LOOSE, ProgramFormat())
        if result.rejected or result.lines_removed == len(lines):
            continue
        row = Row("d", 0, 0, result.outcome, windows=tuple(calls))
        labels = program_labels(text, row, LOOSE, ProgramFormat())
        rows = example_rows(text, labels, WindowLimits())
        assert joined(rows) == result.text
        strings += "E" in rows[0]["keep"]
    assert strings > 30


def test_invalid_answers_give_no_labels() -> None:
    text = "a b c\nd e f\ng h i\nj k l"
    calls = (
        Call(0, 1, "remove_lines(start=0, end=0)", "stop", 0, 0, 0),
        Call(1, 2, "remove_lines(start=1, end=1)\nI hope this helps!", "stop", 0, 0, 0),
        Call(2, 3, "remove_lines(start=2, end=2)\n", "length", 0, 0, 0),
    )
    row = Row("d", 0, 0, "edited", doc=Call(0, 4, "Keep it.", "stop", 0, 0, 0), windows=calls)
    labels = program_labels(text, row, LOOSE, ProgramFormat())
    assert labels.keep is None
    assert labels.discarded == {("doc", "bad_answer"): 1, ("chunk", "bad_answer"): 2}
    (example,) = example_rows(text, labels, WindowLimits())
    assert example["keep"] == "D???"
    too_much = Row("d", 0, 0, "kept", windows=calls[:1], rejected={"removed_share": 1})
    labels = program_labels(text, too_much, LOOSE, ProgramFormat())
    assert (labels.edits, labels.discarded) == (None, {("chunk", "removed_share"): 1})


@pytest.mark.parametrize(
    ("answer", "program"),
    [
        ("Solid.\nEducational: 3\nFormat: 0", "keep_doc()  # educational 3, format 0"),
        ("Educational: 2\nFormat: 4\n", "keep_doc()  # educational 2, format 4"),
        ("Educational: 2\nFormat: 3", "drop_doc()  # educational 2, format 3"),
        ("x\nEducational: 1\n\nFormat: 5", "drop_doc()  # educational 1, format 5"),
        ("Thin.\n\n**Educational: 3**\n**Format:** 4", "keep_doc()  # educational 3, format 4"),
        ("Thin.\nEducational: 3/5\nFormat: 4 / 5\n", "keep_doc()  # educational 3, format 4"),
        ("Thin.\n- Educational: 3.\n- Format: 4.", "keep_doc()  # educational 3, format 4"),
        ("educational score: 3\r\nformat score: 4", "keep_doc()  # educational 3, format 4"),
        ("Educational: 1, Format: 4", "drop_doc()  # educational 1, format 4"),
        ("```\nEducational: 3\nFormat: 4\n```", "keep_doc()  # educational 3, format 4"),
        ("<think>\nEducational: 2?\n</think>\nEducational: 1\nFormat: 4\n</page>",
            "drop_doc()  # educational 1, format 4"),
        ("Educational: 3 - some use\nFormat: 4 (clean)", "keep_doc()  # educational 3, format 4"),
        ("Educational：1\nFormat：4", "drop_doc()  # educational 1, format 4"),
        ("Educational: 3 - 4\nFormat: 4", None),
        ("Educational: 3\nFormat: 3 - 4", None),
        ("教育：3\n格式：4", None),
        ("Educational: 2 or 3\nFormat: 4", None),
        ("Educational: 35\nFormat: 4", None),
        ("Format: 2\nBetter:\nEducational: 3\nFormat: 4", None),
        ("<think>\nEducational: 3\nFormat: 4", None),
        ("drop_doc()\nEducational: 6\nFormat: 3", None),
        ("Educational: 4\nFormat: 4\nThanks", "# no scores in: Educational: 4 Format: 4 Thanks"),
        ("Educational: 1\nEducational: 4\nFormat: 4", None),
        ("Educational: 3.5\nFormat: 4", None),
        ("", "# no scores in: "),
    ],
)  # fmt: skip
def test_scores_of_a_teacher_are_read_at_the_end_of_its_answer(
    answer: str, program: str | None
) -> None:
    verdict = teacher.verdict_program(answer, False)
    assert verdict.startswith("# no scores in:") if program is None else verdict == program
    assert teacher.verdict_program("Educational: 3\nFormat: 3", True).startswith("# no scores")


def test_the_scores_of_a_teacher_decide() -> None:
    """The engine is a script that answers as a large model would."""
    pages = {"good": "4\nFormat: 4", "poor": "1\nFormat: 5", "odd": "many\nFormat: 5"}

    def answer(request: Any) -> str:
        prompt = "".join(map(chr, request.prompt))
        if request.level == "chunk":
            assert "[001]this page is good" in prompt
            return "```python\nremove_lines(start=0, end=0)\n```"
        assert "<page>\nMenu\nthis page is" in prompt
        (kind,) = (kind for kind in pages if f"page is {kind}" in prompt)
        return f"It is {kind}.\nEducational: {pages[kind]}"

    stages = [{"level": level, "prompt": "teacher"} for level in ("doc", "chunk")]
    manifest = Manifest.model_validate(
        {"name": "t", "corpus": {"paths": "x"}, "stages": stages, "engine": {"name": "rules"}}
        | {"policy": LOOSE.model_dump()}
    )
    engine = ScriptedEngine(answer, 9000)
    runners = [make_runner(stage, engine, manifest.policy) for stage in manifest.stages]
    refiner = Refiner(manifest, *runners)
    texts = {kind: f"Menu\nthis page is {kind}\n{PARAGRAPH}" for kind in pages}
    labels = {}
    for kind, text in texts.items():
        row = asyncio.run(refiner.refine(Document(kind, text, 0, 0)))
        labels[kind] = program_labels(text, row, LOOSE, ProgramFormat())
    assert [labels[kind].keep for kind in texts] == [True, False, None]
    assert labels["odd"].discarded == {("doc", "bad_answer"): 1}
    rows = example_rows(texts["good"], labels["good"], WindowLimits())
    assert rows[0] | {"program": "keep_doc()", "level": "doc"} == rows[0]
    assert rows[1]["program"] == "remove_lines(start=0, end=0)"
    assert labels["poor"].edits is None


def test_a_run_of_rules_gives_examples(tmp_path: Path, capsys: Any) -> None:
    run = planned(tmp_path, 12)
    out = tmp_path / "ex.jsonl.zst"
    annotate(run.dir.root, "--out", out, status=2)
    assert "not refined yet: 1 of 1 shard" in capsys.readouterr().err
    tasks.refine_task(str(run.dir.root), 0, 1)
    annotate(run.dir.root, "--out", out, "--windows", "3")
    refined = {row.id: row for row in rows_of(run.dir, run.plan)}
    rows = read(out)
    assert {row["teacher"] for row in rows} == {"rules"}
    assert {row["host"] for row in rows} == {"example.org"}
    for number in range(12):
        name, text = f"doc-{number}", document(number)["text"]
        doc, *windows = [row for row in rows if row["id"] == name]
        assert (doc["level"], doc["program"], doc["text"]) == ("doc", "keep_doc()", text)
        assert [line for row in windows for line in row["lines"]] == text.split("\n")
        assert len(joined(windows).encode()) == refined[name].bytes_out
    summary = json.loads(summary_path(out).read_bytes())
    assert summary["documents"] == {"read": 12, "used": 12, "left_out": {}}
    assert summary["examples"]["written"] == len(rows)


@pytest.mark.model
def test_a_model_as_teacher(tmp_path: Path) -> None:
    """Its random answers are neither scores nor programs: all are counted and discarded."""
    model = save_llama(tmp_path / "llama")
    edit_json(model / "config.json", max_position_embeddings=8192)
    stages = [
        {"level": level, "model": str(model), "prompt": "teacher", "max_new_tokens": 12}
        | ({"max_prompt_tokens": 6000} if level == "doc" else {})
        for level in ("doc", "chunk")
    ]
    engine = {"name": "transformers"}
    run = planned(tmp_path, 1, stages=stages, engine=engine)
    tasks.refine_task(str(run.dir.root), 0, 1)
    out = tmp_path / "ex.jsonl.zst"
    annotate(run.dir.root, "--out", out)
    summary = json.loads(summary_path(out).read_bytes())
    assert summary["documents"] == {"read": 1, "used": 0, "left_out": {"no_example": 1}}
    assert summary["discarded"] == {
        "chunk": {"bad_answer": 1, "unknown": 1},
        "doc": {"bad_answer": 1},
    }
    for row in rows_of(run.dir, run.plan):
        assert row.doc is not None
        assert row.doc.program.startswith("# no scores in: ")
        assert row.outcome == "kept"


def test_training_avoids_evaluation_data(tmp_path: Path) -> None:
    names = {split_of(f"host{n}.org", ""): n for n in range(20)}
    train, validation = names["train"], names["validation"]
    copy = pair(train, text_noisy=pair(validation)["text_noisy"] + "!")
    held = pair(100 + train, text_noisy="Something else.", host="HELD.org.")
    rows = [pair(validation), copy, pair(train, id="mine", text_noisy="Only here it is.")]
    rows += [pair(train, id="theirs", url="http://www.held.org/x", text_noisy="A page of it.")]
    pairs = write_jsonl(tmp_path / "pairs.jsonl", rows)
    held_out = write_jsonl(tmp_path / "held.jsonl", [held])
    out = tmp_path / "ex.jsonl.zst"
    annotate(pairs, "--out", out, "--fields", "gold=", "--held-out", held_out)
    assert read(out) == []
    for row in rows:
        row["ll"] = "G" * (str(row["text_noisy"]).count("\n") + 1)
    write_jsonl(pairs, rows)
    annotate(pairs, "--out", out, "--fields", "labels=ll", "--held-out", held_out)
    assert [(row["id"], row["split"]) for row in read(out)] == [
        (f"p{validation}", "validation"),
        ("mine", "train"),
    ]
    summary = json.loads(summary_path(out).read_bytes())
    left_out = {"held_out_host": 1, "near_duplicate": 1}
    assert summary["documents"] == {"read": 4, "used": 2, "left_out": left_out}
    assert (summary["held_out"], summary["without_host"]) == (1, 0)
    # Validation avoids held-out documents, too.
    write_jsonl(held_out, [held, pair(500, text_noisy=rows[0]["text_noisy"], host="")])
    annotate(pairs, "--out", out, "--fields", "labels=ll", "--held-out", held_out)
    assert [row["id"] for row in read(out)] == ["mine"]


def test_near_duplicates_are_found_by_their_words() -> None:
    texts = [f"{PARAGRAPH}So it was {n}." for n in range(3)]
    others = [" ".join(random.Random(n).choices(PARAGRAPH.split(), k=60)) for n in range(40)]
    index = NearDuplicateIndex([*others, *texts, ""])
    assert index.has_duplicate_of(PARAGRAPH.upper() + "So it is")
    assert not index.has_duplicate_of(" ".join(reversed(PARAGRAPH.split())))
    assert not index.has_duplicate_of("")
    assert not NearDuplicateIndex([]).has_duplicate_of(PARAGRAPH)


def test_a_random_excess_is_left_out(tmp_path: Path) -> None:
    hosts = {"train": [], "validation": []}  # type: dict[str, list[int]]
    for n in range(400):
        hosts[split_of(f"host{n}.org", "")].append(n)
    numbers = hosts["train"][:40]
    rows = [pair(n, source=f"s{at % 2}", line_labels="B" + "G" * 7) for at, n in enumerate(numbers)]
    pairs = write_jsonl(tmp_path / "pairs.jsonl.zst", rows)
    out = tmp_path / "ex.jsonl.zst"
    common = (pairs, "--out", out, "--windows", 2)
    annotate(*common)
    everything = read(out)
    assert len(everything) == 160
    annotate(*common, "--untouched", 0.5)
    chosen = read(out)
    assert sum(row["program"] == "untouch_doc()" for row in chosen) == 40
    assert len(chosen) == 80
    assert [row for row in everything if row in chosen] == chosen
    annotate(*common, "--untouched", 0.5, "--seed", 1)
    assert read(out) != chosen
    annotate(*common, "--per-source", 5)
    few = read(out)
    assert len({row["id"] for row in few if row["source"] == "s0"}) == 5
    assert len(few) == 40
    summary = json.loads(summary_path(out).read_bytes())
    assert summary["examples"] == {"created": 160, "written": 40, "left_out": {"per_source": 120}}
    write_jsonl(pairs, [pair(n) for n in hosts["validation"][:9]])
    annotate(*common, "--untouched", 0, "--per-source", 1)
    assert len(read(out)) == 36, "validation is never reduced"


def test_verdicts_with_other_field_names(tmp_path: Path) -> None:
    rows = [
        {"id": 1, "body": "One page.", "label": 1},
        {"id": 2, "body": "Another.", "label": False},
        {"id": 3, "body": "A third.", "label": None},
    ]
    pairs = write_jsonl(tmp_path / "docs.jsonl", rows)
    out = tmp_path / "ex.jsonl.zst"
    annotate(pairs, "--out", out, "--fields", "text=body,keep=label")
    rows = read(out)
    assert [(row["id"], row["program"]) for row in rows] == [
        ("1", "keep_doc()"),
        ("2", "drop_doc()"),
    ]
    assert rows[0]["text"] == "One page."
    assert rows[0]["source"] == "docs.jsonl"
    summary = json.loads(summary_path(out).read_bytes())
    assert summary["documents"]["left_out"] == {"no_example": 1}
    assert summary["without_host"] == 3


def test_a_file_may_have_any_name(tmp_path: Path) -> None:
    pairs = write_jsonl(tmp_path / os.fsdecode(b"p\xff.jsonl"), [{"text": "One.", "keep": 1}])
    annotate(pairs, "--out", tmp_path / "ex.jsonl.zst")
    [row] = read(tmp_path / "ex.jsonl.zst")
    assert row["id"].endswith("p\ufffd.jsonl:1")
    assert row["source"] == "p\ufffd.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--windows", "0"), "--windows 0: it must be document, LINES or LINES,CHARS"),
        (("--fields", "gld=x"), "--fields gld=x: 'gld=x' is not NAME=KEY"),
        (("--untouched", "2"), "--untouched 2.0: it must be from 0 to 1"),
        (("--held-out", "nowhere.jsonl"), "no such input file: nowhere.jsonl"),
    ],
)
def test_invalid_options_are_explained(
    tmp_path: Path, capsys: Any, arguments: tuple[str, ...], message: str
) -> None:
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [pair(1)])
    annotate(pairs, "--out", tmp_path / "ex.jsonl.zst", *arguments, status=2)
    assert message in capsys.readouterr().err
    annotate(pairs, "--out", tmp_path / "no" / "ex.jsonl.zst", status=2)
    assert "there is no directory" in capsys.readouterr().err
    data = pairs.read_bytes()
    annotate(pairs, "--out", pairs, status=2)
    assert "would overwrite an input" in capsys.readouterr().err
    assert pairs.read_bytes() == data
    annotate(pairs, "--out", tmp_path / "ex.jsonl", status=2)
    assert "ex.jsonl: the name of this file must end in .jsonl.zst" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("record", "host"),
    [
        ({"host": "WWW.Example.org."}, "example.org"),
        ({"host": "", "url": "https://u:p@www.a.b:8080/c"}, "a.b"),
        ({"url": "//x.org"}, "x.org"),
        ({"url": "example.org/page"}, "example.org"),
        ({"url": "https://u@evil.com:pw@example.org/"}, "example.org"),
        ({"url": "https://[::1]/x"}, "::1"),
        ({"url": "https://[::1/x"}, ""),
        ({"host": "2001:DB8::1"}, "2001:db8::1"),
        ({"host": "192.0.2.1"}, "192.0.2.1"),
        ({"host": "https://www.example.org:80/x"}, "example.org"),
        ({"host": "B\u00fccher.example"}, "xn--bcher-kva.example"),
        ({"host": "\u00fc" * 70}, "\u00fc" * 70),
        ({"url": "no url"}, ""),
        ({"host": 5, "url": None}, ""),
    ],
)
def test_hosts(record: dict[str, Any], host: str) -> None:
    assert host_of(record, "host", "url") == host


def test_the_split_depends_on_the_host_only() -> None:
    validation = [n for n in range(20) if split_of(f"host{n}.org", "any") == "validation"]
    assert validation == [3, 8]  # computed with sha256sum
    hosts = [f"{n}.example" for n in range(4000)]
    share = sum(split_of(host, "") == "validation" for host in hosts) / len(hosts)
    assert abs(share - VALIDATION) < 0.02
    assert {split_of("", text) for text in hosts} == {"train", "validation"}
