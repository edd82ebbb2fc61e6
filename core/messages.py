"""The frozen messages that daemons exchange, with their form on the wire (JSON).

What comes from the network is validated against its type with limits before anything looks at it.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from core.config import Address, Check, Name
from core.errors import MessageError

MAX_SAMPLES_PER_REPORT = 2000
MAX_STAMPS_PER_REPORT = 1000
MAX_RTT_S = 3600.0
MAX_AGE_S = 400 * 86400.0

# A time that is no number would compare as fresh with every limit.
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

_MAX_FAULT_LEN = 200
"""A fault names keys that the sender made up: what of it goes into an answer or a log is short."""

Family = Literal[4, 6]
SyncState = Literal["fresh", "syncing", "stalled", "empty"]
Loss = Annotated[str, Field(max_length=80)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class ReportedSample:
    """One probe's outcome as the agent sends it.

    `rtt_s` is None for a lost probe, `loss` then says why (`timeout`, `refused`, `status 503`, ...). `age_s` is how long
    before the report was sent the probe ended; `age_by` names the clock it was taken from: `boot` (the boot-time clock,
    sound) or `wall` (the agent's host was rebooted in between, as sound as its wall clock). `stamp` says who took the
    times: `kernel` (socket timestamps) or `user` (monotonic clock around the system calls).
    """

    sequence: Annotated[int, Field(ge=1, lt=1 << 62)]
    mirror: Name
    check: Name
    family: Family
    rtt_s: Annotated[float, Field(ge=0, le=MAX_RTT_S)] | None
    age_s: Annotated[float, Field(ge=0, le=MAX_AGE_S)]
    loss: Loss = ""
    stamp: Literal["kernel", "user"] = "user"
    age_by: Literal["boot", "wall"] = "boot"
    load_ratio: Annotated[float, Field(ge=0, le=1000)] | None = None


@dataclass(frozen=True, slots=True, config=_STRICT)
class SampleReport:
    """What an agent posts: samples in rising sequence.

    `incarnation` is drawn when the agent's spool is created, so that an agent that lost its disk and counts from 1 again
    is not taken for one that repeats itself. `wall_s` is the agent's wall clock when it sent (to show clock skew).
    """

    incarnation: Annotated[str, Field(pattern=r"^[0-9a-f]{16,64}$")]
    wall_s: Annotated[float, Field(allow_inf_nan=False)]
    samples: Annotated[list[ReportedSample], Field(max_length=MAX_SAMPLES_PER_REPORT)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class ReportAck:
    """The appliance's answer: every sample up to and including `acked` is stored; the agent may forget them."""

    acked: int


@dataclass(frozen=True, slots=True, config=_STRICT)
class Target:
    """One thing to probe: the address and port of a mirror with one check."""

    mirror: Name
    check: Name
    family: Family
    address: Address
    host: str
    how: Check


@dataclass(frozen=True, slots=True, config=_STRICT)
class TargetList:
    """All that an agent has to probe; `etag` changes when and only when the list does."""

    etag: str
    targets: Annotated[list[Target], Field(max_length=100_000)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class PathSample:
    """One probe's outcome, accepted: who saw it and when on the appliance's timeline (`taken_s`).

    `quarantined` marks a sample whose time cannot be trusted (its clock jumped); it is kept and counted, never estimated.
    """

    agent: str
    region: str
    mirror: str
    check: str
    family: Family
    sequence: int
    rtt_s: float | None
    taken_s: float
    loss: str = ""
    stamp: Literal["kernel", "user"] = "user"
    load_ratio: float | None = None
    quarantined: bool = False
    incarnation: str = ""


@dataclass(frozen=True, slots=True, config=_STRICT)
class ReportedStamp:
    """How fresh a node's copy of one tree is, as its syncd sends it.

    `lag_s` was true `age_s` before the report was sent. `empty`: there is no content to serve, whatever the lag.
    `busy`: the node takes in so much content now that it should get fewer clients.
    """

    tree: Name
    version: Annotated[int, Field(ge=0, lt=1 << 62)]
    root_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{0,128}$")]
    lag_s: Annotated[float, Field(ge=0, le=MAX_AGE_S)]
    state: SyncState
    busy: bool
    age_s: Annotated[float, Field(ge=0, le=MAX_AGE_S)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class StampReport:
    """What syncd posts: the stamps of a node's trees, each tree once; all of them in every report.

    A tree that comes in none of the reports of a minute is taken for one that the node no longer has. `wall_s` is the
    node's wall clock when it sent (to show clock skew).
    """

    node: Name
    wall_s: Annotated[float, Field(allow_inf_nan=False)]
    stamps: Annotated[list[ReportedStamp], Field(max_length=MAX_STAMPS_PER_REPORT)]


@dataclass(frozen=True, slots=True, config=_STRICT)
class StampAck:
    """The appliance's answer: so many stamps were stored, one for each tree and each mirror of the node."""

    stored: int


@dataclass(frozen=True, slots=True, config=_STRICT)
class SyncStamp:
    """How fresh a mirror's copy of one tree is (`lag_s` at `taken_s`), and which node said so ("": not known)."""

    mirror: Name
    tree: Name
    version: int
    root_hash: str
    lag_s: float
    state: SyncState
    taken_s: float
    busy: bool = False
    node: Annotated[str, Field(max_length=63)] = ""


@dataclass(frozen=True, slots=True, config=_STRICT)
class MirrorAdmin:
    """The administrative state of a mirror, as last set by an operator."""

    mirror: Name
    drained: bool
    by: Annotated[str, Field(max_length=200)]
    since_s: float


T = TypeVar("T")

_adapters: dict[object, TypeAdapter[object]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    adapter = _adapters.get(kind)
    if adapter is None:
        adapter = _adapters[kind] = TypeAdapter(kind)
    return adapter  # type: ignore[return-value]


def encode(message: object) -> bytes:
    """The JSON form of a message."""
    return _adapter(type(message)).dump_json(message)


def decode(kind: type[T], data: bytes | str) -> T:
    """The message of type `kind` in `data`; MessageError (with the first faults) when it is not one."""
    try:
        return _adapter(kind).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[:3]
        faults = "; ".join(f"{'.'.join(map(str, f['loc'])) or 'body'}: {f['msg']}"[:_MAX_FAULT_LEN] for f in first)
        raise MessageError(f"not a {kind.__name__}", faults) from None
