"""The model that proxhpc includes: small, complete, and able to tell text from navigation."""

import asyncio
import json
from pathlib import Path

import pytest

from proxhpc.corpus.document import Document
from proxhpc.errors import UserError
from proxhpc.preview import RefinerChoice, refine_in_order
from proxhpc.refine.refiner import open_refiner
from proxhpc.run.ledger import Row
from proxhpc.run.models import resolve_model
from proxhpc.run.plan import find_models, freeze_manifest
from proxhpc.spec.sections import Level

FOLDER = Path(__file__).parent.parent / "proxhpc" / "embedded"
STORY = [
    "The harbour was built in 1843, when the town had some four thousand inhabitants, and it was "
    "enlarged twice before the war.",
    "Most of the fishing boats have gone since then. What is left of the old quay is now a place "
    "where people sit in the evening and watch the ferries come in.",
    "A small museum in the customs house tells the story of the families who lived here, and of "
    "the storm that took eleven boats in one night.",
    "“Nobody who was there ever forgot it,” says the woman who sells the tickets, whose "
    "grandfather was one of the survivors.",
]
MENU = ["Home", "News", "Sport", "Login", "Subscribe now", "Share on Facebook", "Tweet"]
FOOT = ["Related articles", "Terms of use", "Privacy policy", "Contact us", "Sitemap", "© 2019"]


def refined(texts: list[str]) -> list[Row]:
    pytest.importorskip("transformers")
    manifest = RefinerChoice(engine="transformers", model="embedded", doc_model="embedded").open()
    models = find_models(manifest)

    async def refine() -> list[Row]:
        refiner = await open_refiner(freeze_manifest(manifest, models), models)
        try:
            named = ((str(n), Document(str(n), text, 0, n)) for n, text in enumerate(texts))
            return [row async for _, row in refine_in_order(refiner, named)]
        finally:
            await refiner.close()

    return asyncio.run(refine())


def test_it_is_small_and_documented() -> None:
    levels: dict[Level, Path] = {"chunk": FOLDER, "doc": FOLDER / "verdicts"}
    for level, folder in levels.items():
        ref = resolve_model("embedded", level)
        assert ref.path == folder
        config = json.loads((folder / "config.json").read_text())
        assert (config["model_type"], config["dtype"]) == ("llama", "bfloat16")
        assert ref.refiner is not None
        assert (ref.refiner.prompt, ref.refiner.levels) == ("walk", [level])
    assert sum(path.stat().st_size for path in FOLDER.rglob("*.safetensors")) <= 16_000_000
    card = (FOLDER / "README.md").read_text()
    for section in ("## Recipe", "## Intended use", "## Data", "## Scores on gold records"):
        assert section in card


@pytest.mark.parametrize("keys", [{"model": FOLDER / "verdicts"}, {"doc_model": FOLDER}])
def test_each_of_its_models_answers_one_level(keys: dict[str, Path]) -> None:
    manifest = RefinerChoice(**{key: str(folder) for key, folder in keys.items()}).open()
    with pytest.raises(UserError, match=r"does not serve level \w+: it has"):
        freeze_manifest(manifest, find_models(manifest))


def test_it_removes_navigation_and_keeps_text() -> None:
    page = [*MENU, *STORY, *STORY, *STORY, *FOOT]
    story, junk = refined(["\n".join(page), "\n".join((*MENU, *FOOT) * 6)])
    assert (story.outcome, junk.outcome) == ("edited", "dropped")
    removed = {n for call in story.windows for n in removed_lines(call.output.program)}
    texts = range(len(MENU), len(page) - len(FOOT))
    assert not removed & set(texts)
    assert len(removed) >= 5


def test_it_keeps_what_is_unlike_web_pages() -> None:
    manual = """NAME
        wc - print newline, word, and byte counts for each file

        SYNOPSIS
        wc [OPTION]... [FILE]...

        OPTIONS
        -c, --bytes
               print the byte counts
        -l, --lines
               print the newline counts; with --total=WHEN also a line with the sum
        -w, --words
               print the word counts

        EXIT STATUS
        0 if all files were read, 1 if one of them could not be opened."""
    chinese = "\n".join(
        [
            "安装",
            "在安装之前，请先确认系统中已经有编译器和开发库，否则编译过程会在第一步失败。",
            "运行下面的命令以后，程序会被复制到系统目录，配置文件则留在用户目录里。",
            "如果不需要文档，可以加上相应的选项，这样安装的时间会短一些。",
        ]
        * 2
    )
    texts = ["\n".join(map(str.strip, manual.split("\n"))), chinese]
    assert [(row.outcome, row.lines_removed) for row in refined(texts)] == [("kept", 0)] * 2


def removed_lines(program: str) -> set[int]:
    from proxhpc.program.edits import WindowLines, read_window

    ranges = read_window(program, "prox", "stop", WindowLines(0, 100, 0, (0, 100))).removed
    return {line for start, stop in ranges for line in range(start, stop)}
