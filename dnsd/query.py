"""Reading a query: header, one question, EDNS (RFC 1035 4, RFC 6891) and client subnet (RFC 7871), strictly.

dnslib's Buffer is the bounds-checked cursor. Its message classes are not used on what comes from the network: they drop
an empty last EDNS option (which is how NSID is asked for), take labels of up to 191 octets and refuse labels that are
not UTF-8, while RFC 2181 11 allows any octets. Names are read here, with the limits of RFC 1035 2.3.4.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dnslib.buffer import Buffer, BufferError

from dnsd import records
from dnsd.names import MAX_NAME_BYTES, ROOT

HEADER_BYTES = 12

NOERROR = 0
FORMERR = 1
SERVFAIL = 2
NXDOMAIN = 3
NOTIMP = 4
REFUSED = 5
YXDOMAIN = 6
NOTAUTH = 9
BADVERS = 16

MAX_RECORDS = 16
"""Records beside the question: an OPT and a TSIG are all that is of use; parsing thousands would be work for nothing."""

_OPTION_NSID = 3
_OPTION_ECS = 8
_DO = 0x8000
_ADDRESS_BITS = {1: 32, 2: 128}


class Ecs(NamedTuple):
    """A client subnet option: the address family (4, 6; 0: none given), its prefix and the prefix's octets."""

    family: int
    source_len: int
    address: int
    octets: bytes

    def echo(self, scope_len: int) -> bytes:
        """The option of the answer: family, source and address as asked, and our scope (RFC 7871 7.2.1)."""
        number = {4: 1, 6: 2, 0: 0}[self.family]
        head = struct.pack("!HHHBB", _OPTION_ECS, 4 + len(self.octets), number, self.source_len, scope_len)
        return head + self.octets


class Edns(NamedTuple):
    """What a query's OPT record says."""

    payload_bytes: int
    version: int
    dnssec_ok: bool
    nsid: bool = False
    ecs: Ecs | None = None


class Query(NamedTuple):
    """A query as far as it could be read: `fault` is the RCODE to answer with when it was not all right (else 0).

    `question` is the question section as asked (empty when it could not be read), `name` the QNAME in lower case.
    """

    ident: bytes
    bits: int
    question: bytes
    name: bytes
    qtype: int
    qclass: int
    edns: Edns | None
    fault: int


class _Malformed(Exception):
    """Something in the message is not of its form."""


def parse_query(data: bytes) -> Query:
    """Read a message of at least 12 octets with QR 0 and opcode QUERY; never raises for anything in it."""
    buffer = Buffer(data)
    _ident, bits, questions, answers, authorities, additionals = buffer.unpack("!HHHHHH")
    query = Query(data[:2], bits, b"", b"", 0, 0, None, FORMERR)
    # RFC 9619: a QUERY has one question; QDCOUNT over one MUST be FORMERR.
    if questions != 1 or answers + authorities + additionals > MAX_RECORDS:
        return query
    try:
        name = _read_name(buffer)
        qtype, qclass = buffer.unpack("!HH")
        query = query._replace(
            question=data[HEADER_BYTES : buffer.offset], name=name.lower(), qtype=qtype, qclass=qclass
        )
        signed = False
        for index in range(answers + authorities + additionals):
            owner, rtype, size_class, ttl, rdata = _read_record(buffer)
            if rtype == records.TSIG:
                signed = True
            if rtype != records.OPT:
                continue
            # RFC 6891 6.1.1: in the additional section, with the root as its owner, and not twice.
            if query.edns is not None or owner != ROOT or index < answers + authorities:
                return query
            edns = Edns(size_class, ttl >> 16 & 0xFF, bool(ttl & _DO))
            query = query._replace(edns=edns)
            if edns.version == 0:  # the options of a version we do not know may mean anything
                query = query._replace(edns=_read_options(rdata, edns))
        if buffer.remaining():
            return query
    except (BufferError, _Malformed):
        return query
    return query._replace(fault=NOTAUTH if signed else NOERROR)


def _read_name(buffer: Buffer) -> bytes:
    """The uncompressed name at the cursor: before the question there is nothing that a pointer could point to."""
    data, start = buffer.data, buffer.offset
    at = start
    while at < len(data):
        length = data[at]
        if length > 63 or at - start >= MAX_NAME_BYTES:
            break
        at += 1 + length
        if length == 0:
            if at - start > MAX_NAME_BYTES:
                break
            return bytes(buffer.get(at - start))
    raise _Malformed


def _read_record(buffer: Buffer) -> tuple[bytes, int, int, int, bytes]:
    """(owner, type, class, TTL, rdata); the owner is only told from the root, so a pointer in it is not followed."""
    data, start = buffer.data, buffer.offset
    at = start
    while at < len(data) and 0 < data[at] <= 63:
        at += 1 + data[at]
    if at >= len(data) or at - start >= MAX_NAME_BYTES:
        raise _Malformed
    if data[at] >= 0xC0:
        at += 1
    elif data[at]:
        raise _Malformed
    owner = bytes(buffer.get(at + 1 - start))
    rtype, rclass, ttl, length = buffer.unpack("!HHIH")
    return owner, rtype, rclass, ttl, bytes(buffer.get(length))


def _read_options(rdata: bytes, edns: Edns) -> Edns:
    buffer = Buffer(rdata)
    while buffer.remaining():
        code, length = buffer.unpack("!HH")
        body = buffer.get(length)
        if code == _OPTION_NSID:
            edns = edns._replace(nsid=True)  # RFC 5001 2.1: what a client puts in it is ignored
        elif code == _OPTION_ECS:
            if edns.ecs is not None:
                raise _Malformed
            edns = edns._replace(ecs=_read_ecs(body))
    return edns


def _read_ecs(body: bytes) -> Ecs:
    """A client subnet option of a query. RFC 7871 7.2.1: one that is not of its form MUST be answered with FORMERR."""
    if len(body) < 4:
        raise _Malformed
    number, source_len, scope_len, octets = body[0] << 8 | body[1], body[2], body[3], body[4:]
    # RFC 7871 6: the scope MUST be 0 in queries. Family 0 with nothing in it is what some resolvers send to opt out.
    if scope_len or (number not in _ADDRESS_BITS and (number or source_len)):
        raise _Malformed
    bits = _ADDRESS_BITS.get(number, 0)
    # RFC 7871 6: the address has the octets that the source prefix length needs, and no bit set after it.
    if source_len > bits or len(octets) != (source_len + 7) // 8:
        raise _Malformed
    if source_len % 8 and octets[-1] & (0xFF >> source_len % 8):
        raise _Malformed
    address = int.from_bytes(octets, "big") << (bits - 8 * len(octets))
    return Ecs({1: 4, 2: 6}.get(number, 0), source_len, address, octets)
