"""Stamps of mirror nodes over real HTTP, with the real bus and the real steerer behind it; and `nearpath up` with them."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import json
import shutil
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core.config import Node
from core.io_config import read_config
from core.messages import MAX_STAMPS_PER_REPORT, StampReport, SyncStamp, decode, encode
from core.tokens import token_sha256
from nearpath.doctor_running import check_nodes
from nearpath.loading import load
from nearpath.stamps import FORGET_AFTER_S, NODE_HEADER, NodeState
from nearpath.views import show_explanation, show_status
from policy.explain import explain
from tests.nearpath.daemon import CONFIG, Daemon, daemon_in, wait_until
from tests.nearpath.reporting import (
    START_S,
    Box,
    ScriptedClock,
    headers,
    held_store,
    hurry,
    make_config,
    open_box,
    plan_of,
    until,
)
from tests.nearpath.stamping import NODES, counted, node_headers, open_nodes, send, stamp, stored


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with open_nodes(tmp_path) as opened:
        yield opened


# -- who may


async def test_without_a_right_token_all_refusals_look_the_same(box: Box) -> None:
    seen = set()
    attempts: list[dict[str, str]] = [
        {},
        {NODE_HEADER: "n1"},
        {"Authorization": "Bearer token of n1"},
        node_headers("n1", "wrong"),
        node_headers("n1", "token of n2"),
        node_headers("nobody", "token of n1"),
        node_headers("a1", "token of a1"),
        headers("a1"),
        {NODE_HEADER: "n1", "Authorization": "Basic dG9rZW4="},
    ]
    for given in attempts:
        async with box.client.post("/v1/stamps", headers=given, json={"node": "n1", "stamps": []}) as answer:
            assert answer.status == 401
            shown = {k: v for k, v in answer.headers.items() if k != "Date"}
            assert shown["WWW-Authenticate"] == "Bearer"
            seen.add((await answer.text(), tuple(sorted(shown.items()))))
    assert len(seen) == 1
    assert (box.api.nodes_refused, box.api.refused) == (len(attempts), 0)
    assert box.api.nodes == {}, "guessing names leaves nothing behind"
    assert await stored(box) == {}


async def test_a_nodes_token_is_no_agents_token(box: Box) -> None:
    async with box.client.get("/v1/targets", headers=headers("n1", "token of n1")) as answer:
        assert answer.status == 401


async def test_a_node_that_a_reload_removed_is_refused_and_its_stamps_count_no_more(box: Box) -> None:
    assert (await send(box, stamp()))[0] == 200
    assert (await send(box, stamp(), node="n2"))[0] == 200
    config = make_config(nodes={"n2": NODES["n2"]})
    box.api.reload(config)
    box.steerer.change_plan(plan_of(config))
    assert (await send(box, stamp()))[0] == 401
    assert counted(box) == [("m2", "main", 7)]
    box.clock.at += 100  # time to keep and to trim
    async with asyncio.timeout(20):
        while len(await stored(box)) > 1:  # noqa: ASYNC110 (nobody sets an event for it)
            await asyncio.sleep(0.05)
    assert list(await stored(box)) == ["stamp/m2/main"]


async def test_a_node_removed_while_its_report_waits_is_refused(box: Box) -> None:
    state = box.api.nodes.setdefault("n1", NodeState("n1"))
    async with state.lock:
        waiting = asyncio.create_task(send(box, stamp()))
        await until(lambda: bool(state.lock._waiters))
        box.api.reload(make_config(nodes={}))
    assert (await waiting)[0] == 401
    assert await stored(box) == {}


# -- what is taken


async def test_stamps_are_stored_under_their_mirror_and_dated_on_our_timeline(box: Box) -> None:
    assert await send(box, stamp(), stamp("iso", age_s=3.0, state="stalled", busy=True)) == (200, '{"stored":2}')
    assert await stored(box) == {
        "stamp/m1/iso": SyncStamp("m1", "iso", 7, "ab" * 32, 1.5, "stalled", START_S - 3.0, True, "n1"),
        "stamp/m1/main": SyncStamp("m1", "main", 7, "ab" * 32, 1.5, "fresh", START_S - 0.25, False, "n1"),
    }
    assert counted(box) == [("m1", "iso", 7), ("m1", "main", 7)]
    assert box.api.nodes["n1"].stamps == 2


async def test_a_nodes_clock_changes_nothing_but_its_shown_skew(box: Box) -> None:
    assert (await send(box, stamp(age_s=0.0), wall_s=box.clock.at + 1e6))[0] == 200
    assert [s.taken_s for s in box.steerer.engine.stamps()] == [START_S]
    assert box.api.nodes["n1"].skew_s == 1e6


async def test_a_node_of_two_mirrors_speaks_for_both(tmp_path: Path) -> None:
    nodes = {"n1": {**NODES["n1"], "mirrors": ["m1", "m2"]}}
    async with open_box(tmp_path, config=make_config(nodes=nodes)) as box:
        assert await send(box, stamp()) == (200, '{"stored":2}')
        assert list(await stored(box)) == ["stamp/m1/main", "stamp/m2/main"]


async def test_the_last_word_counts(box: Box) -> None:
    await send(box, stamp())
    box.clock.at += 2
    await send(box, stamp(version=8, state="empty", age_s=100.0))
    (one,) = box.steerer.engine.stamps()
    assert (one.version, one.state, one.taken_s) == (8, "empty", START_S - 98)


async def test_what_a_stamp_says_is_acted_on(tmp_path: Path) -> None:
    config = make_config(
        nodes=NODES, services={"dl.example.org.": {"mirrors": ["m1", "m2"], "checks": ["ping"], "max_lag": "1m"}}
    )

    def first(box: Box) -> str:
        return box.tables[-1].services["dl.example.org."].ipv4[0].addresses[0]

    async with open_box(tmp_path, config=config) as box:
        assert first(box) == "198.51.100.1", "no stamp at all: fail open"
        await send(box, stamp(), node="n2")
        await until(lambda: first(box) == "198.51.100.2")
        await send(box, stamp())
        await until(lambda: first(box) == "198.51.100.1")
        await send(box, stamp(state="empty"))
        await until(lambda: first(box) == "198.51.100.2")
        box.clock.at += 61
        await until(lambda: box.tables[-1].services["dl.example.org."].ipv4[0].fail_open)
        assert first(box) == "198.51.100.2", "an empty one is not answered instead of an old one"
    async with open_box(tmp_path, box.clock, config=config) as again:
        assert counted(again) == [("m1", "main", 7), ("m2", "main", 7)]
        assert first(again) == "198.51.100.2"


async def test_a_tree_that_is_left_out_for_a_minute_is_forgotten(box: Box) -> None:
    await send(box, stamp("old"), stamp("new"))
    await send(box, stamp("old"), node="n2")
    for _ in range(6):
        box.clock.at += 10
        await send(box, stamp("new"))
    assert counted(box) == [("m1", "new", 7), ("m1", "old", 7), ("m2", "old", 7)]
    box.clock.at += 1
    await send(box, stamp("new"))
    assert counted(box) == [("m1", "new", 7), ("m2", "old", 7)]
    assert list(await stored(box)) == ["stamp/m1/new", "stamp/m2/old"]


async def test_silence_of_a_node_or_of_us_makes_no_tree_forgotten(tmp_path: Path) -> None:
    config = make_config(nodes=NODES)
    async with open_box(tmp_path, config=config) as box:
        await send(box, stamp("old"), stamp("new"))
        box.clock.at += 10 * FORGET_AFTER_S
        await send(box, stamp("new"))
        assert len(counted(box)) == 2
    box.clock.at += 10 * FORGET_AFTER_S
    async with open_box(tmp_path, box.clock, config=config) as again:
        await send(again, stamp("new"))
        assert len(counted(again)) == 2


async def test_a_tree_that_could_never_be_stored_is_forgotten_too(tmp_path: Path) -> None:
    async with open_box(tmp_path, config=make_config(nodes=NODES)) as box:
        await hurry(box.bus)
        with held_store(tmp_path):
            assert (await send(box, stamp("old")))[0] == 503
        for _ in range(7):
            box.clock.at += 10
            await send(box, stamp("new"))
        assert counted(box) == [("m1", "new", 7)]


# -- what is refused


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"lag_s": -0.1}, "lag_s"), ({"lag_s": float("nan")}, "lag_s"), ({"lag_s": float("inf")}, "lag_s"),
        ({"lag_s": 1e12}, "lag_s"), ({"age_s": -1}, "age_s"), ({"state": "odd"}, "state"), ({"busy": 1}, "busy"),
        ({"version": -1}, "version"), ({"version": 1 << 62}, "version"), ({"root_hash": "x"}, "root_hash"),
        ({"root_hash": "a" * 129}, "root_hash"), ({"tree": "../etc"}, "tree"), ({"tree": ""}, "tree"),
        ({"more": 1}, "more"),
    ],
)  # fmt: skip
async def test_a_stamp_out_of_form_is_refused_and_nothing_is_taken(box: Box, changes: dict[str, Any], why: str) -> None:
    status, text = await send(box, stamp("good"), stamp(**changes))
    assert status == 400
    assert text.startswith("not a StampReport: ")
    assert why in text
    assert len(text) < 1000
    assert (counted(box), await stored(box)) == ([], {})


async def test_reports_that_contradict_themselves_are_refused(box: Box) -> None:
    status, text = await send(box, stamp(), stamp(version=8))
    assert (status, text) == (400, "not a StampReport: it names a tree twice\n")
    body = {"node": "n2", "wall_s": START_S, "stamps": [stamp()]}
    async with box.client.post("/v1/stamps", headers=node_headers("n1"), json=body) as answer:
        assert answer.status == 400
        assert "it is of node n2, its token is that of n1" in await answer.text()
    assert (counted(box), await stored(box)) == ([], {})


@pytest.mark.parametrize("body", [b"", b"garbage", b"{}", b"[]", b"\xff" * 1000, b"[" * 60_000])
async def test_garbage_is_refused(box: Box, body: bytes) -> None:
    async with box.client.post("/v1/stamps", headers=node_headers("n1"), data=body) as answer:
        assert answer.status == 400
        assert (await answer.text()).startswith("not a StampReport: ")


async def test_an_oversize_body_is_refused(box: Box) -> None:
    async with box.client.post("/v1/stamps", headers=node_headers("n1"), data=b" " * 70_000) as answer:
        assert answer.status == 413


async def test_the_largest_report_is_taken_and_one_tree_more_is_not(tmp_path: Path) -> None:
    async with open_box(tmp_path, config=make_config(nodes=NODES, report={})) as box:
        many = [stamp(f"t{n:062}", age_s=34559999.123456789) for n in range(MAX_STAMPS_PER_REPORT)]
        assert await send(box, *many) == (200, '{"stored":1000}')
        assert (await send(box, *many, stamp("more")))[0] == 400
        box.clock.at += 2
        status, text = await send(box, stamp("more"))
        assert (status, text) == (429, "too many trees of this node\n")
        assert (await send(box, stamp("more"), node="n2"))[0] == 200
        assert len(await stored(box)) == MAX_STAMPS_PER_REPORT + 1


async def test_a_flood_of_reports_is_slowed_down_and_harms_no_other(box: Box) -> None:
    answers = [(await send(box, stamp()))[0] for _ in range(60)]
    assert answers == [200] * 49 + [429] * 11
    assert (await send(box, stamp(), node="n2"))[0] == 200
    box.clock.at += 1
    assert [(await send(box, stamp()))[0] for _ in range(6)] == [200] * 5 + [429]


async def test_reports_of_one_node_do_not_pile_up_in_memory(box: Box) -> None:
    state = box.api.nodes.setdefault("n1", NodeState("n1"))
    async with state.lock:
        waiting = [asyncio.create_task(send(box, stamp())) for _ in range(8)]
        await until(lambda: state.under_way == 8)
        assert (await send(box, stamp()))[0] == 429
        assert (await send(box, stamp(), node="n2"))[0] == 200
    assert {(await task)[0] for task in waiting} == {200}
    assert state.under_way == 0


async def test_refusals_do_not_fill_the_log(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(30):
        async with box.client.post("/v1/stamps", headers=node_headers("n1", "my-secret"), json={}) as answer:
            assert answer.status == 401
        assert (await send(box, stamp(lag_s=-1)))[0] == 400
    captured = capsys.readouterr()
    log = captured.out + captured.err
    assert (log.count("node_refused"), log.count("stamps_refused")) == (1, 1)
    assert "my-secret" not in log


# -- a store that cannot be written, and what is in it


async def test_without_a_store_steering_goes_by_the_stamps_all_the_same(tmp_path: Path) -> None:
    async with open_box(tmp_path, config=make_config(nodes=NODES)) as box:
        await hurry(box.bus)
        with held_store(tmp_path):
            body = {"node": "n1", "wall_s": START_S, "stamps": [stamp(), stamp("iso")]}
            async with box.client.post("/v1/stamps", headers=node_headers("n1"), json=body) as answer:
                assert (answer.status, answer.headers["Retry-After"]) == (503, "2")
                assert "cannot use the store" in await answer.text()
            assert counted(box) == [("m1", "iso", 7), ("m1", "main", 7)]
            assert box.api.nodes["n1"].stamps == 0
        assert await send(box, stamp(), stamp("iso")) == (200, '{"stored":2}')
        assert len(await stored(box)) == 2


async def test_stored_stamps_of_an_older_version_and_odd_ones(tmp_path: Path) -> None:
    old = {"mirror": "m1", "tree": "main", "version": 3, "root_hash": "", "lag_s": 0.0, "state": "fresh",
           "taken_s": START_S}  # fmt: skip
    async with open_box(tmp_path, config=make_config(nodes=NODES)) as box:
        await box.bus.put("stamp/m1/main", json.dumps(old).encode())
        await box.bus.put("stamp/m2/other", json.dumps(old).encode())  # not the stamp of its key
        await box.bus.put("stamp/gone/main", encode(SyncStamp("gone", "main", 1, "", 0.0, "fresh", START_S)))
        await box.bus.put("stamp/m2/main", encode(SyncStamp("m2", "main", 1, "", 0.0, "fresh", START_S, node="n1")))
        assert counted(box) == [("m1", "main", 3)]
    clock = ScriptedClock()
    clock.at = START_S - 3600
    async with open_box(tmp_path, clock, config=make_config(nodes=NODES)) as again:
        assert counted(again) == [("m1", "main", 3)]
        assert [s.taken_s for s in again.steerer.engine.stamps()] == [clock.at], "never in the future"
        await again.bus.delete("stamp/m1/main")
        assert counted(again) == []


# -- what operators see


async def test_explain_shows_the_content_of_each_candidate(box: Box) -> None:
    await send(box, stamp(lag_s=3.0, age_s=0.0))
    await send(box, stamp(state="empty", version=0), node="n2")
    story = explain(box.steerer.engine, "dl.example.org.", 4, "192.0.2.1", 0xC0000201, 4, box.clock.at)
    assert story is not None
    console = Console(width=200, record=True, file=io.StringIO())
    show_explanation(console, dataclasses.asdict(story))
    text = console.export_text()
    assert "fresh v7 lag 3" in text
    assert "content: its node says that it holds no content" in text


def test_doctor_on_nodes() -> None:
    heard = {"node": "n1", "mirrors": ["m1"], "heard_age_s": 1.0, "clock_skew_s": 0.0, "stamps": 3, "address": ""}
    stamps = [{"node": "n1", "tree": tree, "state": "empty"} for tree in ("main", "iso", "main")]
    nodes = [heard, {**heard, "node": "n2", "heard_age_s": None}, {**heard, "node": "n3", "heard_age_s": 60.0}]
    picture = {"appliance": {"uptime_s": 900.0}, "nodes": nodes, "stamps": stamps}
    found = [(f.level, f.what) for f in check_nodes(picture)]
    assert found == [
        ("good", "node n1 (m1) heard 1.0 s ago, trees: 2"),
        ("bad", "node n1 (m1): empty: iso, main"),
        ("bad", "node n2 (m1) was never heard since the appliance's start"),
        ("bad", "node n3 (m1) is silent for 1 m 0 s: the lag of its content grows"),
    ]


def test_the_configuration_warns_of_what_would_leave_mirrors_out(tmp_path: Path) -> None:
    site = Daemon(tmp_path)
    site.edit("checks: [web]", "checks: [web]\n    max_lag: 14s")
    site.edit("agents: {}", f"agents: {{}}\nnodes: {{a1: {{mirrors: [alpha], token_sha256: '{'0' * 64}'}}}}")

    def warnings() -> list[str]:
        return [text for text in load(read_config(site.config)).warnings if text.startswith("service ")]

    short, unknown = warnings()
    assert "max_lag 14s is short: a node that is idle reports a lag of up to its poll time of 5 s plus" in short
    assert "no node sends stamps for beta" in unknown
    site.edit("max_lag: 14s", "max_lag: 15s")
    site.edit("mirrors: [alpha], token", "mirrors: [alpha, beta], token")
    assert warnings() == []
    site.edit("max_lag: 15s", "tree: debian")
    site.edit("nodes: {a1", "#")
    assert "tree debian means nothing" in warnings()[0]


def test_node_of_the_configuration() -> None:
    assert make_config(nodes=NODES).nodes["n1"] == Node(mirrors=["m1"], token_sha256=token_sha256("token of n1"))
    assert decode(StampReport, json.dumps({"node": "n1", "wall_s": 1.0, "stamps": []})).stamps == []


# -- the whole thing


def post(daemon: Daemon, *stamps: dict[str, Any], node: str) -> int:
    base = daemon.status()["appliance"]["report"][0]
    body = json.dumps({"node": node, "wall_s": 1.8e9, "stamps": list(stamps)}).encode()
    request = urllib.request.Request(f"http://{base}/v1/stamps", body, node_headers(node))
    with urllib.request.urlopen(request, timeout=10) as answer:
        return int(answer.status)


@pytest.mark.skipif(shutil.which("dig") is None, reason="needs the program dig (Debian package bind9-dnsutils)")
def test_a_running_appliance_answers_by_stamps_shows_them_and_keeps_them_over_kill_9(tmp_path: Path) -> None:
    name = "www.mirror.example"
    with daemon_in(tmp_path) as daemon:
        nodes = "".join(
            f"  {node}: {{mirrors: [{mirror}], token_sha256: {token_sha256(f'token of {node}')}}}\n"
            for node, mirror in (("n1", "alpha"), ("n2", "beta"))
        )
        daemon.config.write_text(CONFIG.replace("    checks: [web]\n", "    checks: [web]\n    max_lag: 1h\n"))
        daemon.edit("agents: {}\n", f"agents: {{}}\nnodes:\n{nodes}")
        daemon.start()
        assert "never heard" in daemon.cli("status").stdout
        north = "+subnet=192.0.2.0/24"
        assert daemon.dig(name, north) == "192.0.2.1"
        assert post(daemon, stamp(), node="n2") == 200
        wait_until(lambda: daemon.dig(name, north) == "198.51.100.1", 5, "only beta has a stamp", daemon.log)
        assert post(daemon, stamp(version=12), node="n1") == 200
        wait_until(lambda: daemon.dig(name, north) == "192.0.2.1", 5, "alpha is fresh as well", daemon.log)
        assert post(daemon, stamp(version=12, state="empty", busy=True), node="n1") == 200
        wait_until(lambda: daemon.dig(name, north) == "198.51.100.1", 5, "alpha holds nothing", daemon.log)

        picture = daemon.status()
        shown = {(s["mirror"], s["tree"]): (s["version"], s["state"], s["busy"], s["node"]) for s in picture["stamps"]}
        assert shown == {("alpha", "main"): (12, "empty", True, "n1"), ("beta", "main"): (7, "fresh", False, "n2")}
        assert [node["heard_age_s"] < 60 for node in picture["nodes"]] == [True, True]
        console = Console(width=200, record=True, file=io.StringIO())
        show_status(console, picture)
        assert "alpha   main  12" in console.export_text()
        metrics = picture["appliance"]["metrics"][0]
        with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
            scraped = answer.read().decode()
        assert 'nearpath_sync_state{mirror="alpha",tree="main"} 3.0' in scraped
        assert 'nearpath_sync_version{mirror="alpha",tree="main"} 12.0' in scraped
        assert 'nearpath_sync_busy{mirror="beta",tree="main"} 0.0' in scraped
        assert 'nearpath_stamps_total{node="n1"} 2.0' in scraped
        lag_s = float(scraped.split('nearpath_sync_lag_seconds{mirror="beta",tree="main"} ')[1].split()[0])
        assert 1.5 <= lag_s < 100

        daemon.kill()
        daemon.start()
        assert daemon.dig(name, north) == "198.51.100.1"
        reasons = {c["mirror"]: c["reason"] for c in daemon.explain(name, "192.0.2.1")["candidates"]}
        assert reasons == {"beta": "chosen", "alpha": "content: its node says that it holds no content"}
        daemon.edit(nodes.splitlines()[0] + "\n", "")
        daemon.cli("reload")
        wait_until(lambda: len(daemon.status()["stamps"]) == 1, 5, "the stamps of n1 count no more", daemon.log)
