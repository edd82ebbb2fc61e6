"""How an attempt to follow a parent may end, and what follows: what the copy says of itself, and how long it rests."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from core.errors import MessageError, NearpathError
from syncd.copy.child_status import Activity
from syncd.copy.io_copy import CopyError
from syncd.copy.io_intake import Held, Incomplete, NoRoom
from syncd.copy.unsigned import UnsignedTree
from syncd.model import PathError
from syncd.publish.guard import Objection
from syncd.publish.io_publish import DiskFull
from syncd.store.manifest import ManifestError
from syncd.transfer.io_parent import ParentError

AGAIN_S = 2.0
MAX_AGAIN_S = 60.0
"""Between attempts that fail one after the other; doubled each time."""
HELD_AGAIN_S = 5.0
FULL_AGAIN_S = 10.0
"""After a full disk is looked at again."""
OTHER_S = 0.2
"""Before another parent is asked in place of one that failed."""


class Pinned(NearpathError):
    """The copy shows an older version because an operator said so."""


class Backoff:
    """How long to rest after a failure: longer after each in a row."""

    def __init__(self) -> None:
        self.rest_s = AGAIN_S

    def worked(self) -> None:
        """Begin anew."""
        self.rest_s = AGAIN_S

    def failed(self) -> None:
        """Another one in a row."""
        self.rest_s = min(self.rest_s * 2, MAX_AGAIN_S)


@dataclass(frozen=True, slots=True)
class Failure:
    """What follows from how an attempt ended."""

    activity: Activity
    why: str
    rest_s: float | None = None
    """None: as long as the back-off says"""
    held: Objection | None = None
    listing: bool = False
    """a plain server is not listed again sooner than it would be anyhow: that costs it as much as ever"""
    blames: bool = False
    """the parent is at fault: another one is asked, soon when there is one"""
    disproves: bool = False
    """what the parent said of how fresh the copy is counts no more"""
    compare: bool = False
    """listings are compared before anything else"""
    closes: bool = False
    """the copy's disk is opened anew"""
    is_odd: bool = False
    """nothing that is reckoned with: the log has it each time"""
    is_fault: bool = False
    """a fault of ours"""


def judge(error: Exception, path: str) -> Failure:
    """What follows for the copy at `path` from an attempt that ended with `error`; special cases before general ones."""
    why = str(error)
    match error:
        case Pinned():
            return Failure(Activity.HELD, why, MAX_AGAIN_S)
        case Held():
            return Failure(Activity.HELD, why, HELD_AGAIN_S, held=error.objection, listing=True)
        case DiskFull() | NoRoom():
            return Failure(Activity.DISK_FULL, why, FULL_AGAIN_S, listing=True)
        case Incomplete():
            return Failure(Activity.RETRYING, why)
        case ParentError() | MessageError() | PathError():
            return Failure(Activity.NO_PARENT, why, blames=True)
        case CopyError():
            return Failure(Activity.STOPPED, why, FULL_AGAIN_S, closes=True)
        case ManifestError():
            # What this parent shows is not what the origin signed, or older than what is here: others may do better.
            is_unsigned = isinstance(error, UnsignedTree)
            return Failure(Activity.FAILED, why, blames=True, disproves=True, compare=is_unsigned)
        case NearpathError():
            return Failure(Activity.FAILED, why, is_odd=True)
        case OSError() if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"{path}: {error.strerror}, not even for a directory: make some room; it goes on by itself"
            return Failure(Activity.DISK_FULL, full, FULL_AGAIN_S, listing=True)
        case OSError():
            return Failure(Activity.FAILED, f"{path}: {error}")
        case _:
            return Failure(Activity.FAILED, f"an internal fault: {error!r}", is_fault=True)
