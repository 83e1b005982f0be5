"""Profiles and refiner.json: how to ask a refining model, in a file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import (
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxhpc.errors import UserError
from proxhpc.spec.load import load_yaml, reasons, refuse
from proxhpc.spec.profile import PROFILES, WALK, Profile, PromptName, profile_names
from proxhpc.spec.sections import Level, Stage
from proxhpc.spec.yaml_lines import Key

NAME = "refiner.json"
# Keys of a stage that doc and chunk cannot set.
_NOT_IN_SECTIONS = ("level", "prompt", "model", "engine")
_LEVELS: tuple[Level, ...] = get_args(Level)
_TRAINED = ("dialect", "blank_lines")  # what a model has learned, which no stage can change


class RefinerFile(Profile):
    """How to ask a model: a profile, and stage keys for each level that it serves.

    With `prompt`, the keys that the file leaves out are those of that profile.
    """

    version: Literal[1]
    prompt: PromptName | None = None
    doc: Stage | None = None
    chunk: Stage | None = None
    notes: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _complete_from_profile(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("prompt") not in profile_names():
            return data
        profile = read_profile(data["prompt"]).to_dict()
        if not any(level in data for level in _LEVELS):
            return profile | data
        both = {
            level: profile.get(level, {}) | data[level]
            for level in _LEVELS
            if isinstance(data.get(level), dict)
        }
        return {k: v for k, v in profile.items() if k not in _LEVELS} | data | both

    @field_validator("doc", "chunk", mode="before")
    @classmethod
    def _section(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        refuse(((key,), "not allowed in this file") for key in _NOT_IN_SECTIONS if key in value)
        prompt = WALK if info.data.get("prompt") == WALK else Profile()
        return {"level": info.field_name, "prompt": prompt} | value

    def _problems(self) -> Iterator[tuple[Key, str]]:
        yield from super()._problems()
        if self.prompt == WALK:
            keys = Profile.model_fields.keys() & self.model_fields_set
            yield from (((key,), "not with prompt: walk") for key in sorted(keys))
        if not self.levels:
            yield (), "add a section doc, chunk or both: the model serves no level yet"

    @property
    def levels(self) -> list[Level]:
        """The levels that the model serves."""
        return [level for level in _LEVELS if getattr(self, level) is not None]

    def profile(self, source: str) -> Profile:
        """Return the profile. UserError if it needs a system prompt and has none."""
        keys = self.model_fields_set & Profile.model_fields.keys()
        if "system" not in keys and self.frame_has_system:
            raise UserError(
                f"{source} has no system prompt",
                hint='write a profile: {"version": 1, "prompt": "'
                f'{self.prompt or self.name}", "system": {{"file": "system.txt"}}}} '
                "(docs/refining.md), with null for none",
            )
        return Profile.model_validate({key: getattr(self, key) for key in keys})

    def complete(self, stage: Stage, source: str) -> Stage:
        """Return the stage with the profile and the keys that the manifest leaves out.

        `source` names this file. UserError if it does not serve the stage's level, or if the
        stage's keys contradict it.
        """
        section = self.doc if stage.level == "doc" else self.chunk
        if section is None:
            raise UserError(
                f"{source} does not serve level {stage.level}: it has {' and '.join(self.levels)}",
                hint="give the stage another model or prompt, or remove the stage",
            )
        file_keys = {key: getattr(section, key) for key in section.model_fields_set}
        file_keys["prompt"] = WALK if self.prompt == WALK else self.profile(source)
        keys = {key: getattr(stage, key) for key in stage.model_fields_set - {"prompt"}}
        try:
            refuse(
                ((key,), f"must be {file_keys[key]}")
                for key in _TRAINED
                if key in file_keys and keys.get(key, file_keys[key]) != file_keys[key]
            )
            return Stage.model_validate(file_keys | keys)
        except ValidationError as error:
            reason = reasons(error)
        except ValueError as error:
            reason = str(error)
        raise UserError(
            f"the {stage.level} stage contradicts {source}: {reason}",
            hint="remove the stage's keys that the file sets",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `RefinerFile.model_validate` reads."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_unset=True)
        for level in self.levels:
            data[level] = {k: v for k, v in data[level].items() if k not in _NOT_IN_SECTIONS}
        return data


def complete_stage(stage: Stage, refiner: RefinerFile | None, model: str) -> Stage:
    """Return the stage with its profile and the keys that the manifest leaves out.

    They are those of the model's refiner.json, unless the stage names another prompt.
    """
    if isinstance(stage.prompt, Profile):
        return stage
    if refiner and ("prompt" not in stage.model_fields_set or stage.prompt == refiner.prompt):
        return refiner.complete(stage, f"{NAME} of model {model!r}")
    if stage.prompt == WALK:
        return stage
    return read_profile(stage.prompt).complete(stage, f"the profile {stage.prompt}")


def load_profile(prompt: str) -> Profile:
    """Return a profile by its name, or from a file; UserError if it cannot be used."""
    return read_profile(prompt).profile(f"the profile {prompt}")


def read_profile(prompt: str) -> RefinerFile:
    """Return the file of a profile, given by name or path; UserError names each wrong key."""
    return _read(Path(prompt) if prompt.endswith(".json") else PROFILES / f"{prompt}.json")


def read_refiner(folder: Path) -> RefinerFile | None:
    """Return the refiner.json of a model, if any; UserError names each wrong key with its line."""
    path = folder / NAME
    return _read(path) if path.is_file() else None


def _read(path: Path) -> RefinerFile:
    # JSON is YAML: the same reader gives the same error messages.
    return load_yaml(path, RefinerFile, environ={}, verbatim=RefinerFile.model_fields)
