"""The report interface over real HTTP, with the real bus and the real steerer behind it."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from core.config import Config
from core.messages import MAX_SAMPLES_PER_REPORT, TargetList, decode
from nearpath.api import make_targets
from tests.nearpath.reporting import (
    INCARNATION,
    START_S,
    Box,
    ScriptedClock,
    headers,
    held_store,
    hurry,
    make_config,
    open_box,
    plan_of,
    sample,
    until,
)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with open_box(tmp_path) as opened:
        yield opened


def good_body(*samples: dict[str, Any]) -> dict[str, Any]:
    return {"incarnation": INCARNATION, "wall_s": START_S, "samples": list(samples)}


# -- who may


@pytest.mark.parametrize("path", ["/v1/targets", "/v1/samples"])
async def test_without_a_right_token_all_refusals_look_the_same(box: Box, path: str) -> None:
    seen = set()
    attempts: list[dict[str, str]] = [
        {},
        {"X-Nearpath-Agent": "a1"},
        {"Authorization": "Bearer token of a1"},
        headers("a1", "wrong"),
        headers("a1", "token of a2"),
        headers("nobody", "token of a1"),
        {"X-Nearpath-Agent": "a1", "Authorization": "Basic dG9rZW4="},
    ]
    for given in attempts:
        ask = box.client.get if path == "/v1/targets" else box.client.post
        async with ask(path, headers=given, **({} if path == "/v1/targets" else {"json": good_body()})) as answer:
            assert answer.status == 401
            shown = {k: v for k, v in answer.headers.items() if k != "Date"}
            assert shown["WWW-Authenticate"] == "Bearer"
            seen.add((await answer.text(), tuple(sorted(shown.items()))))
    assert len(seen) == 1
    assert box.api.refused == len(attempts)
    assert set(box.api.agents) == {"a1", "a2"}  # guessing names leaves nothing behind
    assert box.api.locks == {}


async def test_bytes_that_are_no_text_in_the_headers_are_refused_like_all_others(box: Box) -> None:
    assert box.client.port is not None
    reader, writer = await asyncio.open_connection("127.0.0.1", box.client.port)
    writer.write(
        b"GET /v1/targets HTTP/1.1\r\nHost: x\r\nX-Nearpath-Agent: a1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n"
    )
    await writer.drain()
    assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")
    writer.close()


async def test_an_agent_that_a_reload_removed_is_refused(box: Box) -> None:
    assert (await box.report([sample(1)]))[0] == 200
    only_a2 = {"a2": {"region": "us", "token_sha256": make_config().agents["a2"].token_sha256}}
    box.api.reload(make_config(agents=only_a2))
    assert (await box.report([sample(2)]))[0] == 401
    assert (await box.report([sample(1)], agent="a2"))[0] == 200


async def test_an_agent_removed_while_its_report_waits_is_refused(box: Box) -> None:
    lock = box.api.locks.setdefault("a1", asyncio.Lock())
    async with lock:
        waiting = asyncio.create_task(box.report([sample(1)]))
        await until(lambda: bool(lock._waiters))
        box.api.reload(make_config(agents={}))
    assert (await waiting)[0] == 401
    assert await box.stored() == []


# -- targets


async def test_targets_and_their_etag(box: Box) -> None:
    async with box.client.get("/v1/targets", headers=headers("a1")) as answer:
        assert answer.status == 200
        etag = answer.headers["ETag"]
        targets = decode(TargetList, await answer.read())
    assert [(t.mirror, t.check, t.family, t.address, t.host) for t in targets.targets] == [
        ("m1", "ping", 4, "198.51.100.1", "dl.example.org"),
        ("m1", "ping", 6, "2001:db8::1", "dl.example.org"),
        ("m2", "ping", 4, "198.51.100.2", "dl.example.org"),
    ]
    assert etag == f'"{targets.etag}"'
    assert targets.targets[0].how == make_config().checks["ping"]
    async with box.client.get("/v1/targets", headers={**headers("a2"), "If-None-Match": etag}) as answer:
        assert (answer.status, await answer.read(), answer.headers["ETag"]) == (304, b"", etag)
    box.api.reload(make_config(checks={"ping": {"kind": "icmp", "interval": "2s"}}))
    async with box.client.get("/v1/targets", headers={**headers("a2"), "If-None-Match": etag}) as answer:
        assert answer.status == 200
        assert answer.headers["ETag"] != etag


def test_the_etag_changes_when_and_only_when_the_list_does() -> None:
    def etag(**changes: Any) -> str:
        return make_targets(make_config(**changes)).etag

    base = make_config()
    mirrors = {n: m.model_dump(exclude={"max_load"}) for n, m in base.mirrors.items()}
    assert etag() == etag(steering={"fall": 5})
    assert etag() == etag(mirrors=dict(reversed(mirrors.items())))
    assert etag() != etag(mirrors={**mirrors, "m2": {"addresses": ["198.51.100.3"]}})
    # Also a difference in the seventh digit: it would not be there if times were written with six.
    times = [{"ping": {"kind": "icmp", "interval": f"1000.00{i}s"}} for i in (1, 2)]
    assert etag(checks=times[0]) != etag(checks=times[1])


def test_targets_of_services_that_share_mirrors_are_probed_once() -> None:
    config: Config = make_config(
        checks={
            "ping": {"kind": "icmp"},
            "web": {"kind": "http", "host": "www.example.org"},
            "unused": {"kind": "icmp"},
        },
        services={
            "dl.example.org.": {"mirrors": ["m1"], "checks": ["web"], "rtt_check": "ping"},
            "b.example.org.": {"mirrors": ["m1", "m2"], "checks": ["ping"]},
        },
    )
    assert [(t.mirror, t.check, t.family, t.host) for t in make_targets(config).targets] == [
        ("m1", "ping", 4, "dl.example.org"),
        ("m1", "ping", 6, "dl.example.org"),
        ("m1", "web", 4, "www.example.org"),
        ("m1", "web", 6, "www.example.org"),
        ("m2", "ping", 4, "b.example.org"),
    ]


# -- samples


async def test_samples_are_stored_acknowledged_and_taken(box: Box) -> None:
    assert await box.report([sample(1), sample(2, 20.0), sample(3, None)]) == (200, 3)
    assert box.count() == 3
    stored = await box.stored()
    assert [s["sequence"] for s in stored] == [1, 2, 3]
    assert {(s["agent"], s["region"], s["taken_s"]) for s in stored} == {("a1", "eu", START_S - 0.25)}
    assert box.state().samples == 3
    assert await box.report([]) == (200, 3)


async def test_a_repeated_report_is_acknowledged_and_counted_once(box: Box) -> None:
    for _ in range(3):
        assert await box.report([sample(n) for n in range(1, 11)]) == (200, 10)
    assert await box.report([sample(2)]) == (200, 10)
    assert (box.count(), box.state().samples, len(await box.stored())) == (10, 10, 10)


async def test_of_an_overlapping_report_only_the_new_part_counts(box: Box) -> None:
    assert await box.report([sample(n) for n in range(1, 6)]) == (200, 5)
    assert await box.report([sample(n) for n in range(3, 9)]) == (200, 8)
    assert (box.count(), box.state().samples, box.state().missing) == (8, 8, 0)
    # Twice the same number in one report is one sample.
    assert await box.report([sample(9), sample(9, 99.0), sample(10)]) == (200, 10)
    assert (box.count(), box.state().samples, box.state().missing) == (10, 10, 0)


async def test_reports_of_one_agent_at_once_count_each_sample_once(box: Box) -> None:
    ranges = [(1, 30), (1, 30), (11, 40), (1, 40), (31, 50), (1, 50)]
    answers = await asyncio.gather(
        *(box.report([sample(n) for n in range(a, b + 1)]) for a, b in ranges),
        *(box.report([sample(n) for n in range(1, b)], agent="a2") for b in (5, 9, 20)),
    )
    assert {status for status, _ in answers} == {200}
    assert all(acked >= b for (_, b), (_, acked) in zip(ranges, answers, strict=False))
    # A range that came before its predecessor has made the predecessor's numbers old: nothing is counted twice.
    stored = [(s["agent"], s["sequence"]) for s in await box.stored()]
    assert len(stored) == len(set(stored))
    assert box.count("a1") == box.state("a1").samples == sum(agent == "a1" for agent, _ in stored)
    assert box.count("a2") == box.state("a2").samples == 19


async def test_an_agent_that_lost_its_disk_counts_again_from_one(box: Box) -> None:
    assert await box.report([sample(n) for n in range(1, 6)]) == (200, 5)
    assert await box.report([sample(n) for n in range(1, 4)], incarnation="f" * 16) == (200, 3)
    assert (box.count(), box.state().samples, box.state().missing) == (8, 8, 0)
    assert box.state().incarnation == "f" * 16
    # What the old spool sent again would still be known.
    assert await box.report([sample(n) for n in range(1, 6)]) == (200, 5)
    assert box.count() == 8


async def test_holes_are_counted(box: Box) -> None:
    assert await box.report([sample(5)]) == (200, 5)  # what came before this appliance started is not known
    assert box.state().missing == 0
    assert await box.report([sample(6), sample(9), sample(10)]) == (200, 10)
    assert box.state().missing == 2
    assert await box.report([sample(21)]) == (200, 21)
    assert box.state().missing == 12
    assert await box.report([sample(15), sample(21), sample(22)]) == (200, 22)
    assert box.state().missing == 12
    assert box.state().samples == 6


async def test_a_clock_that_jumped_puts_samples_in_quarantine(box: Box) -> None:
    assert await box.report([sample(1, age_by="wall")]) == (200, 1)
    box.clock.at += 1
    assert await box.report([sample(2, age_by="wall"), sample(3)], skew_s=-30) == (200, 3)
    assert box.state().quarantined == 1
    assert box.state().samples == 3
    assert box.count() == 2
    assert [s["quarantined"] for s in await box.stored()] == [False, True, False]


async def test_samples_of_what_is_not_configured_are_acknowledged_and_counted_apart(box: Box) -> None:
    strange = [sample(1, mirror="gone"), sample(2, check="gone"), sample(3, mirror="m2", family=6), sample(4)]
    assert await box.report(strange) == (200, 4)
    assert box.steerer.engine.unknown_samples == 3
    assert box.count() == 1


# -- what is refused


async def test_an_oversize_body_is_refused(box: Box) -> None:
    big = json.dumps(good_body(*(sample(n) for n in range(1, 1500)))).encode()
    assert len(big) > 65536
    async with box.client.post("/v1/samples", headers=headers("a1"), data=big) as answer:
        assert answer.status == 413
    packed = {**headers("a1"), "Content-Encoding": "gzip", "Content-Type": "application/json"}
    async with box.client.post("/v1/samples", headers=packed, data=gzip.compress(b" " * 50_000_000)) as answer:
        assert answer.status in (400, 413)
    assert await box.stored() == []
    assert await box.report([sample(1)]) == (200, 1)


@pytest.mark.parametrize(
    "body",
    [b"", b"garbage", b"{}", b"[]", b"\xff" * 1000, b"[" * 60_000, json.dumps(good_body({"sequence": 1})).encode(),
     json.dumps(good_body(sample(1, rtt_s=float("nan")))).encode(), json.dumps({**good_body(), "x": 1}).encode(),
     json.dumps(good_body(sample(1), sample(0))).encode()],
    ids=lambda body: repr(body)[:24],
)  # fmt: skip
async def test_garbage_is_refused_whole_with_the_reason(box: Box, body: bytes) -> None:
    async with box.client.post("/v1/samples", headers=headers("a1"), data=body) as answer:
        assert answer.status == 400
        text = await answer.text()
    assert text.startswith("not a SampleReport: ")
    assert len(text) < 1000
    assert await box.stored() == []
    assert box.state().samples == 0


async def test_the_largest_report_of_the_protocol_fits_the_default_limit(tmp_path: Path) -> None:
    largest = [
        sample(2**62 - 2001 + n, None, loss="x" * 80, mirror="m" * 63, check="c" * 63, load_ratio=0.123456789012345,
               age_s=34559999.123456789, stamp="kernel", age_by="boot")
        for n in range(MAX_SAMPLES_PER_REPORT)
    ]  # fmt: skip
    async with open_box(tmp_path, config=make_config(report={})) as box:
        assert await box.report(largest) == (200, 2**62 - 2)


# -- a store that cannot be written


async def test_without_a_store_steering_goes_on_and_each_sample_counts_once(tmp_path: Path) -> None:
    async with open_box(tmp_path) as box:
        await hurry(box.bus)
        assert await box.report([sample(1), sample(2)]) == (200, 2)
        with held_store(tmp_path):
            for _ in range(2):  # the agent, which got no acknowledgement, tries again
                body = good_body(*(sample(n, None) for n in range(3, 7)))
                async with box.client.post("/v1/samples", headers=headers("a1"), json=body) as answer:
                    assert answer.status == 503
                    assert answer.headers["Retry-After"] == "2"
                    assert "cannot use the store" in await answer.text()
                assert box.count() == 6
        assert box.state().samples == 2
        assert await box.report([sample(n, None) for n in range(3, 9)]) == (200, 8)
        assert (box.count(), box.state().samples, box.state().missing) == (8, 8, 0)
        assert [s["sequence"] for s in await box.stored()] == list(range(1, 9))
        before = box.estimates()
    async with open_box(tmp_path, box.clock) as again:
        assert again.estimates() == before


async def test_what_was_not_stored_is_gone_with_a_crash_and_counted_when_it_comes_again(tmp_path: Path) -> None:
    async with open_box(tmp_path, killed=True) as box:
        await hurry(box.bus)
        assert await box.report([sample(1)]) == (200, 1)
        with held_store(tmp_path):
            assert (await box.report([sample(2), sample(3)]))[0] == 503
        assert box.count() == 3
    async with open_box(tmp_path, box.clock) as again:
        assert again.count() == 1
        assert await again.report([sample(2), sample(3)]) == (200, 3)
        assert again.count() == 3


# -- over restarts


async def test_restored_and_replayed_equals_uninterrupted(tmp_path: Path) -> None:
    clocks = ScriptedClock(), ScriptedClock()
    steps = [(n, [5.0, 80.0, 10.0, None, 7.0, 30.0][n % 6]) for n in range(1, 61)]

    async def feed(box: Box, n: int, rtt_ms: float | None) -> None:
        box.clock.at = START_S + n
        await box.report([sample(2 * n - 1, rtt_ms), sample(2 * n, 12.0 + n, mirror="m2")])
        await box.report([sample(n, None if n % 20 > 15 else 50.0)], agent="a2")

    (tmp_path / "one").mkdir()
    async with open_box(tmp_path / "one", clocks[0]) as box:
        for n, rtt_ms in steps:
            await feed(box, n, rtt_ms)
        uninterrupted = box.estimates()
    assert len(uninterrupted) == 3
    # The same, with a crash, a clean stop or a snapshot and then a crash after every few reports; and each first report
    # after a start is one that was already acknowledged.
    (tmp_path / "two").mkdir()
    for start in range(0, 60, 6):
        async with open_box(tmp_path / "two", clocks[1], killed=start % 4 == 0) as box:
            if start:
                await feed(box, *steps[start - 1])
            for i, (n, rtt_ms) in enumerate(steps[start : start + 6]):
                await feed(box, n, rtt_ms)
                if i == 2:
                    await box.steerer._keep()
            last = box.estimates()
    assert last == uninterrupted
    async with open_box(tmp_path / "two", clocks[1]) as box:
        assert box.estimates() == uninterrupted
        assert box.tables[0].services == box.steerer.engine.decide(box.clock.at).services


async def test_a_reload_keeps_counts_and_estimates(box: Box) -> None:
    assert await box.report([sample(1), sample(2)]) == (200, 2)
    before = box.estimates()
    config = make_config(steering={"fall": 4})
    box.api.reload(config)
    box.steerer.change_plan(plan_of(config))
    assert box.estimates() == before
    assert box.state().samples == 2
    assert await box.report([sample(1), sample(2), sample(3)]) == (200, 3)
    assert box.count() == 3


# -- an agent with a right token and bad manners


async def test_a_flood_of_incarnations_is_slowed_down_and_harms_no_other(box: Box) -> None:
    """Each is remembered for 30 days: the store must not grow as fast as somebody can draw numbers."""
    answers = [await box.report([], incarnation=f"{n:016x}") for n in range(70)]
    assert [status for status, _body in answers] == [200] * 64 + [429] * 6
    assert (await box.report([sample(1)], incarnation=f"{63:016x}"))[0] == 200
    assert (await box.report([sample(1)], agent="a2"))[0] == 200
    box.clock.at += 10
    assert (await box.report([sample(1)], incarnation="f" * 16))[0] == 200


async def test_reports_of_one_agent_do_not_pile_up_in_memory(box: Box, tmp_path: Path) -> None:
    await hurry(box.bus)
    lock = box.api.locks.setdefault("a1", asyncio.Lock())
    async with lock:
        waiting = [asyncio.create_task(box.report([sample(n)])) for n in range(1, 9)]
        await until(lambda: box.state().under_way == 8)
        assert (await box.report([sample(9)]))[0] == 429
        assert (await box.report([sample(1)], agent="a2"))[0] == 200
    assert {(await task)[0] for task in waiting} == {200}
    assert box.state().under_way == 0
    assert (await box.report([sample(9)]))[0] == 200


async def test_refusals_do_not_fill_the_log(box: Box, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(50):
        async with box.client.get("/v1/targets", headers=headers("a1", "wrong")) as answer:
            assert answer.status == 401
    assert box.api.refused == 50
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("agent_refused") == 1
