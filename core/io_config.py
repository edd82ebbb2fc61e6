"""Reading configuration files: YAML with line numbers into models, every fault reported at once with its place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from core.config import NAME_PATTERN, AgentConfig, Config
from core.config_refs import find_dangling
from core.errors import ConfigError, Problem

MAX_CONFIG_BYTES = 16 << 20
"""A configuration larger than this is a mistake (a data file named by accident), not a configuration."""

_MAX_DEPTH = 32
_PLAIN_KEY_RE = re.compile(r"[A-Za-z0-9_-]+")
_SHOWN_LEN = 60

# libyaml where there is one: a large file named by accident is then refused in seconds, not minutes.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

PathKey = tuple[str | int, ...]
M = TypeVar("M", bound=BaseModel)


def read_config(file: str | Path) -> Config:
    """The appliance's configuration in `file`; paths in it are made absolute from its folder. Raises ConfigError."""
    config = read_model(file, Config, find_dangling)
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


def read_state_dir(file: str | Path) -> str:
    """Only the `state_dir` of a configuration that may have faults elsewhere: enough to find the running daemon.

    Raises ConfigError when not even that can be read.
    """
    try:
        return read_config(file).state_dir
    except ConfigError as error:
        try:
            raw, _lines, _problems = _load_marked(Path(file).read_bytes()[:MAX_CONFIG_BYTES], str(file))
        except OSError:
            raise error from None
        state_dir = (raw or {}).get("state_dir")
        if not isinstance(state_dir, str) or not state_dir:
            raise
        return str(Path(file).resolve().parent / state_dir)


def read_agent_config(file: str | Path) -> AgentConfig:
    """The probe agent's configuration in `file`; paths in it are made absolute from its folder. Raises ConfigError."""
    config = read_model(file, AgentConfig, lambda _raw: [])
    base = Path(file).resolve().parent
    return config.model_copy(
        update={
            "token_file": str(base / config.token_file),
            "state_dir": str(base / config.state_dir),
            "ca_file": str(base / config.ca_file) if config.ca_file else None,
        }
    )


def read_model(
    file: str | Path, model: type[M], refs: Callable[[Mapping[str, Any]], Sequence[tuple[PathKey, str]]]
) -> M:
    """The `model` in a YAML `file`; ConfigError with every fault, also those that `refs` finds in the raw mapping."""
    name = str(file)
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        other = "; another file is named with -c" if isinstance(error, FileNotFoundError) else ""
        raise ConfigError([Problem(name, 0, "", f"cannot be read: {error.strerror}{other}")]) from None
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
            path = _without_tags(path, raw, missing=fault["type"] == "missing")
            problems.append(Problem(name, line_of(path), _dotted(path), _wording(fault, path)))
    problems += [Problem(name, line_of(path), _dotted(path), what) for path, what in refs(raw)]
    if problems or result is None:
        raise ConfigError(sorted(set(problems), key=lambda p: (p.line, p.path, p.what)))
    return result


def _without_tags(path: PathKey, raw: Any, *, missing: bool) -> PathKey:
    """`path` less the parts pydantic adds for a union's tag and for mapping keys, which are not in the file.

    Only the last part of a `missing` fault may name what is not there.
    """
    kept: list[str | int] = []
    at: Any = raw
    for i, part in enumerate(path):
        if part == "[key]":
            continue
        inside = (isinstance(at, Mapping) and part in at) or (isinstance(at, list) and isinstance(part, int))
        if not inside and not (missing and i == len(path) - 1):
            continue
        kept.append(part)
        at = at[part] if inside and (isinstance(at, Mapping) or int(part) < len(at)) else None
    return tuple(kept)


_PATTERN_WORDS = {
    NAME_PATTERN: "must be a name: lower-case letters, digits and hyphens, 1 to 63 of them",
    r"^https?://[!-~]+$": "must be a URL that begins with http:// or https://, without blanks",
    r"^(https?://[!-~]+)?$": "must be a URL that begins with http:// or https://, without blanks",
    r"^(rediss?|unix)://[!-~]+$": "must be a URL that begins with redis://, rediss:// or unix://, without blanks",
    r"^/[!-~]*$": "must begin with a slash, without blanks",
    r"^[!-~]{1,128}$": "must be a model's name: 1 to 128 visible ASCII characters, without blanks",
    r"^[A-Za-z0-9-]{1,64}$": "must be the name of a header: letters, digits and hyphens, 1 to 64 of them",
    r"^[ -~]{0,1024}$": "must be ASCII text of one line, 1024 characters at most",
}
"""What pydantic would only show as a regular expression."""

_PLAIN_WORDS = {
    "extra_forbidden": "is not a known key (a typo?)",
    "missing": "is missing",
    "model_type": "must be a mapping of keys to values",
    "dict_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "list_type": "must be a list, such as [a, b]",
    "string_type": "must be text: put it in quotes",
    "int_type": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "union_tag_not_found": "does not say its `kind`",
}


_TOKEN_MAKERS: Mapping[str | int, str] = {"keys": "local-infer new-key", "children": "syncd token"}
"""By the section that a hash stands in: what makes the secret."""


def _wording(fault: Any, path: PathKey) -> str:
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "union_tag_invalid":
        return f"{context['tag']!r} is not a kind: use one of {context['expected_tags']}"
    if kind in ("extra_forbidden", "missing", "union_tag_not_found"):
        return _PLAIN_WORDS[kind]
    if path[-1:] == ("token_sha256",):
        # Somebody may have put the token itself here: it must not end up in a log.
        return f"must be the 64 hexadecimal digits that `{_TOKEN_MAKERS.get(path[0], 'nearpath agent-token')}` prints"
    what: str = _PLAIN_WORDS.get(kind, fault["msg"])
    given = fault.get("input")
    if kind == "string_pattern_mismatch":
        what = _PATTERN_WORDS.get(str(context["pattern"]), what)
        if isinstance(given, str) and "@" in given:
            return what  # there may be a password before it
    return f"{what} (got {_shortened(repr(given))})" if isinstance(given, str | int | float | bool | None) else what


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_LEN else f"{text[:_SHOWN_LEN]}..."


def _dotted(path: PathKey) -> str:
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        elif _PLAIN_KEY_RE.fullmatch(part):
            text += f".{part}" if text else part
        else:
            text += f"[{part!r}]"
    return text


def _load_marked(data: bytes, name: str) -> tuple[dict[str, Any] | None, dict[PathKey, int], list[Problem]]:
    """(mapping, path -> line, problems) of a YAML text; aliases are refused, duplicate keys are problems."""
    reading = _Reading(name)
    try:
        if (refused := _find_traps(data)) is not None:
            return None, reading.lines, [Problem(name, *refused)]
        root = yaml.compose(data, Loader=_Loader)
        value = reading.value_of(root, ()) if root is not None else None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        if (context := getattr(error, "context", None)) and "another document" in what:
            what = f"{context}, {what}: put everything into one, without a second `---`"
        return None, reading.lines, [Problem(name, mark.line + 1 if mark else 0, "", f"is not valid YAML: {what}")]
    if not isinstance(value, dict):
        return None, reading.lines, [*reading.problems, Problem(name, 1, "", "must be a mapping of keys to values")]
    return value, reading.lines, reading.problems


def _find_traps(data: bytes) -> tuple[int, str, str] | None:
    """(line, "", what) of the first thing in a YAML text that must not be expanded into values."""
    depth = 0
    for event in yaml.parse(data, Loader=_Loader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            # An alias bomb of a few hundred bytes expands to gigabytes; no configuration needs one.
            return line, "", "YAML aliases (*name) are not allowed here"
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > _MAX_DEPTH:
                return line, "", f"is nested deeper than {_MAX_DEPTH} levels"
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return None


_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = frozenset(_TAG + kind for kind in "map seq str bool int float null timestamp merge value".split())  # noqa: SIM905
_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_INT_RE = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_FLOAT_RE = re.compile(r"-?(0|[1-9][0-9]{0,18})(\.[0-9]{1,18})?([eE][-+]?[0-9]{1,2})?")


def _plain_value(text: str) -> str | int | float | bool | None:
    """What a scalar without quotes means.

    YAML 1.1, which PyYAML follows, takes NO and on for truth values, 010 for eight and 22:30 for 1350: traps for country
    codes, regions and ports. Here only what JSON would say so is a number or a truth value, as in YAML 1.2; the rest is
    text.
    """
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if _INT_RE.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT_RE.fullmatch(text) else text


@dataclass(slots=True)
class _Reading:
    """A YAML tree being turned into values: the line of every path, and what was wrong on the way."""

    name: str
    lines: dict[PathKey, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def value_of(self, node: yaml.Node, path: PathKey) -> Any:
        """The value of a node; a key keeps the text it was written with."""
        self.lines[path] = node.start_mark.line + 1
        if node.tag not in _KNOWN_TAGS:
            self._fault(node, path, f"YAML tags ({_shortened(node.tag)}) are not allowed here")
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, value_node in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    self._fault(key_node, path, "a key must be plain text, not a list or a mapping")
                    continue
                key = key_node.value
                here = (*path, key)
                if key in mapping:
                    self._fault(key_node, here, f"is given twice (first in line {self.lines[here]})")
                    continue
                mapping[key] = self.value_of(value_node, here)
                self.lines[here] = key_node.start_mark.line + 1
            return mapping
        if isinstance(node, yaml.SequenceNode):
            return [self.value_of(child, (*path, i)) for i, child in enumerate(node.value)]
        text = str(node.value)
        quoted = isinstance(node, yaml.ScalarNode) and bool(node.style)
        return text if quoted or node.tag == _TAG + "str" else _plain_value(text)

    def _fault(self, node: yaml.Node, path: PathKey, what: str) -> None:
        self.problems.append(Problem(self.name, node.start_mark.line + 1, _dotted(path), what))
