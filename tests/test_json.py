"""docs/json.md: every document that `--json` prints is one of the models described there."""

import json
import typing
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import jsonschema
import pytest

from proxhpc.account.flops import Usage
from proxhpc.cli.main import COMMANDS, main
from proxhpc.cluster import tasks
from proxhpc.outputs import OutputModel, UsageTotals
from runs import document, local_site, planned, schema_tool, write_jsonl

ROOT = Path(__file__).parent.parent
Printed = Callable[..., str]


DOCUMENTS: dict[str, tuple[type[OutputModel], ...]] = schema_tool().DOCUMENTS
MODELS = {
    typing.get_args(model.model_fields["format"].annotation)[0]: (verb, model)
    for verb, models in DOCUMENTS.items()
    for model in models
}


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str]) -> Printed:
    """Run a command with --json; check what it prints against the model of its format."""

    def run(verb: str, *arguments: object) -> str:
        assert main([verb, *map(str, arguments)]) == 0
        text = capsys.readouterr().out
        data = json.loads(text)
        assert text.isascii()
        assert next(iter(data)) == "format"
        documented, model = MODELS[data["format"]]
        assert documented == verb
        jsonschema.validate(data, model.model_json_schema(mode="serialization"))
        again = model.model_validate_json(text)
        assert f"{again.to_json()}\n" == text
        return str(data["format"])

    return run


def test_documents_of_a_run(tmp_path: Path, printed: Printed) -> None:
    run = planned(tmp_path, 20).dir
    root, site = run.root, local_site(tmp_path)
    formats = {printed("doctor", site, "--json"), printed("status", root, "--json")}
    formats.add(printed("report", root, "--json"))
    tasks.refine_task(str(root), 0, 1)
    formats.add(printed("report", root, "--json"))
    tasks.merge_task(str(root), 1)
    for verb in ("plan", "report", "status", "verify"):
        formats.add(printed(verb, root, "--json"))
    formats.add(printed("inspect", root, "--sample", 5, "--json"))
    formats.add(printed("review", root, "--json"))
    of_models = {"proxhpc.evaluate/1", "proxhpc.annotate/1", "proxhpc.prove/1"}
    assert formats == MODELS.keys() - of_models


def test_documents_about_gold_records(tmp_path: Path, printed: Printed) -> None:
    texts = [document(number)["text"] for number in range(6)]
    gold = write_jsonl(
        tmp_path / "gold.jsonl",
        [{"text_noisy": text, "text_gold": text.partition("\n")[2]} for text in texts],
    )
    assert printed("evaluate", gold, "--bootstrap", 20, "--json", "-") == "proxhpc.evaluate/1"
    out = tmp_path / "examples.jsonl.zst"
    assert printed("annotate", gold, "--out", out, "--json") == "proxhpc.annotate/1"


def test_every_command_with_json_is_documented() -> None:
    page = (ROOT / "docs" / "cli.md").read_text()
    sections = {
        verb: page.partition(f"\n## {verb}\n")[2].partition("\n## ")[0] for verb in COMMANDS
    }
    assert {verb for verb, text in sections.items() if "--json" in text} == DOCUMENTS.keys()


def test_token_sums_are_printed_whole() -> None:
    usage = Usage.of_request(100, 40, 5)
    assert UsageTotals.model_validate(usage).model_dump() == asdict(usage)
    assert json.loads(UsageTotals.model_validate(usage).to_json()) == asdict(usage)
