"""Configuration files: what is read from them, and that every fault is told at once with file, line, path and advice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.config import Config, Damping, HttpCheck, IcmpCheck, check_domain, split_listen
from core.errors import ConfigError, Problem
from core.io_config import MAX_CONFIG_BYTES, read_agent_config, read_config

TOKEN = "ab" * 32

FULL = f"""\
version: 1
state_dir: state
dns:
  listen: ["127.0.0.1:0", "[::1]:53"]
  nsid: ns1
  max_udp_size: 1232B
  tcp_idle: 10s
  tcp_connections: 100
zones:
  - {{origin: example.org., file: zones/example.org.zone}}
region_tables:
  - {{name: countries, file: /data/countries.csv.gz}}
  - {{name: geo, file: geo.mmdb, format: mmdb, label: country.iso_code}}
regions:
  no:
    match: [countries:NO, geo:NO]
  on:
    parent: no
    prefixes: [192.0.2.0/24, 2001:db8::/32]
  cn:
    parent: world
    match:
      - countries:CN
    precedence: 3
checks:
  ping: {{kind: icmp, interval: 1s, timeout: 500ms}}
  web:
    kind: http
    port: 443
    tls: true
    path: /status
    expect: [200, 204]
mirrors:
  no: {{addresses: [192.0.2.1, 2001:DB8::1], region: no, cost: 2, max_load: 80%}}
  off: {{addresses: [192.0.2.2], region: on, drained: true}}
services:
  Dl.Example.ORG.:
    mirrors: [no, off]
    checks: [web, ping]
    rtt_check: ping
    answers: 2
    ttl: 1m
    max_lag: 1h
    min_version: 7
    tree: main
    prefer:
      no: {{no: 200}}
      world: {{off: 50}}
agents:
  y: {{region: no, token_sha256: {TOKEN}}}
nodes:
  off: {{mirrors: ["no", off], token_sha256: {TOKEN}}}
report:
  listen: ["127.0.0.1:8443"]
  tls: {{cert: tls/cert.pem, key: /etc/key.pem}}
  max_body: 1MiB
metrics: {{listen: ["127.0.0.1:9000"]}}
steering:
  live_for: 30s
  confidence: 3
  min_gain_share: 5%
  damping: {{half_life: 2m, suppress: 3000, reuse: 900}}
history: 10m
"""


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "nearpath.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def problems_of(tmp_path: Path, text: str | bytes) -> tuple[Problem, ...]:
    file = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    assert all(p.file == str(file) for p in caught.value.problems)
    return caught.value.problems


def line_of(text: str, part: str) -> int:
    """The number of the only line that holds `part`."""
    lines = [i for i, line in enumerate(text.splitlines(), 1) if part in line]
    assert len(lines) == 1, (part, lines)
    return lines[0]


def test_full_example(tmp_path: Path) -> None:
    config = read_config(write(tmp_path, FULL))
    assert config.dns.listen == ["127.0.0.1:0", "[::1]:53"]
    assert config.checks["ping"] == IcmpCheck(kind="icmp", interval="1s", timeout="500ms")
    assert isinstance(config.checks["web"], HttpCheck)
    assert config.checks["web"].interval == 5.0
    assert config.services["dl.example.org."].ttl == 60.0
    assert config.services["dl.example.org."].max_lag == 3600.0
    assert config.mirrors["no"].max_load == 0.8
    assert config.mirrors["no"].addresses == ["192.0.2.1", "2001:db8::1"]
    assert config.mirrors["off"].drained is True
    assert config.nodes["off"].mirrors == ["no", "off"]
    assert config.report.max_body == 1 << 20
    assert config.steering.confidence == 3.0
    assert config.steering.damping.half_life == 120.0


def test_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, FULL)
    monkeypatch.chdir(tmp_path.parent)
    config = read_config(Path(tmp_path.name) / "nearpath.yaml")
    assert config.state_dir == str(tmp_path / "state")
    assert config.zones[0].file == str(tmp_path / "zones/example.org.zone")
    assert [t.file for t in config.region_tables] == ["/data/countries.csv.gz", str(tmp_path / "geo.mmdb")]
    assert config.report.tls is not None
    assert (config.report.tls.cert, config.report.tls.key) == (str(tmp_path / "tls/cert.pem"), "/etc/key.pem")


def test_norway_is_a_country(tmp_path: Path) -> None:
    # YAML 1.1 takes NO, no, on, off, y for truth values; here they are names, as keys and as values.
    config = read_config(write(tmp_path, FULL))
    assert list(config.regions) == ["no", "on", "cn"]
    assert config.regions["no"].match == ["countries:NO", "geo:NO"]
    assert config.regions["on"].parent == "no"
    assert config.mirrors["off"].region == "on"
    assert config.services["dl.example.org."].mirrors == ["no", "off"]
    assert config.services["dl.example.org."].prefer == {"no": {"no": 200}, "world": {"off": 50}}
    assert list(config.agents) == ["y"]


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("port: 0100", "must be a whole number (got '0100')"),  # octal in YAML 1.1: 64
        ("port: 22:30", "must be a whole number (got '22:30')"),  # base 60 in YAML 1.1: 1350
        ("port: 4_43", "must be a whole number (got '4_43')"),
        ("port: 0x50", "must be a whole number (got '0x50')"),
        ("port: +80", "must be a whole number (got '+80')"),
        ('port: "80"', "must be a whole number (got '80')"),
        ("port: true", "must be a whole number (got True)"),
        ("port: 80.0", "must be a whole number (got 80.0)"),
        ("port: " + "9" * 5000, "must be a whole number (got '" + "9" * 59 + "...)"),
        ("port: .inf", "must be a whole number (got '.inf')"),
        ("port:", "must be a whole number (got None)"),
        ("tls: yes", "must be true or false (got 'yes')"),
        ("tls: 1", "must be true or false (got 1)"),
        ("path: 2001-01-01", "must begin with a slash"),
        ("path: 5", "must be text: put it in quotes (got 5)"),
        ("path: !!binary aGk=", "YAML tags (tag:yaml.org,2002:binary) are not allowed here"),
        ("path: !!python/object/apply:os.system [id]", "are not allowed here"),
    ],
    ids=lambda text: text[:24],
)
def test_scalars_mean_what_json_would_say(tmp_path: Path, written: str, what: str) -> None:
    key = written.partition(":")[0]
    text = f"version: 1\nstate_dir: s\ndns: {{listen: ['127.0.0.1:0']}}\nchecks:\n  c:\n    kind: http\n    {written}\n"
    problems = problems_of(tmp_path, text)
    assert any(what in p.what and p.line == 7 and p.path == f"checks.c.{key}" for p in problems), problems


# One fault per line: (the line's mark, path, part of the message).
FAULTY = """\
version: 2                                   # wrong-version
state_dirr: state                            # typo
dns:                                         # dns
  listen: [localhost, "127.0.0.1:99999"]     # listen
  tcp_idle: 10                               # no-unit
zones:
  - origin: example.org                      # no-dot
    file: z
  - origin: example.net.
    file: z
  - origin: EXAMPLE.net.                     # zone-twice
    file: z
region_tables:
  - name: countries
    file: a.csv
  - name: countries                          # table-twice
    file: b.csv
  - {name: m, file: m.mmdb, format: mmdb}    # no-label
regions:
  eu:
    parent: at                               # cycle-1
  at:
    parent: eu                               # cycle-2
  world: {}                                  # world
  uk:
    parent: europe                           # no-parent
    match:
      - countries:GB
      - country:GB                           # no-table
      - GB                                   # no-colon
      - countries: GB                        # a-mapping
    prefixes:
      - 192.0.2.0/24
      - 192.0.2.1/24                         # host-bits
      - 192.0.2.0/33                         # too-long
      - 1                                    # number
checks:
  ping: {kind: icmp, interval: 1s, timeout: 2s}   # timeout
  pong: {kind: pong}                         # bad-kind
  none: {interval: 1s}                       # no-kind
  web:
    kind: http
    paht: /                                  # nested-typo
mirrors:
  Bad_Name: {addresses: [192.0.2.1]}         # bad-name
  one:
    addresses:
      - 192.0.2.1
      - 192.0.2.300                          # bad-address
      - fe80::1%eth0                         # zone-index
    region: mars                             # no-region
    cost: -1                                 # negative
    cost: 5                                  # key-twice
services:
  dl.example.net.:
    mirrors: [one, two]                      # no-mirror
    checks: [ping, smtp]                     # no-check
    rtt_check: smpt                          # no-rtt-check
    prefer:
      moon: {one: 5}                         # prefer-region
      eu:
        three: 5                             # prefer-mirror
  dup.example.net.: {mirrors: [one, one], checks: [ping]}      # mirror-twice
  dl.example.com.: {mirrors: [one], checks: [ping]}            # no-zone
  DUP.example.net.: {mirrors: [one], checks: [ping]}           # service-twice
  bad..example.net.: {mirrors: [one], checks: [ping]}          # bad-domain
agents:
  a: {region: pluto, token_sha256: my-secret-token}            # agent
nodes:
  n: {mirrors: [one, ono, one], token_sha256: my-secret-token}  # node-1
  o: {mirrors: [one], token_sha256: abc, mirror: one}          # node-2
report:
  max_body: 5                                # size-unit
steering:
  min_gain_share: 5                          # share-unit
  damping:
    reuse: many                              # not-int
"""

EXPECTED = [
    ("wrong-version", "version", "Input should be 1 (got 2)"),
    ("typo", "state_dirr", "is not a known key (a typo?)"),
    ("listen", "dns.listen[0]", "'localhost' is not ADDRESS:PORT, such as 127.0.0.1:8080"),
    ("listen", "dns.listen[1]", "'127.0.0.1:99999' is not ADDRESS:PORT"),
    ("no-unit", "dns.tcp_idle", "10 is not a time: write a number with a unit"),
    ("no-dot", "zones[0].origin", "'example.org' is not fully qualified: end it with a dot"),
    ("zone-twice", "zones[2].origin", "zone 'example.net.' is defined twice"),
    ("table-twice", "region_tables[1].name", "table 'countries' is defined twice"),
    ("no-label", "region_tables[2].label", "an mmdb table needs the path of its label"),
    ("cycle-1", "regions.eu.parent", "region 'eu' is its own ancestor"),
    ("cycle-2", "regions.at.parent", "region 'at' is its own ancestor"),
    ("# world", "regions.world", "`world` is the built-in root"),
    ("no-parent", "regions.uk.parent", "region 'europe' is not defined (defined: at, eu, uk, world)"),
    ("no-table", "regions.uk.match[1]", "table 'country' is not defined (defined: countries, m)"),
    ("no-colon", "regions.uk.match[2]", "'GB' is not TABLE:LABEL"),
    ("a-mapping", "regions.uk.match[3]", "must be text: put it in quotes"),
    ("host-bits", "regions.uk.prefixes[1]", "192.0.2.1/24 has host bits set"),
    ("too-long", "regions.uk.prefixes[2]", "'192.0.2.0/33' is not a prefix"),
    ("number", "regions.uk.prefixes[3]", "must be text: put it in quotes (got 1)"),
    ("timeout", "checks.ping", "timeout 2s is longer than interval 1s: make it shorter"),
    ("bad-kind", "checks.pong", "'pong' is not a kind: use one of 'icmp', 'tcp', 'http'"),
    ("no-kind", "checks.none", "does not say its `kind`"),
    ("nested-typo", "checks.web.paht", "is not a known key (a typo?)"),
    ("bad-name", "mirrors.Bad_Name", "must be a name: lower-case letters, digits and hyphens, 1 to 63"),
    ("bad-address", "mirrors.one.addresses[1]", "'192.0.2.300' is not an IP address"),
    ("zone-index", "mirrors.one.addresses[2]", "has a zone index"),
    ("no-region", "mirrors.one.region", "region 'mars' is not defined"),
    ("negative", "mirrors.one.cost", "Input should be greater than or equal to 0 (got -1)"),
    ("key-twice", "mirrors.one.cost", "is given twice (first in line 52)"),
    ("no-mirror", "services['dl.example.net.'].mirrors[1]", "mirror 'two' is not defined (defined: Bad_Name, one)"),
    ("no-check", "services['dl.example.net.'].checks[1]", "check 'smtp' is not defined"),
    ("no-rtt-check", "services['dl.example.net.'].rtt_check", "check 'smpt' is not defined"),
    ("prefer-region", "services['dl.example.net.'].prefer.moon", "region 'moon' is not defined"),
    (
        "prefer-mirror",
        "services['dl.example.net.'].prefer.eu.three",
        "mirror 'three' is not defined (defined: one, two)",
    ),
    ("mirror-twice", "services['dup.example.net.'].mirrors[1]", "mirror 'one' is listed twice"),
    ("no-zone", "services['dl.example.com.']", "no zone holds 'dl.example.com.': add its zone under zones"),
    ("service-twice", "services['DUP.example.net.']", "service 'dup.example.net.' is defined twice"),
    ("bad-domain", "services['bad..example.net.']", "is not a domain name (labels of 1 to 63"),
    ("# agent", "agents.a.region", "region 'pluto' is not defined"),
    ("# agent", "agents.a.token_sha256", "must be the 64 hexadecimal digits that `nearpath agent-token` prints"),
    ("# node-1", "nodes.n.mirrors[1]", "mirror 'ono' is not defined (defined: Bad_Name, one); did you mean 'one'?"),
    ("# node-1", "nodes.n.mirrors[2]", "mirror 'one' is listed twice"),
    ("# node-1", "nodes.n.token_sha256", "must be the 64 hexadecimal digits that `nearpath agent-token` prints"),
    ("# node-2", "nodes.o.mirrors[0]", "mirror 'one' is served by node 'n' already"),
    ("# node-2", "nodes.o.token_sha256", "must be the 64 hexadecimal digits that `nearpath agent-token` prints"),
    ("# node-2", "nodes.o.mirror", "is not a known key (a typo?)"),
    ("size-unit", "report.max_body", "5 is not a size: write a number with a unit"),
    ("share-unit", "steering.min_gain_share", "5 is not a share: write a percentage"),
    ("not-int", "steering.damping.reuse", "must be a whole number (got 'many')"),
]


def test_all_faults_at_once_each_with_its_place(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, FAULTY)
    unmatched = list(problems)
    for mark, path, what in EXPECTED:
        line = line_of(FAULTY, mark if mark.startswith("#") else f" {mark}")
        found = [p for p in unmatched if (p.line, p.path) == (line, path) and what in p.what]
        assert len(found) == 1, (mark, line, path, what, [str(p) for p in problems if p.line == line or p.path == path])
        unmatched.remove(found[0])
    # The only one without a line of its own: a key that is not there stands at the mapping that lacks it.
    assert [(p.line, p.path, p.what) for p in unmatched] == [(1, "state_dir", "is missing")]
    assert list(problems) == sorted(problems, key=lambda p: (p.line, p.path, p.what))


def test_the_error_text_is_one_line_per_problem_and_holds_no_secret(tmp_path: Path) -> None:
    file = write(tmp_path, FAULTY)
    with pytest.raises(ConfigError) as caught:
        read_config(file)
    head, *lines = str(caught.value).splitlines()
    assert head == f"{len(caught.value.problems)} problems in the configuration"
    assert f"  {file}:2: state_dirr: is not a known key (a typo?)" in lines
    assert all(line.startswith(f"  {file}:") for line in lines)
    assert "my-secret-token" not in str(caught.value)


def test_missing_key_stands_at_its_section(tmp_path: Path) -> None:
    text = "version: 1\nstate_dir: s\n\ndns: {listen: ['127.0.0.1:0']}\nservices:\n  a.b.:\n    checks: [x]\n"
    assert Problem(str(tmp_path / "nearpath.yaml"), 6, "services['a.b.'].mirrors", "is missing") in problems_of(
        tmp_path, text
    )


def test_one_address_for_two_parts_is_named_at_the_second(tmp_path: Path) -> None:
    text = (
        "version: 1\nstate_dir: s\ndns: {listen: ['127.0.0.1:5300', '127.0.0.1:0']}\n"
        "report: {listen: ['127.0.0.1:0', '127.0.0.1:8053']}\nmetrics:\n  listen: ['127.0.0.1:8053']\n"
    )
    place = str(tmp_path / "nearpath.yaml")
    what = "127.0.0.1:8053 is in report.listen already: choose another port"
    assert list(problems_of(tmp_path, text)) == [Problem(place, 6, "metrics.listen[0]", what)]


ALIAS_BOMB = "a: &a [x, x]\nb: &b [*a, *a]\n" + "".join(
    f"{chr(c + 1)}: &{chr(c + 1)} [*{chr(c)}, *{chr(c)}]\n" for c in range(98, 120)
)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("", 1, "must be a mapping of keys to values"),
        ("# only a comment\n", 1, "must be a mapping of keys to values"),
        ("- a\n- b\n", 1, "must be a mapping of keys to values"),
        ("just text", 1, "must be a mapping of keys to values"),
        (ALIAS_BOMB, 2, "YAML aliases (*name) are not allowed here"),
        ("a: 1\nb: [1, 2\n", 3, "is not valid YAML: "),
        ("a: 1\n\tb: 2\n", 2, "is not valid YAML: "),
        ("version: 1\n---\nversion: 1\n", 2, "put everything into one, without a second `---`"),
        ("a: 1\nb: " + "[" * 40 + "]" * 40, 2, "is nested deeper than 32 levels"),
        ("a: 1\nb: " + "[" * 200_000, 2, "is nested deeper than 32 levels"),
        ("a: 1\nb: " + "{a: " * 50_000, 2, "is nested deeper than 32 levels"),
        ("a: 1\n" + "".join(f"{' ' * i}k:\n" for i in range(1000)), 34, "is nested deeper than 32 levels"),
        (b"\x7fELF\x02\x01\x01\x00\x00\x00", 0, "is not valid YAML: "),
        (b"a: \xff\xfe\n", 0, "is not valid YAML: "),
        (bytes(range(256)) * 40, 0, "is not valid YAML: "),
    ],
    ids=lambda value: repr(value)[:24],
)
def test_what_is_no_configuration_at_all(tmp_path: Path, text: str | bytes, line: int, what: str) -> None:
    problems = problems_of(tmp_path, text)
    assert len(problems) == 1
    assert what in problems[0].what
    assert len(problems[0].what) < 200
    assert problems[0].line in (line, line - 1 if line == 3 else line)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    for file, what in ((tmp_path / "none.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"1 problem in the configuration\n  {file}: cannot be read: {what}"):
            read_config(file)


def test_file_without_permission(tmp_path: Path) -> None:
    file = write(tmp_path, FULL)
    file.chmod(0)
    if os.access(file, os.R_OK):
        pytest.skip("this user may read every file (root)")
    with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
        read_config(file)


def test_file_that_is_too_large(tmp_path: Path) -> None:
    file = tmp_path / "big.yaml"
    with file.open("wb") as stream:
        stream.truncate(MAX_CONFIG_BYTES + 1)
    with pytest.raises(ConfigError, match="is over 16 MiB: not a configuration file"):
        read_config(file)


def test_odd_keys(tmp_path: Path) -> None:
    problems = problems_of(tmp_path, "version: 1\n1: a\n2.5: b\ntrue: c\n? [x, y]\n: d\n~: e\n")
    found = {(p.line, p.path): p.what for p in problems}
    for place in ((2, "1"), (3, "['2.5']"), (4, "true"), (7, "['~']")):
        assert found[place] == "is not a known key (a typo?)"
    assert found[5, ""] == "a key must be plain text, not a list or a mapping"


HOSTILE_SECTIONS = ["1", "text", "[]", "{}", "[1, [2], {a: 3}]", "{1: 2, a: {b: {c: d}}}", "true", "null", "{a: null}"]


@pytest.mark.parametrize("value", HOSTILE_SECTIONS)
def test_wrong_types_anywhere_are_problems_not_crashes(tmp_path: Path, value: str) -> None:
    names = ["version", "state_dir", "dns", "zones", "region_tables", "regions", "checks", "mirrors", "services",
             "agents", "nodes", "report", "metrics", "steering", "history"]  # fmt: skip
    for name in names:
        others = "".join(line for line in ("version: 1\n", "state_dir: s\n") if not line.startswith(name))
        for text in (f"{others}{name}: {value}\n", f"{others}{name}:\n  x: {value}\n", f"{others}{name}: [{value}]\n"):
            for problem in problems_of(tmp_path, text):
                assert problem.what


def test_every_place_of_a_service_and_a_region_takes_hostile_values(tmp_path: Path) -> None:
    for value in HOSTILE_SECTIONS:
        for key in ("mirrors", "checks", "rtt_check", "prefer", "ttl", "answers"):
            problems_of(tmp_path, f"version: 1\nservices:\n  a.b.:\n    {key}: {value}\n")
        for key in ("mirrors", "token_sha256"):
            problems_of(tmp_path, f"version: 1\nnodes:\n  n:\n    {key}: {value}\n  o: {{{key}: [{value}]}}\n")
        for key in ("parent", "match", "prefixes", "precedence"):
            problems_of(tmp_path, f"version: 1\nregions:\n  r:\n    {key}: {value}\n")


def test_long_values_are_shortened(tmp_path: Path) -> None:
    for problem in problems_of(tmp_path, f"version: {'x' * 100_000}\nhistory: {'y' * 100_000}\n"):
        assert len(problem.what) < 300


def test_labels_as_regions_leaves_region_names_to_the_tables(tmp_path: Path) -> None:
    text = FULL.replace("name: countries,", "name: countries, labels_as_regions: true, parent: world,")
    config = read_config(write(tmp_path, text.replace("region: on", "region: se")))
    assert config.mirrors["off"].region == "se"


def test_agent_file(tmp_path: Path) -> None:
    text = "version: 1\nname: no\nappliance: https://np.example.org:8443\ntoken_file: token\nstate_dir: /var/lib/a\n"
    config = read_agent_config(write(tmp_path, text))
    assert (config.name, config.token_file, config.state_dir) == ("no", str(tmp_path / "token"), "/var/lib/a")
    assert config.ca_file is None
    config = read_agent_config(write(tmp_path, text + "ca_file: ca.pem\nsource: {ipv4: 127.0.0.1}\n"))
    assert config.ca_file == str(tmp_path / "ca.pem")
    assert config.source.ipv4 == "127.0.0.1"
    with pytest.raises(ConfigError) as caught:
        read_agent_config(write(tmp_path, text.replace("https:", "ftp:") + "spool: {max_samples: 1}\nx: 1\n"))
    assert [(p.line, p.path) for p in caught.value.problems] == [(3, "appliance"), (6, "spool.max_samples"), (7, "x")]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Example.ORG.", "example.org."),
        (".", "."),
        ("*.example.org.", "*.example.org."),
        ("_dns._udp.example.org.", "_dns._udp.example.org."),
        ("a" * 63 + ".org.", "a" * 63 + ".org."),
        (".".join(["a" * 63] * 3 + ["a" * 61]) + ".", ".".join(["a" * 63] * 3 + ["a" * 61]) + "."),
    ],
)
def test_domain_names(text: str, name: str) -> None:
    assert check_domain(text) == name


@pytest.mark.parametrize(
    "text",
    ["", "example.org", "..", ".org.", "a..b.", "-a.org.", "a-.org.", "a b.org.", "example.org\n.", "é.org.",
     "\u212aa.org.", "a" * 64 + ".org.", ".".join(["a" * 63] * 3 + ["a" * 62]) + ".", "**.org.", "a\\.b.org."],
)  # fmt: skip
def test_bad_domain_names(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not (fully qualified|a domain name)"):
        check_domain(text)


def test_listen_addresses() -> None:
    assert split_listen("0.0.0.0:53") == ("0.0.0.0", 53)
    assert split_listen("[::]:0") == ("::", 0)
    bad = ["", "53", ":53", "localhost:53", "0.0.0.0", "0.0.0.0:", "0.0.0.0:65536", "0.0.0.0:-1", "0.0.0.0:+1",
           "0.0.0.0: 1", "0.0.0.0:1_0", "0.0.0.0:٥", "::1:53", "[::1]", "[::1]53", "[127.0.0.1]:53", "[::1:53",
           "0.0.0.0:53\n", "0.0.0.0:" + "9" * 5000]  # fmt: skip
    for text in bad:
        with pytest.raises(ValueError, match="is not ADDRESS:PORT"):
            split_listen(text)


def test_config_is_frozen() -> None:
    config = Config(version=1, state_dir="s", dns={"listen": ["127.0.0.1:0"]})
    with pytest.raises(ValueError, match="frozen"):
        config.state_dir = "t"


@pytest.mark.parametrize(
    ("damping", "good"),
    [
        ({}, True),
        # RFC 2439 4.2: the ceiling is reuse * 2^(max_suppress / half_life): 1000 * 2^2 = 4000.
        ({"half_life": "1m", "max_suppress": "2m", "reuse": 1000, "suppress": 3999}, True),
        ({"half_life": "1m", "max_suppress": "2m", "reuse": 1000, "suppress": 4000}, False),
        ({"half_life": "1h"}, False),  # with the default max_suppress of 30 min: 1414, below 2500
        ({"half_life": "1us", "max_suppress": "50w", "suppress": 10**30}, True),
    ],
)
def test_damping_that_can_never_happen_is_refused(damping: dict[str, Any], good: bool) -> None:
    if good:
        Damping.model_validate(damping)
    else:
        with pytest.raises(ValidationError, match=r"never above .* suppress .* raise max_suppress or lower half_life"):
            Damping.model_validate(damping)
