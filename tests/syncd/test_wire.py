"""Parent and child's words: what one encodes the other decodes, and what nobody encodes is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import MessageError
from core.tokens import token_sha256
from syncd.model import Change, Entry, Kind, Op
from syncd.store.manifest import MAX_ASKED
from syncd.store.signed_root import MAX_ROOT_BYTES
from syncd.transfer.wire import (
    MAX_BATCH_BYTES,
    MAX_FILES_ASKED,
    MAX_FILES_BYTES,
    MAX_LISTINGS_BYTES,
    MAX_SEQUENCE,
    MAX_WAIT_S,
    SMALL_FILE_BYTES,
    Answer,
    Batch,
    Behind,
    Child,
    Content,
    Cursor,
    Lack,
    Linked,
    check_node,
    check_tree,
    decode_ask,
    decode_batch,
    decode_behind,
    decode_files,
    decode_links,
    decode_listings,
    encode_ask,
    encode_batch,
    encode_behind,
    encode_files,
    encode_links,
    encode_listings,
    etag,
    journal_query,
    parse_journal_query,
    refusal,
    tree_path,
)

names = st.binary(min_size=1, max_size=40).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
paths = st.lists(names, min_size=1, max_size=5).map(b"/".join)
numbers = st.integers(0, MAX_SEQUENCE)
cursors = st.builds(Cursor, st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)), numbers)


times = st.integers(-MAX_SEQUENCE, MAX_SEQUENCE)


@st.composite
def changes(draw: st.DrawFn) -> Change:
    op, path = draw(st.sampled_from(Op)), draw(paths)
    source = draw(paths) if op is Op.RENAME else b""
    kind, mode = draw(st.sampled_from(Kind)), draw(st.integers(0, 0o7777))
    if op is Op.DELETE:
        return Change(draw(numbers), op, path)
    if kind is Kind.FILE:
        digest = draw(st.none() | st.binary(min_size=32, max_size=32))
        entry = Entry(path, kind, mode, draw(numbers), draw(times), digest=digest)
    elif kind is Kind.SYMLINK:
        target = draw(st.binary(min_size=1, max_size=60).filter(lambda t: b"\0" not in t))
        entry = Entry(path, kind, mode, mtime_ns=draw(times), target=target)
    else:
        path = draw(st.just(b"" if op is Op.UPSERT else path) | st.just(path))
        entry = Entry(path, kind, mode, mtime_ns=draw(times))
    return Change(draw(numbers), op, path, entry, source)


roots = st.just(b"") | st.binary(max_size=MAX_ROOT_BYTES)
batches = st.builds(Batch, st.lists(changes(), max_size=8).map(tuple), cursors, numbers, root=roots)


@given(batches)
def test_a_batch_arrives_as_it_was(batch: Batch) -> None:
    assert decode_batch(encode_batch(batch)) == batch


def test_what_one_node_alone_knows_stays_there() -> None:
    entry = Entry(b"a", Kind.FILE, 0o644, 1, 2, ctime_ns=3, inode=(4, 5))
    (change,) = decode_batch(encode_batch(Batch((Change(1, Op.UPSERT, b"a", entry),), Cursor(), 1))).changes
    assert change.entry == Entry(b"a", Kind.FILE, 0o644, 1, 2)


@given(batches, st.data())
def test_a_batch_that_was_cut_is_refused(batch: Batch, data: st.DataObject) -> None:
    whole = encode_batch(batch)
    with pytest.raises(MessageError):
        decode_batch(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=300) | batches.map(encode_batch), st.data())
def test_hostile_bytes_raise_nothing_but_message_errors(blob: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(blob)))
    blob = blob[:at] + data.draw(st.binary(max_size=5)) + blob[at + data.draw(st.integers(0, 3)) :]
    for decode in (
        decode_batch,
        decode_behind,
        decode_ask,
        decode_links,
        lambda b: decode_listings([b"a", b"b"], b),
        lambda b: decode_files(3, b),
    ):
        try:
            decode(blob)
        except MessageError:
            continue


def test_a_batch_beyond_the_limit_is_not_even_looked_at() -> None:
    with pytest.raises(MessageError, match="allowed"):
        decode_batch(b" " * (MAX_BATCH_BYTES + 1))


@pytest.mark.parametrize("root", ["0", "0g", "AA", "00" * (MAX_ROOT_BYTES + 1), 1, None, ["00"]])
def test_a_batch_with_something_else_than_a_root_is_refused(root: object) -> None:
    head = {"id": "00" * 16, "cursor": 1, "last": 1, "lag_ms": 0, "version": 1, "changes": 0}
    assert decode_batch(json.dumps({**head, "root": "00ff"}).encode() + b"\n").root == b"\x00\xff"
    with pytest.raises(MessageError, match="is not a signed root"):
        decode_batch(json.dumps({**head, "root": root}).encode() + b"\n")


def test_deep_json_is_refused() -> None:
    with pytest.raises(MessageError):
        decode_batch(b"[" * 100_000 + b"\n")


@given(cursors, st.text(max_size=1000))
def test_behind_arrives_as_it_was(cursor: Cursor, why: str) -> None:
    assert decode_behind(encode_behind(Behind(cursor, why))) == Behind(cursor, why)


@given(cursors, st.floats(0, MAX_WAIT_S))
def test_a_journal_query_arrives_as_it_was(cursor: Cursor, wait_s: float) -> None:
    for prove in (False, True):
        found = parse_journal_query(journal_query(cursor, wait_s, prove=prove))
        assert found.after == found.published == cursor
        assert found.wait_s == pytest.approx(wait_s, abs=0.001)
        assert found.prove is prove


def test_a_child_that_asks_ahead_says_what_is_published() -> None:
    after, published = Cursor(b"j" * 16, 12), Cursor(b"j" * 16, 7)
    assert parse_journal_query(journal_query(after, 0.0, published)) == (after, 0.0, published, False)
    with pytest.raises(MessageError, match="published=13 is beyond after=12"):
        parse_journal_query(journal_query(after, 0.0, Cursor(b"j" * 16, 13)))


def test_a_wait_is_bounded_and_defaults_are_a_child_without_a_cursor() -> None:
    assert parse_journal_query({"wait": "999999"}) == (Cursor(), MAX_WAIT_S, Cursor(), False)


@pytest.mark.parametrize(
    "query",
    [
        *({"after": value} for value in ("-1", "", "9" * 19, "1e3", "\u0663")),
        {"after": "9", "published": "-1"},
        *({"wait": value} for value in ("nan", "-1", "inf", "1e9")),
        *({"prove": value} for value in ("", "2", "yes")),
        *({"id": value} for value in ("00", "g" * 32, "0" * 34)),
    ],
)
def test_queries_out_of_form_are_refused(query: dict[str, str]) -> None:
    with pytest.raises(MessageError):
        parse_journal_query(query)


@given(st.lists(st.just(b"") | paths, min_size=1, max_size=20))
def test_the_directories_asked_for_arrive_as_they_were(asked: list[bytes]) -> None:
    assert decode_ask(encode_ask(asked)) == tuple(asked)


@pytest.mark.parametrize(
    "body", [b"", b"a", b"a\0b", b"../x\0", b"/\0", b"a\0" * (MAX_ASKED + 1), b"x" * 3_000_000 + b"\0"]
)
def test_asks_out_of_form_are_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        decode_ask(body)


@given(st.lists(st.none() | st.binary(max_size=50), min_size=1, max_size=10), st.data())
def test_listings_arrive_as_they_were_and_a_cut_shows(listings: list[bytes | None], data: st.DataObject) -> None:
    asked = [b"d%d" % i for i in range(len(listings))]
    whole = b"".join(encode_listings(listings))
    assert decode_listings(asked, whole) == dict(zip(asked, listings, strict=True))
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        found = decode_listings(asked, cut)
    except MessageError:
        return
    # Cut between two frames it is an answer to fewer: the rest is asked for again.
    assert 0 < len(found) < len(asked)
    assert all(dict(zip(asked, listings, strict=True))[path] == listing for path, listing in found.items())


def test_an_answer_ends_when_it_is_large_and_a_larger_listing_goes_alone() -> None:
    half = b"x" * (MAX_LISTINGS_BYTES // 2)
    assert len(decode_listings([b"a", b"b", b"c"], b"".join(encode_listings([half, half, b"y"])))) == 2
    assert len(decode_listings([b"a", b"b"], b"".join(encode_listings([half * 3, b"y"])))) == 1


def test_more_listings_than_were_asked_for_are_refused() -> None:
    with pytest.raises(MessageError):
        decode_listings([b"a"], b"".join(encode_listings([b"x", b"y"])))


@st.composite
def answer_lists(draw: st.DrawFn) -> list[Answer]:
    contents = st.builds(
        Content, st.integers(0, 0o7777), st.integers(-MAX_SEQUENCE, MAX_SEQUENCE), st.binary(max_size=50)
    )
    answers: list[Answer] = list(draw(st.lists(contents | st.sampled_from(Lack), min_size=1, max_size=10)))
    sent = [index for index, answer in enumerate(answers) if isinstance(answer, Content)]
    return answers + draw(st.lists(st.builds(Linked, st.sampled_from(sent)), max_size=3) if sent else st.just([]))


@given(answer_lists(), st.data())
def test_small_files_arrive_as_they_were_and_a_cut_shows(answers: list[Answer], data: st.DataObject) -> None:
    whole = b"".join(encode_files(answers))
    assert decode_files(len(answers), whole) == answers
    cut = whole[: data.draw(st.integers(0, len(whole) - 1))]
    try:
        found = decode_files(len(answers), cut)
    except MessageError:
        return
    # Cut between two frames it is an answer to fewer: the rest is asked for again.
    assert 0 < len(found) < len(answers)
    assert answers[: len(found)] == found


@given(st.binary(max_size=200) | answer_lists().map(lambda answers: b"".join(encode_files(answers))), st.data())
def test_there_is_one_encoding_of_files_and_nothing_else_is_taken(blob: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(blob)))
    blob = blob[:at] + data.draw(st.binary(max_size=3)) + blob[at + data.draw(st.integers(0, 2)) :]
    try:
        answers = decode_files(20, blob)
    except MessageError:
        return
    assert b"".join(encode_files(answers)) == blob


def file_frame(mode: int = 0o644, size: int = 1, mtime_ns: int = 0, content: bytes = b"x") -> bytes:
    return struct.pack(">BHIq", 0, mode, size, mtime_ns) + content


def test_the_good_frame_of_the_next_test_is_good() -> None:
    assert decode_files(2, file_frame() + b"\x06\0\0") == [Content(0o644, 0, b"x"), Linked(0)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x07",
        b"\xff",
        file_frame(mode=0o10000),
        file_frame(size=2),
        file_frame(size=SMALL_FILE_BYTES + 1, content=b"x" * (SMALL_FILE_BYTES + 1)),
        file_frame(mtime_ns=-(2**63)),
        file_frame()[:10],
        b"\x06\0\0",
        b"\x01\x06\0\0",
        file_frame() + b"\x06\0\1",
        file_frame() + b"\x06\0",
        b"\x01\x01\x01",
    ],
)
def test_files_that_no_parent_sends_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_files(2, data)


def test_a_chain_of_hard_links_is_refused() -> None:
    with pytest.raises(MessageError, match="hard link"):
        decode_files(3, file_frame() + b"\x06\0\0" + b"\x06\0\1")


def test_an_answer_with_files_ends_at_its_limit_and_no_more_are_read_than_needed() -> None:
    read = 0

    def answers() -> Iterator[Answer]:
        nonlocal read
        while True:
            read += 1
            yield Content(0o644, 0, b"x" * SMALL_FILE_BYTES)

    data = b"".join(encode_files(answers()))
    assert MAX_FILES_BYTES - SMALL_FILE_BYTES - 100 < len(data) <= MAX_FILES_BYTES
    found = decode_files(MAX_FILES_ASKED, data)
    assert len(found) == read - 1 == 63
    assert len(data) / sum(len(answer.content) for answer in found if isinstance(answer, Content)) < 1.001
    with pytest.raises(MessageError, match="allowed"):
        decode_files(MAX_FILES_ASKED, b"\x01" * (MAX_FILES_BYTES + 1))
    with pytest.raises(ValueError, match="allowed"):
        encode_files([Content(0o644, 0, b"x" * (SMALL_FILE_BYTES + 1))])


def test_fewer_files_than_directories_are_asked_for_at_once() -> None:
    most = [b"a"] * MAX_FILES_ASKED
    assert decode_ask(encode_ask(most, MAX_FILES_ASKED), MAX_FILES_ASKED) == tuple(most)
    with pytest.raises(ValueError, match="allowed"):
        encode_ask([*most, b"a"], MAX_FILES_ASKED)
    with pytest.raises(MessageError):
        decode_ask(encode_ask([*most, b"a"]), MAX_FILES_ASKED)


CHILDREN = {"edge1": Child("edge1", token_sha256("right"), frozenset({"debian"}))}


@pytest.mark.parametrize(
    ("node", "authorization", "tree", "status"),
    [
        ("edge1", "Bearer right", "debian", None),
        ("edge1", "bearer right", "debian", None),
        ("edge1", "Bearer right", "secret", 403),
        ("edge1", "Bearer wrong", "debian", 401),
        ("edge1", "Bearer wrong", "secret", 401),
        ("edge1", "Bearer ", "debian", 401),
        ("edge1", "", "debian", 401),
        ("edge1", "Basic right", "debian", 401),
        ("edge1", "Bearer " + "r" * 100_000, "debian", 401),
        ("edge1", "Bearer \udcff", "debian", 401),
        ("edge2", "Bearer right", "debian", 401),
        ("edge2", "Bearer no node has this token", "debian", 401),
    ],
)
def test_who_may_have_which_tree(node: str, authorization: str, tree: str, status: int | None) -> None:
    refused = refusal(CHILDREN, node, authorization, tree)
    assert (refused[0] if refused else None) == status


def test_unknown_nodes_and_wrong_tokens_are_told_the_same() -> None:
    assert refusal(CHILDREN, "edge1", "Bearer wrong", "debian") == refusal(CHILDREN, "nobody", "Bearer x", "debian")


@pytest.mark.parametrize("node", ["", "-a", "a b", "a\n", "ä", "a" * 300, "a/b"])
def test_names_of_nodes_are_checked(node: str) -> None:
    with pytest.raises(MessageError):
        check_node(node)


@pytest.mark.parametrize("tree", ["", ".", "..", "a/b", "a\nb", "a\0", "ä" * 128, "\udcff"])
def test_names_of_trees_are_checked(tree: str) -> None:
    with pytest.raises(MessageError):
        check_tree(tree)


def test_urls_and_etags() -> None:
    assert tree_path("a b%ü", "root") == "/v1/trees/a%20b%25%C3%BC/root"
    assert etag(b"a") != etag(b"b")
    assert etag(b"a").startswith('"')


@given(st.lists(st.lists(paths, min_size=2, max_size=4), max_size=5))
def test_links_arrive_as_they_were(groups: list[list[bytes]]) -> None:
    assert decode_links(encode_links(groups)) == [tuple(group) for group in groups]


@pytest.mark.parametrize(
    "data", [b"a", b"a\0", b"a\0\0", b"a\0b\0", b"\0\0", b"a\0../b\0\0", b"/a\0b\0\0", b"a\0b\0\0c\0\0"]
)
def test_links_that_no_parent_sends_are_refused(data: bytes) -> None:
    with pytest.raises(MessageError):
        decode_links(data)
