"""The systemd side of a daemon: readiness, status line and watchdog (sd_notify(3)); silent when not run by systemd."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Sends notifications to the socket in NOTIFY_SOCKET; every method does nothing when there is none."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        usec = os.environ.get("WATCHDOG_USEC", "")
        pid = os.environ.get("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        self.watchdog_interval_s: float | None = int(usec) / 2e6 if usec.isdecimal() and int(usec) and mine else None
        """How often `alive()` must be called (half the limit, as sd_watchdog_enabled(3) advises); None: no watchdog."""

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.settimeout(1.0)
                sock.sendto(text.encode(), self._address)
        except OSError:
            # The service manager is restarting; it will ask again, and a daemon must not die of it.
            return

    def ready(self, status: str = "") -> None:
        """The daemon serves."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}" if status else "READY=1")

    def reloading(self, now_us: int) -> None:
        """A reload has begun at `now_us` (CLOCK_MONOTONIC, microseconds); call `ready` when it is over."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={now_us}")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={_one_line(text)}")

    def stopping(self) -> None:
        """The daemon has begun to shut down."""
        self._send("STOPPING=1")

    def alive(self) -> None:
        """Keep the watchdog from acting; call it only after the daemon has proved that it works."""
        self._send("WATCHDOG=1")


def _one_line(text: str) -> str:
    """A line break in a text would begin another assignment."""
    return text.replace("\n", " ")
