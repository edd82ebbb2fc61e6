"""A served tree for tests: the real server on loopback, plain or with TLS, and a child of it."""

# ruff: noqa: ASYNC110 (a test has its loop to itself)

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from core.exclude import NOTHING, Exclude
from core.io_http import bind_tcp, bound_address, server_tls
from core.tokens import token_sha256
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.plan import Fetch
from syncd.store.manifest import Manifest
from syncd.store.signed_root import Root, sign_root
from syncd.transfer import wire
from syncd.transfer.io_parent import Parent
from syncd.transfer.io_serve import Limits, Server, Serving

TOKEN = "right-token"
ID = b"j" * 16
SEED = b"s" * 32


class OneParent:
    """The one parent, and what was said of it."""

    def __init__(self, parent: Parent) -> None:
        self.parent = parent
        self.faults: list[str] = []

    def choose(self, tree: str) -> tuple[str, Parent] | None:
        return "up", self.parent

    def wake(self, tree: str) -> None:
        pass

    def worked(self, name: str, tree: str, lag_s: float) -> None:
        pass

    def failed(self, name: str, tree: str, why: str) -> None:
        self.faults.append(why)


class FakeTree:
    """A Source with one tree on disk; its journal is a list."""

    def __init__(self, root: Path) -> None:
        self.disk = root
        self.changes: list[Change] = []
        self.floor = 0
        self.cursors: dict[tuple[str, str], wire.Cursor] = {}
        self.limits: list[int] = []
        self.asked = 0
        self.proof: wire.Proof | None = None
        self.wanted: list[int] = []
        self.news = asyncio.Event()
        self.blob: bytes | None = sign_root(Root("t", 1, b"h" * 32, 0, 1.0), SEED)
        self.manifest = Manifest(self.entries)
        self.groups: list[tuple[bytes, ...]] = []
        self.left_out = NOTHING
        self.partial = ""

    def add(self, *paths: bytes) -> None:
        for path in paths:
            self.changes.append(Change(len(self.changes) + 1, Op.DELETE, path))
        self.news.set()

    def entries(self, path: bytes) -> list[Entry]:
        here = os.path.join(os.fsencode(self.disk), path)
        return [entry_of(os.fsencode(self.disk), os.path.join(path, name)) for name in os.listdir(here)]

    async def root(self, tree: str) -> bytes | None:
        return self.blob if tree == "t" else None

    async def journal(
        self, tree: str, after: wire.Cursor, limit: int, proof: wire.Proof | None = None
    ) -> wire.Batch | wire.Behind | None:
        self.limits.append(limit)
        last = len(self.changes)
        if after.journal != ID or after.sequence < self.floor:
            return wire.Behind(wire.Cursor(ID, last), "too far")
        found = tuple(self.changes[after.sequence : None if proof is None else proof.sequence][:limit])
        end = found[-1].sequence if found else after.sequence
        root = proof.root if proof is not None and proof.sequence == end else b""
        return wire.Batch(found, wire.Cursor(ID, end), last, root=root)

    async def proved(self, tree: str, sequence: int) -> wire.Proof | None:
        self.wanted.append(sequence)
        while self.proof is None or self.proof.sequence < sequence:
            self.news.clear()
            await self.news.wait()
        return self.proof

    def prove(self, sequence: int) -> bytes:
        """The tree as it is at `sequence` is proved; the root."""
        self.proof = wire.Proof(sequence, sign_root(Root("t", 1, b"h" * 32, sequence, 1.0), SEED))
        self.news.set()
        return self.proof.root

    async def changed(self, tree: str, sequence: int) -> None:
        while len(self.changes) <= sequence:
            self.news.clear()
            await self.news.wait()

    async def moved(self, tree: str, node: str, cursor: wire.Cursor) -> None:
        self.cursors[tree, node] = cursor

    async def listings(self, tree: str, paths: Sequence[bytes]) -> Sequence[bytes | None] | None:
        self.asked += 1
        return [self.manifest.listing_bytes(path) for path in paths[:7]]

    async def links(self, tree: str) -> Sequence[tuple[bytes, ...]] | None:
        return self.groups

    async def path(self, tree: str) -> str | None:
        return str(self.disk) if tree == "t" else None

    def exclude(self, _tree: str) -> Exclude:
        return self.left_out

    def why_not(self, _tree: str) -> str:
        return self.partial


def entry_of(root: bytes, path: bytes) -> Entry:
    found = os.lstat(os.path.join(root, path))
    mode = stat.S_IMODE(found.st_mode)
    if stat.S_ISDIR(found.st_mode):
        return Entry(path, Kind.DIRECTORY, mode)
    return Entry(path, Kind.FILE, mode, found.st_size, found.st_mtime_ns)


class Site:
    """A served tree and a child with its own stage, token and trust."""

    def __init__(self, home: Path, source: FakeTree, server: Server, url: str, ca: str) -> None:
        self.home, self.source, self.server, self.url, self.ca = home, source, server, url, ca
        self.stage = home / "stage"
        self.parent = self.child()

    def child(self, token: str = TOKEN, node: str = "edge1", ca: str | None = None) -> Parent:
        file = self.home / f"token of {token}"
        file.write_text(token + "\n")
        return Parent(self.url, node, str(file), self.ca if ca is None else ca)

    def file(self, path: bytes, content: bytes = b"") -> Fetch:
        place = os.path.join(os.fsencode(self.source.disk), path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        with open(place, "wb") as file:
            file.write(content or path * 3)
        os.utime(place, ns=(0, 1_700_000_000_123_456_789))
        return Fetch(entry_of(os.fsencode(self.source.disk), path))

    def staged(self, path: bytes) -> bytes:
        with open(os.path.join(os.fsencode(self.stage), path), "rb") as file:
            return file.read()

    async def quiet(self) -> None:
        """Wait until no stream runs: the server ends them soon after their child went away."""
        await until(lambda: not self.server.streams)


async def until(is_true: Callable[[], bool]) -> None:
    while not is_true():
        await asyncio.sleep(0.01)


def make_certificate(home: Path) -> tuple[str, str]:
    """(certificate, key) for 127.0.0.1; needs openssl."""
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    made += ["-keyout", f"{home}/key.pem", "-out", f"{home}/cert.pem", "-subj", "/CN=parent"]
    subprocess.run([*made, "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return f"{home}/cert.pem", f"{home}/key.pem"


@asynccontextmanager
async def served(
    home: Path, tls: tuple[str, str] | None = None, limits: Limits | None = None, serving: Serving | None = None
) -> AsyncIterator[Site]:
    (home / "parent tree").mkdir()
    (home / "stage").mkdir()
    source = FakeTree(home / "parent tree")
    children = {
        "edge1": wire.Child("edge1", token_sha256(TOKEN), frozenset({"t", "later"})),
        "edge2": wire.Child("edge2", token_sha256("other-token"), frozenset({"other"})),
    }
    owner = (os.getuid(), os.getgid()) if os.getuid() == 0 else None
    server = Server(source, children, limits or Limits(), serving or Serving(owner=owner))
    sock = bind_tcp("127.0.0.1:0")
    address = bound_address(sock)
    await server.start(sock, server_tls(*tls, both_ours=True) if tls else None)
    site = Site(home, source, server, f"{'https' if tls else 'http'}://{address}", tls[0] if tls else "")
    try:
        yield site
    finally:
        await site.parent.close()
        await server.stop()
