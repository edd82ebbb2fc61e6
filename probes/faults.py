"""Why a probe has no RTT: the mirror or the path lost it (`ProbeLost`), or this host could not make it (`LocalFault`).

The difference matters: a loss counts against the mirror, a local fault (no route, no such source address, no permission,
no free file descriptor) says nothing about it and must not be reported as one.
"""

from __future__ import annotations

import errno
from typing import NoReturn

from core.errors import NearpathError

_LOSSES = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ECONNABORTED: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "unreachable",
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTDOWN: "unreachable",
    errno.EACCES: "prohibited",
    errno.EPERM: "prohibited",
    errno.EMSGSIZE: "too big",
}
_FROM_AFAR = frozenset({errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ETIMEDOUT, errno.EHOSTDOWN})
"""Errors that a system call reports at once and that are still the other side's (a route marked unreachable, loopback)."""

_FIXES = {
    errno.ENETUNREACH: "this host has no route to it: give the host an address of this family or do not probe it",
    errno.EADDRNOTAVAIL: "the address under `source:` is not on this host, or all local ports are taken",
    errno.EAFNOSUPPORT: "this kernel has the address family switched off",
    errno.EACCES: "a local firewall or route forbids it",
    errno.EPERM: "a local firewall forbids it",
    errno.EINVAL: "the address under `source:` cannot reach it (a loopback address?)",
    errno.EMFILE: "raise LimitNOFILE of the agent's unit, or lower `concurrency`",
    errno.ENFILE: "raise fs.file-max of this host",
    errno.ENOBUFS: "this host is out of socket buffers: lower `concurrency`",
    errno.EMSGSIZE: "lower `payload_size` of the check below the MTU of this host's interface",
}


class ProbeLost(Exception):
    """The probe was made and is lost; `reason` is a short word for the report."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason[:80]


class LocalFault(NearpathError):
    """This host could not make the probe; nothing is reported about the mirror."""


def loss_reason(number: int) -> str:
    """The word for an errno that came back over the network."""
    return _LOSSES.get(number) or f"error {errno.errorcode.get(number, number)}"


def raise_local(number: int, what: str) -> NoReturn:
    """Raise for an errno that a system call gave at once: ProbeLost when it speaks of the other side, else LocalFault."""
    if number in _FROM_AFAR:
        raise ProbeLost(loss_reason(number))
    raise LocalFault(
        f"{what}: {errno.errorcode.get(number, number)}", _FIXES.get(number, "see connect(2) on this error")
    )
