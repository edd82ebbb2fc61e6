"""A fault of our own costs one query its answer, and the log one line a second per plane, never the server."""

from __future__ import annotations

import contextlib
import time
import traceback

from core.io_log import get_logger
from dnsd.answer import ClientAddress, Transport, failure, respond
from dnsd.image import Image
from dnsd.tally import Tally

_EVERY_S = 1.0


class FaultLog:
    """The fault log of one thread."""

    def __init__(self, plane: str) -> None:
        self._log = get_logger("dnsd").bind(plane=plane)
        self._next_s = 0.0
        self._left_out = 0

    def note(self, error: BaseException) -> None:
        """Log `error` with its place in the code, unless one was logged within the last second."""
        now_s = time.monotonic()
        if now_s < self._next_s:
            self._left_out += 1
            return
        self._next_s = now_s + _EVERY_S
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        place = " < ".join(f"{frame.name}:{frame.lineno}" for frame in reversed(frames))
        self._log.error("query_fault", error=repr(error), place=place, left_out=self._left_out)
        self._left_out = 0


def answer_guarded(
    image: Image, data: bytes, client: ClientAddress, transport: Transport, tally: Tally, faults: FaultLog
) -> bytes | None:
    """The answer to `data` (None: silence), counted; a fault in dnsd gives SERVFAIL, and the next query is served."""
    try:
        reply = respond(image, data, client, transport)
    except Exception as error:
        tally.errors += 1
        faults.note(error)
        with contextlib.suppress(Exception):
            return failure(image, data)
        return None
    if reply is None:
        return None
    tally.count(reply)
    return reply.wire
