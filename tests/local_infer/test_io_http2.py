"""HTTP/2 against a small real server (h2): one connection for all, streams, cancels that reach the upstream, failures."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.io_clock import AnchoredClock
from local_infer.api.sse import DONE, data_of, split_events
from local_infer.fault import Unreachable
from local_infer.model import Answer, Ask, Client, Endpoint
from local_infer.upstreams.io_upstreams import IoUpstreams
from tests.local_infer.certificate import make_certificate

h2_config = pytest.importorskip("h2.config", reason="HTTP/2 is in the `infer` extra")
h2_connection = pytest.importorskip("h2.connection")
h2_events = pytest.importorskip("h2.events")

CLOCK = AnchoredClock()
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"\xe4\xbd\xa0"}}]}\n\n'


class H2Server:
    """Cleartext HTTP/2 by prior knowledge. What it does with a request is told by the `model` in its body:

    `good` answers, `stall` begins a stream and stands still, `slow` sends nothing, `flood` begins with much data and then
    stands still, `reset` resets the stream after its first event, `goaway` ends the connection after its first event.
    """

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self.connections = 0
        self.cancelled: list[str] = []
        self.cancels = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> H2Server:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(self, *_error: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.close()

    @property
    def url(self) -> str:
        assert self._server is not None
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self.connections += 1
        state = h2_connection.H2Connection(h2_config.H2Configuration(client_side=False))
        state.initiate_connection()
        bodies: dict[int, bytes] = {}
        headers: dict[int, dict[bytes, bytes]] = {}
        models: dict[int, str] = {}
        with suppress(ConnectionError):
            while True:
                writer.write(state.data_to_send())
                await writer.drain()
                data = await reader.read(65536)
                if not data:
                    break
                for event in state.receive_data(data):
                    if isinstance(event, h2_events.RequestReceived):
                        headers[event.stream_id] = {bytes(name): bytes(value) for name, value in event.headers}
                        bodies[event.stream_id] = b""
                    elif isinstance(event, h2_events.DataReceived):
                        bodies[event.stream_id] += event.data
                        state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                    elif isinstance(event, h2_events.StreamEnded):
                        number = event.stream_id
                        models[number] = _answer(state, number, headers[number], bodies[number])
                    elif isinstance(event, h2_events.StreamReset):
                        self.cancelled.append(models.get(event.stream_id, "?"))
                        self.cancels.set()
        writer.close()


def _answer(state: Any, number: int, headers: dict[bytes, bytes], body: bytes) -> str:
    if headers[b":method"] == b"GET":
        state.send_headers(number, [(":status", "200"), ("content-type", "application/json")])
        state.send_data(number, b'{"data":[{"id":"good"}]}', end_stream=True)
        return "probe"
    asked = json.loads(body)
    model = str(asked["model"])
    if model == "slow":
        return model
    if not asked.get("stream"):
        state.send_headers(number, [(":status", "200"), ("content-type", "application/json")])
        state.send_data(number, json.dumps({"echo": asked["messages"]}).encode(), end_stream=True)
        return model
    state.send_headers(number, [(":status", "200"), ("content-type", "text/event-stream")])
    state.send_data(number, CHUNK)
    if model == "good":
        state.send_data(number, CHUNK + CHUNK[:30])
        state.send_data(number, CHUNK[30:] + DONE, end_stream=True)
    elif model == "flood":
        for _ in range(4):
            state.send_data(number, CHUNK * 230)
    elif model == "reset":
        state.reset_stream(number, 2)
    elif model == "goaway":
        state.close_connection(error_code=1, last_stream_id=number)
    return model


@asynccontextmanager
async def running(url: str, ca_file: Path | None = None, **routing: Any) -> AsyncIterator[IoUpstreams]:
    config = InferConfig.model_validate(
        {
            "version": 1,
            "state_dir": "state",
            "listen": ["127.0.0.1:0"],
            "anonymous": True,
            "upstreams": {"far": {"url": url, "http2": True, "ca_file": str(ca_file) if ca_file else None}},
            "routing": {"probe_every": "1h", **routing},
        }
    )
    upstreams = await IoUpstreams.start(config, CLOCK.now, Random(7), CollectorRegistry())
    try:
        yield upstreams
    finally:
        await upstreams.close()


async def asked(upstreams: IoUpstreams, model: str, *, stream: bool = True, text: str = "x") -> Answer:
    fields = {"model": model, "stream": stream, "messages": text}
    ask = Ask("r", Endpoint.CHAT, json.dumps(fields).encode(), fields, model, stream, Client("c", "t"), CLOCK.now())
    return await upstreams.ask(ask, CLOCK.now() + 30)


async def whole(answer: Answer) -> bytes:
    assert not isinstance(answer.body, bytes)
    return b"".join([events async for events in answer.body])


async def test_many_requests_share_one_connection_and_no_answer_is_crossed() -> None:
    async with H2Server() as server, running(server.url) as upstreams:
        assert [card.id for card in upstreams.models()] == ["good"]
        # More than may be open at once on a connection (100).
        answers = await asyncio.gather(*[asked(upstreams, "good", stream=False, text=str(i)) for i in range(250)])
        bodies = [answer.body for answer in answers]
        assert bodies == [json.dumps({"echo": str(i)}).encode() for i in range(250)]
        streams = await asyncio.gather(*[asked(upstreams, "good") for _ in range(10)])
        assert await asyncio.gather(*[whole(answer) for answer in streams]) == [CHUNK * 3 + DONE] * 10
        assert server.connections == 1


@pytest.mark.parametrize("model", ["stall", "flood"])
async def test_closing_a_stream_resets_it_and_the_others_go_on(model: str) -> None:
    async with H2Server() as server, running(server.url) as upstreams:
        other = await asked(upstreams, "good")
        answer = await asked(upstreams, model)
        assert not isinstance(answer.body, bytes)
        await anext(answer.body)
        await answer.body.aclose()
        await asyncio.wait_for(server.cancels.wait(), 1)
        assert server.cancelled == [model]
        assert (await whole(other)).endswith(DONE)
        async with asyncio.timeout(5):
            while upstreams._links["far"].in_flight:  # noqa: ASYNC110 (it has no event)
                await asyncio.sleep(0.005)
        assert server.connections == 1


async def test_cancelling_before_the_first_byte_resets_the_stream() -> None:
    async with H2Server() as server, running(server.url) as upstreams:
        task = asyncio.create_task(asked(upstreams, "slow"))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.wait_for(server.cancels.wait(), 1)
        assert server.cancelled == ["slow"]
        assert (await whole(await asked(upstreams, "good"))).endswith(DONE)
        assert server.connections == 1


async def test_given_up_streams_do_not_use_up_the_connection() -> None:
    async with H2Server() as server, running(server.url) as upstreams:
        # More streams than may be open at once, and with more data than the window of the connection (16 MiB).
        for _ in range(350):
            answer = await asked(upstreams, "flood")
            assert not isinstance(answer.body, bytes)
            await answer.body.aclose()
        assert (await whole(await asked(upstreams, "good"))).endswith(DONE)
        assert server.connections == 1


async def test_timeouts_of_one_request_leave_the_connection_to_the_others() -> None:
    async with H2Server() as server, running(server.url, first_byte="200ms", between_chunks="200ms") as upstreams:
        with pytest.raises(Unreachable) as caught:
            await asked(upstreams, "slow")
        assert caught.value.reason == "timeout"
        events = await whole(await asked(upstreams, "stall"))
        assert json.loads(data_of(split_events(events)[-1]))["error"]["code"] == "stream_cut"
        assert (await whole(await asked(upstreams, "good"))).endswith(DONE)
        await asyncio.wait_for(server.cancels.wait(), 1)
        assert server.connections == 1


@pytest.mark.parametrize("model", ["reset", "goaway"])
async def test_a_stream_that_the_upstream_ends_is_cut_and_the_next_request_is_served(model: str) -> None:
    async with H2Server() as server, running(server.url) as upstreams:
        events = await whole(await asked(upstreams, model))
        assert events.startswith(CHUNK)
        assert json.loads(data_of(split_events(events)[-1]))["error"]["code"] == "stream_cut"
        assert DONE.strip() not in events
        assert (await whole(await asked(upstreams, "good"))).endswith(DONE)


async def test_it_is_negotiated_with_tls(tmp_path: Path) -> None:
    cert_file, key_file = make_certificate(tmp_path)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert_file, key_file)
    tls.set_alpn_protocols(["h2"])
    async with H2Server(tls) as server:
        async with running(server.url, cert_file) as upstreams:
            assert (await whole(await asked(upstreams, "good"))).endswith(DONE)
            assert server.connections == 1
        async with running(server.url) as upstreams:
            with pytest.raises(Unreachable) as caught:
                await asked(upstreams, "good")
            assert caught.value.reason == "tls"


async def test_nobody_listens() -> None:
    async with H2Server() as server:
        url = server.url
    async with running(url) as upstreams:
        with pytest.raises(Unreachable) as caught:
            await asked(upstreams, "good")
        assert caught.value.reason == "connect"


async def test_an_idle_upstream_that_goes_away_is_down_without_a_request() -> None:
    async with H2Server() as server, running(server.url) as upstreams:
        assert upstreams.down_reason("good") == ""
        await server.__aexit__()
        async with asyncio.timeout(20):
            while True:
                if upstreams.down_reason("good"):
                    break
                await asyncio.sleep(0.02)
