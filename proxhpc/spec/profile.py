"""Profiles: how documents and windows become prompts, as data."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    JsonValue,
    Tag,
    ValidationInfo,
    WithJsonSchema,
)

from proxhpc.spec.load import Config, Flag, Slug, absolute, base_of
from proxhpc.spec.yaml_lines import Key, nearest, quoted

CHAT_TEMPLATE = "chat-template"
WALK = "walk"  # the style that is code
PROFILES = Path(__file__).parents[1] / "refine" / "profiles"

_MAX_TEXT = 1 << 20  # characters of a file with a prompt
_NUMBER = re.compile(r"n:0?[1-9]")
_SPECIAL = re.compile(r"bos|.*\W.*")  # a placeholder of a frame that stands for ids
# The placeholders of each template: one of these combinations.
_PLACEHOLDERS = {
    "document": (("text",), ("lines",)),
    "window": (("lines",),),
    "line": (("line", "n"),),
    "frame": (("message",), ("message", "system")),
}
# Endings of placeholders in a frame: a text without the blanks at both ends, and a special token
# that is followed by its text as in a rendered chat template.
TRIM, JOIN = ":trim", ":join"


@cache
def profile_names() -> tuple[str, ...]:
    """Return the names of the profiles that come with proxhpc, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.json")))


def _text_or_file(value: object, info: ValidationInfo) -> object:
    """Return a text, read from a file beside the profile if `value` is {"file": NAME}."""
    if not isinstance(value, dict):
        return value
    name, folder = value.get("file"), base_of(info)
    if len(value) != 1 or not isinstance(name, str) or Path(name).name != name or folder is None:
        raise ValueError('must be text or {"file": NAME}, a file in the folder of this one')
    try:
        with (folder / name).open(encoding="utf-8-sig") as stream:
            text = stream.read(_MAX_TEXT + 1)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(f"cannot read {folder / name}: {reason}") from None
    if len(text) > _MAX_TEXT:
        raise ValueError(f"{folder / name} has more than {_MAX_TEXT:,} characters")
    return text.strip()


TextOrFile = Annotated[
    str, BeforeValidator(_text_or_file, json_schema_input_type=str | dict[Literal["file"], str])
]


class Profile(Config):
    """How documents and windows become prompts.

    `document`, `window`, `line` and `frame` are templates: `{name}` is a placeholder, and `{{` and
    `}}` are braces.
    """

    name: Slug = "custom"
    """Name in messages."""
    system: TextOrFile | None = None
    """System prompt; `null` for none. Long texts may be in a file beside the profile: `{"file":
    "system.txt"}`, read without the blanks at its start and end."""
    system_turn: Literal["system", "user"] = "system"
    """Chat template: `user` puts the system prompt and a blank line before the message, as is done
    for templates that have no system turn."""
    document: TextOrFile = "{text}"
    """Message for a document, with `{text}`, or `{lines}` for its numbered lines."""
    window: TextOrFile = "{lines}"
    """Message for a window, with `{lines}`, its numbered lines."""
    line: str = "[{n:03}]{line}"
    """A numbered line, with `{n}` (`{n:03}`: at least three digits) and `{line}`. The first number
    is the dialect's."""
    separator: str = "\n"
    """What is between two numbered lines."""
    strip_lines: Flag = False
    """Whether blanks at the start and end of lines are left out."""
    frame: str = CHAT_TEMPLATE
    """`chat-template`: the model's. Otherwise the text around `{message}` and `{system}`, where
    `{bos}` stands for what the tokenizer puts before a text, and a special token in braces for its
    id, as `{<s>}`. `{message:trim}` leaves out the blanks at both ends of the text; `{<s>:join}`
    keeps a tokenizer from putting a blank before the text that follows."""
    template_arguments: dict[str, JsonValue] = Field(default_factory=dict)
    """Arguments of the chat template, as `{"enable_thinking": false}`."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end an answer, beside the calls after which nothing can follow."""
    verdict: Literal["program", "scores"] = "program"
    """What documents are answered with: a program, or the two scores that `teacher` asks for."""

    def _problems(self) -> Iterator[tuple[Key, str]]:
        wrong = [((key,), text) for key in _PLACEHOLDERS for text in self._template_problems(key)]
        yield from wrong
        if self.frame != CHAT_TEMPLATE and not wrong:
            for key in ("system_turn", "template_arguments"):
                if getattr(self, key) not in ("system", {}):
                    yield (key,), "only with frame: chat-template"
            if self.system is not None and not self.frame_has_system:
                yield ("frame",), "has no {system} for the system prompt"

    def _template_problems(self, key: str) -> Iterator[str]:
        template, choices = getattr(self, key), _PLACEHOLDERS[key]
        if key == "frame" and template == CHAT_TEMPLATE:
            return
        try:
            names = [name for _, name in split_template(template) if name is not None]
        except ValueError as error:
            yield f"{error} (write {{{{ and }}}} for braces)"
            return
        known = {name for choice in choices for name in choice}
        if key == "frame":
            names = [name.removesuffix(TRIM) for name in names]
            names = [name for name in names if not _SPECIAL.fullmatch(name)]
        names = ["n" if _NUMBER.fullmatch(name) else name for name in names]
        if unknown := [name for name in names if name not in known]:
            text = ", ".join(f"{{{name}}}" for name in sorted(known))
            yield f"unknown placeholder {{{unknown[0]}}} (possible: {text})"
        elif tuple(sorted(names)) not in choices:
            texts = [" and ".join(f"{{{name}}}" for name in choice) for choice in choices]
            yield f"must have {' or '.join(texts)}, each once"

    @property
    def frame_has_system(self) -> bool:
        """Whether the frame shows a system prompt."""
        names = [name and name.removesuffix(TRIM) for _, name in split_template(self.frame)]
        return self.frame == CHAT_TEMPLATE or "system" in names


def split_template(template: str) -> list[tuple[str, str | None]]:
    """Return the parts of a template: a text and the placeholder after it.

    ValueError for a single brace.
    """
    parts = []
    for text, name, form, conversion in Formatter().parse(template):
        if name is not None:
            name += f"!{conversion}" * bool(conversion) + f":{form}" * bool(form)
        parts.append((text, name))
    return parts


def _known(prompt: str, *, more: str = "") -> str:
    names = (*profile_names(), WALK)
    if prompt in names:
        return prompt
    text = f"must be one of {', '.join(names)}{more}, not {quoted(prompt)}"
    raise ValueError(text + nearest(prompt, names))


def _name_or_file(prompt: str, info: ValidationInfo) -> str:
    if prompt.endswith(".json"):
        return absolute(prompt, info)
    return _known(prompt, more=", or a profile's file (*.json)")


def _no_profile(prompt: object, info: ValidationInfo) -> object:
    if isinstance(prompt, dict) and base_of(info):
        raise ValueError("must be a profile's name or file (*.json), not a mapping of keys")
    return prompt


PromptName = Annotated[str, AfterValidator(_known)]
# A frozen plan, which is no file that people write, stores the profile itself.
Prompt = Annotated[
    Annotated[str, AfterValidator(_name_or_file), Tag("name")] | Annotated[Profile, Tag("profile")],
    Discriminator(lambda value: "profile" if isinstance(value, dict | Profile) else "name"),
    BeforeValidator(_no_profile),
    WithJsonSchema({"type": "string", "minLength": 1}),
]
