"""Resource records made ready for answers: rdata in wire form, with the names in it that may be compressed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

A = 1
NS = 2
CNAME = 5
SOA = 6
PTR = 12
HINFO = 13
MX = 15
AAAA = 28
SRV = 33
DNAME = 39
OPT = 41
DS = 43
RRSIG = 46
DNSKEY = 48
TKEY = 249
TSIG = 250
IXFR = 251
AXFR = 252
MAILB = 253
MAILA = 254
ANY = 255

IN = 1

Rdata = tuple[bytes, ...]
"""One record's data: octets and compressible names in turn, octets first. Only types of RFC 1035 have such names
(RFC 3597 section 4); all other data is one run of octets."""


@dataclass(frozen=True, slots=True)
class RRset:
    """All records of one owner name and type.

    `targets` are the names, in lower case, that an answer follows (CNAME, DNAME) or adds addresses for (NS, MX, SRV).
    """

    rtype: int
    ttl_s: int
    rdatas: tuple[Rdata, ...]
    targets: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Node:
    """What stands at one name. Without rrsets it is an empty non-terminal (RFC 4592 2.2.2).

    `cut`: a delegation starts here. `steered`: key of the service whose addresses are answered for A and AAAA.
    """

    rrsets: Mapping[int, RRset] = field(default_factory=lambda: MappingProxyType({}))
    cut: bool = False
    steered: str = ""
