"""What a tree leaves out: patterns as rsync(1) has them under `--exclude`, so that rsync and we leave out the same.

| pattern            | leaves out                                                                  |
|--------------------|-----------------------------------------------------------------------------|
| `*.tmp`            | every name that ends so, at any depth                                       |
| `/iso`             | what has just this path from the top of the tree                            |
| `debug/tree`       | what has a path that ends so                                                |
| `.git/`            | directories of this name                                                    |
| `*`, `?`, `[a-z]`  | stand for any number of characters, for one, for one of these: for no slash |
| `**`               | stands for any number of characters, slashes too                            |

What lies in a directory that is left out is left out with it.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

MAX_PATTERN_BYTES = 1024
_TOKEN = re.compile(rb"\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|.", re.DOTALL)


class Exclude:
    """The patterns of one tree. Without any it leaves nothing out, and is false."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """ValueError, that names the pattern, for what rsync would take for something else, or never match."""
        self.patterns = tuple(patterns)
        for pattern in patterns:
            _check(pattern)
        every = [_raw(pattern) for pattern in patterns]
        self._of_files = _one_of(pattern for pattern in every if not pattern.endswith(b"/"))
        self._of_directories = _one_of(every)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def leaves_out(self, path: bytes, is_directory: bool) -> bool:
        """Whether one of the patterns means `path` itself; nothing above it is looked at."""
        wanted = self._of_directories if is_directory else self._of_files
        return wanted is not None and wanted.fullmatch(b"/" + path) is not None

    def covers(self, path: bytes) -> bool:
        """Whether `path`, be it a directory or not, or one above it is left out."""
        if not self.patterns or not path:
            return False
        names = path.split(b"/")
        return any(self.leaves_out(b"/".join(names[:count]), True) for count in range(1, len(names) + 1))

    def fingerprint(self) -> int:
        """Tells these patterns from others."""
        return zlib.crc32(_raw("\0".join(self.patterns)))


def _raw(text: str) -> bytes:
    """As file names have it."""
    return text.encode("utf-8", "surrogateescape")


def _check(pattern: str) -> None:
    why = ""
    if not pattern.strip("/") or pattern != pattern.strip() or len(_raw(pattern)) > MAX_PATTERN_BYTES:
        why = f"is empty, has space at an end, or is longer than {MAX_PATTERN_BYTES:,} bytes"
    elif pattern == "!" or pattern.startswith(("+ ", "- ")):
        why = "is another rule for rsync than a pattern: only what is left out can be said, without a sign before it"
    elif re.search(r"[\0\r\n\\]", pattern):
        why = "has a backslash or a line end: write [*] for a name with an asterisk in it, ? for anything else"
    elif "***" in pattern or "[:" in pattern or "//" in pattern:
        why = "has ***, // or a class by name, which are not known here"
    elif "." in pattern.split("/") or ".." in pattern.split("/"):
        why = "has . or .. for a name in it, which no path in a tree has"
    else:
        try:
            re.compile(_expression(_raw(pattern)))
        except re.error as error:
            why = f"cannot be read: {error}"
        if any(token == b"[" for token in _TOKEN.findall(_raw(pattern))):
            why = "has a [ without its ]"
    if why:
        raise ValueError(f"pattern {pattern!r} {why}")


def _one_of(patterns: Iterable[bytes]) -> re.Pattern[bytes] | None:
    wanted = [_expression(pattern) for pattern in patterns]
    return re.compile(b"|".join(wanted), re.DOTALL) if wanted else None


def _expression(pattern: bytes) -> bytes:
    """The regular expression that a slash with a whole path behind it is held against."""
    anchored = pattern.startswith(b"/")
    wanted = pattern.strip(b"/")
    # A leading ** may also stand for nothing, so that what is behind its slash is at the very top.
    head = b"/" if anchored else b"" if wanted.startswith(b"**") else b".*/"
    return head + b"".join(_translate(token) for token in _TOKEN.findall(wanted))


def _translate(token: bytes) -> bytes:
    if token == b"**":
        return b".*"
    if token in (b"*", b"?"):
        return b"[^/]*" if token == b"*" else b"[^/]"
    if len(token) > 1:
        body = token[1:-1]
        is_negated = body[:1] in (b"!", b"^")
        members = re.sub(rb"([\[\]&~|^])", rb"\\\1", body[is_negated:])
        return b"(?!/)[" + b"^" * is_negated + members + b"]"
    return re.escape(token)


NOTHING = Exclude()
