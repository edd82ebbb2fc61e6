"""Signing the root of a tree as its ledger has it: at the origin, and where a tree comes from a server without a syncd."""

from __future__ import annotations

import os
import re
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from core.errors import NearpathError
from syncd.store.io_ledger import Ledger
from syncd.store.manifest import ManifestError
from syncd.store.signed_root import KEY_BYTES, Root, public_key, sign_root, verify_root

_MAX_KEY_FILE_BYTES = 1024


def sign(ledger: Ledger, tree: str, seed: bytes, last: Root | None) -> Root:
    """Sign and keep the root as the ledger has it now, unless that is `last`, what was signed before; the root."""
    if last is None and (blob := ledger.kept_root()):
        with suppress(ManifestError):
            last = verify_root(blob, public_key(seed), tree, None)
    root_hash, sequence = ledger.root_hash()
    sealed = ledger.is_sealed()
    if last is not None and (last.root_hash, last.sequence, last.sealed) == (root_hash, sequence, sealed):
        return last
    # Wall seconds, so that versions go on growing when the index was lost; and people can read them.
    version = int(time.time())
    if last is not None:
        is_same = (last.root_hash, last.sealed) == (root_hash, sealed)
        version = last.version if is_same else max(version, last.version + 1)
    root = Root(tree, version, root_hash, sequence, time.time(), sealed)
    ledger.keep_root(sign_root(root, seed))
    return root


def read_key(file: Path) -> bytes:
    """The secret key in `file` (64 hex digits), made when there is none; NearpathError when it cannot be used."""
    try:
        if not file.exists():
            _make_key(file)
        with open(file, "rb") as stream:
            text = stream.read(_MAX_KEY_FILE_BYTES).strip()
    except OSError as error:
        raise NearpathError(
            f"the key {file} cannot be used: {error.strerror}", "check its owner and mode (0600)"
        ) from None
    # What is wrong in it is not said: most of it may be the key.
    if not re.fullmatch(b"[0-9a-fA-F]{%d}" % (2 * KEY_BYTES), text):
        raise NearpathError(
            f"the key {file} is not one: {len(text)} characters" if text else f"the key {file} is empty",
            f"bring back its backup ({2 * KEY_BYTES} hexadecimal digits); without one remove it: a new key is made, "
            "and every copy needs its `syncd key`",
        )
    return bytes.fromhex(text.decode("ascii"))


def _make_key(file: Path) -> None:
    """Draw a key; it has its name only when it is whole and on disk. Who comes second uses the first one's."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, fresh = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)  # of mode 0600
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
            stream.flush()
            os.fsync(stream.fileno())
        with suppress(FileExistsError):
            os.link(fresh, file)
    finally:
        os.unlink(fresh)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
