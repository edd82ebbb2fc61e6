"""Prometheus metrics of dnsd: the serving threads' tallies, summed when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from dnslib import RCODE
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from dnsd.image import Image
from dnsd.tally import LATENCY_BOUNDS_S, Tally
from policy.table import Quality

Metric = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


def make_metrics(
    registry: CollectorRegistry, tallies: Callable[[], Sequence[Tally]], image: Callable[[], Image | None]
) -> None:
    """Register dnsd's metrics, read from `tallies()` and `image()` at each scrape; no cost for queries."""
    registry.register(_DnsCollector(tallies, image))


class _DnsCollector(Collector):
    def __init__(self, tallies: Callable[[], Sequence[Tally]], image: Callable[[], Image | None]) -> None:
        self._tallies = tallies
        self._image = image

    def collect(self) -> Iterable[Metric]:
        """All families; `image` and `tallies` are read once."""
        tallies = self._tallies()
        yield from _answers(tallies)
        yield from _totals(tallies)
        yield _latency(tallies)
        image = self._image()
        if image is not None:
            yield from _image_gauges(image)

    def describe(self) -> Iterable[Metric]:
        """Nothing: the families are known when there is an image."""
        return ()


def rcode_name(rcode: int) -> str:
    """`NOERROR`, `BADVERS`, ...; the number where it has no name here."""
    if rcode == 16:
        return "BADVERS"
    return str(RCODE.forward.get(rcode, rcode))


def _answers(tallies: Sequence[Tally]) -> Iterable[Metric]:
    by_rcode: dict[tuple[str, str], int] = {}
    steered: dict[tuple[str, str], int] = {}
    with_ecs: dict[tuple[str, str], int] = {}
    truncated: dict[str, int] = {}
    for tally in tallies:
        for key, count in tally.answers.copy().items():
            where = tally.transport
            _add(by_rcode, (where, rcode_name(key.rcode)), count)
            _add(with_ecs, (where, "yes" if key.ecs else "no"), count)
            if key.quality >= 0:
                _add(steered, (Quality(key.quality).label, "yes" if key.ecs else "no"), count)
            if key.truncated:
                truncated[where] = truncated.get(where, 0) + count
    yield _counter("dnsd_answers", "Answers sent, by RCODE", ("transport", "rcode"), by_rcode)
    yield _counter("dnsd_ecs_answers", "Answers by whether a client subnet was given", ("transport", "ecs"), with_ecs)
    yield _counter("dnsd_steered_answers", "Answers with steered addresses", ("quality", "ecs"), steered)
    cut = {(where,): count for where, count in truncated.items()}
    yield _counter("dnsd_truncated_answers", "Answers with TC set", ("transport",), cut)


def _add(counts: dict[tuple[str, str], int], key: tuple[str, str], count: int) -> None:
    counts[key] = counts.get(key, 0) + count


def _counter(
    name: str, text: str, labels: Sequence[str], counts: dict[tuple[str, str], int] | dict[tuple[str], int]
) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for key, count in sorted(counts.items()):
        family.add_metric(list(key), count)
    return family


_TOTALS = (
    ("dnsd_queries", "received", "Messages received"),
    ("dnsd_silent", "silent", "Messages that get no answer: too short, or responses themselves"),
    ("dnsd_errors", "errors", "Queries answered SERVFAIL because of a fault in dnsd; see the log"),
    ("dnsd_send_errors", "send_errors", "Answers the system could not send"),
    ("dnsd_tcp_connections", "connections", "TCP connections accepted"),
    ("dnsd_tcp_shed", "connections_shed", "TCP connections closed to make room for new ones"),
    ("dnsd_tcp_timeouts", "timeouts", "TCP connections closed because a query or the taking of an answer was too slow"),
)


def _totals(tallies: Sequence[Tally]) -> Iterable[Metric]:
    for name, field, text in _TOTALS:
        family = CounterMetricFamily(name, text, labels=("transport",))
        sums: dict[str, int] = {}
        for tally in tallies:
            if tally.transport == "tcp" or not name.startswith("dnsd_tcp"):
                sums[tally.transport] = sums.get(tally.transport, 0) + getattr(tally, field)
        for transport, total in sorted(sums.items()):
            family.add_metric([transport], total)
        yield family
    open_now = GaugeMetricFamily("dnsd_tcp_connections_open", "TCP connections open now")
    open_now.add_metric([], sum(tally.connections_open for tally in tallies))
    yield open_now


def _latency(tallies: Sequence[Tally]) -> Metric:
    family = HistogramMetricFamily(
        "dnsd_answer_seconds", "Time to make and hand over an answer, of one query in 16", labels=("transport",)
    )
    for transport in sorted({tally.transport for tally in tallies}):
        mine = [tally for tally in tallies if tally.transport == transport]
        counts = [sum(column) for column in zip(*(tally.latency_counts for tally in mine), strict=True)]
        bounds = [*(f"{bound:g}" for bound in LATENCY_BOUNDS_S), "+Inf"]
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        family.add_metric([transport], buckets, sum(tally.latency_sum_s for tally in mine))
    return family


def _image_gauges(image: Image) -> Iterable[Metric]:
    generation = GaugeMetricFamily("dnsd_image_generation", "Generation of the image being served")
    generation.add_metric([], image.generation)
    yield generation
    serial = GaugeMetricFamily("dnsd_zone_serial", "SOA serial of each zone", labels=("zone",))
    for zone in image.zones:
        serial.add_metric([zone.name], zone.serial)
    yield serial
    if image.table is not None:
        table = GaugeMetricFamily("dnsd_table_generation", "Generation of the steering table being served")
        table.add_metric([], image.table.generation)
        yield table
        decided = GaugeMetricFamily(
            "dnsd_table_decided_seconds", "When the table was decided, on the appliance's timeline"
        )
        decided.add_metric([], image.table.decided_s)
        yield decided
