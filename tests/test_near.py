"""Near-duplicates: the same ones for any shards, order of work and memory."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxhpc.assemble.listings import read_listing
from proxhpc.assemble.merge import merge_run
from proxhpc.dedup.minhash import band_keys, compress_slots, minhash_slots, similarity
from proxhpc.dedup.shingles import BLOCK, fold, shingles, shingles_of_each, word_hashes
from proxhpc.launch.launch import prepare_run
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.run.shards import shard_groups
from proxhpc.spec.sections import Near
from proxhpc.worker.worker import Assignment, run_worker
from runs import local_site, manifest, write_jsonl

WORDS = [f"{a}{b}" for a in "bcdfghklmnprst" for b in ("an", "elo", "ira", "ost", "urn", "ydde")]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["Röslein", "a1", "x_y", "the", "日", "ไ", "e\u0301t"]), max_size=9)
)
def test_a_words_hash_depends_only_on_the_word(words: list[str]) -> None:
    single = [word_hashes(fold(word)) for word in words]
    expected = np.concatenate([np.empty(0, np.uint64), *single])
    for between in (" ", "\n\n", ", «", " - ... "):
        assert word_hashes(fold(between.join(["", *words, ""]))).tolist() == expected.tolist()
    assert word_hashes(fold(" ".join(words).upper())).tolist() == expected.tolist()


def test_words_have_different_hashes_and_unspaced_letters_are_words() -> None:
    hashes = word_hashes(fold(" ".join(f"{a}{b}" for a in WORDS for b in WORDS)))
    assert len(np.unique(hashes)) == len(WORDS) ** 2
    assert len(word_hashes(fold("我们去北京"))) == 5
    assert len(word_hashes(fold("we go to 北京"))) == 5


def test_blocks_of_a_long_text_do_not_change_its_hashes() -> None:
    words = random.Random(0).choices(WORDS, k=BLOCK // 2)
    hashes = [int(word_hashes(fold(word))[0]) for word in words]
    assert word_hashes(fold(" ".join(words))).tolist() == hashes


def test_shingles_are_runs_of_words() -> None:
    assert len(shingles(fold("a b c d e f"), 5)) == 2
    assert len(shingles(fold("a b"), 5)) == 1
    assert len(shingles(fold(" ... "), 5)) == 0
    first, second = shingles(fold("a b c d e f"), 5)
    assert first == shingles(fold("A, b; c d - e!"), 5)[0]
    assert second == shingles(fold("b c d e f"), 5)[0]
    assert shingles(fold("b a"), 2)[0] != shingles(fold("a b"), 2)[0]


@settings(deadline=None)
@given(st.lists(st.text(st.sampled_from("ab 我\n\u0301\ud800")), max_size=6))
def test_shingles_of_several_texts_are_those_of_each(texts: list[str]) -> None:
    folded = [fold(text) for text in texts]
    together = shingles_of_each(folded, 3)
    assert [hashes.tolist() for hashes in together] == [
        shingles(text, 3).tolist() for text in folded
    ]


def test_equal_slots_estimate_the_jaccard_similarity() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 63, 3000, np.uint64)
    sets = [values[:2000], values[1000:], values[:2000][::-1], values[500:2500]]
    slots = minhash_slots(sets, 256, 1)
    signatures = compress_slots(slots)
    for other, truth in ((1, 1 / 3), (2, 1.0), (3, 0.6)):
        [estimate] = similarity(signatures[:1], signatures[other : other + 1])
        assert estimate == np.mean(slots[0] == slots[other]) == pytest.approx(truth, abs=0.1)
    assert similarity(signatures[:1], signatures[2:3])[0] == 1
    keys = band_keys(signatures, 32)
    assert keys.shape == (4, 32)
    assert band_keys(signatures[:0], 32).shape == (0, 32)  # a group whose documents have no words
    assert (keys[0] == keys[2]).all()
    assert not (keys[0] == keys[1]).all()
    assert not np.array_equal(slots, minhash_slots(sets, 256, 2))


def test_probability_that_two_documents_are_compared() -> None:
    near = Near(bands=14, rows=8)
    assert near.compared(0.8) == pytest.approx(0.924, abs=0.001)
    assert (near.compared(0.0), near.compared(1.0)) == (0.0, 1.0)


def texts() -> list[str]:
    """Sets of similar documents among documents that share nothing."""
    rng = random.Random(7)
    out = []
    for number in range(60):
        words = rng.choices(WORDS, k=200)
        out.append(lines(words))
        for copy in range(number % 4):
            changed = list(words)
            changed[50 * copy + 3] = "changed"
            out.append(lines([*changed, "and", "more"]))
    rng.shuffle(out)
    return out


def lines(words: Sequence[str]) -> str:
    return "\n".join(" ".join(words[n : n + 10]) + "." for n in range(0, len(words), 10))


def merged(folder: Path, tokens: int, dedup: dict[str, Any], **options: Any) -> RunDir:
    folder.mkdir(exist_ok=True)
    rows = [
        {"id": f"d{n}", "text": text, "url": f"http://example.org/{n % 80}"}
        for n, text in enumerate(texts())
    ]
    source = write_jsonl(folder / "in.jsonl", rows)
    path = manifest(
        folder,
        [source],
        stages=[{"level": "chunk"}],
        sharding={"tokens": tokens},
        dedup=dedup,
        output={"cluster_size": True},
    )
    run = prepare_run(path, local_site(folder), None)
    run_worker(run.dir, Assignment(), lambda _: None)
    merge_run(run.dir, **options)
    return run.dir


def test_of_near_duplicates_the_longest_survives(tmp_path: Path) -> None:
    run = merged(tmp_path / "one", 10**6, {"near": {}})
    rows = [*read_listing(run.part(0))]
    assert len(rows) == 60
    pairs = [*read_listing(run.duplicates)]
    assert len(pairs) == sum(number % 4 for number in range(60))
    assert all(0.8 <= pair["similarity"] < 1 for pair in pairs)
    # The longest of a set survives; of equals the first.
    length = {f"d{n}": len(text) for n, text in enumerate(texts())}
    for pair in pairs:
        duplicate, survivor = pair["duplicate"]["id"], pair["survivor"]["id"]
        assert (-length[survivor], int(survivor[1:])) < (-length[duplicate], int(duplicate[1:]))


def test_duplicates_do_not_depend_on_shards_groups_units_and_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dedup = {"near": {}, "url": "url", "survivors": 2}
    run = merged(tmp_path / "one", 10**6, dedup)
    assert len({row["proxhpc"]["cluster_size"] for row in read_listing(run.part(0))}) > 3
    splits: list[tuple[int, int, dict[str, int]]] = [
        (7, 1, {"memory": 6000}),
        (64, 6, {}),
        (64, 1, {"processes": 2}),
    ]
    for shards, groups, options in splits:
        with monkeypatch.context() as patch:
            if groups > 1:
                patch.setattr("proxhpc.run.shards.MIN_GROUP_BYTES", 20_000)
                patch.setattr("proxhpc.assemble.rounds._KEY_BYTES", 20_000)
                patch.setattr("proxhpc.assemble.rounds._EXACT_BYTES", 20_000)
            tokens = 40_000 // shards
            other = merged(tmp_path / f"{shards} {groups}", tokens, dedup, **options)
            plan = Plan.load(other)
            assert len(plan.shards) > shards - 2
            assert len(shard_groups(plan)) > groups - 2
        assert other.part(0).read_bytes() == run.part(0).read_bytes()
        assert other.duplicates.read_bytes() == run.duplicates.read_bytes()
