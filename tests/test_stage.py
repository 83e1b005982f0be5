"""Requests of a stage to its engine, which is scripted here."""

import asyncio
import re
import unicodedata
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxhpc.account.flops import Usage
from proxhpc.corpus.document import Document
from proxhpc.engines.base import (
    Completion,
    EngineDiedError,
    Request,
    RequestError,
    Tokenizer,
)
from proxhpc.errors import StopError, UserError
from proxhpc.program.grammar import DOC_GRAMMAR, chunk_grammar
from proxhpc.program.policy import Policy
from proxhpc.program.replay import ProgramFormat
from proxhpc.program.syntax import Dialect, last_calls
from proxhpc.refine.prompts import MIN_WINDOW_TOKENS
from proxhpc.refine.refiner import MAX_ERRORS_IN_A_ROW, Refiner
from proxhpc.refine.stage import StageRunner
from proxhpc.run.ledger import Row, tally
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.profile import Profile

LINES = [f"This is line number {n} of a page of some length, as pages are." for n in range(40)]
TEXT = "\n".join(LINES)
SHORT = "\n".join(LINES[:20])


class CharacterTokenizer:
    """A tokenizer with one token a character, and `extra` more for each line feed."""

    bos: Sequence[int] = ()

    def __init__(self, extra: int = 0) -> None:
        self.extra = extra

    def encode(self, text: str, *, first: bool = True) -> list[int]:
        return [ord(c) for c in text] + [0] * (self.extra * text.count("\n"))

    def count(self, lines: Sequence[str]) -> list[int]:
        return [len(line) for line in lines]

    def head(self, text: str, tokens: int) -> str:
        return text[:tokens]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def special_id(self, token: str) -> int:
        return 1

    def chat_frame(self, system: str | None, arguments: object, *, merge: bool = False) -> str:
        return "{message}"


class ScriptedEngine:
    """Answers requests with a function and records them."""

    name = "script"

    def __init__(
        self, answer: Callable[[Request], str], context: int = 4000, extra: int = 0
    ) -> None:
        self.answer, self.requests = answer, list[Request]()
        self.tokenizer: Tokenizer | None = CharacterTokenizer(extra)
        self.max_model_len, self.cache_tokens, self.min_in_flight = context, 0, 64

    async def complete(self, request: Request) -> Completion:
        self.requests.append(request)
        await asyncio.sleep(0)
        return Completion(self.answer(request), "stop", len(request.prompt), 3, 5)

    async def close(self) -> None:
        pass


def keep(request: Request) -> str:
    return "keep_doc()" if request.level == "doc" else "untouch_doc()"


def refine(
    engine: ScriptedEngine,
    texts: Sequence[str],
    *,
    doc: bool = True,
    chunk: bool = True,
    **more: Any,
) -> list[Row]:
    stage = more.pop("stage", {})
    stages = [{"level": "doc", "model": "a/b"} | stage] if doc else []
    chunk_keys = {"window_tokens": 1000, "prompt": "prox-plain"}
    stages += [{"level": "chunk", "model": "a/b"} | chunk_keys | stage] if chunk else []
    data = {"name": "x", "corpus": {"paths": "x"}, "engine": {"name": "vllm"}, "stages": stages}
    manifest = Manifest.model_validate(data | more, context={"base": Path("/")})
    runners = {
        stage.level: StageRunner(stage, engine, manifest.policy) for stage in manifest.stages
    }
    refiner = Refiner(manifest, runners.get("doc"), runners.get("chunk"))

    async def main() -> list[Row]:
        documents = [Document(f"d{n}", text, 0, n) for n, text in enumerate(texts)]
        return await asyncio.gather(*map(refiner.refine, documents))

    rows = asyncio.run(main())
    totals = tally(rows)
    for level, usage in refiner.usage.items():
        assert usage == getattr(totals, level), "the rows account for all work of the engines"
    return rows


def test_windows_cover_the_document_and_their_prompts_have_its_line_numbers() -> None:
    engine = ScriptedEngine(keep)
    (row,) = refine(engine, [TEXT], doc=False)
    assert [call.start for call in row.windows] == [0, *(c.stop for c in row.windows[:-1])]
    assert row.windows[-1].stop == len(LINES)
    for call, request in zip(row.windows, engine.requests, strict=True):
        prompt = CharacterTokenizer().decode(request.prompt)
        assert prompt.startswith(f"[doc]\n[{call.start:03d}]{LINES[call.start]}\n")
        assert prompt.endswith(f"[{call.stop - 1:03d}]{LINES[call.stop - 1]}\n[/doc]")
        assert len(prompt) <= 1000 + len("[doc]\n[/doc]")
    assert row.tokens_in == row.tokens_out == len(TEXT)


@pytest.mark.parametrize(("dialect", "numbering"), [("refinex", "document"), ("refinex", "window")])
def test_a_program_refers_to_the_numbers_in_its_prompt(dialect: str, numbering: str) -> None:
    """It removes the line that follows this number in the prompt."""

    def answer(request: Request) -> str:
        lines = CharacterTokenizer().decode(request.prompt).split("\n")[1:-1]
        number = next(
            line for line in lines if line.endswith("7 of a page of some length, as pages are.")
        )
        return f"remove_lines({int(number[1:4])}, {int(number[1:4])})"

    engine = ScriptedEngine(answer)
    stage = {"dialect": dialect, "numbering": numbering, "window_tokens": 800}
    (row,) = refine(engine, [TEXT], doc=False, stage=stage)
    assert len(row.windows) == 4
    assert (row.outcome, row.lines_removed, row.rejected) == ("edited", 4, {})
    sevens = [line for line in LINES if "7 of" in line]
    assert row.tokens_out == len(TEXT) - sum(len(line) + 1 for line in sevens)


def test_a_window_whose_prompt_is_too_long_is_halved() -> None:
    engine = ScriptedEngine(keep, context=1400, extra=9)
    (row,) = refine(engine, [TEXT], doc=False)
    budget = 1400 - 256
    assert [call.start for call in row.windows] == [0, *(c.stop for c in row.windows[:-1])]
    assert row.windows[-1].stop == len(LINES)
    assert all(budget / 4 < len(request.prompt) <= budget for request in engine.requests[:-1])
    assert row.flags == ()


NUMBER = re.compile(r"(?m)^\[([0-9]+)\](.*)$")


def remove_adverts(request: Request) -> str:
    """Remove each line of the prompt that has an advert."""
    lines = NUMBER.findall(CharacterTokenizer().decode(request.prompt))
    numbers = [int(number) for number, line in lines if "ADVERT" in line]
    return "\n".join(f"remove_lines({n}, {n})" for n in numbers) or "keep_all()"


def remove_adverts_in_tags(request: Request) -> str:
    """Remove them in the dialect `rescraper`."""
    calls = remove_adverts(request).replace("keep_all()", "")
    calls = re.sub(r"remove_lines\((.*), (.*)\)", r"rm \1-\2", calls)
    return f"<edit>\n{calls}\n" if calls else "<keep>"


@st.composite
def texts_with_adverts(draw: st.DrawFn) -> str:
    """Lines of all lengths, some blank and some far longer than a window."""
    words = [
        "The brain",
        "weighs",
        "three pounds.",
        "It is",
        "here!",
        "ADVERT",
        " ",
        "\u3000",
        "x" * 40,
    ]
    line = st.lists(st.sampled_from(words), max_size=4).map(" ".join)
    long = st.lists(st.sampled_from(words), min_size=30, max_size=60).map(" ".join)
    return "Start\n" + "\n".join(draw(st.lists(line | long, max_size=12)))


LENIENT = {"min_kept_words": 0, "max_error_share": 0.0}


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    text=texts_with_adverts(),
    dialect=st.sampled_from(["prox", "refinex", "ultrax", "rescraper"]),
    numbering=st.sampled_from(["document", "window"]),
    blank_lines=st.sampled_from(["numbered", "skipped"]),
    window_overlap=st.sampled_from([0.0, 0.2, 0.5]),
    window_chars=st.sampled_from([None, 150, 300]),
    window_tokens=st.sampled_from([200, 1000]),
)
def test_a_program_edits_the_lines_that_its_numbers_mean(text: str, **stage: Any) -> None:
    """Whatever windows show, and wherever numbers begin, exactly the adverts are removed."""
    in_tags = stage["dialect"] == "rescraper"
    engine = ScriptedEngine(remove_adverts_in_tags if in_tags else remove_adverts)
    (row,) = refine(engine, [text], doc=False, stage=stage, policy=LENIENT)
    assert set(row.rejected) <= {"other_window"}
    starts = sorted({0, *row.cuts, *(match.end() for match in re.finditer("\n", text))})
    lines = [text[a:b] for a, b in pairwise([*starts, len(text)])]
    kept = "".join(line for line in lines if "ADVERT" not in line)
    result = row.replay(text, Policy(**LENIENT), ProgramFormat(**formats(stage)))
    assert result.text.split() == kept.split()
    if stage["dialect"] != "ultrax":  # which also removes blank lines around
        assert row.lines_removed == sum("ADVERT" in line for line in lines)
    assert row.flags == ()
    assert [call.start for call in row.windows] == sorted(call.start for call in row.windows)
    assert Row.decode(row.encode()) == row


def formats(stage: dict[str, Any]) -> dict[str, Any]:
    return {key: stage[key] for key in ("dialect", "numbering", "blank_lines")}


def test_a_long_line_is_refined_in_pieces() -> None:
    words = "The brain weighs about three pounds. It is made of many cells."
    text = " ".join([words] * 20 + ["ADVERT: click here!"] + [words] * 20)
    engine = ScriptedEngine(remove_adverts)
    (row,) = refine(engine, [text], doc=False, stage={"dialect": "refinex"})
    assert len(row.windows) == 4
    assert row.lines_removed == 1
    policy, program_format = Policy(), ProgramFormat("refinex")
    assert row.replay(text, policy, program_format).text == " ".join([words] * 40)
    assert row.tokens_out == len(" ".join([words] * 40))
    replication = row.replay(text, "reference", program_format)
    assert (replication.outcome, replication.reason) == ("quarantined", "reference_split_line")


def test_a_window_shows_lines_of_the_one_before_and_edits_its_own() -> None:
    engine = ScriptedEngine(lambda request: f"remove_lines({request.first_line}, 999)")
    stage = {"window_overlap": 0.25, "dialect": "ultrax"}
    (row,) = refine(engine, [TEXT], doc=False, stage=stage)
    assert [(call.start, call.stop, call.shown) for call in row.windows] == [
        (0, 14, None),
        (14, 25, (11, 25)),
        (25, 36, (22, 36)),
        (36, 40, (33, 40)),
    ]
    for call, request in zip(row.windows, engine.requests, strict=True):
        shown = call.shown or (call.start, call.stop)
        assert request.lines == LINES[slice(*shown)]
        assert request.first_line == shown[0] + 1


def test_a_grammar_allows_edits_of_the_lines_of_its_window_only() -> None:
    engine = ScriptedEngine(keep)
    stage = {"window_overlap": 0.25, "grammar": "lines", "blank_lines": "skipped"}
    text = "\n\n".join(LINES)
    (row,) = refine(engine, [text], doc=False, stage=stage)
    numbers = [n for line in text.split("\n") for n in ([bool(line)])]
    for call, request in zip(row.windows, engine.requests, strict=True):
        first = sum(numbers[: call.start])
        last = first + sum(numbers[call.start : call.stop]) - 1
        assert request.grammar == chunk_grammar("prox", first, last)
        assert not request.end_loops, "a grammar bounds the number of calls"
    assert row.windows[1].shown


def test_a_window_with_overlap_that_does_not_fit_loses_its_overlap_first() -> None:
    engine = ScriptedEngine(keep, context=1350, extra=9)
    (row,) = refine(engine, [TEXT], doc=False, stage={"window_overlap": 0.5})
    assert [call.start for call in row.windows] == [0, *(c.stop for c in row.windows[:-1])]
    assert row.windows[-1].stop == len(LINES)
    assert {call.shown is None for call in row.windows} == {True, False}
    assert row.flags == ()


def test_a_program_that_fits_its_window_is_not_cut() -> None:
    """A call for every second word, each with a comment, in a fence; small windows end earlier."""
    text = "The adult brian weights about three pound and recieve its blood threw for arteries"
    words = text.split()
    calls = [
        f'# {word} is wrong\nnormalize(source_str="{word} {after}", target_str="{word}")\n'
        for word, after in zip(words[::2], words[1::2], strict=False)
    ]
    program = "```python\n" + "".join(calls) + "```"
    engine = ScriptedEngine(keep, context=9000)
    refine(engine, [text, TEXT], doc=False, stage={"max_new_tokens": 4096})
    small, large = engine.requests[0].max_new_tokens, engine.requests[1].max_new_tokens
    assert len(program) < small < large == 4096


def test_answers_end_after_a_verdict_or_a_call_without_edit() -> None:
    engine = ScriptedEngine(keep)
    refine(engine, [TEXT])
    doc, *chunks = engine.requests
    assert set(doc.stop) == {"keep_doc()", "drop_doc()"}
    assert {"untouch_doc()", "keep_all()"} <= set(chunks[0].stop)
    assert doc.grammar is chunks[0].grammar is None
    replication = ScriptedEngine(keep)
    refine(replication, [TEXT], policy="reference")
    assert {request.stop for request in replication.requests} == {()}
    assert [chunks[0].end_loops, doc.end_loops] == [True, False]
    assert not any(request.end_loops for request in replication.requests)


@pytest.mark.parametrize("dialect", ["refinex", "ultrax", "rescraper"])
def test_answers_end_with_the_last_calls_of_their_dialect(dialect: Dialect) -> None:
    engine = ScriptedEngine(keep)
    refine(engine, [TEXT], doc=False, stage={"dialect": dialect})
    assert set(last_calls("chunk", dialect)) <= set(engine.requests[0].stop)
    assert "drop_doc()" not in engine.requests[0].stop


def test_each_window_has_its_own_grammar() -> None:
    engine = ScriptedEngine(keep)
    refine(engine, ["Home\nAbout us"], stage={"grammar": "lines"})
    doc, chunk = engine.requests
    assert (doc.grammar, chunk.grammar) == (DOC_GRAMMAR, chunk_grammar("prox", 0, 1))
    engine = ScriptedEngine(keep)
    refine(
        engine, ["Home\nAbout us"], doc=False, stage={"grammar": "strings", "dialect": "refinex"}
    )
    grammar = chunk_grammar("refinex", 1, 2, lines=["Home", "About us"])
    assert engine.requests[0].grammar == grammar


def test_the_same_prompt_is_asked_once_and_the_saved_work_is_counted() -> None:
    engine = ScriptedEngine(keep)
    rows = refine(engine, [SHORT, "Other text.", SHORT, SHORT])
    prompts = [bytes(c % 256 for c in request.prompt) for request in engine.requests]
    assert len(prompts) == len(set(prompts))
    first, other, *copies = rows
    for copy in copies:
        assert [c.program for c in copy.windows] == [c.program for c in first.windows]
        assert tally([copy]).doc == tally([other]).doc_saved == Usage()
        assert tally([copy]).doc_saved == tally([first]).doc
        assert tally([copy]).chunk_saved == tally([first]).chunk
        assert copy.flags == ()
        assert Row.decode(copy.encode()) == copy


def test_documents_in_flight_fit_the_prefix_cache() -> None:
    """The windows of a document are asked about while the cache has its prompt."""
    in_flight = highest = 0

    class Slow(ScriptedEngine):
        async def complete(self, request: Request) -> Completion:
            nonlocal in_flight, highest
            in_flight += len(request.prompt)
            highest = max(highest, in_flight)
            await asyncio.sleep(0.001)
            in_flight -= len(request.prompt)
            return await super().complete(request)

    texts = [f"line {n} of this text\nand another one" for n in range(40)]
    engine, stage = Slow(keep), {"prompt": "compact"}
    rows = refine(engine, texts, stage=stage)
    unbounded = highest
    highest = 0
    bounded = Slow(keep)
    bounded.cache_tokens = 200
    assert refine(bounded, texts, stage=stage) == rows
    assert highest < 300 < unbounded
    assert [r.level for r in bounded.requests[:30]].count("chunk") > 5
    assert [r.level for r in engine.requests[:30]].count("chunk") == 0
    highest = 0
    refine(bounded, texts)
    assert highest > 300, "no document waits if windows share nothing with it"


def test_a_copy_does_not_share_the_failure_of_the_first() -> None:
    failing = iter([True])

    def answer(request: Request) -> str:
        if next(failing, False):
            raise ZeroDivisionError("a defect")
        return keep(request)

    rows = refine(ScriptedEngine(answer), [SHORT, SHORT, SHORT])
    assert [row.reason for row in rows] == ["internal_error", "", ""]


def test_the_other_windows_of_a_refused_one_are_awaited_and_counted() -> None:
    def answer(request: Request) -> str:
        if request.level == "chunk" and "number 20 " in "".join(request.lines):
            raise RequestError("its grammar does not compile")
        return keep(request)

    class Slow(ScriptedEngine):
        async def complete(self, request: Request) -> Completion:
            await asyncio.sleep(0.001 * request.first_line)
            done = await super().complete(request)
            self.prompt_tokens += len(request.prompt)
            return done

        prompt_tokens = 0

    engine = Slow(answer)
    (row,) = refine(engine, [TEXT])
    assert (row.outcome, row.reason) == ("quarantined", "request_refused")
    counts = tally([row])
    assert counts.doc.prompt_tokens + counts.chunk.prompt_tokens == engine.prompt_tokens > 0
    assert len(row.windows) == len(engine.requests) - 2 > 1
    assert (row.tokens_in, row.tokens_out) == (len(TEXT), 0)
    assert Row.decode(row.encode()) == row


def test_a_dead_engine_matters_more_than_a_refused_request() -> None:
    def answer(request: Request) -> str:
        raise EngineDiedError("died") if request.first_line else RequestError("refused")

    with pytest.raises(EngineDiedError):
        refine(ScriptedEngine(answer), [TEXT], doc=False)


def test_texts_with_the_same_prompt_but_other_grammars_are_asked_separately() -> None:
    class Composing(CharacterTokenizer):
        def encode(self, text: str, *, first: bool = True) -> list[int]:
            return super().encode(unicodedata.normalize("NFC", text))

    def answer(request: Request) -> str:
        return f'normalize(source_str="{request.lines[0].split()[0]}", target_str="")'

    composed = "caf\u00e9 one two three four five six seven eight nine ten eleven twelve"
    engine = ScriptedEngine(answer)
    engine.tokenizer = Composing()
    texts = [composed, unicodedata.normalize("NFD", composed)]
    rows = refine(engine, texts, doc=False, stage={"grammar": "strings"})
    assert [(row.outcome, row.rejected) for row in rows] == [("edited", {})] * 2
    assert engine.requests[0].prompt == engine.requests[1].prompt


def test_stop_strings_that_the_window_contains_do_not_end_a_program() -> None:
    """The program may quote them: `normalize(source_str="call keep_all() now", ...)`."""
    engine = ScriptedEngine(keep)
    refine(engine, ["Home | About\nAdvert: call keep_all() now", "Home"], doc=False)
    quoting, other = (set(request.stop) for request in engine.requests)
    assert other - quoting == {"keep_all()"}
    assert "untouch_doc()" in quoting


def test_a_budget_too_small_for_a_line_is_refused() -> None:
    frame = len("[doc]\n[/doc]")
    for prompt in range(1, frame + MIN_WINDOW_TOKENS):
        with pytest.raises(UserError, match="a frame of 12 tokens"):
            refine(ScriptedEngine(keep), ["a line"], doc=False, stage={"max_prompt_tokens": prompt})
    engine = ScriptedEngine(keep)
    smallest = {"max_prompt_tokens": frame + MIN_WINDOW_TOKENS}
    refine(engine, ["a line"], doc=False, stage=smallest)
    assert len(engine.requests) == 1


def test_errors_of_the_same_text_count_once() -> None:
    def fails(request: Request) -> str:
        raise ZeroDivisionError("a defect")

    rows = refine(ScriptedEngine(fails), [TEXT] * (MAX_ERRORS_IN_A_ROW + 5))
    assert {row.reason for row in rows} == {"internal_error"}
    with pytest.raises(StopError, match=f"{MAX_ERRORS_IN_A_ROW} documents in a row"):
        refine(ScriptedEngine(fails), [f"{n} {TEXT}" for n in range(MAX_ERRORS_IN_A_ROW)])


def test_stop_strings_of_a_profile_end_answers() -> None:
    profile = Profile(stop=("THE END",))
    for policy in ({}, "reference"):
        engine = ScriptedEngine(keep)
        texts = ["some text", "THE END of it"]
        refine(engine, texts, stage={"prompt": profile}, policy=policy)
        assert len(engine.requests) == 4
        for request in engine.requests:
            # A program may quote its window, and the public code reads answers to their end.
            quotes_it = request.level == "chunk" and request.lines == texts[1:]
            assert ("THE END" in request.stop) == (policy == {} and not quotes_it)
