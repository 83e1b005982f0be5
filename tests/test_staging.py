"""Files behind URLs are copied to disk before a run is planned, once and as they were listed."""

import errno
import gzip
import hashlib
import http.server
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial, partialmethod
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
import pytest

from proxhpc.cli.main import main
from proxhpc.corpus.document import Document, Span
from proxhpc.corpus.inputs import check_unchanged
from proxhpc.doctor import diagnose
from proxhpc.errors import ProxError, RetryError, UserError
from proxhpc.extras import how_to_install
from proxhpc.run import remote, staging
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.remote import RemoteFile, list_url
from proxhpc.run.staging import Staging, ignore
from proxhpc.spec.manifest import load_manifest
from proxhpc.spec.sections import Corpus
from runs import document, local_site, manifest

LINES = b"".join(json.dumps(document(n)).encode() + b"\n" for n in range(8))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_PAUSES", (0.0, 0.0))
    monkeypatch.setenv("no_proxy", "127.0.0.1")


class Store:
    """Files of an HTTP server by path, and what it did."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.sent = 0  # bytes of content
        self.ranges = True
        self.coding = ""  # of all answers
        self.chunked = False
        self.cut: int | None = None  # answers end after so many bytes
        self.failures = 0  # answers that fail from now on
        self.hub: dict[str, Any] = {}
        self.head = True  # whether it answers HEAD; it closes the connection otherwise
        self.weak = False  # whether the tags of HEAD are marked as weak
        self.url = ""


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            if store.head:
                self.answer(content=False)
            self.close_connection |= not store.head

        def do_GET(self) -> None:
            self.answer(content=True)

        def answer(self, content: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            body = store.files.get(path)
            if path in store.hub:
                body = json.dumps(store.hub[path]).encode()
            if content and store.failures:
                store.failures -= 1
                self.send_error(503)
                return
            if body is None:
                self.send_error(404)
                return
            start, stop = 0, len(body)
            asked = self.headers.get("Range", "") if store.ranges else ""
            if asked.startswith(f"bytes={len(body)}-"):
                self.send_error(416)
                return
            if asked:
                first, _, last = asked.removeprefix("bytes=").partition("-")
                start, stop = int(first), min(stop, int(last) + 1 if last else stop)
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(body)}")
            chunked = store.chunked and not asked
            if chunked:
                self.send_header("Transfer-Encoding", "chunked")
            else:
                self.send_header("Content-Length", str(stop - start))
            if store.coding:
                self.send_header("Content-Encoding", store.coding)
            tag = store.tags.get(path) or hashlib.md5(body).hexdigest()
            self.send_header("ETag", f'{"W/" * (store.weak and not content)}"{tag}"')
            self.end_headers()
            if not content:
                return
            piece = body[start:stop]
            if store.cut is not None and path in store.files:
                piece = piece[: store.cut]
                self.close_connection = True
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            if chunked and not self.close_connection:
                self.wfile.write(b"0\r\n\r\n")
            if self.close_connection:
                time.sleep(0.1)  # until the client has read it
            store.sent += len(piece) if path in store.files else 0

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    store.url = f"http://127.0.0.1:{server.server_port}"
    yield store
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe("/bucket/in/a.jsonl", LINES)
    fs.pipe("/bucket/in/deep/b.jsonl", LINES.replace(b"doc-", b"more-"))
    fs.pipe("/bucket/in/.hidden.jsonl", LINES)
    yield fs
    fs.store.clear()


def staging_of(folder: Path, *urls: str) -> Staging:
    return Staging(Corpus(paths=urls or ("/none",)), RunDir(folder / "run"))


def stage(folder: Path, *urls: str) -> list[RemoteFile]:
    """Copy the files behind URLs into `folder`/staging."""
    place = staging_of(folder, *urls)
    place.dir.leases.mkdir(parents=True, exist_ok=True)
    files = [file for url in urls for file in place.listing(url).files]
    place.stage(files, ignore)
    for url in urls:
        place.record(url, place.listing(url))
    return files


def drafts(folder: Path) -> list[Path]:
    return [*folder.glob("staging/**/.*.part")]


def test_a_run_on_urls_is_staged_and_planned(
    tmp_path: Path,
    memory: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = manifest(tmp_path, [], corpus={"paths": "memory://bucket/in/**/*.jsonl"})
    site = ["--site", local_site(tmp_path)]
    assert "must first be copied" in diagnose(site[1], path, None).findings[-1].result
    for verb in ("plan", "launch"):
        assert main([verb, str(path), *site]) == 2
        told = capsys.readouterr().err
        size = len(LINES)
        assert "2 files (of 2) with " in told
        assert f"memory:///bucket/in/a.jsonl ({size:,} bytes, modified:" in told
        assert f"must first be copied to {tmp_path}/staging, which has" in told
        assert "run `proxhpc plan MANIFEST --stage` where" in told
    assert not (tmp_path / "staging").exists()
    assert not (tmp_path / "run").exists()

    assert main(["plan", str(path), *site, "--stage", "--freeze"]) == 0
    plan = Plan.load(RunDir(tmp_path / "run"))
    assert [info.name for info in plan.inputs] == ["a.jsonl", "deep/b.jsonl"]
    assert [info.source for info in plan.inputs] == [
        "memory:///bucket/in/a.jsonl",
        "memory:///bucket/in/deep/b.jsonl",
    ]
    assert all(info.version.startswith("modified:") for info in plan.inputs)
    copies = [tmp_path / "staging/memory/bucket/in" / info.name for info in plan.inputs]
    assert [info.path for info in plan.inputs] == copies

    # What was removed is copied again, also if the manifest names another folder since.
    moved = {"paths": "memory://bucket/in/**/*.jsonl", "staging": str(tmp_path / "other")}
    again = str(manifest(tmp_path, [], corpus=moved))
    monkeypatch.chdir(tmp_path / "run")
    for named in (again, "."):
        copies[0].unlink()
        with pytest.raises(RetryError) as lost:
            check_unchanged(plan.inputs[0])
        assert lost.value.hint.startswith("run `proxhpc plan RUN --stage`")
        assert main(["plan", named, "--stage"]) == 0
        assert copies[0].read_bytes() == LINES
    # A started run needs no store.
    memory.store.clear()
    assert main(["plan", again]) == 0
    ids = [item.id for item in plan.read(Span(1)) if isinstance(item, Document)]
    assert ids == [f"more-{n}" for n in range(8)]


def test_a_second_time_nothing_is_copied(tmp_path: Path, store: Store) -> None:
    store.files = {"/a.jsonl": LINES, "/b.jsonl": LINES}
    urls = [f"{store.url}/{name}.jsonl" for name in "ab"]
    for _ in range(2):
        stage(tmp_path, *urls)
        assert store.sent == 2 * len(LINES)
    name = store.url.removeprefix("http://").replace(":", "%3A")
    assert (tmp_path / "staging/http" / name / "a.jsonl").read_bytes() == LINES


def test_a_copy_goes_on_where_it_ended(tmp_path: Path, store: Store) -> None:
    store.files["/a.jsonl"] = LINES
    store.cut = 1000
    files = stage(tmp_path, f"{store.url}/a.jsonl")
    assert store.sent == len(LINES)
    assert staging_of(tmp_path).dir.copy(files[0].name).read_bytes() == LINES
    assert not drafts(tmp_path)


@pytest.mark.parametrize("how", ["no HEAD", "weak tags", "latin tags", "empty coding"])
def test_servers_with_headers_of_their_own(tmp_path: Path, store: Store, how: str) -> None:
    store.files["/a.jsonl"] = LINES
    store.head, store.weak = how != "no HEAD", how == "weak tags"
    store.tags["/a.jsonl"] = "caf\xe9" if how == "latin tags" else "tag"
    store.coding = " " if how == "empty coding" else ""
    (file,) = stage(tmp_path, f"{store.url}/a.jsonl")
    assert staging_of(tmp_path).dir.copy(file.name).read_bytes() == LINES


def test_a_server_without_ranges_sends_files_again(tmp_path: Path, store: Store) -> None:
    store.files["/a.jsonl"] = LINES
    store.ranges, store.cut = False, 1000
    with pytest.raises(RetryError, match=r"not all files were copied:\s+.*/a\.jsonl: 3 failures"):
        stage(tmp_path, f"{store.url}/a.jsonl")
    assert [draft.stat().st_size for draft in drafts(tmp_path)] == [1000]
    store.cut = None
    files = stage(tmp_path, f"{store.url}/a.jsonl")
    assert staging_of(tmp_path).dir.copy(files[0].name).read_bytes() == LINES


@pytest.mark.parametrize("ranges", [True, False])
def test_a_compressed_file_is_copied_as_it_is_however_it_is_labelled(
    tmp_path: Path, store: Store, ranges: bool
) -> None:
    """As Apache labels `.gz` files, to clients that ask for no coding, too."""
    store.files["/a.jsonl.gz"] = gzip.compress(LINES)
    store.coding, store.ranges = "gzip", ranges
    (file,) = stage(tmp_path, f"{store.url}/a.jsonl.gz")
    assert staging_of(tmp_path).dir.copy(file.name).read_bytes() == store.files["/a.jsonl.gz"]


def test_a_server_that_compresses_on_the_way_is_refused(tmp_path: Path, store: Store) -> None:
    store.files["/a.jsonl"] = LINES
    (file,) = list_url(f"{store.url}/a.jsonl").files
    store.coding = "gzip"
    told = r"a\.jsonl: the server compresses it on the way \(gzip\), although asked not to"
    for act in (lambda: list_url(file.url), lambda: staging_of(tmp_path).stage([file], ignore)):
        with pytest.raises(UserError, match=told):
            act()


def test_a_file_of_unknown_size_is_copied_to_its_end(tmp_path: Path, store: Store) -> None:
    store.files["/a.jsonl"] = LINES
    store.chunked, store.ranges, store.cut = True, False, 1000
    url = f"{store.url}/a.jsonl"
    with pytest.raises(UserError, match=r"a\.jsonl \(unknown size, etag:.*\)"):
        staging_of(tmp_path, url).require(list_url(url).files)
    with pytest.raises(RetryError, match=r"not all files were copied:\s+.*/a\.jsonl: 3 failures"):
        stage(tmp_path, url)
    store.cut = None
    (file,) = stage(tmp_path, url)
    assert (file.size, list_url(url).files) == (None, (file,))
    place = staging_of(tmp_path, url)
    assert place.dir.copy(file.name).read_bytes() == LINES
    assert place.missing([file]) == []
    place.dir.copy(file.name).unlink()  # a started run knows the size
    place.stage([replace(file, size=len(LINES))], ignore)
    assert place.dir.copy(file.name).read_bytes() == LINES
    place.dir.copy(file.name).unlink()
    with pytest.raises(UserError, match="it changed meanwhile to unknown size"):
        place.stage([replace(file, size=len(LINES) - 1)], ignore)


@pytest.mark.parametrize("place", ["in the middle", "at the end", "in a folder"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    store.files = {f"/{n}.jsonl": LINES for n in range(12)}
    urls = [f"{store.url}{path}" for path in store.files]
    lock, left = threading.Lock(), 6

    def full(*arguments: Any, original: Callable[..., Any], **more: Any) -> Any:
        nonlocal left
        with lock:
            left -= 1
            if left < 0:
                raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return original(*arguments, **more)

    with monkeypatch.context() as patch:
        if place == "in the middle":
            patch.setattr(remote, "_PIECE", len(LINES) // 2)
            patch.setattr(remote, "write_all", partial(full, original=remote.write_all))
        elif place == "at the end":
            patch.setattr(remote.os, "replace", partial(full, original=os.replace))
        else:
            patch.setattr(Path, "open", partialmethod(full, original=Path.open))
        with pytest.raises(RetryError) as told:
            stage(tmp_path, *urls)
    assert told.value.message.startswith("disk full: cannot write ")
    assert re.search(r"exceeded\); not copied yet: \d+ files? of 12$", told.value.message)
    assert "lfs quota" in told.value.hint
    copied = store.sent
    files = stage(tmp_path, *urls)
    assert {staging_of(tmp_path).dir.copy(file.name).read_bytes() for file in files} == {LINES}
    if place != "in a folder":
        assert store.sent - copied < 12 * len(LINES)
    assert not drafts(tmp_path)


def test_failures_are_retried_a_few_times_and_named(tmp_path: Path, store: Store) -> None:
    store.files = {"/a.jsonl": LINES, "/b.jsonl": LINES}
    place = staging_of(tmp_path)
    files = [list_url(f"{store.url}/{name}.jsonl").files[0] for name in "ab"]
    place.dir.root.mkdir()
    store.failures = 2
    place.stage(files[:1], ignore)
    lost = RemoteFile("http://127.0.0.1:9/c.jsonl", "http/c.jsonl", 1, "etag:x")
    with pytest.raises(RetryError, match="3 failures in a row, the last ConnectionRefused"):
        place.stage([lost], ignore)
    del store.files["/b.jsonl"]
    with pytest.raises(UserError, match=r"cannot copy http.*/b\.jsonl: there is no such file"):
        place.stage(files, ignore)
    assert staging_of(tmp_path, "memory://x").missing(files) == files[1:]


def test_another_version_is_told_and_never_replaces_a_copy(tmp_path: Path, memory: Any) -> None:
    url = "memory://bucket/in/*.jsonl"
    (old,) = stage(tmp_path, url)
    memory.pipe("/bucket/in/a.jsonl", LINES + LINES)
    place = staging_of(tmp_path, url)
    for act in (place.require, lambda files: place.stage(files, ignore)):
        with pytest.raises(
            UserError,
            match=r"1 copy in .* cannot be used:\s.*a\.jsonl \(8,896 .*, the copy is of 4,448",
        ):
            act(place.listing(url).files)
    assert place.dir.copy(old.name).read_bytes() == LINES
    place.dir.copy(old.name).write_bytes(b"cut")
    with pytest.raises(UserError, match=r"a\.jsonl is now 3 bytes"):
        place.require([old])
    place.dir.index.unlink()
    with pytest.raises(UserError, match="not a copy that was made here"):
        staging_of(tmp_path, url).require([old])


def test_a_part_of_another_version_is_not_appended(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the server has the listed version again when the copy is checked."""
    monkeypatch.setattr(remote, "_verify", lambda *_: None)
    store.files["/a.jsonl"], store.tags["/a.jsonl"] = LINES, "first"
    (file,) = list_url(f"{store.url}/a.jsonl").files
    place = staging_of(tmp_path)
    target = place.dir.copy(file.name)
    for tag, size in (("second", len(LINES)), ("first", 3000)):
        target.parent.mkdir(parents=True, exist_ok=True)
        remote.draft_of(file, target).write_bytes(LINES[:1000])
        store.tags["/a.jsonl"], store.files["/a.jsonl"] = tag, LINES[:size]
        with pytest.raises(UserError, match=r"is refused: it changed meanwhile to"):
            place.stage([file], ignore)
        assert not drafts(tmp_path)


@pytest.mark.parametrize("change", ["tag", "size"])
def test_a_file_that_changes_while_it_is_copied_is_refused(
    tmp_path: Path, store: Store, change: str
) -> None:
    store.files["/a.jsonl"] = LINES
    files = list_url(f"{store.url}/a.jsonl").files
    if change == "tag":
        store.tags["/a.jsonl"] = "other"
    else:
        store.files["/a.jsonl"] = LINES + LINES
    place = staging_of(tmp_path)
    place.dir.root.mkdir()
    with pytest.raises(UserError, match=r"the copy of .*a\.jsonl.* is refused: it changed"):
        place.stage(files, ignore)
    assert not [*place.dir.root.glob("**/*a.jsonl*")]


def test_a_file_that_does_not_fit_is_not_begun(
    tmp_path: Path, memory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "free_space", lambda path: (path, 2000, None))
    with pytest.raises(UserError, match=r"are to be copied to .*, which has 2\.0 KiB free"):
        stage(tmp_path, "memory://bucket/in/*.jsonl")


@pytest.mark.parametrize(
    "name", ["/b/../../x.jsonl", "/b/a\x1b[2J.jsonl", "/b//x.jsonl", f"/b/{'x' * 300}.jsonl"]
)
def test_names_that_could_leave_the_folder_or_harm_are_refused(
    memory: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = {"name": name, "size": 1, "type": "file"}
    monkeypatch.setattr(type(memory), "glob", lambda *_, **__: {name: info})
    with pytest.raises(UserError, match="cannot be copied under its name"):
        list_url("memory://b/*")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("memory://bucket/none*.jsonl", "no file matches"),
        ("memory://bucket/none.jsonl", "cannot list .*: there is no such file"),
        ("memory://bucket/in", "it is a folder"),
        ("nothing://bucket/in", "Protocol not known"),
        ("s3://bucket/a.jsonl", "Install s3fs"),
    ],
)
def test_a_url_without_files_says_why(memory: Any, url: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        list_url(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("s3://key:secret@bucket/a.jsonl", "name or password"),
        ("https://host/a.jsonl?download=1", "without a query"),
        ("zip://a.jsonl::s3://bucket/a.zip", "one address"),
        ("s3://bucket/../other/a.jsonl", "cannot have a part `..`"),
    ],
)
def test_a_url_with_more_than_an_address_is_refused(tmp_path: Path, url: str, reason: str) -> None:
    with pytest.raises(UserError, match=re.escape(reason)) as told:
        load_manifest(manifest(tmp_path, [], corpus={"paths": url}))
    assert "secret" not in str(told.value)


def test_without_fsspec_the_plan_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("proxhpc.extras.is_installed", lambda name: name != "fsspec")
    path = manifest(tmp_path, [], corpus={"paths": "s3://bucket/*.jsonl"})
    assert main(["plan", str(path), "--site", local_site(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "copying s3://bucket/*.jsonl needs the package fsspec" in told
    assert how_to_install("remote") in told


def test_files_of_an_earlier_listing_are_read_if_the_store_is_silent(
    tmp_path: Path, store: Store
) -> None:
    store.files["/a.jsonl"] = LINES
    url = f"{store.url}/a.jsonl"
    files = stage(tmp_path, url)
    store.files.clear()
    listing = staging_of(tmp_path, url).listing(url)
    assert [*listing.files] == files
    assert listing.notes[0].startswith(f"cannot list {url}: ")
    staging_of(tmp_path).dir.copy(files[0].name).unlink()
    with pytest.raises(ProxError, match="cannot list"):
        staging_of(tmp_path, url).listing(url)


def test_a_repository_of_the_hub_is_read_at_one_commit(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", store.url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    address = f"{store.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
    hub.HfFileSystem.clear_instance_cache()
    commit, name = "1" * 40, "data/a b.jsonl"
    blob = {"type": "file", "path": name, "size": len(LINES), "oid": "2" * 40}
    blob["lfs"] = {"oid": hashlib.sha256(LINES).hexdigest(), "size": len(LINES), "pointerSize": 9}
    small = hashlib.sha1(b"blob %d\0" % len(LINES) + LINES).hexdigest()  # as git names it
    plain = {"type": "file", "path": "data/c.jsonl", "size": len(LINES), "oid": small}
    about = {"id": "org/set", "sha": commit, "siblings": [], "private": False, "tags": []}
    for revision in ("", "/revision/main", "/revision/v1", f"/revision/{commit}"):
        store.hub[f"/api/datasets/org/set{revision}"] = about
    tree = f"/api/datasets/org/set/tree/{commit}"
    store.hub[tree] = [{"type": "directory", "path": "data", "oid": "3" * 40, "size": 0}]
    store.hub[f"{tree}/data"] = [blob, plain]
    for path in (name, "data/c.jsonl"):
        store.files[f"/datasets/org/set/resolve/{commit}/{path}"] = LINES

    url = "hf://datasets/org/set/data/*.jsonl"
    file, second = stage(tmp_path, url)
    assert second.version == f"git:{small}"
    assert file.url == f"hf://datasets/org/set@{commit}/{name}"
    assert file.version == f"sha256:{hashlib.sha256(LINES).hexdigest()}"
    assert (tmp_path / "staging/hf/datasets/org/set" / name).read_bytes() == LINES
    assert list_url(url).notes == (f"{url} is read at commit {commit}",)

    store.files[f"/datasets/org/set/resolve/{commit}/{name}"] = LINES[::-1]
    with pytest.raises(UserError, match=r"a b\.jsonl.* is refused: its sha256 is .*, not"):
        stage(tmp_path, "hf://datasets/org/set@v1/data/*.jsonl")
    copies = [*tmp_path.glob("staging/hf/datasets/org/set@v1/data/*.jsonl*")]
    assert [copy.name for copy in copies] == ["c.jsonl"]
