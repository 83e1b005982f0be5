"""The published expert rules for web text, as pure functions: C4, Gopher quality, FineWeb.

Each rule returns the reason to remove a document or line, or "" to keep it. Reasons consist of
fixed words and numbers, never of text from the document.

The rules were made for English, where spaces separate words. Chinese, Japanese, Thai and similar
scripts have no such spaces, so that rules that count words would drop every document. There, two
characters count as one word, and the rules on the form of single words are skipped.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from proxhpc.account.quantity import quantity

Script = Literal["spaced", "unspaced", "unpunctuated"]
"""How a text marks words and sentences: with spaces, only with 。 (Chinese), or not at all."""

CHARACTERS_PER_WORD = 2
"""In unspaced scripts; the mean length of a Chinese word in running text is 1.5 to 2."""

_SCRIPT_SAMPLE = 1 << 16
_UNSPACED_SHARE = 0.25
_CJK = re.compile(
    r"[\u2e80-\u2fdf\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    r"\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff]+"
)
_UNPUNCTUATED = re.compile(r"[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff]+")

# C4 has . ? ! and ", datatrove adds '. The others are these marks in other scripts.
TERMINAL = (*".?!\"'", *"”’»。．！？｡」』）؟۔।॥։።")
_ELLIPSES = ("...", "…")
_CITATION = re.compile(r"\[\d{0,9}\]|\[edit\]|\[citation needed\]")
_SENTENCE_END = re.compile(r"[.?!][\"'”’)\]»]*+(?:\s++(?![a-z])|$)|[。！？｡؟۔।॥։።]")
_POLICY = (
    *("terms of use", "privacy policy", "cookie policy"),
    *("uses cookies", "use of cookies", "use cookies"),
)
_LINE_WORDS = 5
_WORD_CHARACTERS = 1000
_SENTENCES = 5

_DOCUMENT_WORDS = (50, 100_000)
_BEYOND_LATIN = "\u0370"
# Gopher's eight English words, then eight for each of other languages in Latin script.
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
    """The script of `text`, decided by a quarter of the letters in its first 65,536 characters."""
    if text.isascii():
        return "spaced"
    sample = text[:_SCRIPT_SAMPLE]
    cjk = sum(map(len, _CJK.findall(sample)))
    unpunctuated = sum(map(len, _UNPUNCTUATED.findall(sample)))
    unspaced = cjk + unpunctuated
    if not unspaced or unspaced < _UNSPACED_SHARE * sum(map(str.isalpha, sample)):
        return "spaced"
    return "unspaced" if cjk >= unpunctuated else "unpunctuated"


def count_words(words: Sequence[str], script: Script) -> int:
    """Number of words; in unspaced scripts, half the number of characters."""
    if script == "spaced":
        return len(words)
    return sum(map(len, words)) // CHARACTERS_PER_WORD


@dataclass(frozen=True, slots=True)
class ParsedDocument:
    """A document split once for all rules; `lines` are stripped and not blank."""

    text: str
    lines: tuple[str, ...]
    words: tuple[str, ...]
    script: Script

    @classmethod
    def of(cls, text: str) -> "ParsedDocument":
        """Split `text` into lines and words."""
        lines = tuple(line for raw in text.split("\n") if (line := raw.strip()))
        return cls(text, lines, tuple(text.split()), script_of(text))

    @property
    def word_count(self) -> int:
        """Number of words, from `count_words`."""
        return count_words(self.words, self.script)


def c4_line(line: str) -> str:
    """Why C4 removes this line, or "" (Raffel et al. 2020, §2.2; T5's c4_utils).

    A line needs terminal punctuation (after which a citation like [1] may follow) and five words
    (datatrove: three), none over 1,000 characters, and must not mention JavaScript, cookies or
    policies. The published rule removes headings, list items and code.
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
    """Number of sentences, at least one. They end with 。 or a mark that a capital may follow."""
    return max(1, sum(1 for _ in _SENTENCE_END.finditer(line)))


def c4_document(document: ParsedDocument) -> str:
    """Why C4 removes this document, or "".

    As in datatrove (FineWeb): only lines that `c4_line` keeps count, and they must have 5 sentences
    (T5's c4_utils: 3), counted without a trained splitter. There is no list of bad words.
    """
    sentences = 0
    for line in document.lines:
        if c4_line(line):
            continue
        if "lorem ipsum" in line.lower():
            return "lorem ipsum"
        if "{" in line:
            return "curly bracket"
        sentences += count_sentences(line)
    unmarked = document.script == "unpunctuated"
    enough = sentences >= _SENTENCES or unmarked
    return "" if enough else f"{quantity(sentences, 'sentence')} < {_SENTENCES}"


def gopher_quality(document: ParsedDocument) -> str:
    """Why Gopher's quality rules remove this document, or "" (Rae et al. 2021, A1.1).

    Words are separated by spaces and include punctuation. The published stop words are English and
    would drop every other language: here the list of any one language suffices, and scripts other
    than Latin pass.
    """
    low, high = _DOCUMENT_WORDS
    count = document.word_count
    if count < low:
        return f"{quantity(count, 'word')} < {low}"
    if count > high:
        return f"{quantity(count, 'word')} > {high:,}"
    return _lines_and_symbols(document, count) or _word_forms(document)


def _lines_and_symbols(document: ParsedDocument, count: int) -> str:
    hashes = document.text.count("#") / count
    if hashes > 0.1:
        return f"hash-to-word ratio {hashes:.2f} > 0.1"
    ellipses = sum(map(document.text.count, _ELLIPSES)) / count
    if ellipses > 0.1:
        return f"ellipsis-to-word ratio {ellipses:.2f} > 0.1"
    bullets = sum(line.startswith(_BULLETS) for line in document.lines) / len(document.lines)
    if bullets > 0.9:
        return f"bullet lines {bullets:.2f} > 0.9"
    open_ended = sum(line.endswith(_ELLIPSES) for line in document.lines) / len(document.lines)
    return f"ellipsis lines {open_ended:.2f} > 0.3" if open_ended > 0.3 else ""


def _word_forms(document: ParsedDocument) -> str:
    if document.script != "spaced":
        return ""
    words = document.words
    mean = sum(map(len, words)) / len(words)
    # A Hangul character is a syllable of two or three letters: Korean words have few characters.
    if mean < 3 and not any("가" <= word[0] <= "힣" for word in words[:1000]):
        return f"mean word length {mean:.1f} < 3"
    if mean > 10:
        return f"mean word length {mean:.1f} > 10"
    alphabetic = sum(word.isalpha() or any(map(str.isalpha, word)) for word in words) / len(words)
    if alphabetic < 0.8:
        return f"alphabetic words {alphabetic:.2f} < 0.8"
    count = count_stop_words(words)
    return f"{count} stop words < 2" if count < 2 else ""


def count_stop_words(words: Sequence[str]) -> int:
    """Distinct stop words of the language with most of them; 2 for scripts other than Latin."""
    sample = words[:1000]
    if sum(word[0] >= _BEYOND_LATIN for word in sample) * 2 > len(sample):
        return 2
    distinct = set(words)
    return max(len(distinct & known) for known in _STOP_WORDS)


def duplicate_shares(parts: Sequence[str]) -> tuple[float, float]:
    """Share of `parts`, and of their characters, that repeat an earlier part."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        seen.add(part)
    return count / max(1, len(parts)), characters / max(1, sum(map(len, parts)))


def fineweb(document: ParsedDocument) -> str:
    """Why FineWeb's rules remove this document, or "" (Penedo et al. 2024, §3.6).

    Of the lines that are not blank, at most 12 % end with punctuation, or 67 % or more have fewer
    than 30 characters, or 10 % or more of the characters repeat an earlier line.
    """
    if not document.lines:
        return ""
    marked = sum(line.endswith(TERMINAL) for line in document.lines) / len(document.lines)
    if marked <= 0.12 and document.script != "unpunctuated":
        return f"lines ending in punctuation {marked:.2f} <= 0.12"
    width = 30 if document.script == "spaced" else 30 // CHARACTERS_PER_WORD
    short = sum(len(line) < width for line in document.lines) / len(document.lines)
    if short >= 0.67:
        return f"short lines {short:.2f} >= 0.67"
    characters = duplicate_shares(document.lines)[1]
    return f"characters in duplicate lines {characters:.2f} >= 0.1" if characters >= 0.1 else ""
