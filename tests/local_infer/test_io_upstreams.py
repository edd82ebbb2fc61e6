# ruff: noqa: SIM117 (servers first, then what asks them: two lines read better than one of 130 characters)
"""Requests to real servers on loopback that misbehave on purpose: retries, limits, cuts, hedges, cancels, reloads."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_clock import AnchoredClock
from local_infer.fault import Unreachable
from local_infer.gateway.sse import DONE, data_of, split_events
from local_infer.model import Answer, Ask, Client, Endpoint, ModelCard, Step
from local_infer.upstreams.io_probing import read_list
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.certificate import make_certificate
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply, error_body

CLOCK = AnchoredClock()
SECRET = "sk-very-secret-0123456789"


def config(
    upstreams: dict[str, MockUpstream | str], *, each: dict[str, Any] | None = None, **routing: Any
) -> InferConfig:
    given = {name: {"url": one if isinstance(one, str) else one.url, **(each or {})} for name, one in upstreams.items()}
    return InferConfig.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "listen": ["127.0.0.1:0"],
            "anonymous": True,
            "upstreams": given,
            "routing": {"probe_every": "1h", **routing},
        }
    )


@asynccontextmanager
async def running(checked: InferConfig) -> AsyncIterator[IoUpstreams]:
    upstreams = await IoUpstreams.start(checked, CLOCK.now, Random(7), CollectorRegistry())
    try:
        yield upstreams
    finally:
        await upstreams.close()


def make_ask(*, stream: bool = False, endpoint: Endpoint = Endpoint.CHAT, resume: bool = False, **more: Any) -> Ask:
    fields: dict[str, Any] = {"model": "gpt-test", "messages": [{"role": "user", "content": "你好"}], **more}
    if endpoint is Endpoint.EMBEDDINGS:
        fields = {"model": "gpt-test", "input": ["a", "b"], **more}
    if stream:
        fields["stream"] = True
    body = json.dumps(fields).encode()
    return Ask("req-1", endpoint, body, fields, "gpt-test", stream, Client("c", "t"), CLOCK.now(), resume=resume)


async def asked(upstreams: IoUpstreams, ask: Ask) -> Answer:
    return await upstreams.ask(ask, CLOCK.now() + 30)


async def whole(answer: Answer) -> bytes:
    assert not isinstance(answer.body, bytes)
    return b"".join([events async for events in answer.body])


def text_of(events: bytes) -> str:
    text = ""
    for event in split_events(events):
        data = data_of(event)
        if data and data != b"[DONE]":
            text += "".join(c["delta"].get("content") or "" for c in json.loads(data).get("choices", ()))
    return text


def error_of(events: bytes) -> dict[str, Any]:
    """The error object in the last event."""
    error = json.loads(data_of(split_events(events)[-1]))["error"]
    assert isinstance(error, dict)
    return error


async def until(true: Any) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.005)


# --- forwarding ---------------------------------------------------------------------------------------------------------


async def test_a_whole_answer_is_forwarded_byte_for_byte() -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        answer = await asked(upstreams, make_ask(unknown={"field": 1}))
        assert answer.status == 200
        assert isinstance(answer.body, bytes)
        assert json.loads(answer.body)["choices"][0]["message"]["content"] == TEXT
        assert (answer.origin.step, answer.origin.name, answer.origin.degraded) == (Step.UPSTREAM, "a", False)
        assert answer.headers["content-type"] == "application/json"
        assert not {"openai-organization", "x-request-id", "set-cookie"} & answer.headers.keys()
        seen = one.asked[0]
        assert seen.body == make_ask(unknown={"field": 1}).body
        assert {name.lower(): value for name, value in seen.headers.items()}["x-request-id"] == "req-1"
        embeddings = await asked(upstreams, make_ask(endpoint=Endpoint.EMBEDDINGS))
        assert isinstance(embeddings.body, bytes)
        assert len(json.loads(embeddings.body)["data"]) == 2


@pytest.mark.parametrize("reply", [Reply(), Reply.split_characters(), Reply(split=1), Reply(split=7)])
async def test_a_stream_is_handed_on_in_whole_events(reply: Reply) -> None:
    async with MockUpstream(reply) as one, running(config({"a": one})) as upstreams:
        answer = await asked(upstreams, make_ask(stream=True))
        assert not isinstance(answer.body, bytes)
        runs = [events async for events in answer.body]
        assert all(events.endswith(b"\n\n") for events in runs)
        assert runs[-1].endswith(DONE)
        assert text_of(b"".join(runs)) == reply.text
        await until(lambda: upstreams._links["a"].in_flight == 0)


async def test_a_finished_stream_leaves_its_connection_for_the_next_request() -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        for _ in range(5):
            await whole(await asked(upstreams, make_ask(stream=True)))
            await until(lambda: upstreams._links["a"].in_flight == 0)
        # Later requests would come from new ports, had the connections been closed.
        connections = upstreams._links["a"].transport._session.connector._conns  # type: ignore[attr-defined]
        assert sum(map(len, connections.values())) == 1


async def test_the_name_of_the_model_there() -> None:
    async with MockUpstream() as one:
        checked = config({"a": one}, each={"models": {"gpt-test": "small"}, "headers": {"X-Team": "mirrors"}})
        async with running(checked) as upstreams:
            await asked(upstreams, make_ask(unknown=[1]))
            assert one.asked[0].json == {**make_ask(unknown=[1]).fields, "model": "small"}
            assert one.asked[0].headers["X-Team"] == "mirrors"
            assert [card.id for card in upstreams.models()] == ["gpt-test"]
            with pytest.raises(Unreachable, match="no upstream"):
                await upstreams.ask(
                    Ask("x", Endpoint.CHAT, b"", {}, "other", False, Client("c", "t"), 0.0), CLOCK.now() + 1
                )


async def test_models_are_listed_and_connections_warm_after_the_start() -> None:
    async with MockUpstream(models=["gpt-test", "big"]) as one:
        async with running(config({"a": one}, each={"warm": 3})) as upstreams:
            assert [card.id for card in upstreams.models()] == ["gpt-test", "big"]
            # The first probe finds out that it is up; the next ones keep three connections open.
            await upstreams._probing._probe(upstreams._ranking.members["a"], upstreams._config.routing, True)
            connections = upstreams._links["a"].transport._session.connector._conns  # type: ignore[attr-defined]
            assert sum(map(len, connections.values())) == 3


# --- failures before the first byte -------------------------------------------------------------------------------------

FAILURES = {
    "500": Reply.error(500),
    "503": Reply.error(503),
    "429": Reply.error(429, retry_after="30"),
    "408": Reply.error(408),
    "401": Reply.error(401),
    "redirect": Reply(status=307, headers={"Location": "http://127.0.0.1:1/"}, body=b""),
    "login page": Reply(headers={"Content-Type": "text/html"}, body=b"<html>please log in</html>"),
    "encoded": Reply(headers={"Content-Encoding": "gzip"}, body=b"\x1f\x8b"),
    "reset": Reply.reset(),
    "no HTTP": Reply(raw=b"SSH-2.0-OpenSSH_9.2\r\n"),
}
STREAM_FAILURES = {
    **FAILURES,
    "error frame": Reply.error_frame(),
    "cut before the first event": Reply.cut(0),
    "reset after the headers": Reply.reset(0),
    "stall after the headers": Reply.stall(0),
    "comments, then an error": Reply(events=[b": wait\n\n", b'data: {"error":{"message":"x"}}\n\n']),
}
WHOLE_FAILURES = {
    **FAILURES,
    "error in a 200": Reply(body=error_body("dead", "server_error")),
    "reset in the body": Reply.reset(1, split=20),
}


@pytest.mark.parametrize(
    ("reply", "stream"),
    [pytest.param(reply, True, id=f"stream: {name}") for name, reply in STREAM_FAILURES.items()]
    + [pytest.param(reply, False, id=f"whole: {name}") for name, reply in WHOLE_FAILURES.items()],
)
async def test_another_upstream_answers_and_nobody_notices(reply: Reply, stream: bool) -> None:
    async with MockUpstream() as bad, MockUpstream() as good:
        async with running(config({"bad": bad, "good": good}, first_byte="300ms")) as upstreams:
            bad.always = reply
            answer = await asked(upstreams, make_ask(stream=stream))
            assert (answer.status, answer.origin.name) == (200, "good")
            if stream:
                assert text_of(await whole(answer)) == TEXT
            # A reset on the connection kept from the probe may have been the race with its end: that is tried again.
            assert len(bad.asked) == (2 if reply == Reply.reset() else 1)
            await until(lambda: all(link.in_flight == 0 for link in upstreams._links.values()))


@pytest.mark.parametrize("status", [400, 404, 409, 422])
async def test_the_clients_own_fault_is_its_answer(status: int) -> None:
    async with MockUpstream(Reply.error(status)) as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other})) as upstreams:
            answer = await asked(upstreams, make_ask(stream=True))
            assert (answer.status, answer.body) == (status, error_body("it went wrong", "invalid_request_error"))
            assert not other.asked
            assert upstreams._ranking.members["a"].health.loss_ratio == 0.0


async def test_an_error_frame_that_is_the_clients_fault_gets_the_status_it_should_have_had() -> None:
    frame = b'data: {"error":{"message":"too long","type":"invalid_request_error","code":400}}\n\n'
    async with MockUpstream(Reply(events=[frame])) as one, running(config({"a": one})) as upstreams:
        answer = await asked(upstreams, make_ask(stream=True))
        assert answer.status == 400
        assert isinstance(answer.body, bytes)
        assert json.loads(answer.body)["error"]["message"] == "too long"


async def test_one_upstream_is_not_asked_twice_in_a_row() -> None:
    async with MockUpstream(Reply.error(500)) as one, running(config({"a": one})) as upstreams:
        with pytest.raises(Unreachable) as caught:
            await asked(upstreams, make_ask())
        assert (caught.value.reason, caught.value.reasons) == ("status 500", {"a": "status 500"})
        assert caught.value.answer_status == 500
        assert caught.value.answer_body == error_body("it went wrong", "server_error")
        assert len(one.asked) == 1


async def test_a_short_retry_after_is_waited_for() -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        one.next(Reply.error(429, retry_after="0.3"))
        answer = await asked(upstreams, make_ask())
        assert answer.status == 200
        first, second = one.asked
        assert second.at_s - first.at_s >= 0.3


async def test_a_long_retry_after_is_told() -> None:
    async with MockUpstream(Reply.error(429, retry_after="30")) as one, running(config({"a": one})) as upstreams:
        with pytest.raises(Unreachable) as caught:
            await asked(upstreams, make_ask())
        assert caught.value.reason == "rate limited"
        assert caught.value.answer_status == 429
        assert caught.value.retry_after_s is not None
        assert 25 < caught.value.retry_after_s <= 30
        assert upstreams.down_reason("gpt-test") == "rate limited"
        with pytest.raises(Unreachable):
            await asked(upstreams, make_ask())
        assert len(one.asked) == 1, "it is left alone"


async def test_retries_stay_within_their_budget() -> None:
    async with MockUpstream(Reply.error(500)) as one, MockUpstream(Reply.error(500)) as other:
        rules = {"error_share": "100%"}  # so that the breaker never opens
        async with running(config({"a": one, "b": other}, breaker=rules)) as upstreams:
            for _ in range(40):
                with pytest.raises(Unreachable):
                    await asked(upstreams, make_ask())
            tries = len(one.asked) + len(other.asked)
            assert 40 + 3 <= tries <= 40 * 1.2 + 1


async def test_a_trial_that_the_budget_refuses_is_left_to_the_next_request() -> None:
    async with MockUpstream(Reply.error(500)) as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other}, retry_budget="0%")) as upstreams:
            circuit = upstreams._ranking.members["b"].circuit
            circuit.open_until_s = 0.0  # half-open
            with pytest.raises(Unreachable):
                await asked(upstreams, make_ask())
            assert (len(one.asked), len(other.asked)) == (1, 0)
            assert circuit.would_admit(CLOCK.now())


async def test_a_redirect_gets_neither_the_request_nor_the_credentials() -> None:
    async with MockUpstream() as thief, MockUpstream() as one:
        one.always = Reply(status=307, headers={"Location": thief.url + "/chat/completions"}, body=b"")
        async with running(config({"a": one}, each={"headers": {"X-Team": "secret"}})) as upstreams:
            with pytest.raises(Unreachable) as caught:
                await asked(upstreams, make_ask())
            assert caught.value.reason == "redirect"
            assert not thief.requests


async def test_a_dead_upstream_is_left_alone_and_found_again() -> None:
    async with MockUpstream() as one:
        rules = {"least": 5, "open_for": "5m"}
        checked = config({"a": one}, breaker=rules, probe_every="100ms", steering={"rise": 1, "hold_down": "0s"})
        async with running(checked) as upstreams:
            assert upstreams.down_reason("gpt-test") == ""
            await one.down()
            for _ in range(6):
                with pytest.raises(Unreachable):
                    await asked(upstreams, make_ask())
            with pytest.raises(Unreachable) as caught:
                await asked(upstreams, make_ask())
            assert caught.value.reason == "open circuit"
            assert upstreams.down_reason("gpt-test") == "open circuit"
            await one.up()
            await until(lambda: upstreams.down_reason("gpt-test") == "")
            assert (await asked(upstreams, make_ask())).status == 200


async def test_a_connection_that_was_closed_while_idle_is_no_failure() -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        await asked(upstreams, make_ask())
        one.next(Reply.reset())  # what the race with the server's keepalive limit looks like
        assert (await asked(upstreams, make_ask())).status == 200
        assert upstreams._ranking.members["a"].health.loss_ratio == 0.0
        one.next(Reply.reset(), Reply.reset(), Reply.reset())
        with pytest.raises(Unreachable):
            await asked(upstreams, make_ask())
        assert len(one.asked) <= 5, "once, not for ever"


# --- time-outs ----------------------------------------------------------------------------------------------------------


async def test_an_upstream_that_does_not_accept_is_given_up() -> None:
    with socket.socket() as full, socket.socket() as filler, socket.socket() as filler2:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for one in (filler, filler2):  # the queue of a backlog of 0 holds one; the next SYN is dropped
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        async with MockUpstream() as good:
            async with running(config({"full": url, "good": good}, connect="200ms")) as upstreams:
                answer = await asked(upstreams, make_ask())
                assert answer.origin.name == "good"
                assert upstreams._ranking.members["full"].health.loss == "connect"


async def test_give_up_bounds_the_way_there_but_not_the_thinking() -> None:
    slow = Reply.slow(0.6)
    async with MockUpstream(slow) as one, running(config({"a": one}, give_up="300ms", connect="100ms")) as upstreams:
        assert (await asked(upstreams, make_ask())).status == 200
        assert (await asked(upstreams, make_ask(stream=True))).status == 200


async def test_no_retry_after_give_up() -> None:
    async with MockUpstream(Reply.slow(0.4, status=500)) as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other}, give_up="200ms", connect="100ms")) as upstreams:
            with pytest.raises(Unreachable) as caught:
                await asked(upstreams, make_ask())
            assert caught.value.reason == "status 500"
            assert not other.asked


async def test_the_deadline_of_the_request_bounds_everything() -> None:
    async with MockUpstream(Reply.slow(60)) as one, running(config({"a": one})) as upstreams:
        with pytest.raises(Unreachable) as caught:
            await upstreams.ask(make_ask(), CLOCK.now() + 0.2)
        assert caught.value.reason == "timeout"
        await asyncio.wait_for(one.asked[0].gone.wait(), 5)


# --- streams that go wrong later ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reply",
    [Reply.reset(3), Reply.cut(3), Reply.stall(3), Reply(end_after=20, split=37), Reply(reset_after=20, split=37)],
    ids=["reset", "cut", "stall", "cut within an event", "reset within an event"],
)
async def test_a_cut_stream_ends_with_an_error_event_and_without_done(reply: Reply) -> None:
    async with MockUpstream(reply) as one, MockUpstream() as other:
        checked = config({"a": one, "b": other}, between_chunks="300ms")
        async with running(checked) as upstreams:
            events = await whole(await asked(upstreams, make_ask(stream=True)))
            assert DONE.strip() not in events
            assert error_of(events)["code"] == "stream_cut"
            assert TEXT.startswith(text_of(b"".join(split_events(events)[:-1])))
            assert "127.0.0.1" not in events.decode()
            assert upstreams._ranking.members["a"].health.loss_ratio > 0
            assert not other.asked, "the client did not opt in"
            await until(lambda: upstreams._links["a"].in_flight == 0)


async def test_an_error_event_in_the_middle_is_the_upstreams_own_word() -> None:
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', b'data: {"error":{"message":"dead"}}\n\n']
    async with MockUpstream(Reply(events=events)) as one, running(config({"a": one})) as upstreams:
        assert await whole(await asked(upstreams, make_ask(stream=True))) == b"".join(events)
        assert upstreams._ranking.members["a"].health.loss_ratio > 0


async def test_a_finished_answer_without_done_is_no_cut() -> None:
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
        b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
        b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n',
    ]
    async with MockUpstream(Reply(events=events, between_s=0.01)) as one, running(config({"a": one})) as upstreams:
        assert await whole(await asked(upstreams, make_ask(stream=True))) == b"".join(events)


async def test_comments_are_kept_and_do_not_count_as_an_answer() -> None:
    events = [b": wait\n\n", b": wait\n\n", b'data: {"choices":[]}\n\n', DONE]
    async with MockUpstream(Reply(events=events, between_s=0.05)) as one, running(config({"a": one})) as upstreams:
        assert await whole(await asked(upstreams, make_ask(stream=True))) == b"".join(events)


@pytest.mark.parametrize(
    "reply",
    [Reply.reset(4), Reply.stall(4), Reply.cut(1), Reply(reset_after=20, split=37)],
    ids=["reset", "stall", "after the role", "within an event"],
)
async def test_an_opted_in_stream_is_continued_by_another_upstream(reply: Reply) -> None:
    def go_on(seen: Any) -> Reply:
        messages = seen.json["messages"]
        return Reply(text=TEXT.removeprefix(messages[-1]["content"] if messages[-1]["role"] == "assistant" else ""))

    async with MockUpstream(reply) as one, MockUpstream(go_on) as other:
        async with running(config({"a": one, "b": other}, between_chunks="300ms")) as upstreams:
            events = await whole(await asked(upstreams, make_ask(stream=True, resume=True, max_tokens=100)))
            assert text_of(events) == TEXT
            assert events.endswith(DONE)
            assert events.count(b'"role"') == 1
            assert len({json.loads(data_of(e))["id"] for e in split_events(events)[:-1]}) == 1
            assert len(other.asked) == 1
            await until(lambda: all(link.in_flight == 0 for link in upstreams._links.values()))


async def test_a_stream_that_cannot_be_continued_ends_with_an_error() -> None:
    async with MockUpstream(Reply.reset(3)) as one, MockUpstream(Reply.error(500)) as other:
        async with running(config({"a": one, "b": other})) as upstreams:
            events = await whole(await asked(upstreams, make_ask(stream=True, resume=True)))
            assert error_of(events)["code"] == "stream_cut"
            assert DONE.strip() not in events
            alone = await whole(await asked(upstreams, make_ask(stream=True, resume=True, n=2)))
            assert error_of(alone)["code"] == "stream_cut"


# --- clients that go away -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("taken", [0, 1, 3])
async def test_closing_a_stream_cancels_the_upstream(taken: int) -> None:
    async with MockUpstream(Reply.stall(5, between_s=0.001)) as one, running(config({"a": one})) as upstreams:
        answer = await asked(upstreams, make_ask(stream=True))
        assert not isinstance(answer.body, bytes)
        for _ in range(taken):
            await anext(answer.body)
        await answer.body.aclose()
        await asyncio.wait_for(one.asked[0].gone.wait(), 1)
        assert upstreams._links["a"].in_flight == 0


@pytest.mark.parametrize("stream", [True, False])
async def test_cancelling_a_request_cancels_the_upstream(stream: bool) -> None:
    async with MockUpstream(Reply.slow(60)) as one, running(config({"a": one})) as upstreams:
        task = asyncio.create_task(asked(upstreams, make_ask(stream=stream)))
        seen = await one.wait_for(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(seen.gone.wait(), 1)
        member = upstreams._ranking.members["a"]
        assert (member.in_flight, member.health.loss_ratio) == (0, 0.0), "the client left; the upstream is not to blame"


# --- hedging ------------------------------------------------------------------------------------------------------------


async def known_fast(upstreams: IoUpstreams) -> None:
    for _ in range(25):
        assert (await asked(upstreams, make_ask())).status == 200


async def test_a_hedge_wins_and_the_slow_one_is_cancelled() -> None:
    async with MockUpstream() as slow, MockUpstream() as other:
        async with running(config({"a": slow, "b": other}, hedge="5%")) as upstreams:
            await known_fast(upstreams)
            first = upstreams._ranking.order(("gpt-test", "whole"), CLOCK.now())
            assert first is not None
            slow_one = slow if first.order[0] == "a" else other
            slow_one.next(Reply.slow(60))
            answer = await asked(upstreams, make_ask())
            assert answer.status == 200
            await asyncio.wait_for(slow_one.asked[-1].gone.wait(), 5)
            assert all(link.in_flight == 0 for link in upstreams._links.values())


async def test_hedging_is_off_by_default_and_within_its_budget() -> None:
    async with MockUpstream() as one, MockUpstream() as other, running(config({"a": one, "b": other})) as upstreams:
        await known_fast(upstreams)
        before = len(one.asked) + len(other.asked)
        one.always = other.always = Reply.slow(0.2)
        await asked(upstreams, make_ask())
        assert len(one.asked) + len(other.asked) == before + 1
    async with MockUpstream() as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other}, hedge="5%")) as upstreams:
            await known_fast(upstreams)
            before = len(one.asked) + len(other.asked)
            one.always = other.always = Reply.slow(0.1)
            for _ in range(10):
                await asked(upstreams, make_ask())
            assert len(one.asked) + len(other.asked) <= before + 10 + 1, "5% of 35 requests is one"


# --- credentials --------------------------------------------------------------------------------------------------------


async def test_the_key_goes_to_the_upstream_and_nowhere_else(tmp_path: Path) -> None:
    key_file = tmp_path / "a.key"
    key_file.write_text(SECRET + "\n")
    key_file.chmod(0o600)
    async with MockUpstream(key=SECRET) as one:
        registry = CollectorRegistry()
        with capture_logs() as logs:
            upstreams = await IoUpstreams.start(
                config({"a": one}, each={"key_file": str(key_file)}), CLOCK.now, Random(7), registry
            )
            assert (await asked(upstreams, make_ask())).status == 200
            one.next(Reply.error(400, message=f"what is {SECRET}?"), Reply.error(500, message=SECRET))
            answer = await asked(upstreams, make_ask())
            assert isinstance(answer.body, bytes)
            assert json.loads(answer.body)["error"]["message"] == "what is [hidden]?"
            with pytest.raises(Unreachable) as caught:
                await asked(upstreams, make_ask())
            one.key = "another"
            with pytest.raises(Unreachable) as refused:
                await asked(upstreams, make_ask())
            await upstreams.close()
        assert refused.value.reason == "credentials"
        assert (refused.value.answer_status, refused.value.answer_body) == (None, b"")
        told = [logs, vars(caught.value), vars(refused.value), str(caught.value), vars(upstreams), upstreams._links]
        assert SECRET not in repr(told)
        assert any(line["event"] == "upstream_refuses_our_key" for line in logs)


async def test_an_exposed_key_is_warned_of_and_a_missing_one_refused(tmp_path: Path) -> None:
    key_file = tmp_path / "a.key"
    key_file.write_text(SECRET)
    key_file.chmod(0o644)
    async with MockUpstream(key=SECRET) as one:
        with capture_logs() as logs:
            async with running(
                config({"a": one}, each={"key_file": str(key_file), "key_header": "api-key"})
            ) as upstreams:
                with pytest.raises(Unreachable):  # it wants a Bearer
                    await asked(upstreams, make_ask())
                assert one.asked[0].headers["api-key"] == SECRET
        assert [line["fix"] for line in logs if line["event"] == "key_file_exposed"]
        assert SECRET not in repr(logs)
        for bad in (b"", b"two words", b"\xff", b"x" * 5000):
            key_file.write_bytes(bad)
            with pytest.raises(NearpathError, match="does not hold a key"):
                await IoUpstreams.start(
                    config({"a": one}, each={"key_file": str(key_file)}), CLOCK.now, Random(7), CollectorRegistry()
                )
        key_file.unlink()
        with pytest.raises(NearpathError, match="cannot be read"):
            await IoUpstreams.start(
                config({"a": one}, each={"key_file": str(key_file)}), CLOCK.now, Random(7), CollectorRegistry()
            )


async def test_tls_with_the_configured_ca_only(tmp_path: Path) -> None:
    cert_file, tls_key = make_certificate(tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(cert_file, tls_key)
    async with MockUpstream(ssl=context) as one:
        async with running(config({"a": one}, each={"ca_file": str(cert_file)})) as upstreams:
            assert (await asked(upstreams, make_ask())).status == 200
        async with running(config({"a": one})) as upstreams:
            with pytest.raises(Unreachable) as caught:
                await asked(upstreams, make_ask())
            assert caught.value.reason == "tls"
        with pytest.raises(NearpathError, match="ca_file"):
            await IoUpstreams.start(
                config({"a": one}, each={"ca_file": str(tls_key)}), CLOCK.now, Random(7), CollectorRegistry()
            )


# --- reload -------------------------------------------------------------------------------------------------------------


async def test_a_reload_lets_streams_go_on_and_takes_a_new_key(tmp_path: Path) -> None:
    key_file = tmp_path / "a.key"
    key_file.write_text("old-key-1")
    key_file.chmod(0o600)
    async with MockUpstream(Reply(between_s=0.02)) as one, MockUpstream() as other:
        checked = config({"a": one}, each={"key_file": str(key_file)})
        async with running(checked) as upstreams:
            answer = await asked(upstreams, make_ask(stream=True))
            assert not isinstance(answer.body, bytes)
            begun = await anext(answer.body)
            await upstreams.reconfigure(checked)
            assert upstreams._links["a"].in_flight == 1, "nothing changed"
            key_file.write_text("new-key-2")
            await upstreams.reconfigure(checked)
            assert upstreams._links["a"].in_flight == 0
            await asked(upstreams, make_ask())
            assert one.asked[-1].headers["Authorization"] == "Bearer new-key-2"
            await upstreams.reconfigure(config({"b": other}))
            assert (await asked(upstreams, make_ask())).origin.name == "b"
            assert text_of(begun + await whole(answer)) == TEXT
            await until(lambda: not upstreams._tasks)


async def test_a_reload_with_a_fault_changes_nothing(tmp_path: Path) -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        with pytest.raises(NearpathError, match=r"missing\.key"):
            await upstreams.reconfigure(config({"a": one, "b": one}, each={"key_file": str(tmp_path / "missing.key")}))
        assert (await asked(upstreams, make_ask())).status == 200


# --- what metrics say ---------------------------------------------------------------------------------------------------


async def test_metrics_tell_outcomes_times_cuts_and_states() -> None:
    registry = CollectorRegistry()

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"local_infer_upstream_{name}", labels)

    async with MockUpstream() as one, MockUpstream() as other:
        checked = config({"a": one, "b": other}, probe_every="100ms")
        upstreams = await IoUpstreams.start(checked, CLOCK.now, Random(7), registry)
        await asked(upstreams, make_ask())
        one.next(Reply.error(500))
        await asked(upstreams, make_ask())
        one.always = other.always = Reply.reset(3)
        cut = await asked(upstreams, make_ask(stream=True))
        await whole(cut)
        assert value("attempts_total", upstream="a", outcome="ok") == 1 + (cut.origin.name == "a")
        assert value("attempts_total", upstream="a", outcome="status 500") == 1
        assert value("ttfb_seconds_count", upstream="a", lane="whole") == 1
        assert value("retries_total", result="made") == 1
        assert value("cut_streams_total", upstream=cut.origin.name, ended="error") == 1
        assert value("probes_total", upstream="a", outcome="ok")
        await one.down()
        await until(lambda: value("state", upstream="a") in (2, 5))
        assert value("in_flight", upstream="a") == 0
        await upstreams.reconfigure(config({"b": other}))
        assert value("state", upstream="a") is None
        await upstreams.close()


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"data":3}', b'{"data":[{"id":1}, 2]}', b'{"data":null}', b"[" * 100_000, b'{"data":[[]]}']
)
def test_lists_of_models_of_another_form(body: bytes) -> None:
    assert not read_list(body)


def test_a_list_of_models() -> None:
    body = b'{"data":[{"id":"m","owned_by":"me"},{"id":"n"},{"id":""}]}'
    assert read_list(body) == [ModelCard("m", "me"), ModelCard("n", "upstream")]


# --- all at once --------------------------------------------------------------------------------------------------------


async def test_no_answer_is_crossed_or_lost_among_failures() -> None:
    def moody(seen: Any) -> Reply:
        number = int(seen.json["messages"][0]["content"])
        text = f"answer {number} " * 3
        last = Reply.error_frame() if seen.stream else Reply.error(500)
        replies = [Reply(text=text), Reply(text=text, split=5), Reply.reset(), Reply.error(503), last]
        return replies[(number * 7 + len(one.asked)) % 5]

    def honest(seen: Any) -> Reply:
        return Reply(text=f"answer {seen.json['messages'][0]['content']} " * 3)

    async def request(number: int) -> bool:
        stream = number % 2 == 0
        ask = make_ask(stream=stream, messages=[{"role": "user", "content": str(number)}])
        try:
            answer = await asked(upstreams, ask)
        except Unreachable:
            return False
        if stream:
            text = text_of(await whole(answer))
        else:
            assert isinstance(answer.body, bytes)
            text = json.loads(answer.body)["choices"][0]["message"]["content"]
        assert text == f"answer {number} " * 3
        return True

    async with MockUpstream() as one, MockUpstream() as other:
        one.always, other.always = moody, honest
        async with running(config({"a": one, "b": other}, retry_budget="100%")) as upstreams:
            good = await asyncio.gather(*[request(number) for number in range(150)])
            assert all(good)
            await until(lambda: all(link.in_flight == 0 for link in upstreams._links.values()))
