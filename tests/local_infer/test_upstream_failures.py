# ruff: noqa: SIM117 (servers first, then what asks them: two lines read better than one of 130 characters)
"""Servers on loopback that fail before the first byte: what is tried again, whose fault it is, how long it takes."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from local_infer.fault import Unreachable
from tests.local_infer.asking_upstreams import CLOCK, asked, config, make_ask, running, text_of, until, whole
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply, error_body

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
            assert caught.value.reason == "connect"
            assert upstreams.down_reason("gpt-test") == "connect"
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
