"""The abstract syntax of programs, which all dialects share, and their printed forms.

Line numbers and strings are stored as written; `DIALECTS` says what they mean in each dialect.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from proxhpc.program.lines import runs

Dialect = Literal["prox", "refinex", "ultrax", "rescraper"]
ProgramEnd = Literal["stop", "length"]
FIRST_LINE: dict[Dialect, int] = {"prox": 0, "refinex": 1, "ultrax": 1, "rescraper": 1}
"""The number of the first line in each dialect."""

VERDICTS = {"keep_doc": False, "drop_doc": True}
"""The functions of the doc level, and whether each drops the document."""
NO_EDIT = ("keep_all", "keep_chunk", "skip_chunk", "untouch_doc")
"""The functions of the chunk level that edit nothing."""


@dataclass(frozen=True, slots=True)
class DialectRules:
    """What the programs of a dialect mean beside their syntax.

    `no_edit` is the program that edits nothing. `last_calls` end an answer: what follows them does
    not matter. With `clips`, a range may go beyond the lines that the model saw. With `escaped`,
    a backslash in a string always starts an escape; otherwise it may be part of a LaTeX command.
    With `first_match`, a string that occurs several times on its line means the first of them;
    otherwise it is ambiguous. `compacts` says which lines go with an edit: those that it leaves
    without text, or all blank lines of its window. With `skips_prose`, text that is no call is no
    error.
    """

    no_edit: str
    last_calls: tuple[str, ...]
    clips: bool = False
    escaped: bool = False
    first_match: bool = False
    compacts: Literal["", "emptied", "blank"] = ""
    skips_prose: bool = False


_NO_EDIT_CALLS = tuple(f"{name}()" for name in NO_EDIT)
DIALECTS: dict[Dialect, DialectRules] = {
    "prox": DialectRules("untouch_doc()", _NO_EDIT_CALLS),
    "refinex": DialectRules("keep_all()", _NO_EDIT_CALLS),
    "ultrax": DialectRules(
        "keep_all()",
        ("keep_all()", "remove_all()"),
        clips=True,
        escaped=True,
        compacts="blank",
        skips_prose=True,
    ),
    "rescraper": DialectRules(
        "<keep>\n<extract>\n<keep>",
        ("<delete>", "<rewrite>"),
        clips=True,
        escaped=True,
        first_match=True,
        compacts="emptied",
    ),
}
"""The rules of each dialect: of ProX, RefineX, UltraX and ReScraper."""


def last_calls(level: str, dialect: Dialect) -> tuple[str, ...]:
    """Return the strings that end an answer: what a model writes after them does not matter."""
    if level == "doc":
        return tuple(f"{name}()" for name in VERDICTS)
    return DIALECTS[dialect].last_calls


ParseReason = Literal[
    "not_a_call",
    "unknown_call",
    "wrong_level",
    "wrong_dialect",
    "bad_arguments",
    "trailing_text",
    "unterminated",
]
"""Why the parser rejects a statement; `docs/language.md` has an example of each."""

_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(
    rf"\\(?:u({_HEX}{{4}})|x({_HEX}{{2}})|U(00(?:0{_HEX}|10){_HEX}{{4}})|([ntr\"'\\]))"
)
_DECODED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_OPEN_DOUBLE = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)
_SPECIAL = re.compile(r"""([\n\r\t])(?=[A-Za-z])|[\n\r\t\\"]""")
_ENCODED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def _encode(match: re.Match[str]) -> str:
    before_letter = match.group(1)
    return f"\\u{ord(before_letter):04x}" if before_letter else _ENCODED[match.group()]


def _decode(match: re.Match[str]) -> str:
    code, byte, long_code, letter = match.groups()
    if letter is not None:
        return _DECODED[letter]
    char = chr(int(code or byte or long_code, 16))
    return match.group() if "\ud800" <= char <= "\udfff" else char


@dataclass(frozen=True, slots=True)
class Quoted:
    r"""A string in a program; `body` is the text between its quotes, verbatim.

    Models write `"\theta"` both for a tab followed by `heta` and for the Greek letter in LaTeX.
    Both readings are kept, and the executor uses the one that the text contains.
    """

    body: str

    @classmethod
    def of(cls, value: str) -> "Quoted":
        """Return the shortest string literal whose only reading is `value`."""
        body = _SPECIAL.sub(_encode, value)
        return cls(body if "'" in value else body.replace('\\"', '"'))

    @property
    def value(self) -> str:
        r"""The string with escapes decoded: `\n`, `\t`, `\r`, quotes, backslash, `\xXX`, `\uXXXX`.

        Any other backslash is literal, and so is the escape of a lone surrogate.
        """
        return _ESCAPE.sub(_decode, self.body) if "\\" in self.body else self.body

    @property
    def is_ambiguous(self) -> bool:
        """True if one of its escapes could also start the name of a LaTeX command."""
        body = self.body
        return any(
            match.group(4) in ("n", "t", "r") and body[match.end() : match.end() + 1].isalpha()
            for match in _ESCAPE.finditer(body)
        )

    def __str__(self) -> str:
        quote = "'" if _OPEN_DOUBLE.match(self.body) else '"'
        return f"{quote}{self.body}{quote}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One call, at characters [start, stop) of the program's text; (0, 0) if it has no text.

    `form` is its printed form.
    """

    form: ClassVar[str]
    start: int = field(default=0, compare=False, kw_only=True)
    stop: int = field(default=0, compare=False, kw_only=True)

    def __str__(self) -> str:
        return self.form.format(self)


@dataclass(frozen=True, slots=True)
class Verdict(Statement):
    """`keep_doc()` or `drop_doc()`."""

    drop: bool

    def __str__(self) -> str:
        return "drop_doc()" if self.drop else "keep_doc()"


@dataclass(frozen=True, slots=True)
class Keep(Statement):
    """No edit: a call of one of NO_EDIT."""

    form = "{0.name}()"
    name: str = field(default="keep_all", compare=False)


@dataclass(frozen=True, slots=True)
class RemoveLines(Statement):
    """Remove the lines `first` to `last`, inclusive."""

    form = "remove_lines(start={0.first}, end={0.last})"
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class RemoveAll(Statement):
    """Remove all lines of the window: `remove_all()` or `remove_lines(all=True)`."""

    form = "remove_all()"


@dataclass(frozen=True, slots=True)
class Normalize(Statement):
    """Replace all occurrences of `source` in the window by `target` (prox)."""

    form = "normalize(source_str={0.source}, target_str={0.target})"
    source: Quoted
    target: Quoted


@dataclass(frozen=True, slots=True)
class RemoveStr(Statement):
    """Remove an occurrence of `source` that starts on one line (refinex, rescraper)."""

    form = "remove_str({0.line}, {0.source})"
    line: int
    source: Quoted


@dataclass(frozen=True, slots=True)
class ReplaceStr(Statement):
    """Replace the only occurrence of `source` on one line by `target` (ultrax)."""

    form = "replace_str({0.line}, {0.source}, {0.target})"
    line: int
    source: Quoted
    target: Quoted


@dataclass(frozen=True, slots=True)
class AddLine(Statement):
    """Insert `text` after the line `base`; lines with the same base in the order of `order`."""

    form = "add_line({0.base}, {0.order}, {0.text})"
    base: int
    order: int
    text: Quoted


@dataclass(frozen=True, slots=True)
class Rewrite(Statement):
    """The document is replaced by text of the model, which is not accepted (rescraper)."""

    form = "rewrite()"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Characters [start, stop) of a program that are not a statement, and the reason."""

    reason: ParseReason
    start: int = field(default=0, compare=False)
    stop: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """A parsed program: its statements in order, and its rejected parts.

    `truncated` means that the token limit broke off the last call, which is then in neither.
    """

    statements: tuple[Statement, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    truncated: bool = False

    def __str__(self) -> str:
        return "\n".join(map(str, self.statements))


def format_program(program: Program, dialect: Dialect) -> str:
    """Return the text of a program, in the form that models of the dialect are trained on."""
    if program.statements and all(isinstance(item, Keep) for item in program.statements):
        return DIALECTS[dialect].no_edit
    if dialect == "rescraper":
        return _tagged(program)
    if dialect == "prox":
        return str(program)
    return "\n".join(_positional(statement, dialect) for statement in program.statements)


def removal_text(lines: Iterable[int]) -> str:
    """Return ProX's program that removes lines with these numbers, a statement for each run."""
    return "\n".join(str(RemoveLines(first, stop - 1)) for first, stop in runs(lines))


def _positional(statement: Statement, dialect: Dialect) -> str:
    match statement:
        case RemoveLines(first, last):
            return f"remove_lines({first}, {last})"
        case ReplaceStr(line, source, target) if dialect == "ultrax":
            return f"replace_str({line}, {source.value!r}, {target.value!r})"
        case AddLine(base, order, text) if dialect == "ultrax":
            return f"add_line({base}, {order}, {text.value + chr(10)!r})"
    return str(statement)


def _tagged(program: Program) -> str:
    """Return a program as lines: a decision, the removed lines, the decision, the strings."""
    lines, strings = list[str](), list[str]()
    for statement in program.statements:
        match statement:
            case RemoveLines(first, last):
                lines.append(f"rm {first}" if first == last else f"rm {first}-{last}")
            case RemoveStr(line, source):
                strings.append(f"sub {line}: {json.dumps(source.value, ensure_ascii=False)}")
            case RemoveAll():
                return "<delete>\n<extract>\n<delete>"
    decision = "<edit>" if strings else "<keep>"
    return "\n".join([decision, "<extract>", *lines, decision, *strings])
