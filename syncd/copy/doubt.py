"""Whether a file that does not come is still to be waited for."""

from __future__ import annotations

TRIES = 4
EVERY_S = 600.0


class Doubt:
    """Changes that wait for files are the parent's word of some time ago: it may have forgotten to take it back.

    So after TRIES tries the listings are compared. Not again for EVERY_S: the comparison begins the tries anew, and a file
    that is there but cannot be read would have all compared again and again.
    """

    def __init__(self) -> None:
        self._arose_s = -EVERY_S

    def arises(self, tries: int, now: float) -> bool:
        """Whether to compare now; `tries` is of the file that was tried most often, `now` in seconds of any clock."""
        if tries < TRIES or now - self._arose_s < EVERY_S:
            return False
        self._arose_s = now
        return True
