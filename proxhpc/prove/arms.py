"""The corpora of the arms: merged runs and variants, so that all are deduplicated alike."""

from collections.abc import Callable, Iterator

from proxhpc.assemble.merge import describe_missing_files
from proxhpc.assemble.summary import MergeSummary
from proxhpc.corpus.document import BadRecord, Document, Span
from proxhpc.corpus.readers import Fields, read_span
from proxhpc.errors import StopError
from proxhpc.launch.launch import Run, launch, plan_run
from proxhpc.launch.variant import merge_variant
from proxhpc.prove.layout import ProveDir
from proxhpc.prove.plan import ProvePlan
from proxhpc.report.build import run_account
from proxhpc.run.paths import RunDir, VariantDir
from proxhpc.run.plan import Plan
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.prove import Arm
from proxhpc.spec.site import Site

_MAX_RECORD = 1 << 31  # bytes of a row; corpora have no longer ones than their inputs


def arm_run(folder: ProveDir, arm: Arm) -> RunDir | None:
    """Return the run that only makes this arm's corpus; None if that is one of the plan's run."""
    if arm.rules is None and arm.corpus is None:
        return None
    return RunDir(folder.rules / arm.name)


def plan_arm_run(folder: ProveDir, plan: ProvePlan, arm: Arm, site: Site) -> Run | None:
    """Plan or open the run of an arm, or return None if it needs none or is merged.

    Rules make the run's corpus again. An arm with a corpus executes no program, so its run only
    removes duplicates.
    """
    run = arm_run(folder, arm)
    if run is None or is_merged(run):
        return None
    base = plan.run_plan().manifest
    levels = dict.fromkeys(stage.level for stage in base.stages) if arm.rules else ("chunk",)
    data = base.model_dump(mode="json", exclude={"prove", "comparison", "site"})
    data |= {
        "name": f"{base.name}-{arm.name}"[:64],
        "run_dir": str(run.root),
        "stages": [{"level": level} for level in levels],
        "engine": {"name": "rules", "rules": list(arm.rules or ("gopher",))},
        "policy": {} if arm.rules else "none",
        "corpus": (arm.corpus or base.corpus).model_dump(mode="json"),
    }
    return plan_run(Manifest.model_validate(data), b"", run, site)


def launch_arms(
    folder: ProveDir, plan: ProvePlan, site: Site, log: Callable[[str], None]
) -> list[RunDir]:
    """Launch the runs of arms that need one; return those that continue without this process."""
    unfinished = []
    for arm in plan.arms:
        if run := plan_arm_run(folder, plan, arm, site):
            log(f"arm {arm.name}: making its corpus in {run.dir.root}")
            if launch(run, lambda _: None).phase not in ("report", "finished"):
                unfinished.append(run.dir)
    return unfinished


def is_merged(run: RunDir) -> bool:
    """Return whether a run's corpus is complete."""
    return run.merge_summary.exists() and not describe_missing_files(run)


def make_variant(folder: ProveDir, plan: ProvePlan, arm: Arm, processes: int) -> None:
    """Write the corpus of an arm with another policy, or what is missing of it."""
    if arm.policy is None:
        return
    run = RunDir(plan.run)
    manifest = Plan.load(run).manifest.model_copy(update={"policy": arm.policy})
    merge_variant(run, folder.corpora / arm.name, manifest, processes=processes)


def arm_source(folder: ProveDir, plan: ProvePlan, arm: Arm) -> RunDir:
    """Return the directory with an arm's corpus and its merge."""
    if arm.policy is not None:
        return VariantDir(folder.corpora / arm.name, plan.run)
    return arm_run(folder, arm) or RunDir(plan.run)


def arm_rows(source: RunDir) -> Iterator[Document]:
    """Yield the documents of a merged corpus, in its order. StopError for a damaged one."""
    summary = MergeSummary.load(source)
    for part in summary.parts if summary else ():
        path = source.corpus / part.name
        for item in read_span(path, "auto", Span(0), Fields(("text",), "id"), _MAX_RECORD):
            if isinstance(item, Document):
                yield item
            elif isinstance(item, BadRecord):
                raise StopError(
                    f"{path}: a row cannot be read: {item.reason}",
                    hint="`proxhpc verify` names damaged files",
                )


def refining_work(source: RunDir, arm: Arm) -> tuple[int, int]:
    """Return the FLOPs of an arm's refining and the bytes that were read.

    0 FLOPs if no model was asked. UserError if they cannot be counted.
    """
    if arm.rules is not None or arm.corpus is not None or arm.policy == "none":
        return 0, 0
    run = RunDir(source.shards.parent)
    account = run_account(run, MergeSummary.load(run))
    return account.flops.exact or 0, account.bytes.read
