"""The verdict of a prove directory, a pure function of its files, as JSON and as a page."""

import numpy as np
from pydantic import ValidationError

from proxhpc.assemble.listings import read_listing
from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import StopError, UserError
from proxhpc.prove import tables
from proxhpc.prove.compare import (
    Measurements,
    compare_arms,
    describe_arm,
    held_out_losses,
    task_result,
)
from proxhpc.prove.layout import ArmReceipt, ProveDir, TrainingReceipt
from proxhpc.prove.model import ProveVerdict
from proxhpc.prove.plan import ProvePlan
from proxhpc.prove.sentences import find_warnings
from proxhpc.report.html import render_page
from proxhpc.spec.prove import Prove


def write_verdict(folder: ProveDir, plan: ProvePlan) -> ProveVerdict:
    """Write the page and then verdict.json, from finished trainings; always the same bytes."""
    verdict = make_verdict(plan.run_plan().manifest.name, read_measurements(folder, plan))
    write_atomic(folder.page, prove_page(verdict).encode("utf-8"))
    write_atomic(folder.verdict, f"{verdict.to_json()}\n".encode("ascii"))
    return verdict


def prove_page(verdict: ProveVerdict) -> str:
    """The whole page, in the report's style."""
    return render_page("prove.html", "proxhpc.prove", verdict=verdict, tables=tables)


def load_verdict(folder: ProveDir) -> ProveVerdict:
    """Read verdict.json. UserError if there is none yet, StopError if it is damaged."""
    try:
        return ProveVerdict.model_validate_json(folder.verdict.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{folder.root} has no verdict yet", hint="run `proxhpc prove` again"
        ) from None
    except ValidationError as error:
        raise StopError(
            f"{folder.verdict} is damaged", hint="delete it and run `proxhpc prove` again"
        ) from error


def read_measurements(folder: ProveDir, plan: ProvePlan) -> Measurements:
    """Read what the finished trainings of a prove directory measured."""
    section, trainings, losses, tasks = plan.section, {}, {}, {}
    for arm, seed in plan.trainings:
        receipt = TrainingReceipt.read(folder.training_receipt(arm, seed))
        trainings[arm, seed] = receipt
        for held_out in section.held_out:
            for step in (None, *(milestone.step for milestone in receipt.milestones)):
                path = folder.evaluation(arm, seed, held_out.name, step)
                losses[arm, seed, held_out.name, step] = np.load(path)
        for task in plan.tasks:
            tasks[arm, seed, task] = np.load(folder.evaluation(arm, seed, f"task-{task}"))
    return Measurements(
        section=section,
        arms={arm.name: ArmReceipt.read(folder.arm_receipt(arm.name)) for arm in plan.arms},
        trainings=trainings,
        hosts={
            each.name: [row["host"] for row in read_listing(folder.heldout_set(each.name))]
            for each in section.held_out
        },
        losses=losses,
        tasks=tasks,
    )


def make_verdict(name: str, measured: Measurements) -> ProveVerdict:
    """The verdict from measurements."""
    section = measured.section
    arms = [describe_arm(measured, arm) for arm in measured.arms]
    comparisons = compare_arms(measured)
    held_out = [held_out_losses(measured, each) for each in section.held_out]
    main = _main_arm(section)
    return ProveVerdict(
        name=name,
        sentence=next(one.sentence for one in comparisons if one.arm == main),
        main_arm=main,
        baseline=measured.baseline,
        parameters=measured.final(measured.baseline).parameters,
        context=section.training.context,
        equal=section.equal,
        seeds=section.seeds,
        arms=tuple(arms),
        comparisons=tuple(comparisons),
        held_out=tuple(held_out),
        tasks=tuple(task_result(measured, task) for task in measured.task_names()),
        warnings=tuple(find_warnings(section, arms, comparisons, held_out)),
    )


def _main_arm(section: Prove) -> str:
    """The first arm with the refined corpus that is not the baseline, or else the first other."""
    others = [arm for arm in section.arms if arm is not section.baseline]
    refined = [arm for arm in others if arm.policy is None and not arm.rules and not arm.corpus]
    return (refined or others)[0].name
