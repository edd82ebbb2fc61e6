"""The played upstreams: servers in one process that answer what `echo` says, and misbehave in turns when told to.

`python -m local_infer.load.io_upstream PORTS SEED` (numbers) prints the ports, and serves until killed; faults begin at
SIGUSR1.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import struct
import sys
import time
from typing import Any

import uvloop
from aiohttp import web

from local_infer.load.echo import answer_for, inputs_of, vector_for
from local_infer.load.fault_turns import Turn, turn_at

MODEL = "bench"
_CREATED = 1_700_000_000
_DONE = b"data: [DONE]\n\n"
_JSON = {"Content-Type": "application/json"}
_SSE = {"Content-Type": "text/event-stream"}

_THINK_S = (0.001, 0.02)
"""Until the first byte; short, so that the gateway is measured and not the wait."""
_PACE_S = (0.0005, 0.01)
"""Between the events of a stream."""
_SLOW_S = 20.0
"""A first byte later than the time-outs of the gateway that is started beside it."""
_TEAR = 0.2
"""Share of streams that are written in pieces which cut events and characters anywhere."""


class Upstream:
    """One of them. `place` is its number, `rng` decides who meets a fault."""

    def __init__(self, place: int, rng: random.Random) -> None:
        self.port = 0
        self._place, self._rng = place, rng
        self._started_s: float | None = None
        self._server = web.Server(self._handle, handler_cancellation=True)
        self._listener: asyncio.AbstractServer | None = None

    async def listen(self) -> None:
        """Listen, on the same port as before if there was one."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", self.port))
        self.port = sock.getsockname()[1]
        self._listener = await asyncio.get_running_loop().create_server(self._server, sock=sock, backlog=1024)

    def begin_faults(self) -> None:
        """From now on misbehave in turns."""
        self._started_s = time.monotonic()

    async def play(self) -> None:
        """Close the port, and all connections, whenever it is this one's turn to refuse them. For ever."""
        while True:
            turn = self._turn()
            refuses = turn is not None and turn.kind == "refused"
            if refuses and self._listener is not None:
                self._listener.close()
                self._listener = None
                for connection in self._server.connections:
                    if connection.transport is not None:
                        connection.transport.abort()
            elif not refuses and self._listener is None:
                await self.listen()
            await asyncio.sleep(0.1)

    def _turn(self) -> Turn | None:
        if self._started_s is None:
            return None
        turn = turn_at(time.monotonic() - self._started_s)
        return turn if turn is not None and self._place in turn.places else None

    # -- requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method == "GET":
            card = {"id": MODEL, "object": "model", "created": _CREATED, "owned_by": "bench"}
            return web.Response(body=_dump({"object": "list", "data": [card]}), headers=_JSON)
        body = await request.content.read()  # of any size
        fields = json.loads(body)
        turn = self._turn()
        fault = turn.kind if turn is not None and self._rng.random() < turn.share else ""
        await asyncio.sleep(_SLOW_S if fault == "slow first byte" else self._rng.uniform(*_THINK_S))
        if fault == "429":
            return _error(429, "rate_limit_error", {"Retry-After": "1"})
        if fault == "500":
            return _error(500, "server_error", {})
        if request.path.endswith("/embeddings"):
            return await self._whole(request, embeddings(fields), fault)
        text = answer_for(fields)
        try:
            if fields.get("stream"):
                return await self._stream(request, text, fault)
            return await self._whole(request, completion(text), fault)
        except ConnectionError:
            return web.Response()  # to nobody: the gateway went away

    async def _whole(self, request: web.BaseRequest, body: bytes, fault: str) -> web.StreamResponse:
        if fault in ("error frame", "late error"):
            return web.Response(body=_dump({"error": {"message": "the engine is dead", "type": "server_error"}}))
        if fault in ("reset", "stall", "cut", "short"):
            response = web.StreamResponse(headers=_JSON)
            response.content_length = len(body)
            await response.prepare(request)
            await response.write(body[: self._rng.randrange(len(body))])
            if fault == "stall":
                await asyncio.sleep(_SLOW_S)
            await _break(request, reset=fault == "reset")
        return web.Response(body=body, headers=_JSON)

    async def _stream(self, request: web.BaseRequest, text: str, fault: str) -> web.StreamResponse:
        pieces = events(text)
        faulty_at = self._rng.randrange(1, len(pieces)) if fault else -1
        if fault == "error frame":
            faulty_at, fault = 0, "late error"
        response = web.StreamResponse(headers=_SSE)
        await response.prepare(request)
        tear = self._rng.random() < _TEAR
        pace_s = self._rng.uniform(*_PACE_S)
        for number, event in enumerate(pieces):
            if number == faulty_at:
                if fault == "late error":
                    message = {"error": {"message": "the engine is dead", "type": "server_error"}}
                    await response.write(b"data: " + _dump(message) + b"\n\n")
                    break
                if fault == "cut":
                    break
                if fault == "stall":
                    await asyncio.sleep(_SLOW_S)
                if fault == "short":
                    await response.write(event[: len(event) // 2])
                await _break(request, reset=fault == "reset")
            if tear:
                at = self._rng.randrange(len(event))
                await response.write(event[:at])
                await asyncio.sleep(0)
                event = event[at:]
            await response.write(event)
            await asyncio.sleep(pace_s)
        await response.write_eof()
        return response


async def _break(request: web.BaseRequest, *, reset: bool) -> None:
    """End the connection, by RST or by FIN, and with it this handler."""
    transport = request.transport
    if transport is not None:
        if reset:
            linger = struct.pack("ii", 1, 0)
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            transport.abort()
        else:
            transport.close()
    await asyncio.sleep(_SLOW_S)


def _error(status: int, kind: str, headers: dict[str, str]) -> web.Response:
    return web.Response(
        status=status, body=_dump({"error": {"message": "on purpose", "type": kind}}), headers={**_JSON, **headers}
    )


def _usage(text: str) -> dict[str, int]:
    count = len(text.split())
    return {"prompt_tokens": 20, "completion_tokens": count, "total_tokens": 20 + count}


def completion(text: str) -> bytes:
    """A whole chat completion."""
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    head = {"id": "chatcmpl-bench", "object": "chat.completion", "created": _CREATED, "model": MODEL}
    return _dump({**head, "system_fingerprint": "fp_bench", "choices": [choice], "usage": _usage(text)})


def embeddings(fields: dict[str, Any]) -> bytes:
    """The answer to an embeddings request."""
    vectors = [vector_for(text) for text in inputs_of(fields)]
    data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
    usage = {"prompt_tokens": 8 * len(data), "total_tokens": 8 * len(data)}
    return _dump({"object": "list", "data": data, "model": MODEL, "usage": usage})


def events(text: str) -> list[bytes]:
    """The role, an event a word, the finish reason with the usage, `[DONE]`."""
    head = {"id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": _CREATED, "model": MODEL}

    def event(delta: dict[str, str], finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return b"data: " + _dump({**head, "choices": [choice], **more}) + b"\n\n"

    words = text.split(" ")
    parts = [words[0], *(f" {word}" for word in words[1:])]
    first = event({"role": "assistant", "content": ""})
    return [first, *(event({"content": one}) for one in parts), event({}, "stop", usage=_usage(text)), _DONE]


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


async def serve(count: int, seed: int) -> None:
    """Until killed."""
    upstreams = [Upstream(place, random.Random(f"{seed}/{place}")) for place in range(count)]
    for upstream in upstreams:
        await upstream.listen()

    def begin_faults() -> None:
        for upstream in upstreams:
            upstream.begin_faults()

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, begin_faults)
    print(" ".join(str(upstream.port) for upstream in upstreams), flush=True)
    await asyncio.gather(*(upstream.play() for upstream in upstreams))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1]), int(sys.argv[2])))
