"""Which files come by one request over the warm connection (`wire`), and which by rsync."""

from __future__ import annotations

from collections.abc import Iterable

from syncd.plan import Fetch
from syncd.rsync import Options
from syncd.wire import SMALL_FILE_BYTES

MAX_REQUEST_FILES = 64
MAX_REQUEST_BYTES = 1024 * 1024
"""Beyond either, the start of an rsync is a small part of the whole, and its deltas and file lists win."""


def divide(fetches: Iterable[Fetch], options: Options) -> tuple[tuple[Fetch, ...], tuple[Fetch, ...]]:
    """(fetches that go by request, fetches that go by rsync), each in the order given.

    Files of at most SMALL_FILE_BYTES go by request, `exact` ones too, since their content is fetched in any case. When
    they are more than MAX_REQUEST_FILES, or hold more than MAX_REQUEST_BYTES or what the bandwidth limit allows in a
    second, rsync takes all. So it does when extended attributes, ACLs or owners are kept: a request does not bring them.
    Hard links are kept among the files of one request, and among those of one rsync, but not between the two.
    """
    small: list[Fetch] = []
    other: list[Fetch] = []
    every = tuple(fetches)
    if options.xattrs or options.acls or options.owners:
        return (), every
    for fetch in every:
        (small if fetch.entry.size <= SMALL_FILE_BYTES else other).append(fetch)
    total = sum(fetch.entry.size for fetch in small)
    allowed = min(MAX_REQUEST_BYTES, options.limit_bytes_s or MAX_REQUEST_BYTES)
    if len(small) > MAX_REQUEST_FILES or total > allowed:
        return (), every
    return tuple(small), tuple(other)
