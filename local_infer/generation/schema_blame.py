"""Whose schemas took a generator process down: they are refused for a while, so that others get the slot. Pure."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

BLAMED_S = 600.0
MOST_CLIENTS = 1024
MOST_SCHEMAS = 64
"""Remembered of one client: each cost it the time of a process, so there are few."""

CRASH, CANCEL = 2, 1
"""Strikes. A process that was too slow to be cancelled may only have been reading a long prompt: once is no reason."""
ONE_SCHEMA, ALL_SCHEMAS = 2, 6
"""Strikes after which a schema is refused, and after which all of its client are: they may differ by a blank."""


_Strikes = OrderedDict[bytes, tuple[int, float]]
"""By schema: how many, and until when they count."""


class Blame:
    """What the clients' schemas did."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, _Strikes] = OrderedDict()

    def note(self, client: str, schema: str, strikes: int, now: float) -> None:
        """A process was lost over this schema of the client."""
        by_schema = self._clients.setdefault(client, OrderedDict())
        self._clients.move_to_end(client)
        if len(self._clients) > MOST_CLIENTS:
            self._clients.popitem(last=False)
        digest = _digest(schema)
        before, until_s = by_schema.pop(digest, (0, now))
        by_schema[digest] = (before + strikes if until_s > now else strikes, now + BLAMED_S)
        if len(by_schema) > MOST_SCHEMAS:
            by_schema.popitem(last=False)

    def refused_s(self, client: str, schema: str, now: float) -> float:
        """For how long this schema of the client is still refused; 0: it may be tried."""
        by_schema = self._clients.get(client)
        if by_schema is None:
            return 0.0
        known = {digest: (strikes, until_s) for digest, (strikes, until_s) in by_schema.items() if until_s > now}
        strikes, until_s = known.get(_digest(schema), (0, now))
        if strikes < ONE_SCHEMA and sum(count for count, _until_s in known.values()) >= ALL_SCHEMAS:
            strikes, until_s = ONE_SCHEMA, min(until_s for _count, until_s in known.values())
        return until_s - now if strikes >= ONE_SCHEMA else 0.0


def _digest(schema: str) -> bytes:
    return hashlib.blake2b(schema.encode("utf-8", "surrogatepass"), digest_size=16).digest()
