"""What the scrub, or an operator, found to be wrong on the disk of a copy: fetched anew from the parent it follows."""

from __future__ import annotations

from syncd.copy.io_bring import Supplier
from syncd.copy.io_copy import Copy
from syncd.copy.io_site import Site
from syncd.copy.io_wishes import Wishes
from syncd.source.io_scrub import Wrong


class Mender:
    """See the module."""

    def __init__(self, site: Site, wishes: Wishes) -> None:
        self.wrong = Wrong(wishes.look)
        self._site = site
        self._wishes = wishes

    async def mend(self, copy: Copy, parent: Supplier) -> None:
        """Fetch it; compared by content, since the parent has the same size and time."""
        site, intake = self._site, self._site.intake
        if unlike := frozenset(self._wishes.unlike):
            for part in intake.in_parts(copy, await site.work(lambda: copy.as_indexed(unlike))):
                await intake.apply(copy, parent, part, None)
            self._wishes.unlike -= unlike
        if not (wrong := frozenset(self.wrong.paths)):
            return
        changes = await site.work(lambda: copy.as_recorded(wrong))
        for part in intake.in_parts(copy, changes):
            await intake.apply(copy, parent, part, None)
        self.wrong.paths -= wrong
