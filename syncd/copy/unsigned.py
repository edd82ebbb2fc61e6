"""Whether a parent serves a tree that the origin did not sign: said of it only when nothing else explains it.

A copy that has just what its parent has, and not what the origin signed, waits: the signature may be on the way. Meanwhile
it does not say that it is fresh, so its age grows until DNS leaves it out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from syncd.store.manifest import ManifestError
from syncd.transfer.small import WRONG_CONTENT

UNSIGNED_S = 60.0
"""A parent whose tree is for so long not what the origin signed is left, unless it says itself that it is behind."""
REPAIRS = 3
"""So many comparisons that all find something, with no proof between them, do not mend the copy: the parent is another."""


class Unsigned:
    """See the module. `since_s`: since when (monotonic) the parent has what the origin did not sign; None: it has not."""

    def __init__(self) -> None:
        self.since_s: float | None = None
        self._repairs = 0

    def proved(self) -> None:
        """The copy is what the origin signed."""
        self.since_s, self._repairs = None, 0

    def compared(self, now: float, differences: int, lag_s: float) -> bool:
        """The last comparison found so many differences, the hash is not the signed one: whether that is for too long.

        A parent may be another at each comparison, or say for ever that it is behind: then the copy is not fresh either.
        """
        self._repairs += 1 if differences else 0
        if differences and self._repairs < REPAIRS:
            return False  # it was the copy that was another; it is mended now
        if self.since_s is None or lag_s >= UNSIGNED_S:
            self.since_s = now
            return False
        if now - self.since_s < UNSIGNED_S:
            return False
        self.since_s = now
        return True


class UnsignedTree(ManifestError):
    """A parent has what the origin did not sign."""


MISMATCHES = 3
"""A parent that so many times sends another content of a file than the origin signed is left."""


class WrongContents:
    """How often a parent sent contents that the origin did not sign."""

    def __init__(self) -> None:
        self._times: Counter[bytes] = Counter()

    def judge(self, failed: Mapping[bytes, str]) -> bytes | None:
        """A path that came wrong too often, and then the count begins anew; `failed`: paths of one batch, with reasons."""
        wrong = [path for path, why in failed.items() if why == WRONG_CONTENT]
        if not wrong:
            return None
        self._times.update(wrong)
        worst, times = self._times.most_common(1)[0]
        if times < MISMATCHES:
            return None
        self._times.clear()
        return worst


def wrong_content(tree: str, url: str, path: bytes) -> UnsignedTree:
    """What is said of such a parent."""
    shown = repr(path.decode("utf-8", "backslashreplace"))
    what = f"{url} sends {shown} of tree {tree} with another content than its origin signed"
    fix = f"`syncd verify {tree} --contents` there, at the origin first; it is not published, another parent is asked"
    return UnsignedTree(what, fix)


def never_proved(tree: str, url: str) -> UnsignedTree:
    """What is said of a parent that for too long proves nothing of what it sends."""
    what = f"{url} goes on changing tree {tree}, and shows no root of it that the origin signed"
    return UnsignedTree(what, "see `syncd status` there, and whether its syncd is as new as this one; another is asked")


def unsigned_tree(tree: str, url: str) -> UnsignedTree:
    """What is said of a parent whose tree is for too long not the signed one."""
    what = f"{url} serves a tree {tree} that its origin did not sign, and this copy holds it"
    return UnsignedTree(what, "see that node and its parents; another parent mends the copy")
