"""Typed configuration of syncd: what may stand in the YAML file of a mirror node; the rules are those of `config.py`."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from core.config import Listen, Metrics, Name, Section, Tls
from core.exclude import Exclude
from core.units import Duration, Share, Size

Keep = Literal["hard-links", "sparse", "xattrs", "acls", "owners"]
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


def parse_clock(text: str) -> int:
    """Minute of the day of `08:30`, at most 24:00; ValueError otherwise."""
    found = re.fullmatch(r"([0-2][0-9]):([0-5][0-9])", text)
    minute = int(found[1]) * 60 + int(found[2]) if found else -1
    if not 0 <= minute <= 24 * 60:
        raise ValueError(f"{text!r} is not a time of day: write 00:00 to 24:00, in quotes")
    return minute


def _check_clock(text: str) -> str:
    parse_clock(text)
    return text


def _check_key(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise ValueError("is not a public key: the 64 hexadecimal digits that `syncd key` prints at the origin")
    return text


def _check_absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text or ".." in text.split("/"):
        raise ValueError(f"{text!r} is not an absolute path without `..`")
    return text.rstrip("/") or "/"


def _check_place(text: str) -> str:
    """A place as rsync writes it: `user@host:/path`, or `rsync://[user@]host[:port]/module[/path]`."""
    # A host that begins with a dash would be an option of ssh.
    ssh = re.fullmatch(r"(?!rsync://)(\w[\w.-]*@)?\w[\w.-]*:/[\w@./:+-]*", text)
    daemon = re.fullmatch(r"rsync://(\w[\w.-]*@)?\w[\w.-]*(:[0-9]{1,5})?/[\w.-]+(/[\w@./:+-]+)?", text)
    if re.match(r"rsync://[^/]*:[^/]*@", text):
        raise ValueError(
            "a password in it is neither hidden nor needed: it goes into `password_file`, only USER@ stays"
        )
    if not (ssh or daemon):
        raise ValueError(f"{text!r} is neither USER@HOST:/PATH nor rsync://HOST/MODULE (or rsync://USER@HOST/MODULE)")
    return text


def _check_pattern(text: str) -> str:
    Exclude([text])
    return text


def is_in_clear(url: str) -> bool:
    """Whether others could read what goes to `url`, tokens among it: http to another machine."""
    parts = urlsplit(url)
    try:
        is_near = ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        is_near = parts.hostname == "localhost"
    return parts.scheme == "http" and not is_near


def _check_parent_url(text: str) -> str:
    try:
        parts = urlsplit(text)
        well = bool(parts.hostname) and parts.port != 0
    except ValueError:
        well = False
    if not well or "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"{text!r} is not of the form https://HOST:PORT (who asks is told by node and token_file)")
    if is_in_clear(text):
        raise ValueError(f"{text} would show the token to everybody on the way: https:// (http is for loopback only)")
    return text


Clock = Annotated[str, AfterValidator(_check_clock)]
ParentUrl = Annotated[str, AfterValidator(lambda text: _check_parent_url(text) if text else text)]
PublicKey = Annotated[str, AfterValidator(_check_key)]
AbsolutePath = Annotated[str, AfterValidator(_check_absolute)]
Place = Annotated[str, AfterValidator(_check_place)]
Pattern = Annotated[str, AfterValidator(_check_pattern)]


class Child(Section):
    """A node that may pull from this one."""

    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="from `syncd token`")
    trees: list[Name] = Field(default_factory=list, max_length=1000, description="what it may have; default: all trees")


class Parent(Section):
    """A node that trees are pulled from: another syncd, or a plain rsync server of an existing fleet."""

    transport: Literal["nearpath", "ssh", "rsyncd"] = Field(default="nearpath", description="what answers there")
    url: ParentUrl = Field(default="", pattern=r"^(https?://[!-~]+)?$", description="of a syncd: https://HOST:PORT")
    token_file: str = Field(default="", description="file with this node's token for it, mode 0600")
    ca_file: str | None = Field(default=None, description="PEM file to trust instead of the system's certificates")
    place: Place | None = Field(
        default=None,
        description="for ssh: USER@HOST:/PATH; for rsyncd: rsync://USER@HOST/MODULE, without USER@ if it asks for none",
    )
    password_file: str = Field(default="", description="for rsyncd: file with the password, mode 0600")
    every: Duration = Field(default=300.0, ge=1, le=86400 * 7, description="for ssh and rsyncd: how often to look")

    @model_validator(mode="after")
    def _whole(self) -> Parent:
        if self.transport == "nearpath":
            if not self.url or not self.token_file:
                raise ValueError("a syncd needs `url` and `token_file` (or say `transport: ssh` or `rsyncd`)")
        elif self.place is None:
            raise ValueError(f"transport {self.transport} needs `place`")
        elif (self.transport == "rsyncd") != self.place.startswith("rsync://"):
            raise ValueError(f"place {self.place!r} does not fit transport {self.transport}")
        return self


class Deletes(Section):
    """A change that deletes more than this is held until `syncd approve`."""

    files: int = Field(default=10_000, ge=0, description="more entries than this at once")
    share: Share = Field(default=0.2, description="or more than this share of the tree")
    floor: int = Field(default=20, ge=0, description="so many are never held, however small the tree")


class Reserve(Section):
    """What stays free on the tree's file system: the larger of the two."""

    size: Size = Field(default=1 << 30, ge=0, description="this much")
    share: Share = Field(default=0.02, description="or this share of it")


class Bandwidth(Section):
    """A limit in a part of the day; the first that fits counts."""

    start: Clock = Field(default="00:00", description="from this local time")
    end: Clock = Field(default="24:00", description="to this one; over midnight when it is the earlier")
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] = Field(
        default_factory=list, max_length=7, description="only on these days (of the start); default: all"
    )
    per_second: Size = Field(description="this much a second, over all streams; 0B is no limit")

    def window(self) -> tuple[int, int, frozenset[int]]:
        """(start, end) in minutes of the day, and the days (0 is Monday)."""
        return parse_clock(self.start), parse_clock(self.end), frozenset(_DAYS.index(day) for day in self.days)


class Hooks(Section):
    """Commands of the operator around a publish: a list of words each, no shell."""

    before: list[str] = Field(default_factory=list, max_length=64, description="before; not zero puts it off")
    after: list[str] = Field(default_factory=list, max_length=64, description="after; not zero is only reported")
    timeout: Duration = Field(default=60.0, gt=0, le=3600, description="ended after this")


class Push(Section):
    """A plain mirror without a syncd that this node brings its tree to with rsync."""

    to: Place = Field(description="USER@HOST:/PATH, or rsync://USER@HOST/MODULE")
    password_file: str = Field(default="", description="for rsync://: file with the password, mode 0600")
    delete: bool = Field(default=True, description="also delete there what is gone here")


class Tree(Section):
    """A tree on this node: its origin (the truth is on this disk), or a copy pulled from a parent."""

    path: AbsolutePath = Field(description="what clients are served")
    parents: list[Name] = Field(
        default_factory=list,
        max_length=32,
        description="where it is pulled from, the nearest healthy one; empty: origin",
    )
    public_key: PublicKey | None = Field(
        default=None, description="of the origin, from `syncd key`; copies of a syncd need it"
    )
    key_file: str = Field(default="", description="the origin's secret key; default: made in state_dir")
    mode: Literal["live", "atomic"] = Field(
        default="live", description="live: file by file, in order; atomic: whole versions behind a symlink"
    )
    indexes: list[str] = Field(
        default_factory=list,
        max_length=256,
        description="globs of files that name others (repodata/*, InRelease): published after them, in this order",
    )
    exclude: list[Pattern] = Field(
        default_factory=list,
        max_length=256,
        description="left out here, in the patterns of rsync's --exclude; what lies under such names at a copy stays",
    )
    work: AbsolutePath | None = Field(
        default=None,
        description="private directory on the same file system; default: .NAME.syncd beside path, NAME being its last part",
    )
    keep: list[Keep] = Field(default_factory=list, description="kept besides content, mode, mtime and symlinks")
    watch: Literal["auto", "inotify", "fanotify"] = Field(
        default="auto", description="for an origin: how changes are noticed; auto: fanotify where it is allowed"
    )
    contents: Literal["unsigned", "signed"] = Field(
        default="unsigned",
        description="for an origin: signed: the signature covers contents too, each is read once when it changes",
    )
    cross_mounts: bool = Field(default=False, description="for an origin: enter file systems mounted below path")
    sweep: Duration = Field(default=86400.0, ge=60, description="for an origin: every name is looked at this often")
    scrub: Duration = Field(default=30 * 86400.0, ge=60, description="every content is read and compared this often")
    deletes: Deletes = Deletes()
    reserve: Reserve = Reserve()
    bandwidth: list[Bandwidth] = Field(default_factory=list, max_length=64, description="limits by time of day")
    streams: int = Field(default=3, ge=1, le=4, description="rsyncs at once")
    compress: bool = Field(default=False, description="rsync -z")
    poll: Duration = Field(default=5.0, ge=0.5, le=60, description="a request waits this long for a change")
    grace: Duration = Field(default=3600.0, ge=0, description="for atomic: old versions are kept for this")
    hooks: Hooks = Hooks()
    push: dict[Name, Push] = Field(default_factory=dict, description="plain mirrors to bring it to")

    @model_validator(mode="after")
    def _whole(self) -> Tree:
        if self.path == "/":
            raise ValueError("path: the whole disk cannot be a tree")
        if not self.parents and self.mode == "atomic":
            raise ValueError("mode atomic is for copies: an origin publishes whatever is written into it")
        if self.parents and self.contents == "signed":
            raise ValueError("contents: signed is for an origin: its copies compare contents by themselves")
        if self.work is not None and (self.work + "/").startswith(self.path + "/"):
            raise ValueError("work must not be inside path: clients would see it")
        return self


class Appliance(Section):
    """Where stamps go, so that DNS knows how fresh this node is."""

    url: str = Field(pattern=r"^https?://[!-~]+$", description="URL of the appliance's report interface")
    token_file: str = Field(min_length=1, description="file with this node's token there, mode 0600")
    ca_file: str | None = Field(default=None, description="PEM file to trust instead of the system's certificates")
    node: Name | None = Field(default=None, description="as under `nodes` in the appliance's file; default: node")
    every: Duration = Field(default=2.0, ge=0.2, le=60, description="at least this often; at once when content changes")


class SyncConfig(Section):
    """syncd's configuration file."""

    version: Literal[1] = Field(description="of the file's form")
    node: Name = Field(description="this node's name, as parents and appliance know it")
    state_dir: str = Field(min_length=1, description="where indexes, journals and keys are kept")
    listen: list[Listen] = Field(default_factory=list, max_length=16, description="where children reach it")
    tls: Tls | None = Field(default=None, description="certificate for listen; without it only loopback is served")
    children: dict[Name, Child] = Field(default_factory=dict, description="who may pull from here")
    parents: dict[Name, Parent] = Field(default_factory=dict)
    trees: dict[Name, Tree] = Field(min_length=1, max_length=1000)
    appliance: Appliance | None = None
    metrics: Metrics = Metrics()
