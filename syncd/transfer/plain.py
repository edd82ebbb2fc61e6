"""A plain rsync server as a parent: what a dry run of rsync says is different, as changes.

There is no journal and no manifest there. rsync itself compares its list with our tree (size, mtime, mode, target), tells
each difference in a line, and is believed. Times come in whole seconds, and so are not used: the file that is fetched
has the real one. Directories and symlinks get no mtime this way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from syncd.model import UNTOLD, Change, Entry, Kind, Op, check_path
from syncd.transfer.rsync import Rsyncd, Ssh, rsh_argument, unescape

MARK = b"np:"
LOOK_FORMAT = "np:%i %l %B <%n>%L"

_LINE = re.compile(rb"np:(\S+) +(\d+) ([-rwxsStT]{9}) <(.*)>", re.DOTALL)
_LINK_LINE = re.compile(rb"np:(\S+) +(\d+) ([-rwxsStT]{9}) <(.*?)>( -> .*)?", re.DOTALL)
"""Only a symlink has an arrow behind its name; in any other name `> -> ` is part of it."""
_KINDS = {b"f": Kind.FILE, b"d": Kind.DIRECTORY, b"L": Kind.SYMLINK}


def transport_of(place: str, password_file: str = "") -> Ssh | Rsyncd:
    """How rsync reaches `USER@HOST:/PATH` or `rsync://HOST[:PORT]/MODULE[/PATH]`."""
    if not place.startswith("rsync://"):
        user_host, _, path = place.partition(":")
        return Ssh(user_host, path)
    url = urlsplit(place)
    return Rsyncd(url.hostname or "", url.path.strip("/"), url.port or 873, password_file)


def look_arguments(transport: Ssh | Rsyncd, root: str, binary: str = "rsync", timeout_s: int = 60) -> list[str]:
    """The dry run that tells what is different between the server and the directory `root`."""
    arguments = [binary, "-rlptnOJ", "--delete", "-i", f"--out-format={LOOK_FORMAT}", f"--timeout={timeout_s}"]
    if isinstance(transport, Ssh):
        source = f"{transport.user_host}:{transport.path.rstrip('/')}/"
        arguments.append("--rsh=" + rsh_argument(transport.command))
    else:
        host = f"[{transport.host}]" if ":" in transport.host else transport.host
        source = f"rsync://{host}:{transport.port}/{transport.module}/"
        arguments += [f"--password-file={transport.password_file}"] if transport.password_file else []
    return [*arguments, source, root.rstrip("/") + "/"]


def parse_look(lines: Iterable[bytes], with_deletes: bool) -> list[Change]:
    """Changes of a dry run, in the form of a comparison: UPSERT and DELETE with sequence 0.

    `with_deletes` False (rsync did not end well): what is missing there may only not have been listed. PathError for a
    name that no sound server sends.
    """
    changes: list[Change] = []
    for line in lines:
        found = (_LINK_LINE if line[4:5] == b"L" else _LINE).fullmatch(line)
        if found is None:
            continue
        item, size, bits, name = found.groups()[:4]
        path = unescape(name).rstrip(b"/").removeprefix(b"./")
        if path in (b"", b"."):
            continue
        check_path(path)
        if item == b"*deleting":
            changes += [Change(0, Op.DELETE, path)] * with_deletes
            continue
        kind = _KINDS.get(item[1:2])
        if kind is None:
            continue  # devices, sockets and fifos are not replicated
        target = unescape((found.groups()[4] or b"")[4:]) if kind is Kind.SYMLINK else b""
        length = int(size) if kind is Kind.FILE else 0
        changes.append(Change(0, Op.UPSERT, path, Entry(path, kind, _mode(bits), length, UNTOLD, target)))
    return changes


def _mode(bits: bytes) -> int:
    """0o644 of `rw-r--r--`; s, S, t and T as ls(1) has them."""
    mode = 0
    for i, letter in enumerate(bits.decode("ascii")):
        if letter not in "-ST":
            mode |= 0o400 >> i
        if letter in "sStT":
            mode |= (0o4000, 0o2000, 0o1000)[i // 3]
    return mode
