"""Region tables: which label each prefix has, read from CSV; compact, and sorted for sweeping and searching.

The form of a file: a header line, then `prefix,label` lines in UTF-8, gzip-compressed or not. Empty lines and lines that
start with # are skipped; fields may be quoted (RFC 4180). IPv4 and IPv6 may be mixed, in any order.
"""

from __future__ import annotations

import csv
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from core.errors import Problem
from policy.regions.errors import MAX_SHOWN, RegionTableError, quote, table_error
from policy.regions.prefixes import parse_prefix

GZIP_MAGIC = b"\x1f\x8b"

MAX_TABLE_BYTES = 64 << 20
"""Of one table, decompressed: ten times all countries of the world, and a bomb ends there."""

MAX_ROWS = 2_000_000
"""Prefixes of one table: about the whole routing table of the Internet in IPv4 and IPv6, twice."""

MAX_MEMBERS = 10_000
"""Members of one gzip file: block-compressed files have one per 64 KiB; more are made to keep us busy."""

_PIECE_BYTES = 16384
"""Fed to zlib at once: what stands after the end of a member is copied, so this bounds the cost of each member."""

MAX_LINE = 1000
"""Characters of one line: a prefix has at most 43, so this is a label of a few hundred."""

MAX_LABEL = 200
"""Characters of one label."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The prefixes of one family, sorted by key: `keys[i]` (see prefixes.py) has label number `labels[i]`.

    `lines[i]` is where it was read (1-based); empty where there are no lines. The arrays are never changed once made.
    """

    keys: Sequence[int]
    labels: Sequence[int]
    lines: Sequence[int]


@dataclass(frozen=True, slots=True)
class Table:
    """A named table: distinct labels in order of appearance, and the prefixes of both families."""

    name: str
    labels: tuple[str, ...]
    ipv4: Rows
    ipv6: Rows

    def rows(self, family: int) -> Rows:
        """The rows of a family, 4 or 6."""
        return self.ipv4 if family == 4 else self.ipv6

    def __len__(self) -> int:
        return len(self.ipv4.keys) + len(self.ipv6.keys)


@dataclass(slots=True)
class TableBuilder:
    """Collects rows in any order; `build` sorts them."""

    name: str
    labels: dict[str, int] = field(default_factory=dict)
    _keys: dict[int, list[int]] = field(default_factory=lambda: {4: [], 6: []})
    _labels: dict[int, array[int]] = field(default_factory=lambda: {4: array("I"), 6: array("I")})
    _lines: dict[int, array[int]] = field(default_factory=lambda: {4: array("I"), 6: array("I")})

    def add(self, family: int, key: int, label: str, line: int = 0) -> None:
        """Take one row; line 0 means unknown."""
        self._keys[family].append(key)
        self._labels[family].append(self.labels.setdefault(label, len(self.labels)))
        self._lines[family].append(line)

    def __len__(self) -> int:
        return len(self._keys[4]) + len(self._keys[6])

    def build(self) -> Table:
        """The table of everything taken."""
        return Table(self.name, tuple(self.labels), self._rows(4), self._rows(6))

    def _rows(self, family: int) -> Rows:
        keys, labels, lines = self._keys[family], self._labels[family], self._lines[family]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        sorted_keys = [keys[i] for i in order]
        return Rows(
            array("Q", sorted_keys) if family == 4 else tuple(sorted_keys),
            array("I", [labels[i] for i in order]),
            array("I", [lines[i] for i in order]) if any(lines) else array("I"),
        )


def parse_csv(name: str, data: bytes, *, file: str = "", limit_bytes: int = MAX_TABLE_BYTES) -> Table:
    """The table in `data` (`file` is what messages call it; default: the name).

    RegionTableError tells every bad line, the first 20 with their text.
    """
    file = file or name
    builder = TableBuilder(name)
    problems: list[Problem] = []
    count = 0
    lines = _lines(_text(data, file, limit_bytes))
    _check_header(file, lines)
    for number, line in lines:
        try:
            prefix, label = _fields(line)
            family, start, length = parse_prefix(prefix)
        except ValueError as error:
            count += 1
            if count <= MAX_SHOWN:
                problems.append(Problem(file, number, "", str(error)))
            continue
        builder.add(family, start << 8 | length, label, number)
        if len(builder) > MAX_ROWS:
            raise table_error(file, f"there are more than {MAX_ROWS} prefixes", line=number, fix="aggregate them")
    if count:
        what = f"region table {file} has {count} bad line{'s' if count > 1 else ''}"
        raise RegionTableError(what, problems, count)
    if not len(builder):
        raise table_error(file, "there is no prefix in it", fix="expected lines such as 192.0.2.0/24,LABEL")
    return builder.build()


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that count."""
    # Not splitlines(): it also splits at characters that editors do not take for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        content = line.strip()
        if content and content[0] != "#":
            yield number, content


def _check_header(file: str, lines: Iterator[tuple[int, str]]) -> None:
    number, line = next(lines, (0, ""))
    if not number:
        raise table_error(file, "it is empty", fix="expected a header line prefix,LABEL and then 192.0.2.0/24,LABEL")
    try:
        first, _label = _fields(line)
    except ValueError as error:
        raise table_error(file, f"the header is not `prefix,LABEL`: {error}", line=number) from None
    try:
        parse_prefix(first)
    except ValueError:
        return
    raise table_error(
        file, f"{quote(line)} stands where the header must be", line=number, fix="begin with prefix,label"
    )


def _fields(line: str) -> tuple[str, str]:
    """Prefix and label of one line; ValueError says what is wrong."""
    prefix, comma, label = line.partition(",")
    if '"' in line and len(line) <= MAX_LINE:
        try:
            fields = next(csv.reader([line], strict=True), [])
        except csv.Error as error:
            raise ValueError(f"{quote(line)} is badly quoted: {error}") from None
        prefix, comma, label = fields[0], ",", "" if len(fields) != 2 else fields[1].strip()
    elif "," in label:
        label = ""
    if comma and prefix and label and len(label) <= MAX_LABEL and label.isprintable():
        return prefix, label
    if len(line) > MAX_LINE:
        raise ValueError(f"{quote(line)} is too long: at most {MAX_LINE} characters are taken")
    if len(label) > MAX_LABEL:
        raise ValueError(f"{quote(line)}: the label is longer than {MAX_LABEL} characters")
    if label and not label.isprintable():
        raise ValueError(f"{quote(line)}: the label has characters that cannot be printed")
    raise ValueError(f"{quote(line)} is not `prefix,label`: expected two columns, neither of them empty")


def _text(data: bytes, file: str, limit_bytes: int) -> str:
    if data.startswith(GZIP_MAGIC):
        data = decompress(data, file, limit_bytes)
    if len(data) > limit_bytes:
        raise table_error(file, f"it is larger than {limit_bytes} bytes", fix="split it, or aggregate its prefixes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        bad = data[error.start : error.start + 8]
        raise table_error(file, f"{bad!r} is not UTF-8 text", line=line, fix="is it a CSV file?") from None


def decompress(data: bytes, file: str, limit_bytes: int = MAX_TABLE_BYTES) -> bytes:
    """Unpack gzip data (one or more members, RFC 1952 2.2), never more than `limit_bytes`; RegionTableError otherwise."""
    parts: list[bytes] = []
    size = at = members = 0
    while at < len(data):
        members += 1
        if members > MAX_MEMBERS:
            raise table_error(file, f"it has more than {MAX_MEMBERS} gzip members", fix="compress it anew in one piece")
        unpacker = zlib.decompressobj(wbits=31)  # 31: a gzip header and trailer, checksum verified
        while not unpacker.eof:
            if at == len(data):
                raise table_error(file, "the gzip data ends too early", fix="fetch the file again")
            piece = data[at : at + _PIECE_BYTES]
            try:
                part = unpacker.decompress(piece, limit_bytes - size + 1)
            except zlib.error as error:
                raise table_error(file, f"it is damaged gzip data: {error}", fix="fetch the file again") from None
            size += len(part)
            if size > limit_bytes:
                raise table_error(file, f"it unpacks to more than {limit_bytes} bytes", fix="split it, or aggregate it")
            parts.append(part)
            at += len(piece) - len(unpacker.unused_data)
        while data[at : at + 1] == b"\0":  # gzip(1): zeros after the end are padding
            at += 1
    return b"".join(parts)
