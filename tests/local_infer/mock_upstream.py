"""A real HTTP server that plays an OpenAI-style API, and misbehaves on purpose when told to.

    async with MockUpstream() as upstream:            # answers everything as it should
        upstream.next(Reply.error(429, retry_after="2"), Reply.reset(after=1))     # the next two requests; then as before
        upstream.always = Reply.stall(after=2)        # every request from now on that has no reply of its own
        ... ask upstream.url (ends in /v1) ...
        seen = upstream.requests[0]                   # what came; `await seen.gone.wait()`: its client went away

A `Reply` says what is sent and what goes wrong, a callable instead of one sees the request first. `down()` closes the port
and all connections, `up()` opens the same port again.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

CREATED = 1_700_000_000
DONE = b"data: [DONE]\n\n"
TEXT = "你好, this is the upstream. 😀"


@dataclass(frozen=True)
class Reply:
    """One answer. Counts are in events of a stream, and of a whole body in pieces of `split` bytes.

    `body` None: a proper answer to what was asked, `events` None: the same as a stream. `raw` is sent in place of an HTTP
    answer.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    text: str = TEXT
    body: bytes | None = None
    events: Sequence[bytes] | None = None
    first_byte_s: float = 0.0
    between_s: float = 0.0
    split: int = 0
    """Writes of so many bytes, whatever they cut; 0: a write for each event."""
    stall_after: int | None = None
    """After so many events nothing comes, until the client goes away."""
    reset_after: int | None = None
    """After so many events the connection is reset; -1: before the status line."""
    end_after: int | None = None
    """After so many events the response ends properly, without `[DONE]`."""
    raw: bytes | None = None

    @classmethod
    def slow(cls, first_byte_s: float, **more: Any) -> Reply:
        """Good, but late."""
        return cls(first_byte_s=first_byte_s, **more)

    @classmethod
    def stall(cls, after: int = 0, **more: Any) -> Reply:
        """A stream that stands still after so many events (0: after the headers)."""
        return cls(stall_after=after, **more)

    @classmethod
    def reset(cls, after: int = -1, **more: Any) -> Reply:
        """A connection reset by the peer."""
        return cls(reset_after=after, **more)

    @classmethod
    def cut(cls, after: int, **more: Any) -> Reply:
        """A stream that ends too early, but properly as far as HTTP goes."""
        return cls(end_after=after, **more)

    @classmethod
    def error(cls, status: int, *, retry_after: str = "", message: str = "it went wrong", **more: Any) -> Reply:
        """An error answer in the API's form."""
        headers = {"Retry-After": retry_after} if retry_after else {}
        kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
        return cls(status=status, headers=headers, body=error_body(message, kind), **more)

    @classmethod
    def error_frame(cls, message: str = "the engine is dead", **more: Any) -> Reply:
        """Status 200, and the first event of the stream is an error."""
        return cls(events=[b"data: " + error_body(message, "server_error") + b"\n\n"], **more)

    @classmethod
    def split_characters(cls, **more: Any) -> Reply:
        """A good stream of Chinese and emoji in writes of 3 bytes: events and characters are cut anywhere."""
        return cls(text="如何关闭自动续费？😀 完", split=3, **more)


Script = Reply | Callable[["Seen"], Reply]


@dataclass
class Seen:
    """A request as it came. `gone` is set when its client left before the answer was through, `done` when it was."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    at_s: float
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    done: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)

    @property
    def stream(self) -> bool:
        """Whether a stream was asked for."""
        return bool(self.body) and bool(self.json.get("stream"))


class MockUpstream:
    """The server, as an async context manager, by default on a free port of loopback; `ssl` makes it HTTPS."""

    def __init__(
        self,
        always: Script | None = None,
        *,
        models: Sequence[str] = ("gpt-test", "embed-test"),
        key: str | None = None,
        ssl: ssl.SSLContext | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
    ) -> None:
        self.always: Script = always or Reply()
        self.models = list(models)
        self.key = key
        self.requests: list[Seen] = []
        self.port = port
        self._host = host
        self._ssl = ssl
        self._next: deque[Script] = deque()
        self._runner: web.ServerRunner | None = None
        self._arrived = asyncio.Condition()

    @property
    def url(self) -> str:
        """The base URL, up to and with /v1."""
        return f"{'https' if self._ssl else 'http'}://{self._host}:{self.port}/v1"

    def next(self, *replies: Script) -> None:
        """What the coming POST requests get, in order; after them `always` holds again."""
        self._next.extend(replies)

    @property
    def asked(self) -> list[Seen]:
        """The requests without probes: everything but `GET`."""
        return [seen for seen in self.requests if seen.method != "GET"]

    async def wait_for(self, count: int) -> Seen:
        """Wait until so many non-GET requests came; the last of them."""
        async with self._arrived:
            await self._arrived.wait_for(lambda: len(self.asked) >= count)
        return self.asked[count - 1]

    async def __aenter__(self) -> MockUpstream:
        await self.up()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.down()

    async def up(self) -> None:
        """Listen, on the same port as before if there was one."""
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((self._host, self.port))
        self.port = sock.getsockname()[1]
        server = web.Server(self._handle, handler_cancellation=True)  # type: ignore[arg-type]
        self._runner = web.ServerRunner(server, shutdown_timeout=0.05)
        await self._runner.setup()
        await web.SockSite(self._runner, sock, ssl_context=self._ssl).start()

    async def down(self) -> None:
        """Close the port and every connection; harmless when it is down."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.content.read()  # of any size
        seen = Seen(request.method, request.path, dict(request.headers), body, time.monotonic())
        self.requests.append(seen)
        async with self._arrived:
            self._arrived.notify_all()
        try:
            response = await self._answer(request, seen)
        except asyncio.CancelledError:
            seen.gone.set()
            raise
        except ConnectionError:
            seen.gone.set()
            return web.Response()  # to nobody
        seen.done.set()
        return response

    async def _answer(self, request: web.BaseRequest, seen: Seen) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.Response(status=401, body=error_body("bad key", "authentication_error"), headers=_JSON)
        if seen.method == "GET":
            return web.Response(body=models_body(self.models), headers=_JSON)
        script = self._next.popleft() if self._next else self.always
        reply = script if isinstance(script, Reply) else script(seen)
        if reply.first_byte_s:
            await asyncio.sleep(reply.first_byte_s)
        if reply.raw is not None:
            assert request.transport is not None
            request.transport.write(reply.raw)
            request.transport.close()
            await _until_gone()
        if reply.reset_after is not None and reply.reset_after < 0:
            await _reset(request)
        streamed = seen.stream and reply.body is None
        response = web.StreamResponse(status=reply.status, headers={**(_SSE if streamed else _JSON), **reply.headers})
        pieces = _pieces(reply, seen, streamed)
        if not streamed and reply.stall_after is None and reply.reset_after is None and not reply.split:
            response.content_length = sum(map(len, pieces))
        await response.prepare(request)
        for count in range(len(pieces) + 1):
            if count == reply.stall_after:
                await _until_gone()
            if count == reply.reset_after:
                await _reset(request)
            if count == reply.end_after or count == len(pieces):
                break
            await response.write(pieces[count])
            await asyncio.sleep(reply.between_s)
        await response.write_eof()
        return response


async def _until_gone() -> None:
    """Wait for the end of the connection: aiohttp cancels the handler then."""
    await asyncio.sleep(3600)


async def _reset(request: web.BaseRequest) -> None:
    """RST instead of FIN (SO_LINGER of 0), what was written before it is sent first as far as it goes."""
    assert request.transport is not None
    sock = request.transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    await _until_gone()


def _pieces(reply: Reply, seen: Seen, streamed: bool) -> list[bytes]:
    if streamed:
        pieces = list(chat_events(seen, reply.text) if reply.events is None else reply.events)
    else:
        pieces = [whole_body(seen, reply.text) if reply.body is None else reply.body]
    if reply.split:
        joined = b"".join(pieces)
        pieces = [joined[at : at + reply.split] for at in range(0, len(joined), reply.split)]
    return pieces


_JSON = {"Content-Type": "application/json", "x-request-id": "req-upstream", "openai-organization": "secret-org"}
_SSE = {**_JSON, "Content-Type": "text/event-stream"}


def error_body(message: str, kind: str) -> bytes:
    """An error object of the API."""
    return _dump({"error": {"message": message, "type": kind, "param": None, "code": None}})


def models_body(models: Sequence[str]) -> bytes:
    """The answer of GET /models."""
    cards = [{"id": name, "object": "model", "created": CREATED, "owned_by": "mock"} for name in models]
    return _dump({"object": "list", "data": cards})


def whole_body(seen: Seen, text: str) -> bytes:
    """The proper answer to a request that asks for no stream."""
    asked = seen.json
    usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
    base = {"id": "chatcmpl-mock", "created": CREATED, "model": asked["model"], "system_fingerprint": "fp_mock"}
    if seen.path.endswith("/embeddings"):
        given = asked["input"]
        count = len(given) if isinstance(given, list) and given and isinstance(given[0], str) else 1
        data = [{"object": "embedding", "index": i, "embedding": [0.25, -0.5, float(i)]} for i in range(count)]
        return _dump({"object": "list", "data": data, "model": asked["model"], "usage": usage})
    if seen.path.endswith("/chat/completions"):
        choice = {
            "index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop", "logprobs": None,
        }  # fmt: skip
        return _dump({**base, "object": "chat.completion", "choices": [choice], "usage": usage})
    choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
    return _dump({**base, "object": "text_completion", "choices": [choice], "usage": usage})


def chat_events(seen: Seen, text: str) -> list[bytes]:
    """The proper stream: the role, a chunk for every two characters, the end, usage if asked for, `[DONE]`."""
    asked = seen.json
    chat = seen.path.endswith("/chat/completions")
    base = {
        "id": "chatcmpl-mock", "object": "chat.completion.chunk" if chat else "text_completion", "created": CREATED,
        "model": asked["model"], "system_fingerprint": "fp_mock",
    }  # fmt: skip

    def event(part: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, **({"delta": part} if chat else part), "finish_reason": finish}
        return b"data: " + _dump({**base, "choices": [choice]}) + b"\n\n"

    events = [event({"role": "assistant", "content": ""})] if chat else []
    for at in range(0, len(text), 2):
        piece = text[at : at + 2]
        events.append(event({"content": piece} if chat else {"text": piece}))
    events.append(event({} if chat else {"text": ""}, "stop"))
    if (asked.get("stream_options") or {}).get("include_usage"):
        usage = {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12}
        events.append(b"data: " + _dump({**base, "choices": [], "usage": usage}) + b"\n\n")
    return [*events, DONE]


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
