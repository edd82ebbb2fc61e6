"""What parent and child say to each other over the one port: requests, answers, and who may ask.

    GET  /v1/trees/TREE/root                          the signed root; `ETag`, so that "nothing changed" is one 304
    GET  /v1/trees/TREE/journal?id=ID&after=N&wait=S  JSON lines: a head, then a change per line; waits for one
    POST /v1/trees/TREE/listings                      paths, NUL behind each; answered by framed listings
    GET  /v1/trees/TREE/rsync                         101, then the stream of an rsync daemon

Every request has `Authorization: Bearer TOKEN` and `X-Nearpath-Node`. Paths are bytes: percent-encoded where text is
needed, in one canonical way. Whatever is not of its form is a MessageError, whichever side sent it.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes

from core.errors import MessageError
from syncd.manifest import MAX_ASKED, MAX_LISTING_BYTES
from syncd.model import MAX_NAME_BYTES, MAX_PATH_BYTES, Change, Entry, Kind, Op, PathError, check_path

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
MAX_SEQUENCE = 2**63 - 1
MAX_TEXT = 1000
_MAX_TOKEN_LEN = 512
_ID_BYTES = 16
_NODE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}")


# --- who may ask --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Child:
    """A node that may pull `trees`. Only the hash of its token is known here: 64 hex digits of SHA-256."""

    node: str
    token_sha256: str
    trees: frozenset[str]


_NO_TOKEN = hashlib.sha256(b"no node has this token").hexdigest()


def token_sha256(token: str) -> str:
    """What a parent's configuration holds of a child's token."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def refusal(children: Mapping[str, Child], node: str, authorization: str, tree: str) -> tuple[int, str] | None:
    """Why this request is refused: (401 or 403, what to do about it); None when it is allowed.

    An unknown node takes as long as a wrong token, and is told the same.
    """
    scheme, _, token = authorization.partition(" ")
    child = children.get(node)
    known = child.token_sha256 if child else _NO_TOKEN
    given = token_sha256(token if len(token) <= _MAX_TOKEN_LEN else "")
    right = hmac.compare_digest(given.encode(), known.encode("utf-8", "replace"))
    if child is None or not right or scheme.lower() != "bearer":
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
    """The path of a URL, percent-encoded: `what` is root, journal, listings or rsync."""
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
    """Changes after a cursor; `cursor` is where to go on from once they are published, `last` the newest there is."""

    changes: tuple[Change, ...]
    cursor: Cursor
    last: int


@dataclass(frozen=True, slots=True)
class Behind:
    """The journal cannot bring this child up to date: compare manifests, then go on from `cursor`."""

    cursor: Cursor
    why: str


def journal_query(cursor: Cursor, wait_s: float) -> dict[str, str]:
    """The query of a request for what came after `cursor`."""
    return {"id": cursor.journal.hex(), "after": str(cursor.sequence), "wait": f"{wait_s:.3f}"}


def parse_journal_query(query: Mapping[str, str]) -> tuple[Cursor, float]:
    """(cursor, how long to wait in seconds, at most MAX_WAIT_S); MessageError when it is not of its form."""
    after, wait = query.get("after", "0"), query.get("wait", "0")
    if not re.fullmatch(r"[0-9]{1,19}", after) or int(after) > MAX_SEQUENCE:
        raise MessageError(f"after={after[:40]!r} is not a sequence number", "give the cursor of the last batch")
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", wait):
        raise MessageError(f"wait={wait[:40]!r} is not a number of seconds", f"0 to {MAX_WAIT_S:g}")
    return Cursor(_id(query.get("id", "")), int(after)), min(float(wait), MAX_WAIT_S)


def encode_batch(batch: Batch) -> bytes:
    """JSON lines: the head, which says how many changes follow, and each change."""
    head = {"id": batch.cursor.journal.hex(), "cursor": batch.cursor.sequence, "last": batch.last}
    lines = [json.dumps({**head, "changes": len(batch.changes)})]
    lines += [json.dumps(_change_fields(change), separators=(",", ":")) for change in batch.changes]
    return ("\n".join(lines) + "\n").encode("ascii")


def decode_batch(data: bytes) -> Batch:
    """The batch in an answer; MessageError unless it is whole and every path is one below a tree."""
    if len(data) > MAX_BATCH_BYTES:
        raise MessageError(f"a journal batch of {len(data)} bytes", f"{MAX_BATCH_BYTES} are allowed")
    lines = data.split(b"\n")
    head = _object(lines[0])
    count = _int(head, "changes", MAX_BATCH)
    if len(lines) != count + 2 or lines[-1]:
        raise MessageError(f"a journal batch of {len(lines) - 2} lines where {count} were promised", "it was cut")
    changes = tuple(_change(_object(line)) for line in lines[1:-1])
    return Batch(changes, Cursor(_id(head.get("id")), _int(head, "cursor")), _int(head, "last"))


def encode_behind(behind: Behind) -> bytes:
    """The body of a 410."""
    fields = {"id": behind.cursor.journal.hex(), "cursor": behind.cursor.sequence}
    return json.dumps({**fields, "why": behind.why[:MAX_TEXT], "do": "compare manifests instead"}).encode("ascii")


def decode_behind(data: bytes) -> Behind:
    """What a 410 says."""
    fields = _object(data)
    return Behind(Cursor(_id(fields.get("id")), _int(fields, "cursor")), _text(fields, "why"))


def _change_fields(change: Change) -> dict[str, object]:
    fields: dict[str, object] = {"n": change.sequence, "op": change.op.value, "path": quote_from_bytes(change.path)}
    if change.op is Op.RENAME:
        fields["from"] = quote_from_bytes(change.source)
    if change.entry is not None:
        entry = change.entry
        fields |= {"kind": entry.kind.value, "mode": entry.mode, "size": entry.size, "mtime_ns": entry.mtime_ns}
        if entry.target:
            fields["target"] = quote_from_bytes(entry.target)
        if entry.digest is not None:
            fields["digest"] = entry.digest.hex()
    return fields


def _change(fields: Mapping[str, Any]) -> Change:
    try:
        op = Op(_text(fields, "op"))
    except ValueError:
        raise MessageError(f"a change of kind {fields.get('op')!r}", "the parent runs a newer syncd") from None
    path = _path(fields, "path")
    entry = None if op is Op.DELETE else _entry(path, fields)
    source = _path(fields, "from") if op is Op.RENAME else b""
    if not path or (op is Op.RENAME and not source):
        raise MessageError(f"a change ({op.value}) of the root itself", "the sender is broken or hostile")
    return Change(_int(fields, "n"), op, path, entry, source)


def _entry(path: bytes, fields: Mapping[str, Any]) -> Entry:
    try:
        kind = Kind(_text(fields, "kind"))
    except ValueError:
        raise MessageError(f"an entry of kind {fields.get('kind')!r}", "the parent runs a newer syncd") from None
    target = _quoted(fields, "target") if "target" in fields else b""
    digest = _hex(fields.get("digest"), 32) if "digest" in fields else None
    size, mtime_ns = _int(fields, "size"), _int(fields, "mtime_ns", low=-MAX_SEQUENCE)
    is_link = kind is Kind.SYMLINK
    # One encoding of everything, as in a listing: see manifest.decode_listing.
    if bool(target) != is_link or b"\0" in target or len(target) > MAX_PATH_BYTES:
        raise MessageError(f"{path!r} has a malformed target", "the sender is broken or hostile")
    if kind is not Kind.FILE and (size or mtime_ns or digest):
        raise MessageError(f"{path!r} has what only a file has", "the sender is broken or hostile")
    return Entry(path, kind, _int(fields, "mode", 0o7777), size, mtime_ns, target, digest)


# --- listings -----------------------------------------------------------------------------------------------------------

_FRAME = struct.Struct(">BQ")  # 1: a listing of so many bytes follows; 0: there is no such directory


def encode_ask(paths: Sequence[bytes]) -> bytes:
    """The body that asks for the listings of these directories."""
    if len(paths) > MAX_ASKED:
        raise ValueError(f"{len(paths)} directories in one request; {MAX_ASKED} are allowed")
    return b"".join([path + b"\0" for path in paths])


def decode_ask(data: bytes) -> tuple[bytes, ...]:
    """The directories asked for; MessageError when there are none, too many, or one that is not below a tree."""
    if not data.endswith(b"\0") or len(data) > MAX_ASK_BYTES or (count := data.count(b"\0")) > MAX_ASKED:
        raise MessageError("a request for listings that is not of its form", f"1 to {MAX_ASKED} paths, NUL behind each")
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


# --- fields of what came over the network -------------------------------------------------------------------------------


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MessageError(f"{line[:80]!r} is not a JSON object", "the other node speaks another protocol or version")
    return found


def _int(fields: Mapping[str, Any], name: str, high: int = MAX_SEQUENCE, low: int = 0) -> int:
    value = fields.get(name)
    if type(value) is not int or not low <= value <= high:
        raise MessageError(f"{name} is {str(value)[:80]!r}", f"a number from {low} to {high} belongs there")
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


def _id(value: object) -> bytes:
    return b"" if value == "" else _hex(value, _ID_BYTES)


def _quoted(fields: Mapping[str, Any], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > 3 * MAX_PATH_BYTES or not value.isascii():
        raise MessageError(f"{name} is {str(value)[:80]!r}", "a percent-encoded path belongs there")
    path = unquote_to_bytes(value)
    if quote_from_bytes(path) != value:
        raise MessageError(f"{name} is {value[:80]!r}", "it is not percent-encoded in the one way there is")
    return path


def _path(fields: Mapping[str, Any], name: str) -> bytes:
    return _checked(_quoted(fields, name))


def _checked(path: bytes) -> bytes:
    try:
        return check_path(path)
    except PathError as error:
        raise MessageError(error.what, error.fix) from None
