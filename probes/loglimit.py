"""Keeping a fault that repeats from filling the log."""

from __future__ import annotations


class LogLimit:
    """Lets a repeated event through once per `every_s`, and tells how many were held back."""

    def __init__(self, every_s: float = 60.0, most_keys: int = 1000) -> None:
        self._every_s = every_s
        self._most_keys = most_keys
        self._seen: dict[str, tuple[float, int]] = {}

    def pass_through(self, key: str, now: float) -> int | None:
        """None: hold this one back. Otherwise log it; so many like it were held back since the last."""
        last = self._seen.get(key)
        if last is not None and now - last[0] < self._every_s:
            self._seen[key] = (last[0], last[1] + 1)
            return None
        if last is None and len(self._seen) >= self._most_keys:
            self._seen.clear()
        self._seen[key] = (now, 0)
        return last[1] if last else 0
