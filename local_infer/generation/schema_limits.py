"""What of a JSON schema is too much for a local model: the library may take for ever over a few lines.

Measured with llguidance: a thousand properties, alternatives or values, or depth 58, take under 0.1 s; patterns that must
all hold take time to the power of their number (8 none, 12 a second, 16 hours and gigabytes), lists of a million items 5 s,
multiples of a number with six digits 2 s.
What is below these limits and takes too long all the same is for `schema_blame.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

MOST_CHARACTERS = 65_536
MOST_DEPTH = 40
"""Of JSON: a level of objects in a schema takes two."""
MOST_ALTERNATIVES = 512
MOST_VALUES = 2000
MOST_PATTERNS = 64
MOST_PATTERNS_TOGETHER = 8
"""With an `allOf` anywhere, through which they may have to hold together."""
LONGEST_PATTERN = 512
MOST_REPEATS = 1000
MOST_ITEMS = 10_000
MOST_REFERENCES = 256
MOST_MULTIPLE = 20_000
"""Of all `multipleOf` in sum, without decimal point and zeros at the end; of their least common multiple where they may
hold together. That of 1000003 takes a slot's process for good."""

_REPEAT_RE = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
_SAME_PLACE = ("allOf", "anyOf", "oneOf")


def find_excess(schema: Mapping[str, Any], text: str) -> str:
    """What is too much in `schema` (`text` is its JSON), for who wrote it; empty: nothing."""
    if len(text) > MOST_CHARACTERS:
        return f"it has more than {MOST_CHARACTERS} characters"
    alternatives = values = references = 0
    patterns: list[str] = []
    multiples: list[int] = []
    together = False
    for depth, one in _objects(schema):
        if depth > MOST_DEPTH:
            return f"it is nested deeper than {MOST_DEPTH}"
        alternatives += sum(len(one[name]) for name in _SAME_PLACE if isinstance(one.get(name), list))
        values += len(one["enum"]) if isinstance(one.get("enum"), list) else 0
        references += isinstance(one.get("$ref"), str)
        patterns += _patterns(one)
        multiples += _multiples(one)
        together = together or "allOf" in one
        if any(isinstance(one.get(name), (int, float)) and one[name] > MOST_ITEMS for name in _COUNTS):
            return f"it counts more than {MOST_ITEMS} items or properties"
    for name, count, most in (
        ("alternatives", alternatives, MOST_ALTERNATIVES),
        ("enum values", values, MOST_VALUES),
        ("references", references, MOST_REFERENCES),
        ("patterns and formats", len(patterns), MOST_PATTERNS),
        ("patterns and formats beside allOf", len(patterns) if together else 0, MOST_PATTERNS_TOGETHER),
    ):
        if count > most:
            return f"it has more than {most} {name}"
    if sum(multiples) > MOST_MULTIPLE or ((together or references) and _common_multiple(multiples) > MOST_MULTIPLE):
        return f"what is counted by 'multipleOf' comes to more than {MOST_MULTIPLE}"
    if any(map(_is_hard, patterns)):
        return f"a pattern is longer than {LONGEST_PATTERN} characters, or repeats more than {MOST_REPEATS} times"
    return "a $ref leads back to itself" if references and _has_loop(schema) else ""


def _objects(schema: Any) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """All objects in it with their depth; nothing below the deepest that is allowed."""
    left: list[tuple[int, Any]] = [(1, schema)]
    while left:
        depth, value = left.pop()
        if isinstance(value, dict):
            yield depth, value
        if depth <= MOST_DEPTH and isinstance(value, (dict, list)):
            left.extend((depth + 1, part) for part in (value.values() if isinstance(value, dict) else value))


def _patterns(one: Mapping[str, Any]) -> list[str]:
    found = [one[name] for name in ("pattern", "format") if isinstance(one.get(name), str)]
    by_name = one.get("patternProperties")
    return [*found, *(by_name if isinstance(by_name, dict) else ())]


def _multiples(one: Mapping[str, Any]) -> list[int]:
    value = one.get("multipleOf")
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return []
    digits = "".join(map(str, Decimal(repr(value)).as_tuple().digits)).rstrip("0")
    # More than nine are too much in any case.
    return [int(digits[:9] or 0)]


def _common_multiple(numbers: Sequence[int]) -> int:
    common = 1
    for number in numbers:
        common = math.lcm(common, number or 1)
        if common > MOST_MULTIPLE:
            break
    return common


def _is_hard(pattern: str) -> bool:
    if len(pattern) > LONGEST_PATTERN:
        return True  # before its numbers are read: Python reads none of thousands of digits
    bounds = [int(bound) for match in _REPEAT_RE.finditer(pattern) for bound in match.groups() if bound]
    return max(bounds, default=0) > MOST_REPEATS


def _has_loop(root: Mapping[str, Any]) -> bool:
    """Whether a schema stands for itself: a way by `$ref` and alternatives, through no property or item, back to it."""
    done: set[int] = set()
    for _depth, start in _objects(root):
        way: list[tuple[Any, Iterator[Any]]] = []
        on_way: set[int] = set()
        entered: Any = start
        while True:
            if entered is not None and id(entered) not in done:
                way.append((entered, _stands_for(entered, root)))
                on_way.add(id(entered))
            if not way:
                break
            one, following = way[-1]
            entered = next(following, None)
            if entered is None:
                way.pop()
                on_way.discard(id(one))
                done.add(id(one))
            elif id(entered) in on_way:
                return True
    return False


def _stands_for(one: Mapping[str, Any], root: Mapping[str, Any]) -> Iterator[Any]:
    """The schemas that hold at the same place as this one."""
    for name in _SAME_PLACE:
        parts = one.get(name)
        yield from (part for part in (parts if isinstance(parts, list) else ()) if isinstance(part, dict))
    target = one.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        found = _resolve(target, root)
        if isinstance(found, dict):
            yield found


def _resolve(pointer: str, root: Any) -> Any:
    """What a JSON pointer (RFC 6901) in a fragment names; None: nothing."""
    value = root
    for word in pointer[1:].split("/")[1:]:
        word = word.replace("~1", "/").replace("~0", "~")
        if isinstance(value, list) and word.isascii() and word.isdecimal() and len(word) < 6 and int(word) < len(value):
            value = value[int(word)]
        elif isinstance(value, dict):
            value = value.get(word)
        else:
            return None
    return value
