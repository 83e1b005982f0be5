"""Write the files generated from typed models: JSON Schemas, and tables in the docs.

python tools/write_schemas.py            write the files
python tools/write_schemas.py --check    exit 1 if one is not current
"""

import ast
import functools
import inspect
import json
import re
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode

from proxhpc.account.flops import ModelShape
from proxhpc.annotate.summary import AnnotationSummary
from proxhpc.doctor.finding import Diagnosis
from proxhpc.evaluate.result import Evaluation
from proxhpc.inspect.model import InspectOutput
from proxhpc.outputs import OutputModel
from proxhpc.plan.model import PlanEstimate
from proxhpc.prove.model import ProveVerdict
from proxhpc.report.model import Report, RunAccount
from proxhpc.review.estimate import ReviewSummary
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.profile import Profile
from proxhpc.spec.prove import Training, training_presets
from proxhpc.spec.recipe import Recipe
from proxhpc.spec.site import Site
from proxhpc.spec.slurm_notation import MANAGED_SBATCH_OPTIONS
from proxhpc.status.model import Status
from proxhpc.verify import VerifyOutput

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    ROOT / "docs" / "manifest.md": ("manifest", "site", "managed"),
    ROOT / "docs" / "adapt.md": ("recipe",),
    ROOT / "docs" / "json.md": ("documents",),
    ROOT / "docs" / "refining.md": ("profile",),
    ROOT / "docs" / "prove.md": ("presets",),
}
# The documents that `--json` prints, by command.
DOCUMENTS: dict[str, tuple[type[OutputModel], ...]] = {
    "doctor": (Diagnosis,),
    "plan": (PlanEstimate,),
    "status": (Status,),
    "report": (Report, RunAccount),
    "inspect": (InspectOutput,),
    "review": (ReviewSummary,),
    "verify": (VerifyOutput,),
    "evaluate": (Evaluation,),
    "annotate": (AnnotationSummary,),
    "prove": (ProveVerdict,),
}
_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
}
# The page describes the keys of a phase in words: they are the site's.
PHASES = ("ResourceRequest", "RefineOptions", "MergeOptions")


def contents() -> dict[Path, str]:
    """Return every generated file with what it should hold."""
    schemas = {
        ROOT / "manifests" / "schema.json": json_schema(Manifest),
        ROOT / "slurm" / "sites" / "schema.json": json_schema(Site),
        ROOT / "recipes" / "schema.json": json_schema(Recipe),
    }
    files = {path: json.dumps(schema, indent=2) + "\n" for path, schema in schemas.items()}
    tables = {
        "manifest": sections(json_schema(Manifest)),
        "site": sections(json_schema(Site)),
        "managed": managed(),
        "recipe": sections(json_schema(Recipe)),
        "documents": documents(),
        "profile": table(json_schema(Profile)),
        "presets": presets(),
    }
    for page, names in PAGES.items():
        files[page] = filled(page, {name: tables[name] for name in names})
    return files


def described_schema(model: type[BaseModel], mode: JsonSchemaMode = "validation") -> dict[str, Any]:
    """Return a model's JSON Schema, in which the docstring below a field describes its key."""
    schema = model.model_json_schema(mode=mode)
    every = derived_models(BaseModel)  # also of packages that this process has imported
    models = {each.__name__: each for each in every if each.__module__.startswith("proxhpc.")}
    for name, part in {model.__name__: schema, **schema.get("$defs", {})}.items():
        texts = key_texts(models[name]) if name in models else {}
        for key, rule in part.get("properties", {}).items():
            if key in texts:
                rule["description"] = texts[key]
    return schema


def derived_models(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    """Yield all models that are derived from one."""
    for derived in model.__subclasses__():
        yield derived
        yield from derived_models(derived)


@functools.cache
def key_texts(model: type[BaseModel]) -> dict[str, str]:
    """Return the docstrings below the fields of a model, and of those that it is derived from."""
    texts: dict[str, str] = {}
    for each in reversed(model.__mro__):
        if issubclass(each, BaseModel) and each is not BaseModel:
            (tree,) = ast.parse(inspect.getsource(each)).body
            for field, text in pairwise(cast(ast.ClassDef, tree).body):
                match field, text:
                    case ast.AnnAssign(target=ast.Name(key)), ast.Expr(ast.Constant(str(about))):
                        texts[key] = inspect.cleandoc(about)
    return texts


def json_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the JSON Schema of a file, for editors and checks.

    Values other than text may also be strings with `${VAR}`.
    """
    schema = described_schema(model)
    schema.pop("title", None)
    for part in (schema, *schema.get("$defs", {}).values()):
        part.pop("title", None)
        properties = part.get("properties", {})
        part["properties"] = {name: _property(rule) for name, rule in properties.items()}
    variable = {"type": "string", "pattern": r"\$\{"}
    schema["$defs"] = {**schema.get("$defs", {}), "Variable": variable}
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"proxhpc {model.__name__.lower()}",
    }
    return head | schema


def _property(rule: dict[str, Any]) -> dict[str, Any]:
    """Return the rule of one key, without pydantic's titles and with `${VAR}` allowed."""
    notes = {k: rule[k] for k in ("description", "default") if k in rule}
    if "description" in notes:
        notes["description"] = " ".join(notes["description"].split())
    check = {k: v for k, v in rule.items() if k not in (*notes, "title")}
    options = check.get("anyOf", [check])
    if any("enum" in o or o.get("type") in ("integer", "number", "boolean") for o in options):
        check = {"anyOf": [*options, {"$ref": "#/$defs/Variable"}]}
    return notes | check


def filled(page: Path, tables: dict[str, str]) -> str:
    """Return a page with its tables renewed."""
    text = page.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- generated: {name} -->\n", f"<!-- end: {name} -->"
        try:
            (before, _), (_, after) = text.split(begin), text.split(end)
        except ValueError:
            sys.exit(f"{page}: needs one pair of {begin.strip()} and {end}")
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def sections(schema: dict[str, Any]) -> str:
    """Return one table for the top level and one for each section, in the schema's order."""
    blocks = [f"### Top level\n\n{table(schema)}"]

    def add(part: dict[str, Any], path: str) -> None:
        for name, rule in part["properties"].items():
            for reference in dict.fromkeys(references(rule)):
                inner = schema["$defs"][reference]
                if "description" in inner and "properties" in inner and reference not in PHASES:
                    about = " ".join(inner["description"].split())
                    blocks.append(f"### `{path}{name}`\n\n{about}\n\n{table(inner)}")
                    add(inner, f"{path}{name}.")

    add(schema, "")
    return "\n\n".join(blocks) + "\n"


def table(part: dict[str, Any]) -> str:
    """Return the keys of one section as a Markdown table."""
    rows = ["| Key | Value | Default | Meaning |", "|---|---|---|---|"]
    for name, rule in part["properties"].items():
        about = rule.get("description", "") or f"See [`{name}`](#{name}) below."
        default = default_of(rule, required=name in part.get("required", ()))
        cells = (f"`{name}`", value_of(rule), default, about)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def value_of(rule: dict[str, Any]) -> str:
    """Return in words which values a key takes."""
    if "$ref" in rule:
        return "" if rule["$ref"].endswith("/Variable") else "section"
    if "anyOf" in rule:
        return " or ".join(dict.fromkeys(filter(None, map(value_of, rule["anyOf"]))))
    if "enum" in rule or "const" in rule:
        return ", ".join(f"`{choice}`" for choice in rule.get("enum", [rule.get("const")]))
    if rule.get("type") == "array":
        return f"list of {value_of(rule['items'])}".replace("section", "sections")
    if rule.get("type") == "null":
        return ""
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤"}
    bounds = ", ".join(f"{sign} {rule[k]}" for k, sign in limits.items() if k in rule)
    if "_][0-9]" in rule.get("pattern", "") or "[0-9_]*" in rule.get("pattern", ""):
        return "with a unit"
    return _WORDS.get(rule.get("type", ""), "any") + (f" {bounds}" if bounds else "")


def default_of(rule: dict[str, Any], *, required: bool) -> str:
    """Return a key's default as it would be written."""
    value = rule.get("default")
    if required:
        return "**required**"
    if value is None or isinstance(value, dict):
        return ""
    if "KiB" in json.dumps(rule) and value % (1 << 20) == 0:
        return f"`{value >> 20}MiB`"
    if isinstance(value, list):
        if not value or isinstance(value[0], dict):
            return ""  # the meaning says it
        if value == rule.get("items", {}).get("enum"):
            return "all"
        return f"`{value[0] if len(value) == 1 else json.dumps(value)}`"
    return f"`{json.dumps(value).strip(chr(34))}`"


def documents() -> str:
    """Return the sections of docs/json.md: one for each document, one for each object in it."""
    described: set[str] = set()
    blocks = [
        block
        for command, models in DOCUMENTS.items()
        for model in models
        for block in document(command, model, described)
    ]
    return "\n\n".join(blocks) + "\n"


def document(command: str, model: type[OutputModel], described: set[str]) -> Iterator[str]:
    """Yield the sections of one document, without the objects already `described`."""
    schema = described_schema(model, "serialization")
    name = schema["properties"]["format"]["const"]
    yield f"## `{command} --json`: `{name}`\n\n{about(schema)}\n\n{key_table(schema, schema)}"
    waiting = references(schema["properties"])
    while waiting:
        title = waiting.pop(0)
        if title in described:
            continue
        described.add(title)
        part = schema["$defs"][title]
        waiting = references(part["properties"]) + waiting
        yield f"### {title}\n\n{about(part)}\n\n{key_table(part, schema)}"


def references(part: object) -> list[str]:
    """Return the names of the objects that a part of a schema mentions, in order."""
    return re.findall(r'"#/\$defs/(\w+)"', json.dumps(part))


def about(part: dict[str, Any]) -> str:
    """Return the description of an object, whose paragraphs stay."""
    paragraphs = part["description"].split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def key_table(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """Return the keys of a JSON object, a part of `schema`, as a Markdown table."""
    rows = ["| Key | Type | Meaning |", "|---|---|---|"]
    for name in sorted(part["properties"], key="format".__ne__):  # as `to_json` prints them
        rule = part["properties"][name]
        # pydantic leaves out a description that is also that of the key's object
        titles = [] if "description" in rule else references(rule)
        meaning = schema["$defs"][titles[0]]["description"] if titles else rule["description"]
        rows.append(f"| `{name}` | {json_type(rule)} | {' '.join(meaning.split())} |")
    return "\n".join(rows)


def json_type(rule: dict[str, Any]) -> str:
    """Return in words which values a key of a JSON document has."""
    if "$ref" in rule:
        title = rule["$ref"].rpartition("/")[2]
        return f"[{title}](#{title.lower()})"
    if "anyOf" in rule:
        return " or ".join(map(json_type, rule["anyOf"]))
    if "const" in rule or "enum" in rule:
        return ", ".join(f'`"{choice}"`' for choice in rule.get("enum", [rule.get("const")]))
    if "prefixItems" in rule:
        return f"list: {', '.join(map(json_type, rule['prefixItems']))}"
    if rule.get("type") == "array":
        return f"list of {json_type(rule['items'])}"
    if rule.get("type") == "object":
        return f"object: name to {json_type(rule['additionalProperties'])}"
    return "null" if rule.get("type") == "null" else _WORDS[rule["type"]]


def managed() -> str:
    """Return the sbatch options that the launcher manages as a Markdown table."""
    rows = ["| Option | Instead |", "|---|---|"]
    rows += [f"| `{name}` | {advice} |" for name, advice in sorted(MANAGED_SBATCH_OPTIONS.items())]
    return "\n".join(rows) + "\n"


def presets() -> str:
    """Return the presets of trainings as a Markdown table."""
    rows = ["| Preset | Parameters | Tokens | Tokens of a step | Learning rate | Source |"]
    rows.append("|---|---|---|---|---|---|")
    for name, keys in training_presets().items():
        training = Training.model_validate(keys)
        size = "as `base`"
        if training.model:
            config = {"vocab_size": training.vocabulary, **training.model}
            size = f"{ModelShape.from_config(config).parameters / 1e6:,.1f}M"
        step = training.batch * training.context
        cells = (f"`{name}`", size, f"{training.tokens:,}", f"{step:,}")
        rate = f"{training.learning_rate:g} → {training.min_learning_rate:g}"
        rows.append(f"| {' | '.join((*cells, rate, training.source or ''))} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Write or check the files."""
    stale = [p for p, text in contents().items() if not p.exists() or p.read_text("utf-8") != text]
    if "--check" in sys.argv[1:]:
        sys.exit("\n".join(f"{p.relative_to(ROOT)} is not current" for p in stale) or 0)
    for path, text in contents().items():
        if path in stale:
            path.write_text(text, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
