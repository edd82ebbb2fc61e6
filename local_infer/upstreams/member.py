"""What is known of one upstream: estimates over its answers and probes, its circuit, its limits. Time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from core.config_infer import Routing, Upstream
from core.messages import PathSample
from local_infer.upstreams.attempt import Failure
from local_infer.upstreams.circuit import Circuit, CircuitState, Quantile
from local_infer.upstreams.exploring import LEAST_SAMPLES, Best, Rival
from policy.estimate import PathEstimator, PathState
from policy.evidence import Watched
from policy.plan import MirrorPlan

MAX_LANES = 512
"""(model, lane) pairs whose times are kept, by last use."""

Lane = tuple[str, str]
"""(model, lane)"""


@dataclass(slots=True)
class Times:
    """What one upstream takes in one lane."""

    ttfb: PathEstimator
    spread: Quantile
    best: Best

    def take(self, sample: PathSample) -> None:
        """One more time."""
        self.ttfb.take(sample)
        if self.ttfb.rtt_s is not None and self.ttfb.count >= LEAST_SAMPLES:
            self.best.take(self.ttfb.rtt_s, sample.taken_s)

    @property
    def best_s(self) -> float | None:
        """The least that it took of late; None: never measured."""
        return None if self.ttfb.rtt_s is None else self.best.or_else(self.ttfb.rtt_s)


class Member:
    """One upstream: what is known of it and how it stands."""

    __slots__ = (
        "asked_s",
        "circuit",
        "config",
        "health",
        "in_flight",
        "lanes",
        "limited_by",
        "limited_until_s",
        "limits",
        "lost_by",
        "name",
        "plan",
        "position",
        "probe",
        "rival",
        "steering",
        "unreached",
    )

    def __init__(self, name: str, config: Upstream, routing: Routing, position: int) -> None:
        self.name = name
        self.config = config
        self.steering = routing.steering
        self.position = position
        self.plan = Watched(MirrorPlan(name, {}, None, config.cost, 1.0, False), position, config.preference, None, ())
        self.health = PathEstimator(routing.steering)
        self.probe = PathEstimator(routing.steering)
        self.lanes: OrderedDict[Lane, Times] = OrderedDict()
        self.circuit = Circuit(routing.breaker)
        self.rival = Rival()
        self.limited_until_s = 0.0
        self.limited_by = Failure("")
        self.limits = 0
        self.in_flight = 0
        self.asked_s = 0.0
        self.unreached = False
        self.lost_by = ""

    def serves(self, model: str) -> bool:
        """Whether it may be asked for this model."""
        return not self.config.models or model in self.config.models

    def times(self, lane: Lane) -> Times:
        """Its times in a lane, made when it is new."""
        times = self.lanes.get(lane)
        if times is None:
            times = self.lanes[lane] = Times(PathEstimator(self.steering), Quantile(), Best())
            if len(self.lanes) > MAX_LANES:
                self.lanes.popitem(last=False)
        else:
            self.lanes.move_to_end(lane)
        return times

    @property
    def is_up(self) -> bool | None:
        """Up, not up (down or damped), or None: no word yet."""
        state = self.health.state
        return None if state is PathState.UNKNOWN else state is PathState.UP

    def state(self, now: float) -> str:
        """One word for metrics and status: closed, half-open, open, ejected, limited or down."""
        circuit = self.circuit.state(now)
        if circuit is not CircuitState.CLOSED:
            return str(circuit.value)
        if self.health.state is PathState.DOWN:
            return "down"
        if now < self.limited_until_s:
            return "limited"
        return "ejected" if self.circuit.is_ejected(now) else "closed"
