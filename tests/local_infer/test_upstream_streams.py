# ruff: noqa: SIM117 (servers first, then what asks them: two lines read better than one of 130 characters)
"""Streams that go wrong after their first byte, clients that go away, hedges."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from local_infer.api.sse import DONE, data_of, split_events
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.asking_upstreams import CLOCK, asked, config, error_of, make_ask, running, text_of, until, whole
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply

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


@pytest.mark.parametrize("together", [True, False])
async def test_done_after_an_error_event_does_not_make_it_a_good_stream(together: bool) -> None:
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', b'data: {"error":{"message":"dead"}}\n\n']
    sent = [b"".join([*events, DONE])] if together else [*events, DONE]
    async with MockUpstream(Reply(events=sent, between_s=0.01)) as one, running(config({"a": one})) as upstreams:
        assert await whole(await asked(upstreams, make_ask(stream=True))) == b"".join(events)
        assert upstreams._ranking.members["a"].health.loss_ratio > 0
        assert upstreams._metrics._cuts.labels("a", "error")._value.get() == 1
        await until(lambda: upstreams._links["a"].in_flight == 0)


@pytest.mark.parametrize(
    "reply",
    [Reply(body=b""), Reply(status=204, body=b""), Reply(body=b"oops", headers={"Content-Type": "text/plain"}),
     Reply(body=b"{}"), Reply(body=b'{"choices":[]}'), Reply(body=b'{"choices":"x"}'), Reply(body=b"[1]")],
    ids=["empty", "204", "text", "no choices", "none", "no list", "a list"],
)  # fmt: skip
async def test_a_200_that_is_no_stream_is_a_failure_and_the_next_one_is_asked(reply: Reply) -> None:
    async with MockUpstream(reply) as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other}, retry_budget="100%", explore="0%")) as upstreams:
            upstreams._ranking.members["b"].limited_until_s = CLOCK.now() + 0.01  # so that a is first
            answer = await asked(upstreams, make_ask(stream=True))
            assert answer.origin.name == "b"
            assert text_of(await whole(answer)) == TEXT
            _good, bad = upstreams._ranking.members["a"].circuit._outcomes.totals(CLOCK.now())
            assert bad >= 1, "the breaker is told"


async def test_an_upstream_that_does_not_stream_is_made_to() -> None:
    completion = (
        b'{"id":"c-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":'
        b'{"role":"assistant","content":"plain"},"finish_reason":"stop"}],"usage":{"total_tokens":3}}'
    )
    events = b'data: {"id":"1","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n' + DONE
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        one.always = Reply(body=completion)
        answer = await asked(upstreams, make_ask(stream=True, stream_options={"include_usage": True}))
        assert isinstance(answer.body, bytes)
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert (text_of(answer.body), answer.body.endswith(DONE)) == ("plain", True)
        assert b'"usage":{"total_tokens":3}' in answer.body
        assert b"usage" not in (await asked(upstreams, make_ask(stream=True))).body  # type: ignore[operator]
        one.always = Reply(body=events, headers={"Content-Type": "application/octet-stream"})
        assert (await asked(upstreams, make_ask(stream=True))).body == events


def finish(index: int, reason: str = "stop") -> bytes:
    return b'data: {"choices":[{"index":%d,"delta":{},"finish_reason":"%s"}]}\n\n' % (index, reason.encode())


async def test_a_finished_answer_without_done_gets_one() -> None:
    events = [
        b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n',
        finish(0),
        b'data: {"choices":[],"usage":{"total_tokens":3}}\n\n',
        b": a comment\n\n",
    ]
    async with MockUpstream(Reply(events=events, between_s=0.01)) as one, running(config({"a": one})) as upstreams:
        assert await whole(await asked(upstreams, make_ask(stream=True))) == b"".join(events) + DONE
        assert upstreams._ranking.members["a"].health.loss_ratio == 0


@pytest.mark.parametrize(("ended", "last"), [([1, 0], DONE), ([1], b"stream_cut"), ([1, 1], b"stream_cut")])
async def test_all_choices_must_have_ended_for_that(ended: list[int], last: bytes) -> None:
    events = [b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n', *map(finish, ended)]
    async with MockUpstream(Reply(events=events, between_s=0.01)) as one, running(config({"a": one})) as upstreams:
        got = await whole(await asked(upstreams, make_ask(stream=True, n=2)))
        assert got.startswith(b"".join(events))
        assert last in split_events(got)[-1]


async def test_a_finished_answer_whose_connection_breaks_is_cut() -> None:
    reply = Reply(events=[finish(0), finish(0)], reset_after=1, between_s=0.01)
    async with MockUpstream(reply) as one, running(config({"a": one})) as upstreams:
        assert error_of(await whole(await asked(upstreams, make_ask(stream=True))))["code"] == "stream_cut"


async def test_a_first_event_does_not_wait_for_what_is_noted_of_it() -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        answer = await asked(upstreams, make_ask(stream=True))
        assert not isinstance(answer.body, bytes)
        member = upstreams._ranking.members["a"]
        await anext(answer.body)
        assert not member.lanes, "the client has it now; nothing was worked out before"
        await anext(answer.body)
        assert [times.spread._count for times in member.lanes.values()] == [1]
        await answer.body.aclose()
        assert [times.spread._count for times in member.lanes.values()] == [1]


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


@pytest.mark.parametrize(
    "rest",
    [Reply.error(400), Reply(body=b'{"choices":[{"index":0,"message":{"content":"x"}}]}')],
    ids=["400", "no stream"],
)
async def test_what_does_not_continue_a_stream_is_counted_out_once(rest: Reply) -> None:
    async with MockUpstream(Reply.reset(3)) as one, MockUpstream(rest) as other:
        async with running(config({"a": one, "b": other})) as upstreams:
            events = await whole(await asked(upstreams, make_ask(stream=True, resume=True)))
            assert error_of(events)["code"] == "stream_cut"
            assert len(other.asked) == 1
            await until(lambda: upstreams._links["a"].in_flight == 0)
            assert [link.in_flight for link in upstreams._links.values()] == [0, 0]


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
        # With room for more than one: a request before may have been slower than the p95 by chance, and have had it.
        async with running(config({"a": slow, "b": other}, hedge="100%", explore="0%")) as upstreams:
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
    async with MockUpstream() as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other}, explore="0%")) as upstreams:
            await known_fast(upstreams)
            before = len(one.asked) + len(other.asked)
            one.always = other.always = Reply.slow(0.2)
            await asked(upstreams, make_ask())
            assert len(one.asked) + len(other.asked) == before + 1
    async with MockUpstream() as one, MockUpstream() as other:
        async with running(config({"a": one, "b": other}, hedge="5%", explore="0%")) as upstreams:
            await known_fast(upstreams)
            before = len(one.asked) + len(other.asked)
            one.always = other.always = Reply.slow(0.1)
            for _ in range(10):
                await asked(upstreams, make_ask())
            assert len(one.asked) + len(other.asked) <= before + 10 + 1, "5% of 35 requests is one"
