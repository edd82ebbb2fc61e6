"""Manifests: equal trees have equal hashes; unequal ones are told by exactly their differing leaves; signed roots."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

import pytest

from syncd.model import Change, Entry, Kind, Op, PathError
from syncd.store.manifest import (
    EMPTY,
    Comparison,
    Leaf,
    Manifest,
    ManifestError,
    compare,
    decode_listing,
    encode_listing,
    listing_hash,
)
from syncd.store.signed_root import SIGNATURE_BYTES, Root, canonical, public_key, sign_root, verify_root
from tests.syncd.tree_model import Tree


class Counting:
    """The listing of a Tree, which counts what was read."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.read: list[bytes] = []

    def __call__(self, path: bytes) -> Iterable[Entry]:
        self.read.append(path)
        return [e for p, e in self.tree.whole().items() if p.rpartition(b"/")[0] == path]


Asked = list[tuple[bytes, ...]]


def settle(local: Manifest, remote: Manifest) -> tuple[list[Change], Asked]:
    """Run `compare` against `remote`, which rests meanwhile: (changes, what was asked)."""
    found, asked = settle_with(local, remote.listing_bytes)
    assert found.moved == []
    return found.changes, asked


def settle_with(local: Manifest, listing_bytes: Callable[[bytes], bytes | None]) -> tuple[Comparison, Asked]:
    walk = compare(local)
    asked: Asked = []
    answer: Mapping[bytes, bytes] | None = None
    while True:
        try:
            wanted = next(walk) if answer is None else walk.send(answer)
        except StopIteration as stop:
            return stop.value, asked
        asked.append(wanted)
        answer = {path: data for path in wanted if (data := listing_bytes(path)) is not None}


def random_tree(seed: int, size: int = 40) -> Tree:
    tree, rng = Tree(), random.Random(seed)
    for _ in range(size):
        tree.churn(rng)
    tree.journal.clear()
    return tree


@pytest.mark.parametrize("block", range(4))
def test_comparison_finds_exactly_the_differing_leaves(block: int) -> None:
    for seed in range(block * 50, block * 50 + 50):
        mine = random_tree(seed)
        theirs, rng = mine.copy(), random.Random(seed + 1_000_000)
        for _ in range(rng.randrange(8)):
            theirs.churn(rng)
        changes, asked = settle(Manifest(Counting(mine)), Manifest(Counting(theirs)))
        expected = {p for p, e in theirs.whole().items() if mine.whole().get(p) != e}
        assert {c.path for c in changes if c.op is Op.UPSERT} == expected
        assert all(c.entry == theirs.whole()[c.path] for c in changes if c.op is Op.UPSERT)
        # A deleted directory, or one that is something else now, stands for all below it.
        gone = {c.path for c in changes if c.op is Op.DELETE}
        for path in mine.entries.keys() - theirs.entries.keys():
            parents = [path[: i + 1] for i in range(len(path)) if path[i + 1 : i + 2] in (b"/", b"")]
            replaced = any(theirs.entries[p].kind is not Kind.DIRECTORY for p in parents if p in theirs.entries)
            assert gone & set(parents) or replaced
        assert not gone & theirs.entries.keys()
        if not changes:
            assert asked == [(b"",)]
        # Only directories that differ, and those above them, were asked for.
        flat = [path for batch in asked for path in batch]
        assert len(flat) == len(set(flat))
        for path in flat:
            assert path == b"" or any(
                p.startswith(path + b"/") for p in [*expected, *gone, *(e + b"/x" for e in theirs.entries if e == path)]
            )


def test_one_change_in_a_large_tree_costs_a_question_a_level() -> None:
    entries = [Entry(b"%d" % a, Kind.DIRECTORY, 0o755) for a in range(30)]
    entries += [Entry(b"%d/%d" % (a, b), Kind.DIRECTORY, 0o755) for a in range(30) for b in range(10)]
    entries += [
        Entry(b"%d/%d/%d" % (a, b, c), Kind.FILE, 0o644, c, 5) for a in range(30) for b in range(10) for c in range(5)
    ]
    mine = Tree({e.path: e for e in entries})
    theirs = mine.copy()
    theirs.set(theirs.entries[b"7/3/2"]._replace(mtime_ns=6))
    changes, asked = settle(Manifest(Counting(mine)), Manifest(Counting(theirs)))
    assert [(c.op, c.path) for c in changes] == [(Op.UPSERT, b"7/3/2")]
    assert asked == [(b"",), (b"7",), (b"7/3",)]


def test_what_is_of_one_node_only_does_not_count() -> None:
    one = Tree({b"f": Entry(b"f", Kind.FILE, 0o644, 3, 5, ctime_ns=1, inode=(1, 2), digest=b"x" * 32)})
    two = Tree({b"f": Entry(b"f", Kind.FILE, 0o644, 3, 5, ctime_ns=9, inode=(8, 7))})
    assert Manifest(Counting(one)).root_hash() == Manifest(Counting(two)).root_hash()
    assert Manifest(Counting(one), sealed=True).root_hash() != Manifest(Counting(two), sealed=True).root_hash()


@pytest.mark.parametrize(
    "other",
    [
        Entry(b"d/f", Kind.FILE, 0o600, 3, 5),
        Entry(b"d/f", Kind.FILE, 0o644, 4, 5),
        Entry(b"d/f", Kind.FILE, 0o644, 3, 6),
        Entry(b"d/g", Kind.FILE, 0o644, 3, 5),
        Entry(b"d/f", Kind.SYMLINK, 0o644, target=b"x"),
        Entry(b"d/f", Kind.DIRECTORY, 0o644),
    ],
)
def test_everything_else_counts(other: Entry) -> None:
    home = Entry(b"d", Kind.DIRECTORY, 0o755)
    one = Tree({b"d": home, b"d/f": Entry(b"d/f", Kind.FILE, 0o644, 3, 5)})
    two = Tree({b"d": home, other.path: other})
    assert Manifest(Counting(one)).root_hash() != Manifest(Counting(two)).root_hash()


@pytest.mark.parametrize("other", [{"mode": 0o711}, {"mtime_ns": 7}])
def test_attributes_of_the_root_are_one_change_and_nothing_else(other: dict[str, int]) -> None:
    mine = random_tree(5)
    theirs = mine.copy()
    theirs.set(mine.top._replace(**other))
    changes, asked = settle(Manifest(Counting(mine)), Manifest(Counting(theirs)))
    assert changes == [Change(0, Op.UPSERT, b"", theirs.top)]
    assert asked == [(b"",)]


def test_a_node_that_knows_nothing_of_its_root_takes_it_over_and_never_deletes_it() -> None:
    empty = Manifest(lambda _: [])
    assert empty.root_hash() == EMPTY
    theirs = Tree({b"f": Entry(b"f", Kind.FILE, 0o644, 3, 5)})
    changes, _ = settle(empty, Manifest(Counting(theirs)))
    assert changes == [Change(0, Op.UPSERT, b"", theirs.top), Change(0, Op.UPSERT, b"f", theirs.entries[b"f"])]
    changes, _ = settle(Manifest(Counting(theirs)), empty)
    assert changes == [Change(0, Op.DELETE, b"f")]


@pytest.mark.parametrize("kind", [Kind.DIRECTORY, Kind.SYMLINK])
def test_times_of_directories_and_symlinks_are_one_change(kind: Kind) -> None:
    mine = random_tree(6)
    path = next(path for path, entry in mine.entries.items() if entry.kind is kind)
    theirs = mine.copy()
    theirs.set(mine.entries[path]._replace(mtime_ns=-3))
    changes, _ = settle(Manifest(Counting(mine)), Manifest(Counting(theirs)))
    assert changes == [Change(0, Op.UPSERT, path, theirs.entries[path])]


def test_sealed_comparison_finds_rotten_content() -> None:
    good = Tree({b"f": Entry(b"f", Kind.FILE, 0o644, 3, 5, digest=b"a" * 32)})
    rotten = Tree({b"f": good.entries[b"f"]._replace(digest=b"b" * 32)})
    assert settle(Manifest(Counting(rotten)), Manifest(Counting(good))) == ([], [(b"",)])
    (change,), _ = settle(Manifest(Counting(rotten), sealed=True), Manifest(Counting(good), sealed=True))
    assert change.entry == good.entries[b"f"]


# --- kept up to date ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(60))
def test_applying_changes_gives_the_hash_of_a_new_manifest(seed: int) -> None:
    tree, rng = random_tree(seed, 25), random.Random(seed)
    kept = Manifest(Counting(tree))
    kept.root_hash()
    for _ in range(30):
        tree.churn(rng)
        for change in tree.journal:
            kept.apply(change)
        tree.journal.clear()
        if rng.random() < 0.5:
            assert kept.root_hash() == Manifest(Counting(tree)).root_hash()
    assert kept.root_hash() == Manifest(Counting(tree)).root_hash()


def test_a_change_reads_only_the_directories_above_it_and_many_read_them_once() -> None:
    tree = Tree()
    for path in (b"a", b"a/b", b"a/b/c", b"z", b"z/y"):
        tree.set(Entry(path, Kind.DIRECTORY, 0o755))
    listing = Counting(tree)
    manifest = Manifest(listing)
    manifest.root_hash()
    listing.read.clear()
    for number in range(100):
        tree.set(Entry(b"a/b/%d" % number, Kind.FILE, 0o644, 1, 1))
        manifest.apply(Change(number, Op.UPSERT, b"a/b/%d" % number, tree.entries[b"a/b/%d" % number]))
    manifest.root_hash()
    assert sorted(listing.read) == [b"", b"a", b"a/b"]
    listing.read.clear()
    tree.rename(b"a/b", b"z/moved")
    for change in tree.journal:
        manifest.apply(change)
    manifest.root_hash()
    assert sorted(listing.read) == [b"", b"a", b"z", b"z/moved"]  # not what lies below the moved directory


def test_very_deep_trees() -> None:
    tree = Tree()
    path = b"d"
    for _ in range(1900):
        tree.entries[path] = Entry(path, Kind.DIRECTORY, 0o755)
        path += b"/d"
    by_parent = {p.rpartition(b"/")[0]: [e] for p, e in tree.entries.items()}
    read: list[bytes] = []

    def listing(path: bytes) -> list[Entry]:
        read.append(path)
        return by_parent.get(path, [])

    assert Manifest(listing).root_hash() != EMPTY
    assert len(read) >= 1901


# --- hostile and broken senders -----------------------------------------------------------------------------------------

LISTING = encode_listing(
    [
        Leaf(Entry(b"p/a", Kind.FILE, 0o644, 3, -5)),
        Leaf(Entry(b"p/b", Kind.DIRECTORY, 0o755), b"h" * 32),
        Leaf(Entry(b"p/\xff\n", Kind.SYMLINK, 0o777, target=b"a")),
    ]
)


def test_listings_round_trip_and_any_cut_is_refused() -> None:
    assert encode_listing(decode_listing(b"p", LISTING)) == LISTING
    assert [leaf.entry.path for leaf in decode_listing(b"p", LISTING)] == [b"p/a", b"p/b", b"p/\xff\n"]
    whole = {len(LISTING)}
    ends = {len(encode_listing(decode_listing(b"p", LISTING)[:n])) for n in range(3)}
    for cut in range(len(LISTING) + 1):
        if cut in ends | whole:
            decode_listing(b"p", LISTING[:cut])
        else:
            with pytest.raises(ManifestError):
                decode_listing(b"p", LISTING[:cut])


def test_no_bytes_raise_anything_else_and_what_is_accepted_is_canonical() -> None:
    rng = random.Random(9)
    accepted = 0
    for _ in range(20_000):
        data = bytearray(LISTING)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.choice([0, 1, 0x2F, 0x2E, 0xFF, rng.randrange(256)])
        try:
            leaves = decode_listing(b"p", bytes(data))
        except (ManifestError, PathError):
            continue
        accepted += 1
        assert encode_listing(leaves, sealed=True) == bytes(data)
    assert accepted > 100


def one(path: bytes, kind: Kind = Kind.FILE) -> bytes:
    return encode_listing([Leaf(Entry(path, kind, 0o644), b"h" * 32)])


@pytest.mark.parametrize("name", [b"..", b".", b"a\0b", b""])
def test_names_that_lead_elsewhere_are_refused(name: bytes) -> None:
    with pytest.raises(Exception, match=r"not a path|not in order"):
        decode_listing(b"p", one(b"p/" + name))


def test_an_empty_name_is_the_root_and_comes_first_in_its_listing_alone() -> None:
    top, below = one(b"", Kind.DIRECTORY), one(b"a")
    assert [leaf.entry.path for leaf in decode_listing(b"", top + below)] == [b"", b"a"]
    for path, listing in (
        (b"p", top),
        (b"p", top + below),
        (b"", below + top),
        (b"", top + top),
        (b"", one(b"")),  # a root that is a file
        (b"", encode_listing([Leaf(Entry(b"", Kind.SYMLINK, 0o777, target=b"a"))])),
    ):
        with pytest.raises(ManifestError, match="not in order at b''"):
            decode_listing(path, listing)


def test_two_entries_of_one_name_are_refused() -> None:
    with pytest.raises(ManifestError, match="not in order"):
        decode_listing(b"", one(b"a") + one(b"a"))
    with pytest.raises(ManifestError, match="not in order"):
        decode_listing(b"", one(b"b") + one(b"a"))


def test_a_directory_that_is_not_what_was_promised_is_left_for_the_next_time() -> None:
    there = Tree(
        {
            e.path: e
            for e in (
                Entry(b"d", Kind.DIRECTORY, 0o755), Entry(b"d/f", Kind.FILE, 0o644, 3, 5),
                Entry(b"e", Kind.DIRECTORY, 0o755), Entry(b"e/g", Kind.FILE, 0o644, 3, 5),
            )
        }
    )  # fmt: skip
    late = there.copy()
    late.set(late.entries[b"d/f"]._replace(size=4))
    now, then = Manifest(Counting(there)), Manifest(Counting(late))
    for answer in (then.listing_bytes(b"d"), None, b""):  # it moved on, it is gone, it was emptied
        found, _ = settle_with(
            Manifest(Counting(Tree())), lambda path, answer=answer: answer if path == b"d" else now.listing_bytes(path)
        )
        assert found.moved == [b"d"]
        assert {change.path for change in found.changes} == {b"d", b"e", b"e/g"}
    found, asked = settle_with(Manifest(Counting(there)), lambda _path: None)
    assert (found.changes, found.moved, asked) == ([], [b""], [(b"",)])


# --- the signed root ----------------------------------------------------------------------------------------------------

SEED = bytes(range(32))
KEY = public_key(SEED)
ROOT = Root("debian", 7, b"\xaa" * 32, 4711, 1_700_000_000.25)


def test_known_answer() -> None:
    # RFC 8032 section 7.1, TEST 1: the public key of a secret one.
    secret = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    assert public_key(secret).hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert canonical(ROOT).hex() == (
        "6e656172706174682d726f6f742d763100"
        "00"
        "0000000000000007"
        "0000000000001267"
        "41d954fc40100000" + "aa" * 32 + "06" + b"debian".hex()
    )


def test_signed_and_verified() -> None:
    blob = sign_root(ROOT, SEED)
    assert verify_root(blob, KEY, "debian", None) == ROOT
    assert verify_root(blob, KEY, "debian", ROOT) == ROOT
    assert verify_root(blob, KEY, "debian", replace(ROOT, version=6, sequence=1)) == ROOT


def test_any_flipped_bit_and_any_cut_is_refused() -> None:
    blob = sign_root(ROOT, SEED)
    for at in range(len(blob)):
        with pytest.raises(ManifestError):
            verify_root(blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :], KEY, "debian", None)
        with pytest.raises(ManifestError):
            verify_root(blob[:at], KEY, "debian", None)


@pytest.mark.parametrize(
    ("root", "last", "word"),
    [
        (ROOT, replace(ROOT, version=8), "goes back from version 8"),
        (ROOT, replace(ROOT, sequence=4712), "goes back"),
        (ROOT, replace(ROOT, root_hash=b"\xbb" * 32), "two different roots"),
        (replace(ROOT, version=8), replace(ROOT, sealed=True), "no longer covers contents"),
        (replace(ROOT, tree="ubuntu"), None, "a root of tree 'ubuntu'"),
    ],
)
def test_replays_and_mix_ups_are_told_apart(root: Root, last: Root | None, word: str) -> None:
    with pytest.raises(ManifestError, match=word):
        verify_root(sign_root(root, SEED), KEY, "debian", last)


def test_wrong_keys() -> None:
    with pytest.raises(ManifestError, match="not signed with the origin's key"):
        verify_root(sign_root(ROOT, SEED), public_key(b"x" * 32), "debian", None)
    with pytest.raises(ManifestError, match="a public key of 5 bytes"):
        verify_root(sign_root(ROOT, SEED), b"short", "debian", None)
    with pytest.raises(ValueError, match="cannot be signed"):
        sign_root(replace(ROOT, wall_s=float("nan")), SEED)


def test_signed_but_malformed_is_refused() -> None:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    signer = Ed25519PrivateKey.from_private_bytes(SEED)
    for body in (canonical(ROOT) + b"x", canonical(ROOT)[:-1], canonical(ROOT).replace(b"debian", b"\xff" * 6)):
        with pytest.raises(ManifestError, match="malformed"):
            verify_root(body + signer.sign(body), KEY, "debian", None)
    assert len(signer.sign(b"")) == SIGNATURE_BYTES
    assert listing_hash(b"") == EMPTY
