"""A whole gateway for tests: a configuration file, the daemon in this process, on free ports."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml

from local_infer.io_daemon import Daemon
from tests.local_infer.mock_upstream import MockUpstream

KEY = "np-test-key"


def write_config(folder: Path, upstreams: dict[str, MockUpstream], **more: Any) -> Path:
    """A configuration file for these upstreams; each gets the key file `NAME.key`. `more` replaces or adds sections."""
    sections: dict[str, Any] = {}
    for name, upstream in upstreams.items():
        sections[name] = {"url": upstream.url}
        if upstream.key is not None:
            key_file = folder / f"{name}.key"
            key_file.touch(mode=0o600)
            key_file.write_text(upstream.key)
            sections[name]["key_file"] = key_file.name
    config = {
        "version": 1,
        "node": "node-1",
        "state_dir": "state",
        "listen": ["127.0.0.1:0"],
        "keys": {"web": {"token_sha256": hashlib.sha256(KEY.encode()).hexdigest()}},
        "upstreams": sections,
        "routing": {"give_up": "2s", "connect": "1s", "retry_budget": "100%"},
        "access_log": {"enabled": False},
        "metrics": {"listen": ["127.0.0.1:0"]},
        **more,
    }
    file = folder / "local-infer.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@asynccontextmanager
async def running_gateway(folder: Path, upstreams: dict[str, MockUpstream], **more: Any) -> AsyncIterator[Daemon]:
    """The daemon, ready; stopped in the end without a drain."""
    daemon = await Daemon.open(write_config(folder, upstreams, **more))
    try:
        yield daemon
    finally:
        await daemon.close(0.0)


def url_of(daemon: Daemon) -> str:
    """The base URL for clients, up to and with /v1."""
    return f"http://{daemon.addresses[0]}/v1"
