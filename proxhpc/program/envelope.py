"""Removes what models wrap around and between calls, so that the parser sees only calls.

Everything here leaves the intent of a program unambiguous: reasoning before the answer, code
fences, bullets, comments, end tokens, typographic punctuation. Each leniency has a name and is
counted. Strings are never changed: they are replaced by placeholders first and put back last.
"""

import re
from collections.abc import Callable

_CALL = r"[A-Za-z_]\w*[ \t]*\("
_AFTER_STRING = r"(?=\s*+[,)，）])"
_STRING = re.compile(
    rf"""(?<=[(,=（，＝])(\s*+)(?:[rRuUfFbB](?=["']))?+
    ("(?:[^"\\]|\\.)*+"{_AFTER_STRING}|'(?:[^'\\]|\\.)*+'{_AFTER_STRING}
    |“[^“”\n]*+”|«[^«»\n]*+»|`[^`\n]*+`{_AFTER_STRING}|&quot;(?:(?!&quot;)[^\n])*+&quot;)""",
    re.DOTALL | re.VERBOSE,
)
# A quote within its own quotes: the string ends at the first quote that a call can continue behind.
_INNER_QUOTE = re.compile(
    r"""(?<=[(,=])(\s*+)(["'])([^\n]*?)(?<!\\)\2(?=\s*(?:,\s*(?:[A-Za-z_]\w*\s*=|["'])|\)[ \t]*(?:\#|\n|\Z)))"""
)
_PLACEHOLDER = re.compile(r"\x00(\d+)\x00")

_PUNCTUATION = str.maketrans(
    {
        "（": "(",
        "）": ")",
        "，": ",",
        "、": ",",
        "＝": "=",
        "：": ":",
        "；": ";",
        "＿": "_",
        "\u3000": " ",
        **{chr(0xFF10 + digit): str(digit) for digit in range(10)},
    }
)
_INVISIBLE = re.compile("[\ufeff\u200b\u200c\u200d\u2060\u00ad]")
_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f]")
_THINK = re.compile(
    r"\s*+(?:<think(?:ing)?>)?(?:(?!</think(?:ing)?>).)*+</think(?:ing)?>", re.DOTALL
)
_THINK_TAG = re.compile(r"\s*+<think(?:ing)?>")
_END_TOKEN = re.compile(
    r"</?s>|<\|[\w ]{1,30}\|>|<｜[^｜\n]{1,30}｜>|\[/?INST\]|</?(?:start|end)_of_turn>|<eos>|<pad>"
)
_TAG = re.compile(
    r"</?(?:answer|program|code|output|response|python|edits?)>|\[/?doc\]", re.IGNORECASE
)
_FENCE = re.compile(r"(?m)^[ \t]*(```+|~~~+|'''|\"\"\"|‘‘‘|’’’)[^\n(]*$")
_FENCE_MARK = re.compile(r"```+|~~~+|‘‘‘|’’’|'''|\"\"\"")
_COMMENT = re.compile(
    r"/\*(?:(?!\*/).)*+\*/|<!--(?:(?!-->).)*+-->|(?m:(?<=\))[ \t]*+(?://|--|—|–)[^\n]*+$)"
    r"|(?m:^[ \t]*+(?://|--)[^\n]*+$)",
    re.DOTALL,
)
_MARKER = re.compile(
    rf"(?m)^[ \t]*+(?:[-*+•‣◦▪·–—]|\d{{1,3}}[.):]|\(\d{{1,3}}\)|\[\d{{1,3}}\]|>{{1,3}}|\.\.\.|\$|%)[ \t]++(?=[*`]*{_CALL})"
)
_EMPHASIS = re.compile(
    rf"(?m)^([ \t]*+)(\*\*|__|`|\*|[\"'])(?={_CALL})([^\n]*?)\2(?=[ \t]*+[.;,]?[ \t]*+$)"
)
_LABEL = re.compile(rf"(?m)^[ \t]*+(?!\w+[ \t]*\()[A-Za-z][\w ]{{0,30}}:[ \t]*+(?={_CALL})")
_ESCAPED_NEWLINE = re.compile(r"(?<=\))[ \t]*+(?:\\r)?\\n")
_JOINED = re.compile(rf"(?<=\))[ \t]*+(?:,|\||->|=>|→|&+|and|then|und|et)[ \t]*+(?={_CALL})")
_TRAILING = re.compile(r"(?m)(?<=\))[ \t]*+[.,:!。|\]]++[ \t]*+$")
_BRACKETED = re.compile(rf"\s*+\[(?=\s*+{_CALL})")
_BRACKETED_NUMBER = re.compile(r"(?<=[(,=])(\s*+)\[(\d{1,9})\](?=\s*+[,)])")
_NUMBER = re.compile(r"(?<=[(,=])(\s*+)\+?(\d{1,9})(?:\.0+)?(?=\s*+[,)])")
_GROUPED_NUMBER = re.compile(r"(?<=[(,=])(\s*+)(\d{1,3}(?:_\d{1,3})+)(?=\s*+[,)])")
_TRAILING_COMMA = re.compile(r",(?=\s*+\))")
_NO_VALUE = re.compile(r"(?<==)[ \t]*+(?:None|null|nil)?(?=[ \t]*+[,)])")
# A call without strings cannot be cut short by a quote: what follows it on its line is prose.
_PROSE = re.compile(r"(?m)((?<![\w.(])[A-Za-z_]\w*\([^()\x00\n]*+\))[ \t]++[^\W\d_][^\n()]*+$")


def unwrap(text: str) -> tuple[str, dict[str, int]]:
    """Return the calls of a model's answer, and how often each leniency was applied.

    Linear in `text`; never raises. Text with NUL characters is returned as it is.
    """
    counts: dict[str, int] = {}
    if "\x00" in text:
        return text, counts
    strings: list[str] = []

    def apply(name: str, pattern: re.Pattern[str], target: str | Callable[..., str]) -> None:
        nonlocal text
        text, number = pattern.subn(target, text)
        if number:
            counts[name] = counts.get(name, 0) + number

    def put_away(match: re.Match[str]) -> str:
        blanks, literal = match.groups()
        if literal[0] not in "\"'":
            counts["quotes"] = counts.get("quotes", 0) + 1
            size = 6 if literal.startswith("&") else 1
            literal = _quote(literal[size:-size])
        elif len(match.group()) > len(blanks) + len(literal):
            counts["string_prefix"] = counts.get("string_prefix", 0) + 1
        strings.append(literal)
        return f"{blanks}\x00{len(strings) - 1}\x00"

    def put_away_inner(match: re.Match[str]) -> str:
        strings.append(_quote(match[3]))
        return f"{match[1]}\x00{len(strings) - 1}\x00"

    if think := _THINK.match(text) if "</think" in text else None:
        text = text[think.end() :]
        counts["think_block"] = 1
    text = _STRING.sub(put_away, text)
    if '"' in text or "'" in text:
        apply("inner_quote", _INNER_QUOTE, put_away_inner)
    apply("invisible", _INVISIBLE, "")
    apply("invisible", _SPACE, " ")
    if not text.isascii():
        ascii_text = text.translate(_PUNCTUATION)
        if ascii_text != text:
            text, counts["punctuation"] = ascii_text, 1
            text = _STRING.sub(put_away, text)
    if "<" in text or "[" in text:
        apply("end_token", _END_TOKEN, "\n")
        apply("tag", _TAG, "\n")
    text = _inside_fence(text, counts)
    if "/" in text or "--" in text or "–" in text or "—" in text:
        apply("comment", _COMMENT, "")
    apply("list_marker", _MARKER, "")
    apply("label", _LABEL, "")
    apply("emphasis", _EMPHASIS, r"\1\3")
    apply("separator", _ESCAPED_NEWLINE, "\n")
    bracketed = _BRACKETED.match(text)
    if bracketed:
        text = text[bracketed.end() :]
        counts["separator"] = counts.get("separator", 0) + 1
    apply("separator", _JOINED, "\n")
    apply("trailing_punctuation", _TRAILING, "")
    apply("number", _BRACKETED_NUMBER, r"\1\2")
    apply("trailing_comma", _TRAILING_COMMA, "")
    text = _NUMBER.sub(r"\1\2", text)
    text = _GROUPED_NUMBER.sub(lambda match: match[1] + match[2].replace("_", ""), text)
    apply("none", _NO_VALUE, '""')
    apply("trailing_prose", _PROSE, r"\1")
    text = _PLACEHOLDER.sub(lambda match: strings[int(match[1])], text)
    return text, counts


def _quote(body: str) -> str:
    """Return a literal whose content is `body`, whichever quotes are in it."""
    if '"' not in body:
        return f'"{body}"'
    return "'" + body.replace("'", "\\'") + "'" if "'" in body else f"'{body}'"


def _inside_fence(text: str, counts: dict[str, int]) -> str:
    """Return the content of the only fenced block, or the text without its fence marks."""
    marks = list(_FENCE.finditer(text))
    if 1 <= len(marks) <= 2:
        start = marks[0].end()
        stop = marks[1].start() if len(marks) == 2 else len(text)
        around = text[: marks[0].start()] + (text[marks[1].end() :] if len(marks) == 2 else "")
        if re.search(_CALL, text[start:stop]) and not re.search(rf"(?m)^\s*{_CALL}", around):
            counts["fence"] = 1
            if around.strip():
                counts["prose_around_fence"] = 1
            return text[start:stop]
    return text
