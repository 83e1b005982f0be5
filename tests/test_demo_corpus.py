"""The demo corpus: real text from this machine, in files like those of real corpora."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import orjson
import pytest
import zstandard

TOOL = Path(__file__).parent.parent / "tools" / "demo_corpus.py"


def gather(out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), str(out)], capture_output=True, text=True, check=False
    )


def frames(path: Path) -> list[bytes]:
    data, contents = path.read_bytes(), []
    while data:
        decoder = zstandard.ZstdDecompressor().decompressobj()
        contents.append(decoder.decompress(data))
        assert decoder.eof
        data = decoder.unused_data
    return contents


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("demo") / "deep" / "corpus"
    done = gather(out)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return out, done.stdout


def rows(out: Path) -> list[dict[str, str]]:
    content = b"".join(b"".join(frames(path)) for path in sorted(out.iterdir()))
    return [orjson.loads(line) for line in content.splitlines()]


def test_hundreds_of_documents_with_unique_ids(corpus: tuple[Path, str]) -> None:
    out, printed = corpus
    documents = rows(out)
    assert len(documents) >= 300
    assert len({row["id"] for row in documents}) == len(documents)
    assert all(list(row) == ["id", "text", "source", "kind"] for row in documents)
    assert all(len(row["text"]) >= 200 for row in documents)
    kinds = Counter(row["kind"] for row in documents)
    assert min(kinds["readme"], kinds["module"], kinds["docstring"]) >= 5
    size = sum(len(row["text"].encode()) for row in documents) / 1e6
    assert printed == f"{len(documents)} documents, {size:.1f} MB, into {out}\n"


def test_four_files_of_which_one_has_many_frames(corpus: tuple[Path, str]) -> None:
    out, _ = corpus
    assert [path.name for path in sorted(out.iterdir())] == [
        f"demo-{number:02d}.jsonl.zst" for number in range(4)
    ]
    counts = [len(frames(path)) for path in sorted(out.iterdir())]
    assert counts[0] == counts[2] == counts[3] == 1
    assert counts[1] > 1


def test_the_same_machine_gives_the_same_bytes(corpus: tuple[Path, str]) -> None:
    out, _ = corpus
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done = gather(out)
    assert done.returncode == 0, done.stderr
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_wrong_arguments_print_the_usage() -> None:
    done = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, check=False)
    assert (done.returncode, os.path.basename(done.stderr.split()[1])) == (2, "demo_corpus.py")
