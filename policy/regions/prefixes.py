"""Prefixes as numbers: text <-> (family, start, length), and the packed key by which tables are sorted.

A key is `start << 8 | length`: sorted keys are sorted by address, and of one start the shorter (covering) prefix first,
which is the order a sweep with a stack needs.
"""

from __future__ import annotations

from ipaddress import AddressValueError, IPv4Address, IPv6Address

from policy.regions.errors import quote

BITS = {4: 32, 6: 128}
FAMILIES = (4, 6)

_MAPPED = 0xFFFF
"""Upper 96 bits of ::ffff:0:0/96, IPv4 written as IPv6 (RFC 4291 2.5.5.2)."""

# Exact texts only: int() would also take "+1", "1_0", " 1" and "01".
_OCTETS = {str(n): n for n in range(256)}
_LENGTHS = {4: {str(n): n for n in range(33)}, 6: {str(n): n for n in range(129)}}


def parse_prefix(text: str) -> tuple[int, int, int]:
    """(family, start, length) of `192.0.2.0/24`, `2001:db8::/32` or a single address; ValueError says what is wrong."""
    base, slash, length_text = text.partition("/")
    try:
        a, b, c, d = base.split(".")
        family, start = 4, _OCTETS[a] << 24 | _OCTETS[b] << 16 | _OCTETS[c] << 8 | _OCTETS[d]
    except (ValueError, KeyError):
        family, start = 6, _parse_ipv6(text, base)
    bits = BITS[family]
    length = _LENGTHS[family].get(length_text) if slash else bits
    if length is None:
        raise ValueError(f"{quote(text)} has no valid length: write a number from 0 to {bits} after the slash")
    if start & ((1 << (bits - length)) - 1):
        right = format_prefix(family, start >> (bits - length) << (bits - length), length)
        raise ValueError(f"{quote(text)} has bits set beyond its length: did you mean {right}?")
    if family == 6 and length >= 96 and start >> 32 == _MAPPED:
        right = format_prefix(4, start & 0xFFFFFFFF, length - 96)
        raise ValueError(f"{quote(text)} is IPv4 written as IPv6: write {right}")
    return family, start, length


def _parse_ipv6(text: str, base: str) -> int:
    try:
        if "%" in base or len(base) > 45:
            raise AddressValueError
        return int(IPv6Address(base))
    except AddressValueError:
        raise ValueError(f"{quote(text)} is not a prefix such as 192.0.2.0/24 or 2001:db8::/32") from None


def parse_address(text: str) -> tuple[int, int]:
    """(family, number) of an address; IPv4 written as IPv6 is IPv4. ValueError when it is no address."""
    family, start, length = _parse_mapped(text) or parse_prefix(text)
    if "/" in text or length != BITS[family]:
        raise ValueError(f"{quote(text)} is not an address")
    return family, start


def _parse_mapped(text: str) -> tuple[int, int, int] | None:
    if not text.lower().startswith("::ffff:"):
        return None
    number = _parse_ipv6(text, text)
    return (4, number & 0xFFFFFFFF, 32) if number >> 32 == _MAPPED else None


def format_prefix(family: int, start: int, length: int) -> str:
    """The usual text of a prefix."""
    address = IPv4Address(start) if family == 4 else IPv6Address(start)
    return f"{address}/{length}"


def format_key(family: int, key: int) -> str:
    """The usual text of a packed key."""
    return format_prefix(family, key >> 8, key & 0xFF)
