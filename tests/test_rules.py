"""The rules engine: each published rule, boilerplate, and the programs it writes."""

import asyncio
import io
import os
import re
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from proxhpc.engines.base import LARGE_TEXT, Completion, Request
from proxhpc.engines.rules.boilerplate import boilerplate_lines, is_badge
from proxhpc.engines.rules.engine import RULES, RulesEngine
from proxhpc.engines.rules.heuristics import (
    ParsedDocument,
    c4_document,
    c4_line,
    count_sentences,
    count_stop_words,
    fineweb,
    gopher_quality,
    script_of,
)
from proxhpc.engines.rules.repetition import gopher_repetition, ngram_shares
from proxhpc.program.parse import parse_chunk, parse_doc
from proxhpc.spec.sections import EngineOptions, RuleSet

PROSE = """\
The harbour of the small town had been built by fishermen long before anyone kept records.
Its walls were made of grey stone, and they have stood up to every storm with little repair.
In the morning the boats leave early, because the best water is far out beyond the islands.
Children learn to row before they learn to read, or that is what the old people say there.
When the railway came the fish went to the city on the same day, packed in crates of ice.
Today most houses belong to visitors, but the market is still held on the quay each Friday."""

CHINESE = """\
北京是中华人民共和国的首都，也是全国的政治和文化中心。
这座城市有三千多年的建城史，历史上曾是五个朝代的都城。
每年秋天，香山的红叶吸引着来自世界各地的游客前来观赏。
胡同和四合院保留了老北京人的生活方式，让人流连忘返。
近年来，地铁线路不断延伸，市民的出行变得越来越方便。
傍晚时分，老人们在公园里下棋聊天，孩子们在一旁嬉戏。"""

THAI = """\
กรุงเทพมหานครเป็นเมืองหลวงและนครที่มีประชากรมากที่สุดของประเทศไทย
เป็นศูนย์กลางการปกครอง การศึกษา การคมนาคมขนส่ง และความเจริญก้าวหน้าของประเทศ
ตั้งอยู่บนสามเหลี่ยมปากแม่น้ำเจ้าพระยา มีแม่น้ำเจ้าพระยาไหลผ่านและแบ่งเมืองออกเป็นสองฝั่ง
ในแต่ละปีมีนักท่องเที่ยวจากทั่วโลกเดินทางมาเยี่ยมชมวัดและพระราชวังจำนวนมาก"""

RUSSIAN = """\
Старый маяк стоит на краю мыса и каждую ночь освещает путь кораблям, которые идут домой.
Смотритель поднимается по лестнице, проверяет лампу и записывает погоду в толстую тетрадь.
Зимой ветер бьёт в окна, и тогда он долго не может уснуть под шум далёких волн.
Летом сюда приезжают дети из соседней деревни, чтобы послушать его рассказы о море.
Говорят, что он помнит все суда, которые прошли мимо за последние тридцать лет.
Утром он варит кофе, открывает дверь и снова смотрит на спокойную воду залива."""


def ask(
    engine: RulesEngine, lines: Sequence[str], level: str = "chunk", first_line: int = 0
) -> str:
    request = Request(
        level=level,  # type: ignore[arg-type]
        prompt=(),
        lines=lines,
        first_line=first_line,
        max_new_tokens=0,
    )
    completion = asyncio.run(engine.complete(request))
    assert completion.finish == "stop"
    assert (completion.prompt_tokens, completion.cached_tokens, completion.new_tokens) == (0, 0, 0)
    return completion.text


def verdict(text: str, rules: Sequence[RuleSet] = RULES) -> str:
    return ask(RulesEngine(rules), text.split("\n"), "doc")


def removed(program: str) -> list[int]:
    spans = re.findall(r"^remove_lines\(start=(\d+), end=(\d+)\)", program, re.MULTILINE)
    return [line for a, b in spans for line in range(int(a), int(b) + 1)]


# Documents -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PROSE, CHINESE, THAI, RUSSIAN], ids=["en", "zh", "th", "ru"])
def test_ordinary_prose_is_kept_in_every_script(text: str) -> None:
    assert verdict(text) == "keep_doc()"


@pytest.mark.parametrize(
    ("text", "rule", "reason"),
    [
        ("Too short to say much.", "gopher", "5 words < 50"),
        ("", "gopher", "0 words < 50"),
        ("Hello.", "gopher", "1 word < 50"),
        (PROSE[: PROSE.index(".") + 1], "c4", "1 sentence < 5"),
        ("the of and it " * 30_000, "gopher", "120,000 words > 100,000"),
        ("a b of to c d " * 20, "gopher", "mean word length 1.3 < 3"),
        ("internationalisation of the incomprehensibilities " * 15, "gopher", "mean word length"),
        (PROSE + " #" * 20, "gopher", "hash-to-word ratio 0.16 > 0.1"),
        (PROSE.replace(",", " ...") + " …" * 12, "gopher", "ellipsis-to-word ratio"),
        ("\n".join("- " + line for line in PROSE.split("\n")), "gopher", "bullet lines 1.00 > 0.9"),
        (PROSE.replace(".\n", " …\n"), "gopher", "ellipsis lines 0.83 > 0.3"),
        (PROSE + " 1234" * 40, "gopher", "alphabetic words 0.72 < 0.8"),
        ("lamp desk chair window carpet mirror sofa pillow " * 8, "gopher", "0 stop words < 2"),
        (PROSE + "\n" + "\n".join(PROSE.split("\n")[:4]), "gopher", "duplicate lines 0.40 > 0.3"),
        (PROSE + "\nOdd.\nEven." + "\nYes." * 5, "gopher", "duplicate lines 0.31 > 0.3"),
        (PROSE + "\n\n" + PROSE, "gopher", "duplicate paragraphs 0.50 > 0.3"),
        (PROSE.replace(".", " it"), "c4", "0 sentences < 5"),
        (PROSE.replace("walls", "{walls}"), "c4", "curly bracket"),
        (PROSE.replace("harbour", "Lorem ipsum"), "c4", "lorem ipsum"),
        (PROSE.replace(".", ""), "fineweb", "lines ending in punctuation 0.00 <= 0.12"),
        (PROSE + "\nOdd line" + "\nA line." * 13, "fineweb", "short lines 0.70 >= 0.67"),
        (PROSE + "\n" + PROSE[:90], "fineweb", "characters in duplicate lines 0.14 >= 0.1"),
    ],
)
def test_each_document_rule_names_its_reason(text: str, rule: RuleSet, reason: str) -> None:
    assert verdict(text, [rule]).startswith(f"drop_doc()  # {rule}: ")
    assert reason in verdict(text, [rule])


def test_only_the_chosen_rules_apply() -> None:
    no_marks = PROSE.replace(".", "")
    assert verdict(no_marks, ["gopher"]) == "keep_doc()"
    assert verdict("short", []) == "keep_doc()"
    assert verdict(no_marks).startswith("drop_doc()  # c4: ")


def test_stop_words_must_be_of_one_language() -> None:
    assert count_stop_words(["das", "Haus", "ist", "alt", "und", "nicht", "groß"]) == 4
    assert count_stop_words(["the", "der", "le", "tower", "bridge"]) == 1
    assert count_stop_words(["маяк", "стоит"]) == 2


def test_in_chinese_two_characters_count_as_a_word() -> None:
    assert script_of(CHINESE) == "unspaced"
    assert script_of(THAI) == "unpunctuated"
    assert script_of("Naïve café, 東 in one place") == "spaced"
    assert gopher_quality(ParsedDocument.of(CHINESE[:80])) == "39 words < 50"
    assert gopher_quality(ParsedDocument.of(CHINESE)) == ""
    assert c4_document(ParsedDocument.of(CHINESE[:57])) == "2 sentences < 5"
    assert "duplicate" in gopher_repetition(ParsedDocument.of(CHINESE + CHINESE[:100]))


def test_an_abbreviation_before_a_small_letter_ends_no_sentence() -> None:
    assert count_sentences("It works, e.g. here. Does it? Yes!") == 3
    assert count_sentences('He said: "No." She left.') == 2
    assert count_sentences("one without any mark") == 1


def naive_shares(units: Sequence[str], scale: int) -> dict[str, float]:
    total = sum(map(len, units))
    shares = {}
    for words in range(2, 11):
        n = words * scale
        grams = [tuple(units[i : i + n]) for i in range(len(units) - n + 1)]
        counts = Counter(grams)
        top = max(counts.values(), default=0)
        if top < 2:
            break
        longest = max(sum(map(len, gram)) for gram, count in counts.items() if count == top)
        if words <= 4:
            shares[f"top {words}-gram"] = longest * top / total
        else:
            repeats = [i for i, gram in enumerate(grams) if gram in grams[:i]]
            covered = {k for i in repeats for k in range(i, i + n)}
            shares[f"duplicate {words}-gram"] = sum(len(units[k]) for k in covered) / total
    return shares


@given(st.lists(st.sampled_from(["a", "of", "tree", "house", "Z9"]), min_size=1, max_size=60))
def test_ngram_shares_match_a_naive_count(words: list[str]) -> None:
    shares = {name: share for name, share, _ in ngram_shares(ParsedDocument.of(" ".join(words)))}
    assert shares == pytest.approx(naive_shares(words, 1))


@given(st.text(alphabet="山水月日𠀀", min_size=1, max_size=60))
def test_ngram_shares_count_two_chinese_characters_as_a_word(text: str) -> None:
    shares = {name: share for name, share, _ in ngram_shares(ParsedDocument.of(text * 2))}
    assert shares == pytest.approx(naive_shares(text * 2, 2))


def test_repeated_ngrams_drop_a_document() -> None:
    passage = "the boats come home before the night and leave again when the sun is up"
    text = PROSE.replace("\n", f" {passage}\n")
    assert gopher_repetition(ParsedDocument.of(text)) == "duplicate 5-gram characters 0.31 > 0.15"


# Lines -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("The boats come home at night.", ""),
        ('He asked: "Do they come home?"', ""),
        ("The boats come home at night.[12]", ""),
        ("“The boats come home at night.”", ""),
        ("这座城市有三千多年的建城史。", ""),
        ("这座城市有三千多年的建城史", "no terminal punctuation"),
        ("กรุงเทพมหานครเป็นเมืองหลวงของประเทศไทย", ""),
        ("## Installation", "no terminal punctuation"),
        ("Click here to find out more...", "no terminal punctuation"),
        ("They come home.", "under 5 words"),
        ("Please enable JavaScript in your browser now.", "javascript"),
        ("Read our Privacy Policy before you go on.", "policy notice"),
        ("This page has a " + "w" * 1001 + " in it.", "word over 1000 characters"),
    ],
)
def test_c4_line_rules(line: str, reason: str) -> None:
    assert c4_line(line) == reason


README = """\
# Fastlib

[![PyPI](https://img.shields.io/pypi/v/fastlib.svg)](https://example.org/project/fastlib)
[![Build](https://github.com/x/fastlib/actions/workflows/ci.yml/badge.svg)](https://github.com/x)

- [Install](#install)
- [Usage](#usage)
- [License](#license)

Fastlib does one thing, and it does it fast.

## Install

```
Pip
Install
Fastlib
Now
And
Then
```

| Name | Type | Default |
|------|------|---------|
| Size | Int  | Ten     |

![Architecture](docs/architecture.png)

.. image:: https://readthedocs.org/projects/fastlib/badge/?version=latest
    :target: https://fastlib.readthedocs.io
    :alt: Documentation

- first item
- second item
Share this on your favourite network"""


def test_boilerplate_of_a_readme_is_removed_and_its_content_kept() -> None:
    lines = README.split("\n")
    reasons = zip(lines, boilerplate_lines(lines), strict=True)
    assert {line[:12]: reason for line, reason in reasons if reason} == {
        "[![PyPI](htt": "badge",
        "[![Build](ht": "badge",
        "- [Install](": "link list",
        "- [Usage](#u": "link list",
        "- [License](": "link list",
        ".. image:: h": "badge",
        "    :target:": "badge",
        "    :alt: Do": "badge",
        "Share this o": "page frame",
    }


def test_boilerplate_of_a_web_page() -> None:
    page = [
        "Home | About us | Contact",
        "Skip to main content",
        *("News", "Sport", "", "Weather", "Travel", "Arts & Culture", "Opinion"),
        "The harbour of the small town had been built by fishermen.",
        "Opening hours",
        "The quay is open from six to nine.",
        "We use cookies to give you the best experience.",
        "Cookies are baked in an oven; the recipe is older than the town.",
        "Copyright © 2024 The Harbour Post. All rights reserved.",
    ]
    reasons = boilerplate_lines(page)
    assert [line for line, reason in zip(page, reasons, strict=True) if not reason] == [
        "",
        page[9],
        page[10],
        page[11],
        page[13],
    ]


def test_six_short_lines_are_a_menu_but_five_are_a_list() -> None:
    entries = ["News", "Sport", "Weather", "Travel", "Opinion", "Jobs"]
    assert boilerplate_lines(entries) == ["menu"] * 6
    assert boilerplate_lines(entries[:5]) == [""] * 5
    assert (
        boilerplate_lines([*entries[:5], "and this is a line of text", *entries[:5]]) == [""] * 11
    )


def test_rows_of_tables_are_not_link_rows() -> None:
    grid = ["+------+------+-------+", "| Name | Type | Value |", "+======+======+=======+"]
    assert boilerplate_lines(grid) == [""] * 3
    assert boilerplate_lines(["Name | Type | Value", "Size | Int | Ten"]) == [""] * 2
    assert boilerplate_lines(["Name | Type | Value", "and more"]) == ["link row", ""]
    assert boilerplate_lines(["Fastlib for Python |Build| |PyPI|"]) == [""]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('<a href="https://x"><img src="https://img.shields.io/a.svg" alt="b"></a>', True),
        ("|build| |coverage| |pypi|", True),
        ("|build status| text |pypi|", False),
        ("See the [badge](https://x/badge) for details", False),
        ("![Screenshot](https://example.com/shot.png)", False),
        ("", False),
    ],
)
def test_badges(line: str, expected: bool) -> None:
    assert is_badge(line) is expected


# Programs --------------------------------------------------------------------------------------


def test_runs_include_blank_lines_and_are_numbered_from_the_window() -> None:
    lines = ["Menu", "", "More", "", "The boats come home at night.", "", "Footer", ""]
    assert ask(RulesEngine(["c4"]), lines, first_line=120).split("\n") == [
        "remove_lines(start=120, end=122)  # c4: no terminal punctuation",
        "remove_lines(start=126, end=126)  # c4: no terminal punctuation",
    ]


def test_c4_line_rules_apply_only_if_chosen() -> None:
    lines = ["# Title", "", "- item", "code = 1"]
    assert ask(RulesEngine(["gopher", "fineweb"]), lines) == "keep_all()"
    assert ask(RulesEngine([]), lines) == "keep_all()"
    assert removed(ask(RulesEngine(), lines)) == [0, 1, 2, 3]


def test_nothing_to_remove_gives_keep_all() -> None:
    assert ask(RulesEngine(), PROSE.split("\n")) == "keep_all()"
    assert ask(RulesEngine(), []) == "keep_all()"
    assert ask(RulesEngine(), ["", "  "]) == "keep_all()"


def test_the_parser_reads_the_programs_but_not_the_comments() -> None:
    lines = ["Menu", "", *PROSE.split("\n"), "", "- Footer", "More"]
    chunk = parse_chunk(ask(RulesEngine(), lines))
    assert [(s.first, s.last) for s in chunk.statements] == [(0, 0), (9, 10)]
    assert chunk.rejected == ()
    for text, drop in ((PROSE, False), ("a b of to c d " * 20, True)):
        doc = parse_doc(verdict(text))
        assert [statement.drop for statement in doc.statements] == [drop]
        assert doc.rejected == ()


@given(st.lists(st.text(max_size=60), max_size=30), st.integers(0, 5000))
def test_a_program_of_any_window_removes_only_its_lines(lines: list[str], first: int) -> None:
    lines = "\n".join(lines).split("\n")
    program = ask(RulesEngine(), lines, first_line=first)
    numbers = removed(program)
    assert numbers == sorted(set(numbers))
    assert all(first <= number < first + len(lines) for number in numbers)
    assert bool(numbers) != (program == "keep_all()")
    # Reasons hold no text of the document, which could otherwise write part of its own program.
    call = r"remove_lines\(start=\d+, end=\d+\)  # [\w :]+"
    assert all(
        re.fullmatch(call, line, re.ASCII) or line == "keep_all()" for line in program.split("\n")
    )
    assert re.fullmatch(
        r"keep_doc\(\)|drop_doc\(\)  # [\w .:<>=-]+", ask(RulesEngine(), lines, "doc")
    )


HOSTILE = [
    "[![" * 60_000,
    "![a](" * 40_000,
    "<a " * 60_000,
    "|a" * 90_000,
    "." * 200_000,
    ". " * 100_000,
    '."' * 100_000 + "x",
    "a" + " " * 200_000 + "b.",
    "[" * 100_000 + "]" * 100_000,
    "Aa " * 70_000,
    "A&" * 100_000,
    "\t" * 200_000,
    "一" * 200_000,
    "\ud800" * 1000,
    "cookie " * 30_000,
]


@pytest.mark.timeout(60)  # a quadratic rule takes hours on these
@pytest.mark.parametrize("line", HOSTILE, ids=[repr(line[:5]) for line in HOSTILE])
def test_hostile_lines_take_linear_time(line: str) -> None:
    engine = RulesEngine()
    assert ask(engine, [line, line], "doc").startswith("drop_doc()")
    assert re.fullmatch(
        r"keep_all\(\)|remove_lines\(start=\d, end=1\)  # .*", ask(engine, [line] * 2)
    )
    page = ParsedDocument.of(line + "\n" + line)
    assert {type(rule(page)) for rule in (gopher_repetition, c4_document, fineweb)} == {str}
    assert boilerplate_lines([line[:1990]] * 50) is not None


def test_an_unknown_rule_set_is_named_with_the_choices() -> None:
    with pytest.raises(ValidationError) as error:
        EngineOptions.model_validate({"name": "rules", "rules": ["gofer"]})
    assert "'gofer'" in str(error.value)
    assert "'c4', 'gopher' or 'fineweb'" in str(error.value)


def test_verdicts_on_real_documents_agree_with_human_ones() -> None:
    folder = os.environ.get("PROXHPC_DATA")
    path = Path(folder or "") / "eval_docquality_dev.jsonl.zst"
    if not folder or not path.exists():
        pytest.skip("PROXHPC_DATA names no folder with eval_docquality_dev.jsonl.zst")
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as reader:
        rows = [row for row in map(orjson.loads, io.BufferedReader(reader)) if row["unanimous"]]
    right = sum((verdict(row["text"]) == "keep_doc()") == bool(row["keep"]) for row in rows)
    assert right / len(rows) >= 0.74


def test_other_tasks_run_between_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals and heartbeats wait for one answer at most, and documents end in their order."""
    monkeypatch.setattr("proxhpc.engines.rules.engine.BURST_S", 0)
    lines = ["Home | About | Contact", "This is a sentence of some length, it says."] * 100
    done: list[tuple[int, str]] = []

    async def document(engine: RulesEngine, order: int) -> None:
        for level in ("doc", "chunk"):
            await engine.complete(Request(level, (), lines, 0, 9, order=order))  # type: ignore[arg-type]
            done.append((order, level))

    async def main() -> int:
        engine, rounds = RulesEngine(), 0
        tasks = [asyncio.ensure_future(document(engine, order)) for order in range(30)]
        tasks[7].cancel()
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            rounds += 1
        return rounds

    assert asyncio.run(main()) >= 58
    assert done == [(n, level) for n in range(30) if n != 7 for level in ("doc", "chunk")]


def test_a_large_text_is_answered_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[bool] = []

    def doc_program(self: RulesEngine, request: Request) -> str:
        threads.append(threading.current_thread() is threading.main_thread())
        return "keep_doc()"

    monkeypatch.setattr(RulesEngine, "_doc_program", doc_program)

    async def main() -> None:
        engine = RulesEngine()
        for size in (10, LARGE_TEXT):
            await engine.complete(Request("doc", (), ["x" * size], 0, 9))

    asyncio.run(main())
    assert threads == [True, False]


def test_an_error_of_a_rule_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    def doc_program(self: RulesEngine, request: Request) -> str:
        raise ZeroDivisionError(request.lines[0])

    monkeypatch.setattr(RulesEngine, "_doc_program", doc_program)

    async def main() -> list[object]:
        engine = RulesEngine()
        asked = [Request("doc", (), [text], 0, 9) for text in "ab"]
        asked.append(Request("chunk", (), ["Home"], 0, 9))
        return await asyncio.gather(*map(engine.complete, asked), return_exceptions=True)

    first, second, third = asyncio.run(main())
    assert (str(first), str(second)) == ("a", "b")
    assert isinstance(third, Completion)
