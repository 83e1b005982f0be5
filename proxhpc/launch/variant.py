"""Another corpus from a refined run: the same ledgers, another policy, dedup or output.

No model is asked, and the run is only read. The new directory is the corpus. Its `merge/` holds the
files of the merge, so that an interrupted merge resumes, and `merge/variant.json` identifies it.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import orjson
from pydantic import ValidationError

from proxhpc.assemble.merge import merge_run
from proxhpc.assemble.summary import MergeSummary
from proxhpc.cluster.queue import Queue
from proxhpc.corpus.disk import write_atomic, writing
from proxhpc.dedup.arrays import damaged_file
from proxhpc.errors import UserError
from proxhpc.program.policy import NamedPolicy, Policy
from proxhpc.run.lease import hold_lease
from proxhpc.run.paths import RunDir, VariantDir
from proxhpc.run.plan import Plan, freeze_manifest
from proxhpc.spec.load import load_yaml
from proxhpc.spec.manifest import Manifest, diff, load_manifest
from proxhpc.spec.sections import choose_bands
from proxhpc.spec.yaml_lines import quoted

_CHANGEABLE_KEYS = ("name", "policy", "output", "seed", "comparison")
_CHANGEABLE_DEDUP_KEYS = (
    *("exact", "near", "url", "keep", "survivors", "by", "within", "lines"),
    *("against.mode", "against.words", "against.share", "against.fields", "against.drop"),
)
_CHOOSE_ANOTHER = "choose another directory with --out DIR"


def variant_manifest(
    run: RunDir, manifest_path: Path | None, policy: str | None, threshold: float | None
) -> Manifest:
    """Return the run's manifest, or another file's, with this policy and threshold.

    `policy` is a file or a name; `threshold` is that of near-duplicates. UserError if a file
    cannot be read or the manifest would not be valid.
    """
    plan = Plan.load(run)
    manifest = plan.manifest
    if manifest_path:
        manifest = freeze_manifest(load_manifest(manifest_path), plan.models)
    data = manifest.model_dump(mode="json")
    if policy is not None:
        is_name = policy in get_args(NamedPolicy)
        data["policy"] = policy if is_name else load_yaml(Path(policy), Policy).model_dump()
    if threshold is not None:
        near = data["dedup"]["near"] or {}
        if near and choose_bands(near["threshold"], None, None) == (near["bands"], near["rows"]):
            del near["bands"], near["rows"]  # they follow the threshold
        data["dedup"]["near"] = near | {"threshold": threshold}
    try:
        return Manifest.model_validate(data)
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in details]
        raise UserError("\n".join(lines)) from None


def why_programs_may_differ(before: Manifest, now: Manifest) -> str:
    """Return why models would answer differently in a new run; "" if they would not."""
    if all(stage.model is None for stage in before.stages) or before.policy == now.policy:
        return ""
    if before.policy == "reference":
        return "with policy: reference, models continued to write after their verdicts"
    if now.policy == "reference":
        return "with policy: reference, models would continue to write after their verdicts"
    if any(stage.grammar == "strings" for stage in before.stages):
        return "with grammar: strings, the policy limits what models can write"
    return ""


def merge_variant(
    run: RunDir, out: Path, manifest: Manifest, *, processes: int = 1, memory: int | None = None
) -> MergeSummary:
    """Write the corpus of a run under another manifest to `out`, or what is missing of it.

    UserError, before anything is written, if the manifest needs a new run, or if `out` is neither
    new nor this corpus. Other errors are those of `assemble.merge`.
    """
    variant, plan = prepare_variant(run, out, manifest)
    with hold_lease(variant, "merge", Queue().is_queued):
        return merge_run(variant, plan, processes=processes, memory=memory)


def prepare_variant(run: RunDir, out: Path, manifest: Manifest) -> tuple[VariantDir, Plan]:
    """Return the variant's directory, created if it is new, and the run's plan changed for it."""
    plan = Plan.load(run)
    if keys := [key for key in diff(plan.manifest, manifest) if not _is_changeable(key)]:
        raise UserError(
            f"only a new run can change {', '.join(keys)}",
            hint=f"a variant can change {', '.join(_CHANGEABLE_KEYS)} and dedup's"
            f" {', '.join(_CHANGEABLE_DEDUP_KEYS)}",
        )
    if out.resolve().is_relative_to(run.root.resolve()):
        raise UserError(
            f"{out} is inside the run directory, which is only read", hint=_CHOOSE_ANOTHER
        )
    variant = VariantDir(out, run.root)
    _create_or_check(variant, plan, manifest)
    before = plan.manifest.policy
    refined_under = None if manifest.policy == before else before
    return variant, replace(plan, manifest=manifest, refined_under=refined_under, is_variant=True)


def _is_changeable(key: str) -> bool:
    section, _, rest = re.sub(r"\[\d+\]", "", key).partition(".")
    is_dedup_key = section == "dedup" and f"{rest}.".startswith(
        tuple(f"{key}." for key in _CHANGEABLE_DEDUP_KEYS)
    )
    return section in _CHANGEABLE_KEYS or is_dedup_key


def _create_or_check(variant: VariantDir, plan: Plan, manifest: Manifest) -> None:
    """Create the variant's directory, or check that an existing one is this variant's."""
    with writing(variant.root):
        try:
            names = sorted(os.listdir(variant.root))
        except FileNotFoundError:
            names = []
    if variant.variant.exists():
        _check_same(variant, plan, manifest)
    elif [name for name in names if name != variant.merge.name] or _has_merge_files(variant):
        raise UserError(
            f"{variant.root} is not empty and not a corpus of a run: it contains"
            f" {quoted(names[0])}",
            hint=_CHOOSE_ANOTHER,
        )
    with writing(variant.root):
        variant.leases.mkdir(parents=True, exist_ok=True)
    if not variant.variant.exists():
        identity = {"plan": plan.digest, "manifest": manifest.computed()}
        write_atomic(variant.variant, orjson.dumps(identity, option=orjson.OPT_APPEND_NEWLINE))


def _has_merge_files(variant: VariantDir) -> bool:
    """Return True if `merge/` holds more than a process leaves that died creating it."""
    draft = f".{variant.variant.name}."
    paths = variant.merge.iterdir() if variant.merge.is_dir() else ()
    return any(path != variant.leases and not path.name.startswith(draft) for path in paths)


def _check_same(variant: VariantDir, plan: Plan, manifest: Manifest) -> None:
    try:
        identity = orjson.loads(variant.variant.read_bytes())
        digest, earlier = identity["plan"], Manifest.model_validate(identity["manifest"])
    except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise damaged_file(variant.variant) from error
    if digest != plan.digest:
        raise UserError(f"{variant.root} is a corpus of another run", hint=_CHOOSE_ANOTHER)
    if keys := diff(earlier, manifest):
        raise UserError(
            f"{variant.root} was created with another {', '.join(keys)}",
            hint=f"{_CHOOSE_ANOTHER}, or remove this one",
        )
