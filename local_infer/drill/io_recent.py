"""Recent requests with the upstream's answers, kept for `local-infer drill` when `ladder.record` says so: personal data.

Written by one thread behind a bounded queue, so that the gateway never waits for the disk; what does not fit is not kept.
"""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from core.errors import NearpathError
from local_infer.io_read_only import connect_read_only

FILE = "recent.sqlite"
_WAITING = 256
_TRIM_EVERY = 64
_LARGEST_BYTES = 1 << 20
_SCHEMA = """
CREATE TABLE IF NOT EXISTS recent (
  id INTEGER PRIMARY KEY, at_s REAL NOT NULL, client TEXT NOT NULL, tenant TEXT NOT NULL, endpoint TEXT NOT NULL,
  body BLOB NOT NULL, answer BLOB, headers TEXT NOT NULL DEFAULT '')
"""


@dataclass(frozen=True, slots=True)
class RecentRequest:
    """A request as it came; `answer` is the upstream's whole body (JSON or events), None when there was none.

    `headers` are those by which the client refused steps or asked something of the cache, as a JSON object; empty: none.
    """

    at_s: float
    client: str
    tenant: str
    endpoint: str
    body: bytes
    answer: bytes | None
    headers: str = ""


class Recent:
    """The file of the newest `most` requests. `record` never blocks; `lost` counts what found no room."""

    def __init__(self, state_dir: Path, most: int) -> None:
        self._file, self._most = state_dir / FILE, most
        self._queue: queue.Queue[RecentRequest | None] = queue.Queue(_WAITING)
        self.lost = 0
        self._open().close()
        self._file.chmod(0o600)
        self._thread = threading.Thread(target=self._write_all, name="recent", daemon=True)
        self._thread.start()

    def record(self, request: RecentRequest) -> None:
        """Keep one request; large ones and those that come too fast are left out."""
        if len(request.body) + len(request.answer or b"") > _LARGEST_BYTES:
            self.lost += 1
            return
        try:
            self._queue.put_nowait(request)
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        """Write what is waiting, and close; blocks."""
        self._queue.put(None)
        self._thread.join()

    def _open(self) -> sqlite3.Connection:
        try:
            self._file.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
            db = sqlite3.connect(self._file, isolation_level=None)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=OFF")
            db.execute(_SCHEMA)
            if "headers" not in [row[1] for row in db.execute("PRAGMA table_info(recent)")]:  # of an older version
                db.execute("ALTER TABLE recent ADD COLUMN headers TEXT NOT NULL DEFAULT ''")
        except (sqlite3.Error, OSError) as error:
            raise NearpathError(
                f"{self._file} cannot be used ({error})", "move it away, or set ladder.record to 0"
            ) from None
        return db

    def _write_all(self) -> None:
        with closing(self._open()) as db:
            written = 0
            while (one := self._queue.get()) is not None:
                values = (one.at_s, one.client, one.tenant, one.endpoint, one.body, one.answer, one.headers)
                try:
                    db.execute(
                        "INSERT INTO recent (at_s, client, tenant, endpoint, body, answer, headers) "
                        "VALUES (?, ?, ?, ?, ?, ?, ?)",
                        values,
                    )
                    if written % _TRIM_EVERY == 0:
                        self._trim(db)
                except sqlite3.Error:
                    self.lost += 1
                written += 1
            self._trim(db)

    def _trim(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM recent WHERE id <= (SELECT max(id) FROM recent) - ?", (self._most,))


def read_recent(state_dir: Path) -> Iterator[RecentRequest]:
    """What was recorded, oldest first; NearpathError when nothing was."""
    file = state_dir / FILE
    if not file.exists():
        raise NearpathError(f"there is no {file}", "set ladder.record, let traffic pass, and try again")
    try:
        with closing(connect_read_only(file)) as db:
            has_headers = "headers" in [row[1] for row in db.execute("PRAGMA table_info(recent)")]
            names = f"at_s, client, tenant, endpoint, body, answer{', headers' if has_headers else ''}"
            for row in db.execute(f"SELECT {names} FROM recent ORDER BY id"):
                yield RecentRequest(*row)
    except sqlite3.Error as error:
        raise NearpathError(f"{file} cannot be read ({error})", "move it away to start anew") from None
