"""From pairs of pages to a trained refiner and a verdict, in one command."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxhpc.annotate.annotate import AnnotateOptions, annotate
from proxhpc.annotate.gold import GoldSource
from proxhpc.cli.main import main
from proxhpc.errors import RetryError, UserError
from proxhpc.evaluate.bootstrap import Score
from proxhpc.evaluate.gold import GoldFields, read_gold
from proxhpc.spec.load import load_yaml
from proxhpc.spec.recipe import Recipe
from proxhpc.train import teach
from proxhpc.train.pairs import PagePair, read_page_pairs, split_pairs, write_page_pairs
from proxhpc.train.rows import Examples
from proxhpc.train.verdict import Advice, choose

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

Capture = pytest.CaptureFixture[str]

SENTENCES = (
    "Ostin eilen uuden polkupyörän, ja ketju irtosi heti ensimmäisessä mäessä, kun satoi.",
    "Kannattaa viedä pyörä takuuhuoltoon, koska kauppias vastaa virheestä kaksi vuotta.",
    "Talvella käytän nastarenkaita, sillä sepeli ei auta peilijäällä yhtään mitään.",
    "Vaha kesti minulla noin kaksisataa kilometriä, mutta pesun jälkeen se pitää uusia.",
)
MENU = ("Etusivu | Foorumi | Haku", "Rekisteröidy", "Vastaa", "Lainaa", "Ilmoita asiaton viesti")


def pages(number: int, *, menus: bool = True) -> Iterator[PagePair]:
    """Finnish forum pages with menus around sentences, one in three with an edit within a line."""
    rng = random.Random(3)
    for page in range(number):
        raw: list[str] = []
        clean: list[str] = []
        for post in range(rng.randint(2, 4)):
            text = f"{rng.choice(SENTENCES)} Kirjoitin sen {rng.randint(100, 999)} kertaa."
            raw += [rng.choice(MENU)] * menus
            raw.append(f"{text} [Lainaa]" if menus and page % 3 == post == 0 else text)
            clean.append(text)
            raw += [rng.choice(MENU)] * menus
        yield PagePair(f"p{page}", "\n".join(raw), "\n".join(clean), f"f{page % 30}.example")


def write_files(folder: Path, pairs: Iterator[PagePair]) -> list[str]:
    """JSON lines of raw and of clean pages; their paths."""
    folder.mkdir(exist_ok=True)
    raw, clean = folder / "raw.jsonl", folder / "clean.jsonl"
    with raw.open("w") as raw_file, clean.open("w") as clean_file:
        for pair in pairs:
            url = f"https://{pair.host}/1"
            raw_file.write(json.dumps({"id": pair.id, "url": url, "text": pair.raw}) + "\n")
            clean_file.write(json.dumps({"id": pair.id, "text": pair.clean}) + "\n")
    return [str(raw), str(clean)]


def write_folders(folder: Path, texts: dict[str, tuple[str, str]]) -> tuple[Path, Path]:
    raw, clean = folder / "raw", folder / "clean"
    for name, pair in texts.items():
        for directory, text in zip((raw, clean), pair, strict=True):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_text(text)
    return raw, clean


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe that is trained in seconds, of as many steps on any machine."""
    fitted = teach.fitted_recipe

    def shortened(name: str, examples: Path, minutes: float | None) -> Recipe:
        recipe = fitted(name, examples, minutes)
        assert recipe.shape is not None
        shape = recipe.shape.model_copy(
            update={"hidden": 64, "kv_heads": 1, "intermediate": 64, "vocabulary": 300}
        )
        changes = {"shape": shape, "steps": 90, "hours": None, "batch_tokens": 900}
        changes |= {"learning_rate": 0.02, "warmup": 5, "average": 0.8}
        return recipe.model_copy(update=changes)

    monkeypatch.setattr(teach, "fitted_recipe", shortened)


@pytest.mark.usefixtures("short")
def test_pairs_become_a_refiner_that_beats_the_raw_text(tmp_path: Path, capsys: Capture) -> None:
    files = write_files(tmp_path, pages(90))
    out = tmp_path / "malli"
    assert main(["adapt", "--pairs", *files, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "\nverdict: use it\n" in printed
    assert " s, 0 s left, step 90, evaluation: f1 " in printed
    assert re.search(r"\ntraining for \d+ (s|min) ?[\d s]*; Ctrl-C stops it", printed)
    assert "bias" not in printed, "people get the scores; the log has every number"
    assert f"proxhpc refine --diff --model {out} PAGE.txt" in printed
    assert f'model: "{out}"' in printed
    assert "**use it**: on " in (out / "README.md").read_text()
    # No page was lost for its edit within a line: that line is unknown.
    rows = list(Examples((out / "training" / "examples.jsonl.zst",)))
    edited = [row for row in rows if "?" in (row.line_labels or "")]
    assert edited
    assert all({*"KD"} <= {*(row.line_labels or "")} for row in edited)
    records = read_gold([out / "training" / "held-out.jsonl.zst"])
    assert {row.id for row in rows}.isdisjoint(record.id for record in records)
    assert len(rows) + len(records) >= 80  # the rest are near-duplicates of held-out pages
    assert {"B", "G", "E"} == {label for record in records for label in record.labels}
    # The same command finds the training complete and says the same again.
    log = (out / "training" / "log.jsonl").read_bytes()
    assert main(["adapt", "--pairs", *files, "--out", str(out)]) == 0
    assert "\nverdict: use it\n" in capsys.readouterr().out
    assert (out / "training" / "log.jsonl").read_bytes() == log


@pytest.mark.usefixtures("short")
def test_nothing_to_remove_is_said(tmp_path: Path, capsys: Capture) -> None:
    files = write_files(tmp_path, pages(60, menus=False))
    assert main(["adapt", "--pairs", *files, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert "\nverdict: keep the text as it is\n" in printed
    assert "the same command with more --minutes" in printed


def lead(low: float, value: float, high: float) -> Score:
    return Score(value=value, low=low, high=high)


CLEAR, UNCLEAR, WORSE = lead(0.1, 0.2, 0.3), lead(-0.1, 0.1, 0.3), lead(-0.3, -0.2, -0.1)


@pytest.mark.parametrize(
    ("over_raw", "over_rules", "rules_over_raw", "advice"),
    [
        (CLEAR, CLEAR, CLEAR, "use it"),
        (CLEAR, CLEAR, WORSE, "use it"),
        (CLEAR, UNCLEAR, UNCLEAR, "use it"),
        (CLEAR, UNCLEAR, CLEAR, "use the rules"),
        (CLEAR, WORSE, CLEAR, "use the rules"),
        (UNCLEAR, WORSE, CLEAR, "use the rules"),
        (UNCLEAR, CLEAR, WORSE, "keep the text as it is"),
        (WORSE, UNCLEAR, UNCLEAR, "keep the text as it is"),
        (Score(value=1.0), CLEAR, WORSE, "keep the text as it is"),
    ],
)
def test_a_lead_counts_if_its_interval_is_above_zero(
    over_raw: Score, over_rules: Score, rules_over_raw: Score, advice: Advice
) -> None:
    assert choose(over_raw, over_rules, rules_over_raw) == advice


def test_the_same_command_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, clean = map(Path, write_files(tmp_path, pages(60)))
    out = tmp_path / "out"

    def stopped(recipe: Recipe, out: Path, **options: Any) -> None:
        assert options["resume"]
        (out / "training" / "state.pt").touch()
        raise RetryError("training stopped by SIGINT after step 3", hint="continue with --resume")

    monkeypatch.setattr(teach, "adapt", stopped)
    examples = out / "training" / "examples.jsonl.zst"
    contents = set()
    for _ in range(2):
        with pytest.raises(RetryError) as caught:
            teach.teach(raw, clean, out, log=lambda _: None)
        assert caught.value.hint == "to continue, run the same command again"
        contents.add(examples.read_bytes())
    assert len(contents) == 1  # a resumed training has the same examples
    recipe = load_yaml(out / "training" / "recipe.yaml", Recipe)
    assert (recipe.name, recipe.hours) == ("out", 0.05)


@pytest.mark.parametrize("name", ["README.md", "training/notes.txt", "training/state.pt"])
def test_files_of_something_else_stay(tmp_path: Path, name: str, capsys: Capture) -> None:
    files = write_files(tmp_path, pages(40))
    notes = tmp_path / "out" / name
    notes.parent.mkdir(parents=True)
    notes.write_text("mine")
    assert main(["adapt", "--pairs", *files, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "out") in error
    assert notes.name in error or "was not started with --pairs" in error
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == [notes]
    assert notes.read_text() == "mine"


def test_pages_are_matched_by_name_or_id(tmp_path: Path) -> None:
    texts = {f"a/{n}.txt": (f"Valikko\nSivu {n}\n", f"\ufeffSivu {n}\n") for n in range(25)}
    raw, clean = write_folders(tmp_path, texts)
    (raw / "single.txt").write_text("x")
    said: list[str] = []
    pairs = read_page_pairs(raw, clean, GoldFields(), said.append)
    assert PagePair("a/3.txt", "Valikko\nSivu 3", "Sivu 3", "") in pairs
    assert len(pairs) == 25
    assert said == [f"{raw}: 1 page without a counterpart: single.txt"]
    gold = tmp_path / "gold.jsonl"
    rows = [{"nr": n, "text_noisy": "a\nb", "text_gold": "b"} for n in range(20)]
    gold.write_text("".join(json.dumps(row) + "\n" for row in rows))
    same = read_page_pairs(gold, gold, GoldFields.parse("id=nr"), said.append)
    assert same[19] == PagePair("19", "a\nb", "b", "")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"id": 1, "text": "a"}'] * 2, "there are several pages '1'"),
        (['{"text": "a"}'], "raw.jsonl:1: no field 'id'"),
        (['{"id": 1, "body": "a"}'], "raw.jsonl:1: no field 'text_noisy' or 'text' with a text"),
        (['{"id": 1, "text": "a"}'], "0 pairs of pages"),
    ],
)
def test_unusable_pairs_are_explained(lines: list[str], message: str, tmp_path: Path) -> None:
    raw, clean = map(Path, write_files(tmp_path, pages(30)))
    raw.write_text("\n".join(lines))
    with pytest.raises(UserError) as caught:
        read_page_pairs(raw, clean, GoldFields(), lambda _: None)
    assert message in caught.value.message


def test_folders_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    raw, clean = write_folders(tmp_path, {"a.txt": ("x", "x")})
    (raw / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8, at byte 3"):
        read_page_pairs(raw, clean, GoldFields(), lambda _: None)
    (raw / "a.txt").unlink()
    with pytest.raises(UserError, match=r"there is no \.txt file"):
        read_page_pairs(raw, clean, GoldFields(), lambda _: None)


def test_held_out_pages_are_of_other_hosts() -> None:
    pairs = [PagePair(str(n), f"sivu {n}", "", f"h{n % 60}.fi") for n in range(300)]
    learned, held_out = split_pairs(pairs)
    assert len(learned) + len(held_out) == 300
    assert 60 <= len(held_out) < 80
    assert {pair.host for pair in learned}.isdisjoint(pair.host for pair in held_out)
    assert split_pairs(pairs[::-1])[1] == held_out[::-1]


@pytest.mark.parametrize("hosts", [["one.fi"], ["a.fi", "b.fi", ""], ["big.fi"] * 99 + ["x.fi"]])
def test_few_or_unknown_hosts_are_split_by_page(hosts: list[str]) -> None:
    pairs = [PagePair(str(n), f"sivu {n // 2}", "", hosts[n % len(hosts)]) for n in range(300)]
    learned, held_out = split_pairs(pairs)
    assert 60 <= len(held_out) < 70
    assert {pair.host for pair in (*learned, *held_out)} == {""}
    assert {pair.raw for pair in learned}.isdisjoint(pair.raw for pair in held_out)


@pytest.mark.parametrize(("number", "vocabulary"), [(1, 256), (90, 384)])
def test_the_recipe_fits_the_amount_of_text(number: int, vocabulary: int, tmp_path: Path) -> None:
    file, examples = tmp_path / "pairs.jsonl.zst", tmp_path / "examples.jsonl.zst"
    write_page_pairs(
        [PagePair("a", "aa bb\ncc", "aa bb", "")] if number == 1 else pages(number), file
    )
    annotate([GoldSource(file)], examples, AnnotateOptions())
    recipe = teach.fitted_recipe("Oma Malli!", examples, None)
    assert recipe.shape is not None
    assert (recipe.name, recipe.shape.vocabulary) == ("oma-malli", vocabulary)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "adapt needs a recipe, or --pairs RAW CLEAN"),
        (["base", "--pairs", "a", "b"], "adapt needs a recipe, or --pairs RAW CLEAN"),
        (["base", "--minutes", "3"], "--minutes and --fields are for --pairs"),
        (["--pairs", "a", "b", "--minutes", "0"], "--minutes 0: it must be more than 0"),
        (["--pairs", "a", "b", "--site", "gpu"], "--site cannot be combined with --pairs"),
    ],
)
def test_options_that_do_not_fit(arguments: list[str], message: str, capsys: Capture) -> None:
    assert main(["adapt", *arguments, "--out", "out"]) == 2
    assert message in capsys.readouterr().err
