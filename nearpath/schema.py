"""The JSON schema of the configuration files, for editors and for checks outside nearpath."""

from __future__ import annotations

import json
from typing import Any

from pydantic import TypeAdapter

from core.config import AgentConfig, Config, Section
from core.config_infer import InferConfig
from core.config_sync import SyncConfig
from core.units import Duration, Share, Size

FILES: dict[str, type[Section]] = {
    "nearpath": Config,
    "agent": AgentConfig,
    "syncd": SyncConfig,
    "local-infer": InferConfig,
}
"""configs/schema/NAME.schema.json is of this model."""

_WITH_UNIT = [TypeAdapter[Any](kind) for kind in (Duration, Size, Share)]
_BY_PATTERN = {adapter.json_schema()["pattern"]: adapter for adapter in _WITH_UNIT}


def schema_text(model: type[Section]) -> str:
    """The schema of a configuration model as it is kept under configs/schema/."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
    _write_units(schema)
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def _write_units(node: Any) -> None:
    """Turn the numbers that pydantic gives as defaults of times, sizes and shares into the texts a file must have."""
    if isinstance(node, list):
        for part in node:
            _write_units(part)
    elif isinstance(node, dict):
        adapter = _BY_PATTERN.get(node.get("pattern", "")) if isinstance(node.get("pattern", ""), str) else None
        if adapter is not None and isinstance(node.get("default"), int | float):
            node["default"] = adapter.dump_python(node["default"], mode="json")
        for part in node.values():
            _write_units(part)
