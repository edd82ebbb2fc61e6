"""Reading the gateway's configuration file; faults are told as for the other files (`core.io_config`)."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from core.config import Section
from core.config_infer import InferConfig, find_contradictions
from core.io_config import read_model

S = TypeVar("S", bound=Section)


def read_infer_config(file: str | Path) -> InferConfig:
    """The gateway's configuration in `file`; paths in it are made absolute from its folder. Raises ConfigError."""
    config = read_model(file, InferConfig, find_contradictions)
    base = Path(file).resolve().parent

    def placed(section: S | None, *names: str) -> S | None:
        if section is None:
            return None
        given = {name: getattr(section, name) for name in names}
        return section.model_copy(update={name: str(base / path) for name, path in given.items() if path is not None})

    return config.model_copy(
        update={
            "state_dir": str(base / config.state_dir),
            "tls": placed(config.tls, "cert", "key"),
            "upstreams": {name: placed(one, "key_file", "ca_file") for name, one in config.upstreams.items()},
            "cache": placed(config.cache, "warm_file", "neighbour_key_file", "redis_password_file"),
            "retrieval": placed(config.retrieval, "index", "embedder"),
            "generation": placed(config.generation, "model"),
            "otlp": placed(config.otlp, "headers_file", "ca_file"),
        }
    )
