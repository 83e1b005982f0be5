"""Removes what models write around and between calls, so that the parser reads only calls.

Each step leaves the intent of a program unambiguous: reasoning before the answer, code fences,
bullets, comments, end tokens, typographic punctuation. Each leniency has a name and is counted.
Strings and `# comments` never change: placeholders replace them while the steps run.
"""

import re
from collections.abc import Callable, Sequence

from proxhpc.program.syntax import Dialect

_CALL = r"[A-Za-z_]\w*+[ \t]*+\("
_AFTER_STRING = r"(?=\s*+[,)，、）])"
_STRING = re.compile(
    rf"""(?<=[(,=（，、＝])(\s*+)(?:[rRuUfFbB](?=["']))?+(
    "(?:[^"\\]|\\.)*+"{_AFTER_STRING} | '(?:[^'\\]|\\.)*+'{_AFTER_STRING}
    | “[^“”\n]*+” | «[^«»\n]*+» | `[^`\n]*+`{_AFTER_STRING} | &quot;(?:(?!&quot;)[^\n])*+&quot;)""",
    re.DOTALL | re.VERBOSE,
)
# Quotes within the same quotes: the string ends at the first quote after which a call can continue.
_INNER_QUOTE = re.compile(
    r"""(?<=[(,=])(\s*+)(["'])([^\n]{0,500}?)(?<!\\)\2
    (?=\s{0,20}(?: ,\s{0,20}(?:[A-Za-z_]\w{0,30}\s{0,20}=|["'\x00])
    | \)[ \t]{0,20}(?:\#|\n|\Z)))""",
    re.VERBOSE,
)
_EXPRESSION = re.compile(r"""["']\s*(?:["'+%*]|\.\w|(?:if|or|and)\b)""")
_PLACEHOLDER = re.compile(r"\x00(\d+)\x00")
_HASH_COMMENT = re.compile(r"#[^\n]*+")
# A number in quotes as the first or the last argument of a call with line numbers.
_QUOTED_NUMBER = re.compile(
    r"""\b((?:remove_lines|remove_str|replace_str|add_line)[ \t]*+\(\s*+(?:\w++\s*+=\s*+)?+
    |remove_lines[ \t]*+\([^()\x00\n]*+(?<=[,=\s]))\x00(\d+)\x00""",
    re.VERBOSE,
)
_DIGITS = re.compile(r"""["']\d{1,9}["']""")

# Reasoning may lack its first tag, which a chat template can have written.
_THINK = re.compile(
    rf"""\s*+(?: <think(?:ing)?>(?:(?!</think).)*+</think(?:ing)?>
    | (?!\#)(?:(?!</think).)*+</think(?:ing)?>(?=[ \t]*+(?:\n|\Z|{_CALL}|(?:keep|drop)\b)))""",
    re.DOTALL | re.VERBOSE,
)
_FENCE = re.compile(r"(?m)^[ \t]*+(?:```++|~~~++|'''|\"\"\"|‘‘‘|’’’)[^\n(]*+$")
_PLAIN_FENCE = re.compile(r"[ \t]*+```[\w+-]*+[ \t]*+")
_ANY_CALL = re.compile(rf"(?<!\w){_CALL}")
_LINE_WITH_CALL = re.compile(rf"(?m)^[ \t]*+{_CALL}")

_PUNCTUATION = dict(
    zip("（），、＝：；＿\u3000０１２３４５６７８９", "(),,=:;_ 0123456789", strict=True)
)

Step = tuple[str, re.Pattern[str], str | Callable[[re.Match[str]], str]]
_BEFORE_FENCE: tuple[Step, ...] = (
    ("invisible", re.compile("[\ufeff\u200b\u200c\u200d\u2060\u00ad]"), ""),
    ("invisible", re.compile("[\u00a0\u2000-\u200a\u202f\u205f]"), " "),
    (
        "punctuation",
        re.compile(f"[{''.join(_PUNCTUATION)}]"),
        lambda match: _PUNCTUATION[match.group()],
    ),
    (
        "end_token",
        re.compile(
            r"""</?s> | <\|[\w ]{1,30}\|> | <｜[^｜\n]{1,30}｜> | \[/?INST\]
            | </?(?:start|end)_of_turn> | <eos> | <pad>""",
            re.VERBOSE,
        ),
        "\n",
    ),
    (
        "tag",
        re.compile(
            r"</?(?:answer|program|code|output|response|python|edits?|page)>|\[/?doc\]",
            re.IGNORECASE,
        ),
        "\n",
    ),
)
_COMMENT: Step = (
    "comment",
    re.compile(
        r"""/\*(?:(?!\*/|/\*).)*+\*/ | <!--(?:(?!-->|<!--).)*+-->
        | (?:(?<=\))[ \t]*+(?://|--|—|–) | (?m:^)[ \t]*+(?://|--))[^\n]*+""",
        re.DOTALL | re.VERBOSE,
    ),
    "",
)
_LIST_MARKER: Step = (
    "list_marker",
    re.compile(
        rf"""^[ \t]*+(?:[-*+•‣◦▪·–—] | \d{{1,3}}[.):] | \(\d{{1,3}}\) | \[\d{{1,3}}\]
        | >{{1,3}} | \.\.\. | \$ | %)[ \t]++(?=[*`]{{0,4}}{_CALL})""",
        re.MULTILINE | re.VERBOSE,
    ),
    "",
)
_LABEL: Step = (
    "label",
    re.compile(rf"(?m)^[ \t]*+(?!\w+[ \t]*\()[A-Za-z][\w ]{{0,30}}:[ \t]*+(?={_CALL})"),
    "",
)
_EMPHASIS: Step = (
    "emphasis",
    re.compile(
        rf"(?m)^([ \t]*+)(\*\*|__|`|\*|[\"'])(?={_CALL})([^\n]*?)\2(?=[ \t]*+[.;,]?[ \t]*+$)"
    ),
    r"\1\3",
)
_AFTER_CALLS: tuple[Step, ...] = (
    ("separator", re.compile(r"(?<=\))[ \t]*+(?:\\r)?\\n"), "\n"),
    ("separator", re.compile(rf"\A\s*+\[(?=\s*+{_CALL})"), ""),
    (
        "separator",
        re.compile(rf"(?<=\))[ \t]*+(?:,|\||->|=>|→|&{{1,2}}|and|then|und|et)[ \t]*+(?={_CALL})"),
        "\n",
    ),
    ("trailing_punctuation", re.compile(r"(?m)(?<=\))[ \t]*+[.,:!。|\]]++[ \t]*+$"), ""),
)
_ARGUMENTS: tuple[Step, ...] = (
    (
        "number",
        re.compile(
            r"""(?<=[(,=])(\s*+)
            (?: \[(\d{1,9})\] | \+(\d{1,9}) | (\d{1,9})\.0++ | (\d{1,3}(?:_\d{1,3})+) )
            (?=\s*+[,)])""",
            re.VERBOSE,
        ),
        lambda match: match[1] + match[match.lastindex or 0].replace("_", ""),
    ),
    ("trailing_comma", re.compile(r",(?=\s*+\))"), ""),
    ("none", re.compile(r"(?<==)[ \t]*+(?:None|null|nil)?(?=[ \t]*+[,)])"), '""'),
    ("parameter_name", re.compile(r"(?<=[(,])(\s*+)(?:start_line|first)(?=\s*+=)"), r"\1start"),
    ("parameter_name", re.compile(r"(?<=[(,])(\s*+)(?:end_line|last)(?=\s*+=)"), r"\1end"),
)
# A call without strings cannot be cut short by a quote: what follows it on its line is prose.
_TRAILING_PROSE: Step = (
    "trailing_prose",
    re.compile(
        r"((?<![\w.(])[A-Za-z_]\w*+\([^()\x00\n]*+\))[ \t]++[^\W\d_][^\n()]*+$", re.MULTILINE
    ),
    r"\1",
)
_CHUNK_STEPS = (
    *(_COMMENT, _LIST_MARKER, _LABEL, _EMPHASIS, *_AFTER_CALLS, *_ARGUMENTS),
    _TRAILING_PROSE,
)
# RefineX itself has other names of parameters.
_REFINEX_STEPS = tuple(step for step in _CHUNK_STEPS if step[0] != "parameter_name")
# Prose beside a verdict may deny it.
_DOC_STEPS = (_COMMENT, _LIST_MARKER, _EMPHASIS, *_AFTER_CALLS)
# The tags of ReScraper are not calls, and its lines have strings that must not change.
_TAGGED_STEPS: tuple[Step, ...] = (
    ("end_token", re.compile(r"(?:</s>|<\|[\w ]{1,30}\|>|<end_of_turn>|<eos>)\s*+\Z"), ""),
    ("fence", re.compile(r"(?m)^[ \t]*+(?:```++|~~~++)[\w+-]*+[ \t]*+$"), ""),
    ("list_marker", re.compile(r"(?m)^[ \t]*+[-*•][ \t]++(?=(?:rm|sub) )"), ""),
)
_VERDICT = re.compile(
    r"""^[ \t]*+(?:(?:[-*+•>]|\d{1,3}[.)])[ \t]++)?+
    (?:[*_`]{0,2}(?:answer|verdict|output|program|decision|result|response)
    [ \t]*+:[*_`]{0,2}[ \t]*+)?+
    [*_`"'“‘]{0,3}(?:(keep|drop)_doc(?:[ \t]*+\([ \t]*+\))?+|(keep|drop))
    [*_`"'”’]{0,3}[.;!。]?[*_`"'”’]{0,3}[ \t]*+$""",
    re.IGNORECASE | re.MULTILINE | re.VERBOSE,
)
_PLAIN_VERDICT = re.compile(r"\s*+(?:keep|drop)(?:_doc(?:\s*+\(\s*+\))?+)?+;?\s*+")

_Counts = dict[str, int]


def unwrap(text: str, dialect: Dialect = "prox") -> tuple[str, _Counts]:
    """Return the calls of a chunk-level answer, and how often each leniency was applied.

    Linear in `text`; never raises. Text with NUL characters is returned as it is.
    """
    if dialect != "rescraper":
        return _unwrap(text, _REFINEX_STEPS if dialect == "refinex" else _CHUNK_STEPS)
    counts: _Counts = {}
    return _apply(_TAGGED_STEPS, _without_thoughts(text, counts), counts), counts


def unwrap_verdict(text: str, *, is_whole: bool) -> tuple[str, _Counts]:
    """Return the verdict of a doc-level answer likewise.

    Unless the answer `is_whole`, its last word may be truncated, and only calls are verdicts.
    """
    text, counts = _unwrap(text, _DOC_STEPS)

    def canonical(match: re.Match[str]) -> str:
        if _PLAIN_VERDICT.fullmatch(match.group()):
            return match.group()
        add_count(counts, "verdict_form")
        return f"{(match[1] or match[2]).lower()}_doc()"

    return _VERDICT.sub(canonical, text) if is_whole else text, counts


def _unwrap(text: str, steps: Sequence[Step]) -> tuple[str, _Counts]:
    counts: _Counts = {}
    if "\x00" in text:
        return text, counts
    text = _without_thoughts(text, counts)
    strings: list[str] = []
    text = _hide_strings(text, strings, counts)
    text = _apply(_BEFORE_FENCE, text, counts)
    text = _inside_fence(text, counts)
    text = _apply(steps, text, counts)
    while "\x00" in text:  # a hidden comment may contain strings that were hidden before it
        text = _PLACEHOLDER.sub(lambda match: strings[int(match[1])], text)
    return text, counts


def _without_thoughts(text: str, counts: _Counts) -> str:
    if "</think" in text and (thoughts := _THINK.match(text)):
        add_count(counts, "think_block")
        return text[thoughts.end() :]
    return text


def _apply(steps: Sequence[Step], text: str, counts: _Counts) -> str:
    for name, pattern, replacement in steps:
        text, number = pattern.subn(replacement, text)
        if number:
            add_count(counts, name, number)
    return text


def _hide_strings(text: str, strings: list[str], counts: _Counts) -> str:
    """Replace string literals and comments by placeholders, appending each to `strings`."""

    def hide(match: re.Match[str]) -> str:
        blanks, literal = match.groups()
        if literal[0] not in "\"'":
            add_count(counts, "quotes")
            size = 6 if literal.startswith("&") else 1
            literal = _quote(literal[size:-size])
        elif len(match.group()) > len(blanks) + len(literal):
            add_count(counts, "string_prefix")
        strings.append(literal)
        return f"{blanks}\x00{len(strings) - 1}\x00"

    def hide_inner(match: re.Match[str]) -> str:
        if _EXPRESSION.search(match[3]):
            return match.group()
        add_count(counts, "inner_quote")
        strings.append(_quote(_PLACEHOLDER.sub(lambda hidden: strings[int(hidden[1])], match[3])))
        return f"{match[1]}\x00{len(strings) - 1}\x00"

    def hide_comment(match: re.Match[str]) -> str:
        strings.append(match.group())
        return f"\x00{len(strings) - 1}\x00"

    def unquote(match: re.Match[str]) -> str:
        literal = strings[int(match[2])]
        if not _DIGITS.fullmatch(literal):
            return match.group()
        add_count(counts, "quoted_number")
        return match[1] + literal[1:-1]

    text = _STRING.sub(hide, text)
    if '"' in text or "'" in text:
        text = _INNER_QUOTE.sub(hide_inner, text)
    for _ in range(2):
        text = _QUOTED_NUMBER.sub(unquote, text)
    return _HASH_COMMENT.sub(hide_comment, text)


def _quote(body: str) -> str:
    """Return a literal whose content is `body`, whichever quotes are in it."""
    if '"' not in body:
        return f'"{body}"'
    return "'" + body.replace("'", "\\'") + "'" if "'" in body else f"'{body}'"


def _inside_fence(text: str, counts: _Counts) -> str:
    """Return the content of the only fenced block, if all calls are in it, or the whole text."""
    marks = list(_FENCE.finditer(text))
    if not 1 <= len(marks) <= 2:
        return text
    start, (stop, resume) = marks[0].end(), marks[1].span() if len(marks) == 2 else (len(text),) * 2
    around = text[: marks[0].start()] + text[resume:]
    if not _ANY_CALL.search(text, start, stop) or _LINE_WITH_CALL.search(around):
        return text
    if around.strip():
        add_count(counts, "prose_around_fence")
    elif all(_PLAIN_FENCE.fullmatch(mark.group()) for mark in marks):
        return text  # the parser skips it
    add_count(counts, "fence")
    return text[start:stop]


def add_count(counts: _Counts, name: str, number: int = 1) -> None:
    """Add a number to the count of a name."""
    counts[name] = counts.get(name, 0) + number
