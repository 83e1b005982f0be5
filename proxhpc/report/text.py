"""Tables that the terminal and the page both show. The first row is the header."""

from proxhpc.account.reasons import reason_text
from proxhpc.report.model import (
    AccountBase,
    ExecutionReport,
    RequestWork,
    TrainingReport,
)
from proxhpc.status.terminal import duration, percentage, safe, short, whole

TextTable = list[tuple[str, ...]]

KEPT = "kept unchanged"
WRITTEN = "in the corpus"
_NO_HEADER = ("", "")


def outcome_table(report: AccountBase) -> TextTable:
    """Every document by its outcome: name, number, share."""
    documents = report.documents
    numbers = [(KEPT, documents.kept), ("edited", documents.edited)]
    for outcome in ("dropped", "quarantined"):
        reasons: dict[str, int] = getattr(documents, outcome)
        numbers += [
            (safe(with_reason(outcome, reason)), number)
            for reason, number in sorted(reasons.items(), key=lambda pair: -pair[1])
        ]
    if documents.duplicates is not None and documents.written is not None:
        numbers += [
            ("left out as duplicates", documents.duplicates),
            (WRITTEN, documents.written),
        ]
    rows = [(name, whole(n), percentage(n, documents.read)) for name, n in numbers]
    return [("", "documents", ""), ("documents read", whole(documents.read), ""), *rows]


def with_reason(outcome: str, reason: str) -> str:
    """An outcome and, where there is one, its reason in words."""
    return f"{outcome}: {reason_text(reason)}" if reason else outcome


def size_table(report: AccountBase) -> TextTable:
    """Tokens and bytes of the texts."""
    rows = [
        (
            name,
            whole(size.read),
            whole(size.refined),
            "not merged yet" if size.written is None else whole(size.written),
            percent(size.written_ratio),
        )
        for name, size in (("tokens", report.tokens), ("bytes", report.bytes))
    ]
    return [("", "raw", "refined", WRITTEN, "share"), *rows]


def request_table(report: AccountBase) -> TextTable:
    """Requests to the models by stage."""
    rows = [
        (
            f"{stage.level} stage",
            safe(stage.model or "no model"),
            whole(stage.usage.requests),
            whole(stage.usage.prompt_tokens),
            whole(stage.usage.cached_tokens),
            whole(stage.usage.new_tokens),
        )
        for stage in report.stages
    ]
    return [("", "model", "requests", "tokens in", "cached", "tokens out"), *rows]


def flops_table(report: AccountBase) -> TextTable:
    """FLOPs by stage and in total."""
    table: TextTable = [("FLOPs", "exact", "prefill", "decode", "paper, measured", "paper, short")]
    named = [(f"{stage.level} stage", stage.flops) for stage in report.stages]
    for name, flops in (*named, ("total", report.flops)):
        ways = (flops.exact, flops.prefill, flops.decode, flops.paper_measured, flops.paper_corpus)
        table.append((name, *map(power, ways)))
    return table


def extra_table(report: AccountBase) -> TextTable:
    """Work that was saved, and work that was lost."""
    rows = []
    for stage in report.stages:
        saved = f"{stage.level} stage, saved by"
        cache = stage.saved.prefix_cache
        rows.append(_extra_row(f"{saved} the memo of answers", stage.saved.memo))
        rows.append((f"{saved} the prefix cache", "", cache.tokens, cache.flops))
    lost = "not committed yet, or lost" if report.documents.written is None else "lost and redone"
    rows += [
        _extra_row(f"{level} stage, {lost}", work)
        for level, work in report.execution.redone.items()
    ]
    return [
        ("not in these sums", "requests", "prompt tokens", "FLOPs"),
        *((name, requests, whole(n), power(flops)) for name, requests, n, flops in rows if n),
    ]


def _extra_row(name: str, work: RequestWork) -> tuple[str, str, int, int | None]:
    return name, whole(work.usage.requests), work.usage.prompt_tokens, work.flops


def estimate_table(report: AccountBase) -> TextTable:
    """The plan's estimate and the counts."""
    both = report.estimate.estimated, report.estimate.counted
    table: TextTable = [
        ("", "estimated", "counted"),
        ("documents", *(whole(figures.documents) for figures in both)),
        ("raw tokens", *(whole(figures.tokens) for figures in both)),
    ]
    if any(stage.model for stage in report.stages):
        hours = f"A100 hours at {report.estimate.utilization:.0%} of peak"
        table += [
            ("FLOPs: paper, short", *(power(figures.flops) for figures in both)),
            (hours, *(short(figures.a100_hours) for figures in both)),
        ]
    return table


def training_table(training: TrainingReport | None) -> TextTable:
    """What refining costs and saves a model that is trained for one epoch."""
    if training is None:
        return [_NO_HEADER]
    name = safe(training.name)
    if training.parameters is None:
        return [_NO_HEADER, ("model to train", f"{name}: unknown, {safe(training.note)}")]
    return [
        _NO_HEADER,
        ("model to train", f"{name}, N = {short(training.parameters)}"),
        ("training on raw tokens", power(training.raw_flops)),
        ("training on refined tokens", power(training.refined_flops)),
        ("saved by training on fewer tokens", power(training.saved_flops)),
        ("refining", power(training.refining_flops)),
        ("saved in total", power(training.net_saved_flops)),
        ("refining, as training tokens", short(training.refining_as_tokens)),
        ("refining pays from N =", _break_even(training)),
    ]


def _break_even(training: TrainingReport) -> str:
    if training.break_even_parameters is not None:
        return short(training.break_even_parameters) if training.refining_flops else "any size"
    known = training.refining_flops is not None
    return "never: the corpus has not become smaller" if known else "?"


def timing_table(execution: ExecutionReport) -> TextTable:
    """Workers and their time."""
    gpus = execution.gpus
    table: TextTable = [
        _NO_HEADER,
        ("workers", whole(execution.workers)),
        ("time at work, all workers", duration(execution.busy_seconds)),
        ("time loading models, all workers", duration(execution.boot_seconds)),
        ("tokens per worker and second", _worker_rates(execution)),
    ]
    if gpus.busy_seconds != 0:
        table += [
            ("GPUs", ", ".join(map(safe, gpus.devices)) or "unknown"),
            ("GPU hours at work", _hours(gpus.busy_seconds)),
            ("GPU hours loading models", _hours(gpus.boot_seconds)),
            ("model FLOPs utilization", percent(gpus.model_flops_utilization)),
        ]
    return table


def _worker_rates(execution: ExecutionReport) -> str:
    """The mean, and the slowest and the fastest worker's."""
    known = [rate for worker in execution.by_worker if (rate := worker.tokens_per_second)]
    mean = short(execution.tokens_per_worker_second)
    return f"{mean} ({short(min(known))} to {short(max(known))})" if len(known) > 1 else mean


def _hours(seconds: float | None) -> str:
    """`3.21`, or `?` where it is unknown."""
    return "?" if seconds is None else f"{seconds / 3600:,.2f}"


def percent(ratio: float | None) -> str:
    """`12.3 %`, or `?` where it is unknown."""
    return "?" if ratio is None else f"{100 * ratio:.1f} %"


def power(flops: int | None) -> str:
    """`4.95e+19`, `0`, or `?` where it is unknown."""
    return "?" if flops is None else f"{flops:.3g}" if abs(flops) >= 1000 else str(flops)
