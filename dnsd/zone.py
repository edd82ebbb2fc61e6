"""A zone from master file text (RFC 1035 5), parsed by dnspython, checked, and made ready for answers.

Everything that would be answered wrongly is refused here, so that the answering code need not look for it: names below a
delegation are kept apart (glue), names below a DNAME are refused, empty non-terminals are made explicit. After that, the
closest encloser of any name is the first of its ancestors that is a node.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import dns.exception
import dns.name
import dns.node
import dns.rdata
import dns.rdataclass
import dns.rdataset
import dns.rdatatype
import dns.tokenizer
import dns.transaction
import dns.zonefile

from core.errors import NearpathError
from dnsd import names, records
from dnsd.records import Node, Rdata, RRset

MAX_ZONE_BYTES = 64 << 20
"""Master file text; a million names. A larger one would take minutes to parse in Python."""

MAX_GENERATED = 65_536
"""Records that one $GENERATE may make."""

_GENERATE_RE = re.compile(r"^\$GENERATE\s+(\d+)-(\d+)(?:/(\d+))?", re.IGNORECASE | re.MULTILINE)
_INCLUDE_RE = re.compile(r"^\$INCLUDE\b", re.IGNORECASE | re.MULTILINE)
_PLACE_RE = re.compile(r"^.*?:\d+: ")

_SHOWN = 80
"""Characters of a faulty line that an error repeats."""

_NodeDraft = dict[int, RRset]


class ZoneError(NearpathError):
    """A zone that cannot be served; `line` is 1-based, 0 when the fault is not in one line."""

    def __init__(self, origin: str, line: int, what: str, fix: str) -> None:
        place = f"zone {origin}, line {line}" if line else f"zone {origin}"
        super().__init__(f"{place}: {what}", fix)
        self.origin = origin
        self.line = line


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone, ready for answers. All names are lower-case wire form.

    `nodes` has every authoritative name, the cuts and the empty non-terminals; `glue` the addresses at and below cuts.
    `negative` is the SOA with the TTL of negative answers (RFC 2308 section 5).
    """

    origin: bytes
    serial: int
    nodes: Mapping[bytes, Node]
    glue: Mapping[bytes, Node]
    negative: RRset

    @property
    def name(self) -> str:
        """The origin as text."""
        return names.to_text(self.origin)


def parse_zone(text: str, origin: str) -> Zone:
    """The zone `origin` (fully qualified) in master file `text`; ZoneError names the line and what to do."""
    _refuse_early(text, origin)
    drafts = _read(text, origin)
    apex_name = names.from_text(origin)
    apex = drafts.get(apex_name, {})
    soa = apex.get(records.SOA)
    if soa is None:
        raise ZoneError(origin, 0, "has no SOA record at its apex", "add one: `@ SOA ns1 hostmaster 1 1h 15m 30d 5m`")
    if records.NS not in apex:
        raise ZoneError(origin, 0, "has no NS record at its apex", "name at least one server: `@ NS ns1`")
    for name, draft in drafts.items():
        _check_node(origin, apex_name, name, draft)
    nodes, glue = _split(origin, apex_name, drafts)
    serial, *_timers, minimum_s = struct.unpack("!5I", soa.rdatas[0][-1])
    # RFC 2308 section 5: the TTL of a negative answer is the lesser of the SOA's TTL and its MINIMUM field.
    negative = replace(soa, ttl_s=min(soa.ttl_s, minimum_s))
    return Zone(apex_name, serial, nodes, glue, negative)


def _refuse_early(text: str, origin: str) -> None:
    if len(text) > MAX_ZONE_BYTES:
        raise ZoneError(origin, 0, f"is over {MAX_ZONE_BYTES >> 20} MiB of text", "is this the zone's master file?")
    include = _INCLUDE_RE.search(text)
    if include:
        line = text.count("\n", 0, include.start()) + 1
        raise ZoneError(origin, line, "$INCLUDE is not allowed", "put the records of the included file here")
    for match in _GENERATE_RE.finditer(text):
        count = (int(match[2]) - int(match[1])) // max(1, int(match[3] or 1)) + 1
        if count > MAX_GENERATED:
            line = text.count("\n", 0, match.start()) + 1
            raise ZoneError(origin, line, f"$GENERATE makes {count} records", f"at most {MAX_GENERATED} are allowed")


# -- reading with dnspython


class _Refused(Exception):
    """A record that dnspython would take and we do not."""


_new_node: Callable[[], dns.node.Node] = dns.node.Node


class _Collector(dns.transaction.Transaction):
    """Takes what dnspython's reader finds; it refuses what lies outside the zone, which dnspython's own drops silently."""

    def __init__(self, manager: dns.zonefile.RRSetsReaderManager, origin: dns.name.Name) -> None:
        super().__init__(manager, replacement=True, read_only=False)
        self.origin = origin
        self.found: dict[dns.name.Name, dns.node.Node] = {}

    def _get_node(self, name: dns.name.Name) -> dns.node.Node | None:
        return self.found.get(name)

    def _get_rdataset(self, name: dns.name.Name, rdtype: Any, covers: Any) -> dns.rdataset.Rdataset | None:
        node = self.found.get(name)
        return node.get_rdataset(dns.rdataclass.IN, rdtype, covers) if node else None

    def _put_rdataset(self, name: dns.name.Name, rdataset: dns.rdataset.Rdataset) -> None:
        if not name.is_subdomain(self.origin):
            raise _Refused(f"{name} is not in the zone (was its final dot meant?)")
        node = self.found.get(name) or self.found.setdefault(name, _new_node())
        before = node.get_rdataset(dns.rdataclass.IN, rdataset.rdtype, rdataset.covers)
        # dnspython lets the last one win.
        if before is not None and dns.rdatatype.is_singleton(rdataset.rdtype) and before[0] != rdataset[0]:
            raise _Refused(f"a second {dns.rdatatype.to_text(rdataset.rdtype)} record of {name}")
        node.replace_rdataset(rdataset)

    def _name_exists(self, name: dns.name.Name) -> bool:
        return name in self.found

    def _changed(self) -> bool:
        return bool(self.found)

    def _set_origin(self, origin: dns.name.Name) -> None:
        """Nothing: the origin is given by the configuration."""

    def _end_transaction(self, commit: bool) -> None:
        """Nothing: the caller takes `found`."""


class _Reader(dns.zonefile.Reader):
    """Remembers where the record under way began: the tokenizer may be lines further when a fault is found."""

    record_line = 0

    def _rr_line(self) -> None:
        self.record_line = self.tok.where()[1]
        super()._rr_line()
        self.record_line = 0


def _read(text: str, origin: str) -> dict[bytes, _NodeDraft]:
    zone_name = dns.name.from_text(origin)
    collector = _Collector(dns.zonefile.RRSetsReaderManager(zone_name), zone_name)
    tokenizer = dns.tokenizer.Tokenizer(text, filename="zone")
    reader = _Reader(tokenizer, dns.rdataclass.IN, collector)
    reader.zone_origin = dns.name.root  # so that it hands over names outside the zone as well, to be refused
    try:
        reader.read()
    except (_Refused, dns.exception.DNSException, ValueError, struct.error, RecursionError) as error:
        line = reader.record_line or tokenizer.where()[1]
        what = (_PLACE_RE.sub("", str(error)) or type(error).__name__).rstrip(".")
        shown = "".join(text.split("\n")[line - 1 : line]).strip()[:_SHOWN]
        what = f"{what} in {shown!r}" if shown else what
        raise ZoneError(origin, line, what, "correct this record of the zone file") from None
    return {name.to_digestable(): _draft(node) for name, node in collector.found.items()}


def _draft(node: dns.node.Node) -> _NodeDraft:
    draft: _NodeDraft = {}
    for rdataset in node.rdatasets:
        rtype = int(rdataset.rdtype)
        rdatas = tuple(_render(rtype, rdata) for rdata in rdataset)
        targets = tuple(_target(rtype, rdata) for rdata in rdataset) if rtype in _TARGET_FIELD else ()
        before = draft.get(rtype)
        if before is not None:  # RRSIGs over different types are one RRset on the wire
            rdatas = before.rdatas + rdatas
        draft[rtype] = RRset(rtype, int(rdataset.ttl), rdatas, targets)
    return draft


_TARGET_FIELD = {
    records.NS: "target",
    records.CNAME: "target",
    records.DNAME: "target",
    records.MX: "exchange",
    records.SRV: "target",
}


def _target(rtype: int, rdata: Any) -> bytes:
    name: dns.name.Name = getattr(rdata, _TARGET_FIELD[rtype])
    return name.to_digestable()


def _render(rtype: int, rdata: Any) -> Rdata:
    match rtype:
        case records.NS | records.CNAME | records.PTR:
            return (b"", rdata.target.to_wire())
        case records.MX:
            return (struct.pack("!H", rdata.preference), rdata.exchange.to_wire())
        case records.SOA:
            numbers = (rdata.serial, rdata.refresh, rdata.retry, rdata.expire, rdata.minimum)
            return (b"", rdata.mname.to_wire(), b"", rdata.rname.to_wire(), struct.pack("!5I", *numbers))
        case _:
            return (bytes(rdata.to_wire()),)


# -- checks and structure

_META_TYPES = frozenset({records.OPT, *range(128, 256)})
"""Types that exist in messages only (RFC 6895 section 3.1)."""


def _check_node(origin: str, apex: bytes, name: bytes, draft: _NodeDraft) -> None:
    text = names.to_text(name)
    for rtype in draft:
        if rtype in _META_TYPES:
            raise ZoneError(origin, 0, f"{text} has a record of the meta type {rtype}", "remove it")
    if records.SOA in draft and name != apex:
        raise ZoneError(origin, 0, f"{text} has an SOA record", "only the apex has one; make it a zone of its own")
    if name == apex and records.CNAME in draft:
        raise ZoneError(origin, 0, "has a CNAME at its apex", "use A and AAAA records there (RFC 1912 2.4)")
    # RFC 4592 4.2 and 4.4 leave the meaning of these open: no two servers answer them alike.
    if name[:2] == b"\x01*" and (records.NS in draft or records.DNAME in draft):
        raise ZoneError(origin, 0, f"{text} is a wildcard with NS or DNAME", "write out the names that are meant")


def _split(origin: str, apex: bytes, drafts: Mapping[bytes, _NodeDraft]) -> tuple[dict[bytes, Node], dict[bytes, Node]]:
    """(nodes, glue) of the zone: what is at or below a cut leaves `nodes`, all but the cut's own NS and DS."""
    cuts = {name for name, draft in drafts.items() if records.NS in draft and name != apex}
    dnames = {name for name, draft in drafts.items() if records.DNAME in draft}
    nodes: dict[bytes, Node] = {}
    glue: dict[bytes, Node] = {}
    for name, draft in drafts.items():
        above = _ancestors(name, apex)
        if any(ancestor in dnames for ancestor in above):
            raise ZoneError(
                origin,
                0,
                f"{names.to_text(name)} is below a DNAME, so nobody can see it (RFC 6672 2.4)",
                "remove the record or the DNAME",
            )
        cut = name in cuts
        if cut or any(ancestor in cuts for ancestor in above):
            addresses = {t: s for t, s in draft.items() if t in (records.A, records.AAAA)}
            if addresses:
                glue[name] = Node(addresses)
        if any(ancestor in cuts for ancestor in above):
            continue
        kept = {t: s for t, s in draft.items() if t in _AT_CUT} if cut else draft
        nodes[name] = Node(kept, cut=cut)
        for ancestor in above:
            nodes.setdefault(ancestor, Node())
    return nodes, glue


_AT_CUT = frozenset({records.NS, records.DS, records.RRSIG, 47})
"""Types that are the parent's at a delegation (47: NSEC; RFC 4035 2.6)."""


def _ancestors(name: bytes, apex: bytes) -> list[bytes]:
    found = []
    while name != apex:
        name = names.parent(name)
        found.append(name)
    return found
