"""refiner.json: how to ask a refining model, stored in the model's directory."""

from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import (
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxhpc.errors import UserError
from proxhpc.spec.load import Config, load_yaml, refuse
from proxhpc.spec.sections import Level, Prompt, Stage

NAME = "refiner.json"
_NOT_IN_SECTIONS = ("level", "prompt", "model")  # keys of a stage that doc and chunk cannot set


class RefinerFile(Config):
    """How to ask a model: its prompt style, and stage keys for each level that it serves."""

    version: Literal[1]
    prompt: Prompt
    doc: Stage | None = None
    chunk: Stage | None = None
    notes: dict[str, JsonValue] = Field(default_factory=dict)

    @field_validator("doc", "chunk", mode="before")
    @classmethod
    def _section(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        refuse(((key,), "not allowed in this file") for key in _NOT_IN_SECTIONS if key in value)
        return {"level": info.field_name, "prompt": info.data.get("prompt")} | value

    @model_validator(mode="after")
    def _some_level(self) -> Self:
        if not self.levels:
            raise ValueError("add a section doc, chunk or both: the model serves no level yet")
        return self

    @property
    def levels(self) -> list[str]:
        """The levels that the model serves."""
        return [level for level in get_args(Level) if getattr(self, level) is not None]

    def complete(self, stage: Stage, model: str) -> Stage:
        """Return the stage with the keys that the manifest leaves out filled in from this file.

        A stage with another prompt style is returned unchanged. UserError if the model does not
        serve the stage's level, or if the stage's keys contradict this file's.
        """
        manifest_keys = {key: getattr(stage, key) for key in stage.model_fields_set}
        if manifest_keys.get("prompt", self.prompt) != self.prompt:
            return stage
        section = self.doc if stage.level == "doc" else self.chunk
        if section is None:
            raise UserError(
                f"model {model!r} does not serve level {stage.level}: its {NAME} has "
                f"{' and '.join(self.levels)}",
                hint="give the stage another model, or remove the stage",
            )
        file_keys = {key: getattr(section, key) for key in section.model_fields_set}
        try:
            return Stage.model_validate(file_keys | manifest_keys)
        except ValidationError as error:
            raise UserError(
                f"the {stage.level} stage contradicts {NAME} of model {model!r}: "
                + "; ".join(str(problem["msg"]) for problem in error.errors()),
                hint=f"remove the stage's keys that {NAME} sets",
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, which `RefinerFile.model_validate` reads."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_unset=True)
        for level in self.levels:
            data[level] = {k: v for k, v in data[level].items() if k not in _NOT_IN_SECTIONS}
        return data


def read_refiner(folder: Path) -> RefinerFile | None:
    """Return the refiner.json of a model, if any; UserError names each wrong key with its line."""
    path = folder / NAME
    if not path.is_file():
        return None
    # JSON is YAML: the same reader gives the same error messages.
    return load_yaml(path, RefinerFile, environ={}, verbatim=("notes",))
