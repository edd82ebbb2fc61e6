"""The root that an origin signs: which tree, which version of it, its hash, and the journal position it stands for.

Ed25519 (RFC 8032) over canonical bytes. A child keeps the last root it accepted and refuses whatever would take it
back: a replayed old root is how an attacker would make a mirror serve yesterday's vulnerable packages.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from syncd.store.manifest import HASH_BYTES, ManifestError

SIGNATURE_BYTES = 64
KEY_BYTES = 32
MAX_TREE_NAME_BYTES = 255
MAX_ROOT_BYTES = 512

# sealed, version, sequence, wall_s, hash, length of the tree's name
_BODY = struct.Struct(">BQQd32sB")
_MAGIC = b"nearpath-root-v1\0"
"""First of the signed bytes: the key can sign other things without one being taken for the other."""


@dataclass(frozen=True, slots=True)
class Root:
    """What an origin says of its tree. `version` grows with every publish, `sequence` is its journal's last number.

    `wall_s`: the origin's wall clock when it signed, for people and for lag_s; no decision to trust depends on it.
    """

    tree: str
    version: int
    root_hash: bytes
    sequence: int
    wall_s: float
    sealed: bool = False


def public_key(seed: bytes) -> bytes:
    """The 32-byte public key of a 32-byte secret seed."""
    return Ed25519PrivateKey.from_private_bytes(_key(seed, "secret")).public_key().public_bytes_raw()


def sign_root(root: Root, seed: bytes) -> bytes:
    """`root` in canonical bytes, with the signature behind it; `seed` is the 32-byte secret."""
    body = canonical(root)
    return body + Ed25519PrivateKey.from_private_bytes(_key(seed, "secret")).sign(body)


def canonical(root: Root) -> bytes:
    """The bytes that are signed: one encoding for one root. ValueError when a field is out of its range."""
    name = root.tree.encode("utf-8")
    if not 0 < len(name) <= MAX_TREE_NAME_BYTES or len(root.root_hash) != HASH_BYTES or not math.isfinite(root.wall_s):
        raise ValueError(f"a root that cannot be signed: {root}")
    head = _BODY.pack(root.sealed, root.version, root.sequence, root.wall_s, root.root_hash, len(name))
    return _MAGIC + head + name


def verify_root(blob: bytes, key: bytes, tree: str, last: Root | None) -> Root:
    """The root in `blob` when the origin with public `key` signed it for `tree` and it is not older than `last`.

    ManifestError otherwise, which says which of these it was. `last` is what this node accepted before, from its disk.
    """
    fixed = len(_MAGIC) + _BODY.size
    if not fixed + SIGNATURE_BYTES < len(blob) <= MAX_ROOT_BYTES or not blob.startswith(_MAGIC):
        raise ManifestError("this is not a signed root", "the other node speaks another protocol or version")
    body, signature = blob[:-SIGNATURE_BYTES], blob[-SIGNATURE_BYTES:]
    try:
        Ed25519PublicKey.from_public_bytes(_key(key, "public")).verify(signature, body)
    except InvalidSignature:
        raise ManifestError(
            f"the root of tree {tree!r} is not signed with the origin's key",
            "compare the public key in this node's configuration with the origin's; it may also be an attack",
        ) from None
    root = _decode(body)
    if root.tree != tree:
        raise ManifestError(f"a root of tree {root.tree!r} where {tree!r} was asked for", "check the parent's trees")
    if last is not None:
        _check_forward(root, last)
    return root


def _decode(body: bytes) -> Root:
    sealed, version, sequence, wall_s, root_hash, name_len = _BODY.unpack_from(body, len(_MAGIC))
    try:
        name = body[len(_MAGIC) + _BODY.size :].decode("utf-8")
        root = Root(name, version, root_hash, sequence, wall_s, bool(sealed))
        if canonical(root) != body or len(name.encode()) != name_len:
            raise ValueError
    except (UnicodeDecodeError, ValueError):
        raise ManifestError("a signed root that is malformed", "the origin runs another version of syncd") from None
    return root


def _check_forward(root: Root, last: Root) -> None:
    # Sequence numbers are of one journal: an origin that lost its index begins a new one, with a higher version.
    if root.version < last.version or (root.version == last.version and root.sequence < last.sequence):
        raise ManifestError(
            f"the root of tree {root.tree!r} goes back from version {last.version} (sequence {last.sequence}) to "
            f"{root.version} ({root.sequence})",
            "the parent is behind: another one is asked; if the origin was restored from a backup, `syncd trust` anew",
        )
    if root.version == last.version and (root.root_hash, root.sealed) != (last.root_hash, last.sealed):
        raise ManifestError(
            f"two different roots of tree {root.tree!r} have version {root.version}",
            "two origins share one key, or the origin lost its state; stop one, then `syncd trust` anew",
        )
    if last.sealed and not root.sealed:
        raise ManifestError(
            f"the root of tree {root.tree!r} no longer covers contents",
            "did the origin switch `contents: signed` off? then `syncd trust`",
        )


def _key(key: bytes, which: str) -> bytes:
    if len(key) != KEY_BYTES:
        raise ManifestError(f"a {which} key of {len(key)} bytes", f"an ed25519 key has {KEY_BYTES}")
    return key
