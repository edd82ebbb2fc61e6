"""The whole cache, with scripted time, real SQLite, and a source that says who asked what."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from local_infer.api.sse import DONE
from local_infer.cache.io_cache import Cache
from local_infer.fault import Unreachable
from local_infer.model import Answer, Ask, Endpoint, Kept, Step, Stream
from tests.local_infer.cache_asks import (
    ScriptedClock,
    Source,
    answered,
    chat,
    chunks,
    infer_config,
    make_ask,
    play,
    read_all,
    text_of,
    whole,
)  # fmt: skip
from tests.local_infer.mock_upstream import MockUpstream, Reply


class Rig:
    """A cache, its clock, its source, its metrics."""

    def __init__(self, config: InferConfig) -> None:
        self.config = config
        self.clock = ScriptedClock()
        self.source = Source()
        self.registry = CollectorRegistry()
        self.cache: Cache

    async def open(self) -> Rig:
        self.registry = CollectorRegistry()
        self.cache = await Cache.start(self.config, self.clock, self.registry)
        return self

    async def again(self) -> None:
        """As after a restart."""
        await self.cache.close()
        await self.open()

    async def find(self, ask: Ask) -> Kept | None:
        return await self.cache.find(ask, self.clock.now)

    async def fetch(self, ask: Ask) -> Answer:
        return await self.cache.fetch(ask, self.source.fetch)

    async def get(self, ask: Ask) -> tuple[str, bytes]:
        """As the ladder does without failures: cache status and body."""
        kept = await self.find(ask)
        if kept is None or kept.age == "stale":
            answer = await self.fetch(ask)
        else:
            answer = kept.answer
            if kept.age == "revalidate":
                self.cache.refresh(ask, self.source.fetch)
        return answer.origin.cache_status, await read_all(answer)

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"local_infer_cache_{name}", labels) or 0.0


async def settle() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


@pytest_asyncio.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    made = await Rig(infer_config(str(tmp_path), prefetch="50%")).open()
    yield made
    await made.cache.close()


# -- ages, statuses


async def test_the_life_of_an_answer(rig: Rig) -> None:
    ask = make_ask()
    assert await rig.find(ask) is None
    status, body = await rig.get(ask)
    assert status == "fwd=miss; stored"
    rig.clock.now += 40
    kept = await rig.find(ask)
    assert kept is not None
    assert kept.age == "fresh"
    assert kept.answer.body == body
    assert kept.answer.status == 200
    assert dict(kept.answer.headers) == {"content-type": "application/json"}
    origin = kept.answer.origin
    assert (origin.step, origin.name, origin.reason, origin.age_s) == (Step.CACHE, "east", "", 40)
    assert origin.cache_status == "hit; ttl=60"
    rig.clock.now += 80
    kept = await rig.find(ask)
    assert kept is not None
    assert (kept.age, kept.answer.origin.cache_status, kept.answer.origin.step) == (
        "revalidate", "hit; ttl=-20", Step.CACHE,
    )  # fmt: skip
    rig.clock.now += 40
    kept = await rig.find(ask)
    assert kept is not None
    assert (kept.age, kept.answer.origin.cache_status, kept.answer.origin.step) == ("stale", "hit; ttl=-60", Step.STALE)
    assert (await rig.fetch(ask)).origin.cache_status == "fwd=stale; stored"
    rig.clock.now += 1151
    assert await rig.find(ask) is None
    assert len(rig.source.asks) == 2
    found = {age: rig.count("lookups_total", found=age) for age in ("fresh", "revalidate", "stale", "miss")}
    assert found == {"fresh": 1, "revalidate": 1, "stale": 1, "miss": 3}


async def test_revalidation_goes_on_behind_once(rig: Rig) -> None:
    ask = make_ask()
    await rig.get(ask)
    rig.clock.now += 120
    for _ in range(5):
        assert (await rig.get(ask))[0] == "hit; ttl=-20"
    await settle()
    assert len(rig.source.asks) == 2
    assert (await rig.get(ask))[0] == "hit; ttl=100"
    assert rig.count("ahead_total", kind="behind", outcome="kept") == 1


async def test_when_upstreams_fail_the_old_answer_stays(rig: Rig) -> None:
    ask = make_ask()
    await rig.get(ask)
    rig.clock.now += 120
    rig.source.fail = Unreachable("connect", {"east": "refused"})
    rig.cache.refresh(ask, rig.source.fetch)
    await settle()
    assert rig.count("ahead_total", kind="behind", outcome="failed") == 1
    with pytest.raises(Unreachable):
        await rig.fetch(ask)
    rig.source.fail, rig.source.body = None, b'{"error":{"message":"overloaded"}}'
    rig.cache.refresh(ask, rig.source.fetch)
    await settle()
    rig.clock.now += 200
    kept = await rig.find(ask)
    assert kept is not None
    assert kept.age == "stale"
    assert isinstance(kept.answer.body, bytes)
    assert text_of(kept.answer.body) == Source.text(ask)


@pytest.mark.parametrize(
    ("headers", "found", "status", "kept_after"),
    [
        ({"Cache-Control": "no-cache"}, None, "fwd=request; stored", True),
        ({"Cache-Control": "no-store"}, "fresh", "fwd=bypass", False),
        ({"Cache-Control": "max-age=10"}, "stale", "fwd=request; stored", True),
        ({"Cache-Control": "max-age=60"}, "fresh", "hit; ttl=70", True),
    ],
)
async def test_what_clients_ask_for(
    rig: Rig, headers: dict[str, str], found: str | None, status: str, kept_after: bool
) -> None:
    await rig.get(make_ask())
    rig.clock.now += 30
    asked = make_ask(headers=headers)
    kept = await rig.find(asked)
    assert (kept and kept.age) == found
    assert (await rig.fetch(asked)).origin.cache_status == status
    rig.clock.now += 80  # of the first answer nothing fresh is left by now
    again = await rig.find(make_ask())
    assert again is not None
    assert (again.age == "fresh") == (kept_after and status != "hit; ttl=70")


async def test_sampled_requests_pass_by_and_opted_in_ones_do_not_serve_others(rig: Rig) -> None:
    warm = chat(temperature=0.7)
    for _ in range(2):
        assert (await rig.get(make_ask(warm)))[0] == "fwd=bypass"
    keep = make_ask(warm, headers={"X-Cache": "keep"})
    assert (await rig.get(keep))[0] == "fwd=miss; stored"
    assert (await rig.get(keep))[0] == "hit; ttl=100"
    assert (await rig.get(make_ask(warm)))[0] == "fwd=bypass"
    assert len(rig.source.asks) == 4


async def test_doubtful_requests_are_neither_kept_nor_answered_from_what_is(rig: Rig) -> None:
    poisoned = json.dumps(chat()).encode()[:-1] + b', "messages": [{"role": "user", "content": "hello"}]}'
    assert make_ask(poisoned).fields == make_ask().fields
    assert (await rig.get(make_ask(poisoned)))[0] == "fwd=bypass"
    assert await rig.find(make_ask()) is None
    await rig.get(make_ask())
    assert await rig.find(make_ask(poisoned)) is None
    assert rig.count("doubtful_total") > 0


async def test_embeddings_are_kept(rig: Rig) -> None:
    ask = make_ask({"model": "e", "input": "x"}, endpoint=Endpoint.EMBEDDINGS)
    assert [(await rig.get(ask))[0] for _ in range(2)] == ["fwd=miss; stored", "hit; ttl=100"]


@pytest.mark.parametrize(
    "source",
    [Source(status=429), Source(body=b'{"error":{"message":"x"}}'), Source(body=whole()[:-1])],
    ids=["429", "error in a 200", "cut"],
)
async def test_bad_answers_are_passed_on_and_not_kept(rig: Rig, source: Source) -> None:
    rig.source = source
    for _ in range(2):
        assert (await rig.get(make_ask()))[0] == "fwd=miss"
    assert len(source.asks) == 2


@pytest.mark.parametrize(
    "events",
    [
        chunks()[:-1],
        [*chunks()[:-1], b'data: {"error":{"message":"x"}}\n\n'],
        [b'data: {"error":{"message":"x"}}\n\n', DONE],
    ],
    ids=["cut", "cut with an error event", "error and DONE"],
)
async def test_bad_streams_are_passed_on_and_not_kept(rig: Rig, events: list[bytes]) -> None:
    rig.source.events = events
    for _ in range(2):
        assert await rig.get(make_ask(chat(stream=True))) == ("fwd=miss", b"".join(events))
    assert len(rig.source.asks) == 2


# -- forms


async def test_streams_and_whole_answers_serve_each_other(rig: Rig) -> None:
    plain, streamed = make_ask(), make_ask(chat(stream=True))
    counted = make_ask(chat(stream=True, stream_options={"include_usage": True}))
    status, body = await rig.get(streamed)
    assert status == "fwd=miss"  # whether it will be kept is not known when its headers are sent
    assert await rig.get(streamed) == ("hit; ttl=100", body)
    # Without usage it is good enough for a whole answer only when no upstream can be asked.
    kept = await rig.find(plain)
    assert kept is not None
    assert kept.age == "stale"
    assert kept.answer.headers["content-type"] == "application/json"
    assert isinstance(kept.answer.body, bytes)
    assert text_of(kept.answer.body) == Source.text(plain)
    # The whole answer that is fetched then serves all forms.
    assert (await rig.get(plain))[0] == "fwd=miss; stored"
    for ask in (streamed, counted):
        kept = await rig.find(ask)
        assert kept is not None
        assert kept.age == "fresh"
        assert kept.answer.headers["content-type"].startswith("text/event-stream")
        assert isinstance(kept.answer.body, bytes)
        assert text_of(kept.answer.body) == Source.text(ask)
        assert kept.answer.body.endswith(DONE)
        assert (b'"usage"' in kept.answer.body) == (ask is counted)
    assert len(rig.source.asks) == 2


# -- flights


async def test_equal_requests_at_once_are_asked_for_once_streams_too(rig: Rig) -> None:
    for body in (chat(), chat("other", stream=True)):
        ask = make_ask(body)
        answers = await asyncio.gather(*(rig.get(ask) for _ in range(100)))
        assert len({body for _, body in answers}) == 1
        assert text_of(answers[0][1]) == Source.text(ask)
    assert len(rig.source.asks) == 2
    assert rig.count("coalesced_total") == 198


async def test_other_tenants_and_forms_have_flights_of_their_own(rig: Rig) -> None:
    asks = [make_ask(chat(stream=stream), tenant=tenant) for tenant in ("t", "u") for stream in (False, True)]
    answers = await asyncio.gather(*(rig.get(ask) for ask in asks * 3))
    assert [text_of(body) for _, body in answers] == [Source.text(ask) for ask in asks * 3]
    assert len(rig.source.asks) == 4


async def test_who_wants_nothing_kept_does_not_board_what_was_begun_before(rig: Rig) -> None:
    plain, anew = make_ask(), make_ask(headers={"Cache-Control": "no-cache"})
    answers = await asyncio.gather(*(rig.fetch(ask) for ask in (plain, anew, plain)))
    assert [answer.origin.cache_status for answer in answers] == [
        "fwd=miss; stored", "fwd=request; stored", "fwd=miss; stored; collapsed",
    ]  # fmt: skip
    assert len(rig.source.asks) == 2


async def test_a_request_that_comes_just_after_a_flight_is_answered_from_it(rig: Rig) -> None:
    ask = make_ask()
    assert await rig.find(ask) is None  # looked while nothing was there; meanwhile another's answer came
    await rig.get(ask)
    assert (await rig.fetch(ask)).origin.cache_status == "hit; ttl=100"
    assert len(rig.source.asks) == 1


async def test_the_last_client_that_leaves_cancels_a_real_upstream(rig: Rig) -> None:
    async with MockUpstream() as upstream, aiohttp.ClientSession() as session:
        upstream.next(Reply.stall(after=2))

        async def fetch(ask: Ask) -> Answer:
            response = await session.post(f"{upstream.url}/chat/completions", data=ask.body)

            async def events() -> Stream:
                try:
                    async for chunk in response.content.iter_any():
                        yield chunk
                finally:
                    response.close()

            return answered(events())

        ask = make_ask(chat(stream=True))
        streams = [(await rig.cache.fetch(ask, fetch)).body for _ in range(2)]
        for stream in streams:
            assert not isinstance(stream, bytes)
            await anext(stream)
        seen = await upstream.wait_for(1)
        assert not isinstance(streams[0], bytes)
        await streams[0].aclose()
        await asyncio.sleep(0.05)
        assert not seen.gone.is_set()
        assert not isinstance(streams[1], bytes)
        await streams[1].aclose()
        await asyncio.wait_for(seen.gone.wait(), 10)
        assert len(upstream.asked) == 1


# -- disk


async def test_kept_over_a_restart_and_preheated(rig: Rig) -> None:
    ask = make_ask()
    _, body = await rig.get(ask)
    await rig.again()
    rig.clock.now += 10
    assert rig.count("entries") == 1
    assert await rig.get(ask) == ("hit; ttl=90", body)
    assert rig.count("disk_ok") == 1


async def test_what_memory_has_no_room_for_comes_from_disk(tmp_path: Path) -> None:
    rig = await Rig(infer_config(str(tmp_path), memory="4KiB")).open()
    asks = [make_ask(chat(f"question {n}")) for n in range(20)]
    for ask in asks:
        await rig.get(ask)
    assert 1 <= rig.count("entries") <= 3
    for ask in asks:
        status, body = await rig.get(ask)
        assert status == "hit; ttl=100"
        assert text_of(body) == Source.text(ask)
    assert len(rig.source.asks) == 20
    assert 0 < rig.count("memory_bytes") <= 4096
    await rig.cache.close()


@pytest.mark.parametrize("fields", [{"disk": "0B"}, {"memory": "0B"}, {"memory": "0B", "disk": "0B"}])
async def test_either_may_be_left_out(tmp_path: Path, fields: dict[str, str]) -> None:
    rig = await Rig(infer_config(str(tmp_path), **fields)).open()
    statuses = [(await rig.get(make_ask()))[0] for _ in range(2)]
    nothing = len(fields) == 2
    assert statuses == (["fwd=miss"] * 2 if nothing else ["fwd=miss; stored", "hit; ttl=100"])
    assert (tmp_path / "cache.sqlite").exists() == ("disk" not in fields)
    await rig.cache.close()


async def test_a_damaged_file_costs_the_cache_and_nothing_else(rig: Rig, tmp_path: Path) -> None:
    await rig.get(make_ask())
    await rig.cache.close()
    (tmp_path / "cache.sqlite").write_bytes(b"\0" * 50_000)
    await rig.open()
    assert [(await rig.get(make_ask()))[0] for _ in range(2)] == ["fwd=miss; stored", "hit; ttl=100"]


# -- ahead


async def until(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (counters have no events)
            await asyncio.sleep(0.02)


async def test_in_idle_time_hot_answers_are_refreshed_before_they_expire(rig: Rig) -> None:
    hot, cold = make_ask(chat("hot")), make_ask(chat("cold"))
    idle = False
    rig.cache.idle(rig.source.fetch, lambda: idle)
    await rig.get(cold)
    for _ in range(3):
        await rig.get(hot)
    for n in range(4):  # earns the right to two requests ahead
        await rig.get(make_ask(chat(f"{n}")))
    rig.clock.now += 95
    await asyncio.sleep(0.6)
    asked = len(rig.source.asks)
    idle = True  # not before the gateway has nothing better to do
    await until(lambda: rig.count("ahead_total", kind="refresh", outcome="kept") == 1)
    again = rig.source.asks[asked]
    assert (again.body, again.client.tenant, again.client.priority.name) == (hot.body, "t", "PREFETCH")
    rig.clock.now += 10
    assert (await rig.get(hot))[0] == "hit; ttl=90"
    assert (await rig.get(cold))[0] == "hit; ttl=-5"
    assert rig.count("ahead_total", kind="refresh", outcome="used") == 1


async def test_likely_follow_ups_are_fetched_ahead(rig: Rig) -> None:
    def conversation(n: int, *said: str) -> Ask:
        roles = ["user", "assistant"] * 3
        return make_ask(
            chat(messages=[{"role": r, "content": c} for r, c in zip(roles, [f"topic {n}", *said], strict=False)])
        )

    rig.cache.idle(rig.source.fetch, lambda: True)
    first, second = conversation(1), conversation(1, "yes", "and then?")
    for _ in range(2):
        await rig.get(first)
        await rig.get(second)
    for n in range(10, 14):
        await rig.get(conversation(n))
    rig.clock.now += 2000  # all that was kept is of no use any more
    asked = len(rig.source.asks)
    await rig.get(first)
    await until(lambda: rig.count("ahead_total", kind="follow", outcome="kept") == 1)
    assert [ask.body for ask in rig.source.asks[asked:]] == [first.body, second.body]
    assert (await rig.get(second))[0] == "hit; ttl=100"
    assert rig.count("ahead_total", kind="follow", outcome="used") == 1


async def test_what_is_fresh_is_not_fetched_ahead_and_costs_no_budget(rig: Rig) -> None:
    first = chat("a")
    later = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "b"}]
    second = make_ask(chat(messages=[*first["messages"], *later]))
    rig.cache.idle(rig.source.fetch, lambda: False)
    for _ in range(4):
        await rig.get(make_ask(first))
        await rig.get(second)
    for n in range(4):
        await rig.get(make_ask(chat(f"{n}")))
    assert rig.cache.next_ahead() is None  # all is fresh
    rig.clock.now += 2000
    await rig.get(make_ask(first))
    assert [rig.cache.next_ahead() is not None for _ in range(2)] == [True, False]


async def test_without_a_budget_nothing_is_fetched_ahead(tmp_path: Path) -> None:
    rig = await Rig(infer_config(str(tmp_path), prefetch="0%")).open()
    for _ in range(30):
        await rig.get(make_ask())
        await rig.get(make_ask(chat(temperature=1)))
    rig.clock.now += 95
    assert rig.cache.next_ahead() is None
    await rig.cache.close()


# -- never a crossed answer

acts = st.lists(
    st.tuples(
        st.sampled_from(["get", "get", "get", "crowd", "wait", "restart"]),
        st.integers(0, 2),  # who
        st.integers(0, 3),  # what
        st.sampled_from(["whole", "events", "usage"]),
        st.booleans(),  # written in another order
    ),
    max_size=14,
)


@settings(max_examples=40, deadline=None)
@given(acts, st.sampled_from(["0B", "5KiB", "1MiB"]))
def test_no_tenant_ever_sees_the_answer_of_another_or_of_another_question(script: list[Any], memory: str) -> None:
    asyncio.run(_play(script, memory))


async def _play(script: list[Any], memory: str) -> None:
    with TemporaryDirectory() as folder:
        rig = await Rig(infer_config(folder, memory=memory)).open()
        for what, who, which, form, turned in script:
            if what == "wait":
                rig.clock.now += 60 * (1 + who)
                continue
            if what == "restart":
                await rig.again()
                continue
            # Names that run into each other, and questions that differ in one character.
            tenant, text = ["t", "tt", "t:t"][who], ["a", "A", "a ", "ａ"][which]
            fields = chat(text)
            if form != "whole":
                fields |= {"stream": True}
            if form == "usage":
                fields |= {"stream_options": {"include_usage": True}}
            ask = make_ask(dict(reversed(fields.items())) if turned else fields, tenant=tenant)
            others = [make_ask(chat(text), tenant=name) for name in ("t", "tt", "t:t")] if what == "crowd" else []
            answers = await asyncio.gather(*(rig.get(each) for each in [ask, *others]))
            for each, (_status, body) in zip([ask, *others], answers, strict=True):
                said_by, _model, said = text_of(body).split("|", 2)
                assert said_by == each.client.tenant
                assert json.loads(said)[0]["content"] == text
                assert body.startswith(b"data:") == each.stream
        await rig.cache.close()


async def test_play_is_used_for_streams() -> None:
    """The helper of these tests gives each item by itself."""
    assert [chunk async for chunk in play([b"a", b"b"])] == [b"a", b"b"]
