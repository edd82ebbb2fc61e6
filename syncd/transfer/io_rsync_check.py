"""Whether the rsync that is here can be trusted: a small real transfer before the first large one.

Releases of rsync did break what syncd needs: names refused as unrequested with --files-from (3.2.4 to 3.2.6),
--delete-missing-args with --files-from (a security fix, and its backports to Debian's and Ubuntu's 3.2.7, 2026).
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence

from syncd.transfer.io_rsync import environment, own_ids
from syncd.transfer.rsync import (
    Arrived,
    Connector,
    Fault,
    Options,
    Result,
    RsyncError,
    Verdict,
    daemon_command,
    daemon_config,
    files_from,
    judge,
    parse_line,
    pull_arguments,
    rsh_argument,
)

OLDEST = (3, 1, 3)
"""The first with --modify-window=-1 (times compared to the nanosecond); 2018."""
PATIENCE_S = 30.0

ODD_NAMES = (b"new\nline", b"-dash", b"\xff\xfe", b"x" * 255, b"a b", b"[a]*?", b"#hash", b"\\#012", b"sub/;c")


def check_binary(binary: str = "rsync") -> list[str]:
    """What is wrong with the rsync that is here, in words; empty when it does all that syncd wants of it.

    A real transfer of a few small files in a temporary directory, 0.2 s: odd names, hard links against a basis, a file
    that is not there, and deletion of missing ones. RsyncError when it cannot be used at all.
    """
    version = _version(binary)
    if version < OLDEST:
        text = ".".join(map(str, version))
        raise RsyncError(f"{binary} is version {text}", f"syncd needs {'.'.join(map(str, OLDEST))} or newer")
    with tempfile.TemporaryDirectory(prefix="syncd-check-") as home:
        parent, stage = os.path.join(home, "parent"), os.path.join(home, "stage")
        for name in ODD_NAMES:
            place = os.path.join(os.fsencode(parent), name)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(name * 2)
        os.link(os.path.join(parent, "-dash"), os.path.join(parent, "link"))
        os.mkdir(stage)
        config = os.path.join(home, "rsyncd.conf")
        with open(config, "w", encoding="utf-8") as text_file:
            text_file.write(daemon_config("check", parent, owner=own_ids()))
        shell = rsh_argument(daemon_command(config, binary))
        transport = Connector(("sh", "-c", f"exec {shell}"), "check")
        options = Options(binary=binary)
        return [
            *_check_pull(transport, options, parent, stage),
            *_check_delete(options, home, parent, stage),
        ]


def _check_pull(transport: Connector, options: Options, parent: str, stage: str) -> list[str]:
    arguments = pull_arguments(transport, options, stage)
    result = _transfer(arguments, [*ODD_NAMES, b"link", b"missing"])
    wrong = [f"{name!r} is not transferred: {why}" for name, why in result.failed.items()]
    for name in sorted(result.arrived):
        with open(os.path.join(os.fsencode(parent), name), "rb") as sent:
            content = sent.read()
        try:
            with open(os.path.join(os.fsencode(stage), name), "rb") as came:
                good = came.read() == content
        except FileNotFoundError:
            good = False
        if not good:
            wrong.append(f"{name!r} is said to be transferred, and is not")
    if result.verdict is not Verdict.PARTIAL or result.vanished != {b"missing"}:
        wrong.append(f"a file that is not there is not told apart: {result.verdict.value}, {result.text}")
    elif not wrong and not os.path.samefile(os.path.join(stage, "-dash"), os.path.join(stage, "link")):
        wrong.append("hard links become copies: `hard_links` cannot be kept with this rsync")
    return wrong


def _check_delete(options: Options, home: str, parent: str, stage: str) -> list[str]:
    """Whether pushes can delete; and whether a basis is linked to."""
    basis = os.path.join(home, "basis-check")
    os.mkdir(basis)
    local = [options.binary, "-pt", "--from0", "--files-from=-", f"--link-dest={parent}/", parent + "/", basis + "/"]
    _transfer(local, [b"a b"])
    wrong = []
    if not os.path.exists(f"{basis}/a b") or not os.path.samefile(f"{basis}/a b", f"{parent}/a b"):
        wrong.append("--link-dest does not link: files that are here already are transferred again")
    with open(os.path.join(stage, "gone"), "wb"):
        pass
    delete = [options.binary, "-pt", "--from0", "--files-from=-", "--delete-missing-args", parent + "/", stage + "/"]
    _transfer(delete, [b"gone", b"a b"])
    if os.path.exists(os.path.join(stage, "gone")) or not os.path.exists(os.path.join(stage, "a b")):
        wrong.append("--delete-missing-args with --files-from is broken: `push` cannot delete; pulling is not affected")
    return wrong


def _transfer(arguments: Sequence[str], paths: Sequence[bytes]) -> Result:
    done = _call(arguments, files_from(paths))
    said = [parse_line(line) for line in re.split(rb"[\r\n]", done.stdout + b"\n" + done.stderr) if line]
    arrived = [what.path for what in said if isinstance(what, Arrived)]
    return judge(paths, arrived, [what for what in said if isinstance(what, Fault)], done.returncode)


def _version(binary: str) -> tuple[int, ...]:
    found = re.search(rb"rsync +version v?(\d+)\.(\d+)\.(\d+)", _call([binary, "--version"], b"").stdout)
    if found is None:
        raise RsyncError(f"{binary} does not say its version", "is it rsync? (openrsync is not enough)")
    return tuple(int(part) for part in found.groups())


def _call(arguments: Sequence[str], data: bytes) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            arguments, input=data, capture_output=True, env=environment(), timeout=PATIENCE_S, check=False
        )
    except (FileNotFoundError, PermissionError) as error:
        raise RsyncError(
            f"{arguments[0]} cannot be run: {error.strerror}", "install rsync (Debian: apt install rsync)"
        ) from None
    except subprocess.TimeoutExpired:
        raise RsyncError(f"{arguments[0]} does not end", f"it took more than {PATIENCE_S:.0f} s over nothing") from None
