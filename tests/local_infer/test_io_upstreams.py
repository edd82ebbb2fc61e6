# ruff: noqa: SIM117 (servers first, then what asks them: two lines read better than one of 130 characters)
"""Requests to real servers on loopback: forwarded as they are, credentials, reloads, metrics, many at once."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from core.config_infer import GatewayLimits
from core.errors import NearpathError
from local_infer.api.sse import DONE, Splitter
from local_infer.fault import ApiError, Unreachable
from local_infer.model import Ask, Client, Endpoint, ModelCard, Step
from local_infer.room import Room
from local_infer.upstreams.io_attempt import Begun, events_of
from local_infer.upstreams.io_probing import read_list
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.asking_upstreams import CLOCK, asked, config, make_ask, running, text_of, until, whole
from tests.local_infer.certificate import make_certificate
from tests.local_infer.mock_upstream import TEXT, MockUpstream, Reply

SECRET = "sk-very-secret-0123456789"

# --- forwarding ---------------------------------------------------------------------------------------------------------


async def test_long_answers_that_come_take_room_and_without_it_are_refused() -> None:
    body = b'{"x":"' + b"x" * 600_000 + b'"}'
    async with MockUpstream(Reply(body=body)) as one:
        one.next(Reply(body=body, split=1 << 16, stall_after=9))
        checked, room = config({"a": one}), Room(GatewayLimits.model_validate({"requests": 1, "body": "1KiB"}))
        upstreams = await IoUpstreams.start(checked, CLOCK.now, Random(7), CollectorRegistry(), room)
        try:
            first = asyncio.create_task(asked(upstreams, make_ask()))
            await until(lambda: room.held_bytes > 1_000_000)
            with pytest.raises(ApiError) as caught:
                await asked(upstreams, make_ask())
            assert (caught.value.status, caught.value.code) == (429, "overloaded")
            assert upstreams._ranking.members["a"].health.loss_ratio == 0
            first.cancel()
            await until(lambda: room.held_bytes == 0)
            assert (await asked(upstreams, make_ask())).body == body
            assert room.held_bytes == 0
        finally:
            await upstreams.close()


@pytest.mark.parametrize("begun", [False, True])
async def test_events_that_do_not_end_take_room_and_without_it_are_refused(begun: bool) -> None:
    good = b'data: {"choices":[{"index":0,"delta":{"content":"x"}}]}\n\n' if begun else b""
    endless = Reply(events=[good + b"data: " + b"x" * 1_300_000], split=1 << 17, stall_after=9)
    async with MockUpstream(endless) as one:
        checked, room = config({"a": one}), Room(GatewayLimits.model_validate({"requests": 1, "body": "1KiB"}))
        upstreams = await IoUpstreams.start(checked, CLOCK.now, Random(7), CollectorRegistry(), room)

        async def read() -> bytes:
            return await whole(await asked(upstreams, make_ask(stream=True)))

        try:
            alone = asyncio.create_task(read())
            await until(lambda: room.held_bytes > 1_100_000)
            others = await asyncio.gather(*(read() for _ in range(5)), return_exceptions=True)
            assert all(isinstance(other, ApiError) and other.code == "overloaded" for other in others)
            assert room.held_bytes == room.answer_bytes < 1_300_000, "what was refused is given back"
            assert upstreams._ranking.members["a"].health.loss_ratio == 0
            alone.cancel()
            await until(lambda: room.held_bytes == 0)
            await until(lambda: upstreams._links["a"].in_flight == 0)
        finally:
            await upstreams.close()


async def test_a_long_first_event_has_its_room_before_the_client_is_told_of_an_answer() -> None:
    long = b'data: {"choices":[{"index":0,"delta":{"content":"' + b"x" * 200_000 + b'"}}]}\n\n'
    async with MockUpstream(Reply(events=[long], stall_after=1)) as one:
        room = Room(GatewayLimits())
        upstreams = await IoUpstreams.start(config({"a": one}), CLOCK.now, Random(7), CollectorRegistry(), room)
        try:
            answer = await asked(upstreams, make_ask(stream=True))
            assert room.held_bytes == len(long)
            assert not isinstance(answer.body, bytes)
            await answer.body.aclose()
            assert room.held_bytes == upstreams._links["a"].in_flight == 0, "given back also when nobody reads it"
        finally:
            await upstreams.close()


class Dribble:
    """A response that gives these pieces, one by one."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = [*pieces]

    def wait_at_most(self, pause_s: float) -> None:
        pass

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


async def test_a_long_run_takes_room_until_the_next_and_is_not_kept_longer() -> None:
    long, short = b"data: " + b"x" * 100_000 + b"\n\n", b"data: y\n\n"
    room = Room(GatewayLimits())
    pieces: Any = Dribble(b"data: z", b"\n\n", long, short[:3], short[3:])
    begun = Begun(200, {}, 0.0, True, None, long, Splitter(), pieces)
    held = [(len(run), room.held_bytes) async for run in events_of(begun, 1.0, room.answer_place())]
    assert held == [(len(long), len(long)), (len(short), 0), (len(long), len(long)), (len(short), 0)]
    assert begun.first == b"", "the first events go with the stream for as long as it lasts"


async def test_a_long_run_takes_room_while_half_an_event_comes() -> None:
    long, room = b"data: " + b"x" * 100_000 + b"\n\n", Room(GatewayLimits())
    pieces: Any = Dribble(b"data: z")
    begun = Begun(200, {}, 0.0, True, None, long, Splitter(), pieces)
    assert [run async for run in events_of(begun, 1.0, room.answer_place())] == [long]
    assert room.held_bytes == len(long) + len(b"data: z"), "who took it has it still"


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


async def test_of_a_clients_headers_only_the_idempotency_key_goes_on() -> None:
    async with MockUpstream() as one, running(config({"a": one})) as upstreams:
        await asked(upstreams, replace(make_ask(), idempotency_key="try-1"))
        await asked(upstreams, make_ask())
        assert [seen.headers.get("Idempotency-Key") for seen in one.asked] == ["try-1", None]
