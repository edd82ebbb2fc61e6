"""What a reload takes of a new configuration, and what of it has to wait for a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.config_infer import InferConfig

FIXED = ("node", "state_dir", "cache", "retrieval", "generation", "models", "metrics", "otlp")
"""Sections that only a restart can change; of the others, `ladder.record`. A test knows them all, so none is forgotten."""


def take_over(old: InferConfig, new: InferConfig) -> tuple[InferConfig, list[str]]:
    """(`new` with the old values where only a restart takes the new ones, the keys of these as `cache.memory`)."""
    waiting = [path for key in FIXED for path in _changed(key, _plain(getattr(old, key)), _plain(getattr(new, key)))]
    kept: dict[str, Any] = {key: getattr(old, key) for key in FIXED}
    if new.ladder.record != old.ladder.record:
        waiting.append("ladder.record")
        kept["ladder"] = new.ladder.model_copy(update={"record": old.ladder.record})
    return new.model_copy(update=kept), waiting


def _plain(value: Any) -> Any:
    return value.model_dump() if hasattr(value, "model_dump") else value


def _changed(path: str, old: Any, new: Any) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in dict.fromkeys([*old, *new]):
            yield from _changed(f"{path}.{key}", old.get(key), new.get(key))
    elif old != new:
        yield path
