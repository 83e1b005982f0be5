"""What can be checked of a run's prompts without loading its models: frames, ids and lengths."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from proxhpc.engines.base import Completion, Request, Tokenizer
from proxhpc.engines.tokenizer import load_tokenizer
from proxhpc.errors import StopError, UserError
from proxhpc.extras import is_installed
from proxhpc.refine.prompts import freeze_frame
from proxhpc.refine.stage import StageRunner
from proxhpc.refine.walk_stage import make_runner
from proxhpc.run.models import ModelRef
from proxhpc.run.plan import FrozenPrompt
from proxhpc.run.weights import read_model_json
from proxhpc.spec.manifest import Manifest
from proxhpc.spec.profile import Profile
from proxhpc.spec.sections import Stage


@dataclass(slots=True)
class _Unloaded:
    """An engine with a tokenizer and nothing else."""

    tokenizer: Tokenizer | None
    max_model_len: int
    name = "unloaded"
    cache_tokens = 0
    min_in_flight = 1

    async def complete(self, request: Request) -> Completion:
        raise NotImplementedError

    async def close(self) -> None:
        pass


def prepare_stage(manifest: Manifest, stage: Stage, model: ModelRef) -> StageRunner:
    """Return a stage without its engine. UserError if model, tokenizer and prompts do not fit."""
    _check_config(model)
    if manifest.engine.name == "vllm":
        _check_windows(model)
    tokenizer = load_tokenizer(model.path)
    rows = model.rows or tokenizer.text_ids
    if tokenizer.text_ids > rows:
        raise UserError(
            f"model {model.name!r}: its tokenizer has ids up to {tokenizer.text_ids - 1:,}, the "
            f"embedding in its safetensors has {rows:,} rows",
            hint="copy the tokenizer's files from the model that was trained",
        )
    if unknown := [number for number in tokenizer.stop_ids if number >= rows]:
        raise UserError(
            f"model {model.name!r}: eos_token in tokenizer_config.json is id {unknown[0]}, the "
            f"embedding has {rows:,} rows",
            hint="name the end token that the model was trained with",
        )
    context = model.context_length(manifest.engine_of(stage).max_model_len)
    runner = make_runner(stage, _Unloaded(tokenizer, context), manifest.policy)
    if unknown := [number for number in runner.frame if number >= rows]:
        raise UserError(
            f"model {model.name!r}: the prompt of the {stage.level} stage has the token "
            f"{tokenizer.name_of(unknown[0])!r}, for which the embedding has no row",
            hint="choose another `prompt`, or copy the tokenizer's files from the trained model",
        )
    return runner


def _check_config(model: ModelRef) -> None:
    """Raise UserError for a config.json that transformers refuses; vLLM reads it by that, too."""
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(model.path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())
        raise UserError(
            f"model {model.name!r}: transformers refuses config.json: {reason}",
            hint="correct config.json, or copy it from the model that was trained",
        ) from error


def _check_windows(model: ModelRef) -> None:
    """Raise UserError for a model whose sliding windows vLLM refuses."""
    config = read_model_json(model.name, model.path / "config.json")
    first = config.get("max_window_layers")
    layers = model.shape.layers if model.shape else 0
    if config.get("use_sliding_window") is True and type(first) is int and 0 < first < layers:
        raise UserError(
            f"model {model.name!r}: max_window_layers in config.json is {first} of {layers} "
            "layers, but vLLM needs a sliding window in all or none",
            hint="use `engine: {name: transformers}`, or another model",
        )


def freeze_prompts(manifest: Manifest, models: Mapping[str, ModelRef]) -> dict[str, FrozenPrompt]:
    """Return the prompts of the stages, by level, as they are rendered today.

    None for the style `walk`, or without transformers. UserError as `prepare_stage`.
    """
    frozen: dict[str, FrozenPrompt] = {}
    for stage in manifest.stages:
        model = models.get(stage.level)
        if model is None or not is_installed("transformers"):
            continue
        runner = prepare_stage(manifest, stage, model)
        if isinstance(stage.prompt, Profile):
            profile = freeze_frame(stage.prompt, load_tokenizer(model.path))
            frozen[stage.level] = FrozenPrompt(profile, runner.frame)
    return frozen


def check_prompts(runners: Mapping[str, StageRunner], frozen: Mapping[str, FrozenPrompt]) -> None:
    """Raise StopError if an empty prompt has other ids than when the run was planned."""
    for level, runner in runners.items():
        if level in frozen and runner.frame != frozen[level].ids:
            raise StopError(
                f"the prompt of the {level} stage has other token ids than when it was planned",
                hint="workers need the versions of transformers and tokenizers of `plan`, or start "
                "a new run: --run DIR",
            )


def needed_context(manifest: Manifest, models: Mapping[str, ModelRef], path: Path) -> int:
    """Return the context that the stages of a model need."""
    return max(
        prepare_stage(manifest, stage, models[stage.level]).context
        for stage in manifest.stages
        if stage.level in models and models[stage.level].path == path
    )
