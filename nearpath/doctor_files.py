"""Files and rights: the configuration and what it names, the state directory, certificate and key."""

from __future__ import annotations

import os
import pwd
import shutil
import ssl
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from core.config import Config, Tls
from core.errors import ConfigError, NearpathError
from nearpath.doctor_finding import Area, Finding
from nearpath.doctor_host import control_peer

_CONFIGURATION = Area("configuration")
_RIGHTS = Area("rights")

_MIN_FREE_BYTES = 64 << 20
"""Below this the store soon fails: SQLite's log alone may grow to some 10 MiB between checkpoints."""
_LOW_FREE_BYTES = 512 << 20
_MAX_STATE_FILES = 1000
_CERTIFICATE_WARNING_S = 14 * 86_400


@dataclass(frozen=True, slots=True)
class Account:
    """The user the daemon runs as, or would."""

    uid: int
    groups: frozenset[int]
    name: str

    def may(self, path: Path, want: int) -> bool:
        """Whether permissions let this user do `want` (os.R_OK | ...) with `path`, and reach it (access(2))."""
        if self.uid == os.geteuid():
            return os.access(path, want)
        return all(self._allowed(folder, os.X_OK) for folder in path.parents) and self._allowed(path, want)

    def _allowed(self, path: Path, want: int) -> bool:
        if self.uid == 0:
            return True
        try:
            status = path.stat()
        except OSError:
            return False
        shift = 6 if status.st_uid == self.uid else 3 if status.st_gid in self.groups else 0
        return (status.st_mode >> shift & want) == want


def daemon_account(state_dir: Path, socket_path: Path) -> Account:
    """Who the daemon is: the peer of its control socket; else the owner of state_dir if we are root; else we."""
    uid = os.geteuid()
    try:
        _pid, uid, _gid = control_peer(socket_path)
    except OSError:
        if uid == 0 and state_dir.is_dir():
            uid = state_dir.stat().st_uid
    try:
        entry = pwd.getpwuid(uid)
        return Account(uid, frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)), entry.pw_name)
    except KeyError:
        return Account(uid, frozenset(), f"uid {uid}")


def check_loading(config: Config) -> Iterator[Finding]:
    """Load everything that `config` names, as a start would: all faults, and the warnings of the zones."""
    from nearpath.loading import load

    try:
        loaded = load(config)
    except ConfigError as error:
        yield from refuse(error)
        return
    except NearpathError as error:
        yield _CONFIGURATION.bad(error.what, error.fix or "correct it, then `nearpath check-config FILE`")
        return
    yield _CONFIGURATION.good(
        f"the configuration loads, with all it names (zones: {len(config.zones)}, tables: {len(config.region_tables)})"
    )
    for warning in loaded.warnings:
        yield _CONFIGURATION.note(warning, "correct the zone file, raise its serial, then `nearpath reload`")


def refuse(error: ConfigError) -> list[Finding]:
    """One finding for each fault of a configuration."""
    fix = "correct it, then `nearpath check-config FILE`; a running appliance keeps its old configuration meanwhile"
    return [_CONFIGURATION.bad(str(problem), fix) for problem in error.problems]


def check_files(config_file: Path, config: Config, account: Account) -> Iterator[Finding]:
    """Whether the daemon's user can read what it must, and whether nobody else can change it."""
    files = [config_file, *(Path(z.file) for z in config.zones), *(Path(t.file) for t in config.region_tables)]
    unreadable = [str(f) for f in files if f.exists() and not account.may(f.resolve(), os.R_OK)]
    for file in unreadable:
        yield _RIGHTS.bad(f"{file} cannot be read by {account.name}", f"chmod o+r {file}, and o+x the folders above it")
    open_ones = [str(f) for f in files if f.exists() and f.stat().st_mode & stat.S_IWOTH]
    for file in open_ones:
        yield _RIGHTS.bad(f"{file} can be changed by every user of this host", f"chmod o-w {file}")
    if not unreadable and not open_ones:
        yield _RIGHTS.good(f"{account.name} can read the configuration, zones and tables")


def check_state_dir(state_dir: Path, account: Account) -> Iterator[Finding]:
    """Owner, mode, what is in it, and free space of the state directory."""
    if not state_dir.is_dir():
        yield from _no_state_dir(state_dir, account)
        return
    status = state_dir.stat()
    before = os.statvfs(state_dir)
    if before.f_flag & os.ST_RDONLY:
        yield _RIGHTS.bad(f"state_dir {state_dir} is on a read-only file system", "remount it, or move state_dir")
    elif not account.may(state_dir.resolve(), os.W_OK | os.X_OK):
        yield _RIGHTS.bad(
            f"state_dir {state_dir} cannot be written by {account.name}",
            f"chown -R {account.name} {state_dir} && chmod 0750 {state_dir}",
        )
    else:
        yield _RIGHTS.good(f"state_dir {state_dir} can be written by {account.name}")
    if status.st_mode & stat.S_IWOTH:
        yield _RIGHTS.bad(f"state_dir {state_dir} can be changed by every user", f"chmod 0750 {state_dir}")
    elif status.st_mode & stat.S_IRWXO:
        yield _RIGHTS.note(f"state_dir {state_dir} can be read by every user", f"chmod 0750 {state_dir}")
    yield from _contents(state_dir, account)
    yield from _space(state_dir)


def _no_state_dir(state_dir: Path, account: Account) -> Iterator[Finding]:
    above = next(folder for folder in state_dir.parents if folder.exists())
    if state_dir.exists():
        yield _RIGHTS.bad(f"state_dir {state_dir} is not a folder", "move it away, or name another state_dir")
    elif above.is_dir() and account.may(above.resolve(), os.W_OK | os.X_OK):
        yield _RIGHTS.note(f"state_dir {state_dir} is not there yet", "the first start makes it")
    else:
        yield _RIGHTS.bad(
            f"state_dir {state_dir} is not there and {account.name} cannot make it in {above}",
            f"install -d -o {account.name} -m 0750 {state_dir}",
        )


def _contents(state_dir: Path, account: Account) -> Iterator[Finding]:
    """Files that another user left there, mostly a start by hand as root: the daemon then cannot open its store."""
    try:
        with os.scandir(state_dir) as entries:
            files = [Path(e.path) for e in islice(entries, _MAX_STATE_FILES) if e.is_file(follow_symlinks=False)]
    except OSError:
        return
    locked = [file.name for file in files if not account.may(file.resolve(), os.R_OK | os.W_OK)]
    if locked:
        yield _RIGHTS.bad(
            f"{account.name} cannot write {', '.join(sorted(locked)[:5])} in state_dir (started once as another user?)",
            f"chown -R {account.name} {state_dir}",
        )


def _space(state_dir: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(state_dir).free
    inodes = os.statvfs(state_dir)
    fix = f"make room on the file system of {state_dir}: a full one stops storing samples, not answering"
    if free < _MIN_FREE_BYTES or (inodes.f_files and not inodes.f_favail):
        yield _RIGHTS.bad(
            f"the file system of state_dir is full ({free >> 20} MiB, {inodes.f_favail} inodes free)", fix
        )
    elif free < _LOW_FREE_BYTES:
        yield _RIGHTS.note(f"the file system of state_dir has only {free >> 20} MiB left", fix)
    else:
        yield _RIGHTS.good(f"{free / (1 << 30):.1f} GiB free for state_dir")


def check_secret(file: Path, what: str, account: Account) -> Iterator[Finding]:
    """A file with a key or token: the daemon reads it, and besides it at most its group."""
    try:
        mode = file.stat().st_mode
    except OSError as error:
        yield _RIGHTS.bad(f"{what} {file}: {(error.strerror or '').lower()}", "put it there, or correct its name")
        return
    if not account.may(file.resolve(), os.R_OK):
        yield _RIGHTS.bad(f"{what} {file} cannot be read by {account.name}", f"chown {account.name} {file}")
    if mode & (stat.S_IRWXO | stat.S_IWGRP):
        yield _RIGHTS.bad(
            f"{what} {file} has mode {stat.S_IMODE(mode):04o}: others can get at it",
            f"chmod 0600 {file}, and make a new one if others have accounts on this host",
        )
    elif mode & stat.S_IRGRP:
        yield _RIGHTS.note(f"{what} {file} can be read by its group", f"chmod 0600 {file} unless that is meant")
    elif account.may(file.resolve(), os.R_OK):
        yield _RIGHTS.good(f"{what} {file} can be read by {account.name}, and not by others")


def check_tls(tls: Tls, account: Account) -> Iterator[Finding]:
    """Key file mode; that certificate and key belong together; when the certificate ends."""
    yield from check_secret(Path(tls.key), "TLS key", account)
    area = Area("TLS")
    try:
        not_after_s = certificate_end(tls)
    except ssl.SSLCertVerificationError as error:
        yield area.bad(
            f"the certificate {tls.cert} is not valid now: {error.verify_message}",
            "renew it, then `systemctl restart nearpath` (agents refuse it and keep their samples until then)",
        )
        return
    except (OSError, ssl.SSLError, KeyError) as error:
        yield area.bad(
            f"cannot use certificate {tls.cert} with key {tls.key}: {error}",
            "both must be PEM files that belong together",
        )
        return
    left_s = not_after_s - time.time()
    text = f"the certificate {tls.cert} ends in {left_s / 86_400:.0f} days"
    yield (
        area.note(text, "renew it, then `systemctl restart nearpath`")
        if left_s < _CERTIFICATE_WARNING_S
        else area.good(text)
    )


def certificate_end(tls: Tls) -> float:
    """End of validity (seconds since the epoch) of a certificate that works with its key, by a handshake in memory.

    Raises OSError or ssl.SSLError when it cannot be loaded, ssl.SSLCertVerificationError when it is not valid now.
    """
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tls.cert, tls.key)
    ours = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ours.check_hostname = False
    ours.load_verify_locations(tls.cert)
    # The certificate itself is the anchor: who issued it is the agents' business, only its own validity is asked here.
    ours.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = theirs.wrap_bio(to_server, to_client, server_side=True)
    client = ours.wrap_bio(to_client, to_server)
    for _flight in range(6):
        done = True
        for side in (client, server):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                done = False
        if done:
            break
    certificate = client.getpeercert()
    return float(ssl.cert_time_to_seconds(str((certificate or {})["notAfter"])))
