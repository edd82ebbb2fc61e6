"""docs/configuration.md, made from the models of core.config: `python -m nearpath.configdoc docs/configuration.md`.

So the reference cannot say anything else than what is read. A test compares the file with what is made here.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import annotated_types
from pydantic.fields import FieldInfo

from core import config
from core.config import AgentConfig, Config, Section
from core.config_infer import InferConfig
from core.config_sync import SyncConfig
from core.units import Duration, Share, Size

_HEAD = """\
# Configuration reference

Made from the models in `core/config*.py` by `make schema`; do not edit it here.

All files are YAML. Unknown keys are refused; a **time** needs a unit (`250ms`, `30s`, `5m`, `1h30m`, `1d`), a **size**
too (`1232B`, `64KiB`, `4MiB`), a **share** is a percentage (`5%`). A **name** has lower-case letters, digits and hyphens.
Relative paths start from the folder of the file. All faults are reported at once, each with file, line and key:
`nearpath check-config FILE`, `syncd check-config -c FILE`. JSON schemas for editors are in `configs/schema/`.
"""

PAGES: list[tuple[str, type[Section]]] = [
    ("Appliance: nearpath.yaml", Config),
    ("Probe agent: agent.yaml", AgentConfig),
    ("Mirror node: syncd.yaml", SyncConfig),
    ("Inference gateway: local-infer.yaml", InferConfig),
]

_SIMPLE: list[tuple[Any, str]] = [
    (Duration, "time"),
    (Size, "size"),
    (Share, "share"),
    (config.Name, "name"),
    (config.Domain, "domain name"),
    (config.Listen, "ADDRESS:PORT"),
    (config.Address, "IP address"),
    (bool, "`true` or `false`"),
    (int, "whole number"),
    (float, "number"),
    (str, "text"),
]


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a section, as shown."""

    name: str
    type: str
    default: str
    limits: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Part:
    """One section of a file: where it stands (`zones[]`, `checks.NAME`), what it is, its keys."""

    place: str
    summary: str
    keys: tuple[Key, ...]


def describe(model: type[Section], place: str = "") -> list[Part]:
    """`model` and every section below it, in the order of the file."""
    hints = get_type_hints(model, include_extras=True)
    keys, below = [], []
    for name, field in model.model_fields.items():
        hint, inner = hints[name], f"{place}.{name}" if place else name
        keys.append(Key(name, _type(hint), _default(hint, field), _limits(hint, field), _meaning(hint, field)))
        for suffix, section in _sections(hint):
            below += describe(section, inner + suffix)
    return [Part(place, inspect.getdoc(model) or "", tuple(keys)), *below]


def find_undescribed() -> list[str]:
    """Keys and sections without a word on what they mean."""
    return [
        f"{part.place}.{key.name}".lstrip(".")
        for _, model in PAGES
        for part in describe(model)
        for key in part.keys
        if not key.meaning or not part.summary
    ]


def render() -> str:
    """The whole page."""
    lines = [_HEAD]
    for title, model in PAGES:
        lines.append(f"## {title}\n")
        for part in describe(model):
            lines += _render(part)
    return "\n".join(lines).rstrip() + "\n"


def _render(part: Part) -> Iterator[str]:
    if part.place:
        yield f"### `{part.place}`\n"
    yield f"{_sentence(part.summary)}\n"
    yield "| key | type | default | meaning |"
    yield "|---|---|---|---|"
    for key in part.keys:
        meaning = _sentence(key.meaning) + (f" ({key.limits})" if key.limits else "")
        cells = [f"`{key.name}`", key.type, key.default, meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
    yield ""


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] if text[:1].isalpha() else text


def _bare(hint: Any) -> Any:
    """`hint` without `None` and without annotations that are only limits."""
    if get_origin(hint) in (Union, types.UnionType):
        kept = [arg for arg in get_args(hint) if arg is not type(None)]
        if len(kept) == 1:
            return _bare(kept[0])
    if get_origin(hint) is Annotated and all(hint != known for known, _ in _SIMPLE):
        return _bare(get_args(hint)[0])
    return hint


def _type(hint: Any) -> str:
    hint = _bare(hint)
    for known, name in _SIMPLE:
        if hint == known:
            return name
    origin, args = get_origin(hint), get_args(hint)
    if origin is list:
        return f"list of {_type(args[0])}"
    if origin is dict:
        return f"mapping of {_type(args[0])} to {_type(args[1])}"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        return _type(args[0])
    if inspect.isclass(hint) and issubclass(hint, Section):
        return "section"
    raise TypeError(f"configdoc does not know how to write {hint!r}: add it to _SIMPLE")


def _sections(hint: Any) -> Iterator[tuple[str, type[Section]]]:
    """(what is appended to the key's name, section) for the sections a key holds."""
    hint = _bare(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin is list:
        yield from (("[]" + suffix, section) for suffix, section in _sections(args[0]))
    elif origin is dict:
        word = _type(args[0]).split()[-1].upper()
        yield from ((f".{word}{suffix}", section) for suffix, section in _sections(args[1]))
    elif origin in (Union, types.UnionType):
        for arg in args:
            yield f" (kind: {get_args(arg.model_fields['kind'].annotation)[0]})", arg
    elif inspect.isclass(hint) and issubclass(hint, Section):
        yield "", hint


def _default(hint: Any, field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    return _value(_bare(hint), value)


def _value(hint: Any, value: Any) -> str:
    if value is None or value == "":
        return "none"
    if isinstance(value, Section):
        return "see below"
    if hint == Duration:
        return f"`{_time(value)}`"
    if hint == Size:
        return f"`{_size(value)}`"
    if hint == Share:
        return f"`{value * 100:g}%`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | dict):
        return f"`{value}`" if value else "none"
    return f"`{value}`"


def _time(seconds: float) -> str:
    for unit, length_s in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length_s and seconds % length_s == 0:
            return f"{seconds / length_s:g}{unit}"
    return f"{seconds:g}s" if seconds >= 1 or seconds == 0 else f"{seconds * 1000:g}ms"


def _size(size_bytes: int) -> str:
    for unit, length_bytes in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size_bytes >= length_bytes and size_bytes % length_bytes == 0:
            return f"{size_bytes // length_bytes}{unit}"
    return f"{size_bytes}B"


def _limits(hint: Any, field: FieldInfo) -> str:
    low, high, many = "", "", ""
    hint = _bare(hint)
    for mark in field.metadata:
        match mark:
            case annotated_types.Ge(ge=value):
                low = f"at least {_value(hint, value)}" if value else ""
            case annotated_types.Gt(gt=value):
                low = f"more than {_value(hint, value)}"
            case annotated_types.Le(le=value):
                high = f"at most {_value(hint, value)}"
            case annotated_types.MinLen(min_length=value):
                many = "at least one" if value == 1 and get_origin(hint) is list else ""
            case annotated_types.MaxLen(max_length=value):
                word = "entries" if get_origin(hint) in (list, dict) else "characters"
                high = f"at most {value} {word}"
    return ", ".join(part for part in (many, low, high) if part).replace("`", "")


def _meaning(hint: Any, field: FieldInfo) -> str:
    if field.description:
        return field.description
    sections = [section for _, section in _sections(hint)]
    if len(sections) == 1:
        return (inspect.getdoc(sections[0]) or "").split("\n")[0]
    return ""


def main() -> None:
    """Write the page to the file named on the command line."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m nearpath.configdoc FILE.md")
    Path(sys.argv[1]).write_text(render(), "utf-8")


if __name__ == "__main__":
    main()
