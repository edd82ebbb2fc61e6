"""The stager: writes small files into stages for a daemon that started it, so that the daemon's interpreter is free.

    python -m syncd.transfer.io_stager_process       a stream socket to the daemon as standard input

It answers one request after the other (`stage_codec`), and ends when the daemon closes its end, or is no more. Its user,
umask, niceness and confinement are the daemon's. An error that is not one of ERRORS ends it with a traceback in the log;
then the daemon does the work itself and meets the same error.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import socket
from contextlib import suppress

from core.errors import MessageError, NearpathError
from syncd.publish.io_publish import DiskFull
from syncd.publish.steps import PublishError
from syncd.source.row import Written
from syncd.transfer import stage_codec
from syncd.transfer.io_small import stage_answer
from syncd.transfer.stage_codec import Outcome, Request

ERRORS: dict[str, type[NearpathError]] = {kind.__name__: kind for kind in (MessageError, PublishError, DiskFull)}
"""What `stage_answer` raises, by the name that an answer carries."""

_PR_SET_PDEATHSIG = 1


def receive(sock: socket.socket, size: int) -> bytes:
    """Exactly `size` bytes; EOFError when the other end is closed before. OSError when the socket's time is over."""
    data = sock.recv(size, socket.MSG_WAITALL) if size else b""
    while len(data) < size:  # a signal came between
        more = sock.recv(size - len(data), socket.MSG_WAITALL)
        if not more:
            raise EOFError(f"the other end is closed after {len(data)} of {size} bytes")
        data += more
    return data


def serve(sock: socket.socket) -> None:
    """Answer requests until the other end is closed."""
    sock.sendall(stage_codec.READY)
    with suppress(EOFError, ConnectionError):
        while True:
            head = receive(sock, stage_codec.REQUEST_HEAD.size)
            request = stage_codec.decode_request(head, receive(sock, stage_codec.request_bytes(head)))
            sock.sendall(stage_codec.encode_answer(request.entries, _stage(request)))


def _stage(request: Request) -> Outcome:
    written: Written = {}
    try:
        answered, failed = stage_answer(request.stage, request.entries, request.data, request.hard_links, written)
    except NearpathError as error:
        if ERRORS.get(type(error).__name__) is not type(error):
            raise
        return Outcome(0, {}, written, (type(error).__name__, error.what, error.fix))
    return Outcome(answered, failed, written)


def main() -> None:
    """See the module."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # they go to the whole group; the daemon says when it is over
    # The end of the socket would end it too, but only after what it is writing: behind the back of a daemon that starts.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    gc.set_threshold(50_000, 20, 50)  # for the reason that `io_daemon` has; an answer makes fewer objects than a batch
    serve(socket.socket(fileno=os.dup(0)))


if __name__ == "__main__":
    main()
