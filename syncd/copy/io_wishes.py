"""What operators ask of a copy, until it is done: look now, verify, trust, show another version. Done between batches."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from core.errors import NearpathError
from syncd.copy.io_copy import Copy
from syncd.copy.io_failures import Pinned
from syncd.copy.io_site import Site

TRIM_EVERY_S = 600.0
"""How often the journal is cut to what our own children have not got yet."""


class Wishes:
    """See the module. What is wished wakes the follower by itself."""

    def __init__(self, site: Site) -> None:
        self.compare = False
        """the listings are to be compared: also wished by who finds that the copy is not what was signed"""
        self.reread = False
        """and before it the disk is to be read anew"""
        self.unlike: set[bytes] = set()
        """paths that have other owners, say, than at the parent"""
        self.nudged = asyncio.Event()
        """a rest after a failure is cut short"""
        self.looked = asyncio.Event()
        """and so is a poll that waits for news"""
        self._site = site
        self._trust = False
        self._version: tuple[int | None, asyncio.Future[None]] | None = None
        self._trimmed_s = -TRIM_EVERY_S

    def look(self) -> None:
        """Ask the parent now."""
        self.nudged.set()
        self.looked.set()

    def ask_now(self) -> None:
        """`look`, also where parents rest after failures."""
        self._site.lineage.wake(self._site.name)
        self.look()

    def approve(self, token: str) -> bool:
        """Let the held deletes through; False when nothing with this token is held."""
        held = self._site.status.held
        if held is None or held.token != token.strip().lower():
            return False
        self._site.intake.approved = held.token
        self.nudged.set()
        return True

    def accept(self) -> None:
        """Take the disk that is there now for the copy's, and look at all of it; NearpathError when it is the right one."""
        if self._site.copy is not None:
            raise NearpathError(
                f"there is nothing to accept: tree {self._site.name} has its directory",
                "`syncd status` says what it waits for",
            )
        self._site.accept = True
        self.nudged.set()

    def verify(self, unlike: Iterable[bytes] = ()) -> None:
        """Read the disk anew, compare with the parent's listings, repair what differs; `unlike`: in what no listing has."""
        self.reread = self.compare = True
        self.unlike.update(unlike)
        self.look()

    def trust(self) -> None:
        """Forget the last accepted root: the origin was restored from a backup, or begins anew."""
        self._trust = True
        self.look()

    def show_version(self, number: int | None) -> asyncio.Future[None]:
        """Show an older version of an atomic tree and stay at it; None: follow the parent again. Done: so it is."""
        done = asyncio.get_running_loop().create_future()
        if self._version is not None:
            self._version[1].cancel()
        self._version = number, done
        self.look()
        return done

    async def obey(self, copy: Copy) -> None:
        """Between batches. Pinned while an older version is to stay, CopyError when the disk is gone."""
        site = self._site
        await site.work(copy.check_place)
        if time.monotonic() - self._trimmed_s >= TRIM_EVERY_S:
            self._trimmed_s = time.monotonic()
            await site.work(lambda: copy.journal.trim(time.time()))
        if self._trust:
            self._trust = False
            site.lineage.wake(site.name)
            site.knowledge.forget_versions()
            await site.signature.forget()
        if self._version is not None:
            (number, done), self._version = self._version, None
            await self._show(copy, number, done)
        if site.pinned is not None:
            raise Pinned(
                f"tree {site.name} was rolled back to version {site.pinned} and stays there",
                f"`syncd rollback {site.name} --release` follows the parent again",
            )

    async def _show(self, copy: Copy, number: int | None, done: asyncio.Future[None]) -> None:
        site = self._site
        try:
            await site.work(lambda: copy.pin(number))
        except (NearpathError, OSError) as error:
            if not done.done():
                done.set_exception(error)
            site.pinned = await site.work(lambda: copy.pinned)
            await site.work(copy.recover)  # it may be shown all the same, and not be read yet
        else:
            site.pinned = number
            self.compare = True
            site.knowledge.forget()
            site.board.update(root_hash="", version=0)
            if not done.done():
                done.set_result(None)
