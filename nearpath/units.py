"""`nearpath install-units`: places the systemd units so that they fit this installation, and keeps local changes.

Each file that is placed carries a mark with the hash of its own text. A file whose text still fits its mark was not
touched since, and may be replaced by a newer one; any other was changed by the administrator and is kept.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from core.errors import NearpathError
from nearpath.shipped import find_shipped

_SHIPPED_BIN = "/opt/nearpath/bin/"
"""The units in configs/systemd/ are whole and valid with this place; it is replaced by where the commands really are."""

_MARK = "# Placed by `nearpath install-units`; local changes belong in a drop-in (systemctl edit). sha256="
_MARK_RE = re.compile(re.escape(_MARK) + r"([0-9a-f]{64})\n")

_USER_RE = re.compile(r"[a-z_][a-z0-9_-]{0,30}")

_FOLDERS = {
    # From -> to. /etc and not /usr/lib: these are placed by the administrator, not by a Debian package.
    "": "etc/systemd/system",
    "sysusers.d": "etc/sysusers.d",
    "sysctl.d": "etc/sysctl.d",
    "tmpfiles.d": "etc/tmpfiles.d",
}

_HIDDEN = {
    "/root": "ProtectHome=yes",
    "/home": "ProtectHome=yes",
    "/run/user": "ProtectHome=yes",
    "/tmp": "PrivateTmp=yes",
    "/var/tmp": "PrivateTmp=yes",
}


@dataclass(frozen=True, slots=True)
class UnitFile:
    """A file to be placed: where (relative to the root of the file system) and its text, without the mark."""

    target: PurePosixPath
    text: str


class Action(Enum):
    """What is done with one file."""

    NEW = "new"
    UPDATE = "update"
    SAME = "same"
    KEEP = "kept, it was changed here"
    OVERWRITE = "overwrite, your change is kept beside it as .old"


@dataclass(frozen=True, slots=True)
class Step:
    """One file and what is to be done with it."""

    path: Path
    action: Action
    text: str


def render_units(bin_dir: Path, user: str | None = None) -> list[UnitFile]:
    """The shipped units with the commands in `bin_dir`; with `user`, all daemons run as that existing user.

    Raises NearpathError when `user` is no user name or a shipped file is missing.
    """
    if user is not None and not _USER_RE.fullmatch(user):
        raise NearpathError(f"{user!r} is not a user name", "use lower-case letters, digits, - and _, at most 31")
    if re.search(r"[\s\"'\\%$]", str(bin_dir)):
        raise NearpathError(
            f"{bin_dir} holds characters that mean something in a unit", "install nearpath under a plain path"
        )
    source = find_shipped("systemd")
    files = []
    for folder, target in _FOLDERS.items():
        if user is not None and folder == "sysusers.d":
            continue
        for file in sorted((source / folder).iterdir()):
            if not file.is_file():
                continue
            text = file.read_text("utf-8").replace(_SHIPPED_BIN, f"{bin_dir}/")
            if user is not None:
                text = re.sub(r"(?m)^(User|Group)=.*$", rf"\1={user}", text)
                text = re.sub(r"(?m)^(d +\S+ +\d+) .*$", rf"\1 {user} {user} -", text)
            files.append(UnitFile(PurePosixPath(target, file.name), text))
    return files


def plan_units(files: Sequence[UnitFile], root: Path, *, force: bool = False) -> list[Step]:
    """What placing `files` under `root` would do; nothing is written. NearpathError for a file that cannot be read."""
    return [_plan(root / file.target, file.text, force) for file in files]


def _plan(path: Path, text: str, force: bool) -> Step:
    try:
        present = path.read_text("utf-8", "replace")
    except FileNotFoundError:
        return Step(path, Action.NEW, text)
    except OSError as error:
        raise NearpathError(f"cannot read {path}: {error.strerror}", "run it as root, or with --root DIR") from None
    if present == marked(text):
        return Step(path, Action.SAME, text)
    if is_untouched(present):
        return Step(path, Action.UPDATE, text)
    return Step(path, Action.OVERWRITE if force else Action.KEEP, text)


def marked(text: str) -> str:
    """`text` with the mark as its first line."""
    return f"{_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def is_untouched(present: str) -> bool:
    """Whether a file is as some version of install-units placed it."""
    match = _MARK_RE.match(present)
    return match is not None and hashlib.sha256(present[match.end() :].encode()).hexdigest() == match[1]


def place_units(steps: Sequence[Step]) -> None:
    """Carry the steps out, each file whole or not at all; NearpathError at the first that cannot be written."""
    for step in steps:
        if step.action in (Action.SAME, Action.KEEP):
            continue
        try:
            step.path.parent.mkdir(parents=True, exist_ok=True)
            if step.action is Action.OVERWRITE:
                os.replace(step.path, step.path.with_name(step.path.name + ".old"))
            _write_whole(step.path, marked(step.text))
        except OSError as error:
            raise NearpathError(
                f"cannot write {step.path}: {error.strerror}", "run it as root, or with --root DIR to write elsewhere"
            ) from None


def _write_whole(path: Path, text: str) -> None:
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(text)
            os.fchmod(stream.fileno(), 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def commands_of(files: Sequence[UnitFile]) -> list[Path]:
    """The programs that the units start."""
    found = [Path(match) for file in files for match in re.findall(r"(?m)^ExecStart=(\S+)", file.text)]
    return sorted(set(found))


def find_obstacles(files: Sequence[UnitFile], needed: Sequence[Path] = ()) -> list[str]:
    """Why the units could not start their programs here: missing ones, and places that the hardening hides.

    `needed` are further files and folders that the programs read (the interpreter, an editable checkout).
    """
    commands = commands_of(files)
    obstacles = [f"{command} is not there or not executable" for command in commands if not os.access(command, os.X_OK)]
    for path in dict.fromkeys([*commands, *needed]):
        for hidden, setting in _HIDDEN.items():
            if path.is_relative_to(hidden):
                obstacles.append(f"{path} is hidden from the daemons: {setting} in the units covers {hidden}")
    return obstacles


def this_installation() -> tuple[Path, list[Path]]:
    """(folder of this environment's commands, what else its programs read: interpreter, standard library, our code)."""
    ours = Path(__file__).resolve().parent.parent
    return Path(sysconfig.get_path("scripts")), [
        Path(sys.executable).resolve(),
        Path(os.__file__).resolve().parent,
        ours,
    ]


def next_steps(steps: Sequence[Step], root: Path, user: str | None = None) -> list[str]:
    """What the administrator does now, as lines to print; commands are indented."""
    lines = []
    if kept := [step for step in steps if step.action is Action.KEEP]:
        lines.append("Kept because they were changed here (see the difference, or replace them with --force):")
        lines += [f"  {step.path}" for step in kept]
    if root != Path("/"):
        return [
            *lines,
            f"Written under {root}. A machine that boots from it creates the users and applies the setting by itself;",
            "then enable what it is for: systemctl enable --now nearpath, probe-agent, syncd, or local-infer.",
        ]
    agent, mirror, gateway = user or "nearpath-agent", user or "nearpath-sync", user or "nearpath-infer"
    lines.append("Now, as root:")
    if user is None:
        lines.append("  systemd-sysusers")
    lines.append(
        "  systemd-tmpfiles --create nearpath.conf # syncd's state_dir, for `syncd key` before its first start"
    )
    lines += [
        "  systemctl restart systemd-sysctl        # lets the agent send ICMP echo without rights",
        "  systemctl daemon-reload",
        "On the appliance, with /etc/nearpath/nearpath.yaml in place (state_dir: /var/lib/nearpath):",
        "  systemctl enable --now nearpath",
        "In each region, with /etc/nearpath/agent.yaml in place (state_dir: /var/lib/nearpath-agent):",
        f"  install -o {agent} -m 0400 TOKEN_FILE /etc/nearpath/agent.token",
        "  systemctl enable --now probe-agent",
        "On each mirror node, with /etc/nearpath/syncd.yaml in place (state_dir: /var/lib/nearpath-sync):",
        f"  install -o {mirror} -m 0400 TOKEN_FILE /etc/nearpath/syncd.token",
        f"  install -d -o {mirror} /srv/mirror      # or where the trees are, with ReadWritePaths in a drop-in",
        "  systemctl enable --now syncd",
        "For the API gateway there, with /etc/nearpath/local-infer.yaml in place (state_dir: /var/lib/nearpath-infer):",
        f"  install -o {gateway} -m 0400 KEY_FILE /etc/nearpath/east.key      # an upstream's key, as the file names it",
        "  systemctl enable --now local-infer",
        "dnsd.service is for answering DNS in a process of its own (docs/systemd.md); nearpath.service answers by itself.",
    ]
    return lines


def install(
    root: Path = Path("/"),
    user: str | None = None,
    *,
    bin_dir: Path | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Place the units of this installation (or of `bin_dir`) under `root`; returns the lines to print.

    Into a root other than `/` they are written unseen: whether the commands are there is known only on that machine.
    Raises NearpathError when the daemons could not start from here, or when a file cannot be read or written.
    """
    here, needed = this_installation()
    files = render_units(bin_dir or here, user)
    obstacles = find_obstacles(files, [] if bin_dir else needed) if root == Path("/") else []
    if obstacles and not dry_run:
        raise NearpathError(
            "the units could not start from this installation:\n" + "\n".join(f"  {text}" for text in obstacles),
            "install nearpath where daemons may read it, such as a virtual environment in /opt/nearpath made by "
            "/usr/bin/python3, and run its bin/nearpath install-units",
        )
    steps = plan_units(files, root, force=force)
    if not dry_run:
        place_units(steps)
    lines = [f"{step.action.value:7} {step.path}" for step in steps]
    if dry_run:
        return ["Nothing was written (--dry-run).", *lines, *(f"Obstacle: {text}" for text in obstacles)]
    return [*lines, *next_steps(steps, root, user)]
