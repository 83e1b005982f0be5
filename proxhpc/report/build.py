"""The report of a merged run, and the account of an unfinished one."""

from dataclasses import asdict

from proxhpc.assemble.examples import read_examples
from proxhpc.assemble.summary import MergeSummary
from proxhpc.errors import UserError
from proxhpc.program.policy import AnyPolicy, Policy
from proxhpc.report.compute import compare, estimate_report, stage_report, total_flops
from proxhpc.report.execution import execution_report
from proxhpc.report.model import AccountBase, InputReport, PartReport, Report, RunAccount
from proxhpc.report.stats import (
    distributions,
    duplicate_sets,
    example_reports,
    outcome_tokens,
    program_totals,
)
from proxhpc.report.timeline import run_timeline
from proxhpc.run.calibration import load_calibration
from proxhpc.run.models import short_name
from proxhpc.run.paths import RunDir
from proxhpc.run.plan import Plan
from proxhpc.status.heartbeats import latest_heartbeats
from proxhpc.status.totals import load_merge, ratio, run_counts, run_totals


def build_report(run: RunDir) -> Report:
    """The report of a merged run.

    It depends on the ledgers alone, apart from `execution`. UserError when the run is not merged
    yet, StopError when its counts do not balance.
    """
    merged = load_merge(run)
    if merged is None:
        raise UserError(
            f"{run.root} is not merged yet, so there is nothing to report",
            hint=f"proxhpc status {run.root} shows its progress",
        )
    merged.check()
    account = run_account(run, merged)
    return Report(
        **{name: getattr(account, name) for name in AccountBase.model_fields},
        distributions=distributions(merged.stats),
        programs=program_totals(merged.stats),
        duplicate_sets=duplicate_sets(merged.duplicates),
        benchmark=dict(merged.benchmark.by_file) if merged.benchmark else None,
        benchmark_skipped=merged.benchmark.skipped if merged.benchmark else None,
        repeated_lines=merged.lines.lines if merged.lines else None,
        shared_ids=merged.shared_ids.documents,
        examples=example_reports(merged.stats, merged.counts, read_examples(run)),
        inputs=tuple(
            InputReport(written_ratio=ratio(file.written, file.documents), **asdict(file))
            for file in merged.files
        ),
        parts=tuple(map(PartReport.model_validate, merged.parts)),
        bytes_stored=sum(part.bytes_stored for part in merged.parts),
    )


def run_account(run: RunDir, merged: MergeSummary | None = None) -> RunAccount:
    """The account of a merged run or, without `merged`, of what workers have committed so far."""
    plan = Plan.load(run)
    heartbeats = latest_heartbeats(run)
    counts = run_counts(merged, heartbeats)
    totals = run_totals(counts, merged)
    stages = tuple(stage_report(plan, stage, counts) for stage in plan.manifest.stages)
    flops = total_flops(stages)
    calibration = load_calibration(run, plan)
    estimate = estimate_report(plan, counts, calibration, is_finished=merged is not None)
    timeline = run_timeline(run) if merged else None
    trained = totals.tokens.refined if merged is None else merged.tokens
    return RunAccount(
        name=plan.manifest.name,
        code=plan.code,
        engine=plan.manifest.engine.name,
        policy=_policy_text(plan.manifest.policy),
        token_unit=short_name(plan.token_unit),
        documents=totals.documents,
        tokens=totals.tokens,
        bytes=totals.bytes,
        edits=totals.edits,
        stages=stages,
        flops=flops,
        comparison=compare(plan.manifest.comparison, totals.tokens.read, trained, flops.exact),
        estimate=estimate,
        outcomes=outcome_tokens(counts, merged),
        execution=execution_report(run, plan, counts, heartbeats, timeline, estimate),
    )


def _policy_text(policy: AnyPolicy) -> str:
    if not isinstance(policy, Policy):
        return policy
    changes = policy.model_dump(exclude_defaults=True)
    return ", ".join(f"{key}: {value}" for key, value in changes.items()) or "default"
