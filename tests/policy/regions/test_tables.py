"""Region tables from CSV: the good, and every kind of bad, each named with its line and text."""

from __future__ import annotations

import gzip
import zlib

import pytest

from policy.regions import RegionTableError, Table, parse_address, parse_csv, parse_prefix
from policy.regions.prefixes import format_key
from policy.regions.tables import MAX_LABEL, MAX_LINE, MAX_MEMBERS


def listed(table: Table) -> list[tuple[str, str, int]]:
    """(prefix, label, line) of every row, IPv4 first, sorted by address."""
    return [
        (format_key(family, key), table.labels[label], line)
        for family in (4, 6)
        for key, label, line in zip(*(lambda r: (r.keys, r.labels, r.lines))(table.rows(family)), strict=True)
    ]


GOOD = b"prefix,label\n10.0.0.0/8,b\n2001:db8::/32,a\n1.2.3.4,a\n\n# comment\n1.0.0.0/8,b\n"
GOOD_ROWS = [
    ("1.0.0.0/8", "b", 7),
    ("1.2.3.4/32", "a", 4),
    ("10.0.0.0/8", "b", 2),
    ("2001:db8::/32", "a", 3),
]


def test_rows_of_both_families_are_sorted_and_keep_their_lines() -> None:
    table = parse_csv("t", GOOD)
    assert table.labels == ("b", "a")
    assert listed(table) == GOOD_ROWS
    assert len(table) == 4


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(GOOD, mtime=0),
        gzip.compress(GOOD[:20], mtime=0) + gzip.compress(GOOD[20:], mtime=0),
        gzip.compress(GOOD, mtime=0) + bytes(512),
        GOOD.replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + GOOD,
        GOOD.rstrip(b"\n"),
        GOOD.replace(b"10.0.0.0/8,b", b'"10.0.0.0/8","b"'),
        GOOD.replace(b"10.0.0.0/8,b", b"  10.0.0.0/8,b  "),
    ],
    ids=["gzip", "two-members", "padded", "crlf", "bom", "no-final-newline", "quoted", "spaces"],
)
def test_other_forms_of_the_same_table(data: bytes) -> None:
    assert listed(parse_csv("t", data)) == GOOD_ROWS


def test_a_quoted_label_may_hold_a_comma_and_any_script() -> None:
    table = parse_csv("t", 'prefix,label\n1.0.0.0/8,"China, 电信 ""x"""\n'.encode())
    assert table.labels == ('China, 电信 "x"',)


def test_odd_characters_do_not_shift_line_numbers() -> None:
    with pytest.raises(RegionTableError, match=r"t:3: '1\.2\.3\.4/8'"):
        parse_csv("t", "prefix,label\n1.0.0.0/8,a\u2028b\n1.2.3.4/8,a\n".replace("\u2028", " ").encode())
    with pytest.raises(RegionTableError) as caught:
        parse_csv("t", "prefix,label\n1.0.0.0/8,a\u2028b\n1.2.3.4/8,a\n".encode())
    assert [problem.line for problem in caught.value.problems] == [2, 3]


BAD_LINES = [
    ("1.2.3.4/24,a", "did you mean 1.2.3.0/24?"),
    ("2001:db8::1/32,a", "did you mean 2001:db8::/32?"),
    ("::ffff:1.2.3.0/120,a", "write 1.2.3.0/24"),
    ("1.2.3.0/33,a", "from 0 to 32"),
    ("2001:db8::/129,a", "from 0 to 128"),
    ("1.2.3.0/,a", "from 0 to 32"),
    ("1.2.3.0/255.255.255.0,a", "from 0 to 32"),
    ("1.2.3.0/024,a", "from 0 to 32"),
    ("1.2.3.0/+24,a", "from 0 to 32"),
    ("01.2.3.0/24,a", "is not a prefix"),
    ("1.2.3/24,a", "is not a prefix"),
    ("1.2.3.256/32,a", "is not a prefix"),
    ("+1.2.3.4,a", "is not a prefix"),
    ("1_0.2.3.4,a", "is not a prefix"),
    ("١.2.3.4,a", "is not a prefix"),
    ("fe80::1%eth0/64,a", "is not a prefix"),
    ("2001:db8:::/32,a", "is not a prefix"),
    ("example.org,a", "is not a prefix"),
    (",a", "expected two columns"),
    ("1.0.0.0/8", "expected two columns"),
    ("1.0.0.0/8,", "expected two columns"),
    ("1.0.0.0/8,a,b", "expected two columns"),
    ('1.0.0.0/8,"a', "badly quoted"),
    ("1.0.0.0/8,a\x00b", "cannot be printed"),
    ("1.0.0.0/8,a\x1b[31m", "cannot be printed"),
    ("1.0.0.0/8," + "a" * (MAX_LABEL + 1), "longer than 200"),
    ("1.0.0.0/8," + "a" * 1_000_000, "too long"),
    ("1" * 1_000_000 + "/8,a", "is not a prefix"),
]


@pytest.mark.parametrize(("line", "what"), BAD_LINES, ids=[line[:24] for line, _ in BAD_LINES])
def test_a_bad_line_is_named_with_its_number_and_text(line: str, what: str) -> None:
    with pytest.raises(RegionTableError) as caught:
        parse_csv("isp", f"prefix,label\n9.0.0.0/8,fine\n{line}\n".encode(), file="isp.csv")
    (problem,) = caught.value.problems
    assert (problem.file, problem.line) == ("isp.csv", 3)
    assert what in problem.what
    assert repr(line[:4])[1:-1] in problem.what
    assert len(str(caught.value)) < 500  # a huge line is not repeated whole


def test_all_bad_lines_are_counted_and_the_first_twenty_shown() -> None:
    with pytest.raises(RegionTableError) as caught:
        parse_csv("t", b"prefix,label\n" + b"1.2.3.4/8,a\n9.0.0.0/8,b\n" * 50)
    error = caught.value
    assert error.count == 50
    assert [problem.line for problem in error.problems] == list(range(2, 42, 2))
    assert "and 30 more" in str(error)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "it is empty"),
        (b"\n\n", "it is empty"),
        (gzip.compress(b"", mtime=0), "it is empty"),
        (b"prefix,label\n", "no prefix"),
        (b"1.0.0.0/8,a\n", "where the header must be"),
        (b"prefix label\n1.0.0.0/8,a\n", "header is not"),
        (b"prefix,label\n1.0.0.0/8,\xff\xfe\n", r"t:2: .*not UTF-8"),
        (b"\x00" * 1000, "header is not"),
        (bytes(range(256)) * 10, "not UTF-8"),
        (gzip.compress(GOOD, mtime=0)[:-9], "ends too early"),
        (gzip.compress(GOOD, mtime=0)[:5], "ends too early"),
        (b"\x1f\x8b", "ends too early"),
        (gzip.compress(GOOD, mtime=0)[:-8] + bytes(8), "damaged gzip"),
        (b"\x1f\x8b" + b"\xff" * 100, "damaged gzip"),
        (gzip.compress(GOOD, mtime=0) + b"junk", "damaged gzip"),
    ],
)
def test_a_hopeless_file_says_why(data: bytes, what: str) -> None:
    with pytest.raises(RegionTableError, match=what) as caught:
        parse_csv("t", data)
    assert "region table t" in str(caught.value)


def test_a_bomb_stops_at_the_limit() -> None:
    bomb = zlib.compressobj(9, wbits=31)
    data = bomb.compress(bytes(50_000_000)) + bomb.flush()
    assert len(data) < 100_000
    with pytest.raises(RegionTableError, match="unpacks to more than 1000000 bytes"):
        parse_csv("t", data, limit_bytes=1_000_000)
    with pytest.raises(RegionTableError, match="unpacks to more than 1000000 bytes"):
        parse_csv("t", gzip.compress(bytes(600_000), mtime=0) * 2, limit_bytes=1_000_000)
    with pytest.raises(RegionTableError, match="more than 10000 gzip members"):
        parse_csv("t", gzip.compress(b"", mtime=0) * (MAX_MEMBERS + 1))


def test_the_limit_itself_is_allowed() -> None:
    assert len(parse_csv("t", GOOD, limit_bytes=len(GOOD))) == 4
    assert len(parse_csv("t", gzip.compress(GOOD, mtime=0), limit_bytes=len(GOOD))) == 4
    for data in (GOOD, gzip.compress(GOOD, mtime=0)):
        with pytest.raises(RegionTableError, match="than"):
            parse_csv("t", data, limit_bytes=len(GOOD) - 1)


def test_longest_line_and_label_that_are_taken() -> None:
    label = "a" * MAX_LABEL
    assert parse_csv("t", f"prefix,label\n1.0.0.0/8,{label}\n".encode()).labels == (label,)
    with pytest.raises(RegionTableError, match="at most 1000"):
        parse_csv("t", f'prefix,label\n1.0.0.0/8,"{"a" * MAX_LINE}"\n'.encode())


def test_prefixes_and_addresses_as_numbers() -> None:
    assert parse_prefix("1.2.3.0/24") == (4, 0x01020300, 24)
    assert parse_prefix("0.0.0.0/0") == (4, 0, 0)
    assert parse_prefix("255.255.255.255") == (4, 0xFFFFFFFF, 32)
    assert parse_prefix("::/0") == (6, 0, 0)
    assert parse_prefix("2001:DB8::/32") == (6, 0x20010DB8 << 96, 32)
    assert parse_address("1.2.3.4") == (4, 0x01020304)
    assert parse_address("::ffff:1.2.3.4") == (4, 0x01020304)
    assert parse_address("::1") == (6, 1)
    for text in ("1.2.3.0/24", "1.2.3.4/32", "::/0", "nonsense", "", "::ffff:1.2.3.0/120"):
        with pytest.raises(ValueError, match=r"is not an? "):
            parse_address(text)
