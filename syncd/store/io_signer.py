"""Signing the root of a tree as its ledger has it: at the origin, and where a tree comes from a server without a syncd."""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from pathlib import Path

from core.errors import NearpathError
from syncd.store.io_ledger import Ledger
from syncd.store.manifest import ManifestError
from syncd.store.signed_root import KEY_BYTES, Root, public_key, sign_root, verify_root


def sign(ledger: Ledger, tree: str, seed: bytes, last: Root | None) -> Root:
    """Sign and keep the root as the ledger has it now, unless that is `last`, what was signed before; the root."""
    if last is None and (blob := ledger.kept_root()):
        with suppress(ManifestError):
            last = verify_root(blob, public_key(seed), tree, None)
    root_hash, sequence = ledger.root_hash()
    if last is not None and (last.root_hash, last.sequence) == (root_hash, sequence):
        return last
    # Wall seconds, so that versions go on growing when the index was lost; and people can read them.
    version = int(time.time())
    if last is not None:
        version = last.version if last.root_hash == root_hash else max(version, last.version + 1)
    root = Root(tree, version, root_hash, sequence, time.time())
    ledger.keep_root(sign_root(root, seed))
    return root


def read_key(file: Path) -> bytes:
    """The secret key in `file` (64 hex digits), made when there is none; NearpathError when it cannot be used."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with os.fdopen(handle, "w", encoding="ascii") as stream:
                stream.write(secrets.token_bytes(KEY_BYTES).hex() + "\n")
        seed = bytes.fromhex(file.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise NearpathError(f"the key {file} cannot be used: {error}", "64 hexadecimal digits, mode 0600") from None
    if len(seed) != KEY_BYTES:
        raise NearpathError(f"the key {file} has {len(seed)} bytes", f"it must have {KEY_BYTES}, in hexadecimal")
    return seed
