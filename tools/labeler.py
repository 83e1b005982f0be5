"""The classical labeler: chances that lines, and documents, should go, by LightGBM and features.

It is the embedded refiner's second teacher, and shown beside it. It runs by itself, for it needs
lightgbm and scikit-learn:

    python tools/labeler.py ROWS.jsonl.zst CHANCES.jsonl.zst

A row is {"id", "level": "chunk" | "doc", "host", "lines", "marks", "train"}; `marks` is a letter
K (keep), D (drop) or ? for each line, or one for a document, and is learnt from where `train` is
true. A row of the answer is {"id", "level", "chance"}; the chances of what is learnt from are
those of a labeler that has not seen its host.
"""

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightgbm
import numpy as np
import zstandard
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

FOLDS = 5
WORD = re.compile(r"\w+(?:'\w+)*")
COMMON_TEXT = (
    "the of and to in a is that for on with as it be was by are this at from or have an not but "
    "they you we his her he she which will their has had been were can all there when more would "
    "who about if out so what up one"
)
SHOP_TEXT = (
    "price buy free shipping order click online shop products service services contact best sale "
    "please website"
)
COMMON, SHOP = frozenset(COMMON_TEXT.split()), frozenset(SHOP_TEXT.split())
GBM = {
    "objective": "binary",
    "learning_rate": 0.06,
    "num_leaves": 63,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "lambda_l2": 5,
    "num_threads": 1,
    "deterministic": True,
    "verbose": -1,
    "seed": 0,
    "max_bin": 127,
}
ROUNDS = 260
Array = Any


def line_features(line: str) -> list[float]:
    """Features of a line by itself; CHARS, WORDS and so on name some of them by place."""
    text = line.strip()
    words = WORD.findall(text)
    count, size = len(words), len(text)
    letters = sum(map(str.isalpha, text))
    return [
        min(size, 2000),
        min(count, 400),
        letters / (size + 1),
        sum(map(str.isdigit, text)) / (size + 1),
        sum(map(str.isupper, text)) / (letters + 1),
        sum(word[:1].isupper() for word in words) / (count + 1),
        sum(word.lower() in COMMON for word in words) / (count + 1),
        text[-1:] in '.!?"”',
        text[-1:] in ":",
        text[-1:] == ",",
        text[:1].islower(),
        text[:1] in "-*•·–>»",
        sum(map(text.count, "|»•›")),
        text.count(",") / (count + 1),
        text.count(". "),
        sum(map(len, words)) / (count + 1),
        "http" in text or "www." in text,
        "@" in text,
        "©" in text or "copyright" in text.lower(),
        bool(re.search(r"\b(19|20)\d\d\b", text)),
        bool(re.search(r"\d\d?:\d\d", text)),
        any(sign in text for sign in "$£€"),
        "?" in text,
    ]


CHARS, WORDS, UPPER, TITLE, COMMONS, ENDED, BULLET, BARS = 0, 1, 4, 5, 6, 7, 11, 12


def page_features(lines: Sequence[str]) -> Array:
    """Features of each line on its page (lines, features)."""
    own = np.array([line_features(line) for line in lines], np.float32)
    total, at, words = len(lines), np.arange(len(lines)), own[:, WORDS]
    before = np.concatenate([[0], np.cumsum(words)])
    seen: dict[str, int] = {}
    order = []
    for line in lines:
        seen[line.strip()] = seen.get(line.strip(), 0) + 1
        order.append(seen[line.strip()])
    columns = [own, at, total - 1 - at, at / max(1, total - 1), before[:-1] / max(1, before[-1])]
    columns += [np.array([seen[line.strip()] for line in lines]), np.array(order)]
    of_page = (total, words.mean(), (words >= 20).mean())
    of_page += (words[words >= 10].sum() / max(1, words.sum()),)
    columns += [np.full(total, value) for value in of_page]
    key = own[:, [CHARS, WORDS, UPPER, TITLE, COMMONS, ENDED, BULLET, BARS]]
    for offset in (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5):
        columns.append(shifted(key, offset, -1)[:, : 5 if abs(offset) > 2 else None])
    signals = (words, words >= 10, own[:, COMMONS], own[:, TITLE], own[:, ENDED])
    for reach in (3, 10, 30):
        for low, high in ((at - reach, at), (at + 1, at + 1 + reach)):
            columns += [means(signal, low, high) for signal in signals]
    for least in (10, 20):
        columns += distances(np.flatnonzero(words >= least), at)
    return np.column_stack(columns).astype(np.float32)


def shifted(values: Array, offset: int, fill: float) -> Array:
    """The row `offset` further on in place of each; `fill` where there is none."""
    out = np.full(values.shape, fill, np.float32)
    if abs(offset) < len(values):
        if offset < 0:
            out[-offset:] = values[:offset]
        else:
            out[:-offset] = values[offset:]
    return out


def means(values: Array, low: Array, high: Array) -> Array:
    """Means of [low, high) of the values; 0 of nothing."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.clip(low, 0, len(values))
    high = np.maximum(low, np.clip(high, 0, len(values)))
    return (sums[high] - sums[low]) / np.maximum(1, high - low)


def distances(places: Array, at: Array) -> list[Array]:
    """How far the nearest of `places` before each line, and from it on, is; 999 for none."""
    if not len(places):
        return [np.full(len(at), 999.0)] * 2
    next_ = np.searchsorted(places, at, "left")
    back = np.where(next_ > 0, at - places[np.maximum(next_ - 1, 0)], 999)
    on = np.where(next_ < len(places), places[np.minimum(next_, len(places) - 1)] - at, 999)
    return [back, on]


def around(chances: Array) -> Array:
    """A chance of each line and of its neighbours (lines, features)."""
    at = np.arange(len(chances))
    columns = [chances]
    for offset in (-8, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 8):
        columns.append(shifted(chances, offset, 0.5))
    columns += [means(chances, at - reach, at + reach + 1) for reach in (3, 8, 20)]
    columns.append(np.full(len(chances), chances.mean()))
    return np.column_stack(columns).astype(np.float32)


def marked(line: str) -> str:
    """A line as a bag of words is made of it: its length and end are words, too."""
    text = re.sub(r"\d", "0", line.strip())
    end = "a" if text[-1:].isalnum() else text[-1:]
    return f"zl{min(len(WORD.findall(text)), 30)} ze{end} {text[:300]}"


def document_features(text: str) -> list[float]:
    """Features of a document: its length, how its lines and words are."""
    lines = [line for line in text.split("\n") if line.strip()] or [""]
    own = np.array([line_features(line) for line in lines], float)
    words = text.split()
    count = max(1, len(words))
    small = [word.lower().strip(".,!?") for word in words]
    size = own[:, WORDS]

    def share(of: str | frozenset[str]) -> float:
        wanted = of if isinstance(of, frozenset) else frozenset(of.split())
        return sum(word in wanted for word in small) / count

    return [
        np.log(len(text) + 1),
        np.log(len(lines)),
        np.log(size.mean() + 1),
        np.log(np.median(size) + 1),
        (size >= 20).mean(),
        size[size >= 20].sum() / max(1, size.sum()),
        own[:, ENDED].mean(),
        (own[:, ENDED] * size).sum() / max(1, size.sum()),
        len(set(small)) / count**0.7,
        share("i my me we our us"),
        share("you your"),
        *(text.count(sign) / count for sign in ("!", "?", ",", "|", "$", "...", "http")),
        sum(map(str.isdigit, text)) / max(1, len(text)),
        sum(map(str.isupper, text)) / max(1, len(text)),
        sum(map(len, words)) / count,
        share("the of a in to"),
        share("was were had"),
        (own[:, COMMONS] * size).sum() / max(1, size.sum()),
        share(SHOP),
        (text.count('"') + text.count("“")) / count,
        *(text.count(sign) / count for sign in "(:"),
    ]


def fold_of(host: str) -> int:
    """The fold of a host."""
    return int(hashlib.sha256(f"fold {host}".encode()).hexdigest()[:8], 16) % FOLDS


def crossed(known: Array, folds: Array, fit: Callable[[Array], Callable[[Array], Array]]) -> Array:
    """Chances of all items: of the known ones by models that were not fitted on their fold.

    `fit` takes the items to learn from, and returns what gives the chances of other ones.
    """
    chances = np.zeros(len(folds), np.float32)
    rest = np.flatnonzero(~known)
    for fold in range(FOLDS):
        predict = fit(np.flatnonzero(known & (folds != fold)))
        held = np.flatnonzero(known & (folds == fold))
        for items, share in ((held, 1), (rest, FOLDS)):
            if len(items):
                chances[items] += predict(items) / share
        print(f"fold {fold + 1} of {FOLDS}", file=sys.stderr, flush=True)
    return chances


def label_lines(rows: Sequence[dict[str, Any]]) -> list[Array]:
    """Chances of every line of every row."""
    ends = np.cumsum([len(row["lines"]) for row in rows])
    page = np.concatenate([page_features(row["lines"]) for row in rows])
    pattern = r"(?u)\b\w+\b|[|»©:?!.,$]"
    hasher = HashingVectorizer(
        n_features=2**18, ngram_range=(1, 2), token_pattern=pattern, alternate_sign=False
    )
    bags = hasher.transform(marked(line) for row in rows for line in row["lines"])
    letters = np.array([mark for row in rows for mark in row["marks"]])
    train = np.repeat([row["train"] for row in rows], [len(row["lines"]) for row in rows])
    known, label = train & (letters != "?"), (letters == "D").astype(int)
    sizes = np.repeat([len(row["lines"]) for row in rows], [len(row["lines"]) for row in rows])
    folds = np.repeat([fold_of(row["host"]) for row in rows], [len(r["lines"]) for r in rows])
    words = np.sqrt(np.clip(page[:, WORDS], 1, 100))
    weight = words / np.sqrt(sizes)

    def by_words(items: Array) -> Callable[[Array], Array]:
        model = SGDClassifier(
            loss="log_loss", alpha=2e-6, max_iter=6, tol=None, random_state=0, average=True
        ).fit(bags[items], label[items], sample_weight=words[items])
        return lambda others: model.predict_proba(bags[others])[:, 1]

    first = crossed(known, folds, by_words)
    more = np.concatenate([around(part) for part in np.split(first, ends[:-1])])
    features = np.concatenate([page, more], 1)

    def by_trees(items: Array) -> Callable[[Array], Array]:
        data = lightgbm.Dataset(features[items], label[items], weight=weight[items])
        model = lightgbm.train(GBM, data, num_boost_round=ROUNDS)
        return lambda others: model.predict(features[others])

    return np.split(crossed(known, folds, by_trees), ends[:-1])


def label_documents(rows: Sequence[dict[str, Any]]) -> list[Array]:
    """The chance of each document, as an array of one."""
    features = np.array([document_features("\n".join(row["lines"])) for row in rows])
    label = np.array([row["marks"] == "D" for row in rows]).astype(int)
    known = np.array([bool(row["train"]) and row["marks"] != "?" for row in rows])
    folds = np.array([fold_of(row["id"]) for row in rows])

    def fit(items: Array) -> Callable[[Array], Array]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(features[items], label[items])
        return lambda others: model.predict_proba(features[others])[:, 1]

    return list(crossed(known, folds, fit)[:, None])


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for line in io.BufferedReader(stream):
            yield json.loads(line)


def main() -> None:
    """Label the rows of the first argument into the second."""
    source, target = map(Path, sys.argv[1:3])
    rows = list(read(source))
    out = io.BytesIO()
    for level, label in (("chunk", label_lines), ("doc", label_documents)):
        own = [row for row in rows if row["level"] == level]
        for row, chances in zip(own, label(own) if own else [], strict=True):
            chance = [round(float(value), 3) for value in chances]
            line = {"id": row["id"], "level": level, "chance": chance}
            out.write(json.dumps(line).encode() + b"\n")
    part = target.with_name(f".{target.name}.part")  # what is there is whole
    part.write_bytes(zstandard.ZstdCompressor().compress(out.getvalue()))
    part.replace(target)


if __name__ == "__main__":
    main()
