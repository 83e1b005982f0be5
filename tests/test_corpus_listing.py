"""What patterns match: everything is read, refused by name or told."""

import os
from pathlib import Path

import pytest

from proxhpc.cli.main import main
from proxhpc.errors import UserError
from proxhpc.run.listing import Listing, find_inputs
from proxhpc.spec.sections import Corpus
from runs import document, local_site, manifest, write_jsonl
from test_corpus_inputs import not_root


def listed(folder: Path, *patterns: str) -> Listing:
    return find_inputs(Corpus(paths=tuple(f"{folder}/{pattern}" for pattern in patterns)))


def names(listing: Listing) -> list[str]:
    return [name for _, name in listing.files]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "d1/b.jsonl", "d2/c.jsonl", ".hidden/x.jsonl", "d1/.x.jsonl"):
        write_jsonl(tmp_path / name, [document(0)])
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("**/*.jsonl", ["a.jsonl", "d1/b.jsonl", "d2/c.jsonl"]),
        ("**", ["a.jsonl", "d1/b.jsonl", "d2/c.jsonl"]),
        ("d?/*", ["d1/b.jsonl", "d2/c.jsonl"]),
        ("d[1]/b.jsonl", ["d1/b.jsonl"]),
        ("*/../a.jsonl", ["d1/../a.jsonl"]),
        ("**/**/b.jsonl", ["d1/b.jsonl"]),
        ("d1/b.jsonl/", ["d1/b.jsonl"]),
    ],
)
def test_patterns_match_as_those_of_glob(folder: Path, pattern: str, expected: list[str]) -> None:
    assert [path.relative_to(folder).as_posix() for path, _ in listed(folder, pattern).files] == (
        expected
    )


def test_a_link_to_nothing_stops_the_plan_by_name(folder: Path) -> None:
    (folder / "z.jsonl").symlink_to("blobs/gone")
    with pytest.raises(UserError, match=r"z\.jsonl: a link to .*blobs/gone.*does not exist"):
        listed(folder, "*.jsonl")
    assert names(listed(folder, "a*.jsonl")) == ["a.jsonl"]


def test_a_link_to_a_folder_that_does_not_exist_stops_the_plan_by_name(folder: Path) -> None:
    (folder / "d3").symlink_to("blobs/gone")
    (folder / "x.png").symlink_to("blobs/gone")
    (folder / "d4").symlink_to("a.jsonl")
    for pattern in ("d*/*.jsonl", "**/*.jsonl"):
        with pytest.raises(UserError, match=r"d3: a link to .*blobs/gone.*does not exist"):
            listed(folder, pattern)
    (folder / "d3").unlink()
    assert len(names(listed(folder, "**/*.jsonl"))) == 3


def test_a_folder_that_cannot_be_listed_stops_the_plan_by_name(folder: Path) -> None:
    (folder / "d1").chmod(0o700)
    folder.chmod(0o755)
    for parent in folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    for pattern in ("*/*.jsonl", "**/*.jsonl", "d1/*"):
        with not_root(), pytest.raises(UserError, match="d1: the folder cannot be listed: Perm"):
            listed(folder, pattern)


def test_matches_that_are_no_files_are_told(folder: Path) -> None:
    (folder / "x.jsonl").mkdir()
    os.mkfifo(folder / "y.jsonl")
    listing = listed(folder, "*.jsonl")
    assert names(listing) == ["a.jsonl"]
    assert sorted(listing.notes) == [
        "1 match is a FIFO and left out: y.jsonl",
        "1 match is a folder and left out: x.jsonl",
    ]
    with pytest.raises(UserError, match=r'no file matches .*: ".*/x\.jsonl" is a folder'):
        listed(folder, "x*.jsonl")


def test_a_file_of_several_names_is_listed_once_and_told(folder: Path) -> None:
    (folder / "latest").symlink_to(".")
    (folder / "rev").symlink_to("d1")
    os.link(folder / "a.jsonl", folder / "d2/hard.jsonl")
    listing = listed(folder, "**/*.jsonl")
    assert names(listing) == ["a.jsonl", "d1/b.jsonl", "d2/c.jsonl"]
    loop, equal = listing.notes
    assert loop == "1 match is a link to a folder above it and left out: latest"
    assert equal == (
        "2 matches are another name of a file that is read already: d2/hard.jsonl is a.jsonl"
    )


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("{a,b}.jsonl", "braces have no meaning here; write a list of patterns"),
        ("b[1].jsonl", r"a file has this very name; write \[\[\] for \["),
        ("d1", "it is a folder; name the files"),
    ],
)
def test_an_empty_match_says_why(folder: Path, pattern: str, reason: str) -> None:
    (folder / "b[1].jsonl").touch()
    with pytest.raises(UserError, match=reason):
        listed(folder, pattern)


def test_files_that_arrive_after_the_plan_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [document(0)])
    path, site = manifest(tmp_path, [tmp_path / "in/*.jsonl"]), local_site(tmp_path)
    arguments = [str(path), "--site", str(site)]
    assert main(["plan", *arguments, "--freeze"]) == 0
    assert "new since the plan" not in capsys.readouterr().out
    write_jsonl(tmp_path / "in/b.jsonl", [document(1)])
    assert main(["plan", *arguments]) == 0
    assert "1 file is new since the plan" in " ".join(capsys.readouterr().out.split())


def test_launch_prints_the_notes_of_plan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", [document(n) for n in range(3)])
    for n in range(20):
        (tmp_path / f"in/b{n}.json.gz").write_bytes(b"<?xml version='1.0'?><Error>%d" % n)
    (tmp_path / "in/c.jsonl").mkdir()
    path = manifest(tmp_path, [tmp_path / "in/*"])
    assert main(["launch", str(path), "--site", local_site(tmp_path)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert notes[0] == "note: 1 match is a folder and left out: c.jsonl"
    assert "b0.json.gz: corrupt_input" in notes[1]
    assert "it looks like XML, perhaps the error page of a download" in notes[1]
    assert notes[-1] == "note: and 12 more files"
    assert len(notes) == 10
