"""dig as a client in the lab: what a real resolver's user would see, taken apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.lab.topology import LabError

if TYPE_CHECKING:
    from tests.lab.wan import Wan

_STATUS = re.compile(r"^;; ->>HEADER<<- opcode: \w+, status: (\w+), id: \d+", re.MULTILINE)
_FLAGS = re.compile(r"^;; flags:([ a-z]*);", re.MULTILINE)
_SUBNET = re.compile(r"^; CLIENT-SUBNET: \S+/(\d+)/(\d+)", re.MULTILINE)
_EDE = re.compile(r"^; EDE: (\d+)[^:\n]*(?:: \((.*)\))?", re.MULTILINE)
_RECORD = re.compile(r"^([^;\s]\S*)\s+(\d+)\s+IN\s+([A-Z0-9]+)\s+(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """A response as dig shows it."""

    rcode: str
    flags: frozenset[str]
    records: tuple[tuple[str, int, str, str], ...]  # the answer section: owner name, TTL in s, type, data
    scope_len: int | None  # of the ECS option, None without one
    ede: tuple[tuple[int, str], ...]  # Extended DNS Errors (RFC 8914): code, text
    text: str

    @property
    def addresses(self) -> list[str]:
        """All A and AAAA of the answer, in order."""
        return [data for _, _, rtype, data in self.records if rtype in {"A", "AAAA"}]

    @property
    def ttl_s(self) -> int | None:
        """The smallest TTL of the answer."""
        return min((ttl for _, ttl, _, _ in self.records), default=None)


class NoAnswer(LabError):
    """The server did not answer in time, or refused the connection."""


def dig(
    wan: Wan,
    node: str,
    name: str,
    rtype: str = "A",
    *,
    server: str = "dns",
    port: int = 53,
    subnet: str | None = None,
    tcp: bool = False,
    source: str | None = None,
    timeout_s: int = 2,
    family: int = 4,
    extra: Sequence[str] = (),
) -> Answer:
    """Ask `server` (a node, or an address) from `node`. One try, no recursion. NoAnswer when none comes."""
    address = wan.address(server, family) if server in wan.topology.index else server
    argv = ["dig", f"@{address}", "-p", str(port), name, rtype, "+norecurse", "+tries=1", f"+time={timeout_s}"]
    argv += [f"+subnet={subnet}"] if subnet else []
    argv += ["+tcp"] if tcp else []
    argv += ["-b", source] if source else []
    done = wan.run(node, [*argv, *extra], timeout_s=timeout_s * 3 + 5.0, check=False)
    if done.returncode == 9:  # dig(1): no reply from server
        raise NoAnswer(f"{node} asked {server} for {name} {rtype}: no answer\n{done.stdout}")
    if done.returncode != 0:
        raise LabError(f"{' '.join(argv)} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return parse(done.stdout)


def parse(text: str) -> Answer:
    """Take dig's usual output apart. LabError when there is no response in it."""
    status, flags, subnet = _STATUS.search(text), _FLAGS.search(text), _SUBNET.search(text)
    if status is None or flags is None:
        raise LabError(f"this is not a response of dig:\n{text}")
    section = text.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0]
    return Answer(
        rcode=status[1],
        flags=frozenset(flags[1].split()),
        records=tuple((owner, int(ttl), rtype, data) for owner, ttl, rtype, data in _RECORD.findall(section)),
        scope_len=int(subnet[2]) if subnet else None,
        ede=tuple((int(code), words) for code, words in _EDE.findall(text)),
        text=text,
    )
