"""Schemas that are too much for a local model, and what many people write, which is not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from local_infer.generation.schema_limits import find_excess


def excess(schema: dict[str, Any]) -> str:
    return find_excess(schema, json.dumps(schema))


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


def patterns(count: int) -> list[dict[str, Any]]:
    return [{"type": "string", "pattern": f".*{i}.*"} for i in range(count)]


TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {"properties": {"kids": {"type": "array", "items": {"$ref": "#/$defs/node"}}, "up": {"$ref": "#"}}},
        "a~/b": {"anyOf": [{"$ref": "#/$defs/node"}, {"$ref": "#/$defs/node"}]},
    },
    "properties": {"x": {"$ref": "#/$defs/a~0~1b"}, "lost": {"$ref": "#/$defs/none/0/x"}, "far": {"$ref": "http://a"}},
}


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(1000)}},
        nested(19),
        TREE,
        {"anyOf": patterns(64)},
        {"allOf": patterns(8)},
        {"properties": {"$ref": {"type": "string"}, "pattern": {"type": "string"}, "enum": {"type": "array"}}},
        {"type": "string", "pattern": "^[a-z]{1,1000}$", "maxLength": 10**9},
        {"items": {"format": "date-time"}, "maxItems": 10_000},
        {
            "properties": {
                f"p{i}": {"multipleOf": n} for i, n in enumerate([0, 0.01, 0.25, 5, 60, 3600, 1e9, 1e-7, 10**50])
            }
        },
        {"$ref": "#/x", "multipleOf": 0.05, "x": {"allOf": [{"multipleOf": n} for n in (0.25, 60, 100, 1000)]}},
        {"anyOf": 3, "enum": 7, "$ref": 1, "pattern": {}, "patternProperties": [], "maxItems": "many", "allOf": [1]},
    ],
)
def test_what_people_write(schema: dict[str, Any]) -> None:
    assert excess(schema) == ""


LOOP = {
    "$ref": "#/$defs/a",
    "$defs": {"a": {"allOf": [{"$ref": "#/$defs/b"}]}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}},
}


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"const": "x" * 65_536}, "characters"),
        (nested(20), "nested deeper"),
        ({"oneOf": [{"type": "integer"}] * 513}, "alternatives"),
        ({"properties": {"a": {"enum": [1] * 1001}, "b": {"enum": [1] * 1000}}}, "enum values"),
        ({"items": [{"$ref": "#/x"}] * 257}, "references"),
        ({"anyOf": patterns(65)}, "patterns and formats"),
        ({"items": [{"format": "email"}] * 65}, "patterns and formats"),
        ({"patternProperties": {f".*{i}": {} for i in range(65)}}, "patterns and formats"),
        ({"allOf": patterns(9)}, "beside allOf"),
        ({"properties": {"a": {"allOf": [{"$ref": "#/x"}]}}, "x": patterns(9)}, "beside allOf"),
        ({"pattern": "x" * 513}, "a pattern is longer"),
        ({"pattern": f"x{{{'9' * 5000}}}"}, "a pattern is longer"),  # Python reads no number of so many digits
        ({"patternProperties": {"x{3,1001}": {}}}, "repeats more"),
        ({"type": "array", "maxItems": 10_001}, "counts more"),
        ({"type": "array", "minItems": 1e9}, "counts more"),
        ({"type": "integer", "multipleOf": 1000003}, "multipleOf"),
        ({"type": "integer", "multipleOf": 10**4000 + 1}, "multipleOf"),
        ({"type": "integer", "multipleOf": 3.1415926}, "multipleOf"),
        ({"anyOf": [{"multipleOf": 997}] * 50}, "multipleOf"),
        ({"allOf": [{"multipleOf": prime} for prime in (101, 103, 107)]}, "multipleOf"),
        ({"$ref": "#/$defs/a", "multipleOf": 97, "$defs": {"a": {"multipleOf": 9973}}}, "multipleOf"),
        ({"$ref": "#"}, "leads back"),
        ({"properties": {"a": {"$ref": "#/properties/b"}, "b": {"$ref": "#/properties/a"}}}, "leads back"),
        (LOOP, "leads back"),
    ],
)
def test_too_much(schema: dict[str, Any], what: str) -> None:
    assert what in excess(schema)
