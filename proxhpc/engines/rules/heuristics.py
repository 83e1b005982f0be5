"""The published expert rules for web text: C4, Gopher's quality, FineWeb, as pure functions.

Each rule returns the reason it condemns a document or line for, or "" where it has none. Reasons
hold fixed words and numbers, never text of the document.

The rules were made for English, whose words stand between spaces. Chinese, Japanese, Thai and
their like have none, and a rule that counts words would blank every document: there, two
characters count as one word and the rules on the form of single words are skipped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Script = Literal["spaced", "unspaced", "unpunctuated"]
"""How a text marks words and sentences: by spaces; by 。 alone (Chinese, Japanese); by neither."""

CHARACTERS_PER_WORD = 2
"""Of an unspaced script; the mean length of a Chinese word in running text is 1.5 to 2."""

_SCRIPT_SAMPLE = 1 << 16
_UNSPACED_SHARE = 0.25
_CJK = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
_UNPUNCTUATED = re.compile(r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]+")

# C4 has . ? ! and ", datatrove adds '. The rest are the same marks in other scripts' types.
TERMINAL = (*".?!\"'", *"”’»。．！？｡」』）؟۔।॥։።")
_ELLIPSES = ("...", "…")
_CITATION = re.compile(r"\[\d{0,9}\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.?!][\"'”’)\]»]*+(?:\s++(?![a-z])|$)|[。！？｡؟۔।॥։።]")
_POLICY = (
    "terms of use",
    "privacy policy",
    "cookie policy",
    "uses cookies",
    "use of cookies",
    "use cookies",
)
_LINE_WORDS = 5
_WORD_CHARACTERS = 1000
_SENTENCES = 5

_DOCUMENT_WORDS = (50, 100_000)
_BEYOND_LATIN = "\u0370"
# Gopher's eight English words, then the like of other languages in Latin script.
_STOP_WORDS = tuple(
    frozenset(words.split())
    for words in (
        "the be to of and that have with",
        "der die und das ist nicht mit von",
        "le la les et des une est dans",
        "el la los que y en una por",
        "il di che è non per una della",
        "o que de não uma com os para",
        "de het een van en dat niet met",
        "och att det som är på inte för",
        "og det at er ikke på som til",
        "ja on ei että se oli ovat kuin",
        "nie się na że jest do oraz to",
        "a je se na že to není jako",
        "ve bir bu için ile da olarak çok",
        "yang dan di ini itu dengan untuk tidak",
        "và của là có không được các những",
        "a az és hogy nem egy van is",
        "și de la în care nu este pe",
        "i je u se na da su za",
        "ir kad yra su iš tai į kaip",
        "un ir ka uz par ar no kas",
        "ja on ei et see ka oli või",
        "eta da ez du bat dira dute ere",
        "i que de la el els amb per",
    )
)
_BULLETS = ("•", "‣", "▪", "◦", "●", "-", "*")


def script_of(text: str) -> Script:
    """How the first 65,536 characters of `text` mark words: a quarter of the letters decides."""
    if text.isascii():
        return "spaced"
    sample = text[:_SCRIPT_SAMPLE]
    cjk = sum(map(len, _CJK.findall(sample)))
    unpunctuated = sum(map(len, _UNPUNCTUATED.findall(sample)))
    if not cjk + unpunctuated:
        return "spaced"
    if cjk + unpunctuated < _UNSPACED_SHARE * sum(map(str.isalpha, sample)):
        return "spaced"
    return "unspaced" if cjk >= unpunctuated else "unpunctuated"


def count_words(words: Sequence[str], script: Script) -> int:
    """Words between spaces; for the other scripts their characters, two to a word."""
    if script == "spaced":
        return len(words)
    return sum(map(len, words)) // CHARACTERS_PER_WORD


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document taken apart once for all rules; `lines` are stripped and none is blank."""

    text: str
    lines: tuple[str, ...]
    words: tuple[str, ...]
    script: Script

    @classmethod
    def of(cls, text: str) -> "ParsedDocument":
        """Take `text` apart."""
        lines = tuple(line for raw in text.split("\n") if (line := raw.strip()))
        return cls(text, lines, tuple(text.split()), script_of(text))

    @property
    def word_count(self) -> int:
        """Words by `count_words`."""
        return count_words(self.words, self.script)


def c4_line(line: str) -> str:
    """Why C4 removes this line, or "" (Raffel et al. 2020, §2.2; T5's c4_utils).

    Terminal punctuation, at least five words (datatrove: three), no word over 1,000 characters, no
    "javascript", no talk of cookies and policies. Citation marks like [1] do not count as the
    line's end. Headings, list items and code fall to it: that is the published rule.
    """
    line = line.strip()
    words = line.split()
    script = script_of(line)
    if script == "spaced" and words and max(map(len, words)) > _WORD_CHARACTERS:
        return f"word over {_WORD_CHARACTERS} characters"
    bare = _CITATION.sub("", line).rstrip()
    # Thai, Lao, Khmer and Burmese prose ends in no mark at all.
    if script != "unpunctuated" and (not bare.endswith(TERMINAL) or bare.endswith(_ELLIPSES)):
        return "no terminal punctuation"
    if count_words(words, script) < _LINE_WORDS:
        return f"under {_LINE_WORDS} words"
    lower = line.lower()
    if "javascript" in lower:
        return "javascript"
    return "policy notice" if any(phrase in lower for phrase in _POLICY) else ""


def count_sentences(line: str) -> int:
    """Sentences of a line, at least one: ends before a space and no lower-case letter, or 。."""
    return max(1, sum(1 for _ in _SENTENCE_END.finditer(line)))


def c4_document(page: ParsedDocument) -> str:
    """Why C4 removes this page, or "".

    In the widely used form of datatrove (FineWeb's): only lines that survive `c4_line` are looked
    at, and fewer than 5 sentences condemn (T5's c4_utils: 3), counted without a trained splitter.
    The list of bad words is not part of this form.
    """
    sentences = 0
    for line in page.lines:
        if c4_line(line):
            continue
        if "lorem ipsum" in line.lower():
            return "lorem ipsum"
        if "{" in line:
            return "curly bracket"
        sentences += count_sentences(line)
    unmarked = page.script == "unpunctuated"
    return "" if sentences >= _SENTENCES or unmarked else f"{sentences} sentences < {_SENTENCES}"


def gopher_quality(page: ParsedDocument) -> str:
    """Why Gopher's quality rules remove this document, or "" (Rae et al. 2021, A1.1).

    Words stand between spaces and keep their punctuation. The published stop words are English, so
    that every other language would be dropped: here any one language's list of eight will do, and
    scripts other than Latin pass.
    """
    low, high = _DOCUMENT_WORDS
    count = page.word_count
    if count < low:
        return f"{count} words < {low}"
    if count > high:
        return f"{count} words > {high}"
    return _lines_and_symbols(page, count) or _word_forms(page)


def _lines_and_symbols(page: ParsedDocument, count: int) -> str:
    hashes = page.text.count("#") / count
    if hashes > 0.1:
        return f"hash-to-word ratio {hashes:.2f} > 0.1"
    ellipses = sum(map(page.text.count, _ELLIPSES)) / count
    if ellipses > 0.1:
        return f"ellipsis-to-word ratio {ellipses:.2f} > 0.1"
    bullets = sum(line.startswith(_BULLETS) for line in page.lines) / len(page.lines)
    if bullets > 0.9:
        return f"bullet lines {bullets:.2f} > 0.9"
    cut = sum(line.endswith(_ELLIPSES) for line in page.lines) / len(page.lines)
    return f"ellipsis lines {cut:.2f} > 0.3" if cut > 0.3 else ""


def _word_forms(page: ParsedDocument) -> str:
    if page.script != "spaced":
        return ""
    words = page.words
    mean = sum(map(len, words)) / len(words)
    # A Hangul syllable block holds two or three letters, so Korean words are short in characters.
    if mean < 3 and not any("가" <= word[0] <= "힣" for word in words[:1000]):
        return f"mean word length {mean:.1f} < 3"
    if mean > 10:
        return f"mean word length {mean:.1f} > 10"
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / len(words)
    if alphabetic < 0.8:
        return f"alphabetic words {alphabetic:.2f} < 0.8"
    found = stop_words(words)
    return f"{found} stop words < 2" if found < 2 else ""


def stop_words(words: Sequence[str]) -> int:
    """Different stop words of the language that has most of them here; 2 for other than Latin."""
    sample = words[:1000]
    if sum(word[0] >= _BEYOND_LATIN for word in sample) * 2 > len(sample):
        return 2
    distinct = set(words)
    return max(len(distinct & known) for known in _STOP_WORDS)


def duplicates(parts: Sequence[str]) -> tuple[float, float]:
    """Shares of `parts`, and of their characters, that repeat an earlier part."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count / max(1, len(parts)), characters / max(1, sum(map(len, parts)))


def fineweb(page: ParsedDocument) -> str:
    """Why FineWeb's own rules remove this document, or "" (Penedo et al. 2024, §3.6).

    The paper's three, over lines that are not blank: at most 12 % of them end in punctuation, 67 %
    or more are under 30 characters, a tenth of the characters or more repeat an earlier line.
    """
    if not page.lines:
        return ""
    marked = sum(line.endswith(TERMINAL) for line in page.lines) / len(page.lines)
    if marked <= 0.12 and page.script != "unpunctuated":
        return f"lines ending in punctuation {marked:.2f} <= 0.12"
    width = 30 if page.script == "spaced" else 30 // CHARACTERS_PER_WORD
    short = sum(len(line) < width for line in page.lines) / len(page.lines)
    if short >= 0.67:
        return f"short lines {short:.2f} >= 0.67"
    characters = duplicates(page.lines)[1]
    return f"characters in duplicate lines {characters:.2f} >= 0.1" if characters >= 0.1 else ""
