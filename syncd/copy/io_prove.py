"""Contents at a copy held against the digests that the origin told: of what was fetched, and of what lies there already."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence

from core.errors import NearpathError
from syncd.model import Change, Entry, Kind, Op
from syncd.publish.io_below import Below, set_mode
from syncd.source.io_digest import digest_below
from syncd.source.row import Row, held_ns
from syncd.transfer.small import NO_DIGEST, WRONG_CONTENT


def announced(changes: Iterable[Change]) -> dict[bytes, Entry]:
    """Files that changes bring, by path, where their content's digest is told; the last word counts."""
    found: dict[bytes, Entry] = {}
    for change in changes:
        entry = change.entry
        if entry is not None and entry.digest is not None and change.op is Op.UPSERT:
            found[change.path] = entry
        elif found and change.op is Op.UPSERT:
            found.pop(change.path, None)
    return found


def digests_of(rows: Iterable[tuple[bytes, Row]], told: Mapping[bytes, Entry]) -> dict[bytes, bytes]:
    """The digests to store with these rows, which are as they were announced."""
    found: dict[bytes, bytes] = {}
    for path, row in rows:
        entry = told.get(path)
        if entry is not None and entry.digest is not None and _is_as_announced(row, entry):
            found[path] = entry.digest
    return found


def _is_as_announced(row: Row, entry: Entry) -> bool:
    return stat.S_ISREG(row.mode) and (row.size, row.mtime_ns) == (entry.size, entry.mtime_ns)


def read_here(root: bytes, rows: Iterable[tuple[bytes, Row]]) -> list[tuple[bytes, Row, bytes]]:
    """(path, row, digest) of those files below the directory `root` that are as the index has them; read in a thread."""
    found: list[tuple[bytes, Row, bytes]] = []
    for path, row in rows:
        try:
            read = digest_below(root, path, _is_row(row), _go_on)
        except (NearpathError, OSError):
            continue  # it is fetched
        if read is not None:
            found.append((path, row, read[0]))
    return found


def _is_row(row: Row) -> Callable[[os.stat_result], bool]:
    return lambda st: (st.st_size, held_ns(st.st_mtime_ns), st.st_ino) == (row.size, row.mtime_ns, row.inode)


def _is_entry(entry: Entry) -> Callable[[os.stat_result], bool]:
    return lambda st: (st.st_size, held_ns(st.st_mtime_ns)) == (entry.size, entry.mtime_ns)


def _go_on(_size: int) -> bool:
    return True


def prove_staged(stage: bytes, entries: Sequence[Entry]) -> dict[bytes, str]:
    """Those of the files in `stage` whose content is not the announced one, each with the reason: they are removed.

    What did not come, or is of another size or time, is for `check_staged` to say.
    """
    failed: dict[bytes, str] = {}
    for entry in entries:
        try:
            digest = _digest_staged(stage, entry)
        except (NearpathError, FileNotFoundError):
            continue
        except OSError as error:
            failed[entry.path] = f"it cannot be read here: {error.strerror}"
        else:
            if digest is None or digest == entry.digest:
                continue
            failed[entry.path] = WRONG_CONTENT
        with Below(stage) as below:
            directory, name = below.at(entry.path)
            os.unlink(name, dir_fd=directory)
    return failed


def _digest_staged(stage: bytes, entry: Entry) -> bytes | None:
    """The digest of what lies there as it was announced; None when it is something else."""
    try:
        read = digest_below(stage, entry.path, _is_entry(entry), _go_on)
    except PermissionError:
        # Its mode lets others read it, but not its owner: us.
        with Below(stage) as below:
            directory, name = below.at(entry.path)
            mode = stat.S_IMODE(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
            set_mode(directory, name, mode | stat.S_IRUSR)
            try:
                read = digest_below(stage, entry.path, _is_entry(entry), _go_on)
            finally:
                set_mode(directory, name, mode)
    return read[0] if read is not None else None


def undigested(entries: Iterable[Entry]) -> dict[bytes, str]:
    """Files of a sealed tree that were announced without a digest: nothing is taken for their content."""
    return {entry.path: NO_DIGEST for entry in entries if entry.kind is Kind.FILE and entry.digest is None}
