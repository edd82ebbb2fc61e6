"""Calls to the appliance: one client with the agent's token, limits on every answer, and errors that say what to do."""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from urllib.parse import urlsplit

import aiohttp

from core.config import AgentConfig
from core.errors import MessageError, NearpathError
from core.io_log import get_logger
from core.io_token import read_token
from core.messages import ReportAck, SampleReport, TargetList, decode, encode
from probes.report import parse_retry_after

TOKEN_COMMAND = "nearpath agent-token"

CALL_TIMEOUT_S = 20.0
"""A whole call, connect to last byte; a slow or hanging appliance holds the agent no longer than this."""

_MAX_ACK_BYTES = 64 << 10
_MAX_TARGETS_BYTES = 48 << 20
"""100,000 targets, the most a list may have, take some 30 MB."""

_log = get_logger("appliance")


class CallFailed(NearpathError):
    """A call that did not work; `reason` is one word for metrics, `retry_after_s` what the appliance asked for."""

    def __init__(self, reason: str, what: str, fix: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(what, fix)
        self.reason = reason
        self.retry_after_s = retry_after_s


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    retry_after_s: float | None


def find_token_exposure(file: str) -> str | None:
    """What is wrong with the rights of the token file, if anything."""
    try:
        mode = os.stat(file).st_mode
    except OSError:
        return None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return f"{file} has mode {stat.S_IMODE(mode):04o}: others on this host may use the token; chmod 600 it"
    return None


def make_tls_context(config: AgentConfig) -> ssl.SSLContext | None:
    """How the appliance's certificate is checked; None for plain http. NearpathError when `ca_file` is no good."""
    if urlsplit(config.appliance).scheme != "https":
        return None
    try:
        return ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise NearpathError(
            f"ca_file {config.ca_file} cannot be used: {error}", "it must be a PEM file with certificates"
        ) from None


class ApplianceClient:
    """The appliance as this agent's configuration names it. Make it on the event loop; `close` it in the end."""

    def __init__(self, config: AgentConfig, *, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._config = config
        self._base = config.appliance.rstrip("/")
        context = make_tls_context(config)
        # Answers are taken as they come: nothing is inflated, no redirect gets to see the token.
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            connector=aiohttp.TCPConnector(limit=4, ssl=context if context is not None else True),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "User-Agent": "nearpath-agent", "X-Nearpath-Agent": config.name},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def fetch_targets(self, etag: str) -> TargetList | None:
        """The list of targets; None when it is still the one of `etag` (empty: none is known). Raises CallFailed."""
        headers = {"If-None-Match": f'"{etag}"'} if etag else {}
        answer = await self._call("GET", "/v1/targets", None, headers, _MAX_TARGETS_BYTES)
        if answer.status == 304 and etag:
            return None
        _refuse(answer, (200,))
        try:
            return decode(TargetList, answer.body)
        except MessageError as error:
            raise CallFailed("garbage", f"the appliance's targets are {error}", _SAME_VERSION) from None

    async def deliver(self, report: SampleReport) -> int:
        """Post a report; the sequence up to which all is stored. Raises CallFailed."""
        headers = {"Content-Type": "application/json"}
        answer = await self._call("POST", "/v1/samples", encode(report), headers, _MAX_ACK_BYTES)
        _refuse(answer, (200,))
        try:
            return decode(ReportAck, answer.body).acked
        except MessageError as error:
            raise CallFailed("garbage", f"the appliance's answer is {error}", _SAME_VERSION) from None

    async def _call(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str], most_bytes: int
    ) -> _Answer:
        url = self._base + path
        try:
            token = read_token(self._config.token_file, TOKEN_COMMAND)
        except NearpathError as error:
            raise CallFailed("token", error.what, error.fix) from None
        headers = {**headers, "Authorization": f"Bearer {token}"}
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                data = await _read_body(response, most_bytes, url)
                retry_after_s = parse_retry_after(response.headers.get("Retry-After"))
                return _Answer(response.status, data, retry_after_s)
        except TimeoutError:
            raise CallFailed("timeout", f"{url} gave no whole answer in time", "is the appliance overloaded?") from None
        except (aiohttp.ClientSSLError, aiohttp.ClientConnectorCertificateError) as error:
            raise CallFailed(
                "tls",
                f"TLS with {url} failed: {error}",
                "is `ca_file` right, and is the URL's host in the certificate?",
            ) from None
        except aiohttp.ClientConnectionError as error:
            raise CallFailed(
                "network", f"{url} cannot be reached: {error}", "is the appliance up, and is `appliance:` right?"
            ) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise CallFailed(
                "garbage", f"{url} does not answer in HTTP: {str(error)[:200]!r}", "is `appliance:` right?"
            ) from None


_SAME_VERSION = "are agent and appliance of the same version, and is `appliance:` right?"


async def _read_body(response: aiohttp.ClientResponse, most_bytes: int, url: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    async for piece in response.content.iter_chunked(64 << 10):
        size += len(piece)
        if size > most_bytes:
            response.close()
            raise CallFailed("garbage", f"the answer of {url} is over {most_bytes >> 10} KiB", _SAME_VERSION)
        pieces.append(piece)
    return b"".join(pieces)


def _refuse(answer: _Answer, good: tuple[int, ...]) -> None:
    """Raise CallFailed for every status but those in `good`."""
    status = answer.status
    if status in good:
        return
    if status in (401, 403):
        raise CallFailed(
            "auth",
            f"the appliance refuses this agent's token (status {status})",
            "its `agents:` section must have this agent's `name` with the hash of this token; samples are kept meanwhile",
        )
    if status in (400, 413, 422):
        raise CallFailed("content", f"the appliance refuses the report (status {status})", _SAME_VERSION)
    if status in (429, 503):
        raise CallFailed("busy", f"the appliance is busy (status {status})", "", answer.retry_after_s)
    raise CallFailed("server", f"the appliance answers with status {status}", "see the appliance's log")
