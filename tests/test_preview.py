"""`proxhpc refine` prints what a run would make of the documents."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from proxhpc.account.flops import ModelShape, Usage
from proxhpc.account.quantity import quantity
from proxhpc.cli.main import main
from proxhpc.cluster import tasks
from proxhpc.errors import UserError
from proxhpc.preview import RefinerChoice, _Printer
from runs import PARAGRAPH, document, manifest, planned, write_jsonl
from tiny_models import save_llama

Capture = pytest.CaptureFixture[str]


def refined(text: str) -> str:
    return text.removeprefix("Home | About | Contact\n")


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_files_of_each_kind_in_the_order_given(tmp_path: Path, capsys: Capture) -> None:
    packed = write_jsonl(tmp_path / "a.jsonl.zst", [document(1), document(2, id=None)])
    page = tmp_path / "page.html"
    page.write_text(document(3)["text"])
    assert main(["refine", str(packed), str(page)]) == 0
    out, err = capsys.readouterr()
    first, second, third = rows(out)
    assert first["id"] == "doc-1"
    assert first["url"] == "http://example.org/1"
    assert second["id"] == f"a.jsonl.zst:{len(json.dumps(document(1))) + 1}"
    assert third["id"] == str(page)
    for number, row in enumerate((first, second, third), 1):
        assert row["text"] == refined(document(number)["text"])
        about = row["proxhpc"]
        assert about["outcome"] == "edited"
        assert about["doc"] == "keep_doc()"
        assert about["chunk"][0].startswith("remove_lines(start=0, end=0)")
    assert err == "3 documents: kept unchanged 0, edited 3, dropped 0, quarantined 0\n"


def test_it_prints_the_rows_of_a_run_s_corpus(tmp_path: Path, capsys: Capture) -> None:
    run = planned(tmp_path, 12)
    tasks.refine_task(str(run.dir.root), 0, 1)
    tasks.merge_task(str(run.dir.root), 1)
    parts = sorted(run.dir.corpus.glob("part-*"))
    written = subprocess.run(
        ["zstd", "-dc", *parts], capture_output=True, check=True, text=True
    ).stdout
    files = [str(info.path) for info in run.plan.inputs]
    assert main(["refine", "--manifest", str(tmp_path / "manifest.yaml"), *files]) == 0
    ours = rows(capsys.readouterr().out)
    keys = ("id", "text", "url")
    assert [[r[k] for k in keys] for r in ours] == [[r[k] for k in keys] for r in rows(written)]


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes, *, typed: bool = False) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO(data), isatty=lambda: typed)
    monkeypatch.setattr(sys, "stdin", stdin)


def test_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    lines = b"".join(json.dumps(document(n)).encode() + b"\n" for n in range(200))
    feed(monkeypatch, lines)
    assert main(["refine", "--limit", "150", "--text"]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(refined(document(n)["text"]) + "\n" for n in range(150))
    assert err.startswith("150 documents")
    feed(monkeypatch, lines, typed=True)
    assert main(["refine", "--limit", "1", "--text"]) == 0
    assert capsys.readouterr().err.startswith("reading JSON lines until Ctrl-D; to refine files: ")
    feed(monkeypatch, document(7)["text"].encode())
    assert main(["refine", "--plain", "-"]) == 0
    out, err = capsys.readouterr()
    assert rows(out)[0]["text"] == refined(document(7)["text"])
    assert err.startswith("1 document: ")


def test_nouns_agree_with_their_number() -> None:
    numbers = [quantity(number, "document") for number in (0, 1, 2, 2500)]
    assert numbers == ["0 documents", "1 document", "2 documents", "2,500 documents"]
    assert quantity(1, "shard is", "shards are") == "1 shard is"
    assert quantity(2, "entry", "entries") == "2 entries"


def test_the_field_with_the_text_is_guessed_without_a_manifest(
    tmp_path: Path, capsys: Capture
) -> None:
    records = [{"id": f"d{n}", "content": document(n)["text"]} for n in range(2)]
    path = write_jsonl(tmp_path / "a.jsonl.zst", records)
    assert main(["refine", "--text", str(path)]) == 0
    out, err = capsys.readouterr()
    assert out == "".join(refined(document(n)["text"]) + "\n" for n in range(2))
    assert err.startswith(f'text: field "content" of {path}\n2 documents: ')
    write_jsonl(path, [{"text": "Short.", "url": f"https://example.com/{'a' * 80}"}])
    assert main(["refine", "--text", str(path)]) == 0
    assert "text: field" not in capsys.readouterr().err


def test_every_record_gets_a_line(tmp_path: Path, capsys: Capture) -> None:
    path = write_jsonl(
        tmp_path / "a.jsonl", [{"id": "no", "text": "Short."}, b"{broken\x1b[2J", document(1)]
    )
    bad = tmp_path / "latin.txt"
    bad.write_bytes(b"caf\xe9")
    assert main(["refine", str(path), str(bad)]) == 0
    out, err = capsys.readouterr()
    outcomes = [(r["proxhpc"]["outcome"], r["proxhpc"]["reason"]) for r in rows(out)]
    assert outcomes == [
        ("dropped", "doc_program"),
        ("quarantined", "invalid_json"),
        ("edited", ""),
        ("quarantined", "invalid_utf8"),
    ]
    assert [r["text"] is None for r in rows(out)] == [True, True, False, True]
    assert err.count("proxhpc: ") == 2
    assert "\x1b" not in err
    assert main(["refine", str(bad)]) == 1  # nothing at all could be read


def test_control_characters_of_a_document_are_escaped(tmp_path: Path, capsys: Capture) -> None:
    hostile = "\x1b]0;owned\x07\x1b[31m[red]x[/red]"
    page = tmp_path / "page.txt"
    page.write_text(
        f"Home | About | Contact\n{hostile} is in this page of some length.\n{PARAGRAPH}"
    )
    assert main(["refine", "--diff", str(page)]) == 0
    out, _ = capsys.readouterr()
    assert "- Home | About | Contact" in out
    assert "remove_lines(start=0, end=0)" in out
    assert r"\x1b]0;owned\x07" in out
    assert "\x1b" not in out.replace("\x1b[0m", "")
    assert "shard" not in out


def test_a_local_model(tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("transformers")
    model = save_llama(tmp_path / "llama")
    page = tmp_path / "page.txt"
    page.write_text("Home\nThe fox jumps.")
    arguments = ["--engine", "transformers", "--prompt", "prox-plain", "--model", str(model)]
    sections: dict[str, Any] = {
        "engine": {"name": "transformers"},
        "stages": [
            {"level": "chunk", "model": str(model), "prompt": "prox-plain", "max_new_tokens": 16}
        ],
    }
    with pytest.raises(SystemExit):
        main(["refine", "--text", "--diff", str(page)])
    made = manifest(tmp_path, [page], **sections)
    capsys.readouterr()
    assert main(["refine", "--manifest", str(made), str(page)]) == 0
    out, err = capsys.readouterr()
    (row,) = rows(out)
    assert len(row["proxhpc"]["chunk"]) == 1
    assert "doc" not in row["proxhpc"]
    assert "chunk stage: " in err
    assert "FLOPs" in err
    # An answer of 256 tokens does not fit this model: an error before the model is loaded.
    assert main(["refine", *arguments, str(page)]) == 2
    assert "a frame of" in capsys.readouterr().err


def test_contradictory_options_are_errors(tmp_path: Path) -> None:
    assert [s.level for s in RefinerChoice(prompt="compact").open().stages] == ["doc", "chunk"]
    one = RefinerChoice(doc_model="a/b", engine="vllm", prompt="compact").open()
    assert [(s.level, s.model, s.prompt) for s in one.stages] == [("doc", "a/b", "compact")]
    tiny = RefinerChoice(model="embedded").open()
    assert (tiny.engine.name, tiny.stages[0].model) == ("transformers", "embedded")
    for options in ({"model": "a/b"}, {"prompt": "compact"}):
        with pytest.raises(UserError, match="--manifest names"):
            RefinerChoice(tmp_path / "m.yaml", **options).open()
    with pytest.raises(UserError, match=r'^"a b" is neither an existing directory[^;]*$'):
        RefinerChoice(model="a b", prompt="compact").open()
    with pytest.raises(UserError, match="compact"):
        RefinerChoice(prompt="compactt").open()


def test_the_reader_may_close_the_pipe(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [document(n) for n in range(3000)])
    command = [sys.executable, "-m", "proxhpc", "refine", "--text", str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline().startswith(b"The river")
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


def test_a_missing_file_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    assert main(["refine", str(tmp_path / "none.txt")]) == 2
    assert "no such input file" in capsys.readouterr().err
    assert main(["refine", str(tmp_path)]) == 2
    assert "is a folder" in capsys.readouterr().err
    locked = tmp_path / "locked.jsonl"
    locked.write_text("")
    locked.chmod(0)
    if os.access(locked, os.R_OK):  # root reads everything
        return
    assert main(["refine", str(locked)]) == 2


def test_each_line_of_a_slow_pipe_is_answered_at_once() -> None:
    command = [sys.executable, "-m", "proxhpc", "refine", "--text"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin
        assert process.stdout
        for number in range(3):
            process.stdin.write(json.dumps(document(number)).encode() + b"\n")
            process.stdin.flush()
            answer = [
                process.stdout.readline() for _ in refined(document(number)["text"]).split("\n")
            ]
            assert answer[-1].startswith(f"Number {number} ".encode())
        process.stdin.close()
        assert process.wait(60) == 0


def test_flops_are_unknown_if_one_model_s_shape_is(capsys: Capture) -> None:
    made = RefinerChoice(model="a/b", doc_model="a/b", prompt="compact").open()
    known = SimpleNamespace(
        shape=ModelShape(32, 2, 4, 8, vocab=320, active=20_000, parameters=40_000)
    )
    unknown = SimpleNamespace(shape=None)
    for chunk, ending in ((known, " FLOPs\n"), (unknown, "FLOPs unknown\n")):
        printer = _Printer(made, cast(Any, {"doc": known, "chunk": chunk}), "json")
        printer.counts.doc = printer.counts.chunk = Usage.of_request(1000, 0, 2)
        printer.summarize()
        assert capsys.readouterr().err.endswith(ending)
