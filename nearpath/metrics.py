"""The appliance's own metrics, collected from its state when somebody asks: nothing is counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from policy.freshness import STATES, lag_at
from policy.table import Quality

if TYPE_CHECKING:
    from nearpath.appliance import Appliance


def register_metrics(registry: CollectorRegistry, appliance: Appliance) -> None:
    """Expose the appliance on `registry`."""
    registry.register(_Collector(appliance))


class _Collector(Collector):
    def __init__(self, appliance: Appliance) -> None:
        self._appliance = appliance

    def describe(self) -> list[Metric]:
        """Nothing: the registry would otherwise collect during the start."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._whole()
        yield from self._agents()
        yield from self._nodes()
        yield from self._stamps()
        yield from self._catchments()

    def _whole(self) -> Iterator[Metric]:
        steerer, engine = self._appliance.steerer, self._appliance.steerer.engine
        yield _gauge("nearpath_ready", "1 when ready, see /readyz", 0 if self._appliance.not_ready() else 1)
        yield _gauge("nearpath_generation", "generation of the steering table", engine.generation)
        yield _gauge("nearpath_decide_seconds", "duration of the last decision pass", steerer.decide_s)
        yield _gauge(
            "nearpath_reload_failed", "1 while the last reload failed", int(bool(self._appliance.reload_error))
        )
        yield _gauge("nearpath_store_failed", "1 while state cannot be stored", int(bool(steerer.bus_error)))
        yield _gauge("nearpath_clock_skew_seconds", "wall clock minus timeline", self._appliance.clock.skew_s())
        yield _counter("nearpath_switches", "changes of a first place", engine.switches())
        yield _counter("nearpath_decision_failures", "decision passes that raised", steerer.failures)
        yield _counter("nearpath_samples_repeated", "samples left out as repeated", steerer.repeated)
        yield _counter("nearpath_samples_unknown", "samples of paths not configured", engine.unknown_samples)
        api = self._appliance.api
        yield _counter("nearpath_agents_refused", "requests with a bad name or token", api.refused)
        yield _counter("nearpath_nodes_refused", "stamp reports with a bad name or token", api.nodes_refused)

    def _agents(self) -> Iterator[Metric]:
        now = self._appliance.clock.now()
        samples = CounterMetricFamily("nearpath_samples", "samples taken in", labels=["agent"])
        missing = CounterMetricFamily("nearpath_samples_missing", "samples an agent had to drop", labels=["agent"])
        quarantined = CounterMetricFamily("nearpath_samples_quarantined", "samples of untrusted time", labels=["agent"])
        age = GaugeMetricFamily("nearpath_agent_age_seconds", "since the agent was heard", labels=["agent"])
        skew = GaugeMetricFamily("nearpath_agent_clock_skew_seconds", "agent's clock minus ours", labels=["agent"])
        for name, state in self._appliance.api.agents.items():
            samples.add_metric([name], state.samples)
            missing.add_metric([name], state.missing)
            quarantined.add_metric([name], state.quarantined)
            if state.heard_s is not None:
                age.add_metric([name], now - state.heard_s)
            if state.skew_s is not None:
                skew.add_metric([name], state.skew_s)
        yield from (samples, missing, quarantined, age, skew)

    def _nodes(self) -> Iterator[Metric]:
        now = self._appliance.clock.now()
        stamps = CounterMetricFamily("nearpath_stamps", "stamps taken in and stored", labels=["node"])
        age = GaugeMetricFamily("nearpath_node_age_seconds", "since the mirror node was heard", labels=["node"])
        skew = GaugeMetricFamily("nearpath_node_clock_skew_seconds", "node's clock minus ours", labels=["node"])
        for name, state in self._appliance.api.nodes.items():
            stamps.add_metric([name], state.stamps)
            if state.heard_s is not None:
                age.add_metric([name], now - state.heard_s)
            if state.skew_s is not None:
                skew.add_metric([name], state.skew_s)
        yield from (stamps, age, skew)

    def _stamps(self) -> Iterator[Metric]:
        now, labels = self._appliance.clock.now(), ["mirror", "tree"]
        words = ", ".join(f"{i} {state}" for i, state in enumerate(STATES))
        lag = GaugeMetricFamily("nearpath_sync_lag_seconds", "how far the content is behind", labels=labels)
        version = GaugeMetricFamily("nearpath_sync_version", "version of the content", labels=labels)
        state = GaugeMetricFamily("nearpath_sync_state", f"state of the content: {words}", labels=labels)
        busy = GaugeMetricFamily("nearpath_sync_busy", "1 while the node takes in much content", labels=labels)
        age = GaugeMetricFamily("nearpath_sync_stamp_age_seconds", "age of the stamp", labels=labels)
        for stamp in self._appliance.steerer.engine.stamps():
            key = [stamp.mirror, stamp.tree]
            lag.add_metric(key, lag_at(stamp, now))
            version.add_metric(key, stamp.version)
            state.add_metric(key, STATES.index(stamp.state))
            busy.add_metric(key, int(stamp.busy))
            age.add_metric(key, max(0.0, now - stamp.taken_s))
        yield from (lag, version, state, busy, age)

    def _catchments(self) -> Iterator[Metric]:
        labels = ["service", "family", "catchment"]
        quality = GaugeMetricFamily(
            "nearpath_quality",
            f"step of the ladder: {', '.join(f'{q.value} {q.label}' for q in Quality)}",
            labels=labels,
        )
        fail_open = GaugeMetricFamily("nearpath_fail_open", "1 when all mirrors were left out", labels=labels)
        chosen = GaugeMetricFamily("nearpath_chosen", "1 for the mirror answered first", labels=[*labels, "mirror"])
        rtt = GaugeMetricFamily("nearpath_rtt_seconds", "RTT that ranks a mirror", labels=[*labels, "mirror"])
        up = GaugeMetricFamily("nearpath_up", "1 up, 0 down; absent while unknown", labels=[*labels, "mirror"])
        engine, now = self._appliance.steerer.engine, self._appliance.clock.now()
        for i, unit in enumerate(engine.units):
            decision = engine.decisions[i]
            if decision is None:
                continue
            key = [unit.catchment.service, str(unit.catchment.family), unit.catchment.name]
            quality.add_metric(key, decision.quality.value)
            fail_open.add_metric(key, int(bool(decision.fail_open)))
            for c in engine.candidates(i, now):
                chosen.add_metric([*key, c.name], int(c.name == decision.order[0]))
                if c.rtt_s is not None:
                    rtt.add_metric([*key, c.name], c.rtt_s)
                if c.up is not None:
                    up.add_metric([*key, c.name], int(c.up))
        yield from (quality, fail_open, chosen, rtt, up)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)
