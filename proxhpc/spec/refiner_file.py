"""refiner.json: what a refining model's author says of how to ask it, in the model's directory."""

from pathlib import Path
from typing import Any, Literal, Self, get_args

import orjson
from pydantic import (
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from proxhpc.corpus.disk import write_atomic
from proxhpc.errors import UserError
from proxhpc.spec.load import Config, load_yaml, refuse
from proxhpc.spec.sections import Level, Prompt, Stage

NAME = "refiner.json"
# Keys of a stage that are the file's own, or of the place where the model runs.
_ELSEWHERE = ("level", "prompt", "model", "gpu_memory_utilization")


class RefinerFile(Config):
    """How to ask a model: its prompt style, and keys of a stage for each level that it serves."""

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
        refuse(((key,), "not a key of this file") for key in _ELSEWHERE if key in value)
        return {"level": info.field_name, "prompt": info.data.get("prompt")} | value

    @model_validator(mode="after")
    def _some_level(self) -> Self:
        if not self.levels:
            raise ValueError("it serves no level: give it a section doc, chunk or both")
        return self

    @property
    def levels(self) -> list[str]:
        """The levels that the model serves."""
        return [level for level in get_args(Level) if getattr(self, level) is not None]

    def complete(self, stage: Stage, model: str) -> Stage:
        """The stage with what it does not say itself taken from here.

        One that names another prompt style takes nothing. UserError where the model does not serve
        its level, or what the stage says does not go with the rest.
        """
        said = {key: getattr(stage, key) for key in stage.model_fields_set}
        if said.get("prompt", self.prompt) != self.prompt:
            return stage
        own = self.doc if stage.level == "doc" else self.chunk
        if own is None:
            raise UserError(
                f"model {model!r} is not for level {stage.level}: its {NAME} has "
                f"{' and '.join(self.levels)}",
                hint="give the stage another model, or leave it out",
            )
        given = {key: getattr(own, key) for key in own.model_fields_set}
        try:
            return Stage.model_validate(given | said)
        except ValidationError as error:
            raise UserError(
                f"the {stage.level} stage and {NAME} of model {model!r} do not go together: "
                + "; ".join(str(problem["msg"]) for problem in error.errors()),
                hint=f"a stage may do without keys that {NAME} has",
            ) from None

    def to_dict(self) -> dict[str, Any]:
        """JSON form; `RefinerFile.model_validate` reads it."""
        data: dict[str, Any] = self.model_dump(mode="json", exclude_unset=True)
        for level in self.levels:
            data[level] = {k: v for k, v in data[level].items() if k not in _ELSEWHERE}
        return data

    def write(self, folder: Path) -> None:
        """Put it into a model's directory."""
        write_atomic(folder / NAME, orjson.dumps(self.to_dict(), option=orjson.OPT_INDENT_2))


def read_refiner(folder: Path) -> RefinerFile | None:
    """What a model's directory says, if it does; UserError names each wrong key with its line."""
    path = folder / NAME
    if not path.is_file():
        return None
    # JSON is YAML: one reader, one form of messages.
    return load_yaml(path, RefinerFile, environ={}, verbatim=("notes",))
