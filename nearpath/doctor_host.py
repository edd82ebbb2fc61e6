"""What the host has: addresses, listening sockets and who holds them, ports of its own, the state of its clock."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyroute2 import DiagSocket, IPRoute

Protocol = Literal["UDP", "TCP"]

_TCP_LISTEN = 1 << 10
_UDP_UNCONNECTED = 1 << 7
_IFA_F_DADFAILED = 0x08
_IFA_F_TENTATIVE = 0x40


def local_addresses() -> dict[str, str]:
    """Address of this host -> what is wrong with it (empty: nothing; see ip-address(8) for the flags)."""
    found: dict[str, str] = {}
    with IPRoute() as route:
        for message in route.get_addr():
            address = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            flags = message.get_attr("IFA_FLAGS") or 0
            # An IPv6 address is not usable before duplicate address detection is through (RFC 4862 5.4).
            wrong = "another host has it too (dadfailed)" if flags & _IFA_F_DADFAILED else ""
            found[address] = wrong or ("still tentative" if flags & _IFA_F_TENTATIVE else "")
    return found


def is_local(host: str, addresses: Mapping[str, str]) -> bool:
    """Whether `host` is on this host; all of 127.0.0.0/8 is, and the wildcards."""
    address = ipaddress.ip_address(host)
    loopback = address.version == 4 and address.is_loopback and any(a.startswith("127.") for a in addresses)
    return address.is_unspecified or loopback or str(address) in addresses


@dataclass(frozen=True, slots=True)
class Holder:
    """A program with a socket on a port; pid 0 when it cannot be told (another user's, and we are not root)."""

    host: str
    port: int
    protocol: Protocol
    pid: int
    program: str

    def __str__(self) -> str:
        return f"{self.program} (pid {self.pid})" if self.pid else "a program that only root can see"


def port_holders(ports: set[int]) -> list[Holder]:
    """Everyone who listens on one of `ports`, any address (sock_diag(7)); OSError when the kernel does not tell."""
    found: list[tuple[str, int, Protocol, int]] = []
    kinds: list[tuple[Protocol, int, int]] = [
        ("UDP", socket.IPPROTO_UDP, _UDP_UNCONNECTED),
        ("TCP", socket.IPPROTO_TCP, _TCP_LISTEN),
    ]
    try:
        with DiagSocket() as diag:
            diag.bind()
            for protocol, number, states in kinds:
                # The family must be given: the library's default is AF_UNIX.
                for family in (socket.AF_INET, socket.AF_INET6):
                    for entry in diag.get_sock_stats(family=family, protocol=number, states=states):
                        if entry["idiag_sport"] in ports:
                            place = str(entry["idiag_src"]), int(entry["idiag_sport"])
                            found.append((*place, protocol, int(entry["idiag_inode"])))
    except OSError:
        raise
    except Exception as error:  # pyroute2 has its own family of errors, which are not OSErrors
        raise OSError(getattr(error, "code", 0), str(error)) from None
    owners = _socket_owners({inode for *_rest, inode in found}) if found else {}
    return [Holder(host, port, protocol, *owners.get(inode, (0, ""))) for host, port, protocol, inode in found]


def _socket_owners(inodes: set[int]) -> dict[int, tuple[int, str]]:
    """Socket inode -> (pid, program), from the open files of all processes we may look into."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[int, tuple[int, str]] = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for fd in os.scandir(process / "fd"):
                with contextlib.suppress(OSError):
                    inode = wanted.get(os.readlink(fd.path))
                    if inode is not None:
                        owners[inode] = (int(process.name), program_of(int(process.name)))
    return owners


def program_of(pid: int) -> str:
    """What a person calls the program of a process: the name of its script or executable."""
    try:
        words = [
            word for word in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0") if word
        ]
        name = Path(words[0]).name
        script = next((Path(word).name for word in words[1:] if not word.startswith("-")), "")
        return script if name.startswith("python") and script and "-c" not in words[1:2] else name
    except (OSError, IndexError):
        return "?"


def try_bind(host: str, port: int, protocol: Protocol) -> OSError | None:
    """Bind as the appliance would and let go again; the error when that fails."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "UDP" else socket.SOCK_STREAM
    try:
        with socket.socket(family, kind) as sock:
            if protocol == "TCP":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((host, port))
            if protocol == "TCP":
                sock.listen(1)
    except OSError as error:
        return error
    return None


def control_peer(path: Path, timeout_s: float = 2.0) -> tuple[int, int, int]:
    """(pid, uid, gid) of the process that answers a unix socket (unix(7), SO_PEERCRED); OSError when none does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(str(path))
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, gid = struct.unpack("3i", credentials)
    return pid, uid, gid


_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


class _Timex(ctypes.Structure):
    """struct timex of adjtimex(2), as far as it is read here; the kernel's is 208 bytes long on 64-bit machines."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 256),
    )


def clock_synchronised() -> bool | None:
    """Whether the kernel's clock is disciplined (by NTP or PTP); None when the kernel does not tell."""
    # timesyncd's own mark: in containers adjtimex may be refused.
    if Path("/run/systemd/timesync/synchronized").exists():
        return True
    timex = _Timex()
    state = ctypes.CDLL(None, use_errno=True).adjtimex(ctypes.byref(timex))
    if state < 0:
        return None
    return state != _TIME_ERROR and not timex.status & _STA_UNSYNC
