"""From a question's shape to the octets of its answer.

A `Shape` holds everything that an answer depends on but its ID, the RD bit, the case of the question's name and the
subnet to echo. So the template of a shape can be kept and used for every query of that shape; `assemble` fills in the
rest. There is no other way from a query to an answer, so a remembered answer cannot differ from a computed one.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from dnslib.buffer import Buffer

from dnsd import query, records
from dnsd.image import Image
from dnsd.query import HEADER_BYTES
from dnsd.records import RRset
from dnsd.resolve import Resolution, resolve
from policy.table import Quality

MAX_EDE_TEXT_BYTES = 64

MAX_MEMO = 20_000
"""Templates kept per image, some 600 octets each; when it is full it starts afresh."""

_QR, _AA, _TC = 0x8000, 0x0400, 0x0200
_OPTION_NSID = 3
_OPTION_EDE = 15
_EDE_OTHER, _EDE_STALE, _EDE_NOT_AUTHORITATIVE = 0, 3, 20
_MAX_POINTER = 0x3FFF

MAX_POINTER_HOPS = 4
"""Pointers from pointer to pointer in one name: some decoders give up on chains, and longer ones save next to nothing."""

NO_QUALITY = -1


class Shape(NamedTuple):
    """What an answer depends on. `ecs_octets` is the count of address octets to echo, -1 without the option."""

    name: bytes
    qtype: int
    limit_bytes: int
    edns: bool
    dnssec_ok: bool
    nsid: bool
    ecs_octets: int
    region_id: int


class Template(NamedTuple):
    """An answer without its ID, RD, question and subnet: it ends where the echoed subnet is put."""

    bits: int
    counts: bytes
    body: bytes
    rcode: int
    tailored: bool
    quality: int
    keep: bool


def template_for(image: Image, shape: Shape) -> Template:
    """The template of `shape`, remembered where a name of the zones is asked for (so that random names cost no memory)."""
    template = image.memo.get(shape)
    if template is None:
        template = make_template(image, shape)
        if template.keep:
            if len(image.memo) >= MAX_MEMO:
                image.memo.clear()
            image.memo[shape] = template
    return template


def make_template(image: Image, shape: Shape) -> Template:
    """Resolve and write one answer; a function of its arguments only."""
    found = resolve(image, shape.name, shape.qtype, shape.region_id)
    if found is None:
        opt = _opt_record(image, shape, 0, _ede(_EDE_NOT_AUTHORITATIVE, "")) if shape.edns else b""
        counts = struct.pack("!4H", 1, 0, 0, 1 if opt else 0)
        return Template(_QR | query.REFUSED, counts, opt, query.REFUSED, False, NO_QUALITY, False)
    opt = _opt_record(image, shape, found.rcode, _row_ede(found)) if shape.edns else b""
    writer = _Writer(shape.name, shape.limit_bytes - len(opt) - _ecs_bytes(shape))
    counts, truncated = _write_sections(writer, found, bool(opt))
    bits = _QR | found.rcode | (_AA if found.authoritative else 0) | (_TC if truncated else 0)
    quality = int(found.row.quality) if found.row is not None else NO_QUALITY
    body = writer.body() + opt
    return Template(bits, counts, body, found.rcode, found.row is not None, quality, found.at_node)


def _write_sections(writer: _Writer, found: Resolution, opt: bool) -> tuple[bytes, bool]:
    """Write all that fits, whole RRsets only; (counts, whether a section that must be whole is not: RFC 2181 9)."""
    counts = [0, 0, 0]
    truncated = False
    for section, owned, required in (
        (0, found.answers, True),
        (1, found.authority, True),
        (2, found.glue, True),
        (2, found.additional, False),
    ):
        for owner, rrset in owned:
            if truncated:
                break
            if writer.add(owner, rrset):
                counts[section] += len(rrset.rdatas)
            elif required:
                truncated = True
    return struct.pack("!4H", 1, counts[0], counts[1], counts[2] + opt), truncated


class _Writer:
    """Puts RRsets after a question, with compression, up to a limit."""

    def __init__(self, question_name: bytes, limit_bytes: int) -> None:
        self._buffer = Buffer()
        self._start = HEADER_BYTES + len(question_name) + 4
        self._limit = limit_bytes - self._start
        self._places: dict[bytes, tuple[int, int]] = {}
        """Suffix in lower case -> (offset, pointers met when it is read from there)."""
        at = 0
        while question_name[at]:
            self._places[question_name[at:]] = (HEADER_BYTES + at, 0)
            at += 1 + question_name[at]

    def body(self) -> bytes:
        """Everything after the question."""
        return bytes(self._buffer.data)

    def add(self, owner: bytes, rrset: RRset) -> bool:
        """Append an RRset if it fits as a whole."""
        buffer = self._buffer
        mark = len(buffer.data)
        places = self._places
        self._places = dict(places)
        for rdata in rrset.rdatas:
            self._name(owner)
            buffer.append(struct.pack("!HHIH", rrset.rtype, records.IN, rrset.ttl_s, 0))
            start = len(buffer.data)
            for index, part in enumerate(rdata):
                if index % 2:
                    self._name(part)
                else:
                    buffer.append(part)
            buffer.update(start - 2, "!H", len(buffer.data) - start)
            if len(buffer.data) > self._limit:
                del buffer.data[mark:]
                buffer.offset = mark
                self._places = places
                return False
        return True

    def _name(self, name: bytes) -> None:
        """A name, its longest known suffix as a pointer. Names are compared without case (RFC 1035 4.1.4)."""
        lower = name.lower()
        here = self._start + len(self._buffer.data)
        at, hops, tail = 0, 0, b"\0"
        fresh: list[int] = []
        while lower[at]:
            place = self._places.get(lower[at:])
            if place is not None:
                hops, tail = place[1] + 1, struct.pack("!H", 0xC000 | place[0])
                break
            fresh.append(at)
            at += 1 + lower[at]
        self._buffer.append(name[:at] + tail)
        if hops < MAX_POINTER_HOPS:
            for start in fresh:
                if here + start <= _MAX_POINTER:
                    self._places[lower[start:]] = (here + start, hops)


def _ecs_bytes(shape: Shape) -> int:
    return 8 + shape.ecs_octets if shape.ecs_octets >= 0 else 0


def _row_ede(found: Resolution) -> bytes:
    """RFC 8914: what a steered answer says about itself when it does not rest on fresh measurements."""
    if found.row is None or not found.row.note:
        return b""
    return _ede(_EDE_STALE if found.row.quality == Quality.STALE else _EDE_OTHER, found.row.note)


def _ede(code: int, text: str) -> bytes:
    cut = text.encode()[:MAX_EDE_TEXT_BYTES].decode(errors="ignore").encode()
    return struct.pack("!HHH", _OPTION_EDE, 2 + len(cut), code) + cut


def _opt_record(image: Image, shape: Shape, rcode: int, ede: bytes) -> bytes:
    """The OPT record (RFC 6891 6.1.2); its length counts the subnet that `assemble` puts behind it."""
    options = ede
    if shape.nsid and image.options.nsid:
        options += struct.pack("!HH", _OPTION_NSID, len(image.options.nsid)) + image.options.nsid
    ttl = (rcode >> 4) << 24 | (0x8000 if shape.dnssec_ok else 0)
    length = len(options) + _ecs_bytes(shape)
    return struct.pack("!BHHIH", 0, records.OPT, image.options.max_udp_size_bytes, ttl, length) + options
