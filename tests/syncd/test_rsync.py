"""rsync's arguments, words and exit codes; and how transfers are split, tried again and slowed down."""

from __future__ import annotations

import random
import re
import shlex
from zoneinfo import ZoneInfo

import pytest

from core.errors import NearpathError
from syncd.model import Entry, Kind
from syncd.publish.plan import Fetch
from syncd.transfer.rsync import (
    EXIT_CODES,
    Arrived,
    Connector,
    Fault,
    Options,
    Progress,
    Rsyncd,
    RsyncError,
    Ssh,
    Verdict,
    daemon_config,
    files_from,
    judge,
    meaning,
    parse_line,
    pull_arguments,
    push_arguments,
    rsh_argument,
    unescape,
)
from syncd.transfer.streams import MAX_BATCH_FILES, Retries, Window, limit_at, share, split

CONNECTOR = Connector(("syncd", "connect", "--tree", "debian"), "debian")


def test_arguments_of_each_transport() -> None:
    pull = pull_arguments(CONNECTOR, Options(), "/srv/work/stage")
    assert pull[:5] == ["rsync", "-ptH", "--from0", "--files-from=-", "--modify-window=-1"]
    assert pull[-2:] == ["parent::debian/", "/srv/work/stage/"]
    assert "--rsh=syncd connect --tree debian" in pull
    ssh = pull_arguments(Ssh("mirror@host.example", "/srv/debian/"), Options(), "/s")
    assert ssh[-2:] == ["mirror@host.example:/srv/debian/", "/s/"]
    assert "--rsh=ssh -oBatchMode=yes -oServerAliveInterval=15" in ssh
    daemon = pull_arguments(Rsyncd("2001:db8::1", "debian", 8730, "/etc/pw"), Options(), "/s")
    assert daemon[-2:] == ["rsync://[2001:db8::1]:8730/debian/", "/s/"]
    assert "--password-file=/etc/pw" in daemon
    assert not any(argument.startswith("--rsh") for argument in daemon)
    assert push_arguments(CONNECTOR, Options(), "/srv/tree", delete=True)[-2:] == ["/srv/tree/", "parent::debian/"]


def test_nothing_recurses_deletes_or_makes_symlinks_in_staging() -> None:
    every = Options(sparse=True, xattrs=True, acls=True, owners=True, compress=True, exact=True, limit_bytes_s=1)
    arguments = pull_arguments(CONNECTOR, every, "/s")
    assert arguments[1] == "-ptHSXAogz"
    assert "--bwlimit=1" in arguments  # not 0, which is no limit
    assert "--checksum" in arguments
    assert not re.search(r"delete|recursive|archive|--links|inplace|devices", " ".join(arguments))
    assert "--delete-missing-args" not in push_arguments(CONNECTOR, Options(), "/s")
    assert "--delete-missing-args" in push_arguments(CONNECTOR, Options(), "/s", delete=True)
    assert "--bwlimit=2048" in pull_arguments(CONNECTOR, Options(limit_bytes_s=2 << 20), "/s")
    assert "--link-dest=/srv/tree/" in pull_arguments(CONNECTOR, Options(basis="/srv/tree"), "/s")


@pytest.mark.parametrize("bad", ["-oProxyCommand=x", "a b", "a;b", "$(x)", "", "a\nb"])
def test_words_that_could_be_options_or_shell_are_refused(bad: str) -> None:
    for transport in (Ssh(bad, "/x"), Ssh("h", bad), Rsyncd(bad, "m"), Rsyncd("h", bad), Connector(("c",), bad)):
        with pytest.raises(RsyncError):
            pull_arguments(transport, Options(), "/s")


def test_relative_directories_are_refused() -> None:
    with pytest.raises(RsyncError, match="relative"):
        pull_arguments(CONNECTOR, Options(), "host:stage")
    with pytest.raises(RsyncError, match="relative"):
        pull_arguments(CONNECTOR, Options(basis="../tree"), "/s")


def test_remote_shell_argument() -> None:
    words = ["/opt/my app/connect", "--name", "it's", 'say "hi"', "", "a,b"]
    assert shlex.split(rsh_argument(words)) == words
    with pytest.raises(RsyncError, match="both kinds of quotes"):
        rsh_argument(["'\""])


def test_list_ends_with_nul() -> None:
    assert files_from([b"a\nb", b"-x", b"#c"]) == b"a\nb\0-x\0#c\0"
    assert files_from([]) == b""


def test_daemon_configuration() -> None:
    text = daemon_config("debian", "/srv/my tree", owner=(33, 34), exclude=["/.work"])
    for line in ("[debian]", "path = /srv/my tree", "read only = yes", "list = no", "uid = 33", "gid = 34"):
        assert line in text.splitlines()
    assert "exclude = /.work" in text
    assert "exclude = a?b 100?" in daemon_config("debian", "/srv", exclude=["a b", "100%"])
    assert "uid" not in daemon_config("debian", "/srv")
    for bad in ("/srv/%HOME%", "/srv/x\nread only = no", "/srv/x\\", " /srv"):
        with pytest.raises(RsyncError, match=r"rsyncd\.conf"):
            daemon_config("debian", bad)


# --- words --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (rb"np:>f+++++++++ 70 30 deep/er/-x", Arrived(b"deep/er/-x", 70, 30)),
        (rb"np:.f          0 15 new\#012line", Arrived(b"new\nline", 0, 15)),
        (rb"np:hf+++++++++ 0 15 \#134#012", Arrived(rb"\#012", 0, 15)),
        (rb"np:cd+++++++++ 0 4096 deep/", Arrived(b"deep", 0, 4096)),
        (rb"np:>f..t...... 5 7  lead and trail ", Arrived(b" lead and trail ", 5, 7)),
        (rb"np:>f+++++++++ 5 7 np:>f+++++++++ 5 7 x", Arrived(b"np:>f+++++++++ 5 7 x", 5, 7)),
        (rb"             30  27%   29.30kB/s    0:00:00 (xfr#1, to-chk=0/9)", Progress(30, 27)),
        (
            rb'rsync: [sender] link_stat "gone" (in tree) failed: No such file or directory (2)',
            Fault(b"gone", "link_stat: No such file or directory (2)", vanished=True),
        ),
        (
            rb'rsync: [sender] link_stat "we"ird" (in x): no (2)" (in tree) failed: No such file or directory (2)',
            Fault(b'we"ird" (in x): no (2)', "link_stat: No such file or directory (2)", vanished=True),
        ),
        (
            rb'rsync: [sender] send_files failed to open "new\#012line" (in tree): Permission denied (13)',
            Fault(b"new\nline", "it cannot be read at the parent: Permission denied (13)"),
        ),
        (
            rb'rsync: [receiver] write failed on "/t/big": No space left on device (28)',
            Fault(b"/t/big", "write failed on: No space left on device (28)"),
        ),
        (rb'file has vanished: "a/b" (in tree)', Fault(b"a/b", "it vanished at the parent", vanished=True)),
        (rb'skipping non-regular file "rel"', Fault(b"rel", "it is a special file or symlink at the parent now")),
        (rb"@ERROR: Unknown module 'nope'", Fault(b"", "@ERROR: Unknown module 'nope'")),
        (rb"receiving incremental file list", None),
        (rb"", None),
    ],
)
def test_lines(line: bytes, said: object) -> None:
    assert parse_line(line) == said


def test_escapes_are_undone_whatever_the_name() -> None:
    rng = random.Random(4)
    for _ in range(500):
        name = bytes(rng.choice([rng.randrange(1, 256), *b"\\#012"]) for _ in range(12))
        # As rsync 3.5.0 does it: what it cannot print, and a backslash where an escape could be read.
        escaped = b"".join(
            b"\\#%03o" % char
            if (char < 32 and char != 9) or char > 126 or (char == 92 and re.match(rb"#\d{3}", name[i + 1 :]))
            else bytes([char])
            for i, char in enumerate(name)
        )
        assert unescape(escaped) == name


def test_exit_codes() -> None:
    assert {code for code, (verdict, _) in EXIT_CODES.items() if verdict is Verdict.DONE} == {0}
    for code in (23, 24):
        assert meaning(code)[0] is Verdict.PARTIAL
    for code in (5, 10, 12, 30, 35, 255, -9, 20, 999):
        assert meaning(code)[0] is Verdict.AGAIN
    assert meaning(11)[0] is Verdict.LOCAL
    assert "signal 9" in meaning(-9)[1]


ASKED = [b"a", b"b", b"c", b"d"]


def test_partial_success_is_told_path_by_path() -> None:
    faults = [Fault(b"b", "Permission denied (13)"), Fault(b"c", "gone", vanished=True), Fault(b"other", "x")]
    result = judge(ASKED, [b"a"], faults, 23)
    assert result.verdict is Verdict.PARTIAL
    assert result.arrived == {b"a"}
    assert result.vanished == {b"c"}
    assert result.failed == {b"b": "Permission denied (13)", b"d": "some files could not be transferred"}


def test_a_fault_weighs_more_than_a_name_that_was_printed() -> None:
    result = judge(ASKED, ASKED, [Fault(b"b", "read errors")], 23)
    assert result.arrived == {b"a", b"c", b"d"}


def test_a_cut_connection_keeps_what_came() -> None:
    faults = [Fault(b"", "rsync: connection unexpectedly closed"), Fault(b"", "rsync error: error in data stream")]
    result = judge(ASKED, [b"a"], faults, 12)
    assert result.verdict is Verdict.AGAIN
    assert result.arrived == {b"a"}
    assert result.failed[b"b"] == "the connection broke in the middle: rsync: connection unexpectedly closed"


def test_a_full_disk_is_not_the_parents_fault() -> None:
    result = judge(ASKED, [b"a"], [Fault(b"/stage/b", "write failed: No space left on device (28)")], 12)
    assert (result.verdict, result.text) == (Verdict.LOCAL, "the disk is full")
    assert set(result.failed) == {b"b", b"c", b"d"}


def test_success_needs_no_names_but_a_skipped_path_is_not_success() -> None:
    assert judge(ASKED, [], [], 0).arrived == set(ASKED)
    skipped = judge(ASKED, [b"a", b"b", b"c"], [Fault(b"d", "it is a directory at the parent now")], 0)
    assert skipped.verdict is Verdict.PARTIAL
    assert skipped.failed == {b"d": "it is a directory at the parent now"}


# --- transfers ----------------------------------------------------------------------------------------------------------


def fetch(path: str, size: int, exact: bool = False) -> Fetch:
    return Fetch(Entry(path.encode(), Kind.FILE, 0o644, size, 1), exact)


def test_split_is_complete_and_balanced() -> None:
    rng = random.Random(5)
    fetches = [fetch(f"f{n}", int(rng.paretovariate(0.8) * 10_000) % (1 << 30), n % 50 == 0) for n in range(3000)]
    batches = split(fetches, 4)
    assert sorted(f.entry.path for batch in batches for f in batch) == sorted(f.entry.path for f in fetches)
    assert all(len({f.exact for f in batch}) == 1 for batch in batches)
    normal = [sum(f.entry.size + 32 * 1024 for f in batch) for batch in batches if not batch[0].exact]
    assert len(normal) == 4
    largest = max(f.entry.size for f in fetches)
    assert max(normal) <= max(sum(normal) / 4 * 1.34, largest + 32 * 1024)
    assert all(list(batch) == sorted(batch, key=lambda f: f.entry.path) for batch in batches)


def test_split_of_little_is_one_stream() -> None:
    assert split([]) == ()
    assert len(split([fetch("a", 10), fetch("b", 20)])) == 1
    assert len(split([fetch("a", 1 << 30), fetch("b", 1 << 30)])) == 2
    assert max(len(batch) for batch in split([fetch(f"{n}", 0) for n in range(250_000)])) <= MAX_BATCH_FILES


def test_retries_back_off_path_by_path() -> None:
    rng, retries = random.Random(1), Retries()
    assert retries.next_due() is None
    waits = [retries.failed(b"bad", "denied", 1000.0, rng).due - 1000.0 for _ in range(40)]
    for tries, wait_s in enumerate(waits):
        ideal = min(2.0 * 2.0**tries, 1800.0)
        assert ideal * 0.75 <= wait_s <= ideal * 1.25
    first = retries.failed(b"new", "gone", 1000.0, rng)
    assert retries.due(1000.0) == ()
    assert retries.due(first.due) == (b"new",)
    assert retries.next_due() == first.due
    (bad, new) = retries.troubles()
    assert (bad.path, bad.tries, bad.since, bad.why) == (b"bad", 40, 1000.0, "denied")
    assert new.path == b"new"
    retries.forget(b"new")
    retries.forget(b"never there")
    assert retries.due(1e9) == (b"bad",)


SCHEDULE = (
    Window(8 * 60, 18 * 60, 5_000_000, frozenset({0, 1, 2, 3, 4})),
    Window(22 * 60, 6 * 60, 0),
    Window(0, 24 * 60, 20_000_000),
)


@pytest.mark.parametrize(
    ("when", "limit"),
    [
        (1_700_000_000, 20_000_000),  # Wednesday 2023-11-15 06:13:20 in Shanghai
        (1_700_000_000 - 14 * 60, 0),  # 05:59: the night that began on Tuesday
        (1_700_000_000 + 2 * 3600, 5_000_000),  # 08:13 on a weekday
        (1_700_000_000 + 2 * 3600 + 3 * 86400, 20_000_000),  # 08:13 on a Saturday
        (1_700_000_000 + 16 * 3600, 0),  # 22:13
    ],
)
def test_bandwidth_by_time_of_day(when: int, limit: int) -> None:
    assert limit_at(SCHEDULE, when, ZoneInfo("Asia/Shanghai")) == limit


def test_bandwidth_windows_over_midnight_belong_to_the_day_they_begin() -> None:
    friday_night = Window(22 * 60, 6 * 60, 1, frozenset({4}))
    assert friday_night.holds(4, 23 * 60)
    assert friday_night.holds(5, 5 * 60)
    assert not friday_night.holds(4, 5 * 60)
    assert not friday_night.holds(5, 23 * 60)
    with pytest.raises(NearpathError, match="24:00"):
        Window(0, 2000, 1)


def test_streams_share_the_limit() -> None:
    assert share(4_000_000, 4) == 1_000_000
    assert share(0, 4) == 0
    assert share(100, 4) == 1024  # never "no limit"
