"""What `inspect --json` prints; null is unknown."""

from typing import Literal

from proxhpc.outputs import OutputModel


class Survivor(OutputModel):
    """The document of a duplicate set that is in the corpus."""

    id: str
    """Its id."""
    source: str
    """Its input file and position."""
    similarity: float | None
    """Similarity of the two texts, from 0 to 1; identical texts have 1. Null for a document left
    out by its URL: the texts were not compared."""


class BenchmarkItem(OutputModel):
    """The item of a benchmark of which a document contains the largest share."""

    id: str
    """Its id."""
    source: str
    """Its file and position."""
    share: float
    """Share of its runs of words that the document contains, from 0 to 1."""
    words: str
    """The first such run."""


class InspectedProgram(OutputModel):
    """A program and the request that it answered."""

    lines: tuple[int, int]
    """First line of the window, from 0, and the line after its last one."""
    program: str
    """The program, as the model wrote it."""
    finish: str
    """`stop` for a complete answer, `length` or `loop` for one that was truncated."""
    prompt_tokens: int
    """Tokens of the prompt; 0 without a model."""
    cached_tokens: int
    """Those of them found in the prefix cache."""
    new_tokens: int
    """Tokens that the model generated."""
    from_memo: bool
    """Whether the memo answered, because the same prompt had been answered before."""


class InspectedDocument(OutputModel):
    """A document before and after."""

    id: str
    """Its id; empty for a record that could not be read."""
    source: str
    """Its input file and position."""
    shard: int | None
    """Its shard."""
    published: bool
    """Whether the shard's ledger is published. If not, the shard may be refined again."""
    outcome: str
    """`kept`, `edited`, `dropped`, `quarantined` or, only after the merge, `duplicate` or
    `left_out`."""
    reason: str
    """Why it was dropped, quarantined or left out."""
    detail: str
    """Error message of a quarantined document."""
    duplicate_of: Survivor | None
    """For a duplicate: the document that is in the corpus in its place."""
    benchmark_item: BenchmarkItem | None
    """For a document that contains runs of words of a benchmark: the item it contains most of."""
    flags: tuple[str, ...]
    """What was unusual, such as `looped`."""
    rejected: dict[str, int]
    """Statements and windows that were not executed, by reason."""
    lenient: dict[str, int]
    """What was overlooked to read and execute the programs, by name."""
    bytes_in: int
    """UTF-8 bytes of the raw text."""
    bytes_out: int
    """UTF-8 bytes of the refined text."""
    tokens_in: int
    """Tokens of the raw text."""
    tokens_out: int
    """Tokens of the refined text."""
    token_unit: str
    """What tokens are: the tokenizer that counted them."""
    lines_removed: int
    """Lines removed."""
    strings_replaced: int
    """Strings replaced and lines inserted."""
    doc_program: InspectedProgram | None
    """Program of the doc stage."""
    chunk_programs: tuple[InspectedProgram, ...]
    """Programs of the chunk stage, one for each window."""
    merge_program: str | None
    """Program by which the merge removed repeated lines of the refined text; null if it did not."""
    before: str | None
    """The raw text; null for a record that could not be read."""
    after: str | None
    """The refined text, after the merge without repeated lines; null for a document that was
    dropped or quarantined."""
    unreadable: str | None
    """Beginning of a record that could not be read."""
    notes: tuple[str, ...]
    """Contradictions between input, ledger and merge."""


class InspectOutput(OutputModel):
    """Documents of a run, before and after."""

    format: Literal["proxhpc.inspect/1"] = "proxhpc.inspect/1"
    """Kind and version of this document."""
    documents: tuple[InspectedDocument, ...]
    """The documents."""
