"""Manifests: those in the repository are valid, and problems are named with file, line and key."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from proxhpc.errors import UserError
from proxhpc.run.listing import find_inputs
from proxhpc.spec.manifest import Manifest, diff, load_manifest
from proxhpc.spec.sections import Comparison, Stage
from proxhpc.spec.yaml_lines import expand_variables
from runs import schema_tool

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "manifests").glob("*.yaml"))
KNOWN = ["c4", "culturax", "dclm", "dolma", "fineweb", "fineweb-2", "fineweb-edu", "hplt-2"]
KNOWN += ["openwebmath", "pile", "redpajama-v2", "slimpajama"]
ENVIRON = {
    f"{name.upper().replace('-', '_')}{end}": "/data"
    for name in (*KNOWN, "hplt", "teacher")
    for end in ("_DIR", "_LANGUAGE")
}
SMALL = """\
name: small
corpus: {paths: "*.jsonl"}
stages: [{level: doc}]
engine: {name: rules}
"""

Load = Callable[..., Manifest]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a manifest from its text; messages call the file x.yaml."""
    monkeypatch.chdir(tmp_path)

    def from_text(text: str | bytes, **environ: str) -> Manifest:
        Path("x.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_manifest(Path("x.yaml"), environ)

    return from_text


def test_manifests_are_shipped_for_the_known_corpora() -> None:
    names = {path.stem for path in SHIPPED}
    assert names >= {"demo", "demo-rules", "teacher", *KNOWN}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_manifest_is_valid(path: Path) -> None:
    manifest = load_manifest(path, ENVIRON)
    assert manifest.name == path.stem
    assert manifest.run_dir == Path.cwd() / "runs" / path.stem
    assert path.read_text().startswith("# yaml-language-server: $schema=./schema.json\n")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_manifest_fits_the_schema(path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text()), schema_tool().json_schema(Manifest))


def test_manifests_of_known_corpora_use_the_published_models() -> None:
    for path in SHIPPED:
        if path.stem == "teacher":
            continue
        kind = "math" if path.stem == "openwebmath" else "web"
        models = [stage.model for stage in load_manifest(path, ENVIRON).stages]
        published = [f"gair-prox/{kind}-{level}-refining-lm" for level in ("doc", "chunk")]
        others = {"demo": ["embedded"], "demo-rules": [None]}
        assert models == others.get(path.stem, published)


def test_generated_files_are_current() -> None:
    for path, text in schema_tool().contents().items():
        assert path.read_text("utf-8") == text, f"run: python tools/write_schemas.py ({path})"


def test_reference_describes_every_key() -> None:
    text = (ROOT / "docs/manifest.md").read_text("utf-8")
    schema = schema_tool().json_schema(Manifest)
    for part in (schema, *schema["$defs"].values()):
        for key, rule in part.get("properties", {}).items():
            assert f"| `{key}` |" in text
            assert rule.get("description") or "$ref" in str(rule), key


def test_models_of_other_packages_describe_no_key() -> None:
    other = type("Output", (BaseModel,), {"__module__": "another.package"})
    assert other.__name__ == type(Manifest.model_fields["output"].default).__name__
    test_reference_describes_every_key()


def test_a_small_manifest_has_defaults(load: Load, tmp_path: Path) -> None:
    manifest = load(SMALL)
    assert manifest.corpus.paths == (str(tmp_path / "*.jsonl"),)
    assert manifest.run_dir == tmp_path / "runs" / "small"
    assert manifest.sharding.tokens == 20_000_000
    assert manifest.output.part_size == 256 * 1024 * 1024
    assert manifest.site is None


def test_limits_of_a_stage_depend_on_its_level(load: Load) -> None:
    doc, chunk = load(SMALL.replace("{level: doc}", "{level: doc}, {level: chunk}")).stages
    assert (doc.max_prompt_tokens, doc.max_new_tokens) == (2000, 16)
    assert (chunk.max_prompt_tokens, chunk.max_new_tokens) == (None, 256)
    assert chunk.window_tokens == 1500


def test_manifest_is_frozen(load: Load) -> None:
    manifest = load(SMALL)
    with pytest.raises(ValidationError, match="frozen"):
        manifest.seed = 1  # type: ignore[misc]


GOLDEN = {
    "several": (
        """\
nam: x
corpus:
  fromat: jsonl
  paths: []
  text: a..b
  max_record_bytes: 1.5B
stages:
  - level: dco
    window_tokens: "5"
  - {level: chunk, prompt: [compact],
    model: foo}
engine: vllm
commit: {documents: 0, seconds: true}
seed: 1.5
""",
        """\
x.yaml:1: name: required, but not given
x.yaml:1: nam: unknown key; did you mean "name"? (keys here: commit, comparison, corpus, dedup, \
engine, name, output, policy, prove, run_dir, seed, sharding, site, stages)
x.yaml:3: corpus.fromat: unknown key; did you mean "format"? (keys here: format, id, \
max_record_bytes, paths, staging, text, zstd_window)
x.yaml:4: corpus.paths: must have at least 1 item, not 0
x.yaml:5: corpus.text: must be a field's name, or names with dots between, not "a..b"
x.yaml:6: corpus.max_record_bytes: "1.5B" is not a whole number like 512MiB (units: B, KB, MB, GB, \
TB, KiB, MiB, GiB, TiB)
x.yaml:8: stages[0].level: must be one of doc, chunk, not "dco"; did you mean "doc"?
x.yaml:9: stages[0].window_tokens: must be a whole number, not "5"
x.yaml:10: stages[1].prompt: must be text, not a list
x.yaml:11: stages[1].model: "foo" is neither an existing directory nor a hub id "org/name"
x.yaml:12: engine: must be a mapping of keys, not "vllm"
x.yaml:13: commit.documents: must be greater than 0, not 0
x.yaml:13: commit.seconds: must be a number, not true
x.yaml:14: seed: must be a whole number, not 1.5""",
    ),
    "elsewhere": (
        SMALL + "text: body\n",
        'x.yaml:5: text: unknown key; did you mean "corpus.text"? (keys here: commit, comparison, '
        "corpus, dedup, engine, name, output, policy, prove, run_dir, seed, sharding, site, "
        "stages)",
    ),
    "policy": (
        SMALL + "policy: {max_eror_share: 1}\n",
        'x.yaml:5: policy.max_eror_share: unknown key; did you mean "max_error_share"?',
    ),
    "policy word": (
        SMALL + "policy: refrence\n",
        'x.yaml:5: policy: must be a mapping of keys or "reference" or "none", not "refrence"',
    ),
    "twice": (SMALL + "name: y\n", "x.yaml:5: name: given twice, first in line 1"),
    "empty": ("# nothing\n", "x.yaml: the file is empty"),
    "list": ("- a\n", "x.yaml:1: must be a mapping of keys, not a list"),
    "word": ("hello\n", 'x.yaml:1: must be a mapping of keys, not "hello"'),
    "syntax": (
        "name: x\ncorpus: [1,\n  2\n",
        "x.yaml:4: while parsing a flow sequence, expected ',' or ']', but got '<stream end>' "
        "(which begins in line 2)",
    ),
    "documents": (
        SMALL + "---\na: b\n",
        "x.yaml:5: expected a single document in the stream, but found another document "
        "(which begins in line 1)",
    ),
    "alias": (
        "a: &a [x, x]\nb: [*a, *a]\n",
        "x.yaml:2: aliases (*name) are not allowed; write the value out",
    ),
    "deep": ("[" * 500, "x.yaml:1: nested deeper than 32 levels"),
    "tag": (
        "name: !!python/object/apply:os.system [ls]\n",
        'x.yaml:1: name: the tag "tag:yaml.org,2002:python/object/apply:os.system" is not allowed',
    ),
    "digits": ("seed: " + "9" * 5000, 'x.yaml:1: seed: "' + "9" * 57 + '..." is not a number'),
    "key": ("name: x\n1: a\n", 'x.yaml:2: a key must be a word, not "1"'),
    "control": ("name: x\nsite: \x07\n", "x.yaml:2: character U+0007 is not allowed"),
    "escape": (
        'name: "\\e[31mred"\n' + SMALL.partition("\n")[2],
        "x.yaml:1: name: must be up to 64 letters, digits, '.', '_' or '-', not \"\\x1b[31mred\"",
    ),
    "encoding": (b"name: x\nsite: \xff\n", "x.yaml:2: not UTF-8 text (byte 0xff)"),
    "order": (
        SMALL.replace("{level: doc}", "{level: chunk}, {level: doc}"),
        "x.yaml:3: stages[1].level: a doc stage cannot follow a chunk stage "
        "(possible: doc, chunk, or doc then chunk)",
    ),
    "three": (
        SMALL.replace("{level: doc}", ", ".join(["{level: doc}"] * 3)),
        "x.yaml:3: stages: must have at most 2 items, not 3",
    ),
    "model": (
        SMALL.replace("rules", "vllm"),
        "x.yaml:3: stages[0].model: required with engine.name: vllm",
    ),
    "doc window": (
        SMALL.replace("level: doc", "level: doc, window_tokens: 9"),
        "x.yaml:3: stages[0].window_tokens: only with level: chunk",
    ),
    "options": (
        SMALL.replace(
            "name: rules", "name: vllm, batch_size: 2, options: {trust-remote-code: true, Seed: 1}"
        ),
        """\
x.yaml:4: engine.batch_size: only with name: transformers
x.yaml:4: engine.options.trust-remote-code: not allowed: it would run code from the model's \
repository on every node
x.yaml:4: engine.options.Seed: not allowed: use seed""",
    ),
    "rules": (
        SMALL.replace("name: rules", "name: rules, options: {a: 1}, rules: [c4, c4]"),
        "x.yaml:4: engine.options: only with name: vllm or transformers\n"
        "x.yaml:4: engine.rules: a rule set is named twice",
    ),
    "context": (
        SMALL.replace("level: doc", "level: chunk").replace(
            "name: rules", "name: rules, max_model_len: 1756"
        ),
        "x.yaml:3: stages[0].window_tokens: 1500 + 256 tokens leave no room for a prompt in "
        "engine.max_model_len: 1756",
    ),
    "grammar of the reference": (
        SMALL.replace("level: doc", "level: doc, model: a/b, grammar: lines").replace(
            "rules", "vllm"
        )
        + "policy: reference\n",
        "x.yaml:3: stages[0].grammar: must be none with policy: reference",
    ),
    "windows of the reference": (
        SMALL.replace(
            "level: doc",
            "level: chunk, model: a/b, dialect: ultrax, numbering: window, blank_lines: skipped, "
            "window_overlap: 0.2",
        ).replace("rules", "vllm")
        + "policy: reference\n",
        "x.yaml:3: stages[0].dialect: must be prox with policy: reference\n"
        "x.yaml:3: stages[0].numbering: must be document with policy: reference\n"
        "x.yaml:3: stages[0].blank_lines: must be numbered with policy: reference\n"
        "x.yaml:3: stages[0].window_overlap: must be 0 with policy: reference",
    ),
    "speculation": (
        SMALL.replace("level: doc", "level: doc, model: a/b, prompt: walk").replace(
            "name: rules", "name: vllm, options: {speculative_config: {method: ngram}}"
        ),
        "x.yaml:4: engine.options.speculative_config: not with prompt: walk",
    ),
    "profile": (
        SMALL.replace("level: doc", 'level: doc, prompt: {name: mine, document: "{text}"}'),
        "x.yaml:3: stages[0].prompt: must be a profile's name or file (*.json), not a mapping of "
        "keys",
    ),
    "comparison": (
        SMALL + "comparison: {name: x}\n",
        "x.yaml:5: comparison: give either model (a directory) or parameters (a number)",
    ),
    "variables": (
        SMALL + "site: ${NOPE}/x\nrun_dir: $HOME\nseed: ${EMPTY}\n",
        """\
x.yaml:5: site: the environment variable NOPE is unset or empty; export it, or write \
${NOPE:-default}
x.yaml:6: run_dir: "$HOME": write ${NAME}, ${NAME:-default}, or $$ for a dollar
x.yaml:7: seed: the environment variable EMPTY is unset or empty; export it, or write \
${EMPTY:-default}""",
    ),
    "number as text": (
        SMALL + "site: 2024\n",
        "x.yaml:5: site: must be text, not 2024; put it in quotes",
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_message(case: str, load: Load) -> None:
    text, expected = GOLDEN[case]
    with pytest.raises(UserError) as caught:
        load(text, EMPTY="")
    message = caught.value.message
    assert message == expected or (case == "policy" and message.startswith(expected))


def test_long_lists_of_problems_are_truncated(load: Load) -> None:
    with pytest.raises(UserError) as caught:
        load(SMALL + "".join(f"zz{n}: 1\n" for n in range(50)))
    lines = caught.value.message.split("\n")
    assert len(lines) == 21
    assert lines[-1] == "x.yaml: and 30 more problems"


def test_a_missing_file_error_lists_the_files_beside_it(load: Load, tmp_path: Path) -> None:
    load(SMALL)
    with pytest.raises(UserError, match="no such file") as caught:
        load_manifest(tmp_path / "y.yaml")
    assert caught.value.hint == "this folder has x.yaml"


def test_directory_and_huge_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        load_manifest(tmp_path)
    (tmp_path / "big.yaml").write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(UserError, match="larger than 1048576 bytes"):
        load_manifest(tmp_path / "big.yaml")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.one_of(
        st.binary(max_size=80),
        st.text(max_size=80),
        st.text("ab:-[]{}&*!|>\"'#%@`,? \n\t$~.0123456789", max_size=80),
    )
)
def test_any_file_is_a_manifest_or_a_user_error(load: Load, data: bytes | str) -> None:
    raw = data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass")
    with pytest.raises(UserError):
        load(raw)


def test_variables_are_expanded(load: Load, tmp_path: Path) -> None:
    manifest = load(
        SMALL.replace('"*.jsonl"', '"${D}/a$$b/*.jsonl"')
        + "seed: ${SEED}\nsharding:\n  tokens: ${N:-3}K\nrun_dir: ${NO:-here}\n",
        D="/d",
        SEED="7",
    )
    assert manifest.corpus.paths == ("/d/a$b/*.jsonl",)
    assert manifest.seed == 7
    assert manifest.sharding.tokens == 3000
    assert manifest.run_dir == tmp_path / "here"


def test_quoted_variable_is_text(load: Load) -> None:
    with pytest.raises(UserError, match='seed: must be a whole number, not "7"'):
        load(SMALL + 'seed: "${SEED}"\n', SEED="7")


@given(st.text())
def test_two_dollars_are_one(text: str) -> None:
    assert expand_variables(text.replace("$", "$$"), {}) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("512MiB", 512 << 20),
        ("1.5 GiB", 3 << 29),
        ("2MB", 2_000_000),
        ("100_000", 100_000),
        ("7B", 7),
    ],
)
def test_sizes(text: str, expected: int, load: Load) -> None:
    assert load(SMALL + f"output: {{part_size: {text}}}\n").output.part_size == expected


@given(st.integers(1, 10**6), st.sampled_from([("K", 10**3), ("M", 10**6), ("B", 10**9)]))
def test_counts(number: int, unit: tuple[str, int]) -> None:
    data = {"parameters": f"{number}{unit[0]}", "name": "x"}
    assert Comparison.model_validate(data).parameters == number * unit[1]


@pytest.mark.parametrize("text", ["-1", "0", "1e6", "1.0005K", "MiB", "1XB", "true", "1.5"])
def test_wrong_counts(text: str, load: Load) -> None:
    with pytest.raises(UserError, match=r"x\.yaml:5: sharding\.tokens: "):
        load(SMALL + f"sharding: {{tokens: {text}}}\n")


@pytest.mark.parametrize("name", ["./m", "../m", "org/m", "~/m", "/m"])
def test_model_directories_are_absolute(name: str, load: Load, tmp_path: Path) -> None:
    (tmp_path / "org" / "m").mkdir(parents=True)
    stages = f"stages: [{{level: doc, model: {name}}}]\n"
    model = load(SMALL.replace("stages: [{level: doc}]\n", stages)).stages[0].model
    expected = os.path.normpath(tmp_path / os.path.expanduser(name))
    assert model == expected


@pytest.mark.parametrize("name", ["org/name", "gair-prox/web-doc-refining-lm", "o/n@main"])
def test_hub_ids_are_kept(name: str, load: Load) -> None:
    stages = f"stages: [{{level: doc, model: {name}}}]\n"
    assert load(SMALL.replace("stages: [{level: doc}]\n", stages)).stages[0].model == name


def test_json_round_trip_keeps_all_that_is_computed(load: Load) -> None:
    for path in SHIPPED:
        first = load_manifest(path, ENVIRON)
        again = Manifest.model_validate_json(first.model_dump_json())
        as_data = Manifest.model_validate(json.loads(first.model_dump_json()))
        assert again == first == as_data
        assert again.computed() == first.computed() == as_data.computed()


CHANGES = {
    "seed: 1": ["seed"],
    "name: other": ["name"],
    "policy: reference": ["policy"],
    "policy: {max_error_share: 0.9}": ["policy.max_error_share"],
    "stages: [{level: chunk}]": [
        "stages[0].level",
        "stages[0].max_prompt_tokens",
        "stages[0].max_new_tokens",
    ],
    "stages: [{level: doc}, {level: chunk}]": ["stages"],
    "corpus: {paths: other}": ["corpus.paths[0]"],
    "comparison: {parameters: 1B}": ["comparison"],
    "run_dir: elsewhere": [],
    "site: local": [],
    "commit: {seconds: 60}": [],
}


@pytest.mark.parametrize("change", CHANGES)
def test_diff_names_what_changes_the_computation(change: str, load: Load) -> None:
    key = change.partition(":")[0]
    rest = "".join(line for line in SMALL.splitlines(True) if not line.startswith(f"{key}:"))
    before, after = load(SMALL), load(rest + change + "\n")
    assert diff(before, after) == CHANGES[change]
    assert (before.computed() == after.computed()) == (not CHANGES[change])


def test_inputs_are_sorted_and_named_relative_to_the_common_folder(
    load: Load, tmp_path: Path
) -> None:
    for name in ("in/b/2.jsonl", "in/b/1.jsonl", "in/a/x/3.jsonl", "in/a/.hidden.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "in/b/folder.jsonl").mkdir()
    paths = '["in/b/*.jsonl", "in/**/*.jsonl"]'
    inputs = find_inputs(load(SMALL.replace('"*.jsonl"', paths)).corpus).files
    assert [name for _, name in inputs] == ["b/1.jsonl", "b/2.jsonl", "a/x/3.jsonl"]
    assert [path for path, name in inputs] == [tmp_path / "in" / name for _, name in inputs]


def test_inputs_do_not_depend_on_the_order_of_a_directory_listing(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}.jsonl" for n in "abc"]
    for name in names:
        (tmp_path / name).touch()
    scandir = os.scandir

    @contextmanager
    def reversed_scandir(path: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            yield sorted(entries, key=lambda entry: entry.name, reverse=True)

    monkeypatch.setattr("os.scandir", reversed_scandir)
    assert [name for _, name in find_inputs(load(SMALL).corpus).files] == names


def test_paths_are_relative_to_the_target_of_a_linked_folder(tmp_path: Path) -> None:
    (tmp_path / "real/manifests").mkdir(parents=True)
    (tmp_path / "real/manifests/x.yaml").write_text(SMALL + "run_dir: ../runs\n")
    (tmp_path / "link").symlink_to("real/manifests")
    assert load_manifest(tmp_path / "link/x.yaml").run_dir == tmp_path / "real/runs"


def test_inputs_in_a_folder_with_wildcards_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]*"
    folder.mkdir()
    (folder / "a.jsonl").touch()
    (folder / "x.yaml").write_text(SMALL)
    files = find_inputs(load_manifest(folder / "x.yaml").corpus).files
    assert files == [(folder / "a.jsonl", "a.jsonl")]


def test_missing_inputs_are_all_named(load: Load, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest = load(SMALL.replace('"*.jsonl"', "[empty/*.jsonl, gone/a/*.jsonl, empty]"))
    with pytest.raises(UserError) as caught:
        find_inputs(manifest.corpus)
    empty = tmp_path / "empty"
    assert caught.value.message.split("\n") == [
        f'corpus.paths[0]: no file matches "{empty}/*.jsonl": the folder "{empty}" has none',
        f'corpus.paths[1]: no file matches "{tmp_path}/gone/a/*.jsonl": the folder does not '
        f'exist; "{tmp_path}" does',
        f'corpus.paths[2]: no file matches "{empty}": it is a folder; name the files, as in '
        "FOLDER/**/*.jsonl.zst",
    ]


def test_a_file_name_that_is_not_utf8_is_refused(load: Load, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jsonl")).touch()
    with pytest.raises(UserError, match="name is not UTF-8"):
        find_inputs(load(SMALL).corpus)


def test_stage_can_be_made_in_code() -> None:
    assert Stage(level="chunk", model="org/name").max_new_tokens == 256


def test_imports_are_light() -> None:
    code = "import proxhpc.spec.manifest, proxhpc.spec.site, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "vllm", "submitit", "pyarrow", "numpy", "rich", "zstandard"}
    assert not heavy & set(done.stdout.split())
