"""The folder in which a daemon keeps its state: made when missing, and held for one process alone."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from core.errors import NearpathError


def hold_state_dir(folder: Path, who: str) -> int:
    """Make the folder and lock it; returns the descriptor that holds the lock until it is closed.

    `who` is what runs on it (`appliance`, `agent`): NearpathError when another one does, or the folder cannot be used.
    """
    try:
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    except OSError as error:
        raise NearpathError(
            f"cannot use state_dir {folder}: {error.strerror}", f"create it with the {who}'s user as owner"
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise NearpathError(
            f"another {who} runs on state_dir {folder}", "stop it first, or give this one a state_dir of its own"
        ) from None
    return handle


def find_holder(folder: Path) -> int:
    """The process that runs on a state_dir; 0: none does. OSError when its lock cannot be looked at."""
    status = (folder / "lock").stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "FLOCK" in fields and place in fields and (pid := int(fields[fields.index(place) - 1])) > 0:
            return pid
    return 0
