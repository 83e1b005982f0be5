"""Numbers and small facts of a report in words, the same on a terminal and on the page."""

from typing import Any

from proxhpc.status.terminal import duration, safe, share, short, whole

Line = tuple[str, str, str]
"""A name, a number, a remark."""


def flow(report: dict[str, Any]) -> list[Line]:
    """The conservation table: where every document went."""
    docs = report["documents"]
    total = docs["in"]
    lines = [("documents in", whole(total), "")]
    lines += [(name, whole(docs[name]), share(docs[name], total)) for name in ("kept", "edited")]
    for name in ("dropped", "quarantined"):
        lines += [
            (f"{name}: {safe(reason)}", whole(number), share(number, total))
            for reason, number in docs[name].items()
        ]
    lines.append(("duplicates", whole(docs["duplicates"]), share(docs["duplicates"], total)))
    lines.append(("written", whole(docs["written"]), share(docs["written"], total)))
    return lines


def sizes(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Tokens and bytes: raw, refined, written, share written."""
    out = []
    for name in ("tokens", "bytes"):
        numbers = report[name]
        cells = [whole(numbers[key]) for key in ("in", "refined", "written")]
        out.append((name, *cells, percent(numbers["kept_ratio"])))
    return out  # type: ignore[return-value]


def costs(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """FLOPs by stage and in all: exact, the paper's on measured tokens, the paper's short form.

    What was answered from memory stands under its stage and is in no sum.
    """
    lines = []
    for stage in report["stages"]:
        name, model = f"{stage['level']} stage", safe(stage["model"] or "no model")
        lines.append((name, model, *_usage(stage["usage"]), *_flops(stage["flops"])))
        if stage["saved_usage"]["requests"]:
            saved = *_usage(stage["saved_usage"]), *_flops(stage["saved_flops"])
            lines.append(("  saved", "asked before", *saved))
    return [*lines, ("all", "", "", "", "", "", *_flops(report["flops"]))]


def _usage(usage: dict[str, int]) -> tuple[str, ...]:
    keys = ("requests", "prompt_tokens", "cached_tokens", "new_tokens")
    return tuple(whole(usage[key]) for key in keys)


def training(report: dict[str, Any]) -> list[tuple[str, str]]:
    """What refining costs and saves a model that is trained for one epoch."""
    found = report["comparison"]
    if found is None:
        return []
    name = safe(found["name"])
    if found["parameters"] is None:
        return [("model to train", f"{name}: unknown, {safe(found['note'])}")]
    return [
        ("model to train", f"{name}, N = {short(found['parameters'])}"),
        ("training on raw tokens", power(found["raw_flops"])),
        ("training on refined tokens", power(found["refined_flops"])),
        ("saved by training on less", power(found["saved_flops"])),
        ("refining", power(found["refining_flops"])),
        ("saved in all", power(found["net_saved_flops"])),
        ("refining, as training tokens", short(found["refining_as_tokens"])),
        ("pays for itself from N =", _break_even(found)),
    ]


FORMULAS = (
    "Exact: 2·body·fed + 2·hidden·vocab·new + 4·layers·heads·head size·attended, from the token "
    "sums of every request; cached tokens and requests answered before cost nothing. Paper, "
    "measured: 2·N·(prompt + new tokens). Paper, short: 2·N·(tokens of the documents read). N "
    "leaves out the input embedding.",
    "Training is 6·N·tokens for one epoch. Refining pays for itself where 6·N·(raw − refined "
    "tokens) ≥ refining FLOPs. None of this says how good the trained model is.",
)


def timing(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Workers and their time."""
    run = report["execution"]
    gpu = run["gpu_seconds"]
    return [
        ("workers", whole(run["workers"])),
        ("at work, all together", duration(run["busy_seconds"])),
        ("loading models, all together", duration(run["boot_seconds"])),
        ("GPU time", "unknown" if gpu is None else duration(gpu) if gpu else "none"),
        ("tokens per worker and second", short(run["tokens_per_worker_second"])),
    ]


def percent(ratio: float | None) -> str:
    """`12.3 %`, or `?` where it is unknown."""
    return "?" if ratio is None else f"{100 * ratio:.1f} %"


def power(flops: int | None) -> str:
    """`4.95e+19`, `0`, or `?` where it is unknown."""
    return "?" if flops is None else f"{flops:.3g}" if abs(flops) >= 1000 else str(flops)


def _flops(flops: dict[str, int | None]) -> tuple[str, str, str]:
    return (
        power(flops["exact"]),
        power(flops["paper_measured"]),
        power(flops["paper_corpus"]),
    )


def _break_even(found: dict[str, Any]) -> str:
    if found["break_even_parameters"] is not None:
        return short(found["break_even_parameters"]) if found["refining_flops"] else "any size"
    unknown = found["refined_tokens"] is None or found["refining_flops"] is None
    return "?" if unknown else "never: the corpus did not become smaller"
