"""Held-out sets, the tokenizer, and the token file of each arm."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash

from proxhpc.assemble.listings import read_listing
from proxhpc.corpus.disk import replacing, sha256_file, write_atomic
from proxhpc.corpus.document import BadRecord, Document, Span, SpanEnd
from proxhpc.corpus.hosts import host_of, split_of
from proxhpc.corpus.inputs import check_unchanged
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.corpus.writer import PartWriter
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.errors import UserError
from proxhpc.prove.arms import arm_rows, arm_source, refining_work
from proxhpc.prove.layout import DOCUMENT, ArmReceipt, HeldOutReceipt, ProveDir
from proxhpc.prove.plan import ProvePlan
from proxhpc.run.models import TOKENIZER_FILES
from proxhpc.spec.prove import Arm, HeldOut

END_OF_TEXT = "<|end|>"  # of a document, in new tokenizers
_SAMPLE_CHARS = 1 << 29  # of text that a tokenizer is made from
_BATCH = 256  # documents that are tokenized at once
_MAX_RECORD = 1 << 28  # bytes
_UTF8 = ("utf-8", "surrogatepass")


def prepare_held_out(folder: ProveDir, plan: ProvePlan, held_out: HeldOut) -> None:
    """Write a held-out set. UserError if it is empty."""
    if folder.heldout_receipt(held_out.name).exists():
        return
    left_out = Counter[str]()
    documents: dict[int, dict[str, str]] = {}
    for info in plan.held_out[held_out.name]:
        check_unchanged(info)
        for item in read_span(info, info.format, Span(0), Fields(held_out.text), _MAX_RECORD):
            if isinstance(item, SpanEnd):
                continue
            if isinstance(item, BadRecord):
                left_out[item.reason] += 1
            elif not item.text.strip():
                left_out["empty"] += 1
            else:
                host = host_of(item.fields, held_out.host, held_out.url)
                row = {"id": item.id, "host": host, "text": item.text}
                documents[xxhash.xxh3_64_intdigest(item.text.encode(*_UTF8))] = row
    chosen = sorted(documents)[: held_out.documents]
    left_out["not_chosen"] = len(documents) - len(chosen)
    if not chosen:
        raise UserError(
            f"the held-out set {held_out.name} has no text",
            hint="fix `paths` and `text` of the set, and use another --out",
        )
    with PartWriter(folder.heldout_set(held_out.name)) as writer:
        for key in chosen:
            writer.write(documents[key])
    rows = [documents[key] for key in chosen]
    HeldOutReceipt(
        documents=len(rows),
        hosts=len({row["host"] for row in rows} - {""}),
        bytes=sum(len(row["text"].encode(*_UTF8)) for row in rows),
        left_out=dict(+left_out),
    ).write(folder.heldout_receipt(held_out.name))


class TrainingPool:
    """The documents of an arm that may be trained on: not held out, and of the right hosts."""

    def __init__(self, folder: ProveDir, plan: ProvePlan) -> None:
        self._folder, self._plan, self._section = folder, plan, plan.section
        rows = [
            row
            for held_out in self._section.held_out
            for row in read_listing(folder.heldout_set(held_out.name))
        ]
        self._hosts = {row["host"] for row in rows} - {""}
        self._texts = {xxhash.xxh3_128_digest(row["text"].encode(*_UTF8)) for row in rows}
        self.left_out = Counter[str]()  # by reason

    def documents(self, arm: Arm) -> Iterator[Document]:
        """Yield an arm's documents; those that are not of its share come from the baseline."""
        yield from self._share(arm, lambda part: part < arm.share)
        if arm.share < 1:
            yield from self._share(self._section.baseline, lambda part: part >= arm.share)

    def _share(self, arm: Arm, is_chosen: Callable[[float], bool]) -> Iterator[Document]:
        for document in arm_rows(arm_source(self._folder, self._plan, arm)):
            # Another hash than that of the order, so that the share is one of every sample.
            if not is_chosen(xxhash.xxh3_64_intdigest(document.id.encode(*_UTF8), 1) / 2**64):
                continue
            if reason := self._why_left_out(document):
                self.left_out[reason] += 1
            else:
                yield document

    def _why_left_out(self, document: Document) -> str:
        if not document.text.strip():
            return "empty"
        host = host_of(document.fields, self._section.host, self._section.url)
        if host in self._hosts:
            return "held_out_host"
        if self._section.hosts == "validation" and (not host or split_of(host, "") == "train"):
            return "train_host"
        if xxhash.xxh3_128_digest(document.text.encode(*_UTF8)) in self._texts:
            return "held_out_text"
        return ""


def prepare_tokenizer(folder: ProveDir, plan: ProvePlan) -> None:
    """Copy the tokenizer of all arms, or make it from the baseline's documents."""
    training = plan.section.training
    if (folder.tokenizer / "tokenizer_config.json").exists():
        return
    folder.tokenizer.mkdir(exist_ok=True)
    if source := training.tokenizer or training.base:
        HFTokenizer(Path(source))  # UserError if it cannot be loaded
        for name in sorted(TOKENIZER_FILES, key="tokenizer_config.json".__eq__):  # that one last
            if (path := Path(source) / name).is_file():
                write_atomic(folder.tokenizer / name, path.read_bytes())
        return
    documents = TrainingPool(folder, plan).documents(plan.section.baseline)
    _make_tokenizer(_sample(document.text for document in documents), training.vocabulary, folder)


def _sample(texts: Iterable[str]) -> Iterator[str]:
    size = 0
    for text in texts:
        yield text
        if (size := size + len(text)) > _SAMPLE_CHARS:
            return


def _make_tokenizer(texts: Iterator[str], size: int, folder: ProveDir) -> None:
    """Train a byte-level BPE, which loses nothing of a text. UserError if there is too little."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() != size - 1:
        raise UserError(
            f"the training documents give {tokenizer.get_vocab_size() + 1:,} tokens,"
            f" fewer than prove.training.vocabulary: {size:,}",
            hint="use more text or a smaller vocabulary, and another --out",
        )
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END_OF_TEXT}
    write_atomic(folder.tokenizer / "tokenizer.json", tokenizer.to_str().encode())
    write_atomic(
        folder.tokenizer / "tokenizer_config.json",
        json.dumps(config | {"clean_up_tokenization_spaces": False}).encode(),
    )


def prepare_tokens(folder: ProveDir, plan: ProvePlan, arm: Arm) -> None:
    """Write the token file of an arm. UserError if it has no document."""
    if folder.arm_receipt(arm.name).exists():
        return
    tokenizer = HFTokenizer(folder.tokenizer)
    pool = TrainingPool(folder, plan)
    with replacing(folder.arm_tokens(arm.name)) as file:
        rows, size = _write_tokens(file, tokenizer, pool.documents(arm))
    if not rows:
        raise UserError(
            f"the arm {arm.name} has no document to train on; left out, by reason:"
            f" {dict(pool.left_out)}",
            hint="fix the section `prove`, and use another --out",
        )
    with replacing(folder.arm_documents(arm.name)) as file:
        np.save(file, np.array(rows, DOCUMENT))
    flops, raw_bytes = refining_work(arm_source(folder, plan, arm), arm)
    ArmReceipt(
        documents=len(rows),
        tokens=rows[-1][1] + rows[-1][2],
        bytes=size,
        left_out=dict(pool.left_out),
        refining_flops=round(flops * arm.share),
        raw_bytes=raw_bytes,
        digest=sha256_file(folder.arm_tokens(arm.name)),
    ).write(folder.arm_receipt(arm.name))


def _write_tokens(
    file: BinaryIO, tokenizer: HFTokenizer, documents: Iterator[Document]
) -> tuple[list[tuple[int, int, int]], int]:
    """Write a .npy file of token ids; return the documents' rows and UTF-8 bytes."""
    kind = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    header = {"descr": kind.str, "fortran_order": False}
    _write_header(file, header | {"shape": (0,)})
    rows, position, size = list[tuple[int, int, int]](), 0, 0
    while batch := list(islice(documents, _BATCH)):
        texts = [document.text for document in batch]
        for document, ids in zip(batch, tokenizer.encode_lines(texts), strict=True):
            ids = [*tokenizer.bos, *ids, *tokenizer.stop_ids[:1]]
            rows.append((xxhash.xxh3_64_intdigest(document.id.encode(*_UTF8)), position, len(ids)))
            file.write(np.array(ids, kind).tobytes())
            position += len(ids)
            size += len(document.text.encode(*_UTF8))
    file.seek(0)  # numpy leaves room in the header for the true number
    _write_header(file, header | {"shape": (position,)})
    file.seek(0, 2)
    return rows, size


def _write_header(file: BinaryIO, header: dict[str, object]) -> None:
    np.lib.format.write_array_header_1_0(file, header)  # type: ignore[no-untyped-call]
