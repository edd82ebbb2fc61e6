"""One DNS question to one server, answered, or failed in words, within a bounded time."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.rrset

from core.config import split_listen
from core.errors import NearpathError

TIMEOUT_S = 2.0
WORKERS = 32

T = TypeVar("T")
R = TypeVar("R")


class Server(NamedTuple):
    """Where a name server is asked."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def dig(self) -> str:
        """The arguments with which dig asks it."""
        return f"@{self.host}" + (f" -p {self.port}" if self.port != 53 else "")


@dataclass(frozen=True, slots=True)
class Heard:
    """What came back: a message, or `fault` in words (`silent`: nothing came at all)."""

    message: dns.message.Message | None
    fault: str = ""
    silent: bool = False
    took_s: float = 0.0

    @property
    def size_bytes(self) -> int:
        """Length of the answer on the wire."""
        return len(self.message.wire or b"") if self.message is not None else 0

    @property
    def rcode(self) -> str:
        """RCODE as text, or the fault."""
        return dns.rcode.to_text(self.message.rcode()) if self.message is not None else self.fault

    @property
    def authoritative(self) -> bool:
        """Whether the AA bit is set."""
        return self.message is not None and bool(self.message.flags & dns.flags.AA)

    @property
    def truncated(self) -> bool:
        """Whether the TC bit is set."""
        return self.message is not None and bool(self.message.flags & dns.flags.TC)

    def answer(self, name: dns.name.Name, rtype: str) -> dns.rrset.RRset | None:
        """The RRset of the answer section, None when there is none."""
        return find(self.message.answer, name, rtype) if self.message is not None else None

    def option(self, kind: type[T]) -> T | None:
        """The first EDNS option of a class of dns.edns."""
        options = self.message.options if self.message is not None else ()
        return next((option for option in options if isinstance(option, kind)), None)


def find(section: Iterable[dns.rrset.RRset], name: dns.name.Name, rtype: str) -> dns.rrset.RRset | None:
    """The RRset of `name` and type in a section."""
    wanted = dns.rdatatype.from_text(rtype)
    return next((rrset for rrset in section if rrset.name == name and rrset.rdtype == wanted), None)


def ask(
    server: Server,
    name: dns.name.Name,
    rtype: str,
    *,
    tcp: bool = False,
    edns: int | None = 0,
    payload_bytes: int = 1232,
    options: Sequence[dns.edns.Option] = (),
    recurse: bool = False,
    tries: int = 2,
    timeout_s: float = TIMEOUT_S,
) -> Heard:
    """Ask `server` and wait at most `tries * timeout_s`; never raises for what the network does."""
    heard = Heard(None, "no answer", True)
    for _try in range(1 if tcp else tries):
        query = dns.message.make_query(
            name,
            rtype,
            use_edns=edns if edns is not None else False,
            payload=payload_bytes if edns is not None else None,
            options=list(options) if edns is not None else None,
            flags=dns.flags.RD if recurse else 0,
        )
        heard = _exchange(query, server, tcp, timeout_s)
        if not heard.silent:
            break
    return heard


def _exchange(query: dns.message.Message, server: Server, tcp: bool, timeout_s: float) -> Heard:
    started_s = time.monotonic()
    try:
        exchange = dns.query.tcp if tcp else dns.query.udp
        message = exchange(query, server.host, timeout_s, server.port)
    except dns.exception.Timeout:
        return Heard(None, f"no answer within {timeout_s:g} s", True)
    except dns.query.UnexpectedSource as error:
        return Heard(None, f"the answer came from another address ({error})")
    except (dns.exception.DNSException, ValueError) as error:
        return Heard(None, f"what came back is no answer ({type(error).__name__})")
    except EOFError:
        return Heard(None, "the connection was closed without an answer")
    except OSError as error:
        return Heard(None, (error.strerror or str(error)).lower(), True)
    return Heard(message, took_s=time.monotonic() - started_s)


def at_once(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """`work` for all items in parallel, results in order."""
    todo = list(items)
    if not todo:
        return []
    with ThreadPoolExecutor(min(WORKERS, len(todo)), "doctor") as pool:
        return list(pool.map(work, todo))


def parse_server(text: str, port: int = 53) -> Server:
    """A server from `ADDR`, `ADDR:PORT` or `[ADDR]:PORT`; NearpathError when it is none of these."""
    try:
        return Server(str(ipaddress.ip_address(text.strip("[]"))), port)
    except ValueError:
        pass
    try:
        return Server(*split_listen(text))
    except ValueError:
        raise NearpathError(
            f"{text!r} is not a server's address", "write 192.0.2.1, 192.0.2.1:5353 or [2001:db8::1]:53"
        ) from None
