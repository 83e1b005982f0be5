"""Boilerplate lines of web pages and READMEs: menus, badges, cookie notices, share lines.

Quality does not matter here: headings, list items, tables and code stay. Every pattern takes linear
time on any input. Lines of more than 2,000 characters are never boilerplate.
"""

import re
from collections.abc import Callable, Sequence

_MAX_LINE = 2000

# Bounded and possessive, so that no hostile line can make them backtrack.
_TITLE = r"(?:\s\"[^\"]{0,300}+\")?"
_IMAGE = re.compile(r"!\[[^\[\]]{0,300}+\]\([^()\s]{0,1500}+" + _TITLE + r"\)|!\[[^\[\]]{0,300}+\]")
_LINK = re.compile(
    r"\[[^\[\]]{0,300}+\](?:\([^()\s]{0,1500}+" + _TITLE + r"\)|\[[^\[\]]{0,100}+\])"
)
_TAG = re.compile(r"<[^<>]{1,1500}+>")
_REST_IMAGE = re.compile(r"(?:\.\.\s+)?(?:\|[^|]{1,100}+\|\s+)?image::\s")
_REST_OPTION = re.compile(r":(?:target|alt|scale|width|height|align|class|name):")
_REST_BADGES = re.compile(r"(?:\|[^|\s](?:[^|]{0,80}+)\|_{0,2}+\s*+){2,}+")
_BADGE_HOSTS = re.compile(
    r"shields\.io|badge|travis-ci|codecov\.io|coveralls\.io|circleci\.com|appveyor\.com"
    r"|/actions/workflows/|fossa\.|pepy\.tech|deepsource|codeclimate|codacy|sonarcloud"
    r"|gitter\.im|readthedocs\.org/projects",
    re.IGNORECASE,
)
_FENCE = ("```", "~~~")
_BULLET = re.compile(r"(?:[-*+•·»›]|\d{1,3}+[.)])\s+")

_SEPARATOR = re.compile(r" ?[|•·»›] ?| :: | > ")
_SENTENCE_MARKS = (".", "?", "!", ",", ";", ":", "。", "！", "？", "…")
_MENU_CHARACTERS = re.compile(
    r"[^\W\d_][^\W\d_ ]*+(?:[ &'’/.+-]{1,3}+[^\W\d_]++){0,8}+[ »›>▾▼+]{0,3}+"
)
_MENU_RUN = 6
_LINK_RUN = 3

_COOKIES = re.compile(
    r"(?:we|site|website|page|service|store|shop|partners)(?: and our partners)? (?:also )?uses? "
    r"(?:necessary |essential |functional )?cookies"
    r"|(?:accept|manage|reject|allow|enable|disable) (?:all |the )?(?:use of )?cookies"
    r"|cookie (?:policy|settings|preferences|consent|notice)"
    r"|(?:our|the) use of cookies|diese (?:web)?seite verwendet cookies|wir verwenden cookies"
    r"|ce site utilise des cookies|este sitio (?:web )?utiliza cookies",
    re.IGNORECASE,
)
_COOKIE_LINE = 600
_SHARE_STARTS = (
    *("share this", "share on ", "share via ", "share with ", "tweet this", "pin it"),
    *("email this", "print this", "send to a friend", "follow us", "follow me on", "find us on"),
    *("like us on", "join us on", "subscribe to our", "sign up for our", "sign up to our"),
    *("skip to ", "jump to navigation", "jump to content", "jump to search", "back to top"),
    *("back to the top", "return to top", "leave a comment", "leave a reply", "post a comment"),
    "click here to share",
)
_SHARE_LINES = {
    *("share", "tweet", "facebook", "twitter", "linkedin", "pinterest", "whatsapp", "instagram"),
    *("reddit", "tumblr", "print", "email", "facebook twitter", "facebook twitter linkedin"),
    *("read more", "read more »", "learn more", "continue reading", "log in", "login", "sign in"),
    *("sign up", "subscribe", "advertisement", "advertisements", "loading..."),
}
_SHARE_WORDS = 10
_RIGHTS = ("all rights reserved", "alle rechte vorbehalten", "tous droits réservés")


def is_badge(line: str) -> bool:
    """Return True if a line holds only status badges, in Markdown, HTML or reStructuredText."""
    line = line.strip()
    if len(line) > _MAX_LINE or not line:
        return False
    if _REST_IMAGE.match(line):
        return bool(_BADGE_HOSTS.search(line))
    if _REST_BADGES.fullmatch(line):
        return True
    if "[" not in line and "<" not in line:
        return False
    rest = _TAG.sub("", _LINK.sub("", _IMAGE.sub("", line)))
    if any(map(str.isalnum, rest)):
        return False
    return bool(_BADGE_HOSTS.search(line)) and ("!" in line or "<img" in line.lower())


def is_cookie_notice(line: str) -> bool:
    """Return True if a line asks for consent to cookies; not for a long text about them."""
    return "ookie" in line and len(line) <= _COOKIE_LINE and bool(_COOKIES.search(line))


def is_share_line(line: str) -> bool:
    """Return True for a page's share, follow, log-in, skip or copyright line."""
    if len(line) > _MAX_LINE:
        return False
    words = line.casefold().split()
    text = " ".join(words)
    if text in _SHARE_LINES:
        return True
    if len(words) <= _SHARE_WORDS and text.startswith(_SHARE_STARTS):
        return not text.endswith(":") or len(words) <= 4
    copyrighted = "©" in text or "(c)" in text or "copyright" in text
    return copyrighted and len(words) <= 30 and any(phrase in text for phrase in _RIGHTS)


def is_link_row(line: str) -> bool:
    """Return True for a row of three or more short link texts: Home | About us | Contact."""
    line = " ".join(line.split()) if len(line) <= _MAX_LINE else ""
    if line.endswith(_SENTENCE_MARKS) or "| |" in line:  # "| |": a heading with badges in reST
        return False
    parts = [part for part in _SEPARATOR.split(line) if part]
    if len(parts) < 3 or any(len(part) > 40 or part.count(" ") > 4 for part in parts):
        return False
    return all(part[0].isupper() or (part[0].isalpha() and not part.isascii()) for part in parts)


def is_link_item(line: str) -> bool:
    """Return True if a line holds only one Markdown link, as in a table of contents."""
    line = line.strip()
    if len(line) > _MAX_LINE or "](" not in line:
        return False
    item = _BULLET.sub("", line, count=1)
    return item.startswith("[") and _LINK.fullmatch(item) is not None


def is_menu_item(line: str) -> bool:
    """Return True if a line can be a menu entry: one to four plain words, no final punctuation.

    A single one may just as well be a heading or a name; only a run of them is a menu.
    """
    if not 1 < len(line) <= 40 or line[0].isspace() or line.endswith(_SENTENCE_MARKS):
        return False
    if not (line[0].isupper() or (line[0].isalpha() and not line[0].islower())):
        return False
    return line.count(" ") < 4 and _MENU_CHARACTERS.fullmatch(line.rstrip()) is not None


def boilerplate_lines(lines: Sequence[str]) -> list[str]:
    """For each line the reason to remove it, or "". Lines of fenced code blocks stay."""
    code = _fenced(lines)
    reasons = [
        "" if inside or not line.strip() else _line_reason(line)
        for line, inside in zip(lines, code, strict=True)
    ]
    for position, line in enumerate(lines):
        # The options of a removed image directive are removed, too.
        if position and reasons[position - 1] == "badge" and _REST_OPTION.match(line.lstrip()):
            reasons[position] = "badge"
    _mark_runs(lines, code, reasons, is_link_item, _LINK_RUN, "link list")
    _mark_runs(lines, code, reasons, is_menu_item, _MENU_RUN, "menu")
    _unmark_tables(lines, reasons)
    return reasons


def _line_reason(line: str) -> str:
    if is_badge(line):
        return "badge"
    if is_cookie_notice(line):
        return "cookie notice"
    if is_share_line(line):
        return "page frame"
    return "link row" if is_link_row(line) else ""


def _fenced(lines: Sequence[str]) -> list[bool]:
    """For each line whether it is in a Markdown code fence; an unclosed fence is ignored."""
    inside = [False] * len(lines)
    opened = -1
    for position, line in enumerate(lines):
        if not line.lstrip().startswith(_FENCE):
            continue
        if opened < 0:
            opened = position
        else:
            inside[opened : position + 1] = [True] * (position + 1 - opened)
            opened = -1
    return inside


def _mark_runs(
    lines: Sequence[str],
    code: Sequence[bool],
    reasons: list[str],
    is_member: Callable[[str], bool],
    min_run: int,
    reason: str,
) -> None:
    """Mark runs of `min_run` or more members; blank and marked lines do not end a run."""
    run: list[int] = []
    for position in range(len(lines) + 1):
        if position < len(lines):
            if not code[position] and is_member(lines[position]):
                run.append(position)
                continue
            if reasons[position] or not lines[position].strip():
                continue
        if len(run) >= min_run:
            for member in run:
                reasons[member] = reasons[member] or reason
        run.clear()


def _unmark_tables(lines: Sequence[str], reasons: list[str]) -> None:
    """Unmark rows of tables: link rows next to a line with as many bars or to a ruled line."""
    bars = [line.count("|") for line in lines]
    for position, reason in enumerate(reasons):
        if reason == "link row" and bars[position]:
            near = [n for n in (position - 1, position + 1) if 0 <= n < len(lines)]
            if any(bars[n] == bars[position] or lines[n].startswith(("+-", "+=")) for n in near):
                reasons[position] = ""
