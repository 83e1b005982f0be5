"""The abstract syntax of programs, shared by both dialects, and its printed form.

`prox` is the paper's dialect: `remove_lines` and `normalize`, with lines numbered from 0. `refinex` is
the dialect of later work: `remove_lines`, `remove_str` and `replace_str`, with lines numbered from
1. Line numbers are stored as written.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

Dialect = Literal["prox", "refinex", "ultrax", "rescraper"]
ProgramEnd = Literal["stop", "length"]
FIRST_LINE: dict[Dialect, int] = {"prox": 0, "refinex": 1, "ultrax": 1, "rescraper": 1}
"""The number of the first line in each dialect."""

VERDICTS = {"keep_doc": False, "drop_doc": True}
"""The functions of the doc level, and whether each drops the document."""
NO_EDIT = ("keep_all", "keep_chunk", "skip_chunk", "untouch_doc")
"""The functions of the chunk level that edit nothing."""

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

_ESCAPE = re.compile(r"\\(?:(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))|([ntr\"'\\]))")
_DECODED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_OPEN_DOUBLE = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)
_SPECIAL = re.compile(r"""([\n\r\t])(?=[A-Za-z])|[\n\r\t\\"]""")
_ENCODED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def _encode(match: re.Match[str]) -> str:
    before_letter = match.group(1)
    return f"\\u{ord(before_letter):04x}" if before_letter else _ENCODED[match.group()]


def _decode(match: re.Match[str]) -> str:
    code, byte, letter = match.groups()
    if letter is not None:
        return _DECODED[letter]
    char = chr(int(code or byte, 16))
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
        r"""The string with escapes decoded: `\n`, `\t`, `\r`, quotes, backslash and `\uXXXX`.

        Any other backslash is literal, and so is the escape of a lone surrogate.
        """
        return _ESCAPE.sub(_decode, self.body) if "\\" in self.body else self.body

    @property
    def is_ambiguous(self) -> bool:
        """True if one of its escapes could also start the name of a LaTeX command."""
        body = self.body
        return any(
            match.group(3) in ("n", "t", "r") and body[match.end() : match.end() + 1].isalpha()
            for match in _ESCAPE.finditer(body)
        )

    def __str__(self) -> str:
        quote = "'" if _OPEN_DOUBLE.match(self.body) else '"'
        return f"{quote}{self.body}{quote}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One call, at characters [start, stop) of the program's text; (0, 0) if it has no text."""

    start: int = field(default=0, compare=False, kw_only=True)
    stop: int = field(default=0, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Verdict(Statement):
    """`keep_doc()` or `drop_doc()`."""

    drop: bool

    def __str__(self) -> str:
        return "drop_doc()" if self.drop else "keep_doc()"


@dataclass(frozen=True, slots=True)
class Keep(Statement):
    """No edit: a call of one of NO_EDIT."""

    name: str = field(default="keep_all", compare=False)

    def __str__(self) -> str:
        return f"{self.name}()"


@dataclass(frozen=True, slots=True)
class RemoveLines(Statement):
    """Remove the lines `first` to `last`, inclusive."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"remove_lines(start={self.first}, end={self.last})"


@dataclass(frozen=True, slots=True)
class RemoveAll(Statement):
    """Remove all lines of the window: `remove_all()` or `remove_lines(all=True)`."""

    def __str__(self) -> str:
        return "remove_all()"


@dataclass(frozen=True, slots=True)
class Normalize(Statement):
    """Replace all occurrences of `source` in the window by `target` (prox)."""

    source: Quoted
    target: Quoted

    def __str__(self) -> str:
        return f"normalize(source_str={self.source}, target_str={self.target})"


@dataclass(frozen=True, slots=True)
class RemoveStr(Statement):
    """Remove the only occurrence of `source` on one line (refinex)."""

    line: int
    source: Quoted

    def __str__(self) -> str:
        return f"remove_str({self.line}, {self.source})"


@dataclass(frozen=True, slots=True)
class ReplaceStr(Statement):
    """Replace the only occurrence of `source` on one line by `target` (refinex)."""

    line: int
    source: Quoted
    target: Quoted

    def __str__(self) -> str:
        return f"replace_str({self.line}, {self.source}, {self.target})"


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
    if dialect == "prox":
        return str(program)
    return "\n".join(
        f"remove_lines({s.first}, {s.last})" if isinstance(s, RemoveLines) else str(s)
        for s in program.statements
    )
