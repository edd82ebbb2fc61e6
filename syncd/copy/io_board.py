"""What a copy says of itself, kept up by all who work on it; what changes in it is logged once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from core.io_log import get_logger
from syncd.copy.child_status import Activity, ChildStatus, Totals
from syncd.publish.guard import Objection

_log = get_logger("board")


class Board:
    """See the module; `on_change` is called when it may be worth a stamp."""

    def __init__(self, tree: str, on_change: Callable[[], None]) -> None:
        self.status = ChildStatus()
        self.totals = Totals()
        self.on_change = on_change
        self._tree = tree
        self._logged = (Activity.READING, "")

    def update(self, **changes: Any) -> None:
        """Replace some of the status."""
        self.status = replace(self.status, **changes)

    def note(self, activity: Activity, why: str, held: Objection | None = None) -> None:
        """What the copy does now, or waits for."""
        changed = (self.status.activity, self.status.why) != (activity, why)
        if activity in (Activity.READING, Activity.COMPARING):
            held = self.status.held  # it is looked at again, which takes long: meanwhile the word can be given
        self.update(activity=activity, why=why, held=held, fetching=None, whole=None)
        if changed:
            if why and self._logged != (activity, why):
                _log.warning("tree_waits", tree=self._tree, state=activity.value, why=why)
            if why or activity is Activity.CURRENT:
                self._logged = activity, why
            self.on_change()
