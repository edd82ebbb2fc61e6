"""One probe of any kind: hands a target to the prober of its check's kind."""

from __future__ import annotations

from core.config import HttpCheck, IcmpCheck, Source, TcpCheck
from core.messages import Target
from probes.io_http import hold_stamps, make_contexts, probe_http
from probes.io_icmp import IcmpProber
from probes.io_tcp import probe_tcp
from probes.report import Outcome


class Prober:
    """Probes from the given source addresses; keeps what is shared between probes (ICMP sockets, TLS settings)."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self._icmp = IcmpProber(source)
        self._contexts = make_contexts()
        self._stamps = hold_stamps()

    async def probe(self, target: Target) -> Outcome:
        """Probe once, within the check's timeout; LocalFault when this host could not make the probe."""
        match target.how:
            case IcmpCheck():
                return await self._icmp.probe(target)
            case TcpCheck():
                return await probe_tcp(target, self.source)
            case HttpCheck():
                return await probe_http(target, self.source, self._contexts)

    def close(self) -> None:
        """Close what is kept; ICMP probes under way end as local faults."""
        self._icmp.close()
        self._stamps.close()
