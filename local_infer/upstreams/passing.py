"""What of an upstream's stream goes on to the client, and whether it was whole. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from local_infer.api.sse import ends_with_done
from local_infer.model import Ask
from local_infer.upstreams.attempt import (
    MAX_ERROR_BYTES,
    before_error,
    is_finished,
    tells_end,
    up_to_error,
    without_secret,
)
from local_infer.upstreams.resume import Sofar, join


@dataclass(slots=True)
class Passing:
    """A stream on its way. With `sofar` another upstream may go on where one ends, so that errors are kept from the client.

    `reason`: nothing more of this upstream's is wanted, and why. `told`: the client has its error event. `joined`: this one
    goes on with what another began. `endings` are the events in which choices came to their end.
    """

    ask: Ask
    sofar: Sofar | None = None
    reason: str = ""
    told: bool = False
    joined: bool = False
    last: bytes = b""
    endings: bytes = b""

    def take(self, events: bytes, secret: bytes) -> bytes:
        """What the client gets of a run of whole events; `secret` is this upstream's credential."""
        if self.sofar is not None:
            events, self.reason = before_error(events)
            events = join(events, self.sofar) if self.joined else events
            self.sofar.take(events)
        else:
            events, self.reason = up_to_error(events)
            self.told = bool(self.reason)
        if b"error" in events:
            # Also where an error is glued to half an event, and so is none that could be read.
            events = without_secret(events, secret)
        if events:
            self.last = events
            if tells_end(events) and len(self.endings) < MAX_ERROR_BYTES:
                self.endings += events
        return events

    def go_on(self) -> None:
        """Another upstream goes on."""
        self.reason, self.last, self.joined = "", b"", True

    @property
    def said_done(self) -> bool:
        """Whether `[DONE]` was the last of it."""
        return ends_with_done(self.last)

    @property
    def is_whole(self) -> bool:
        """Whether all was said, with `[DONE]` or without."""
        return self.said_done or is_finished(self.endings, self.ask)
