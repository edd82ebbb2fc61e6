"""Binding the sockets of one listen address, and saying clearly why it cannot be had."""

from __future__ import annotations

import errno

from core.config import split_listen
from core.errors import NearpathError


class BindError(NearpathError):
    """A listen address that cannot be had."""


def bind_error(listen: str, protocol: str, error: OSError) -> BindError:
    """The error of a failed bind, with what to do about it."""
    host, port = split_listen(listen)
    what = f"cannot listen on {listen} ({protocol})"
    look = f"see who has it: `ss -lnp 'sport = :{port}'`"
    match error.errno:
        case errno.EADDRINUSE:
            fix = f"{look}; systemd-resolved has port 53 of 127.0.0.53, so list single addresses instead of 0.0.0.0"
            return BindError(f"{what}: the port is taken", fix if port == 53 else look)
        case errno.EACCES | errno.EPERM:
            fix = "a port below 1024 needs CAP_NET_BIND_SERVICE: the unit of `nearpath install-units` has it"
            return BindError(f"{what}: not permitted", fix)
        case errno.EADDRNOTAVAIL:
            return BindError(f"{what}: no interface has {host}", "add the address (`ip addr`) or correct dns.listen")
        case errno.EAFNOSUPPORT:
            return BindError(f"{what}: this system has no such address family", "remove it from dns.listen")
        case _:
            return BindError(f"{what}: {error.strerror}", "correct dns.listen")
