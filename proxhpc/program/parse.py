"""Reads programs: a quote-aware scanner, left to right, each character once.

What is well formed in a dialect becomes a statement; anything else becomes a rejected one with
a reason and is never guessed at. A rejected call ends at the end of the line on which it went
wrong, and so does one with other text behind it on its line: where quotes stand within quotes, a
call seems to end too early. A string that is never closed takes the rest of the program with it.
"""

import re
from collections.abc import Callable

from proxhpc.program.syntax import (
    NO_EDIT,
    VERDICTS,
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
# The name and the string of an argument that is none; the empty string where there is neither.
_READABLE = re.compile(
    rf"""\s*+(?:{_NAME}\s*+=\s*+)?+(?:"{_BODY['"']}"|'{_BODY["'"]}')?+""", re.DOTALL | re.VERBOSE
)
# What may follow a statement on its line; and the head of a call that the token limit cut.
_NEXT = re.compile(rf"[^\S\n]*+(?:\Z|[\n;#]|```|{_NAME}[ \t]*+\()")
_CUT_NAME = re.compile(rf"[^\S\n]*+{_NAME}[ \t]*+\Z")
_UNFINISHED = re.compile(
    rf"""\s*+(?:{_NAME}\s*+=\s*+)?+
    (?:"{_BODY['"']}(?:"\s*+|\\)?+|'{_BODY["'"]}(?:'\s*+|\\)?+|-?[0-9]*+\s*+|{_NAME}\s*+)\Z""",
    re.DOTALL | re.VERBOSE,
)
SURROGATE = re.compile(r"[\ud800-\udfff]")
"""What no UTF-8 file can hold, so that no program may put it into one."""

Value = int | bool | Quoted
_BARE = {"keep": False, "drop": True, **VERDICTS}
_BARE_WORD = re.compile(rf"({'|'.join(_BARE)})(?![\w(])")
_FORMS: dict[str, tuple[tuple[frozenset[str], type], ...]] = {
    "remove_lines": (
        (frozenset({"start", "line_start"}), int),
        (frozenset({"end", "line_end"}), int),
    ),
    "normalize": ((frozenset({"source_str"}), Quoted), (frozenset({"target_str"}), Quoted)),
    "remove_str": ((frozenset({"line"}), int), (frozenset({"del_str"}), Quoted)),
    "replace_str": (
        (frozenset({"line"}), int),
        (frozenset({"old"}), Quoted),
        (frozenset({"new"}), Quoted),
    ),
}
_ONLY: dict[str, Dialect] = {"normalize": "prox", "remove_str": "line", "replace_str": "line"}
_BUILD: dict[str, Callable[..., Statement]] = {
    "remove_lines": RemoveLines,
    "normalize": Normalize,
    "remove_str": RemoveStr,
    "replace_str": ReplaceStr,
}


class _Call:
    """One call as scanned: its arguments, or the reason why it has none, and where it ends."""

    __slots__ = ("arguments", "reason", "stop")

    def __init__(self, text: str, at: int) -> None:
        """Scan the arguments behind the parenthesis that ends at `at`."""
        self.arguments: list[tuple[str | None, Value]] = []
        self.reason: ParseReason | None = None
        empty = _EMPTY.match(text, at)
        if empty:
            self.stop = empty.end()
            return
        while True:
            match = _ARGUMENT.match(text, at)
            if match is None:
                self._give_up(text, at)
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

    def _give_up(self, text: str, at: int) -> None:
        if _UNFINISHED.match(text, at):
            self.reason, self.stop = "unterminated", len(text)
            return
        self.reason, self.stop = "bad_arguments", _line_end(text, _end(_READABLE.match(text, at)))


def _bind(name: str, arguments: list[tuple[str | None, Value]]) -> list[Value] | None:
    """Arguments in the order of the form, or None where they do not fit it."""
    form = _FORMS[name]
    bound: list[Value | None] = [None] * len(form)
    named = False
    for place, (keyword, value) in enumerate(arguments):
        if keyword is not None:
            named = True
            place = next((i for i, (names, _) in enumerate(form) if keyword in names), len(form))
        elif named:
            return None
        if place >= len(form) or bound[place] is not None or type(value) is not form[place][1]:
            return None
        bound[place] = value
    if name == "normalize" and bound[1] is None:
        bound[1] = Quoted("")
    values = [value for value in bound if value is not None]
    return values if len(values) == len(form) else None


def _unencodable(values: list[Value]) -> bool:
    return any(isinstance(v, Quoted) and SURROGATE.search(v.body) for v in values)


def _statement(name: str, call: _Call, dialect: Dialect, start: int) -> Statement | ParseReason:
    """Make the statement of a complete call at chunk level, or say why it makes none."""
    at = {"start": start, "stop": call.stop}
    if name in NO_EDIT or name == "remove_all":
        if call.arguments:
            return "bad_arguments"
        return RemoveAll(**at) if name == "remove_all" else Keep(name, **at)
    if name in VERDICTS:
        return "wrong_level"
    if name not in _FORMS:
        return "unknown_call"
    if _ONLY.get(name, dialect) != dialect:
        return "wrong_dialect"
    if name == "remove_lines" and call.arguments == [("all", True)]:
        return RemoveAll(**at)
    values = _bind(name, call.arguments)
    if values is None or _unencodable(values):
        return "bad_arguments"
    return _BUILD[name](*values, **at)


class _Reader:
    """Collects statements and rejections of one program."""

    def __init__(self, text: str, finish: ProgramEnd, *, bare: bool) -> None:
        """`bare`: the words `keep` and `drop` are verdicts too."""
        self.text, self.finish, self.bare = text, finish, bare
        self.statements: list[Statement] = []
        self.rejected: list[Rejected] = []
        self.cut = False

    def reject(self, reason: ParseReason, start: int, stop: int) -> None:
        """Record a rejection; a call that the token limit broke off is none."""
        broken = reason == "unterminated" or (reason == "not_a_call" and stop == len(self.text))
        if broken and self.finish == "length":
            self.cut = True
        else:
            self.rejected.append(Rejected(reason, start, stop))

    def take(self, made: Statement | ParseReason, start: int, stop: int) -> int:
        """Record what characters [start, stop) came to; where the next statement may begin."""
        text = self.text
        cut = self.finish == "length" and _CUT_NAME.match(text, stop)
        if not cut and not _NEXT.match(text, stop):
            stop = _line_end(text, stop)
            if isinstance(made, Statement):
                made = "trailing_text"
        if isinstance(made, Statement):
            self.statements.append(made)
        else:
            self.reject(made, start, stop)
        return _end(_SKIP.match(text, stop))

    def read(self, statement: Callable[[str, _Call, int], Statement | ParseReason]) -> Program:
        """Read all of the program; `statement` makes one of a call's name, arguments and start."""
        text = self.text
        at = _end(_SKIP.match(text))
        while at < len(text):
            name = _CALL.match(text, at)
            if name is not None:
                call = _Call(text, name.end())
                at = self.take(call.reason or statement(name.group(1), call, at), at, call.stop)
            elif self.bare and (word := _BARE_WORD.match(text, at)) and not self._broken(word):
                verdict = Verdict(_BARE[word.group()], start=at, stop=word.end())
                at = self.take(verdict, at, word.end())
            else:
                at = self.take("not_a_call", at, _line_end(text, at))
        return Program(tuple(self.statements), tuple(self.rejected), self.cut)

    def _broken(self, word: re.Match[str]) -> bool:
        """Whether a bare word may be the head of another that the token limit cut."""
        return self.finish == "length" and word.end() == len(self.text)


def parse_chunk(text: str, dialect: Dialect = "prox", finish: ProgramEnd = "stop") -> Program:
    """Read a program that edits lines. Never raises; linear in `text`."""

    def statement(name: str, call: _Call, start: int) -> Statement | ParseReason:
        return _statement(name, call, dialect, start)

    return _Reader(text, finish, bare=False).read(statement)


def parse_doc(text: str, finish: ProgramEnd = "stop") -> Program:
    """Read a program that keeps or drops a document: calls, or a bare `keep` or `drop`."""
    return _Reader(text, finish, bare=True).read(_verdict)


def _verdict(name: str, call: _Call, start: int) -> Statement | ParseReason:
    if name in VERDICTS:
        if call.arguments:
            return "bad_arguments"
        return Verdict(VERDICTS[name], start=start, stop=call.stop)
    return "wrong_level" if name in (*NO_EDIT, *_FORMS, "remove_all") else "unknown_call"


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _end(match: re.Match[str] | None) -> int:
    assert match is not None  # these expressions match the empty string everywhere
    return match.end()
