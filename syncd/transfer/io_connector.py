"""What rsync runs as its remote shell: one connection to the parent, upgraded, copied to and from rsync.

    python -m syncd.transfer.io_connector [--node NAME] [--token-file FILE] [--ca FILE] URL TREE [what rsync adds]

Without the options NEARPATH_NODE, NEARPATH_TOKEN_FILE and NEARPATH_CA are taken. The token is in a file, never among the
arguments, which every user of a host can read. It runs once per batch of files, and its start is part of what a change
takes to become visible: so it is one poll loop on the standard library, and imports nothing else of ours.

NEARPATH_PURSE: a file by which all streams of a tree keep a limit together, see `io_pace`.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import socket
import ssl
import struct
import sys
import time
from contextlib import suppress

EX_USAGE = 64
EX_UNAVAILABLE = 69
EX_NOPERM = 77

CONNECT_S = 15.0
LINGER_S = 10.0
"""After rsync closed its end: for the last words of the parent's rsync."""
_BUFFER_BYTES = 256 * 1024
_MAX_HEAD_BYTES = 16 * 1024
_UPGRADE = "nearpath-rsync"  # as in wire.py, which would take longer to import than the handshake takes
PURSE = struct.Struct("=qdd")
"""Bytes a second (0: no limit), bytes that may be received now (less than none: owed), and when that was so (monotonic)."""
_GRAIN_S = 0.05
"""What is owed is paid for with pauses of about so long."""
_MAX_GRAIN_BYTES = 64 * 1024
_MAX_PAUSE_S = 1.0
"""Then it is looked again at what the limit is."""
_SETTINGS = {"--node": "NEARPATH_NODE", "--token-file": "NEARPATH_TOKEN_FILE", "--ca": "NEARPATH_CA"}


class ConnectorError(Exception):
    """The stream could not be had; `status` is the exit code of this program. rsync shows the text."""

    def __init__(self, what: str, status: int = EX_UNAVAILABLE) -> None:
        super().__init__(what)
        self.status = status


def parse_arguments(arguments: list[str]) -> tuple[dict[str, str], str, str]:
    """(settings by environment name, URL, tree); ConnectorError when they are not of the form in the module's text."""
    settings = {name: os.environ.get(name, "") for name in _SETTINGS.values()}
    rest = list(arguments)
    while rest and rest[0] in _SETTINGS and len(rest) > 1:
        settings[_SETTINGS[rest[0]]] = rest[1]
        del rest[:2]
    if len(rest) < 2 or rest[0].startswith("-"):
        raise ConnectorError("usage: python -m syncd.transfer.io_connector [options] URL TREE", EX_USAGE)
    for name in ("NEARPATH_NODE", "NEARPATH_TOKEN_FILE"):
        if not settings[name]:
            raise ConnectorError(f"{name} is not set, and its option is not given", EX_USAGE)
    return settings, rest[0], rest[1]


def split_url(url: str) -> tuple[bool, str, int, str]:
    """(whether TLS, host, port, what stands before /v1) of `https://HOST[:PORT][/PREFIX]`."""
    scheme, _, rest = url.partition("://")
    place, slash, prefix = rest.partition("/")
    host, _, port = place.rpartition(":") if not place.endswith("]") and ":" in place else (place, "", "")
    host = host.removeprefix("[").removesuffix("]")
    if scheme not in ("http", "https") or not host or not (port or "443").isdecimal() or not url.isprintable():
        raise ConnectorError(f"{url!r} is not the URL of a parent: https://HOST:PORT", EX_USAGE)
    is_tls = scheme == "https"
    return is_tls, host, int(port or (443 if is_tls else 80)), (slash + prefix).rstrip("/")


def client_tls(ca: str) -> ssl.SSLContext:
    """TLS 1.3 that trusts the certificates in the PEM file `ca` (empty: the system's); host names are checked."""
    context = ssl.create_default_context(cafile=ca or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def connect(settings: dict[str, str], url: str, tree: str) -> tuple[socket.socket, bytes]:
    """The upgraded connection, and what came behind the answer's head. ConnectorError says why there is none."""
    is_tls, host, port, prefix = split_url(url)
    try:
        with open(settings["NEARPATH_TOKEN_FILE"], encoding="ascii") as file:
            token = file.read(1024).strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConnectorError(f"the token cannot be read: {error}", EX_NOPERM) from None
    name = "".join(chr(b) if chr(b).isalnum() and b < 128 else f"%{b:02X}" for b in tree.encode())
    lines = [f"GET {prefix}/v1/trees/{name}/rsync HTTP/1.1", f"Host: {host}:{port}", f"Authorization: Bearer {token}"]
    lines += [f"X-Nearpath-Node: {settings['NEARPATH_NODE']}", "Connection: Upgrade", f"Upgrade: {_UPGRADE}"]
    if not all(line.isprintable() for line in lines):
        raise ConnectorError("the token, node or URL holds control characters", EX_USAGE)
    try:
        sock = socket.create_connection((host, port), CONNECT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if is_tls:
            sock = client_tls(settings["NEARPATH_CA"]).wrap_socket(sock, server_hostname=host)
        sock.sendall("\r\n".join([*lines, "", ""]).encode("utf-8"))
        return sock, _upgraded(sock, url, tree)
    except OSError as error:  # ssl.SSLError is one
        raise ConnectorError(f"no connection to {url}: {error}") from None


def _upgraded(sock: socket.socket, url: str, tree: str) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(4096)
        data += more
        if not more or len(data) > _MAX_HEAD_BYTES:
            raise ConnectorError(f"{url} does not answer as a parent does")
    head, _, rest = data.partition(b"\r\n\r\n")
    status = head.split(b" ", 2)[1:2]
    if status != [b"101"]:
        code = status[0].decode("ascii", "replace") if status else "?"
        rest = _body(sock, head, rest)
        said = "".join(c if c.isprintable() else " " for c in rest[:1000].decode("utf-8", "replace")).strip()
        refused = EX_NOPERM if code in ("401", "403") else EX_UNAVAILABLE
        raise ConnectorError(f"{url} refuses rsync of tree {tree!r} ({code}): {said}", refused)
    return rest


def _body(sock: socket.socket, head: bytes, data: bytes) -> bytes:
    """What a refusal says: as much as its head promises, which is why it is over; the connection stays open."""
    promised = [line[15:].strip() for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    length = int(promised[0]) if promised and promised[0].isdigit() and len(promised[0]) < 10 else 0
    while len(data) < min(length, 1000) and (more := sock.recv(1000)):
        data += more
    return data


class Purse:
    """What may be received, shared with other processes that have the same file open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def pause_s(self) -> tuple[float, int]:
        """(how long to receive nothing, how much at once then)."""
        limit, level, _ = self._read()
        if limit <= 0:
            return 0.0, 65536
        grain = max(1024, min(_MAX_GRAIN_BYTES, int(limit * _GRAIN_S)))
        return (min(_MAX_PAUSE_S, -level / limit) if level < 0 else 0.0), grain

    def spend(self, size: int) -> None:
        """So much was received."""
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            limit, level, now = self._read()
            if limit > 0:
                os.pwrite(self._fd, PURSE.pack(limit, level - size, now)[8:], 8)
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _read(self) -> tuple[int, float, float]:
        """(limit, level, now): the level has grown since it was written, but nobody saves for more than a moment."""
        data = os.pread(self._fd, PURSE.size, 0)
        if len(data) < PURSE.size:
            return 0, 0.0, 0.0
        limit, level, at_s = PURSE.unpack(data)
        now = time.monotonic()
        return limit, min(level + max(0.0, now - at_s) * limit, limit * _GRAIN_S), now


def open_purse() -> Purse | None:
    """The purse of NEARPATH_PURSE, if there is to be one."""
    file = os.environ.get("NEARPATH_PURSE")
    if not file:
        return None
    try:
        return Purse(os.open(file, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise ConnectorError(f"the limit cannot be read: {error}", EX_USAGE) from None


def copy(sock: socket.socket, first: bytes, source: int = 0, sink: int = 1, purse: Purse | None = None) -> None:
    """Copy `source` to the connection and the connection to `sink` until the parent is done, or rsync is gone.

    rsync hands over non-blocking descriptors, so nothing is written before poll says that it can be.
    """
    sock.setblocking(False)
    for fd in (source, sink):
        os.set_blocking(fd, False)
    up, down = bytearray(), bytearray(first)
    reading, receiving, want_write = True, True, False
    pause_s, at_once = 0.0, 65536
    while receiving or down:
        if purse is not None:
            pause_s, at_once = purse.pause_s()
        poll = select.poll()
        poll.register(sink, select.POLLOUT if down else 0)  # 0: told when rsync is gone, all the same
        if reading and len(up) < _BUFFER_BYTES:
            poll.register(source, select.POLLIN)
        room = receiving and len(down) < _BUFFER_BYTES and not pause_s
        events = (select.POLLIN if room else 0) | (select.POLLOUT if up or want_write else 0)
        if events:
            poll.register(sock, events)
        held = room and isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        wait_ms = math.ceil(pause_s * 1000) if pause_s else None if reading else LINGER_S * 1000
        ready = dict(poll.poll(0 if held else wait_ms))
        if not ready and not held:
            if pause_s:
                continue
            return  # rsync closed its end, and the parent has no more to say
        if ready.get(sink, 0) & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
            return
        if source in ready:
            reading = _take(source, up)
            if not reading and not up:
                _say_end(sock)
        if sink in ready and down:
            del down[: os.write(sink, down[:65536])]
        if held or sock.fileno() in ready:
            if up:
                _send(sock, up)
                if not reading and not up:
                    _say_end(sock)
            if room:
                before = len(down)
                receiving, want_write = _receive(sock, down, at_once)
                if purse is not None and len(down) > before:
                    purse.spend(len(down) - before)


def _take(source: int, up: bytearray) -> bool:
    """Read what rsync has; False at its end."""
    try:
        data = os.read(source, 65536)
    except BlockingIOError:
        return True
    up += data
    return bool(data)


def _send(sock: socket.socket, up: bytearray) -> None:
    with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
        del up[: sock.send(bytes(up[:65536]))]  # TLS wants the same bytes again after a WANT: they stay at the front


def _receive(sock: socket.socket, down: bytearray, at_once: int) -> tuple[bool, bool]:
    """(whether more may come, whether TLS wants to write first)."""
    try:
        data = sock.recv(at_once)
    except ssl.SSLWantWriteError:
        return True, True
    except (BlockingIOError, ssl.SSLWantReadError):
        return True, False
    down += data
    return bool(data), False


def _say_end(sock: socket.socket) -> None:
    """Pass on that rsync wrote its last; TLS has no half-closed connections, there the parent's rsync finds out itself."""
    if not isinstance(sock, ssl.SSLSocket):
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)


def main(arguments: list[str]) -> int:
    """The program; returns its exit status."""
    try:
        settings, url, tree = parse_arguments(arguments)
        purse = open_purse()
        sock, first = connect(settings, url, tree)
    except ConnectorError as error:
        print(f"syncd connector: {error}", file=sys.stderr)
        return error.status
    try:
        copy(sock, first, purse=purse)
    except BrokenPipeError:
        return 0  # rsync is gone: it knows why
    except OSError as error:
        print(f"syncd connector: the connection to {url} broke: {error}", file=sys.stderr)
        return EX_UNAVAILABLE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
