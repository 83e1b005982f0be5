"""One training of an arm and a seed: the model, and its bits of the held-out documents."""

import shutil
from collections.abc import Callable
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

from pydantic import JsonValue

from proxhpc.account.flops import ModelShape, pretraining_flops
from proxhpc.assemble.listings import read_listing
from proxhpc.cluster.job_step import step_task
from proxhpc.corpus.disk import sha256_file, write_atomic
from proxhpc.dedup.arrays import save_array
from proxhpc.engines.tokenizer import HFTokenizer
from proxhpc.prove.heldout import TextScorer, write_losses
from proxhpc.prove.layout import ArmReceipt, Milestone, ProveDir, TrainingReceipt
from proxhpc.prove.plan import ProvePlan
from proxhpc.prove.tasks import read_questions, score_questions
from proxhpc.run.models import TOKENIZER_FILES
from proxhpc.run.weights import read_model_json
from proxhpc.spec.prove import Arm, Training
from proxhpc.train.pretrain import PretrainOptions, PretrainResult, pretrain


def train_arm(
    folder: ProveDir, plan: ProvePlan, arm: Arm, seed: int, log: Callable[[str], None]
) -> None:
    """Train and evaluate a model, or what is missing of it; does nothing if it is finished.

    Errors as those of `pretrain`.
    """
    if folder.training_receipt(arm.name, seed).exists():
        return
    out = folder.training(arm.name, seed)
    options = training_options(folder, plan, arm, seed)
    result = pretrain(options, folder.arm_tokens(arm.name), out, log)
    if (task := step_task()) and task.rank:
        return  # of the processes that train a model together, the first one evaluates it
    for step, weights in result.milestones.items():
        _evaluate(folder, plan, weights, (arm.name, seed, step))
    _evaluate(folder, plan, result.weights, (arm.name, seed, None))
    _receipt(result, arm, seed).write(folder.training_receipt(arm.name, seed))
    for weights in result.milestones.values():
        shutil.rmtree(weights, ignore_errors=True)


def training_options(folder: ProveDir, plan: ProvePlan, arm: Arm, seed: int) -> PretrainOptions:
    """Return the options of a training. UserError if the arm has too little text for a step."""
    training, tokens = plan.section.training, arm_tokens(folder, plan, arm)
    milestones = plan.section.milestones if arm is plan.section.baseline else ()
    shared = {each.name for each in fields(PretrainOptions)} & Training.model_fields.keys()
    keys = {name: getattr(training, name) for name in shared} | {
        "model": None if training.base else _model_keys(folder, training),
        "base": Path(training.base) if training.base else None,
        "tokens": tokens,
    }
    return PretrainOptions(
        **keys,
        seed=seed,
        milestones=tuple(round(share * tokens) for share in milestones if share < 1),
    )


def _model_keys(folder: ProveDir, training: Training) -> dict[str, JsonValue]:
    """Return the keys of config.json of a new model, with those that the tokenizer determines."""
    tokenizer = HFTokenizer(folder.tokenizer)
    end = next(iter(tokenizer.stop_ids), None)
    ids = {"bos_token_id": next(iter(tokenizer.bos), end), "eos_token_id": end}
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": training.context}
    return {**(training.model or {}), **ids, **sizes}


def arm_tokens(folder: ProveDir, plan: ProvePlan, arm: Arm) -> int:
    """Return the tokens that an arm is trained on, in whole steps.

    Of equal FLOPs, refining is charged by the share of its output that is used.
    """
    section = plan.section
    step = section.training.batch * section.training.context
    receipt = ArmReceipt.read(folder.arm_receipt(arm.name))
    tokens = receipt.tokens - 1 if section.equal == "pool" else section.training.tokens
    if section.equal == "flops" and receipt.refining_flops:
        one = training_flops_of(folder, section.training, step)
        budget, refining = tokens // step * one, receipt.refining_flops
        tokens = int(step * budget / (one + refining * step / receipt.tokens))
        if tokens > receipt.tokens:  # all of the output is used, part of it more than once
            tokens = max(0, (budget - refining) * step // one)
    return tokens // step * step


def training_flops_of(folder: ProveDir, training: Training, tokens: int) -> int:
    """Return the FLOPs of training on so many tokens. UserError for models of unknown types."""
    if training.base:
        config = read_model_json(training.base, Path(training.base) / "config.json")
    else:
        config = _model_keys(folder, training)
    shape = ModelShape.from_config(config)
    return pretraining_flops(shape, tokens // training.context, training.context)


def _evaluate(
    folder: ProveDir, plan: ProvePlan, weights: Path, which: tuple[str, int, int | None]
) -> None:
    """Write the bits of the held-out documents and, after the last step, the scores of the tasks.

    `which` are the arm, the seed and the step of a milestone.
    """
    arm, seed, step = which
    sets = [each.name for each in plan.section.held_out]
    held_out = {name: folder.evaluation(arm, seed, name, step) for name in sets}
    tasks = (
        {} if step else {name: folder.evaluation(arm, seed, f"task-{name}") for name in plan.tasks}
    )
    if all(path.exists() for path in (*held_out.values(), *tasks.values())):
        return
    for name in TOKENIZER_FILES:
        if (path := folder.tokenizer / name).is_file():
            write_atomic(weights / name, path.read_bytes())
    scorer = TextScorer(weights)
    for name, path in held_out.items():
        texts = [row["text"] for row in read_listing(folder.heldout_set(name))]
        write_losses(path, scorer.score_texts(texts), texts)
    for name, path in tasks.items():
        save_array(path, score_questions(scorer, read_questions(plan.tasks[name])))


def _receipt(result: PretrainResult, arm: Arm, seed: int) -> TrainingReceipt:
    flops, steps, tokens = result.flops or 0, result.steps, result.tokens
    milestones = (
        Milestone(step=step, tokens=tokens * step // steps, flops=flops * step // steps)
        for step in result.milestones
    )
    return TrainingReceipt(
        arm=arm.name,
        seed=seed,
        steps=steps,
        tokens=tokens,
        epochs=round(result.epochs, 6),
        documents=result.documents,
        flops=flops,
        parameters=result.parameters,
        digest=sha256(
            "".join(map(sha256_file, sorted(result.weights.glob("*.safetensors")))).encode()
        ).hexdigest(),
        milestones=tuple(milestones),
    )
