"""SQLite files of the gateway, read beside it: nothing of them is changed, and nothing is left in their folder."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def connect_read_only(file: Path) -> sqlite3.Connection:
    """A connection that can only read, as of the last commit; sqlite3.Error when there is no such file."""
    file = file.resolve()
    # Who is the first to open a file in WAL mode makes two more beside it; without a log nobody has it open, and what it
    # holds is all there is.
    alone = "" if file.with_name(file.name + "-wal").exists() else "&immutable=1"
    return sqlite3.connect(f"{file.as_uri()}?mode=ro{alone}", uri=True, timeout=10.0)
