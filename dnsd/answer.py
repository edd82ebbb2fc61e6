"""From a query's octets to the answer's: the whole protocol of the python plane, without IO.

Every answer is a function of (image, query, client, transport). The order of the checks is the specification:

| what | answer |
|---|---|
| under 12 octets, or a response (QR) | silence: RFC 1035 has nothing to answer to, and a loop must not start |
| opcode not QUERY | NOTIMP |
| not one question, malformed, two OPTs, malformed client subnet | FORMERR |
| EDNS version over 0 | BADVERS (RFC 6891 6.1.3) |
| signed with TSIG | NOTAUTH: there are no keys (RFC 8945 5.2.1) |
| class not IN; AXFR, IXFR, TKEY | REFUSED |
| OPT or TSIG as QTYPE | FORMERR |
| type 0, MAILA, MAILB | NOTIMP |
| name in none of our zones | REFUSED, EDE 20 |
| anything else | `dnsd.resolve` |
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from dnsd import query, records
from dnsd.image import Image
from dnsd.query import HEADER_BYTES, Ecs, Edns, Query, parse_query
from dnsd.template import NO_QUALITY, Shape, Template, template_for

MAX_TCP_BYTES = 65_535
MIN_UDP_BYTES = 512
"""RFC 6891 6.2.3: payload sizes under 512 MUST be treated as 512, which is also the limit without EDNS."""

_QR = 0x8000
_OPCODE_AND_RD = 0x7900
_RD = 0x0100


class Transport(IntEnum):
    """How a query came."""

    UDP = 0
    TCP = 1


class ClientAddress(NamedTuple):
    """The source address of a query: family 4 or 6, and the address as an integer."""

    family: int
    value: int


class Reply(NamedTuple):
    """An answer and what is counted of it. `quality` is of the steered row answered, -1 when none was."""

    wire: bytes
    rcode: int
    quality: int = NO_QUALITY
    ecs: bool = False
    truncated: bool = False


def answer(image: Image, data: bytes, client: ClientAddress, transport: Transport) -> bytes | None:
    """The octets to send back for the query `data`, or None to stay silent; never raises for anything in `data`."""
    reply = respond(image, data, client, transport)
    return reply.wire if reply is not None else None


def respond(image: Image, data: bytes, client: ClientAddress, transport: Transport) -> Reply | None:
    """`answer` with what the metrics count."""
    if len(data) < HEADER_BYTES or data[2] & 0x80:
        return None
    if data[2] & 0x78:
        bits = _QR | (data[2] << 8 & _OPCODE_AND_RD) | query.NOTIMP
        return Reply(data[:2] + struct.pack("!5H", bits, 0, 0, 0, 0), query.NOTIMP)
    asked = parse_query(data)
    rcode = asked.fault or _refusal(asked)
    if rcode:
        return _bare(image, asked, rcode)
    edns = asked.edns
    region_id, scope_len = _locate(image, edns.ecs if edns else None, client)
    template = template_for(image, _shape(image, asked, region_id, transport))
    return _assemble(asked, template, scope_len)


def failure(image: Image, data: bytes) -> bytes | None:
    """SERVFAIL for a query that broke the server, so that the resolver asks another one at once; None: stay silent."""
    if len(data) < HEADER_BYTES or data[2] & 0x80:
        return None
    return _bare(image, parse_query(data), query.SERVFAIL).wire


def _refusal(asked: Query) -> int:
    """The RCODE of what is well-formed and still not looked up; 0: look it up."""
    if asked.edns is not None and asked.edns.version > 0:
        return query.BADVERS
    if asked.qclass != records.IN:
        return query.REFUSED
    return _REFUSED_TYPES.get(asked.qtype, query.NOERROR)


_REFUSED_TYPES = {
    0: query.NOTIMP,  # reserved (RFC 6895 3.1)
    records.OPT: query.FORMERR,
    records.TSIG: query.FORMERR,
    records.MAILA: query.NOTIMP,
    records.MAILB: query.NOTIMP,
    records.AXFR: query.REFUSED,
    records.IXFR: query.REFUSED,
    records.TKEY: query.REFUSED,
}


def _locate(image: Image, ecs: Ecs | None, client: ClientAddress) -> tuple[int, int]:
    """(region, scope of a tailored answer) of the client: by its subnet when it gave one, else by who asks.

    RFC 7871 7.1.2: source length 0 is the client's wish not to be told apart, so the scope is 0 then.
    """
    if image.table is None:
        return 0, 0
    if ecs is not None and ecs.source_len:
        return image.table.regions.lookup(ecs.family, ecs.address)
    return image.table.regions.lookup(client.family, client.value)[0], 0


def _shape(image: Image, asked: Query, region_id: int, transport: Transport) -> Shape:
    edns = asked.edns
    limit = MAX_TCP_BYTES
    if transport is Transport.UDP:
        limit = MIN_UDP_BYTES
        if edns is not None:
            limit = max(limit, min(edns.payload_bytes, image.options.max_udp_size_bytes))
    if edns is None:
        return Shape(asked.name, asked.qtype, limit, False, False, False, -1, region_id)
    ecs_octets = len(edns.ecs.octets) if edns.ecs is not None else -1
    return Shape(asked.name, asked.qtype, limit, True, edns.dnssec_ok, edns.nsid, ecs_octets, region_id)


def _assemble(asked: Query, template: Template, scope_len: int) -> Reply:
    ecs = asked.edns.ecs if asked.edns is not None else None
    # RFC 7871 7.2.1: an answer that is the same for everyone has scope 0; so has the answer to a client that opted out.
    echo = b"" if ecs is None else ecs.echo(scope_len if template.tailored and ecs.source_len else 0)
    bits = struct.pack("!H", template.bits | asked.bits & _RD)
    wire = b"".join((asked.ident, bits, template.counts, asked.question, template.body, echo))
    return Reply(wire, template.rcode, template.quality, ecs is not None, bool(template.bits & 0x0200))


def _bare(image: Image, asked: Query, rcode: int) -> Reply:
    """An answer without records: the question if it could be read, and an OPT if one was (RFC 6891 7)."""
    opt = _bare_opt(image, asked.edns, rcode) if asked.edns is not None else b""
    bits = _QR | asked.bits & _RD | rcode & 0xF
    head = struct.pack("!5H", bits, 1 if asked.question else 0, 0, 0, 1 if opt else 0)
    return Reply(asked.ident + head + asked.question + opt, rcode)


def _bare_opt(image: Image, edns: Edns, rcode: int) -> bytes:
    ttl = (rcode >> 4) << 24 | (0x8000 if edns.dnssec_ok else 0)
    return struct.pack("!BHHIH", 0, records.OPT, image.options.max_udp_size_bytes, ttl, 0)
