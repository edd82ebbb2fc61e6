"""Typed configuration of the appliance and of the agent: what may stand in the YAML files.

Unknown keys are refused, times and sizes need a unit. Reading files, line numbers and the checks across sections are in
`io_config.py` and `config_refs.py`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

from core.units import Duration, Share, Size

NAME_PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""Name of a mirror, region, check, agent or table: lower case, digits and hyphens, 1 to 63 characters."""

_LABEL_RE = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)|\*")


def check_domain(text: str) -> str:
    """A fully qualified domain name in lower case with its final dot; ValueError when it is not one (RFC 1035 2.3.4)."""
    # Not lower() alone: it turns the Kelvin sign into a k.
    name = text.lower() if text.isascii() else text
    if not name.endswith("."):
        raise ValueError(f"{text!r} is not fully qualified: end it with a dot")
    labels = name[:-1].split(".") if name != "." else []
    if len(name) > 254 or not all(_LABEL_RE.fullmatch(label) for label in labels):
        raise ValueError(f"{text!r} is not a domain name (labels of 1 to 63 letters, digits, - or _; 253 in all)")
    return name


def split_listen(text: str) -> tuple[str, int]:
    """(host, port) of `127.0.0.1:53` or `[::1]:53`; ValueError otherwise. Port 0 means: any free one."""
    host, colon, port = text.rpartition(":")
    try:
        ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        number = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else -1
    except ValueError:
        number = -1
    bracketed = host.startswith("[")
    if not colon or not 0 <= number <= 65535 or (":" in host) != bracketed:
        raise ValueError(f"{text!r} is not ADDRESS:PORT, such as 127.0.0.1:8080 or [::1]:8080")
    return (host[1:-1] if bracketed else host), number


def _check_listen(text: str) -> str:
    split_listen(text)
    return text


def _check_address(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if getattr(address, "scope_id", None):
        raise ValueError(f"{text!r} has a zone index; a DNS answer cannot carry one")
    return str(address)


Domain = Annotated[str, AfterValidator(check_domain)]
Listen = Annotated[str, AfterValidator(_check_listen)]
Address = Annotated[str, AfterValidator(_check_address)]


class Section(BaseModel):
    """A mapping of the configuration file: unknown keys refused, no value guessed from another type, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=False)


class Dns(Section):
    """Where and how dnsd answers."""

    listen: list[Listen] = Field(min_length=1, max_length=64, description="addresses answered on, UDP and TCP")
    nsid: str = Field(default="", max_length=64, description="sent when a client asks for NSID (RFC 5001)")
    max_udp_size: Size = Field(default=1232, ge=512, le=4096, description="largest UDP answer (DNS flag day 2020)")
    tcp_idle: Duration = Field(default=10.0, gt=0, description="a TCP connection without a query is closed after this")
    metrics: list[Listen] = Field(
        default_factory=list, max_length=16, description="where a `dnsd` process of its own serves /metrics and health"
    )
    tcp_connections: int = Field(default=512, ge=1, le=65536, description="open TCP connections at once")


class Zone(Section):
    """One zone that dnsd is authoritative for, in a standard master file (RFC 1035 5)."""

    origin: Domain = Field(description="apex of the zone")
    file: str = Field(min_length=1, description="its master file")


class RegionTable(Section):
    """A file that maps prefixes to labels; earlier tables win over later ones."""

    name: Name = Field(description="what `match` calls it")
    file: str = Field(min_length=1, description="CSV `prefix,label` (also .gz), or an mmdb file")
    format: Literal["csv", "mmdb"] = Field(default="csv", description="what `file` holds")
    label: str = Field(default="", description="for mmdb: path to the label in a record, such as country.iso_code")
    labels_as_regions: bool = Field(default=False, description="every label becomes a region of its own")
    parent: Name | None = Field(default=None, description="parent of the regions made by labels_as_regions")


class Region(Section):
    """A set of client prefixes; its parent is asked when nothing is known from here."""

    parent: Name | None = Field(default=None, description="the wider region it lies in; default: world")
    match: list[str] = Field(default_factory=list, description="TABLE:LABEL entries")
    prefixes: list[str] = Field(default_factory=list, description="inline prefixes, stronger than tables")
    precedence: int = Field(
        default=0, ge=-1000, le=1000, description="where regions overlap, the higher one wins, before anything else"
    )


class _Check(Section):
    interval: Duration = Field(default=5.0, ge=0.1, le=3600, description="time between two probes of a mirror")
    timeout: Duration = Field(default=1.0, ge=0.01, le=60, description="an answer that takes longer is a loss")

    @model_validator(mode="after")
    def _timeout_fits(self) -> _Check:
        if self.timeout > self.interval:
            raise ValueError(f"timeout {self.timeout:g}s is longer than interval {self.interval:g}s: make it shorter")
        return self


class IcmpCheck(_Check):
    """ICMP echo (RFC 792, RFC 4443): RTT of the network path alone."""

    kind: Literal["icmp"] = Field(description="ICMP echo")
    payload_size: Size = Field(default=24, ge=0, le=1400, description="data in an echo request")


class TcpCheck(_Check):
    """TCP connect: RTT of SYN and SYN-ACK; a refused connection is a loss."""

    kind: Literal["tcp"] = Field(description="TCP connect")
    port: int = Field(ge=1, le=65535, description="the mirror's port")


class HttpCheck(_Check):
    """HTTP or HTTPS request: time to first byte, and the status must be one of `expect`."""

    kind: Literal["http"] = Field(description="HTTP or HTTPS request")
    port: int = Field(default=80, ge=1, le=65535, description="the mirror's port; HTTPS is mostly on 443")
    tls: bool = Field(default=False, description="HTTPS instead of HTTP")
    path: str = Field(default="/", pattern=r"^/[!-~]*$", max_length=1024, description="what is asked for")
    host: str = Field(default="", max_length=255, description="Host header and SNI; default: the service's name")
    expect: list[int] = Field(
        default_factory=lambda: [200, 204, 301, 302, 304], description="status codes that count as a success"
    )
    verify: bool = Field(default=True, description="check the certificate against `host`")


Check = Annotated[IcmpCheck | TcpCheck | HttpCheck, Field(discriminator="kind")]


class Mirror(Section):
    """A node that can be answered."""

    addresses: list[Address] = Field(
        min_length=1, max_length=16, description="what is answered: A from the IPv4, AAAA from the IPv6 ones"
    )
    region: Name | None = Field(default=None, description="where it stands; used when nothing was measured")
    cost: int = Field(default=0, ge=0, description="lower wins between mirrors of equal RTT")
    max_load: Share = Field(default=0.9, gt=0, description="a mirror that reports more load goes behind the others")
    drained: bool = Field(default=False, description="start administratively down; `nearpath undrain` lifts it")


class Service(Section):
    """A steered owner name and its mirrors."""

    mirrors: list[Name] = Field(min_length=1, max_length=256, description="its mirrors; the order is the last resort")
    checks: list[Name] = Field(min_length=1, max_length=8, description="a mirror is up when all of them pass")
    rtt_check: Name | None = Field(default=None, description="the check whose RTT ranks; default: the first of checks")
    answers: int = Field(default=1, ge=1, le=16, description="how many addresses, best first")
    ttl: Duration = Field(default=30.0, ge=1, le=86400, description="TTL of a live answer; degraded ones get less")
    max_lag: Duration | None = Field(
        default=None, description="mirrors whose sync stamp lags more, or is missing, are left out; 15s or more"
    )
    min_version: int | None = Field(
        default=None, ge=0, description="mirrors whose sync stamp has an older version, or is missing, are left out"
    )
    tree: Name | None = Field(
        default=None, description="the synced tree whose stamps count; default: all of the mirror"
    )
    prefer: dict[Name, dict[Name, int]] = Field(
        default_factory=dict, description="region -> mirror -> local preference (default 100, higher wins)"
    )


class Agent(Section):
    """A vantage: a probe agent that may report for a region."""

    region: Name = Field(description="the region it measures for")
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="from `nearpath agent-token`")


class Node(Section):
    """A mirror node whose syncd may send stamps: how fresh its copy of each tree is."""

    mirrors: list[Name] = Field(min_length=1, max_length=64, description="the mirrors that it serves, mostly one")
    token_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="from `nearpath agent-token`")


class Tls(Section):
    """Certificate and key of the report interface, PEM files."""

    cert: str = Field(description="certificate with its chain")
    key: str = Field(description="private key, mode 0600")


class Report(Section):
    """Where agents fetch targets and deliver samples, and nodes deliver stamps."""

    listen: list[Listen] = Field(
        default_factory=list, max_length=16, description="where agents and nodes reach it; empty: none can"
    )
    tls: Tls | None = None
    max_body: Size = Field(default=4 << 20, ge=1024, le=64 << 20, description="largest report that is taken")


class Metrics(Section):
    """Where /metrics, /healthz and /readyz are served; empty: nowhere."""

    listen: list[Listen] = Field(default_factory=list, max_length=16, description="where it is served")


class Damping(Section):
    """Flap damping after RFC 2439: each fall adds 1000 to a penalty that halves every `half_life`."""

    half_life: Duration = Field(default=120.0, gt=0, description="time in which a penalty halves")
    suppress: int = Field(default=2500, gt=0, description="above this an up mirror stays out")
    reuse: int = Field(default=1000, gt=0, description="below this it may come back")
    max_suppress: Duration = Field(default=1800.0, gt=0, description="longest time a flap history can keep it out")

    @model_validator(mode="after")
    def _ordered(self) -> Damping:
        if self.reuse >= self.suppress:
            raise ValueError(f"reuse {self.reuse} must be below suppress {self.suppress}")
        # RFC 2439 4.2: the penalty is cut off at what decays to `reuse` within `max_suppress`.
        halvings = self.max_suppress / self.half_life
        if halvings < 64 and self.reuse * 2.0**halvings <= self.suppress:
            ceiling = self.reuse * 2.0**halvings
            raise ValueError(
                f"nothing would ever be damped: with max_suppress {self.max_suppress:g}s and half_life "
                f"{self.half_life:g}s a penalty is never above {ceiling:.0f} (reuse * 2^(max_suppress / half_life)), and "
                f"suppress is {self.suppress}: raise max_suppress or lower half_life"
            )
        return self


class Steering(Section):
    """How samples become decisions."""

    live_for: Duration = Field(default=30.0, gt=0, description="measured within this: live (at least 3 intervals)")
    stale_for: Duration = Field(default=3600.0, gt=0, description="measured within this: stale; older is not used")
    fall: int = Field(default=3, ge=1, le=20, description="losses in a row that make a mirror down")
    rise: int = Field(default=5, ge=1, le=100, description="successes in a row before it may come back")
    hold_down: Duration = Field(default=10.0, ge=0, description="least time a mirror stays down")
    dwell: Duration = Field(default=20.0, ge=0, description="how long a challenger must stay better")
    min_gain: Duration = Field(default=0.002, ge=0, description="a challenger must be faster by this")
    min_gain_share: Share = Field(default=0.05, description="and by this share of the incumbent's RTT")
    confidence: float = Field(default=2.0, ge=0, le=10, description="and by this many standard errors")
    damping: Damping = Damping()


class Config(Section):
    """The appliance's configuration file."""

    version: Literal[1] = Field(description="of the file's form")
    state_dir: str = Field(min_length=1, description="where the appliance keeps its state")
    dns: Dns
    zones: list[Zone] = Field(default_factory=list)
    region_tables: list[RegionTable] = Field(default_factory=list)
    regions: dict[Name, Region] = Field(default_factory=dict)
    checks: dict[Name, Check] = Field(default_factory=dict, description="how agents probe mirrors")
    mirrors: dict[Name, Mirror] = Field(default_factory=dict)
    services: dict[Domain, Service] = Field(default_factory=dict)
    agents: dict[Name, Agent] = Field(default_factory=dict)
    nodes: dict[Name, Node] = Field(
        default_factory=dict, description="mirror nodes whose syncd may send stamps, and for which mirrors"
    )
    report: Report = Report()
    metrics: Metrics = Metrics()
    steering: Steering = Steering()
    history: Duration = Field(default=600.0, ge=60, description="how long accepted samples are kept on disk")


class Source(Section):
    """Local addresses the agent probes from, when the host has several."""

    ipv4: Address | None = Field(default=None, description="for IPv4; default: as the system chooses")
    ipv6: Address | None = Field(default=None, description="for IPv6; default: as the system chooses")


class Spool(Section):
    """Samples kept on disk while the appliance is away; the oldest go first when it is full."""

    max_samples: int = Field(default=1_000_000, ge=1000, le=100_000_000, description="samples kept, some 100 B each")


class AgentConfig(Section):
    """The probe agent's configuration file."""

    version: Literal[1] = Field(description="of the file's form")
    name: Name = Field(description="as under `agents` in the appliance's file")
    appliance: str = Field(pattern=r"^https?://[!-~]+$", description="URL of the appliance's report interface")
    ca_file: str | None = Field(default=None, description="PEM file to trust instead of the system's certificates")
    token_file: str = Field(min_length=1, description="file with the agent's token, mode 0600")
    state_dir: str = Field(min_length=1, description="where the agent keeps its spool and the last targets")
    source: Source = Source()
    concurrency: int = Field(default=64, ge=1, le=4096, description="probes under way at once")
    deliver_every: Duration = Field(default=0.25, ge=0.05, le=60, description="samples are sent this often")
    spool: Spool = Spool()
    metrics: Metrics = Metrics()
