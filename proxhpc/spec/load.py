"""Load YAML files into pydantic models; each problem is one line with file, line and key."""

import glob
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar, get_args

import xxhash
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

from proxhpc.account.quantity import quantity
from proxhpc.errors import UserError
from proxhpc.spec.shipped import SHIPPED_VARIABLE, base_folder, shipped_folder, shipped_kind
from proxhpc.spec.yaml_lines import Key, Problem, Tree, dotted, nearest, parse, quoted

Model = TypeVar("Model", bound=BaseModel)

MAX_PROBLEMS = 20


class Config(BaseModel):
    """Base of the models of files that people write: frozen, without unknown keys.

    The docstring below a field describes its key in the schemas that tools/write_schemas.py writes.
    """

    # A model is built when it is first used: most commands need few of them.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def _problems(self) -> Iterable[tuple[Key, str]]:
        """Return what is wrong with keys that are valid by themselves, each with its key."""
        return ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        refuse(self._problems())
        return self


class KeyProblems(ValueError):  # noqa: N818 - pydantic expects a ValueError of its validators
    """Problems that involve several keys, each with its key below the validated model."""

    def __init__(self, *problems: tuple[Key, str]) -> None:
        super().__init__(
            "; ".join(f"{dotted(key)}: {text}".removeprefix(": ") for key, text in problems)
        )
        self.problems = problems


def refuse(problems: Iterable[tuple[Key, str]]) -> None:
    """Raise KeyProblems if there is any problem."""
    if listed := tuple(problems):
        raise KeyProblems(*listed)


def _scaled(units: Mapping[str, int], example: str) -> tuple[Strict, Any, Any, Any]:
    """Return annotations for a positive whole number with an optional unit."""
    names = [unit for unit in units if unit]
    pattern = rf"([0-9][0-9_]*(?:\.[0-9]+)?) ?({'|'.join(names)})?"

    def parse_scaled(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(pattern, value[:40])
        exact = Decimal(match[1].replace("_", "")) * units[match[2] or ""] if match else None
        if exact is None or exact != int(exact):
            choices = ", ".join(names)
            raise ValueError(
                f"{quoted(value)} is not a whole number like {example} (units: {choices})"
            )
        return int(exact)

    text = {"type": "string", "pattern": rf"^[0-9][0-9_]*(\.[0-9]+)? ?({'|'.join(names)})?$"}
    schema = WithJsonSchema({"anyOf": [{"type": "integer", "exclusiveMinimum": 0}, text]})
    return Strict(), Field(gt=0), BeforeValidator(parse_scaled), schema


_COUNTS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_SIZES = {"": 1, "B": 1}
_SIZES |= {f"{p}B": 1000**n for n, p in enumerate("KMGT", 1)}
_SIZES |= {f"{p}iB": 1024**n for n, p in enumerate("KMGT", 1)}


def _one_line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"must be one line of text, not {quoted(text)}")
    return text


def _hashed_seed(seed: int) -> int:
    """Return a seed of at most 64 bits, which hash functions and JSON take."""
    return seed if seed < 1 << 64 else xxhash.xxh3_64_intdigest(str(seed).encode())


Text = Annotated[str, AfterValidator(_one_line), Field(min_length=1)]
Flag = Annotated[bool, Strict()]
Whole = Annotated[int, Strict(), Field(ge=0)]
Seed = Annotated[Whole, AfterValidator(_hashed_seed)]
Positive = Annotated[int, Strict(), Field(gt=0)]
Seconds = Annotated[float, Strict(), Field(gt=0)]
Count = Annotated[int, *_scaled(_COUNTS, "20M")]
Size = Annotated[int, *_scaled(_SIZES, "512MiB")]
ONE_OR_MORE = BeforeValidator(
    lambda value: (value,) if isinstance(value, str) else value,
    json_schema_input_type=Text | list[Text],
)


def matching(pattern: str, wanted: str) -> tuple[AfterValidator, FieldInfo]:
    """Return annotations for a string that must match `pattern`, described by `wanted`."""

    def check(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"must be {wanted}, not {quoted(text)}")
        return text

    return AfterValidator(check), Field(json_schema_extra={"pattern": f"^{pattern}$"})


Slug = Annotated[
    str, *matching(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "up to 64 letters, digits, '.', '_' or '-'")
]


def base_of(info: ValidationInfo) -> Path | None:
    """Return the directory of the file being loaded, where relative paths start, if any."""
    base = (info.context or {}).get("base")
    return base if isinstance(base, Path) else None


def absolute(text: str, info: ValidationInfo, *, pattern: bool = False) -> str:
    """Return a path or glob pattern made absolute from `base_of(info)`, with `~` expanded.

    Symbolic links are resolved in the base only: a virtual environment's python is a link itself.
    """
    if is_url(text):
        raise ValueError(f"{quoted(text)} is not a path: download the files, and name the folder")
    if text.startswith("~"):
        text = os.path.expanduser(text)
    if (base := base_of(info)) is None:
        return text
    root = os.path.realpath(base)
    return os.path.normpath(os.path.join(glob.escape(root) if pattern else root, text))


def is_url(text: str) -> bool:
    """Return whether a path begins with a scheme, as in `s3://`."""
    return bool(re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text))


def _absolute_or_url(text: str, info: ValidationInfo) -> str:
    if not is_url(text):
        return absolute(text, info, pattern=True)
    scheme, _, rest = text.partition("://")
    if "@" in rest.partition("/")[0]:
        raise ValueError("a URL with a name or password: put them where the store's client looks")
    if "::" in text or (scheme.lower() in ("http", "https") and "?" in text):
        raise ValueError(f"{quoted(text)}: a URL must be one address without a query")
    if ".." in rest.split("/"):
        raise ValueError(f"{quoted(text)}: a URL cannot have a part `..`")
    return scheme.lower() + "://" + rest


FilePath = Annotated[Text, AfterValidator(absolute)]
GlobPattern = Annotated[Text, AfterValidator(partial(absolute, pattern=True))]
PatternOrUrl = Annotated[Text, AfterValidator(_absolute_or_url)]


def load_yaml(
    path: Path,
    model: type[Model],
    *,
    environ: Mapping[str, str] | None = None,
    verbatim: Collection[str] = (),
) -> Model:
    """Return the model that a YAML file describes, with absolute paths and `${VAR}` expanded.

    Strings below the keys in `verbatim` are not expanded. UserError lists all problems.
    """
    variables = {SHIPPED_VARIABLE: str(shipped_folder())}
    tree = parse(path, variables | dict(os.environ if environ is None else environ), verbatim)
    if not tree.problems and not isinstance(tree.data, dict):
        text = f"must be a mapping of keys, not {quoted(tree.data)}"
        tree.problems.append(Problem(1, (), text))
    if tree.problems:
        raise _user_error(path, tree.problems)
    try:
        return model.model_validate(tree.data, context={"base": base_folder(path)})
    except ValidationError as error:
        raise _user_error(path, _explain(error, model, tree)) from None


def _user_error(path: Path, problems: Sequence[Problem]) -> UserError:
    ordered = sorted(problems, key=lambda p: p.line)
    lines = [problem.render(path) for problem in ordered[:MAX_PROBLEMS]]
    if len(ordered) > MAX_PROBLEMS:
        lines.append(f"{path}: and {quantity(len(ordered) - MAX_PROBLEMS, 'more problem')}")
    kind = shipped_kind(path)
    hint = f"to change a copy of this file: proxhpc init {kind} {path.stem}" if kind else ""
    return UserError("\n".join(dict.fromkeys(lines)), hint=hint)


def _explain(error: ValidationError, model: type[BaseModel], tree: Tree) -> list[Problem]:
    problems = []
    for detail in error.errors(include_url=False):
        if is_consequence(detail):
            continue
        cause = detail.get("ctx", {}).get("error")
        text = _wording(detail, model, _file_key(detail["loc"], tree.data))
        parts = cause.problems if isinstance(cause, KeyProblems) else (((), text),)
        for below, what in parts:
            key = _file_key((*detail["loc"], *below), tree.data)
            nearest_key = next(key[:n] for n in range(len(key), -1, -1) if key[:n] in tree.lines)
            problems.append(Problem(tree.lines[nearest_key], key, what))
    return problems


def _file_key(loc: Key, data: Any) -> Key:
    """Return pydantic's location as a key of the file: without the names of union members."""
    key: Key = ()
    for n, part in enumerate(loc):
        exists = isinstance(data, dict) and part in data
        exists = exists or (isinstance(data, list) and isinstance(part, int) and part < len(data))
        if exists:
            data = data[part]
        if exists or (n == len(loc) - 1 and isinstance(data, dict)):
            key = (*key, part)
    return key


def is_consequence(detail: Mapping[str, Any]) -> bool:
    """Return whether an error only follows from another, or is about another union member."""
    kind, value, ctx = detail["type"], detail.get("input"), detail.get("ctx", {})
    if kind == "too_short":  # pydantic does not count items that failed
        return isinstance(value, list | tuple) and len(value) >= ctx["min_length"]
    return kind == "default_factory_not_called" or (
        kind == "literal_error" and isinstance(value, dict) and "[" in str(detail["loc"][-1])
    )


def reasons(error: ValidationError) -> str:
    """Return the problems of a model that no file describes, without those that only follow."""
    details = (detail for detail in error.errors(include_url=False) if not is_consequence(detail))
    return "; ".join(str(detail["msg"]).removeprefix("Value error, ").strip() for detail in details)


def _wording(detail: Mapping[str, Any], model: type[BaseModel], key: Key) -> str:
    kind, value, ctx = detail["type"], detail.get("input"), detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_key(model, key)
    if kind == "missing":
        return "required, but not given"
    if kind == "value_error":
        return str(ctx["error"])
    if kind in ("too_short", "too_long"):
        bound = "at least" if kind == "too_short" else "at most"
        limit: int = ctx["min_length"] if kind == "too_short" else ctx["max_length"]
        return f"must have {bound} {quantity(limit, 'item')}, not {ctx['actual_length']}"
    if kind == "literal_error":
        choices = re.findall(r"'([^']*)'", ctx["expected"]) or [ctx["expected"]]
        guess = nearest(value, choices) if isinstance(value, str) else ""
        one_of = "one of " * (len(choices) > 1)
        return f"must be {one_of}{', '.join(choices)}, not {quoted(value)}{guess}"
    if kind == "string_type":
        quote = "; put it in quotes" if isinstance(value, int | float) else ""
        return f"must be text, not {quoted(value)}{quote}"
    wanted = {
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "finite_number": "a finite number",
        "bool_type": "true or false",
        "model_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "tuple_type": "a list",
        "list_type": "a list",
        "path_type": "a path",
    }.get(kind)
    if wanted is None and "input should be " in detail["msg"].lower():
        wanted = re.sub(r"(?i)^.*?input should be ", "", detail["msg"])
    return f"must be {wanted}, not {quoted(value)}" if wanted else str(detail["msg"])


def _unknown_key(model: type[BaseModel], key: Key) -> str:
    name, keys = str(key[-1]), sorted(_known_keys(model, key[:-1]))
    guess = nearest(name, keys) or _same_name_elsewhere(model, name)
    return f"unknown key{guess} (keys here: {', '.join(keys)})"


def _known_keys(model: type[BaseModel], key: Key) -> set[str]:
    """Return the keys that the mapping at `key` may hold; empty where any key is allowed."""
    models = [model]
    for part in key:
        if isinstance(part, str):
            fields = (m.model_fields.get(part) for m in models)
            models = [m for f in fields if f is not None for m in _models_in(f.annotation)]
    return {name for m in models for name in m.model_fields}


def _same_name_elsewhere(model: type[BaseModel], name: str, above: Key = ()) -> str:
    """Return `; did you mean "corpus.text"?` if another section has a key `name`, or ""."""
    for field, info in model.model_fields.items():
        for inner in _models_in(info.annotation):
            if name in inner.model_fields:
                return f'; did you mean "{dotted((*above, field, name))}"?'
            if guess := _same_name_elsewhere(inner, name, (*above, field)):
                return guess
    return ""


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models inside a type such as `tuple[Stage, ...]` or `Comparison | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
