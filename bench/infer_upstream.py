"""The upstream of the gateway's benchmark: as little work as a Python server can do, so as not to be measured.

Prints its port, then answers every POST at once: a chat completion, or a stream of `chunks` events, `pace_s` apart. The
first of them says when it was sent (`sent_ns`, of the monotonic clock, which all processes share).
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

BODY = (
    b'{"id":"chatcmpl-bench","object":"chat.completion","created":1700000000,"model":"bench","system_fingerprint":"fp_b",'
    b'"choices":[{"index":0,"message":{"role":"assistant","content":"%s"},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":{"prompt_tokens":20,"completion_tokens":100,"total_tokens":120}}' % (b"An answer of some length. " * 16)
)
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = (
    b'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
    b'"choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}\n\n'
)
DONE = b"data: [DONE]\n\n"
MODELS = b'{"object":"list","data":[{"id":"bench","object":"model","created":1700000000,"owned_by":"bench"}]}'
LIST = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(MODELS), MODELS)


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """One connection; requests come one after the other."""

    def __init__(self, pace_s: float, chunks: int) -> None:
        self._pace_s, self._chunks = pace_s, chunks
        self._rest = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Answer each whole request."""
        data = self._rest + data
        while True:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                break
            head = data[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(data) < end + 4 + length:
                break
            body, data = data[end + 4 : end + 4 + length], data[end + 4 + length :]
            self._answer(head, body)
        self._rest = data

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        if head.startswith(b"get"):
            self._transport.write(LIST)
        elif b'"stream":true' in body or b'"stream": true' in body:
            asyncio.get_running_loop().create_task(self._stream())
        else:
            self._transport.write(WHOLE)

    async def _stream(self) -> None:
        assert self._transport is not None
        self._transport.write(HEAD)
        for number in range(self._chunks):
            if self._transport.is_closing():
                return
            sent = b'{"sent_ns":%d,' % time.monotonic_ns() if not number else b"{"
            self._transport.write(chunk(EVENT.replace(b"{", sent, 1)))
            await asyncio.sleep(self._pace_s)
        self._transport.write(chunk(DONE) + b"0\r\n\r\n")


async def serve(pace_s: float, chunks: int) -> None:
    """Until killed."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Upstream(pace_s, chunks), "127.0.0.1", 0, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(float(sys.argv[1]), int(sys.argv[2])))
