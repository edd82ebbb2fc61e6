"""What parent and child say to each other over the one port: requests, answers, and who may ask.

    GET  /v1/trees/TREE/root                          the signed root; `ETag`, so that "nothing changed" is one 304
    GET  /v1/trees/TREE/journal?id=ID&after=N&wait=S  a line of JSON, then changes (change_codec); waits for one.
                                                      `published=M`: only so much is published (N when left out);
                                                      `prove=1`: up to where a signed root stands, with that root
    POST /v1/trees/TREE/listings                      paths, NUL behind each; answered by framed listings
    GET  /v1/trees/TREE/links                         names that are one file, NUL behind each and behind each group
    POST /v1/trees/TREE/files                         paths, NUL behind each; answered by framed contents of small files
    GET  /v1/trees/TREE/rsync                         101, then the stream of an rsync daemon

Every request has `Authorization: Bearer TOKEN` and `X-Nearpath-Node`. Paths are bytes: percent-encoded where text is
needed, in one canonical way. Whatever is not of its form is a MessageError, whichever side sent it.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import quote

from core.errors import MessageError
from core.tokens import authenticate
from syncd.model import MAX_NAME_BYTES, MAX_PATH_BYTES, Change, PathError, check_path
from syncd.store.manifest import MAX_ASKED, MAX_LISTING_BYTES
from syncd.store.signed_root import MAX_ROOT_BYTES
from syncd.transfer.change_codec import pack_changes, unpack_changes

UPGRADE = "nearpath-rsync"
NODE_HEADER = "X-Nearpath-Node"
MODULE = "tree"
"""The one module of each rsync stream: which tree it is was decided, and allowed, in the URL."""

MAX_WAIT_S = 60.0
MAX_BATCH = 10_000
MAX_BATCH_BYTES = 8 * 1024 * 1024
"""A batch of 10,000 changes takes about 2 MB with usual names; one change takes at most 37 KB."""
MAX_LISTINGS_BYTES = 32 * 1024 * 1024
"""After this many bytes an answer ends and the rest is asked for again; a larger listing goes alone."""
MAX_ASK_BYTES = MAX_ASKED * (MAX_PATH_BYTES + 1)
SMALL_FILE_BYTES = 64 * 1024
"""What comes by one request: an rsync takes two process starts and several round trips, as long as 64 KiB at 5 Mbit/s."""
MAX_FILES_ASKED = 500
MAX_FILES_BYTES = 4 * 1024 * 1024
"""A whole answer with files, held in memory at both ends; what does not fit is asked for again."""
MAX_LINKS_BYTES = 16 * 1024 * 1024
"""All names of files that have several; what is beyond stays separate files at the copies."""
MAX_SEQUENCE = 2**63 - 1
MAX_TEXT = 1000
_ID_BYTES = 16
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}")


# --- who may ask --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Child:
    """A node that may pull `trees`. Only the hash of its token is known here: 64 hex digits of SHA-256."""

    node: str
    token_sha256: str
    trees: frozenset[str]


def refusal(children: Mapping[str, Child], node: str, authorization: str, tree: str) -> tuple[int, str] | None:
    """Why this request is refused: (401 or 403, what to do about it); None when it is allowed.

    An unknown node takes as long as a wrong token, and is told the same.
    """
    child = authenticate(node, authorization, children)
    if child is None:
        return 401, "unknown node or wrong token: compare the node's name and token with this parent's configuration"
    if tree not in child.trees:
        return 403, "this node may not have that tree, or it is not here: allow it in this parent's configuration"
    return None


def check_node(node: str) -> str:
    """`node` when it can be a node's name; MessageError otherwise."""
    if not _NODE.fullmatch(node):
        raise MessageError(f"{node[:80]!r} is not a name of a node", "letters, digits and . _ - are allowed")
    return node


def check_tree(tree: str) -> str:
    """`tree` when it can be a tree's name in a URL; MessageError otherwise."""
    try:
        length = len(tree.encode())
    except UnicodeEncodeError:
        length = 0
    if not 0 < length <= MAX_NAME_BYTES or tree in (".", "..") or re.search(r"[/\x00-\x1f\x7f]", tree):
        raise MessageError(f"{tree[:80]!r} is not a name of a tree", "1 to 255 bytes without / and control characters")
    return tree


def tree_path(tree: str, what: str) -> str:
    """The path of a URL, percent-encoded: `what` is what the module lists behind TREE/."""
    return f"/v1/trees/{quote(check_tree(tree), safe='')}/{what}"


def etag(blob: bytes) -> str:
    """The ETag of a signed root."""
    return f'"{hashlib.sha256(blob).hexdigest()[:32]}"'


# --- journal ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a child is: everything up to `sequence` of the journal `journal` (16 bytes; b"": none yet)."""

    journal: bytes = b""
    sequence: int = 0


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes after a cursor; `cursor` is where to go on from once they are published, `last` the newest there is.

    Who has everything up to `last` has what the origin had `lag_s` seconds before this was sent (at most), and all of the
    origin's `version`. `root`: the signed root of the tree as it is at just `cursor`; b"": none is known, or asked.
    """

    changes: Sequence[Change]
    cursor: Cursor
    last: int
    lag_s: float = 0.0
    version: int = 0
    root: bytes = b""


@dataclass(frozen=True, slots=True)
class Proof:
    """The tree as it is at `sequence` of a node's own journal has this signed root."""

    sequence: int
    root: bytes


@dataclass(frozen=True, slots=True)
class Behind:
    """The journal cannot bring this child up to date: compare manifests, then go on from `cursor`."""

    cursor: Cursor
    why: str


class Question(NamedTuple):
    """What a child asks of a journal. `wait_s`: at most so long for something to come, or for a root with `prove`."""

    after: Cursor
    wait_s: float
    published: Cursor
    prove: bool


def journal_query(after: Cursor, wait_s: float, published: Cursor | None = None, prove: bool = False) -> dict[str, str]:
    """The query of a request for what came after `after`; `published`: all that is published, when that is less."""
    query = {"id": after.journal.hex(), "after": str(after.sequence), "wait": f"{wait_s:.3f}"}
    if published is not None:
        query["published"] = str(published.sequence)
    return {**query, "prove": "1"} if prove else query


def parse_journal_query(query: Mapping[str, str]) -> Question:
    """What is asked; `wait_s` is MAX_WAIT_S at most. MessageError when it is not of its form."""
    after, wait = query.get("after", "0"), query.get("wait", "0")
    published = query.get("published", after)
    for name, text in (("after", after), ("published", published)):
        if not re.fullmatch(r"[0-9]{1,19}", text) or int(text) > MAX_SEQUENCE:
            raise MessageError(f"{name}={text[:40]!r} is not a sequence number", "give the cursor of the last batch")
    if int(published) > int(after):
        raise MessageError(f"published={published} is beyond after={after}", "the sender is broken")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", wait):
        raise MessageError(f"wait={wait[:40]!r} is not a number of seconds", f"0 to {MAX_WAIT_S:g}")
    if (prove := query.get("prove", "0")) not in ("0", "1"):
        raise MessageError(f"prove={prove[:40]!r} is neither 0 nor 1", "the sender is broken, or newer")
    journal = _id(query.get("id", ""))
    return Question(
        Cursor(journal, int(after)), min(float(wait), MAX_WAIT_S), Cursor(journal, int(published)), prove == "1"
    )


def encode_batch(batch: Batch) -> bytes:
    """A line of JSON, which says how many changes follow, and the changes."""
    head = {"id": batch.cursor.journal.hex(), "cursor": batch.cursor.sequence, "last": batch.last}
    head |= {"lag_ms": min(round(batch.lag_s * 1000), MAX_SEQUENCE), "version": batch.version}
    if batch.root:
        head["root"] = batch.root.hex()
    line = json.dumps({**head, "changes": len(batch.changes)}).encode("ascii")
    return b"\n".join([line, pack_changes(batch.changes)])


def size_of(batch: Batch) -> int:
    """Bytes that `encode_batch` makes, at most."""
    return 300 + 2 * MAX_ROOT_BYTES + len(pack_changes(batch.changes))


def decode_batch(data: bytes) -> Batch:
    """The batch in an answer; MessageError unless it is whole and every path is one below a tree."""
    if len(data) > MAX_BATCH_BYTES:
        raise MessageError(f"a journal batch of {len(data)} bytes", f"{MAX_BATCH_BYTES} are allowed")
    line, end, body = data.partition(b"\n")
    head = _object(line)
    count = _int(head, "changes", MAX_BATCH)
    if not end:
        raise MessageError("a journal batch without an end of its head", "it was cut")
    changes = unpack_changes(body, count)
    cursor = Cursor(_id(head.get("id")), _int(head, "cursor"))
    last, lag_s, version = _int(head, "last"), _int(head, "lag_ms") / 1000, _int(head, "version")
    return Batch(changes, cursor, last, lag_s, version, _root(head.get("root", "")))


def encode_behind(behind: Behind) -> bytes:
    """The body of a 410."""
    fields = {"id": behind.cursor.journal.hex(), "cursor": behind.cursor.sequence}
    return json.dumps({**fields, "why": behind.why[:MAX_TEXT], "do": "compare manifests instead"}).encode("ascii")


def decode_behind(data: bytes) -> Behind:
    """What a 410 says."""
    fields = _object(data)
    return Behind(Cursor(_id(fields.get("id")), _int(fields, "cursor")), _text(fields, "why"))


# --- listings -----------------------------------------------------------------------------------------------------------

_FRAME = struct.Struct(">BQ")  # 1: a listing of so many bytes follows; 0: there is no such directory


def encode_ask(paths: Sequence[bytes], limit: int = MAX_ASKED) -> bytes:
    """The body that asks for the listings of these directories, or for these files; at most `limit` of them."""
    if len(paths) > limit:
        raise ValueError(f"{len(paths)} paths in one request; {limit} are allowed")
    return b"".join([path + b"\0" for path in paths])


def decode_ask(data: bytes, limit: int = MAX_ASKED) -> tuple[bytes, ...]:
    """The paths asked for; MessageError when there are none, more than `limit`, or one that is not below a tree."""
    if not data.endswith(b"\0") or len(data) > MAX_ASK_BYTES or (count := data.count(b"\0")) > limit:
        raise MessageError("a request for paths that is not of its form", f"1 to {limit} paths, NUL behind each")
    paths = data.split(b"\0", count)[:-1]
    return tuple(_checked(path) for path in paths)


def encode_listings(listings: Iterable[bytes | None]) -> list[bytes]:
    """Frames to send for the listings of the asked directories in their order, as many as fit, the first in any case."""
    parts: list[bytes] = []
    total = 0
    for listing in listings:
        body = listing or b""
        if parts and total + len(body) > MAX_LISTINGS_BYTES:
            break
        total += len(body)
        parts += [_FRAME.pack(listing is not None, len(body)), body]
    return parts


def decode_listings(asked: Sequence[bytes], data: bytes) -> dict[bytes, bytes | None]:
    """The listings of the first so many of `asked`; MessageError when the answer is cut or holds none."""
    found: dict[bytes, bytes | None] = {}
    at = 0
    for path in asked:
        if at == len(data):
            break
        if len(data) - at < _FRAME.size:
            raise MessageError("an answer with listings that ends inside a frame", "the connection was cut")
        there, size = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if there > 1 or size > MAX_LISTING_BYTES or size > len(data) - at or (size and not there):
            raise MessageError(f"the listing of {path!r} has a malformed frame", "the connection was cut, or broken")
        found[path] = data[at : at + size] if there else None
        at += size
    if at != len(data) or not found:
        raise MessageError("an answer with more or fewer listings than were asked for", "the sender is broken")
    return found


# --- small files --------------------------------------------------------------------------------------------------------


class Lack(Enum):
    """Why there is no content; the number is the first byte of the frame."""

    GONE = 1
    NO_FILE = 2
    """a directory, a symlink, or what is not replicated at all"""
    TOO_LARGE = 3
    CHANGED = 4
    """it changed while it was read"""
    UNREADABLE = 5
    """the parent may not read it, or its disk cannot"""


class Content(NamedTuple):
    """A small file as it was when it was read whole."""

    mode: int
    mtime_ns: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Linked:
    """Another name of the file that is answer number `index` of the same request: a hard link."""

    index: int


Answer = Content | Linked | Lack

_FOUND, _LINKED = 0, 6
_CONTENT = struct.Struct(">BHIq")  # 0, mode, size, mtime_ns; then the content
_LINK = struct.Struct(">BH")  # 6, index


def encode_files(answers: Iterable[Answer]) -> list[bytes]:
    """Frames for the asked paths in their order, as many as fit; `answers` is not asked for more than one beyond that."""
    parts: list[bytes] = []
    total = 0
    frame: tuple[bytes, ...]
    for answer in answers:
        if isinstance(answer, Content):
            if len(answer.content) > SMALL_FILE_BYTES:
                raise ValueError(f"a file of {len(answer.content)} bytes; {SMALL_FILE_BYTES} are allowed")
            frame = (_CONTENT.pack(_FOUND, answer.mode, len(answer.content), answer.mtime_ns), answer.content)
            total += _CONTENT.size + len(answer.content)
        elif isinstance(answer, Linked):
            frame = (_LINK.pack(_LINKED, answer.index),)
            total += _LINK.size
        else:
            frame = (bytes([answer.value]),)
            total += 1
        if total > MAX_FILES_BYTES:
            break
        parts += frame
    return parts


def decode_files(asked: int, data: bytes) -> list[Answer]:
    """Answers to the first so many of `asked` paths; MessageError when one is cut or malformed, or there is none."""
    if len(data) > MAX_FILES_BYTES:
        raise MessageError(f"an answer of {len(data)} bytes with files", f"{MAX_FILES_BYTES} are allowed")
    answers: list[Answer] = []
    at = 0
    while at < len(data) and len(answers) < asked:
        answer, at = _decode_answer(data, at)
        # One step only: what is named must have been sent, so there are no chains and no cycles.
        if isinstance(answer, Linked) and not (
            answer.index < len(answers) and isinstance(answers[answer.index], Content)
        ):
            raise MessageError("a hard link to a file that was not sent before it", "the sender is broken or hostile")
        answers.append(answer)
    if at != len(data) or not answers:
        raise MessageError("an answer with more or fewer files than were asked for", "the sender is broken")
    return answers


def _decode_answer(data: bytes, at: int) -> tuple[Answer, int]:
    """(the answer whose frame begins at `at`, where the next one begins)."""
    code = data[at]
    try:
        if code == _LINKED:
            return Linked(_LINK.unpack_from(data, at)[1]), at + _LINK.size
        if code != _FOUND:
            return Lack(code), at + 1
        _, mode, size, mtime_ns = _CONTENT.unpack_from(data, at)
    except struct.error:
        raise MessageError("an answer with files that ends inside a frame", "the connection was cut") from None
    except ValueError:
        raise MessageError(f"an answer of kind {code} about a file", "the parent runs a newer syncd") from None
    at += _CONTENT.size
    if mode > 0o7777 or size > min(SMALL_FILE_BYTES, len(data) - at) or mtime_ns < -MAX_SEQUENCE:
        raise MessageError("a file with a malformed frame", "the connection was cut, or the sender is broken")
    return Content(mode, mtime_ns, data[at : at + size]), at + size


# --- hard links ---------------------------------------------------------------------------------------------------------


def encode_links(groups: Iterable[Sequence[bytes]]) -> bytes:
    """Names, NUL behind each, one more NUL behind each group."""
    return b"".join([b"".join([name + b"\0" for name in group]) + b"\0" for group in groups])


def decode_links(data: bytes) -> list[tuple[bytes, ...]]:
    """The groups in an answer; MessageError unless each is of at least two names below a tree."""
    if len(data) > MAX_LINKS_BYTES * 2 or (data and not data.endswith(b"\0\0")):
        raise MessageError("an answer with links that is not of its form", "it was cut, or the other node is broken")
    groups = [tuple(group.split(b"\0")) for group in data.split(b"\0\0")[:-1]]
    if any(len(group) < 2 for group in groups):
        raise MessageError("a file with fewer than two names among the links", "the other node is broken")
    for group in groups:
        for name in group:
            if not _checked(name):
                raise MessageError("a link without a name", "the other node is broken")
    return groups


# --- fields of what came over the network -------------------------------------------------------------------------------


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MessageError(f"{line[:80]!r} is not a JSON object", "the other node speaks another protocol or version")
    return found


def _int(fields: Mapping[str, Any], name: str, high: int = MAX_SEQUENCE) -> int:
    value = fields.get(name)
    if type(value) is not int or not 0 <= value <= high:
        raise MessageError(f"{name} is {str(value)[:80]!r}", f"a number from 0 to {high} belongs there")
    return value


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise MessageError(f"{name} is {str(value)[:80]!r}", f"text of at most {MAX_TEXT} characters belongs there")
    return value


def _hex(value: object, size: int) -> bytes:
    if not isinstance(value, str) or not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", value):
        raise MessageError(f"{str(value)[:80]!r} is not of its form", f"{2 * size} hex digits belong there")
    return bytes.fromhex(value)


def _root(value: object) -> bytes:
    if not isinstance(value, str) or len(value) > 2 * MAX_ROOT_BYTES or not re.fullmatch("(?:[0-9a-f]{2})*", value):
        raise MessageError(f"{str(value)[:80]!r} is not a signed root", f"hex digits of at most {MAX_ROOT_BYTES} bytes")
    return bytes.fromhex(value)


def _id(value: object) -> bytes:
    return b"" if value == "" else _hex(value, _ID_BYTES)


def _checked(path: bytes) -> bytes:
    try:
        return check_path(path)
    except PathError as error:
        raise MessageError(error.what, error.fix) from None
