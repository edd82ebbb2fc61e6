"""Where generated text ends: stop words over pieces of text, and no half characters.

A stop word may lie over several pieces, so text that could be the beginning of one is held back until it is decided.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST_STOPS = 16
"""Of one request; the API allows 4, some servers more."""

LONGEST_STOP = 256
"""Characters; so much text may be held back at most."""

_HALF = "\ufffd"
"""What a decoder gives for bytes that are no character (yet)."""


class Stopper:
    """Takes pieces of text, gives what may be shown. After `stopped`, nothing more comes out."""

    __slots__ = ("_held", "_stops", "stopped")

    def __init__(self, stops: Sequence[str]) -> None:
        if len(stops) > MOST_STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in stops):
            raise ValueError(f"at most {MOST_STOPS} stop words of 1 to {LONGEST_STOP} characters")
        self._stops = tuple(stops)
        self._held = ""
        self.stopped = False

    def feed(self, piece: str) -> str:
        """The text that is now certain; the stop word itself is never shown."""
        if self.stopped:
            return ""
        text = self._held + piece
        # The one that is complete first, so that it does not matter how the text was cut into pieces.
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)[1]]
        keep = max(_half_at_end(text), *(_begun(text, stop) for stop in self._stops), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when no more text comes; a character that never became whole is left out."""
        text, self._held = self._held, ""
        return "" if self.stopped else text.rstrip(_HALF)


def _begun(text: str, stop: str) -> int:
    """How many characters at the end of `text` could be the beginning of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0


def _half_at_end(text: str) -> int:
    return len(text) - len(text.rstrip(_HALF))
