"""What every report goes through before it is looked at: few at once from one sender, read in time, in the right form."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from aiohttp import web

from core.errors import BusUnavailable
from core.messages import decode

RETRY_S = 2
_MOST_UNDER_WAY = 8
"""Reports of one sender that are held in memory at once; a sound one sends one after the other."""

_READ_TIMEOUT_S = 60.0

Report = TypeVar("Report")


@dataclass(slots=True)
class Allowance:
    """Our time that one sender may take: what it sends costs some, and it may be `most_s` ahead of the clock."""

    most_s: float
    paid_until_s: float = -math.inf

    def take(self, cost_s: float, now: float) -> bool:
        """Whether so much is left; if so it is taken."""
        paid_until_s = max(self.paid_until_s, now) + cost_s
        if paid_until_s > now + self.most_s:
            return False
        self.paid_until_s = paid_until_s
        return True

    def charge(self, cost_s: float, now: float) -> None:
        """Take it whether or not it is left."""
        self.paid_until_s = max(self.paid_until_s, now) + cost_s

    def is_spent(self, now: float) -> bool:
        """Whether nothing is left: its reports need not even be read."""
        return self.paid_until_s >= now + self.most_s


class Sender(Protocol):
    """Who has shown a right token."""

    name: str
    under_way: int


def unauthorized(kind: str) -> web.HTTPUnauthorized:
    """The one refusal of unknown names and wrong tokens of a `kind` (agent or node), which must not be told apart."""
    refusal = web.HTTPUnauthorized(
        text=f"unknown {kind} or wrong token: see `{kind}s` in the appliance's configuration\n",
        headers={"WWW-Authenticate": "Bearer"},
    )
    refusal.force_close()
    return refusal


def too_many(text: str, retry_s: float) -> web.HTTPTooManyRequests:
    """What asks a sender to wait."""
    return web.HTTPTooManyRequests(text=f"{text}\n", headers={"Retry-After": f"{retry_s:.0f}"})


def not_stored(error: BusUnavailable) -> web.HTTPServiceUnavailable:
    """What tells a sender that its report is not kept: it shall send it again."""
    return web.HTTPServiceUnavailable(text=f"{error}\n", headers={"Retry-After": str(RETRY_S)})


@contextlib.contextmanager
def under_way(sender: Sender) -> Iterator[None]:
    """Count a report of `sender` while it is held; HTTP 429 when there are too many of them."""
    if sender.under_way >= _MOST_UNDER_WAY:
        raise too_many("one report after the other, please", RETRY_S)
    sender.under_way += 1
    try:
        yield
    finally:
        sender.under_way -= 1


async def read_report(request: web.Request, kind: type[Report]) -> Report:
    """The report in a request; MessageError when it is none, HTTP 408 and 413 when it is too slow or too large."""
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            body = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(text="the report did not come in time\n") from None
    return decode(kind, body)
