"""A careless operator, a hostile plain server, and what a crash leaves of files: refused in words, bounded, whole."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from aiohttp import web

from core.config_sync import Parent as ParentConfig
from core.errors import ConfigError, NearpathError
from core.io_config_sync import read_sync_config
from core.io_control import bind_control, control_app, read_object, told
from core.tokens import token_sha256
from syncd import io_daemon, io_hints
from syncd.copy.note import Note, decode_note, encode_note
from syncd.io_daemon import Daemon
from syncd.io_hints import find_hints
from syncd.io_hooks import run_hook
from syncd.model import UNTOLD, Change, Entry, Kind, Op
from syncd.publish.guard import RecentDeletes
from syncd.publish.plan import Fetch
from syncd.store.io_signer import read_key
from syncd.transfer import io_plain, io_rsync
from syncd.transfer.io_parent import Parent, ParentError, ParentRefuses
from syncd.transfer.io_plain import PlainParent
from syncd.transfer.plain import parse_look
from syncd.transfer.rsync import Options, Rsyncd, Verdict

TOKEN = "a-token"

# --- the configuration --------------------------------------------------------------------------------------------------


def write(home: Path, **keys: Any) -> Path:
    """A configuration of one origin `t`, with more keys."""
    (home / "tree").mkdir(exist_ok=True)
    file = home / "syncd.yaml"
    base = {"version": 1, "node": "n", "state_dir": "state", "trees": {"t": {"path": str(home / "tree")}}}
    file.write_text(yaml.safe_dump(base | keys))
    return file


def faults(home: Path, **keys: Any) -> str:
    try:
        read_sync_config(write(home, **keys))
    except ConfigError as error:
        return str(error)
    return ""


def parent(**keys: str) -> dict[str, Any]:
    return {"parents": {"p": {"url": "https://p.example", "token_file": "token"} | keys}}


INSIDE: dict[str, Callable[[Path], dict[str, Any]]] = {
    "state_dir": lambda home: {"state_dir": "tree/state"},
    "tls.key": lambda home: {"tls": {"cert": "tree/cert", "key": "tree/key"}},
    "parents.p.token_file": lambda home: parent(token_file="tree/d/../token"),
    "parents.p.password_file": lambda home: parent(password_file=str(home / "tree" / "password")),
    "trees.t.key_file": lambda home: {"trees": {"t": {"path": str(home / "tree"), "key_file": "tree/k"}}},
    "trees.u.work": lambda home: {
        "trees": {
            "t": {"path": str(home / "tree")},
            "u": {
                "path": str(home / "u"),
                "work": str(home / "tree" / "work"),
                "parents": ["p"],
                "public_key": "0" * 64,
            },
        },
        **parent(),
    },
    "appliance.token_file": lambda home: {"appliance": {"url": "https://a.example", "token_file": "link/token"}},
    "trees.u.path": lambda home: {
        "trees": {"t": {"path": str(home / "tree")}, "u": {"path": str(home / "link" / "u")}}
    },
}


@pytest.mark.parametrize("key", INSIDE)
def test_what_is_private_may_not_lie_in_a_tree(tmp_path: Path, key: str) -> None:
    (tmp_path / "link").symlink_to("tree")
    said = faults(tmp_path, **INSIDE[key](tmp_path))
    assert f" {key}: " in said
    assert "the tree t" in said


def test_a_tree_that_is_the_folder_of_the_keys_is_refused_and_one_beside_is_not(tmp_path: Path) -> None:
    assert "whoever has the tree" in faults(tmp_path, trees={"t": {"path": str(tmp_path / "state" / "keys")}})
    assert faults(tmp_path, trees={"t": {"path": str(tmp_path / "state-of-the-art")}}) == ""
    assert faults(tmp_path, **parent()) == ""


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://p.example:8730", ""),
        ("http://127.0.0.9:8730", ""),
        ("http://[::1]:8730", ""),
        ("http://localhost:8730", ""),
        ("http://p.example:8730", "would show the token"),
        ("http://10.0.0.1:8730", "would show the token"),
        ("http://127.0.0.1.example:8730", "would show the token"),
        ("https://user:secret@p.example", "is not of the form"),
        ("https://p.example:x", "is not of the form"),
        ("https://p.example:8730?x=y", "is not of the form"),
        ("https://:8730", "is not of the form"),
    ],
)
def test_no_token_goes_over_the_line_in_clear(tmp_path: Path, url: str, words: str) -> None:
    said = faults(tmp_path, **parent(url=url))
    assert (words in said) if words else not said


def test_what_is_only_careless_is_hinted_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_hints, "check_binary", lambda: [])
    (tmp_path / "token").touch(0o600)
    tokens = {name: {"token_sha256": token_sha256(said)} for name, said in (("a", "x"), ("b", "y"), ("c", "x"))}
    file = write(tmp_path, children=tokens, appliance={"url": "http://a.example:8053", "token_file": "token"})
    hints = "\n".join(find_hints(read_sync_config(file)))
    assert "children a and c have the same token" in hints
    assert "http://a.example:8053 shows this node's token" in hints


@pytest.mark.parametrize(
    "place",
    [
        "-oProxyCommand:/x",
        "a@-oBatchMode:/x",
        "@h:/x",
        "rsync://-h/m",
        "rsync://u:secret@h/m",
        "h:-x",
        "h:x",
        "--rsh:/x",
    ],
)
def test_a_place_is_no_option(place: str) -> None:
    transport = "rsyncd" if place.startswith("rsync:") else "ssh"
    with pytest.raises(ValueError, match="neither"):
        ParentConfig.model_validate({"transport": transport, "place": place})


# --- a plain server -----------------------------------------------------------------------------------------------------


def say(home: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> PlainParent:
    """A plain server of which rsync says what `script` prints."""
    (home / "bin").mkdir()
    (home / "bin" / "rsync").write_text(f"#!/bin/sh\n{script}\n")
    (home / "bin" / "rsync").chmod(0o755)
    monkeypatch.setenv("PATH", f"{home / 'bin'}:{os.environ['PATH']}")
    return PlainParent(ParentConfig.model_validate({"transport": "rsyncd", "place": "rsync://h.example/m"}))


async def test_a_server_that_says_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_plain, "MAX_SAID_BYTES", 300_000)
    plain = say(
        tmp_path,
        monkeypatch,
        "echo $$ > pid; exec yes 'np:>f+++++++++ 1 rw-r--r-- <a>'".replace("pid", str(tmp_path / "pid")),
    )
    with pytest.raises(ParentError, match="differs in too much"):
        await plain.differences(str(tmp_path))
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_of_what_goes_wrong_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = say(tmp_path, monkeypatch, "yes x | head -c 1000000 >&2; echo the end >&2; exit 10")
    with pytest.raises(ParentError, match=r"x the end$"):
        await plain.differences(str(tmp_path))


async def test_a_transfer_that_comes_to_no_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io_rsync, "PATIENCE_S", 0.2)
    slow = tmp_path / "rsync"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    fetch = Fetch(Entry(b"a", Kind.FILE, 0o644, 3, 1))
    result = await io_rsync.pull(Rsyncd("h", "m"), Options(binary=str(slow)), str(tmp_path), [fetch])
    assert (result.verdict, set(result.failed)) == (Verdict.AGAIN, {b"a"})


def test_a_name_with_an_arrow_is_one_name() -> None:
    entry = Entry(b"a> -> b", Kind.FILE, 0o644, 3, UNTOLD)
    assert parse_look([b"np:>f+++++++++ 3 rw-r--r-- 2026/11/23-20:20:01 <a> -> b>"], True) == [
        Change(0, Op.UPSERT, b"a> -> b", entry)
    ]


async def test_a_hook_that_leaves_something_running_is_over_when_it_is_over() -> None:
    # As a daemon does that a hook starts: in a session of its own, with the hook's output.
    said = await run_hook(["sh", "-c", "setsid sleep 60 & echo $!; exit 3"], {}, 20.0)
    os.kill(int(said.rpartition(" ")[2]), signal.SIGKILL)
    assert "ended with 3" in said


# --- files --------------------------------------------------------------------------------------------------------------


def test_a_key_is_whole_and_private_and_drawn_once(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "t.key"
    with ThreadPoolExecutor(8) as pool:
        assert len({*pool.map(read_key, [file] * 8)}) == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert os.listdir(file.parent) == ["t.key"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "is empty"), ("ab" * 31, "62 characters"), ("\xe9" * 64, "128 characters"), ("zz" * 32, "64 char")],
)
def test_a_key_that_is_none_is_told_without_its_content(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "t.key"
    file.write_text(content)
    with pytest.raises(NearpathError, match=words) as told:
        read_key(file)
    assert "backup" in told.value.fix
    assert not content or content not in str(told.value)
    assert file.read_text() == content, "nothing is drawn over it"


def test_no_clock_forgets_deletes_too_early() -> None:
    recent = RecentDeletes(window_s=60.0, kept=[(1000.0, 5)])
    assert recent.count(1030.0) == 5
    assert recent.count(500.0) == 5  # the clock was set back: they count from now
    assert recent.kept == ((500.0, 5),)
    assert recent.count(559.0) == 5
    assert recent.count(560.0) == 0


def test_notes_keep_what_was_deleted_and_older_ones_are_read() -> None:
    note = Note((Change(1, Op.DELETE, b"a"),), deletes=((1.5, 2), (3.0, 4)))
    assert decode_note(encode_note(note)) == note
    assert decode_note(b'[[[1,"x","a",""]],[],[],null]') == Note((Change(1, Op.DELETE, b"a"),))


# --- reload -------------------------------------------------------------------------------------------------------------


async def test_a_reload_that_fails_has_revoked_all_the_same_and_two_at_once_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(io_daemon, "check_binary", lambda: [])
    open_to: dict[str, Any] = {
        "listen": ["127.0.0.1:0"],
        "children": {name: {"token_sha256": token_sha256(TOKEN)} for name in ("a", "b")},
    }
    file = write(tmp_path, **open_to)
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "u").mkdir()
    daemon = await Daemon.open(file)
    url = f"http://{daemon.addresses[0]}"
    try:
        async with Parent(url, "a", str(tmp_path / "token")) as a, Parent(url, "b", str(tmp_path / "token")) as b:
            with pytest.raises(ParentError):
                await b.root("nowhere")
            (tmp_path / "bad.key").write_text("half")
            less = open_to | {"children": {"a": {"token_sha256": token_sha256(TOKEN)}}}
            trees = {"u": {"path": str(tmp_path / "u"), "key_file": "bad.key"}}
            trees["t"] = {"path": str(tmp_path / "tree"), "sweep": "2h"}  # behind it, and to be begun anew
            write(tmp_path, **less, trees=trees)
            with pytest.raises(NearpathError, match=r"bad\.key"):
                await daemon.reload()
            assert "bad.key" in daemon.snapshot()["reload_error"]
            assert list(daemon.origins) == ["t"]
            with pytest.raises(ParentRefuses):
                await b.root("t")
            trees["u"].pop("key_file")
            write(tmp_path, **less, trees=trees)
            await asyncio.gather(*(daemon.reload() for _ in range(3)))
            assert sorted(daemon.origins) == ["t", "u"]
            assert daemon.snapshot()["reload_error"] == ""
            with pytest.raises(ParentError, match="503"):
                await a.root("u")  # nothing signed yet; and it may ask
    finally:
        await daemon.close()


# --- the control socket -------------------------------------------------------------------------------------------------


async def test_the_control_socket_is_for_its_group_and_takes_no_odd_question(tmp_path: Path) -> None:
    async def handle(request: web.Request) -> web.Response:
        return told(await read_object(request))

    runner = web.AppRunner(control_app([web.post("/x", handle)]), access_log=None)
    await runner.setup()
    mask = os.umask(0)
    try:
        await web.SockSite(runner, bind_control(tmp_path)).start()
    finally:
        os.umask(mask)
    socket_file = tmp_path / "control.sock"
    assert stat.S_IMODE(socket_file.stat().st_mode) == 0o660
    seen = []
    try:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=str(socket_file))) as session:
            odd = [b"[" * 60_000, b"\xff", b"1", b'{"a": 1}', b"x" * 70_000]
            for body in odd:
                async with session.post("http://x/x", data=body) as answer:
                    seen.append(answer.status)
            async with session.post(
                "http://x/x", data=b"{}", headers={"Content-Type": "text/plain; charset=no"}
            ) as answer:
                seen.append(answer.status)
    finally:
        await runner.cleanup()
    assert seen == [400, 400, 400, 200, 413, 400]
