"""The parent's port on loopback: the real server, the real connector, the real rsync; plain and with TLS."""

# ruff: noqa: ASYNC230, ASYNC240 (a test has its loop to itself)

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import MessageError
from core.io_http import bind_tcp, bound_address, server_tls
from syncd.model import Change, Kind
from syncd.publish.plan import Fetch
from syncd.store.manifest import Manifest, compare
from syncd.store.signed_root import Root, public_key, sign_root, verify_root
from syncd.transfer import wire
from syncd.transfer.io_connector import ConnectorError, parse_arguments, split_url
from syncd.transfer.io_parent import Parent, ParentError, ParentRefuses
from syncd.transfer.io_rsync import pull, pull_all
from syncd.transfer.io_serve import Limits, Serving
from syncd.transfer.rsync import Connector, Options, Verdict, rsh_argument
from tests.syncd.serving import ID, SEED, TOKEN, Site, entry_of, make_certificate, served, until

needs_rsync = pytest.mark.skipif(shutil.which("rsync") is None, reason="rsync is not installed")
NAMES = [b"new\nline", b"cr\rlf", b"-dash", b"--help", b"\xff\xfe", b"x" * 255, b"a b", b" lead", b"trail ", b"[a]*?"]
NAMES += ["路/近".encode(), b"#hash", b";semi", b"\\#012", b'q"u\'o"te', b"%n", b"a/b/c/d", b"\x01\x7f\t", b"a:b", b"~"]


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["plain", "tls"])
async def site(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    async with served(tmp_path, request.getfixturevalue("certificate") if request.param == "tls" else None) as found:
        yield found


@pytest.fixture
async def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    async with served(tmp_path) as found:
        yield found


# --- rsync through it ---------------------------------------------------------------------------------------------------


@needs_rsync
async def test_every_name_arrives_as_it_is(site: Site) -> None:
    fetches = [site.file(name) for name in NAMES]
    result = await pull(site.parent.connector("t"), Options(), str(site.stage), fetches)
    assert result.verdict is Verdict.DONE, result
    assert {name: site.staged(name) for name in NAMES} == {name: name * 3 for name in NAMES}
    assert site.server.sent_bytes["edge1"] > 0
    await site.quiet()


@needs_rsync
async def test_a_tree_arrives_byte_by_byte_over_parallel_streams(site: Site) -> None:
    # Larger than all buffers on the way, and not compressible: back-pressure both ways.
    fetches = [site.file(b"big%d" % i, os.urandom(3_000_000 + i)) for i in range(4)]
    fetches += [site.file(b"d%d/f%d" % (i % 7, i), os.urandom(i)) for i in range(200)]
    results = await pull_all(site.parent.connector("t"), Options(), str(site.stage), [fetches[i::4] for i in range(4)])
    assert [result.verdict for result in results] == [Verdict.DONE] * 4
    for fetch in fetches:
        with open(os.path.join(os.fsencode(site.source.disk), fetch.entry.path), "rb") as file:
            assert site.staged(fetch.entry.path) == file.read()
    assert entry_of(os.fsencode(site.stage), b"big0") == fetches[0].entry
    await site.quiet()


@needs_rsync
async def test_an_old_version_is_mended_with_little_traffic(plain: Site) -> None:
    content = os.urandom(4_000_000)
    fetch = plain.file(b"index", content)
    (plain.stage / "index").write_bytes(content[:2_000_000] + b"x" + content[2_000_000:])
    result = await pull(plain.parent.connector("t"), Options(), str(plain.stage), [fetch])
    assert result.verdict is Verdict.DONE
    assert plain.staged(b"index") == content
    assert plain.server.sent_bytes["edge1"] < 400_000


@needs_rsync
@pytest.mark.parametrize(
    ("token", "node", "tree"), [("wrong", "edge1", "t"), (TOKEN, "edge9", "t"), (TOKEN, "edge1", "x")]
)
async def test_no_stream_without_the_right_token_for_the_tree(site: Site, token: str, node: str, tree: str) -> None:
    fetch = site.file(b"secret")
    stranger = site.child(token, node)
    result = await pull(stranger.connector(tree), Options(), str(site.stage), [fetch])
    assert result.verdict is not Verdict.DONE
    assert os.listdir(site.stage) == []
    assert not site.server.sent_bytes
    for ask in (stranger.root(tree), stranger.journal(tree, wire.Cursor()), stranger.listings(tree, [b""])):
        with pytest.raises(ParentRefuses):
            await ask
    await stranger.close()


def connector_run(site: Site, connector: Connector) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(connector.command, input=b"", capture_output=True, timeout=60, check=False)


async def test_the_connector_says_why_it_was_refused(site: Site) -> None:
    done = await asyncio.to_thread(connector_run, site, site.child("wrong").connector("t"))
    assert done.returncode == 77
    assert b"unknown node or wrong token" in done.stderr
    assert done.stdout == b""
    assert b"wrong" not in b" ".join(word.encode() for word in site.parent.connector("t").command[:3])
    done = await asyncio.to_thread(connector_run, site, site.parent.connector("later"))
    assert done.returncode == 69
    assert b"503" in done.stderr


async def test_a_parent_whose_certificate_is_not_trusted_gets_no_token(
    tmp_path: Path, certificate: tuple[str, str]
) -> None:
    async with served(tmp_path, certificate) as site:
        stranger = site.child(ca="")
        with pytest.raises(ParentError, match="certificate"):
            await stranger.root("t")
        await stranger.close()
        done = await asyncio.to_thread(connector_run, site, stranger.connector("t"))
        assert done.returncode == 69
        assert b"certificate" in done.stderr.lower()


@needs_rsync
async def test_nothing_can_be_written_or_deleted_there(plain: Site) -> None:
    plain.file(b"kept", b"kept")
    (plain.stage / "kept").write_bytes(b"other")
    (plain.stage / "new").write_bytes(b"new")
    rsh = "--rsh=" + rsh_argument(plain.parent.connector("t").command)
    pushes = [["-r", f"{plain.stage}/", "parent::tree/"], ["-r", "--delete", f"{plain.stage}/", "parent::tree/"]]
    pulls_and_deletes = [["-r", "--remove-source-files", "parent::tree/", f"{plain.home}/elsewhere/"]]
    for arguments in pushes + pulls_and_deletes:
        done = await asyncio.to_thread(subprocess.run, ["rsync", rsh, *arguments], capture_output=True, check=False)
        assert done.returncode != 0, arguments
    assert {name: (plain.source.disk / name).read_bytes() for name in os.listdir(plain.source.disk)} == {
        "kept": b"kept"
    }


@needs_rsync
async def test_no_other_module_and_nothing_outside_the_tree(plain: Site) -> None:
    plain.file(b"good", b"good")
    (plain.home / "outside").write_bytes(b"secret")
    (plain.home / "outdir").mkdir()
    (plain.home / "outdir" / "inner").write_bytes(b"secret")
    os.symlink("..", plain.source.disk / "up")
    os.symlink(str(plain.home), plain.source.disk / "abs")
    rsh = "--rsh=" + rsh_argument(plain.parent.connector("t").command)
    there = f"{plain.stage}/"
    asks = [["parent::other/", there], ["parent::tree/../outside", there], ["parent::tree/up/outside", there]]
    asks += [["parent::tree/abs/outside", there], ["-r", "parent::tree/abs/outdir/", there]]
    asks += [["-r", "--copy-unsafe-links", "parent::tree/", there], ["-rL", "parent::tree/", there]]  # refused as such
    asks += [["-r", "parent::tree/", there]]
    for ask in asks:
        await asyncio.to_thread(subprocess.run, ["rsync", rsh, *ask], capture_output=True, check=False)
    found = [os.path.join(where, name) for where, _, names in os.walk(plain.stage) for name in names]
    # What is in the tree came, so the asks were understood; nothing else did.
    assert [name for name in found if os.path.isfile(name) and not os.path.islink(name)] == [f"{plain.stage}/good"]


@needs_rsync
async def test_a_stream_serves_the_version_that_was_current_when_it_began(plain: Site) -> None:
    plain.file(b"v1/index", b"one")
    fetch = Fetch(entry_of(os.fsencode(plain.source.disk / "v1"), b"index"))
    os.symlink("v1", plain.source.disk / "current")
    plain.source.disk = plain.source.disk / "current"
    result = await pull(plain.parent.connector("t"), Options(), str(plain.stage), [fetch])
    assert result.verdict is Verdict.DONE
    assert plain.staged(b"index") == b"one"


# --- streams that end badly ---------------------------------------------------------------------------------------------


async def upgraded(site: Site, token: str = TOKEN) -> tuple[bytes, asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw child: (status line, reader, writer) after the answer's head."""
    host, _, port = site.url.partition("://")[2].rpartition(":")
    tls = ssl.create_default_context(cafile=site.ca) if site.ca else None
    reader, writer = await asyncio.open_connection(host, int(port), ssl=tls)
    lines = ["GET /v1/trees/t/rsync HTTP/1.1", "Host: x", f"Authorization: Bearer {token}", "X-Nearpath-Node: edge1"]
    writer.write("\r\n".join([*lines, "Connection: Upgrade", f"Upgrade: {wire.UPGRADE}", "", ""]).encode())
    head = await reader.readuntil(b"\r\n\r\n")
    return head.split(b"\r\n")[0], reader, writer


@needs_rsync
async def test_rsync_ends_when_the_connection_is_cut(site: Site) -> None:
    for is_reset in (True, False):
        status, reader, writer = await upgraded(site)
        assert b" 101 " in status
        assert (await reader.readline()).startswith(b"@RSYNCD:")
        assert site.server.streams == {"edge1": 1}
        writer.transport.abort() if is_reset else writer.close()
        await site.quiet()
        await until(lambda: not rsyncs_of(os.getpid()))


def rsyncs_of(pid: int) -> list[str]:
    """Processes that `pid` has started, and that are still there."""
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for child in found if Path(f"/proc/{child}/comm").read_text().strip() == "rsync"]


@needs_rsync
async def test_a_cut_in_the_middle_of_a_file_is_tried_again_and_goes_on(site: Site) -> None:
    content = os.urandom(6_000_000)
    fetch = site.file(b"big", content)
    slow = Options(limit_bytes_s=1_000_000)
    work = asyncio.create_task(pull(site.parent.connector("t"), slow, str(site.stage), [fetch]))
    await until(lambda: site.server.sent_bytes["edge1"] > 500_000)
    await site.server.stop()
    result = await work
    assert result.verdict is Verdict.AGAIN
    assert not result.arrived
    assert not rsyncs_of(os.getpid())
    sock = bind_tcp(site.url.partition("://")[2])
    await site.server.start(sock, server_tls(site.ca, site.ca.replace("cert.pem", "key.pem")) if site.ca else None)
    result = await pull(site.parent.connector("t"), Options(), str(site.stage), [fetch])
    assert result.verdict is Verdict.DONE
    assert site.staged(b"big") == content


@needs_rsync
async def test_a_silent_child_is_dropped(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(idle_s=0.3)) as site:
        status, reader, writer = await upgraded(site)
        assert b" 101 " in status
        assert (await reader.read()).startswith(b"@RSYNCD:")  # to the end of the stream
        await site.quiet()
        writer.close()


@needs_rsync
async def test_streams_are_bounded_and_come_back(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(streams_per_child=3)) as site:
        tries = await asyncio.gather(*(upgraded(site) for _ in range(12)))
        assert sorted(status.split()[1] for status, _, _ in tries) == [b"101"] * 3 + [b"429"] * 9
        for _, _, writer in tries:
            writer.close()
        await site.quiet()
        status, _, writer = await upgraded(site)
        assert b" 101 " in status
        writer.close()


async def test_a_parent_without_rsync_says_so(tmp_path: Path) -> None:
    async with served(tmp_path, serving=Serving(binary="no-such-rsync")) as site:
        done = await asyncio.to_thread(connector_run, site, site.parent.connector("t"))
        assert done.returncode == 69
        assert b"no-such-rsync cannot be started on the parent" in done.stderr
        assert not site.server.streams


async def test_a_request_without_the_upgrade_is_told(plain: Site) -> None:
    with pytest.raises(ParentError, match="426"):
        await plain.parent._ask("GET", "t", "rsync", 100, (200,))


# --- root, journal, listings --------------------------------------------------------------------------------------------


async def test_the_root_comes_once_and_then_only_when_it_is_new(site: Site) -> None:
    first = await site.parent.root("t")
    assert verify_root(first, public_key(SEED), "t", None).version == 1
    assert (await site.parent._ask("GET", "t", "root", 0, (304,), headers={"If-None-Match": wire.etag(first)}))[
        0
    ] == 304
    assert await site.parent.root("t") == first
    site.source.blob = sign_root(Root("t", 2, b"h" * 32, 0, 1.0), SEED)
    assert await site.parent.root("t") == site.source.blob


async def test_a_tree_that_has_nothing_yet(plain: Site) -> None:
    with pytest.raises(ParentError, match="503"):
        await plain.parent.root("later")


async def test_the_journal_from_nothing_to_the_newest(site: Site) -> None:
    site.source.add(b"a", b"new\nline")
    behind = await site.parent.journal("t", wire.Cursor())
    assert behind == wire.Behind(wire.Cursor(ID, 2), "too far")
    assert not site.source.cursors
    batch = await site.parent.journal("t", wire.Cursor(ID, 0))
    assert isinstance(batch, wire.Batch)
    assert [change.path for change in batch.changes] == [b"a", b"new\nline"]
    assert await site.parent.journal("t", batch.cursor, wait_s=0) == wire.Batch((), wire.Cursor(ID, 2), 2)
    assert site.source.cursors == {("t", "edge1"): wire.Cursor(ID, 2)}


async def test_a_long_poll_ends_with_the_change(site: Site) -> None:
    poll = asyncio.create_task(site.parent.journal("t", wire.Cursor(ID, 0), wait_s=60))
    await until(lambda: bool(site.source.cursors))
    assert not poll.done()
    site.source.add(b"a")
    batch = await poll
    assert isinstance(batch, wire.Batch)
    assert batch.cursor.sequence == 1


async def test_a_batch_that_is_to_be_proved_ends_where_a_root_stands(site: Site) -> None:
    site.source.add(*(b"%d" % i for i in range(5)))
    root = site.source.prove(3)
    found = []
    for after in (1, 3):  # at 3 there is nothing up to the root but the root
        batch = await site.parent.journal("t", wire.Cursor(ID, after), prove=True)
        assert isinstance(batch, wire.Batch)
        found.append((len(batch.changes), batch.cursor.sequence, batch.last, batch.root))
    assert found == [(2, 3, 5, root), (0, 3, 5, root)]
    asked = asyncio.create_task(site.parent.journal("t", wire.Cursor(ID, 4), prove=True))
    await until(lambda: site.source.wanted[-1] == 4)
    assert not asked.done(), "the root that is known is older"
    root = site.source.prove(5)
    batch = await asked
    assert isinstance(batch, wire.Batch)
    assert (len(batch.changes), batch.root) == (1, root)


async def test_without_a_root_in_time_a_batch_is_not_proved(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(wait_s=0.02)) as site:
        site.source.prove(1)
        site.source.add(b"a", b"b", b"c")
        batch = await site.parent.journal("t", wire.Cursor(ID, 2), wait_s=60, prove=True)
        assert isinstance(batch, wire.Batch)
        assert (batch.cursor.sequence, batch.root) == (3, b"")
        batch = await site.parent.journal("t", wire.Cursor(ID, 0), wait_s=60)
        assert isinstance(batch, wire.Batch)
        assert (batch.cursor.sequence, batch.root) == (3, b""), "it was not asked"


async def test_a_long_poll_is_bounded_by_the_parent(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(wait_s=0.05)) as site:
        assert await site.parent.journal("t", wire.Cursor(ID, 0), wait_s=60) == wire.Batch((), wire.Cursor(ID, 0), 0)


async def test_a_batch_of_long_paths_is_asked_for_in_smaller_parts(plain: Site) -> None:
    long = b"/".join([b"\xff" * 200] * 20)
    plain.source.add(*[b"%d/" % i + long[:4000] for i in range(3000)])
    cursor, seen = wire.Cursor(ID, 0), 0
    while cursor.sequence < 3000:
        batch = await plain.parent.journal("t", cursor, wait_s=0)
        assert isinstance(batch, wire.Batch)
        assert batch.changes
        seen += len(batch.changes)
        cursor = batch.cursor
    assert seen == 3000
    assert min(plain.source.limits) < wire.MAX_BATCH


async def test_requests_of_one_child_are_bounded(tmp_path: Path) -> None:
    async with served(tmp_path, limits=Limits(requests_per_child=1)) as site:
        poll = asyncio.create_task(site.parent.journal("t", wire.Cursor(ID, 0), wait_s=60))
        await until(lambda: bool(site.source.cursors))
        with pytest.raises(ParentError, match="429"):
            await site.parent.root("t")
        site.source.add(b"a")
        await poll
        assert await site.parent.root("t") == site.source.blob


async def test_manifests_are_compared_over_the_wire(site: Site) -> None:
    for i in range(40):
        site.file(b"d%d/deep/f" % i)
    site.file(b"new\nline")
    local = Manifest(lambda path: [])
    steps = compare(local)
    asked = next(steps)
    changes: list[Change] = []
    while not changes:
        answer = await site.parent.listings("t", asked)
        try:
            asked = steps.send(answer)
        except StopIteration as done:
            changes = done.value.changes
    assert {change.path for change in changes if change.entry and change.entry.kind is Kind.FILE} == {
        *(b"d%d/deep/f" % i for i in range(40)),
        b"new\nline",
    }
    assert site.source.asked > 3  # the source gives 7 at a time
    assert await site.parent.listings("t", [b"nowhere"]) == {}


@pytest.mark.parametrize(
    ("method", "what", "body"),
    [("POST", "listings", b"../etc\0"), ("POST", "listings", b""), ("GET", "journal?after=-1", None)],
)
async def test_what_is_not_of_its_form_is_a_400(plain: Site, method: str, what: str, body: bytes | None) -> None:
    with pytest.raises(ParentError, match="400"):
        await plain.parent._ask(method, "t", what, 100, (200,), body=body)


async def test_a_body_that_is_too_large_is_refused(plain: Site) -> None:
    with pytest.raises(ParentError, match="413"):
        await plain.parent._ask("POST", "t", "listings", 100, (200,), body=b"a" * (wire.MAX_ASK_BYTES + 1))


async def test_an_answer_that_is_too_large_is_refused(plain: Site) -> None:
    plain.source.blob = b"x" * 100_000
    with pytest.raises(MessageError, match="more than"):
        await plain.parent.root("t")


async def test_a_reload_takes_effect_at_once(plain: Site) -> None:
    await plain.parent.root("t")
    plain.server.children = {"edge1": replace(plain.server.children["edge1"], trees=frozenset())}
    with pytest.raises(ParentRefuses, match="allow it"):
        await plain.parent.root("t")


async def test_a_parent_that_is_not_there(tmp_path: Path) -> None:
    sock = bind_tcp("127.0.0.1:0")
    url = f"http://{bound_address(sock)}"
    sock.close()
    (tmp_path / "token").write_text(TOKEN)
    async with Parent(url, "edge1", str(tmp_path / "token")) as parent:
        with pytest.raises(ParentError, match="does not answer"):
            await parent.root("t")


@pytest.mark.parametrize("content", ["", "two words", "\x01", "ä"])
async def test_a_token_file_that_holds_no_token(plain: Site, tmp_path: Path, content: str) -> None:
    (tmp_path / "bad").write_text(content)
    async with Parent(plain.url, "edge1", str(tmp_path / "bad")) as parent:
        with pytest.raises(ParentError, match="bad"):
            await parent.root("t")


# --- the connector's arguments ------------------------------------------------------------------------------------------


def test_the_connector_takes_options_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEARPATH_NODE", "env")
    monkeypatch.setenv("NEARPATH_TOKEN_FILE", "/env")
    settings, url, tree = parse_arguments(["--node", "n", "https://p", "t", "parent", "rsync", "--server"])
    assert (settings["NEARPATH_NODE"], settings["NEARPATH_TOKEN_FILE"], url, tree) == ("n", "/env", "https://p", "t")
    for wrong in ([], ["https://p"], ["--wrong", "x", "https://p", "t"]):
        with pytest.raises(ConnectorError):
            parse_arguments(wrong)


def test_urls_of_parents() -> None:
    assert split_url("https://h") == (True, "h", 443, "")
    assert split_url("http://[::1]:8/a/") == (False, "::1", 8, "/a")
    assert split_url("https://[::1]") == (True, "::1", 443, "")
    for wrong in ("h:1", "ftp://h", "https://", "https://h:x", "https://h\r\nX: y"):
        with pytest.raises(ConnectorError):
            split_url(wrong)


def test_the_connector_and_the_server_mean_the_same_upgrade() -> None:
    script = (
        "import sys, syncd.transfer.io_connector as c; print(c._UPGRADE, {'asyncio', 'dataclasses'} & {*sys.modules})"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True).stdout
    assert said == f"{wire.UPGRADE} set()\n"  # and it stays light: it starts once per batch
