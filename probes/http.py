"""HTTP/1.1 for a measuring instrument: the bytes of one GET, and the head of its response parsed with hard limits.

Only what a probe needs: the moment the first byte came is taken by the caller, the body is never read. The parser follows
RFC 9112 2.2, 4 and 5; interim (1xx) responses are skipped (RFC 9110 15.2).
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from core.errors import MessageError

MAX_HEAD_BYTES = 32 << 10
"""All response heads of one probe together. nginx and Apache send a few hundred bytes; browsers stop at 256 KiB."""

MAX_LINES = 200
_HOST_RE = re.compile(r"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]{1,255}")
_PATH_RE = re.compile(r"/[!-~]*")
_STATUS_RE = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?")
_FIELD_RE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*")

LOAD_HEADER = "endpoint-load-metrics"
MAX_LOAD_RATIO = 1000.0
_MAX_LOAD_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """The head of a final response; field names in lower case, of a repeated field the first value."""

    status: int
    fields: dict[str, str] = field(default_factory=dict)


def encode_request(host: str, path: str) -> bytes:
    """A GET whose connection closes afterwards; MessageError when `host` or `path` could smuggle in another line."""
    if not _HOST_RE.fullmatch(host):
        raise MessageError(
            f"{host[:80]!r} is not a host for an HTTP request", "set `host:` of the check to a host name"
        )
    if not _PATH_RE.fullmatch(path):
        raise MessageError(
            f"{path[:80]!r} is not a path for an HTTP request", "it must start with / and have no spaces"
        )
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: nearpath-probe\r\nAccept: */*\r\n"
        "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
    ).encode("ascii")


def host_names(host: str, given: str, port: int, tls: bool) -> tuple[str, str]:
    """(Host header, name for SNI and certificate) of a target.

    A `host:` written in the check is sent as it is. Otherwise the service's name less its final dot, with the port when
    it is not the scheme's own (RFC 9110 7.2).
    """
    name = (given or host).rstrip(".")
    if name.count(":") > 1 and not name.startswith("["):
        return f"[{name}]", name
    if given:
        bare = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
        return name, bare
    return (name if port == (443 if tls else 80) else f"{name}:{port}"), name


class HeadParser:
    """Fed with what comes off the connection, in any pieces, until it has the head of the final response."""

    def __init__(self) -> None:
        self._buffer = b""
        self._taken_bytes = 0

    @property
    def started(self) -> bool:
        """Whether any byte of a response has come."""
        return self._taken_bytes > 0

    def feed(self, data: bytes) -> Head | None:
        """The final response's head once it is whole, else None; MessageError when this is not an HTTP response."""
        self._taken_bytes += len(data)
        # The end of a head may straddle pieces, but what was searched before is not searched again.
        start = max(0, len(self._buffer) - 3)
        self._buffer += data
        self._refuse_other_protocols()
        while (end := _head_end(self._buffer, start)) is not None:
            start = 0
            head = _parse_head(self._buffer[: end[0]])
            self._buffer = self._buffer[end[1] :]
            if head.status >= 200 or head.status == 101:
                return head
        if self._taken_bytes > MAX_HEAD_BYTES:
            raise MessageError(f"bad response: headers over {MAX_HEAD_BYTES >> 10} KiB")
        return None

    def _refuse_other_protocols(self) -> None:
        # So that a server of another protocol (a TLS alert, an SSH banner) is told apart at once, not at the timeout.
        if not self._buffer.startswith(b"HTTP/1."[: len(self._buffer)]):
            raise MessageError("bad response: not HTTP/1")


def _head_end(data: bytes, start: int) -> tuple[int, int] | None:
    """(end of the last line, start of what follows) of the head in `data` that ends after `start`; a bare LF will do."""
    # RFC 9112 2.2: "a recipient MAY recognize a single LF as a line terminator and ignore any preceding CR."
    found = [(at, at + len(mark)) for mark in (b"\r\n\r\n", b"\n\n", b"\n\r\n") if (at := data.find(mark, start)) >= 0]
    return min(found, default=None)


def _parse_head(data: bytes) -> Head:
    lines = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    if len(lines) > MAX_LINES:
        raise MessageError(f"bad response: over {MAX_LINES} header lines")
    match = _STATUS_RE.fullmatch(lines[0])
    if match is None:
        raise MessageError("bad response: status line")
    fields: dict[str, str] = {}
    for line in lines[1:]:
        parts = _FIELD_RE.fullmatch(line)
        if parts is None:
            raise MessageError("bad response: header line")
        fields.setdefault(parts[1].decode("ascii").lower(), parts[2].decode("latin-1"))
    return Head(int(match[1]), fields)


def parse_load(value: str) -> float | None:
    """The load ratio in an ORCA `endpoint-load-metrics` header (xDS `OrcaLoadReport`), in TEXT or JSON form.

    `application_utilization` when it is given and not 0, else `cpu_utilization` (the order gRPC uses, gRFC A51); None
    when neither is there or the value is not a plausible number. A broken load report is no reason to call a probe lost.
    """
    form, _, body = value[:_MAX_LOAD_BYTES].strip().partition(" ")
    named: dict[str, object] = {}
    match form.upper():
        case "JSON":
            try:
                loaded = json.loads(body)
            except (ValueError, RecursionError):
                return None
            named = loaded if isinstance(loaded, dict) else {}
        case "TEXT":
            for part in body.split(","):
                key, _, number = part.partition("=")
                named.setdefault(key.strip(), number.strip())
        case _:
            return None
    # Protobuf's JSON form writes lowerCamelCase and reads both.
    by_application = _plausible(named.get("application_utilization", named.get("applicationUtilization")))
    by_cpu = _plausible(named.get("cpu_utilization", named.get("cpuUtilization")))
    return by_application if by_application or by_cpu is None else by_cpu


def _plausible(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= MAX_LOAD_RATIO else None
