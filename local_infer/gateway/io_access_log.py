"""The access log: lines are collected and written together by a thread, so that a slow reader never stops the gateway."""

from __future__ import annotations

import os
import queue
import threading

_EVERY_S = 0.2
_MAX_WAITING_BYTES = 8 << 20


class AccessLog:
    """Lines to a file descriptor (standard error in the daemon). What does not fit while it is stuck is counted as lost."""

    def __init__(self, descriptor: int = 2) -> None:
        self._descriptor = descriptor
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._lock = threading.Lock()
        self._stop: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_all, name="access-log", daemon=True)
        self._thread.start()
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Take one line; it is out within a fraction of a second."""
        with self._lock:
            if self._waiting_bytes + len(line) > _MAX_WAITING_BYTES:
                self.lost += 1
                return
            self._lines.append(line)
            self._waiting_bytes += len(line)

    def close(self) -> None:
        """Write what is left and end; gives up on a reader that is stuck."""
        self._stop.put(None)
        self._thread.join(timeout=2.0)

    def _write_all(self) -> None:
        stopping = False
        while not stopping:
            try:
                self._stop.get(timeout=_EVERY_S)
                stopping = True
            except queue.Empty:
                pass
            with self._lock:
                lines, self._lines, self._waiting_bytes = self._lines, [], 0
            data = memoryview(b"".join(lines))
            while data:
                try:
                    data = data[os.write(self._descriptor, data) :]
                except BlockingIOError:
                    threading.Event().wait(0.01)
                except OSError:
                    break  # nobody reads it any more
