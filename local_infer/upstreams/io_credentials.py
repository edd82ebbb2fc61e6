"""What an upstream is asked with: its API key from a file, the headers of every request, how its certificate is checked."""

from __future__ import annotations

import os
import ssl
import stat

from core.config_infer import Upstream
from core.errors import NearpathError
from core.io_log import get_logger

log = get_logger("upstreams")

_MAX_KEY_BYTES = 4096


def read_key(name: str, upstream: Upstream) -> str:
    """The upstream's API key; empty without a file. NearpathError (which never holds the key) when it cannot be read."""
    if upstream.key_file is None:
        return ""
    file = upstream.key_file
    try:
        with open(file, "rb") as stream:
            mode = os.fstat(stream.fileno()).st_mode
            data = stream.read(_MAX_KEY_BYTES + 1)
    except OSError as error:
        raise NearpathError(
            f"key_file {file} of upstream {name} cannot be read: {error.strerror}",
            "put its API key there, readable by the gateway's user only",
        ) from None
    key = data.strip()
    if not key or len(data) > _MAX_KEY_BYTES or not all(33 <= byte <= 126 for byte in key):
        raise NearpathError(f"key_file {file} of upstream {name} does not hold a key", "it must hold that one word")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        fix = "others on this host may use the key; chmod 600 it"
        log.warning("key_file_exposed", upstream=name, file=file, mode=f"{stat.S_IMODE(mode):04o}", fix=fix)
    return key.decode("ascii")


def base_headers(upstream: Upstream, key: str) -> dict[str, str]:
    """What every request to the upstream carries."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "nearpath-local-infer", **upstream.headers}
    if key:
        bearer = upstream.key_header.lower() == "authorization"
        headers[upstream.key_header] = f"Bearer {key}" if bearer else key
    return headers


def tls_context(name: str, upstream: Upstream) -> ssl.SSLContext | None:
    """How its certificate is checked; None for plain http. NearpathError when `ca_file` is no good."""
    if not upstream.url.startswith("https:"):
        return None
    try:
        return ssl.create_default_context(cafile=upstream.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise NearpathError(
            f"ca_file {upstream.ca_file} of upstream {name} cannot be used: {type(error).__name__}",
            "it must be a PEM file with certificates",
        ) from None
