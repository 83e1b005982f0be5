"""Parses programs with a scanner that knows quotes and reads each character once.

A well-formed call becomes a statement; anything else is rejected with a reason. A malformed call
extends to the end of the line with the error. So does a call that is followed by other text, since
unescaped quotes in a string can make a call seem to end early. An unclosed string extends to the
end of the program.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from proxhpc.program.syntax import (
    NO_EDIT,
    VERDICTS,
    AddLine,
    Dialect,
    Keep,
    Normalize,
    ParseReason,
    Program,
    ProgramEnd,
    Quoted,
    Rejected,
    RemoveAll,
    RemoveLines,
    RemoveStr,
    ReplaceStr,
    Statement,
    Verdict,
)
from proxhpc.program.tagged import parse_tagged

_BODY = {quote: rf"[^{quote}\\]*+(?:\\.[^{quote}\\]*+)*+" for quote in "\"'"}
_NAME = r"[A-Za-z_][A-Za-z0-9_]*+"
_SKIP = re.compile(
    r"(?:[\s;]++|#[^\n]*+|```(?:[\w+-]*+(?=[ \t]*+(?:\n|\Z))|(?:python|py)(?=[ \t]))?+)*+"
)
_CALL = re.compile(rf"({_NAME})[ \t]*+\(")
_EMPTY = re.compile(r"\s*+\)")
_ARGUMENT = re.compile(
    rf"""\s*+(?:({_NAME})\s*+=\s*+)?+
    (?:"({_BODY['"']})"|'({_BODY["'"]})'|(-?[0-9]{{1,9}})(?![0-9])|(True)\b)
    \s*+([,)])""",
    re.DOTALL | re.VERBOSE,
)
# The name and string at the start of a malformed argument; each may be missing.
_READABLE = re.compile(
    rf"""\s*+(?:{_NAME}\s*+=\s*+)?+(?:"{_BODY['"']}"|'{_BODY["'"]}')?+""", re.DOTALL | re.VERBOSE
)
# What may follow a statement on its line.
_NEXT = re.compile(rf"[^\S\n]*+(?:\Z|[\n;#]|```|{_NAME}[ \t]*+\()")
# The start of a call that the token limit broke off: its name, or its last argument.
_TRUNCATED_NAME = re.compile(rf"[^\S\n]*+{_NAME}[ \t]*+\Z")
_TRUNCATED_ARGUMENT = re.compile(
    rf"""\s*+(?:{_NAME}\s*+=\s*+)?+
    (?:"{_BODY['"']}(?:"\s*+|\\)?+|'{_BODY["'"]}(?:'\s*+|\\)?+|-?[0-9]*+\s*+|{_NAME}\s*+)\Z""",
    re.DOTALL | re.VERBOSE,
)
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""Lone surrogates, which programs must not insert because UTF-8 cannot encode them."""

Value = int | bool | Quoted
_BARE = {"keep": False, "drop": True, **VERDICTS}
_BARE_WORD = re.compile(rf"({'|'.join(_BARE)})(?![\w(])")


class _Parameter(NamedTuple):
    """A parameter: its names, its type, and its value if it may be missing."""

    names: tuple[str, ...]
    type: type[Value]
    default: Value | None = None


def _number(*names: str) -> _Parameter:
    return _Parameter(names, int)


def _text(*names: str, default: Value | None = None) -> _Parameter:
    return _Parameter(names, Quoted, default)


_START, _END = _number("start", "line_start"), _number("end", "line_end")
_LINE = _number("line", "line_number")
_NORMALIZE = _text("source_str"), _text("target_str", default=Quoted(""))
_REFINEX_LINES = _number(*_START.names, "start_line"), _number(*_END.names, "end_line")
_ADD_LINE = _number("base", "base_position"), _number("sub", "sub_index"), _text("text", "content")
# By dialect and name: what a call becomes, and its parameters.
_FUNCTIONS: dict[Dialect, dict[str, tuple[Callable[..., Statement], tuple[_Parameter, ...]]]] = {
    "prox": {
        "remove_lines": (RemoveLines, (_START, _END)),
        "normalize": (Normalize, _NORMALIZE),
    },
    "refinex": {
        "remove_lines": (RemoveLines, _REFINEX_LINES),
        "remove_str": (RemoveStr, (_LINE, _text("del_str"))),
    },
    "ultrax": {
        "remove_lines": (RemoveLines, (_START, _END)),
        "replace_str": (ReplaceStr, (_LINE, _text("old"), _text("new"))),
        "add_line": (AddLine, _ADD_LINE),
    },
    "rescraper": {},
}
_ALL_FUNCTIONS = {name for functions in _FUNCTIONS.values() for name in functions}


class _Call:
    """A scanned call: its arguments, or the reason for its rejection, and where it ends."""

    __slots__ = ("arguments", "reason", "stop")

    def __init__(self, text: str, at: int) -> None:
        """Scan the arguments after an opening parenthesis, from `at` on."""
        self.arguments: list[tuple[str | None, Value]] = []
        self.reason: ParseReason | None = None
        empty = _EMPTY.match(text, at)
        if empty:
            self.stop = empty.end()
            return
        while True:
            match = _ARGUMENT.match(text, at)
            if match is None:
                self._reject(text, at)
                return
            name, double, single, number, _, closing = match.groups()
            value: Value = True
            if number is not None:
                value = int(number)
            elif double is not None or single is not None:
                value = Quoted(double if double is not None else single)
            self.arguments.append((name, value))
            at = match.end()
            if closing == ")":
                self.stop = at
                return

    def _reject(self, text: str, at: int) -> None:
        if _TRUNCATED_ARGUMENT.match(text, at):
            self.reason, self.stop = "unterminated", len(text)
            return
        self.reason, self.stop = "bad_arguments", _line_end(text, _end(_READABLE.match(text, at)))


def _bind(
    parameters: tuple[_Parameter, ...],
    arguments: list[tuple[str | None, Value]],
    *,
    by_type: bool,
) -> list[Value] | None:
    """Return the arguments in the order of the parameters, or None if they do not match them.

    With `by_type`, an argument without a name is that of the first free parameter of its type.
    """
    count = len(parameters)
    bound: list[Value | None] = [None] * count
    named = False
    for index, (keyword, value) in enumerate(arguments):
        if keyword is not None:
            named = True
            index = next((i for i, p in enumerate(parameters) if keyword in p.names), count)
        elif by_type:
            free = (i for i, p in enumerate(parameters) if bound[i] is None)
            index = next((i for i in free if type(value) is parameters[i].type), count)
        elif named:
            return None
        if index >= count or bound[index] is not None or type(value) is not parameters[index].type:
            return None
        bound[index] = value
    pairs = zip(bound, parameters, strict=True)
    values = [p.default if value is None else value for value, p in pairs]
    complete = [value for value in values if value is not None]
    return complete if len(complete) == count else None


def _statement(name: str, call: _Call, dialect: Dialect, start: int) -> Statement | ParseReason:
    """Return the statement of a complete chunk-level call, or the reason for its rejection."""
    at = {"start": start, "stop": call.stop}
    if name in NO_EDIT or name == "remove_all":
        if call.arguments:
            return "bad_arguments"
        return RemoveAll(**at) if name == "remove_all" else Keep(name, **at)
    if name in VERDICTS:
        return "wrong_level"
    if name not in _FUNCTIONS[dialect]:
        return "wrong_dialect" if name in _ALL_FUNCTIONS else "unknown_call"
    if name == "remove_lines" and call.arguments == [("all", True)]:
        return RemoveAll(**at)
    build, parameters = _FUNCTIONS[dialect][name]
    values = _bind(parameters, call.arguments, by_type=dialect == "refinex")
    if values is None or any(isinstance(v, Quoted) and SURROGATE.search(v.body) for v in values):
        return "bad_arguments"
    return build(*values, **at)


class _Reader:
    """Collects statements and rejections of one program."""

    def __init__(self, text: str, finish: ProgramEnd, *, bare: bool) -> None:
        """With `bare`, the bare words of verdicts are calls too."""
        self.text, self.finish, self.bare = text, finish, bare
        self.statements: list[Statement] = []
        self.rejected: list[Rejected] = []
        self._rejected_texts: set[str] = set()
        self.truncated = False

    def reject(self, reason: ParseReason, start: int, stop: int) -> None:
        """Record a rejection, once for the same text, unless the token limit broke off the call."""
        incomplete = reason == "unterminated" or (reason == "not_a_call" and stop == len(self.text))
        if incomplete and self.finish == "length":
            self.truncated = True
        elif (rejected_text := self.text[start:stop]) not in self._rejected_texts:
            self._rejected_texts.add(rejected_text)
            self.rejected.append(Rejected(reason, start, stop))

    def add(self, item: Statement | ParseReason, start: int, stop: int) -> int:
        """Record the item at characters [start, stop); return where the next one may start."""
        text = self.text
        truncated = self.finish == "length" and _TRUNCATED_NAME.match(text, stop)
        if not truncated and not _NEXT.match(text, stop):
            stop = _line_end(text, stop)
            if isinstance(item, Statement):
                item = "trailing_text"
        if isinstance(item, Statement):
            self.statements.append(item)
        else:
            self.reject(item, start, stop)
        return _end(_SKIP.match(text, stop))

    def read(self, statement: Callable[[str, _Call, int], Statement | ParseReason]) -> Program:
        """Read the whole program; `statement` converts a call, given its name and start."""
        text = self.text
        at = _end(_SKIP.match(text))
        while at < len(text):
            name = _CALL.match(text, at)
            if name is not None:
                call = _Call(text, name.end())
                at = self.add(call.reason or statement(name.group(1), call, at), at, call.stop)
            elif self.bare and (word := _BARE_WORD.match(text, at)) and not self._incomplete(word):
                verdict = Verdict(_BARE[word.group()], start=at, stop=word.end())
                at = self.add(verdict, at, word.end())
            else:
                at = self.add("not_a_call", at, _line_end(text, at))
        return Program(tuple(self.statements), tuple(self.rejected), self.truncated)

    def _incomplete(self, word: re.Match[str]) -> bool:
        """Return True if the token limit may have truncated a longer word."""
        return self.finish == "length" and word.end() == len(self.text)


def parse_chunk(text: str, dialect: Dialect = "prox", finish: ProgramEnd = "stop") -> Program:
    """Parse a chunk-level program. Never raises; linear in `text`."""
    if dialect == "rescraper":
        return parse_tagged(text, finish)

    def statement(name: str, call: _Call, start: int) -> Statement | ParseReason:
        return _statement(name, call, dialect, start)

    return _Reader(text, finish, bare=False).read(statement)


def parse_doc(text: str, finish: ProgramEnd = "stop") -> Program:
    """Parse a doc-level program: a call, or one of its bare words such as `keep`."""
    return _Reader(text, finish, bare=True).read(_verdict)


def _verdict(name: str, call: _Call, start: int) -> Statement | ParseReason:
    if name in VERDICTS:
        if call.arguments:
            return "bad_arguments"
        return Verdict(VERDICTS[name], start=start, stop=call.stop)
    return "wrong_level" if name in (*NO_EDIT, *_ALL_FUNCTIONS, "remove_all") else "unknown_call"


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _end(match: re.Match[str] | None) -> int:
    assert match is not None  # these expressions match the empty string
    return match.end()
