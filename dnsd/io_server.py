"""The DNS server: UDP and TCP planes on the configured addresses, which answer from one image that can be swapped."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from core.config import Dns, split_listen
from core.errors import NearpathError
from dnsd.image import AnswerOptions, Image
from dnsd.io_bind import BindError
from dnsd.io_tcp import TcpPlane
from dnsd.io_udp import UdpPlane
from dnsd.metrics import make_metrics
from dnsd.tally import Tally

_PORT_TRIES = 20


def answer_options(config: Dns) -> AnswerOptions:
    """The part of the configuration that answers depend on; ImageError when it cannot be."""
    return AnswerOptions(config.nsid.encode(), config.max_udp_size)


class DnsServer:
    """Binds on construction (BindError names the address and what to do), serves from `start` to `stop`.

    `swap` must have been called before `start`; with a registry, the metrics of `dnsd.metrics` are put on it.
    """

    def __init__(self, config: Dns, registry: CollectorRegistry | None = None, *, reuse_port: bool = False) -> None:
        self._image: Image | None = None
        self._udp: list[UdpPlane] = []
        listens: list[str] = []
        try:
            for listen in config.listen:
                plane, tcp_listen = self._bind_pair(listen, reuse_port)
                self._udp.append(plane)
                listens.append(tcp_listen)
            self._tcp = TcpPlane(listens, self.image, idle_s=config.tcp_idle, max_connections=config.tcp_connections)
        except BaseException:
            for plane in self._udp:
                plane.close()
            raise
        if registry is not None:
            make_metrics(registry, self.tallies, lambda: self._image)

    def _bind_pair(self, listen: str, reuse_port: bool) -> tuple[UdpPlane, str]:
        """The UDP plane, and the TCP address with the same port (which the system chooses when it is 0)."""
        port = split_listen(listen)[1]
        for tries_left in reversed(range(_PORT_TRIES if port == 0 else 1)):
            plane = UdpPlane(listen, self.image, reuse_port=reuse_port)
            chosen = plane.address
            if port:
                return plane, chosen
            try:
                TcpPlane([chosen], self.image, idle_s=1.0, max_connections=1).close()
            except BindError:
                plane.close()
                if not tries_left:
                    raise
            else:
                return plane, chosen
        raise AssertionError("the last try returns or raises")

    def image(self) -> Image:
        """The image being served; NearpathError before the first `swap`."""
        image = self._image
        if image is None:
            raise NearpathError("the DNS server has no image yet", "call swap before start")
        return image

    def swap(self, image: Image) -> None:
        """Serve `image` from the next query on. One reference is replaced, so no query sees a mixture of two."""
        self._image = image

    def start(self) -> None:
        """Begin to answer on all addresses."""
        self.image()
        for plane in self._udp:
            plane.start()
        self._tcp.start()

    def stop(self) -> None:
        """Stop answering and let go of all sockets."""
        for plane in self._udp:
            plane.stop()
        self._tcp.stop()

    @property
    def addresses(self) -> list[str]:
        """`ADDRESS:PORT` of each listen address, with the real port where 0 was asked for; UDP and TCP have the same."""
        return [plane.address for plane in self._udp]

    def tallies(self) -> Sequence[Tally]:
        """The counters of all serving threads, for `dnsd.metrics`."""
        return [*(plane.tally for plane in self._udp), self._tcp.tally]
