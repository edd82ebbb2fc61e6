"""Region tables from MaxMind DB bytes: the file format is maxminddb's business, the walk over its tree is ours.

maxminddb's own iteration decodes a record for every network and follows whatever the tree says; a file with a loop, or
with one subtree shared by many nodes, would keep it busy for ever. This walk visits a bounded number of nodes, decodes each
distinct record once, joins neighbours with the same label, and places IPv4 rightly.
Format: https://maxmind.github.io/MaxMind-DB/ (2.0), sections "Binary Search Tree" and "IPv4 addresses in an IPv6 tree".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import maxminddb
from maxminddb.types import Record

from policy.regions.errors import quote, table_error
from policy.regions.prefixes import BITS, format_prefix
from policy.regions.tables import GZIP_MAGIC, MAX_LABEL, MAX_ROWS, Table, TableBuilder, decompress

MAX_NODES_VISITED = 16_000_000
"""Twice the nodes of the largest city database; only a tree with shared subtrees gets there."""

MAX_MMDB_BYTES = 512 << 20
"""Of one file: several times the largest commercial city database."""

MARKER = b"\xab\xcd\xefMaxMind.com"
_METADATA_BYTES = 128 * 1024
"""The marker stands within the last 128 KiB (format 2.0, "Database Metadata")."""

_ALIASES = frozenset({(0xFFFF << 32, 96), (0x20010000 << 96, 32), (0x2002 << 112, 16)})
"""::ffff:0:0/96, 2001::/32 (Teredo), 2002::/16 (6to4): where writers link the IPv4 tree in again."""


class _Bytes:
    """What maxminddb's MODE_FD reads: an object with `read`."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self) -> bytes:
        return self._data


@dataclass(slots=True)
class _Labels:
    """Label of each distinct record, decoded once. None: the record has nothing at the path."""

    file: str
    path: tuple[str, ...]
    known: dict[int, str | None] = field(default_factory=dict)
    seen_keys: tuple[str, ...] = ()

    def of(self, record: Record) -> str | None:
        value: object = record
        for step in self.path:
            if isinstance(value, dict):
                self.seen_keys = self.seen_keys or tuple(str(key) for key in value)
                value = value.get(step)
            elif isinstance(value, list) and step.isdecimal():
                value = value[int(step)] if int(step) < len(value) else None
            else:
                value = None
        if value is None:
            return None
        path = ".".join(self.path)
        if isinstance(value, dict | list):
            inner = ", ".join(str(key) for key in list(value)[:8]) if isinstance(value, dict) else "0, 1, ..."
            fix = f"go on with one of: {inner}"
            raise table_error(
                self.file, f"the label path {path} ends at a {type(value).__name__}, not at a text", fix=fix
            )
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise table_error(
                self.file, f"the label path {path} ends at {value!r}, which is no text and no whole number"
            )
        text = str(value).strip()
        if len(text) > MAX_LABEL or not text.isprintable():
            raise table_error(self.file, f"the label {quote(text)} is too long or cannot be printed")
        return text or None


def parse_mmdb(name: str, data: bytes, label_path: str, *, file: str = "") -> Table:
    """The table in the mmdb bytes `data`; `label_path` such as `country.iso_code` leads to the label in each record.

    Records without that path have no label and are left out. RegionTableError when it is no mmdb, or nothing is found.
    """
    file = file or name
    if data.startswith(GZIP_MAGIC) and MARKER not in data[-_METADATA_BYTES:]:
        data = decompress(data, file, MAX_MMDB_BYTES)
    if len(data) > MAX_MMDB_BYTES:
        raise table_error(file, f"it is larger than {MAX_MMDB_BYTES} bytes", fix="use a smaller database")
    labels = _Labels(file, tuple(label_path.split(".")))
    try:
        # MODE_FD takes any object that can be read; its type says file descriptor.
        reader = maxminddb.open_database(cast(int, _Bytes(data)), maxminddb.MODE_FD)
        builder = _walk(name, data, reader, labels)
    except RecursionError:
        raise table_error(file, "its records are nested without end", fix="fetch the file again") from None
    except (
        maxminddb.InvalidDatabaseError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
    ) as error:
        # maxminddb checks much, but not the types of the metadata of a damaged file.
        text = quote(str(error)) if str(error) else type(error).__name__
        raise table_error(
            file, f"it is not a usable mmdb file: {text}", fix="fetch it again, or set format: csv"
        ) from None
    if not len(builder):
        have = f"; its records have: {', '.join(labels.seen_keys[:12])}" if labels.seen_keys else ""
        raise table_error(file, f"no record has a label at {label_path!r}{have}", fix="correct the label path")
    return builder.build()


def _walk(name: str, data: bytes, reader: maxminddb.Reader, labels: _Labels) -> TableBuilder:
    meta = reader.metadata()
    family = meta.ip_version
    if family not in BITS:
        raise ValueError(f"ip_version {family!r}")
    child = _child_reader(data, meta.record_size)
    joiner = _Joiner(TableBuilder(name), labels.file)

    def label_of(node: int, start: int) -> str | None:
        if node not in labels.known:
            labels.known[node] = labels.of(reader.get(_address(family, start)))
        return labels.known[node]

    if family == 4:
        leaves = _leaves(0, 0, 0, 32, meta.node_count, child, frozenset())
        for start, length, node in leaves:
            joiner.add(4, start, length, label_of(node, start))
    else:
        node4, depth4 = 0, 0
        while depth4 < 96 and node4 < meta.node_count:
            node4, depth4 = child(node4, 0), depth4 + 1
        # A record above ::/96 covers all of IPv4 as well as the IPv6 addresses it stands for.
        inner4 = _leaves(node4, 0, 0, 32, meta.node_count, child, frozenset())
        for start, length, node in inner4:
            joiner.add(4, start, length, label_of(node, start))
        skip = frozenset({node4}) if depth4 == 96 else frozenset()
        for start, length, node in _leaves(0, 0, 0, 128, meta.node_count, child, skip):
            joiner.add(6, start, length, label_of(node, start))
    joiner.flush()
    return joiner.builder


def _address(family: int, start: int) -> str:
    return format_prefix(family, start, BITS[family]).partition("/")[0]


def _child_reader(data: bytes, record_size: int) -> Callable[[int, int], int]:
    """A function (node, 0 or 1) -> record; the library has verified that the tree lies within the file."""
    if record_size == 28:

        def child28(node: int, side: int) -> int:
            middle = data[node * 7 + 3]
            at = node * 7 + 4 * side
            high = middle & 0x0F if side else middle >> 4
            return high << 24 | int.from_bytes(data[at : at + 3])

        return child28
    width = record_size // 8

    def child(node: int, side: int) -> int:
        at = (2 * node + side) * width
        return int.from_bytes(data[at : at + width])

    return child


def _leaves(
    node: int,
    start: int,
    depth: int,
    bits: int,
    node_count: int,
    child: Callable[[int, int], int],
    ipv4_nodes: frozenset[int],
) -> Iterator[tuple[int, int, int]]:
    """(start, length, record) of every network with data below `node`, in order of address, without the IPv4 tree.

    ValueError for trees deeper than addresses are long, or with too many nodes.
    """
    todo = [(node, start, depth)]
    visited = 0
    while todo:
        node, start, depth = todo.pop()
        visited += 1
        if node in ipv4_nodes and (node < node_count or (start, depth) == (0, 96) or (start, depth) in _ALIASES):
            continue
        if node > node_count:
            yield start, depth, node
        elif node < node_count:
            if depth >= bits or visited > MAX_NODES_VISITED:
                raise ValueError("its search tree has a loop, or subtrees that are used many times")
            side = 1 << (bits - depth - 1)
            todo.append((child(node, 1), start | side, depth + 1))
            todo.append((child(node, 0), start, depth + 1))


@dataclass(slots=True)
class _Joiner:
    """Joins sibling networks with the same label, as they come in order of address, before they become rows."""

    builder: TableBuilder
    file: str
    family: int = 0
    pending: list[tuple[int, int, str]] = field(default_factory=list)

    def add(self, family: int, start: int, length: int, label: str | None) -> None:
        if family != self.family:
            self.flush()
            self.family = family
        if label is None:
            return
        bits = BITS[family]
        while self.pending:
            before, same_length, same_label = self.pending[-1]
            size = 1 << (bits - length)
            if (same_length, same_label) != (length, label) or before + size != start or before & size:
                break
            self.pending.pop()
            start, length = before, length - 1
        self.pending.append((start, length, label))
        if len(self.pending) > MAX_ROWS:
            fix = "choose a label with fewer values"
            raise table_error(self.file, f"there are more than {MAX_ROWS} prefixes", fix=fix)

    def flush(self) -> None:
        for start, length, label in self.pending:
            self.builder.add(self.family, start << 8 | length, label)
        self.pending.clear()
