"""The one timeline: wall time read once, advanced by the monotonic clock, so that it never jumps while a process lives."""

from __future__ import annotations

import time


class AnchoredClock:
    """`now()` is seconds since the epoch as of this process's start plus the boot-time clock's advance since then.

    A later process starts from the wall clock again, so times that were stored stay comparable; if the wall clock was set
    back in between, ages of stored times come out negative and are to be clamped to zero. CLOCK_BOOTTIME goes on while
    the machine sleeps: samples must not look fresh after a suspend.
    """

    def __init__(self) -> None:
        self._offset_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> float:
        """Seconds on the appliance's timeline."""
        return self._offset_s + time.clock_gettime(time.CLOCK_BOOTTIME)

    def skew_s(self) -> float:
        """How far the wall clock has moved away from the timeline since the start (positive: wall is ahead)."""
        return time.time() - self.now()
