"""A plain rsync server as a parent: what a dry run of rsync says is different, as changes.

There is no journal and no manifest there. rsync itself compares its list with our tree (size, mtime, mode, target), tells
each difference in a line, and is believed. It tells and compares times in whole seconds: directories and symlinks get
those, files that are fetched come with the real ones.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from syncd.model import UNTOLD, Change, Entry, Kind, Op, check_path
from syncd.source.row import held_ns
from syncd.transfer.rsync import Fault, Rsyncd, Ssh, parse_line, place_argument, shell_arguments, unescape

LOOK_FORMAT = "np:%i %l %B %M <%n>%L"

_HEAD = rb"np:(\S+) +(\d{1,18}) ([-rwxsStT]{9}) (\S+) "
LINE = re.compile(_HEAD + rb"<(.*)>", re.DOTALL)
_LINK_LINE = re.compile(_HEAD + rb"<(.*?)>( -> .*)?", re.DOTALL)
"""Only a symlink has an arrow behind its name; in any other name `> -> ` is part of it."""
_KINDS = {b"f": Kind.FILE, b"d": Kind.DIRECTORY, b"L": Kind.SYMLINK}


def transport_of(place: str, password_file: str = "") -> Ssh | Rsyncd:
    """How rsync reaches `USER@HOST:/PATH` or `rsync://[USER@]HOST[:PORT]/MODULE[/PATH]`."""
    if not place.startswith("rsync://"):
        user_host, _, path = place.partition(":")
        return Ssh(user_host, path)
    url = urlsplit(place)
    return Rsyncd(url.hostname or "", url.path.strip("/"), url.port or 873, password_file, url.username or "")


def look_arguments(
    transport: Ssh | Rsyncd, root: str, exclude: Sequence[str] = (), binary: str = "rsync", timeout_s: int = 60
) -> list[str]:
    """The dry run that tells what is different between the server and the directory `root`."""
    arguments = [binary, "-rlptn", "--delete", "-i", f"--out-format={LOOK_FORMAT}", f"--timeout={timeout_s}"]
    left_out = [f"--exclude={pattern}" for pattern in exclude]
    return [*arguments, *left_out, *shell_arguments(transport), place_argument(transport), root.rstrip("/") + "/"]


def parse_look(lines: Iterable[bytes], with_deletes: bool) -> list[Change]:
    """Changes of a dry run, in the form of a comparison: UPSERT and DELETE with sequence 0.

    `with_deletes` False (rsync did not end well): what is missing there may only not have been listed. PathError for a
    name that no sound server sends.
    """
    changes: list[Change] = []
    for line in lines:
        found = (_LINK_LINE if line[4:5] == b"L" else LINE).fullmatch(line)
        if found is None:
            continue
        item, size, bits, when, name = found.groups()[:5]
        path = check_path(relative(name))
        if item == b"*deleting":
            changes += [Change(0, Op.DELETE, path)] * (with_deletes and bool(path))
            continue
        kind = _KINDS.get(item[1:2])
        if kind is None:
            continue  # devices, sockets and fifos are not replicated
        target = unescape((found.groups()[5] or b"")[4:]) if kind is Kind.SYMLINK else b""
        length, mtime_ns = (int(size), UNTOLD) if kind is Kind.FILE else (0, _time_ns(when))
        changes.append(Change(0, Op.UPSERT, path, Entry(path, kind, _mode(bits), length, mtime_ns, target)))
    return changes


def relative(name: bytes) -> bytes:
    """The path below the tree that rsync means by a name; b"" for the root."""
    path = unescape(name).rstrip(b"/").removeprefix(b"./")
    return b"" if path == b"." else path


def _time_ns(text: bytes) -> int:
    """Nanoseconds of `2026/11/23-20:20:01` (UTC); UNTOLD for what is no time."""
    try:
        at = datetime.strptime(text.decode("ascii"), "%Y/%m/%d-%H:%M:%S").replace(tzinfo=UTC)
    except ValueError:
        return UNTOLD
    return held_ns(int(at.timestamp()) * 1_000_000_000)


def _mode(bits: bytes) -> int:
    """0o644 of `rw-r--r--`; s, S, t and T as ls(1) has them."""
    mode = 0
    for i, letter in enumerate(bits.decode("ascii")):
        if letter not in "-ST":
            mode |= 0o400 >> i
        if letter in "sStT":
            mode |= (0o4000, 0o2000, 0o1000)[i // 3]
    return mode


# --- what could not be listed -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Look:
    """What a dry run found different. With `unread`, or when not `is_settled`, without deletes: rsync skips them, too."""

    changes: Sequence[Change]
    unread: tuple[Fault, ...] = ()
    """what could not be listed, there or here: nothing is known of what lies at or below it"""
    why: str = ""
    """the same, for people, with what to do"""
    is_settled: bool = True
    """False: names vanished while they were listed, so it is worth another look"""


_ROLE = re.compile(rb"rsync: \[(?:receiver|generator)\]", re.IGNORECASE)
_OF_ROOT = ("change_dir", "link_stat")
"""What rsync calls only for the directory that it was asked for, not for what is in it."""


def parse_unread(wrong: bytes) -> tuple[Fault, ...]:
    """What a dry run that ended with code 23 could not list, of its standard error; at least one."""
    faults = [fault for line in wrong.splitlines() if isinstance(fault := parse_line(line), Fault)]
    named = [fault for fault in faults if fault.path and (not fault.vanished or is_of_root(fault))]
    if named:
        return tuple(named)
    last = [line.decode("utf-8", "replace") for line in wrong.splitlines() if line.strip()][-1:]
    return (Fault(b"", faults[0].why if faults else last[0] if last else "rsync does not say what"),)


def is_of_root(fault: Fault) -> bool:
    """Whether nothing at all could be listed."""
    return fault.why.startswith(_OF_ROOT)


def unread_text(place: str, unread: Sequence[Fault], wrong: bytes) -> tuple[str, str]:
    """(what, fix) for people, of a listing that is not whole; `wrong` as for `parse_unread`."""
    first = unread[0]
    some = f"{first.path.decode('utf-8', 'backslashreplace')!r}: {first.why}" if first.path else first.why
    more = f", and {len(unread) - 1:,} more" if len(unread) > 1 else ""
    is_here = any(_ROLE.match(line) for line in wrong.splitlines())
    who = "this node's user" if is_here else "the rsync there (its `uid`, or the ssh user)"
    return (
        f"{place} cannot be {'compared' if is_here else 'listed'} as a whole: {some}{more}",
        f"let {who} read it{'' if is_here else ', or leave it out: there, or here by `exclude`'}; until then nothing is "
        "deleted here, and this copy is not current",
    )
