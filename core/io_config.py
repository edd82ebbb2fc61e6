"""Reading configuration files: YAML with line numbers into models, every fault reported at once with its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from core.config import AgentConfig, Config
from core.config_refs import find_dangling
from core.errors import ConfigError, Problem

MAX_CONFIG_BYTES = 16 << 20
"""A configuration larger than this is a mistake (a data file named by accident), not a configuration."""

_MAX_DEPTH = 32

PathKey = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


def read_config(file: str | Path) -> Config:
    """The appliance's configuration in `file`; paths in it are made absolute from its folder. Raises ConfigError."""
    config = _read(file, Config, find_dangling)
    base = Path(file).resolve().parent
    return config.model_copy(
        update={
            "state_dir": str(base / config.state_dir),
            "zones": [z.model_copy(update={"file": str(base / z.file)}) for z in config.zones],
            "region_tables": [t.model_copy(update={"file": str(base / t.file)}) for t in config.region_tables],
            "report": config.report.model_copy(
                update={
                    "tls": config.report.tls
                    and config.report.tls.model_copy(
                        update={"cert": str(base / config.report.tls.cert), "key": str(base / config.report.tls.key)}
                    )
                }
            ),
        }
    )


def read_agent_config(file: str | Path) -> AgentConfig:
    """The probe agent's configuration in `file`; paths in it are made absolute from its folder. Raises ConfigError."""
    config = _read(file, AgentConfig, lambda _raw: [])
    base = Path(file).resolve().parent
    return config.model_copy(
        update={
            "token_file": str(base / config.token_file),
            "state_dir": str(base / config.state_dir),
            "ca_file": str(base / config.ca_file) if config.ca_file else None,
        }
    )


def _read(file: str | Path, model: type[M], refs: Callable[[Mapping[str, Any]], Sequence[tuple[PathKey, str]]]) -> M:
    name = str(file)
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError([Problem(name, 0, "", f"cannot be read: {error.strerror}")]) from None
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError([Problem(name, 0, "", f"is over {MAX_CONFIG_BYTES >> 20} MiB: not a configuration file")])
    raw, lines, problems = _load_marked(data, name)
    if raw is None:
        raise ConfigError(problems)

    def line_of(path: PathKey) -> int:
        while path and path not in lines:
            path = path[:-1]
        return lines.get(path, 1)

    result: M | None = None
    try:
        result = model.model_validate(raw)
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            path = tuple(part for part in fault["loc"] if not (isinstance(part, str) and part.startswith("function-")))
            path = _without_tags(path, raw)
            problems.append(Problem(name, line_of(path), _dotted(path), _wording(fault)))
    problems += [Problem(name, line_of(path), _dotted(path), what) for path, what in refs(raw)]
    if problems or result is None:
        raise ConfigError(sorted(set(problems), key=lambda p: (p.line, p.path, p.what)))
    return result


def _without_tags(path: PathKey, raw: Any) -> PathKey:
    """`path` less the parts pydantic adds for a union's tag and for mapping keys, which are not in the file."""
    kept: list[str | int] = []
    at: Any = raw
    for i, part in enumerate(path):
        if part == "[key]":
            continue
        inside = (isinstance(at, Mapping) and part in at) or (isinstance(at, list) and isinstance(part, int))
        if not inside and i < len(path) - 1:
            continue
        kept.append(part)
        at = at[part] if inside and (isinstance(at, Mapping) or int(part) < len(at)) else None
    return tuple(kept)


def _wording(fault: Any) -> str:
    match fault["type"]:
        case "extra_forbidden":
            return "is not a known key (a typo?)"
        case "missing":
            return "is missing"
        case "value_error":
            return str(fault["ctx"]["error"])
        case _:
            given = fault.get("input")
            shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) else ""
            return f"{fault['msg']}{shown}"


def _dotted(path: PathKey) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _load_marked(data: bytes, name: str) -> tuple[dict[str, Any] | None, dict[PathKey, int], list[Problem]]:
    """(mapping, path -> line, problems) of a YAML text; aliases are refused, duplicate keys are problems."""
    lines: dict[PathKey, int] = {}
    problems: list[Problem] = []
    try:
        events = yaml.parse(data, Loader=yaml.SafeLoader)
        for event in events:
            if isinstance(event, yaml.AliasEvent):
                # An alias bomb of a few hundred bytes expands to gigabytes; no configuration needs one.
                line = event.start_mark.line + 1 if event.start_mark else 0
                return None, lines, [Problem(name, line, "", "YAML aliases (*name) are not allowed here")]
        root = yaml.compose(data, Loader=yaml.SafeLoader)
        loader = yaml.SafeLoader("")
        value = _construct(loader, root, (), lines, problems, name) if root is not None else None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        return None, lines, [Problem(name, mark.line + 1 if mark else 0, "", f"is not valid YAML: {what}")]
    if not isinstance(value, dict):
        return None, lines, [*problems, Problem(name, 1, "", "must be a mapping of keys to values")]
    return value, lines, problems


def _construct(
    loader: yaml.SafeLoader,
    node: yaml.Node,
    path: PathKey,
    lines: dict[PathKey, int],
    problems: list[Problem],
    name: str,
) -> Any:
    lines[path] = node.start_mark.line + 1
    if len(path) > _MAX_DEPTH:
        raise ValueError(f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = (*path, key)
            if key in mapping:
                line = key_node.start_mark.line + 1
                problems.append(Problem(name, line, _dotted(here), f"is given twice (first in line {lines[here]})"))
                continue
            mapping[key] = _construct(loader, value_node, here, lines, problems, name)
            lines[here] = key_node.start_mark.line + 1
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, child, (*path, i), lines, problems, name) for i, child in enumerate(node.value)]
    value = loader.construct_object(node, deep=True)
    if not isinstance(value, str | int | float | bool | None):
        return str(node.value)  # dates and binaries: kept as the text that was written
    return value
