"""`local-infer check`: what of a configuration would not work on this host, tried without serving anything."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from core.config import split_listen
from core.config_infer import InferConfig, Routing, Upstream
from core.errors import NearpathError
from core.io_http import bind_tcp, server_tls
from core.io_state import find_holder
from local_infer.io_check_cache import Finding, check_cache
from local_infer.retrieval.io_build import read_index
from local_infer.telemetry.io_otlp import check_extra, read_headers
from local_infer.upstreams.io_attempt import Broken
from local_infer.upstreams.io_probing import open_link

_COLLECTOR_S = 5.0
_LISTEN = "0A"
"""TCP_LISTEN in /proc/net/tcp."""


async def check_all(config: InferConfig) -> int:
    """Print one line for each thing looked at; the exit status: 1 when one is bad."""
    findings = [*_files(config), *_addresses(config), *await check_cache(config)]
    findings += [*await _upstreams(config), *await _collector(config)]
    for good, name, text in findings:
        print(f"{'ok  ' if good else 'FAIL'} {name}: {text}")
    return 0 if all(good for good, _name, _text in findings) else 1


def _files(config: InferConfig) -> Iterator[Finding]:
    folder = Path(config.state_dir)
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    writable = nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
    done = "written" if nearest == folder else f"made in {nearest}"
    fix = "" if writable else ": give it to this user; the unit of `nearpath install-units` makes it"
    yield writable, "state_dir", f"{folder} {'can' if writable else 'cannot'} be {done}{fix}"
    for name, file in _secrets(config):
        yield _secret(name, file)
    if config.tls is not None:
        try:
            server_tls(config.tls.cert, config.tls.key)
            yield True, "tls", config.tls.cert
        except NearpathError as error:
            yield False, "tls", str(error)
    yield from _models(config)


def _models(config: InferConfig) -> Iterator[Finding]:
    if config.retrieval is not None:
        try:
            about = read_index(Path(config.retrieval.index))
            yield True, "retrieval", f"{about.questions} questions in {config.retrieval.index}"
        except NearpathError as error:
            yield False, "retrieval", str(error)
    if config.generation is not None:
        file = Path(config.generation.model) / "genai_config.json"
        yield file.is_file(), "generation", str(file) if file.is_file() else f"{file} is missing: is it a model folder?"


def _secrets(config: InferConfig) -> Iterator[tuple[str, str]]:
    for name, upstream in config.upstreams.items():
        if upstream.key_file is not None:
            yield f"key of upstream {name}", upstream.key_file
    for what in ("redis_password_file", "neighbour_key_file"):
        if (file := getattr(config.cache, what)) is not None:
            yield f"cache.{what}", file
    if config.tls is not None:
        yield "tls.key", config.tls.key
    if config.otlp is not None and config.otlp.headers_file is not None:
        yield "otlp.headers_file", config.otlp.headers_file


def _secret(name: str, file: str) -> Finding:
    try:
        mode = os.stat(file).st_mode
        with open(file, "rb") as stream:
            empty = not stream.read(1)
    except OSError as error:
        return False, name, f"{file} cannot be read: {error.strerror}"
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return False, name, f"{file} has mode {stat.S_IMODE(mode):04o}: others on this host may use it; chmod 600 it"
    return not empty, name, f"{file} is empty" if empty else file


def _addresses(config: InferConfig) -> Iterator[Finding]:
    for listen in [*config.listen, *config.metrics.listen]:
        try:
            bind_tcp(listen).close()
            yield True, "listen", f"{listen} is free"
        except NearpathError as error:
            pid = _running(config)
            if pid and _listens(pid, listen):
                yield True, "listen", f"{listen} is in use by the gateway that runs (pid {pid})"
            else:
                yield False, "listen", str(error)


def _running(config: InferConfig) -> int:
    """The process of the gateway that runs on this state_dir; 0: none does."""
    try:
        return find_holder(Path(config.state_dir))
    except OSError:
        return 0


def _listens(pid: int, listen: str) -> bool:
    """Whether the process listens on exactly this address. Where its files cannot be seen, it is taken to be the one."""
    host, port = split_listen(listen)
    family, table = (socket.AF_INET6, "tcp6") if ":" in host else (socket.AF_INET, "tcp")
    packed = socket.inet_pton(family, host)
    # The kernel prints words of four bytes, as numbers of this machine.
    words = (int.from_bytes(packed[at : at + 4], sys.byteorder) for at in range(0, len(packed), 4))
    wanted = "".join(f"{word:08X}" for word in words) + f":{port:04X}"
    lines = [line.split() for line in Path(f"/proc/self/net/{table}").read_text().splitlines()]
    sockets = {f"socket:[{line[9]}]" for line in lines if line[1] == wanted and line[3] == _LISTEN}
    try:
        return any(_link(file) in sockets for file in Path(f"/proc/{pid}/fd").iterdir())
    except PermissionError:
        return bool(sockets)
    except FileNotFoundError:
        return False


def _link(file: Path) -> str:
    """Where it points; empty when it is gone by now."""
    try:
        return os.readlink(file)
    except FileNotFoundError:
        return ""


async def _upstreams(config: InferConfig) -> list[Finding]:
    asked = [_upstream(name, one, config.routing) for name, one in config.upstreams.items()]
    return list(await asyncio.gather(*asked))


async def _upstream(name: str, one: Upstream, routing: Routing) -> Finding:
    """Ask the upstream's probe path as the gateway will, with its key."""
    what = f"upstream {name}"
    try:
        link = open_link(name, one, routing, None)
    except NearpathError as error:
        return False, what, str(error)
    try:
        async with asyncio.timeout(routing.connect + routing.give_up):
            reply = await link.transport.send(
                "GET", one.probe, b"", "application/json", "check", routing.connect, routing.give_up
            )
            status = reply.status
            await reply.close()
    except TimeoutError:
        return False, what, f"{one.url}{one.probe} does not answer in time"
    except Broken as broken:
        return False, what, f"{one.url}{one.probe} cannot be asked: {broken.reason}"
    finally:
        await link.transport.close()
    if status in (401, 403):
        return False, what, f"{one.url}{one.probe} answers {status}: it does not take the key in key_file"
    # Others (404, say) are no fault of the API itself: not all have the path.
    return status < 500, what, f"{one.url}{one.probe} answers {status}"


async def _collector(config: InferConfig) -> list[Finding]:
    """Whether OpenTelemetry is here, and its collector takes what we tell: an empty request is a good one."""
    otlp = config.otlp
    if otlp is None:
        return []
    url = f"{otlp.endpoint.rstrip('/')}/v1/traces"
    try:
        check_extra()
        headers = read_headers(otlp.headers_file) if otlp.headers_file else {}
        tls = ssl.create_default_context(cafile=otlp.ca_file)
    except (NearpathError, OSError) as error:
        return [(False, "otlp", str(error))]
    headers["Content-Type"] = "application/x-protobuf"
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_COLLECTOR_S)) as session,
            session.post(url, data=b"", headers=headers, ssl=tls, allow_redirects=False) as response,
        ):
            return [(response.status < 300, "otlp", f"{url} answers {response.status}")]
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return [(False, "otlp", f"{url} cannot be asked ({type(error).__name__}): answers go on without it")]
