"""Corpora that people refine: a sample of each one's schema through its shipped manifest, and back.

The last records differ from the first ones where they do in the corpus, and `datasets` reads
pieces of 3 kB, as if the corpus were large.
"""

import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import zstandard

from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.shape import MIXED, RowShape, ShapeCollector, Shapes, features
from proxhpc.cluster import tasks
from proxhpc.launch.launch import plan_run, this_machine
from proxhpc.run.paths import RunDir
from proxhpc.spec.manifest import Manifest, load_manifest
from proxhpc.spec.sections import Output
from runs import PARAGRAPH

# Only a subprocess imports it, which takes seconds.
pytestmark = pytest.mark.skipif(find_spec("datasets") is None, reason="no package datasets")
COUNT = 30
ROOT = Path(__file__).parents[1]


def text(n: int) -> str:
    return f"Home | About | Contact\n{PARAGRAPH}Number {n} of the series ends with this line."


def url(n: int) -> str:
    return f"https://example.org/{n}"


def fineweb(n: int) -> dict[str, Any]:
    return {
        "text": text(n),
        "id": f"<urn:uuid:{n:08x}>",
        "dump": "CC-MAIN-2023-50",
        "url": url(n),
        "date": "2023-12-01T00:00:00Z",
        "file_path": "s3://commoncrawl/x.warc.gz",
        "language": "en",
        "language_score": 0.93,
        "token_count": 100 + n,
    }


def fineweb_2(n: int) -> dict[str, Any]:
    more = {"language_script": "Latn", "minhash_cluster_size": n, "top_langs": '{"swe_Latn": 0.9}'}
    return {key: value for key, value in fineweb(n).items() if key != "token_count"} | more


def redpajama(n: int) -> dict[str, Any]:
    """A record of the documents, joined with its signals in the form that the loader gives them."""
    return {
        "url": url(n),
        "date_download": "2023-01-26T23:05:13Z",
        "digest": f"sha1:{n:032X}",
        "length": 300 + n,
        "nlines": 3,
        "source_domain": "example.org",
        "title": "Contact",
        "raw_content": text(n),
        "cc_segment": "crawl-data/CC-MAIN-2023-06/segments/1/wet/CC-MAIN-0.warc.wet.gz",
        "original_nlines": 44,
        "original_length": 5801,
        "line_ids": [4, 6, n],
        "language": "en",
        "language_score": 0.95,
        "perplexity": 277.6,
        "bucket": "head",
        "quality_signals": json.dumps({"ccnet_perplexity": [[0, 300, 277.6]]}),
    }


def dclm(n: int) -> dict[str, Any]:
    headers = {"WARC-Type": "response", "WARC-Record-ID": f"<urn:uuid:{n:08x}>"}
    late = {"WARC-Truncated": "length"} if n > COUNT - 4 else {}
    return {
        "bff_contained_ngram_count_before_dedupe": 3 * n,
        "previous_word_count": 500,
        "text": text(n),
        "url": url(n),
        "warcinfo": "robots: classic",
        "metadata": headers | late,
        "language_id_whole_page_fasttext": {"en": 0.97},
        "fasttext_openhermes_reddit_eli5_vs_rw_v2_bigram_200k_train_prob": 0.03,
    }


def dolma(n: int) -> dict[str, Any]:
    web = {"url": url(n), "length": n}
    metadata = web if n < COUNT - 4 else {"revid": str(n), "length": "long"}
    created = {"created": "2020-01-01T00:00:00Z"} if n < COUNT - 4 else {}
    return {"id": f"{n}", "text": text(n), "source": "c4", "added": "2023", **created} | {
        "metadata": metadata
    }


def hplt(n: int) -> dict[str, Any]:
    pii = [] if n < COUNT - 4 else [[10, 20]]
    return {
        "f": "./path/to.warc.gz",
        "o": n,
        "s": 900,
        "rs": 12,
        "u": url(n),
        "c": "text/html",
        "ts": "2020-01-01T00:00:00Z",
        "collection": "cc40",
        "lang": ["swe_Latn", "nob_Latn"],
        "prob": [0.9, 0.1],
        "text": text(n),
        "seg_langs": ["swe_Latn"],
        "robotstxt": "allowed",
        "id": f"{n:016x}",
        "filter": "keep",
        "pii": pii,
        "doc_scores": [9.0, 10.0],
    }


Record = Callable[[int], dict[str, Any]]
# By manifest: a file of the corpus, below the folder that a variable names, and its records.
CORPORA: dict[str, tuple[str, Record]] = {
    "fineweb": ("data/CC-MAIN-2023-50/000.parquet", fineweb),
    "fineweb-edu": (
        "data/CC-MAIN-2023-50/000.parquet",
        lambda n: fineweb(n) | {"score": 2.9, "int_score": 3},
    ),
    "fineweb-2": ("data/swe_Latn/train/000.parquet", fineweb_2),
    "c4": (
        "en/c4-train.00000-of-01024.json.gz",
        lambda n: {"text": text(n), "timestamp": "2019-04-25T12:57:54Z", "url": url(n)},
    ),
    "redpajama-v2": ("documents/2023-06/0000/en_head.json.gz", redpajama),
    "openwebmath": (
        "data/train-0.parquet",
        lambda n: {"url": url(n), "text": text(n), "date": "2020-01-01", "metadata": "{}"},
    ),
    "dclm": ("global-shard_01_of_10/local-shard_0_of_10/x.jsonl.zst", dclm),
    "dolma": ("dolma-v1_7/c4-filtered/c4-0000.json.gz", dolma),
    "slimpajama": (
        "train/chunk1/example_train_0.jsonl.zst",
        lambda n: {"text": text(n), "meta": {"redpajama_set_name": "RedPajamaC4"}},
    ),
    "hplt-2": ("cleaned/swe_Latn/1.jsonl.zst", hplt),
    "culturax": (
        "sv/sv_part_00000.parquet",
        lambda n: {"text": text(n), "timestamp": "2020", "url": url(n), "source": "OSCAR-2301"},
    ),
    "pile": (
        "train/00.jsonl.zst",
        lambda n: {"text": text(n), "meta": {"pile_set_name": "Pile-CC"}},
    ),
}


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        sink = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(records), sink)
        data = sink.getvalue()
    elif path.suffix == ".zst":
        data = zstandard.compress(data)
    else:
        data = gzip.compress(data)
    path.write_bytes(data)


def refine(name: str, folder: Path, output: dict[str, Any]) -> RunDir:
    """Refine a sample by rules, otherwise as the shipped manifest says."""
    file, record = CORPORA[name]
    write(folder / "in" / file, [record(n) for n in range(COUNT)])
    if name == "redpajama-v2":  # the manifest names a second file
        (folder / "in" / file).with_name("en_middle.json.gz").write_bytes(gzip.compress(b""))
    variable = name.removesuffix("-2" if name == "hplt-2" else "").upper().replace("-", "_")
    language = {f"{variable}_LANGUAGE": "sv" if name == "culturax" else "swe_Latn"}
    environ = {f"{variable}_DIR": str(folder / "in")} | language
    shipped = load_manifest(ROOT / "manifests" / f"{name}.yaml", environ)
    data = shipped.model_dump(mode="json", exclude_unset=True)
    data |= {"stages": [{"level": "chunk"}], "engine": {"name": "rules"}}
    data["output"] = data.get("output", {}) | output
    run = RunDir(folder / "run")
    plan_run(Manifest.model_validate(data), b"", run, this_machine())
    tasks.refine_task(str(run.root), 0, 1)
    merge_run(run)
    return run


LOAD = """
import datasets, json, sys
datasets.disable_progress_bars()
for folder in sys.argv[2:]:
    front = open(folder + "/README.md").read().split("---")[1]
    kind = {} if "part-*.parquet" in front else {"chunksize": 3000}
    rows = datasets.load_dataset(folder, split="train", cache_dir=sys.argv[1], **kind)
    print(json.dumps([folder, rows["id"][:], rows["text"][:]]))
"""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDir]:
    runs = {name: refine(name, tmp_path_factory.mktemp(name), {}) for name in CORPORA}
    for suffix, options in {
        "parquet": {"format": "parquet", "license": "odc-by", "language": "en"},
        "jsonl": {"format": "jsonl"},
        "jsonl.gz": {"format": "jsonl.gz"},
        "text fields": {"metadata": "json"},
    }.items():
        runs[f"dclm as {suffix}"] = refine("dclm", tmp_path_factory.mktemp(suffix), options)
    return runs


def test_datasets_loads_every_corpus_as_its_card_says(
    corpora: dict[str, RunDir], tmp_path: Path
) -> None:
    folders = [str(run.corpus) for run in corpora.values()]
    command = [sys.executable, "-c", LOAD, str(tmp_path), *folders]
    environ = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loaded = [json.loads(line) for line in done.stdout.splitlines()]
    refined = [text(n).partition("\n")[2] for n in range(COUNT)]
    assert [folder for folder, _, _ in loaded] == folders
    for folder, ids, texts in loaded:
        assert texts == refined, folder
        assert len(set(ids)) == COUNT


@pytest.mark.parametrize("name", CORPORA)
def test_no_field_of_a_record_is_lost(corpora: dict[str, RunDir], name: str) -> None:
    [part] = corpora[name].corpus.glob("part-*")
    with zstandard.open(part, "rb") as file:
        rows = [json.loads(line) for line in file.read().splitlines()]
    record = CORPORA[name][1]
    for n, row in enumerate(rows):
        fields = json.loads(row["metadata"]) if name in ("dolma", "hplt-2") else row
        wanted = {key: value for key, value in record(n).items() if "text" != key != "raw_content"}
        assert {key: fields.get(key, row.get(key)) for key in wanted} == wanted


def test_polars_and_duckdb_load_the_corpora(corpora: dict[str, RunDir]) -> None:
    polars, duckdb = pytest.importorskip("polars"), pytest.importorskip("duckdb")
    for name, run in corpora.items():
        [part] = run.corpus.glob("part-*")
        read = polars.read_parquet if part.suffix == ".parquet" else polars.read_ndjson
        assert len(read(part)) == COUNT, name
        assert duckdb.sql(f"select count(distinct id) from '{part}'").fetchall() == [(COUNT,)], name


def test_the_card_says_that_a_corpus_of_mixed_types_may_not_be_loaded(tmp_path: Path) -> None:
    card = refine("dolma", tmp_path, {"metadata": "fields"}).card.read_text()
    assert "dataset_info" not in card
    assert "With `output.metadata: json` in the manifest, it does." in card


@pytest.mark.parametrize(
    ("rows", "shape"),
    [
        ([{"a": 1}, {"a": 1.5, "b": None}], {"a": "float64", "b": "null"}),
        ([{"a": []}, {"a": [{"x": "y"}, {"z": 1}]}], {"a": [{"x": "string", "z": "int64"}]}),
        ([{"a": True}, {"a": 1}], {"a": MIXED}),
        ([{"a": {"b": 1}}, {"a": {"c": {}}}], {"a": {"b": "int64", "c": {}}}),
        ([{f"https://example.org/{n}": n} for n in range(600)], MIXED),
    ],
)
def test_shapes_of_rows_are_merged(rows: list[dict[str, Any]], shape: RowShape) -> None:
    collector, shapes = ShapeCollector(), Shapes(Output())
    for row in rows * 2:
        collector.add(shapes.of(row))
    assert collector.shape == shape
    assert bool(features(shape)) == (MIXED not in str(shape))


def test_the_card_has_size_license_and_language(corpora: dict[str, RunDir]) -> None:
    card = corpora["dclm as parquet"].card.read_text()
    assert "size_categories:\n- n<1K\n" in card
    assert 'license: "odc-by"\nlanguage: ["en"]\n' in card
    assert "dtype: string" in corpora["dclm"].card.read_text()
    assert "license" not in corpora["dclm"].card.read_text().split("---")[1]
