"""The report in words: one sentence, its parts, and numbers as people write them."""

from proxhpc.account.flops import break_even_parameters
from proxhpc.account.quantity import quantity
from proxhpc.account.reasons import reason_text
from proxhpc.report.model import AccountBase, ExampleReport, ExecutionReport, Report
from proxhpc.status.terminal import duration, percentage, safe, short

KEPT = "kept unchanged"
WRITTEN = "in the corpus"
_MAX_CAUSES, _MAX_CAUSE_CHARS = 3, 110  # in the sentence, which has four lines at most
_MIN_CAUSE = 0.03  # share of what was removed; a smaller cause is left out
_PLACES = {"duplicate": "in duplicates", "left_out": "in documents left out"}
_LABELS = {
    "edited": "removed from edited documents",
    "duplicate": "left out as duplicates",
    "left_out": "left out by the merge",
    "shortened": "removed by the merge",
    "written": WRITTEN,
}


def label(outcome: str, reason: str) -> str:
    """An outcome and its reason in words."""
    words = _LABELS.get(outcome, outcome)
    return safe(f"{words}: {reason_text(reason)}" if reason else words)


def remaining(report: AccountBase) -> tuple[int, int]:
    """Documents and tokens of the corpus or, before the merge, of the refined documents."""
    documents, tokens = report.documents, report.tokens
    if documents.written is None or tokens.written is None:
        return documents.refined, tokens.refined
    return documents.written, tokens.written


def sentence(report: AccountBase) -> str:
    """How much was removed, mostly why, what it cost and what it saves."""
    is_finished = isinstance(report, Report)
    if not report.documents.read:
        return "The input holds no documents." if is_finished else "No document is refined yet."
    text = f"{_removed(report)}; this took {cost_text(report.execution)}"
    if is_finished:
        return f"{text[0].upper()}{text[1:]} and {_saved(report)}."
    return f"So far, about {percent(report.estimate.share)} of the input is refined: {text}."


def _removed(report: AccountBase) -> str:
    documents, tokens = remaining(report)
    read, raw = report.documents.read, report.tokens.read
    if (documents, tokens) == (read, raw):
        return "nothing was removed"
    if not documents:
        return f"everything was removed: {_causes(report)}"
    dropped = f"{percentage(read - documents, read)} of the documents were removed"
    if tokens > raw > 0:  # programs may insert lines
        return f"the text grew by {percentage(tokens - raw, raw)} of its tokens, and {dropped}"
    parts = f"{percentage(raw - tokens, raw)} of the tokens" if raw else "no tokens"
    parts += f" and {dropped}"
    causes = _causes(report)
    return f"{parts}: {causes}" if causes else parts


def _causes(report: AccountBase) -> str:
    """The largest shares that were removed, of the tokens or, if these are unknown, documents."""
    removed = [entry for entry in report.outcomes if entry.outcome != "written"]
    if any(entry.raw_tokens for entry in removed):
        unit, whole = "tokens", report.tokens.read
        sizes = [(entry.raw_tokens or 0, entry) for entry in removed]
    else:
        unit, whole = "documents", report.documents.read
        sizes = [(e.documents, e) for e in removed if e.outcome not in ("edited", "shortened")]
    smallest = _MIN_CAUSE * sum(size for size, _ in sizes)
    words: list[str] = []
    for size, entry in sorted(sizes, key=lambda pair: -pair[0])[:_MAX_CAUSES]:
        place = entry.outcome.replace("left_out", "left out")
        if unit == "tokens":
            place = _PLACES.get(entry.outcome, f"in {place} documents")
        reason = f" ({safe(reason_text(entry.reason))})" if entry.reason else ""
        if size > smallest and sum(map(len, words)) < _MAX_CAUSE_CHARS:
            of_unit = "" if words else f" of the {unit}"
            words.append(f"{percentage(size, whole)}{of_unit} {place}{reason}")
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def example_title(example: ExampleReport) -> str:
    """The outcome of an example, and how much of it was removed."""
    tokens = quantity(example.raw_tokens, "token")
    if example.outcome != "edited":
        return f"{label(example.outcome, example.reason)}; {tokens}"
    removed = percentage(example.raw_tokens - example.refined_tokens, example.raw_tokens)
    return f"edited: {removed} of {tokens} removed"


def cost_text(execution: ExecutionReport) -> str:
    """`12.5 GPU-hours (31.25 EUR)`; the time of the cores that were held where no GPU was used."""
    cost = execution.cost
    if cost.gpu_hours:
        price = f" ({safe(cost.price)})" if cost.price else ""
        return f"{hours(cost.gpu_hours, 'GPU')}{price}"
    if cost.gpu_hours == 0 and cost.core_hours is not None:
        return hours(cost.core_hours, "core")
    return f"{duration(execution.busy_seconds + execution.boot_seconds)} of the workers' time"


def _saved(report: AccountBase) -> str:
    saved = report.tokens.read - remaining(report)[1]
    if saved <= 0:
        return "saves nothing in training"
    if saved == report.tokens.read:
        return "leaves nothing to train on"
    return f"saves {percentage(saved, report.tokens.read)} of the FLOPs of a training epoch"


def break_even_text(report: AccountBase) -> str:
    """From which model size on refining pays, and what it saves the manifest's model."""
    refining, raw, tokens = report.flops.exact, report.tokens.read, remaining(report)[1]
    if not tokens:
        return "Nothing is left to train on."
    if tokens >= raw:
        return "Refining does not pay in FLOPs: the text has not become smaller."
    if refining is None:
        return "Whether refining pays in FLOPs is unknown, because the shape of a model is."
    text = "Refining used no model, so it pays in FLOPs for a trained model of any size."
    if refining:
        text = (
            "One epoch of training on the refined text instead of the raw one saves the FLOPs that"
            " refining took if the trained model has at least"
            f" {short(break_even_parameters(refining, raw, tokens))} parameters."
        )
    if (training := report.comparison) and training.raw_flops:
        took = f"; refining took {short(100 * refining / training.raw_flops)} % as many"
        saved = f"{percentage(raw - tokens, raw)} of the training FLOPs"
        text += (
            f" For the model {safe(training.name)}, this saves {saved}{took if refining else ''}."
        )
    elif training:
        text += f" The size of the model {safe(training.name)} is unknown: {safe(training.note)}."
    return f"{text} None of this says how good the trained model is."


def hours(number: float | None, unit: str) -> str:
    """`3.2 GPU-hours`, `4 min 10 s of GPU time`, or `?` where it is unknown."""
    if number is None:
        return "?"
    if number >= 1:
        return f"{number:,.1f} {unit}-hours"
    small = 0 < number < 1 / 3600
    return f"{'under 1 s' if small else duration(3600 * number)} of {unit} time"


def percent(ratio: float | None) -> str:
    """`12.3 %`, or `?` where it is unknown."""
    return "?" if ratio is None else f"{100 * ratio:.1f} %"


def power(flops: int | None) -> str:
    """`4.95e+19`, `0`, or `?` where it is unknown."""
    return "?" if flops is None else f"{flops:.3g}" if abs(flops) >= 1000 else str(flops)
