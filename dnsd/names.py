"""Domain names as dnsd keeps them: uncompressed wire form in lower case, so that equal names are equal bytes.

The length octet of a label is at most 63 and `A` is 65, so `bytes.lower()` of a whole wire name changes letters only, and
only those of ASCII, as RFC 4343 asks. The parent of a name is a slice of it.
"""

from __future__ import annotations

import dns.exception
import dns.name

ROOT = b"\0"

MAX_NAME_BYTES = 255
"""Octets of a name with its length octets and the root (RFC 1035 2.3.4)."""


def from_text(text: str) -> bytes:
    """The wire form, in lower case, of a fully qualified name; ValueError when it is not one."""
    try:
        return dns.name.from_text(text).to_digestable()
    except dns.name.NameTooLong:
        raise ValueError(f"{text!r} is over {MAX_NAME_BYTES} octets long") from None
    except (dns.exception.DNSException, UnicodeError) as error:
        raise ValueError(f"{text!r} is not a domain name: {error}") from None


def to_text(name: bytes) -> str:
    """Master file form of a wire name, with the final dot and with escapes."""
    return dns.name.from_wire(name, 0)[0].to_text()


def parent(name: bytes) -> bytes:
    """The name less its first label; the root has none, and must not be asked."""
    return name[1 + name[0] :]


def is_under(name: bytes, ancestor: bytes) -> bool:
    """Whether `name` is `ancestor` or below it; both in wire form of the same case."""
    at = name
    while len(at) > len(ancestor):
        at = at[1 + at[0] :]
    return at == ancestor
