"""Numbers and small facts of a report in words, the same on a terminal and on the page."""

from typing import Any

from proxhpc.status.terminal import duration, percentage, safe, short, whole

FlowLine = tuple[str, str, str]
"""A name, a number, a remark."""


def flow(report: dict[str, Any]) -> list[FlowLine]:
    """The conservation table: where every document went."""
    docs = report["documents"]
    total = docs["read"]
    lines = [("documents in", whole(total), "")]
    lines += [
        (name, whole(docs[name]), percentage(docs[name], total)) for name in ("kept", "edited")
    ]
    for name in ("dropped", "quarantined"):
        lines += [
            (f"{name}: {safe(reason)}", whole(number), percentage(number, total))
            for reason, number in docs[name].items()
        ]
    lines.append(("duplicates", whole(docs["duplicates"]), percentage(docs["duplicates"], total)))
    lines.append(("written", whole(docs["written"]), percentage(docs["written"], total)))
    return lines


def sizes(report: dict[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """Tokens and bytes: raw, refined, written, share written."""
    out = []
    for name in ("tokens", "bytes"):
        numbers = report[name]
        cells = [whole(numbers[key]) for key in ("read", "refined", "written")]
        out.append((name, *cells, percent(numbers["written_ratio"])))
    return out  # type: ignore[return-value]


WORK = ("", "model", "requests", "tokens in", "cached", "tokens out")


def work(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """What the models were asked, by stage; the columns are WORK."""
    keys = ("requests", "prompt_tokens", "cached_tokens", "new_tokens")
    return [
        (
            f"{stage['level']} stage",
            safe(stage["model"] or "no model"),
            *(whole(stage["usage"][key]) for key in keys),
        )
        for stage in report["stages"]
    ]


COSTS = ("FLOPs", "exact", "prefill", "decode", "paper, measured", "paper, short")


def costs(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """FLOPs by stage and in all; the columns are COSTS."""
    keys = ("exact", "prefill", "decode", "paper_measured", "paper_corpus")
    named = [(f"{stage['level']} stage", stage["flops"]) for stage in report["stages"]]
    named.append(("all", report["flops"]))
    return [(name, *(power(flops[key]) for key in keys)) for name, flops in named]


SPARED = ("beside it", "requests", "prompt tokens", "FLOPs")


def spared(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """What was not spent, and what was lost and done again; in no sum. The columns are SPARED."""
    rows: list[tuple[str, str, int, int | None]] = []
    for stage in report["stages"]:
        level, saved = stage["level"], stage["saved"]
        for name, what in (("memo", "asked before"), ("copies", "copies of documents")):
            usage = saved[name]["usage"]
            of = usage["requests"], usage["prompt_tokens"]
            rows.append(
                (f"{level} stage, spared: {what}", whole(of[0]), of[1], saved[name]["flops"])
            )
        cache = saved["prefix_cache"]
        rows.append((f"{level} stage, spared: prefix cache", "", cache["tokens"], cache["flops"]))
    what = "not committed yet, or lost" if report.get("partial") else "lost, and done again"
    for level, redone in report["execution"]["redone"].items():
        of = redone["usage"]["requests"], redone["usage"]["prompt_tokens"]
        rows.append((f"{level} stage, {what}", whole(of[0]), of[1], redone["flops"]))
    return [(name, requests, whole(n), power(flops)) for name, requests, n, flops in rows if n]


ESTIMATE = ("", "foreseen", "counted")


def estimate_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """What the plan foresaw and what was counted, by the same rules; the columns are ESTIMATE."""
    both = report["estimate"]["foreseen"], report["estimate"]["counted"]
    lines = [
        ("documents", *(whole(of["documents"]) for of in both)),
        ("raw tokens", *(whole(of["tokens"]) for of in both)),
    ]
    if any(stage["model"] for stage in report["stages"]):
        usual = f"A100 hours at {report['estimate']['utilisation']:.0%} of peak"
        lines += [
            ("FLOPs: paper, short", *(power(of["flops"]) for of in both)),
            (usual, *(short(of["a100_hours"]) for of in both)),
        ]
    return lines


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
    "Exact: 2·body·fed + 2·hidden·vocab·logits + 4·layers·heads·head size·attended, summed "
    "over all requests; cached tokens and requests answered before cost nothing. Paper, "
    "measured: 2·N·(prompt + new tokens). Paper, short: 2·N·(tokens of the documents read). N "
    "leaves out the input embedding.",
    "Training is 6·N·tokens for one epoch. Refining pays for itself where 6·N·(raw − refined "
    "tokens) ≥ refining FLOPs. None of this says how good the trained model is.",
)


def timing(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Workers and their time."""
    run, gpus = report["execution"], report["execution"]["gpus"]
    lines = [
        ("workers", whole(run["workers"])),
        ("at work, all together", duration(run["busy_seconds"])),
        ("loading models, all together", duration(run["boot_seconds"])),
        ("tokens per worker and second", _per_worker(run)),
    ]
    if gpus["busy_seconds"] != 0:
        lines += [
            ("GPUs", ", ".join(map(safe, gpus["devices"])) or "unknown"),
            ("GPU hours at work", hours(gpus["busy_seconds"])),
            ("GPU hours loading models", hours(gpus["boot_seconds"])),
            ("model FLOPs utilisation", percent(gpus["model_flops_utilisation"])),
        ]
    return lines


def _per_worker(run: dict[str, Any]) -> str:
    """The mean, and the slowest and fastest worker's."""
    every = [worker["tokens_per_second"] for worker in run["by_worker"]]
    known = [rate for rate in every if rate]
    mean = short(run["tokens_per_worker_second"])
    return f"{mean} ({short(min(known))} to {short(max(known))})" if len(known) > 1 else mean


def hours(seconds: float | None) -> str:
    """`3.21`, or `?` where it is unknown."""
    return "?" if seconds is None else f"{seconds / 3600:,.2f}"


def percent(ratio: float | None) -> str:
    """`12.3 %`, or `?` where it is unknown."""
    return "?" if ratio is None else f"{100 * ratio:.1f} %"


def power(flops: int | None) -> str:
    """`4.95e+19`, `0`, or `?` where it is unknown."""
    return "?" if flops is None else f"{flops:.3g}" if abs(flops) >= 1000 else str(flops)


def _break_even(found: dict[str, Any]) -> str:
    if found["break_even_parameters"] is not None:
        return short(found["break_even_parameters"]) if found["refining_flops"] else "any size"
    unknown = found["refined_tokens"] is None or found["refining_flops"] is None
    return "?" if unknown else "never: the corpus did not become smaller"
