"""The abstract syntax of refining programs, one for every dialect, and its printed form.

Two dialects share it. `prox` is the paper's: `remove_lines`, `normalize`, lines counted from 0.
`line` is that of the follow-up works: `remove_lines`, `remove_str`, `replace_str`, lines counted
from 1. Line numbers are kept as written; the executor knows what they count.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

Dialect = Literal["prox", "line"]
ProgramEnd = Literal["stop", "length"]
FIRST_LINE: dict[Dialect, int] = {"prox": 0, "line": 1}
"""The number of a text's first line, by dialect."""

VERDICTS = {"keep_doc": False, "drop_doc": True}
"""The doc level's functions, and whether each drops."""
NO_EDIT = ("keep_all", "keep_chunk", "skip_chunk", "untouch_doc")
"""The chunk level's functions that edit nothing."""

ParseReason = Literal[
    "not_a_call",
    "unknown_call",
    "wrong_level",
    "wrong_dialect",
    "bad_arguments",
    "trailing_text",
    "unterminated",
]
"""Why the parser rejects a statement; `docs/language.md` shows one of each."""

_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|([ntr\"'\\]))")
_DECODED = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "'": "'", "\\": "\\"}
_OPEN_DOUBLE = re.compile(r'(?:[^"\\]|\\.)*+"', re.DOTALL)
_SPECIAL = re.compile(r"""([\n\r\t])(?=[A-Za-z])|[\n\r\t\\"]""")
_ENCODED = {"\n": "\\n", "\t": "\\t", "\r": "\\r", '"': '\\"', "\\": "\\\\"}


def _encode(match: re.Match[str]) -> str:
    before_letter = match.group(1)
    return f"\\u{ord(before_letter):04x}" if before_letter else _ENCODED[match.group()]


def _decode(match: re.Match[str]) -> str:
    code, letter = match.groups()
    if letter is not None:
        return _DECODED[letter]
    char = chr(int(code, 16))
    return match.group() if "\ud800" <= char <= "\udfff" else char


@dataclass(frozen=True, slots=True)
class Quoted:
    r"""A string of a program. `body` is what stands between the quotes, verbatim.

    Models write `"\theta"` both for a tab before `heta` and for the Greek letter's LaTeX name,
    so both readings are kept and the executor looks which of them the text has.
    """

    body: str

    @classmethod
    def of(cls, value: str) -> "Quoted":
        """Return the shortest literal that means `value`, and nothing else."""
        body = _SPECIAL.sub(_encode, value)
        return cls(body if "'" in value else body.replace('\\"', '"'))

    @property
    def value(self) -> str:
        """The string meant: escapes of newline, tab, return, quotes, backslash, u+hex decoded.

        Any other backslash stands for itself; so does an escaped lone surrogate.
        """
        return _ESCAPE.sub(_decode, self.body) if "\\" in self.body else self.body

    @property
    def is_ambiguous(self) -> bool:
        """Whether an escape in it may as well begin the name of a LaTeX command."""
        body = self.body
        return any(
            match.group(2) in ("n", "t", "r") and body[match.end() : match.end() + 1].isalpha()
            for match in _ESCAPE.finditer(body)
        )

    def __str__(self) -> str:
        quote = "'" if _OPEN_DOUBLE.match(self.body) else '"'
        return f"{quote}{self.body}{quote}"


@dataclass(frozen=True, slots=True)
class Statement:
    """One call. It came from characters [start, stop) of the program, (0, 0) if from none."""

    start: int = field(default=0, compare=False, kw_only=True)
    stop: int = field(default=0, compare=False, kw_only=True)


@dataclass(frozen=True, slots=True)
class Verdict(Statement):
    """`keep_doc()` or `drop_doc()`, of a document as a whole."""

    drop: bool

    def __str__(self) -> str:
        return "drop_doc()" if self.drop else "keep_doc()"


@dataclass(frozen=True, slots=True)
class Keep(Statement):
    """No edit, by one of the names in NO_EDIT."""

    name: str = field(default="keep_all", compare=False)

    def __str__(self) -> str:
        return f"{self.name}()"


@dataclass(frozen=True, slots=True)
class RemoveLines(Statement):
    """Remove the lines `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return f"remove_lines(start={self.first}, end={self.last})"


@dataclass(frozen=True, slots=True)
class RemoveAll(Statement):
    """Remove every line of the window: `remove_all()`, `remove_lines(all=True)`."""

    def __str__(self) -> str:
        return "remove_all()"


@dataclass(frozen=True, slots=True)
class Normalize(Statement):
    """Replace `source` by `target` wherever the window has it (prox)."""

    source: Quoted
    target: Quoted

    def __str__(self) -> str:
        return f"normalize(source_str={self.source}, target_str={self.target})"


@dataclass(frozen=True, slots=True)
class RemoveStr(Statement):
    """Remove the only `source` on one line (line)."""

    line: int
    source: Quoted

    def __str__(self) -> str:
        return f"remove_str({self.line}, {self.source})"


@dataclass(frozen=True, slots=True)
class ReplaceStr(Statement):
    """Replace the only `source` on one line by `target` (line)."""

    line: int
    source: Quoted
    target: Quoted

    def __str__(self) -> str:
        return f"replace_str({self.line}, {self.source}, {self.target})"


@dataclass(frozen=True, slots=True)
class Rejected:
    """Characters [start, stop) of a program that are no statement, and why."""

    reason: ParseReason
    start: int = field(default=0, compare=False)
    stop: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Program:
    """What a model wrote, read: statements in their order, and what was none.

    `cut` says that the token limit broke the last call off, which is then in neither list.
    """

    statements: tuple[Statement, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    cut: bool = False

    def __str__(self) -> str:
        return "\n".join(map(str, self.statements))


def format_program(program: Program, dialect: Dialect) -> str:
    """Return the program as models of a dialect are trained to write it."""
    if dialect == "prox":
        return str(program)
    return "\n".join(
        f"remove_lines({s.first}, {s.last})" if isinstance(s, RemoveLines) else str(s)
        for s in program.statements
    )
