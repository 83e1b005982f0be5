"""Another corpus of a refined run: the same ledgers under another policy, dedup or output.

No model is asked, and the run is only read. The directory is the corpus; what the merge works with
is in `merge/` there, so that it goes on where it was, and `merge/variant.json` says what it is.
"""

import os
from dataclasses import replace
from pathlib import Path

import orjson
from pydantic import ValidationError

from proxhpc.assemble.merge import MEMORY
from proxhpc.assemble.merge import merge_run as merge_run
from proxhpc.assemble.summary import MergeSummary
from proxhpc.cluster.slurm import Queue
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.dedup.bands import damaged
from proxhpc.errors import UserError
from proxhpc.program.policy import Policy
from proxhpc.run.lease import hold_lease
from proxhpc.run.paths import RunDir, VariantDir
from proxhpc.run.plan import Plan, freeze_manifest
from proxhpc.spec.load import load_yaml
from proxhpc.spec.manifest import Manifest, diff, load_manifest
from proxhpc.spec.yaml_lines import quoted

_CHANGEABLE = ("name", "policy", "output", "seed", "comparison")
FREE_IN_DEDUP = ("exact", "near", "keep", "by")
_ELSEWHERE = "choose another with --out DIR"


def variant_manifest(
    run: RunDir, given: Path | None, policy: str | None, threshold: float | None
) -> Manifest:
    """The run's manifest, or another file's, with what else is given in place of its own.

    `policy` is a file, or "reference"; `threshold` that of near-duplicates. UserError as ever.
    """
    plan = Plan.load(run)
    manifest = freeze_manifest(load_manifest(given), plan.models) if given else plan.manifest
    data = manifest.model_dump(mode="json")
    if policy is not None:
        own = policy == "reference"
        data["policy"] = policy if own else load_yaml(Path(policy), Policy).model_dump()
    if threshold is not None:
        data["dedup"]["near"] = (data["dedup"]["near"] or {}) | {"threshold": threshold}
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in found]
        raise UserError("\n".join(lines)) from None


def asked_otherwise(before: Manifest, now: Manifest) -> str:
    """In what a new run would have asked the models differently, "" for nothing."""
    if all(stage.model is None for stage in before.stages) or before.policy == now.policy:
        return ""
    if before.policy == "reference":
        return "policy: reference had the models write on behind their verdicts"
    if now.policy == "reference":
        return "a run with policy: reference lets the models write on behind their verdicts"
    if any(stage.grammar == "strings" for stage in before.stages):
        return "grammar: strings offers what the policy allows"
    return ""


def merge_variant(
    run: RunDir,
    out: Path,
    manifest: Manifest,
    *,
    processes: int = 1,
    memory: int | None = None,
) -> MergeSummary:
    """Make the corpus of a run under another manifest in `out`, or what is missing of it.

    UserError, and nothing written, where the manifest asks for what only a new run can do, or `out`
    is neither new nor that corpus already; the rest as in `assemble.merge`.
    """
    variant, plan = prepare_variant(run, out, manifest)
    with hold_lease(variant, "merge", Queue().alive):
        return merge_run(variant, plan, processes=processes, memory=memory or MEMORY)


def prepare_variant(run: RunDir, out: Path, manifest: Manifest) -> tuple[VariantDir, Plan]:
    """The variant's directory, made if it is new, and the run's plan as the variant needs it."""
    plan = Plan.load(run)
    if keys := [key for key in diff(plan.manifest, manifest) if not _free(key)]:
        raise UserError(
            f"only a new run can change {', '.join(keys)}",
            hint=f"the same ledgers do for other values of {', '.join(_CHANGEABLE)} and of dedup's"
            f" {', '.join(FREE_IN_DEDUP)}",
        )
    if out.resolve().is_relative_to(run.root.resolve()):
        raise UserError(f"{out} lies in the run, which is only read", hint=_ELSEWHERE)
    variant = VariantDir(out, run.root)
    _claim(variant, plan, manifest)
    before = plan.manifest.policy
    changed = None if manifest.policy == before else before
    return variant, replace(plan, manifest=manifest, refined_under=changed)


def _free(key: str) -> bool:
    first, _, rest = key.partition(".")
    return first in _CHANGEABLE or (first == "dedup" and rest.partition(".")[0] in FREE_IN_DEDUP)


def _claim(variant: VariantDir, plan: Plan, manifest: Manifest) -> None:
    """Make the directory this variant's, unless it is."""
    with writing(variant.root):
        try:
            names = sorted(os.listdir(variant.root))
        except FileNotFoundError:
            names = []
    if variant.variant.exists():
        _check_same(variant, plan, manifest)
    elif [name for name in names if name != variant.merge.name] or _works(variant):
        raise UserError(
            f"{variant.root} is not empty, and no corpus of a run: it has {quoted(names[0])}",
            hint=_ELSEWHERE,
        )
    with writing(variant.root):
        variant.leases.mkdir(parents=True, exist_ok=True)
    if not variant.variant.exists():
        about = {"plan": plan.digest, "manifest": manifest.computed()}
        write_atomic(variant.variant, orjson.dumps(about, option=orjson.OPT_APPEND_NEWLINE))


def _works(variant: VariantDir) -> bool:
    """Whether `merge/` holds more than what a killed beginning leaves."""
    draft = f".{variant.variant.name}."
    found = variant.merge.iterdir() if variant.merge.is_dir() else ()
    return any(path != variant.leases and not path.name.startswith(draft) for path in found)


def _check_same(variant: VariantDir, plan: Plan, manifest: Manifest) -> None:
    try:
        about = orjson.loads(variant.variant.read_bytes())
        digest, earlier = about["plan"], Manifest.model_validate(about["manifest"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged(variant.variant) from error
    if digest != plan.digest:
        raise UserError(f"{variant.root} is a corpus of another run", hint=_ELSEWHERE)
    if keys := diff(earlier, manifest):
        raise UserError(
            f"{variant.root} was begun with another {', '.join(keys)}",
            hint=f"{_ELSEWHERE}, or remove this one",
        )
