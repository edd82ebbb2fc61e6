"""rsync: what it is told and what its words and exit codes mean, path by path.

Every path goes by `--files-from=- --from0`, so no name is ever an argument, a pattern or a line. rsync never deletes for
us, never recurses and never makes symlinks: it brings files into a private staging directory, and `publish` does the
rest. Options are those of rsync(1), exit codes those of its EXIT VALUES; what it prints was looked at in 3.5.0.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from core.errors import NearpathError

PARTIAL_DIR = ".~partial~"
"""Inside staging, beside the file: what a cut transfer got so far, and goes on from. See `Options.partial`."""
MARK = "np:"
OUT_FORMAT = f"{MARK}%i %b %l %n"
"""With %b (bytes sent) in it, rsync prints the line when the file is whole, not when it begins."""
UNLIKE_FORMAT = "np:%i %n"
UNREADABLE = "it cannot be read at the parent"
REFUSES = "this rsync wrongly refuses it, or a directory above it"
"""Known of 3.2.4 to 3.5.0, of paths of over 2,000 bytes in each other: with exit code 4, and nothing is transferred."""
MAX_ERRORS_KEPT = 10_000


class RsyncError(NearpathError):
    """rsync cannot be used as it was asked to be: not there, too old, broken, or a name it cannot be given."""


# --- where from and to --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connector:
    """Our own connector as rsync's remote shell; at the other end runs `daemon_command` on a read-only module."""

    command: tuple[str, ...]
    module: str
    host: str = "parent"


@dataclass(frozen=True, slots=True)
class Ssh:
    """An sshd at the other end; `command` with its options. `path` is absolute there."""

    user_host: str
    path: str
    command: tuple[str, ...] = ("ssh", "-oBatchMode=yes", "-oServerAliveInterval=15")


@dataclass(frozen=True, slots=True)
class Rsyncd:
    """An rsync daemon at the other end."""

    host: str
    module: str
    port: int = 873
    password_file: str = ""
    user: str = ""
    """whom it asks a password of; "": rsync takes the login it runs under"""


Transport = Connector | Ssh | Rsyncd


@dataclass(frozen=True, slots=True)
class Options:
    """How a transfer is made. `basis`: the published tree, whose files save transfers; it is only read and linked to."""

    hard_links: bool = True
    sparse: bool = False
    xattrs: bool = False
    acls: bool = False
    owners: bool = False
    compress: bool = False
    partial: str = PARTIAL_DIR
    """a name that nobody who can write into the tree knows: rsync refuses a whole batch with a file below it"""
    exact: bool = False
    """compare by content where size and time are equal, since a change is known to be there"""
    basis: str = ""
    limit_bytes_s: int = 0
    """0: no limit"""
    purse: str = ""
    """of `io_pace`: our connector keeps the limit that stands there; `limit_bytes_s` is the lowest it may be"""
    exclude: Sequence[str] = ()
    """where rsync lists a tree by itself: what it leaves out, and does not delete at the other end"""
    timeout_s: int = 60
    binary: str = "rsync"

    @classmethod
    def keeping(cls, keep: Collection[str]) -> Options:
        """What a tree's `keep` names is kept, the rest as by default."""
        return cls(
            hard_links="hard-links" in keep,
            sparse="sparse" in keep,
            xattrs="xattrs" in keep,
            acls="acls" in keep,
            owners="owners" in keep,
        )


def pull_arguments(transport: Transport, options: Options, stage: str) -> list[str]:
    """The command that brings the files listed on its standard input from `transport` to the directory `stage`."""
    here = ["--no-implied-dirs", "--omit-dir-times", f"--partial-dir={options.partial}", *_basis(options)]
    return [*_common(transport, options), *here, place_argument(transport), _directory(stage)]


def attribute_arguments(transport: Transport, options: Options, room: str) -> list[str]:
    """The command that brings the directories and symlinks listed on its standard input to `room`, with nothing in them.

    Directories may be entered by us there, whatever their mode is.
    """
    arguments = [
        *_attributes(options),
        "--links",
        "--no-implied-dirs",
        "--chmod=D0700",
        f"--timeout={options.timeout_s}",
    ]
    return [
        *arguments,
        "-ii",
        f"--out-format={OUT_FORMAT}",
        *shell_arguments(transport),
        place_argument(transport),
        _directory(room),
    ]


def unlike_arguments(transport: Transport, options: Options, root: str) -> list[str]:
    """The dry run that tells which of the paths listed on its standard input have other attributes below `root`."""
    arguments = [*_attributes(options), "--dry-run", "--links", "--size-only", f"--timeout={options.timeout_s}"]
    return [
        *arguments,
        "-i",
        f"--out-format={UNLIKE_FORMAT}",
        *shell_arguments(transport),
        place_argument(transport),
        _directory(root),
    ]


def _attributes(options: Options) -> list[str]:
    flags = "-p" + "X" * options.xattrs + "A" * options.acls + "og" * options.owners
    return [options.binary, flags, "--from0", "--files-from=-", *["--numeric-ids"] * options.owners]


def push_arguments(transport: Transport, options: Options, root: str, delete: bool = False) -> list[str]:
    """The command that brings the paths listed on its standard input from `root` to a plain mirror without a syncd.

    `delete`: listed paths that are no longer here are deleted there; only when `check_binary` found that this works.
    Files come into place one by one there, so payload and indexes are pushed by separate calls, in this order.
    """
    gone = ["--delete-missing-args", "--force"] if delete else []
    there = ["--links", "--delay-updates", *gone]
    return [*_common(transport, options), *there, _directory(root), place_argument(transport)]


def dry_arguments(arguments: Sequence[str], out_format: str) -> list[str]:
    """The command of a push, only to tell in lines of `out_format` what it would do."""
    return [*arguments[:-2], "--dry-run", f"--out-format={out_format}", *arguments[-2:]]


def whole_arguments(
    transport: Transport, options: Options, root: str, delete: bool = False, most: int | None = None
) -> list[str]:
    """The command that brings the whole of `root` to a plain mirror, however it stands to it; `most`: deletes at most."""
    common = [argument for argument in _common(transport, options) if argument not in ("--from0", "--files-from=-")]
    gone = ["--delete-delay", "--force"] if delete else []
    gone += [f"--max-delete={most}"] if delete and most is not None else []
    gone += [f"--exclude={pattern}" for pattern in options.exclude]
    return [*common, "--recursive", "--links", "--delay-updates", *gone, _directory(root), place_argument(transport)]


def _common(transport: Transport, options: Options) -> list[str]:
    flags = "-pt" + "H" * options.hard_links + "S" * options.sparse + "X" * options.xattrs + "A" * options.acls
    flags += "og" * options.owners + "z" * options.compress
    arguments = [options.binary, flags, "--from0", "--files-from=-", "--modify-window=-1"]
    arguments += ["--numeric-ids"] * options.owners
    arguments += ["--checksum"] * options.exact
    arguments += [f"--timeout={options.timeout_s}", "-ii", "--info=progress2", "--no-human-readable"]
    arguments += [f"--out-format={OUT_FORMAT}"]
    if options.limit_bytes_s and not options.purse:
        arguments.append(f"--bwlimit={max(1, options.limit_bytes_s // 1024)}")  # in KiB/s; 0 would mean no limit
    return arguments + shell_arguments(transport)


def shell_arguments(transport: Transport) -> list[str]:
    """What rsync needs to reach the other end."""
    if isinstance(transport, Connector | Ssh):
        return ["--rsh=" + rsh_argument(transport.command)]
    return [f"--password-file={transport.password_file}"] if transport.password_file else []


def _basis(options: Options) -> list[str]:
    # Absolute: relative ones are taken from the destination, and had regressions in several releases.
    if options.basis and not options.basis.startswith("/"):
        raise RsyncError(f"basis {options.basis!r} is a relative path", "name it from / on")
    return [f"--link-dest={_directory(options.basis)}"] if options.basis else []


def _directory(path: str) -> str:
    if not path.startswith("/"):
        raise RsyncError(f"{path!r} is a relative path", "name it from / on; what holds a colon would be a host")
    return path.rstrip("/") + "/"


def place_argument(transport: Transport) -> str:
    """The tree at the other end, as rsync is told of it."""
    match transport:
        case Connector(_, module, host):
            return f"{_plain(host)}::{_plain(module)}/"
        case Rsyncd(host, module, port):
            host = f"[{host}]" if ":" in host else host
            user = f"{_plain(transport.user)}@" if transport.user else ""
            return f"rsync://{user}{_plain(host)}:{port}/{_plain(module)}/"
        case Ssh(user_host, path):
            return f"{_plain(user_host)}:{_plain(path).rstrip('/')}/"


def _plain(text: str) -> str:
    """A word of the configuration that neither rsync nor a remote shell could take for anything else."""
    if not re.fullmatch(r"[\w@./\[\]:+%-]+", text) or text.startswith("-"):
        raise RsyncError(
            f"{text!r} cannot be used in an rsync address", "letters, digits and @ . / : _ + - are allowed"
        )
    return text


def rsh_argument(command: Sequence[str]) -> str:
    """One `--rsh` argument for a command: rsync splits it at spaces and knows both quotes, but no escapes."""
    words = []
    for word in command:
        quote = '"' if "'" in word else "'"
        if quote in word or "\0" in word:
            raise RsyncError(f"{word!r} has both kinds of quotes", "rsync's remote shell argument cannot say that")
        words.append(word if re.fullmatch(r"[\w@%+=:,./-]+", word) else quote + word + quote)
    return " ".join(words)


def files_from(paths: Iterable[bytes]) -> bytes:
    """What to write to the command's standard input: each path ends with NUL, the last one too (3.2.5 needs that)."""
    return b"".join([path + b"\0" for path in paths])


def daemon_command(config: str, binary: str = "rsync") -> list[str]:
    """What the parent runs on the stream of an authenticated child."""
    return [binary, "--server", "--daemon", f"--config={config}", "."]


_REFUSED_OPTIONS = (
    "delete",
    "remove-source-files",
    # A symlink is sent as what it is: releases before 3.4 follow one out of the tree, without chroot.
    "copy-links",
    "copy-dirlinks",
    "copy-unsafe-links",
)


def daemon_config(
    module: str, root: str, *, owner: tuple[int, int] | None = None, chroot: bool = False, exclude: Sequence[str] = ()
) -> str:
    """The configuration of `daemon_command`: one module, read-only, not listed.

    `owner`: (uid, gid) to serve as, when the parent runs as root: rsync would take `nobody` otherwise, who cannot read
    private files. `chroot`: with root only; without it rsync itself keeps requests inside the module.
    `exclude`: patterns as `core.exclude` has them.
    """
    for text in (module, root):
        # rsyncd.conf has no quoting: % begins a variable, a backslash at the end continues the line.
        if re.search(r"[\n\r%\\\0]", text) or text != text.strip() or not text:
            raise RsyncError(f"{text!r} cannot be written to an rsyncd.conf", "use a path without % and backslash")
    lines = ["use chroot = " + ("yes" if chroot else "no"), "log file = /dev/null", "max verbosity = 1"]
    lines += ["reverse lookup = no", "munge symlinks = no", "timeout = 300", f"[{module}]", f"path = {root}"]
    lines += ["read only = yes", "list = no", "numeric ids = yes", f"refuse options = {' '.join(_REFUSED_OPTIONS)}"]
    if exclude:
        # Here spaces set patterns apart, and % begins a variable: ? leaves out those, and a little more.
        lines.append("exclude = " + " ".join(re.sub(r"[\s%]", "?", pattern) for pattern in exclude))
    lines += [f"uid = {owner[0]}", f"gid = {owner[1]}"] if owner else []
    return "\n".join(lines) + "\n"


# --- what it says -------------------------------------------------------------------------------------------------------


class Verdict(Enum):
    """What an exit code means for a batch."""

    DONE = "done"
    PARTIAL = "partial"
    """some paths failed; the others are there"""
    AGAIN = "again"
    """the connection or the other side failed: what did not come is tried again"""
    LOCAL = "local"
    """this node's disk is full or refuses: nothing is tried until that is mended"""
    FATAL = "fatal"
    """it will not go better next time: configuration, or a program that is broken"""


NO_DATA = 30
EXIT_CODES: dict[int, tuple[Verdict, str]] = {
    0: (Verdict.DONE, "all was transferred"),
    1: (Verdict.FATAL, "rsync did not understand its options: its version is too old"),
    2: (Verdict.FATAL, "the two rsyncs do not understand each other"),
    3: (Verdict.LOCAL, "a directory could not be selected: check the tree's path and owner at both ends"),
    4: (Verdict.FATAL, "the other rsync refuses what was asked for, or lacks an option of this one"),
    5: (Verdict.AGAIN, "the rsync at the other end lets nobody in: module, user and password, or token"),
    6: (Verdict.AGAIN, "the daemon could not write its log"),
    10: (Verdict.AGAIN, "the connection failed"),
    11: (Verdict.LOCAL, "a file could not be written: the disk may be full"),
    12: (Verdict.AGAIN, "the connection broke in the middle"),
    13: (Verdict.AGAIN, "rsync's own messages could not be passed on"),
    14: (Verdict.FATAL, "the remote shell (our connector, or ssh) could not be started"),
    16: (Verdict.AGAIN, "a process of rsync was stopped by a signal"),
    19: (Verdict.AGAIN, "rsync was stopped by a signal"),
    20: (Verdict.AGAIN, "rsync was stopped"),
    21: (Verdict.AGAIN, "waiting for a process of rsync failed"),
    22: (Verdict.LOCAL, "rsync was out of memory: smaller batches, or more memory"),
    23: (Verdict.PARTIAL, "some files could not be transferred"),
    24: (Verdict.PARTIAL, "some files vanished before they could be transferred"),
    25: (Verdict.FATAL, "rsync stopped at its limit of deletions"),
    NO_DATA: (Verdict.AGAIN, "no data came for too long"),
    35: (Verdict.AGAIN, "the daemon did not answer in time"),
    127: (Verdict.FATAL, "the remote shell was not found"),
    255: (Verdict.AGAIN, "ssh failed"),
}


def meaning(code: int) -> tuple[Verdict, str]:
    """What an exit code of rsync means; a negative one is the signal that ended it. Unknown ones are tried again."""
    if code < 0:
        return Verdict.AGAIN, f"rsync was ended by signal {-code}"
    return EXIT_CODES.get(code, (Verdict.AGAIN, f"rsync ended with code {code}, which its manual does not have"))


@dataclass(frozen=True, slots=True)
class Arrived:
    """rsync is done with a path: `sent_bytes` over the network for a file of `size` bytes; 0: it was there already."""

    path: bytes
    sent_bytes: int
    size: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Bytes of this run that are there, and how many percent of what is known so far to be in it."""

    done_bytes: int
    percent: int


@dataclass(frozen=True, slots=True)
class Fault:
    """Something went wrong; `path` is below the tree or absolute as rsync said it, b"" when it is not about a path."""

    path: bytes
    why: str
    vanished: bool = False


_ESCAPE = re.compile(rb"\\#([0-3][0-7]{2})")
_ARRIVED = re.compile(MARK.encode() + rb"([<>ch.*][fdLDS]\S*) +(\d{1,18}) (\d{1,18}) (.*)", re.DOTALL)
_PROGRESS = re.compile(rb"\s*(\d{1,18})\s+(\d{1,3})%\s")
_PATH_FAULT = re.compile(
    rb'rsync: (?:\[\w+\] )?([^"]*?)\(?"(.*)"\)?( \(in [^"]*\))?(?: failed)?: ([^"]*)', re.DOTALL
)  # to the last quote: names may hold quotes, messages do not
_VANISHED = re.compile(rb'file has vanished: "(.*)"( \(in [^"]*\))?', re.DOTALL)
_SKIPPED = re.compile(rb'skipping (non-regular file|directory) "?(.*?)"?', re.DOTALL)
_REFUSED = re.compile(rb"ERROR: rejecting (?:unrequested|excluded) file-list name: (.*)", re.DOTALL)


def unescape(text: bytes) -> bytes:
    """A name as it is on disk: rsync writes bytes it would not print, and a backslash before `#`, as backslash-#-octal."""
    return _ESCAPE.sub(lambda found: bytes([int(found[1], 8)]), text)


def parse_line(line: bytes) -> Arrived | Progress | Fault | None:
    """What one line of rsync's output (stdout or stderr, ended by CR or LF) says; None when nothing we use."""
    if found := _ARRIVED.fullmatch(line):
        return Arrived(_clean(unescape(found[4])), int(found[2]), int(found[3]))
    if found := _PROGRESS.match(line):
        return Progress(int(found[1]), int(found[2]))
    if found := _VANISHED.fullmatch(line):
        return Fault(_clean(unescape(found[1])), "it vanished at the parent", vanished=True)
    if found := _SKIPPED.fullmatch(line):
        what = "directory" if found[1] == b"directory" else "special file or symlink"
        return Fault(_clean(unescape(found[2])), f"it is a {what} at the parent now")
    if found := _REFUSED.fullmatch(line):
        return Fault(_clean(unescape(found[1])), REFUSES)
    if found := _PATH_FAULT.fullmatch(line):
        why = found[4].decode("utf-8", "replace")
        gone = found[1].strip() == b"link_stat" and why.endswith("(2)")
        what = found[1].strip().decode("utf-8", "replace")
        if what == "send_files failed to open":
            return Fault(_clean(unescape(found[2])), f"{UNREADABLE}: {why}", vanished=gone)
        return Fault(_clean(unescape(found[2])), f"{what}: {why}", vanished=gone)
    if line.startswith((b"rsync: ", b"rsync error: ", b"@ERROR", b"ERROR", b"IO error")):
        return Fault(b"", line.decode("utf-8", "replace"))
    return None


_UNLIKE = re.compile(MARK.encode() + rb"[.<>ch*]([fdL])(\S+) (.*)", re.DOTALL)
_ATTRIBUTES = {4: "another owner", 5: "another group", 7: "another access control list", 8: "other extended attributes"}
"""Where rsync(1), under --itemize-changes, has `o`, `g`, `a` and `x`, from `c` on."""


def parse_unlike(line: bytes) -> tuple[bytes, str] | None:
    """(path, what is another) of a line of `unlike_arguments`; None when it tells of no attribute."""
    found = _UNLIKE.fullmatch(line)
    if found is None:
        return None
    words = [word for at, word in _ATTRIBUTES.items() if found[2][at : at + 1] not in (b".", b"+", b" ", b"")]
    return (_clean(unescape(found[3])), ", ".join(words)) if words else None


def _clean(path: bytes) -> bytes:
    return path.removeprefix(b"./").rstrip(b"/") if path != b"./" else b""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a batch: each path asked for is in exactly one of the three."""

    verdict: Verdict
    text: str
    arrived: frozenset[bytes]
    vanished: frozenset[bytes]
    """no longer at the parent: a later change in its journal says so, or says what it is now"""
    failed: dict[bytes, str]
    """to be tried again, each with the reason"""


def judge(asked: Iterable[bytes], arrived: Iterable[bytes], faults: Sequence[Fault], code: int) -> Result:
    """The outcome path by path. Exit code 23 or 24 is never success: what was not named as arrived has failed."""
    verdict, text = meaning(code)
    asked, named = frozenset(asked), frozenset(arrived)
    general = [fault.why for fault in faults if not fault.path]
    # The summary line says less than the line before it.
    reason = next((why for why in general if not why.startswith("rsync error: ")), "")
    why = f"{text}: {reason}" if reason else text
    if any("No space left on device" in f.why or "Disk quota exceeded" in f.why for f in faults):
        verdict, why = Verdict.LOCAL, "the disk is full"
    if verdict is Verdict.FATAL and any(fault.why == REFUSES for fault in faults):
        verdict, why = Verdict.PARTIAL, REFUSES
    by_path = {fault.path: fault for fault in faults if fault.path in asked}
    vanished = frozenset(path for path, fault in by_path.items() if fault.vanished)
    failed = {path: fault.why for path, fault in by_path.items() if not fault.vanished}
    if verdict is not Verdict.DONE:
        failed |= dict.fromkeys(asked - named - vanished - failed.keys(), why)
    elif vanished or failed:
        verdict = Verdict.PARTIAL  # what is skipped does not show in the exit code
    return Result(verdict, why, asked - vanished - failed.keys(), vanished, failed)
