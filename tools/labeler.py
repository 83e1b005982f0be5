"""The classical labeler: probabilities that lines and documents should be dropped.

    python tools/labeler.py ROWS.jsonl.zst PROBABILITIES.jsonl.zst

LightGBM on features of lines, and logistic regression on features of documents. It is the second
teacher of the embedded refiner, and a system to compare it with. It is a separate program because
it needs lightgbm and scikit-learn.

A row is {"id", "level": "chunk" | "doc", "host", "lines", "labels", "train"}. `labels` has a letter
for each line, or one for the document: K (keep), D (drop) or ?. The labeler trains on rows where
`train` is true. A row of the result is {"id", "level", "chance"}. Probabilities of training rows
come from a model that was not trained on their host.
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
COMMON_WORDS = (
    "the of and to in a is that for on with as it be was by are this at from or have an not but "
    "they you we his her he she which will their has had been were can all there when more would "
    "who about if out so what up one"
)
COMMON = frozenset(COMMON_WORDS.split())
SHOP_WORDS = (
    "price buy free shipping order click online shop products service services contact best sale "
    "please website"
)
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
    """Features of a line by itself; CHARS, WORDS, … below are indices of some of them."""
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
    """Features of each line on its page [lines, features]."""
    features = np.array([line_features(line) for line in lines], np.float32)
    total, at, words = len(lines), np.arange(len(lines)), features[:, WORDS]
    before = np.concatenate([[0], np.cumsum(words)])
    counts: dict[str, int] = {}
    order = []
    for line in lines:
        counts[line.strip()] = counts.get(line.strip(), 0) + 1
        order.append(counts[line.strip()])
    columns = [features, at, total - 1 - at, at / max(1, total - 1)]
    columns += [before[:-1] / max(1, before[-1])]
    columns += [np.array([counts[line.strip()] for line in lines]), np.array(order)]
    of_long = words[words >= 10].sum() / max(1, words.sum())
    page = (total, words.mean(), (words >= 20).mean(), of_long)
    columns += [np.full(total, value) for value in page]
    key = features[:, [CHARS, WORDS, UPPER, TITLE, COMMONS, ENDED, BULLET, BARS]]
    for offset in (-5, -4, -3, -2, -1, 1, 2, 3, 4, 5):
        columns.append(shifted(key, offset, -1)[:, : 5 if abs(offset) > 2 else None])
    signals = (words, words >= 10, *(features[:, key] for key in (COMMONS, TITLE, ENDED)))
    for reach in (3, 10, 30):
        for low, high in ((at - reach, at), (at + 1, at + 1 + reach)):
            columns += [means(signal, low, high) for signal in signals]
    for min_words in (10, 20):
        columns += distances(np.flatnonzero(words >= min_words), at)
    return np.column_stack(columns).astype(np.float32)


def shifted(values: Array, offset: int, fill: float) -> Array:
    """Each row replaced by the one at `offset` from it, or by `fill` if there is none."""
    out = np.full(values.shape, fill, np.float32)
    if abs(offset) < len(values):
        if offset < 0:
            out[-offset:] = values[:offset]
        else:
            out[:-offset] = values[offset:]
    return out


def means(values: Array, low: Array, high: Array) -> Array:
    """Means of the values [low, high), for arrays of both; 0 for empty ranges."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    low = np.clip(low, 0, len(values))
    high = np.maximum(low, np.clip(high, 0, len(values)))
    return (sums[high] - sums[low]) / np.maximum(1, high - low)


def distances(targets: Array, at: Array) -> list[Array]:
    """Distance of each line to the nearest target before it, and to the next one; 999 for none."""
    if not len(targets):
        return [np.full(len(at), 999.0)] * 2
    next_ = np.searchsorted(targets, at, "left")
    before = np.where(next_ > 0, at - targets[np.maximum(next_ - 1, 0)], 999)
    after = np.where(next_ < len(targets), targets[np.minimum(next_, len(targets) - 1)] - at, 999)
    return [before, after]


def neighborhood(probabilities: Array) -> Array:
    """Probabilities of each line and of its neighbors [lines, features]."""
    at = np.arange(len(probabilities))
    columns = [probabilities]
    for offset in (-8, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 8):
        columns.append(shifted(probabilities, offset, 0.5))
    columns += [means(probabilities, at - reach, at + reach + 1) for reach in (3, 8, 20)]
    columns.append(np.full(len(probabilities), probabilities.mean()))
    return np.column_stack(columns).astype(np.float32)


def bag_text(line: str) -> str:
    """The text for the bag of words of a line, with words for its length and its end."""
    text = re.sub(r"\d", "0", line.strip())
    end = "a" if text[-1:].isalnum() else text[-1:]
    return f"zl{min(len(WORD.findall(text)), 30)} ze{end} {text[:300]}"


def document_features(text: str) -> list[float]:
    """Features of a document: sizes, and kinds of lines, words and characters."""
    lines = [line for line in text.split("\n") if line.strip()] or [""]
    features = np.array([line_features(line) for line in lines], float)
    words = text.split()
    count = max(1, len(words))
    folded = [word.lower().strip(".,!?") for word in words]
    size = features[:, WORDS]

    def share(listed: str) -> float:
        wanted = frozenset(listed.split())
        return sum(word in wanted for word in folded) / count

    return [
        np.log(len(text) + 1),
        np.log(len(lines)),
        np.log(size.mean() + 1),
        np.log(np.median(size) + 1),
        (size >= 20).mean(),
        size[size >= 20].sum() / max(1, size.sum()),
        features[:, ENDED].mean(),
        (features[:, ENDED] * size).sum() / max(1, size.sum()),
        len(set(folded)) / count**0.7,
        share("i my me we our us"),
        share("you your"),
        *(text.count(sign) / count for sign in ("!", "?", ",", "|", "$", "...", "http")),
        sum(map(str.isdigit, text)) / max(1, len(text)),
        sum(map(str.isupper, text)) / max(1, len(text)),
        sum(map(len, words)) / count,
        share("the of a in to"),
        share("was were had"),
        (features[:, COMMONS] * size).sum() / max(1, size.sum()),
        share(SHOP_WORDS),
        (text.count('"') + text.count("“")) / count,
        *(text.count(sign) / count for sign in "(:"),
    ]


def fold_of(host: str) -> int:
    """The number of a host's fold."""
    return int(hashlib.sha256(f"fold {host}".encode()).hexdigest()[:8], 16) % FOLDS


def cross_predict(
    known: Array, folds: Array, fit: Callable[[Array], Callable[[Array], Array]]
) -> Array:
    """Probabilities of all items; of known ones, from a model that was not fitted on their fold.

    `fit` takes the items to fit a model on, and returns its prediction function.
    """
    probabilities = np.zeros(len(folds), np.float32)
    unknown = np.flatnonzero(~known)
    for fold in range(FOLDS):
        predict = fit(np.flatnonzero(known & (folds != fold)))
        held_out = np.flatnonzero(known & (folds == fold))
        for items, share in ((held_out, 1), (unknown, FOLDS)):
            if len(items):
                probabilities[items] += predict(items) / share
        print(f"fold {fold + 1} of {FOLDS}", file=sys.stderr, flush=True)
    return probabilities


def label_lines(rows: Sequence[dict[str, Any]]) -> list[Array]:
    """Probabilities for each line of each row."""
    ends = np.cumsum([len(row["lines"]) for row in rows])
    page = np.concatenate([page_features(row["lines"]) for row in rows])
    pattern = r"(?u)\b\w+\b|[|»©:?!.,$]"
    hasher = HashingVectorizer(
        n_features=2**18, ngram_range=(1, 2), token_pattern=pattern, alternate_sign=False
    )
    bags = hasher.transform(bag_text(line) for row in rows for line in row["lines"])
    letters = np.array([letter for row in rows for letter in row["labels"]])
    sizes = [len(row["lines"]) for row in rows]
    train = np.repeat([row["train"] for row in rows], sizes)
    known, drop = train & (letters != "?"), (letters == "D").astype(int)
    folds = np.repeat([fold_of(row["host"]) for row in rows], sizes)
    words = np.sqrt(np.clip(page[:, WORDS], 1, 100))
    weight = words / np.sqrt(np.repeat(sizes, sizes))

    def fit_words(items: Array) -> Callable[[Array], Array]:
        model = SGDClassifier(
            loss="log_loss", alpha=2e-6, max_iter=6, tol=None, random_state=0, average=True
        ).fit(bags[items], drop[items], sample_weight=words[items])
        return lambda others: model.predict_proba(bags[others])[:, 1]

    first = cross_predict(known, folds, fit_words)
    near = np.concatenate([neighborhood(part) for part in np.split(first, ends[:-1])])
    features = np.concatenate([page, near], 1)

    def fit_trees(items: Array) -> Callable[[Array], Array]:
        data = lightgbm.Dataset(features[items], drop[items], weight=weight[items])
        model = lightgbm.train(GBM, data, num_boost_round=ROUNDS)
        return lambda others: model.predict(features[others])

    return np.split(cross_predict(known, folds, fit_trees), ends[:-1])


def label_documents(rows: Sequence[dict[str, Any]]) -> list[Array]:
    """The probability of each document, as an array of one."""
    features = np.array([document_features("\n".join(row["lines"])) for row in rows])
    drop = np.array([row["labels"] == "D" for row in rows]).astype(int)
    known = np.array([bool(row["train"]) and row["labels"] != "?" for row in rows])
    folds = np.array([fold_of(row["id"]) for row in rows])

    def fit(items: Array) -> Callable[[Array], Array]:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000))
        model.fit(features[items], drop[items])
        return lambda others: model.predict_proba(features[others])[:, 1]

    return list(cross_predict(known, folds, fit)[:, None])


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file."""
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as stream:
        for line in io.BufferedReader(stream):
            yield json.loads(line)


def main() -> None:
    """Label the rows of one file, and write the other one."""
    source, target = map(Path, sys.argv[1:3])
    rows = list(read(source))
    out = io.BytesIO()
    for level, label in (("chunk", label_lines), ("doc", label_documents)):
        asked = [row for row in rows if row["level"] == level]
        for row, probabilities in zip(asked, label(asked) if asked else [], strict=True):
            rounded = [round(float(value), 3) for value in probabilities]
            line = {"id": row["id"], "level": level, "chance": rounded}
            out.write(json.dumps(line).encode() + b"\n")
    part = target.with_name(f".{target.name}.part")  # so that the file appears whole
    part.write_bytes(zstandard.ZstdCompressor().compress(out.getvalue()))
    part.replace(target)


if __name__ == "__main__":
    main()
