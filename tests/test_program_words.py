"""Words, graphemes and equal text, as people see them in any script."""

import unicodedata
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxhpc.program.match import find_equivalent
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, ReplayResult, WindowProgram, replay
from proxhpc.program.syntax import Normalize, Quoted
from proxhpc.program.words import folded, has_zero_width

LITERAL = Policy(min_kept_words=0, strict=True)
FREE = Policy(min_kept_words=0)


def normalize(text: str, source: str, target: str = "X", policy: Policy = FREE) -> ReplayResult:
    program = str(Normalize(Quoted.of(source), Quoted.of(target)))
    window = WindowProgram(0, text.count("\n") + 1, ModelOutput(program, "stop"))
    return replay(text, None, [window], policy, ProgramFormat())


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("about 3.14 or so", "14"),
        ("about 3.14 or so", "3"),
        ("in 1,000 days", "000"),
        ("I don't know", "t"),
        ("I don't know", "don"),
        ("the body’s mass", "s"),
        ("call my_func now", "my"),
        ("call my_func now", "func"),
        ("see example.com now", "com"),
        ("see example.com now", "example"),
        ("in the U.S. today", "U"),
        ("cafe\u0301 noir", "cafe"),
        ("हिन्दी में", "ह"),
        ("हिन्दी में", "हिन्द"),
        ("ภาษาที่ดี", "ภาษาท"),  # before the vowel sign of the same syllable
        ("ภาษาไทย", "ทย"),  # after a vowel that is written before its consonant
        ("ភាសាខ្មែរ", "ភ"),
        ("ភាសាខ្មែរ", "ភាសាខ"),
        ("မြန်မာ", "မ"),
        ("hi 👩\u200d👩\u200d👧 you", "👧"),
        ("hi 👍🏽 you", "👍"),
        ("hi 🇩🇪 you", "🇩"),
        ("カタカナ語", "カタ"),
        ("한국어 안내", "한"),
    ],
)
def test_no_part_of_a_word_or_grapheme_is_replaced(text: str, part: str) -> None:
    assert part in text
    result = normalize(text, part)
    assert (result.text, result.rejected) == (text, {"inside_word": 1})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("about 3.14 or so", "3.14"),
        ("14 days, not 3.14", "14"),
        ("I don't know", "don't"),
        ("It ended.Then it began", "Then"),  # two sentences, no blank
        ("the (adult) brain", "adult"),
        ("see example.com/x now", "example.com"),
        ("in the U.S. today", "U.S."),
        ("hi 👩\u200d👩\u200d👧👧 you", "👩\u200d👩\u200d👧"),
        ("from 🇩🇪🇫🇷 here", "🇩🇪"),
        ("点击这里正文", "这里"),
        ("ภาษาไทย", "ภาษา"),
        ("မြန်မာ", "မြန်"),
        ("한국어 안내", "한국어"),
        ("a | b", "|"),
    ],
)
def test_whole_words_are_replaced(text: str, word: str) -> None:
    result = normalize(text, word)
    assert (result.text, result.rejected) == (text.replace(word, "X", 1), {})


def test_without_whole_words_only_graphemes_are_safe() -> None:
    policy = Policy(min_kept_words=0, whole_words=False)
    assert normalize("about 3.14", "14", "x", policy).text == "about 3.x"
    assert normalize("cafe\u0301", "cafe", "x", policy).rejected == {"inside_word": 1}


@pytest.mark.parametrize(
    ("page", "program"),
    [
        ("der Käse hier", unicodedata.normalize("NFD", "Käse hier")),
        (unicodedata.normalize("NFD", "der Käse hier"), "Käse hier"),
        (unicodedata.normalize("NFD", "여기 한국어 안내"), "한국어 안내"),
        (unicodedata.normalize("NFD", "trang tiếng Việt"), "tiếng Việt"),
        ("the\u00a0adult brain", "the adult"),
        ("the adult brain", "the\u00a0adult"),
        ("the  adult \t brain", "the adult brain"),
        ("the\u202fadult\u2009brain", "the adult brain"),
        ("the adult\r\nbrain is", "adult\nbrain"),
        ("the ad\u200bult brain", "adult brain"),
        ("the ad\u00adult brain", "adult brain"),
        ("the adult\u200bbrain", "adult brain"),
        ("all \u2764\ufe0f you need", "\u2764 you"),
        ("all \u2764 you need", "\u2764\ufe0f you"),
        ("a ﬁne eﬀort", "fine effort"),
        ("a fine effort", "ﬁne eﬀort"),
        ("wait … now", "wait ... now"),
        ("ｆｕｌｌ width", "full width"),
    ],
)
def test_equal_text_is_found_and_counted(page: str, program: str) -> None:
    result = normalize(page, program)
    assert (result.strings_replaced, result.rejected) == (1, {})
    assert result.lenient == {"equivalent_text": 1}
    strict = normalize(page, program, policy=LITERAL)
    assert (strict.text, strict.rejected, strict.lenient) == (page, {"not_found": 1}, {})


@pytest.mark.parametrize(
    ("page", "program"),
    [
        ("the adult brain", "The adult"),
        ("resume now", "résumé now"),
        ("the adult\nbrain", "the adult brain"),
        ("the adultbrain", "the adult brain"),
        ("the adult - brain", "the adult – brain"),
        ("½ cup", "1 cup"),
        ("two ㎏㎏", "gk"),
    ],
)
def test_other_text_is_not_equal(page: str, program: str) -> None:
    assert normalize(page, program).rejected == {"not_found": 1}


@pytest.mark.parametrize(
    ("page", "source", "target", "after"),
    [
        (r"so \theta is", r"\theta", r"\tau", r"so \tau is"),
        (r"a \\ \hline b", r"\\ \hline", "", "a  b"),
        (r"so \rho and \nu is", r"\rho and \nu", r"\tau", r"so \tau is"),
        ("so $x$ is", "$x$", r"$\theta$", r"so $\theta$ is"),
        (r"so \alpha is", r"\alpha", r"\theta", r"so \theta is"),
        ("so\tall is", r"so\tall", "so all", "so all is"),
        (r"so \text{a \"b\"} is", r"\text{a \"b\"}", "ab", "so ab is"),
    ],
)
def test_latex_is_read_as_the_window_has_it(
    page: str, source: str, target: str, after: str
) -> None:
    program = f'normalize(source_str="{source}", target_str="{target}")'
    window = WindowProgram(0, 1, ModelOutput(program, "stop"))
    result = replay(page, None, [window], FREE, ProgramFormat())
    assert (result.text, result.rejected) == (after, {})


letters = st.lists(
    st.sampled_from(
        [*"ab1 .\t\n", "  ", "é", "e\u0301", "ﬁ", "…", "\u00a0", "\u200b", "한", "㎏", "\r\n"]
    ),
    max_size=30,
).map("".join)


@given(letters, letters, letters, st.booleans())
def test_what_is_found_is_equal_and_any_other_form_of_a_text_is_found(
    before: str, source: str, after: str, decompose: bool
) -> None:
    page = before + unicodedata.normalize("NFD" if decompose else "NFC", source) + after
    spans = find_equivalent(page, 0, len(page), source, 9)
    assert spans == sorted(spans)
    assert all(a[1] <= b[0] for a, b in pairwise(spans))
    for start, stop in spans:
        forms = [
            {folded(text, zero_width=sign).strip() for sign in ("", " ")}
            for text in (page[start:stop], source)
        ]
        assert forms[0] & forms[1]
    if source.strip() and source in page and not has_zero_width(page) and page.isascii():
        assert spans
