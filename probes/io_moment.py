"""The agent's clocks: the moment now by CLOCK_BOOTTIME (with the boot it belongs to) and by the wall clock."""

from __future__ import annotations

import os
import secrets
import time
from functools import cache
from pathlib import Path

from probes.report import Moment


@cache
def boot_id() -> str:
    """The kernel's id of this boot; where it is hidden, one drawn for this process, so that ages go by the wall clock.

    A unit with ProcSubset=pid hides it and passes it on: `Environment=NEARPATH_BOOT_ID=%b` (systemd.unit(5)).
    """
    text = os.environ.get("NEARPATH_BOOT_ID", "")
    if not text:
        try:
            text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        except (OSError, ValueError):
            text = ""
    return text.strip().replace("-", "").lower()[:64] or secrets.token_hex(16)


def now_moment() -> Moment:
    """Now. CLOCK_BOOTTIME goes on while the host sleeps, so samples age meanwhile."""
    return Moment(boot_id(), time.clock_gettime(time.CLOCK_BOOTTIME), time.time())
