"""YAML as plain data, with variables expanded and the line of every key."""

import difflib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from proxhpc.errors import UserError

Key = tuple[str | int, ...]

_MAX_YAML_BYTES = 1 << 20  # a manifest is a page; do not parse a corpus given by mistake
_MAX_DEPTH = 32  # the YAML composer recurses

_CORE = "tag:yaml.org,2002:"
_VARIABLE = re.compile(r"\$(?:\$|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^{}$]*))?\})?")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong in a file."""

    line: int
    key: Key
    text: str

    def render(self, path: Path) -> str:
        """Return `file:line: key: text`."""
        where = f"{path}:{self.line}: " if self.line else f"{path}: "
        return where + (f"{dotted(self.key)}: " if self.key else "") + self.text


def dotted(key: Key) -> str:
    """Return a key as people write it: `stages[0].model`."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            word = part if re.fullmatch(r"[\w.-]{1,80}", part) else quoted(part)
            text += f".{word}" if text else word
    return text


def quoted(value: object, limit: int = 60) -> str:
    """Return a short form of a value that is safe to print on a terminal."""
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    if isinstance(value, str):
        value = value if len(value) <= limit else value[: limit - 3] + "..."
        return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value) + '"'
    try:
        return json.dumps(value)[:limit]
    except (TypeError, ValueError):
        return type(value).__name__


def nearest(word: str, known: Collection[str]) -> str:
    """Return `; did you mean "x"?` with the closest of `known`, or ""."""
    close = difflib.get_close_matches(word.lower().replace("-", "_"), list(known), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""


def parse(path: Path, environ: Mapping[str, str], verbatim: Collection[str] = ()) -> "Tree":
    """Return the document in a file, with `${VAR}` expanded except below the keys in `verbatim`.

    UserError if there is no document; problems with single keys are in `Tree.problems`.
    """
    tree = Tree(environ, verbatim)
    tree.data = tree.build(_compose(path, _read_text(path)), ())
    return tree


def _read_text(path: Path) -> str:
    """Return a small UTF-8 file; UserError if it is missing, unreadable, too big or not text."""
    try:
        with path.open("rb") as stream:
            raw = stream.read(_MAX_YAML_BYTES + 1)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file", hint=_yaml_files_beside(path)) from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(raw) > _MAX_YAML_BYTES:
        raise UserError(f"{path}: larger than {_MAX_YAML_BYTES} bytes: not a manifest or site file")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = raw[error.start]
        raise UserError(f"{path}:{line}: not UTF-8 text (byte 0x{byte:02x})") from None


def _yaml_files_beside(path: Path) -> str:
    names = sorted(p.name for p in path.parent.glob("*.yaml"))[:12] if path.parent.is_dir() else []
    return f"this folder has {', '.join(names)}" if names else ""


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core schema: `no` is a word, `24:00:00` and `2024-01-01` are text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - shape set by PyYAML
    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node; refuse aliases and deep nesting, which have no bound."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        mark: Any = event.start_mark
        if isinstance(event, yaml.AliasEvent):
            problem = "aliases (*name) are not allowed; write the value out"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            problem = f"nested deeper than {_MAX_DEPTH} levels"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _tag_of(text: str) -> str:
    resolver: Any = _Loader("")
    return str(resolver.resolve(yaml.ScalarNode, text, (True, False)))


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_CORE + _tag, re.compile(rf"^(?:{_pattern})$"), _first)


def _compose(path: Path, text: str) -> yaml.Node:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark, start = error.problem_mark or error.context_mark, error.context_mark
        line = mark.line + 1 if mark else 0
        text = ", ".join(filter(None, (error.context, error.problem)))
        if start and mark and start.line != mark.line:
            text += f" (which begins in line {start.line + 1})"
        raise UserError(Problem(line, (), text).render(path)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, int(error.position)) + 1
        code = f"character U+{error.character:04X} is not allowed"
        raise UserError(Problem(line, (), code).render(path)) from None
    if node is None:
        raise UserError(f"{path}: the file is empty", hint="docs/manifest.md lists every key")
    return node


@dataclass(slots=True)
class Tree:
    """A YAML document: plain data, the line of every key, and problems with single keys."""

    environ: Mapping[str, str]
    verbatim: Collection[str]
    data: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def build(self, node: yaml.Node, key: Key) -> Any:
        """Return the plain data of a node."""
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        try:
            if isinstance(node, yaml.ScalarNode):
                return self._scalar(node, expand=not set(key) & set(self.verbatim))
            if node.tag == f"{_CORE}seq":
                return [self.build(child, (*key, i)) for i, child in enumerate(node.value)]
            if node.tag == f"{_CORE}map":
                return self._mapping(node, key)
            raise ValueError(f"the tag {quoted(node.tag)} is not allowed")
        except UnicodeDecodeError:
            self.problems.append(Problem(line, key, "half of a surrogate pair is no character"))
        except ValueError as error:
            self.problems.append(Problem(line, key, str(error)))
        return None

    def _mapping(self, node: yaml.Node, key: Key) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name, child in node.value:
            line = name.start_mark.line + 1
            if not isinstance(name, yaml.ScalarNode) or name.tag != f"{_CORE}str":
                text = quoted(name.value) if isinstance(name, yaml.ScalarNode) else "a collection"
                self.problems.append(Problem(line, key, f"a key must be a word, not {text}"))
                continue
            child_key = (*key, str(name.value))
            if name.value in data:
                text = f"given twice, first in line {self.lines[child_key]}"
                self.problems.append(Problem(line, child_key, text))
                continue
            self.lines[child_key] = line
            data[name.value] = self.build(child, child_key)
        return data

    def _scalar(self, node: yaml.ScalarNode, *, expand: bool) -> Any:
        # JSON escapes a character beyond U+FFFF as two surrogates, which YAML does not join.
        text, tag = str(node.value).encode("utf-16", "surrogatepass").decode("utf-16"), node.tag
        if tag == f"{_CORE}str":
            expanded = expand_variables(text, self.environ) if expand else text
            if expanded == text or node.style is not None:
                return expanded
            # A plain scalar has the type that the expanded text would have.
            text, tag = expanded, _tag_of(expanded)
        match tag.removeprefix(_CORE):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" | "float" as kind:
                try:
                    return int(text) if kind == "int" else float(text)
                except ValueError:  # an explicit tag, or thousands of digits
                    raise ValueError(f"{quoted(text)} is not a number") from None
        raise ValueError(f"the tag {quoted(tag)} is not allowed")


def expand_variables(text: str, environ: Mapping[str, str]) -> str:
    """Return `text` with `${VAR}` and `${VAR:-default}` replaced and `$$` as a dollar.

    ValueError for a variable without value and default, and for any other `$`.
    """

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        if match[1] is None:
            raise ValueError(
                f"{quoted(text)}: write ${{NAME}}, ${{NAME:-default}}, or $$ for a dollar"
            )
        expanded = environ.get(match[1], "") or match[2]
        if expanded is None:
            raise ValueError(
                f"the environment variable {match[1]} is unset or empty; "
                f"export it, or write ${{{match[1]}:-default}}"
            )
        return str(expanded)

    return _VARIABLE.sub(value, text)
