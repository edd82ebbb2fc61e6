"""A writer for small MaxMind DB files (format 2.0), so that every shape of tree can be made here, also broken ones."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable
from typing import Any

import pytest

MARKER = b"\xab\xcd\xefMaxMind.com"
Node = list[Any]  # [left, right]: a Node, a record (dict), or None


def encode(value: Any) -> bytes:
    """One value of the data section: map, text, whole number, list, bool or double."""
    if isinstance(value, bool):
        return bytes([0x00 | int(value), 7])  # extended type 14
    if isinstance(value, dict):
        assert len(value) < 29
        return bytes([7 << 5 | len(value)]) + b"".join(encode(k) + encode(v) for k, v in value.items())
    if isinstance(value, str):
        data = value.encode()
        head = (
            bytes([2 << 5 | len(data)]) if len(data) < 29 else bytes([2 << 5 | 30]) + struct.pack("!H", len(data) - 285)
        )
        return (head if len(data) < 29 or len(data) >= 285 else bytes([2 << 5 | 29, len(data) - 29])) + data
    if isinstance(value, int):
        data = value.to_bytes((value.bit_length() + 7) // 8)
        if len(data) <= 4:
            return bytes([6 << 5 | len(data)]) + data
        return bytes([len(data), 2]) + data  # extended type 9: uint64
    if isinstance(value, float):
        return bytes([3 << 5 | 8]) + struct.pack("!d", value)
    assert isinstance(value, list)
    return bytes([len(value), 4]) + b"".join(map(encode, value))  # extended type 11


def insert(root: Node, bits: str, value: Any) -> None:
    at = root
    for bit in bits[:-1]:
        side = int(bit)
        if not isinstance(at[side], list):
            at[side] = [at[side], at[side]]
        at = at[side]
    at[int(bits[-1])] = value


def find(root: Node, bits: str) -> Any:
    at: Any = root
    for bit in bits:
        at = at[int(bit)]
    return at


def write_mmdb(
    networks: dict[str, Any],
    *,
    ip_version: int = 6,
    record_size: int = 24,
    aliases: tuple[str, ...] = (),
    loop: bool = False,
    metadata: dict[str, Any] | None = None,
) -> bytes:
    """An mmdb of `networks` (text -> record). `aliases`: IPv6 prefixes that are linked to the IPv4 tree."""
    root: Node = [None, None]
    for text, record in networks.items():
        network = ipaddress.ip_network(text)
        length = network.prefixlen
        bits = f"{int(network.network_address):0{network.max_prefixlen}b}"
        if ip_version == 6 and network.version == 4:
            bits, length = "0" * 96 + bits, 96 + length
        insert(root, bits[:length], record)
    for text in aliases:
        network = ipaddress.ip_network(text)
        bits = f"{int(network.network_address):0128b}"[: network.prefixlen]
        insert(root, bits, find(root, "0" * 96))
    nodes: list[Node] = []
    numbers: dict[int, int] = {}
    todo = [root]
    while todo:
        node = todo.pop(0)
        if id(node) not in numbers:
            numbers[id(node)] = len(nodes)
            nodes.append(node)
            todo += [child for child in node if isinstance(child, list)]
    data = b""
    offsets: dict[bytes, int] = {}

    def number(child: Any) -> int:
        nonlocal data
        if child is None:
            return 0 if loop else len(nodes)
        if isinstance(child, list):
            return numbers[id(child)]
        encoded = encode(child)
        if encoded not in offsets:
            offsets[encoded] = len(data)
            data += encoded
        return len(nodes) + 16 + offsets[encoded]

    tree = b"".join(pack(number(left), number(right), record_size) for left, right in nodes)
    facts = {
        "node_count": len(nodes),
        "record_size": record_size,
        "ip_version": ip_version,
        "database_type": "test",
        "languages": ["en"],
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 1,
        "description": {"en": "test"},
        **(metadata or {}),
    }
    # libmaxminddb insists on the types that the format names for metadata.
    typed = [
        encode(key) + (uint(value, key) if isinstance(value, int) else encode(value)) for key, value in facts.items()
    ]
    return tree + bytes(16) + data + MARKER + bytes([7 << 5 | len(facts)]) + b"".join(typed)


def uint(value: int, key: str) -> bytes:
    """A metadata number: node_count is uint32, build_epoch uint64, the others uint16."""
    data = value.to_bytes((value.bit_length() + 7) // 8)
    if key == "build_epoch":
        return bytes([len(data), 2]) + data
    return bytes([(6 if key == "node_count" else 5) << 5 | len(data)]) + data


def pack(left: int, right: int, record_size: int) -> bytes:
    if record_size == 28:
        middle = (left >> 24) << 4 | right >> 24
        return (left & 0xFFFFFF).to_bytes(3) + bytes([middle]) + (right & 0xFFFFFF).to_bytes(3)
    width = record_size // 8
    return left.to_bytes(width) + right.to_bytes(width)


@pytest.fixture
def mmdb() -> Callable[..., bytes]:
    return write_mmdb
