"""Two gateways on two mirrors over a WAN, two upstreams, DNS in front, a client that follows it.

While a gateway is cut off from both upstreams its clients get marked answers, and DNS names the other mirror. Nobody does
anything for it, and nobody does anything when the paths are back.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from tests.lab.steered import Steered, here, repeating
from tests.lab.wan import ROOT, Node, Wan

pytestmark = [pytest.mark.lab, pytest.mark.timeout(180)]

SERVICE = "api.mirror.example."
GATEWAYS = ("gw-a", "gw-b")
UPSTREAMS = ("up-1", "up-2")
KEY = "np-lab-key"
GIVE_UP_S = 1.0
CONFIGURED_S = 3 * GIVE_UP_S
"""An answer must be there by then, whatever is cut: `give_up`, and as much again twice for a machine that is busy."""
FAQ = '- {question: "How do I change my password?", answer: "In the settings."}\n'
ASKED_BEFORE, IN_THE_FAQ, NEVER_ASKED = "What is the opening time?", "How do I change my password?", "Sing a song"


@dataclass(frozen=True)
class Got:
    """An answer of a gateway as a client sees it."""

    gateway: str
    status: int
    degraded: str
    """X-Degraded, or empty."""
    model: str
    text: str
    took_s: float


class Mirrors:
    """The two mirrors with all around them, and what a client does."""

    def __init__(self, wan: Wan) -> None:
        self.wan = wan
        self.steered = Steered(wan, SERVICE, GATEWAYS)

    # -- starting

    def start_all(self) -> None:
        above = self.wan.directory
        (above / "faq.yaml").write_text(FAQ)
        argv = [sys.executable, "-m", "local_infer.main", "build", "--faq", above / "faq.yaml", "--out", above / "faq"]
        self.wan.run("dns", argv, timeout_s=60, cwd=ROOT)
        for upstream in UPSTREAMS:
            address = self.wan.address(upstream)
            self.wan.python(upstream, "-m", "tests.lab.api_server", upstream, address, "80", name=upstream)
        for gateway in GATEWAYS:
            self._start_gateway(gateway)
        self.steered.start({"path": "/readyz", "interval": "500ms", "timeout": "400ms"}, rise=2)

    def _start_gateway(self, gateway: str) -> None:
        above = self.wan.directory
        config = {
            "version": 1,
            "node": gateway,
            "state_dir": f"{gateway}-state",
            "listen": ["0.0.0.0:80"],
            "keys": {"client": {"token_sha256": hashlib.sha256(KEY.encode()).hexdigest()}},
            "upstreams": {name: {"url": f"http://{self.wan.address(name)}/v1"} for name in UPSTREAMS},
            "routing": {
                "give_up": f"{GIVE_UP_S:g}s", "connect": "500ms", "probe_every": "500ms",
                "breaker": {"open_for": "500ms", "open_most": "1s"},
            },
            # Not fresh in the next second: with upstreams it is asked again, without them it is a stale answer.
            "cache": {"fresh_for": "0s", "revalidate_for": "0s"},
            "retrieval": {"index": str(above / "faq")},
        }  # fmt: skip
        file = above / f"{gateway}.yaml"
        file.write_text(yaml.safe_dump(config))
        self.wan.python(gateway, "-m", "local_infer.main", "run", "-c", file, name=gateway)

    # -- doing

    def cut(self, gateway: str) -> None:
        """Part it from both upstreams, and from nobody else."""
        for upstream in UPSTREAMS:
            self.wan.cut(gateway, upstream)

    def join(self, gateway: str) -> None:
        """Undo `cut`."""
        for upstream in UPSTREAMS:
            self.wan.join(gateway, upstream)

    # -- asking

    def ask(self, gateway: str, text: str, **headers: str) -> Got:
        """What a client gets that sends this question to this gateway; OSError when nothing comes."""
        body = {"model": "gpt-test", "temperature": 0, "messages": [{"role": "user", "content": text}]}
        all_headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", **headers}
        began_s = time.monotonic()
        response, raw = self._exchange(gateway, "POST", "/v1/chat/completions", json.dumps(body), all_headers)
        answer: dict[str, Any] = json.loads(raw)
        said = answer["choices"][0]["message"]["content"] if "choices" in answer else ""
        degraded = response.headers.get("X-Degraded", "")
        return Got(gateway, response.status, degraded, answer.get("model", ""), said, time.monotonic() - began_s)

    def is_ready(self, gateway: str) -> bool:
        """What the health check sees."""
        try:
            return self._exchange(gateway, "GET", "/readyz", None, {})[0].status == 200
        except OSError:
            return False

    def _exchange(
        self, gateway: str, method: str, path: str, body: str | None, headers: dict[str, str]
    ) -> tuple[http.client.HTTPResponse, bytes]:
        with self.wan.socket("here-client") as sock:
            sock.settimeout(20)
            sock.connect((self.wan.address(gateway), 80))
            connection = http.client.HTTPConnection(gateway)
            connection.sock = sock
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response, response.read()

    def has_settled(self) -> bool:
        """Both gateways are whole, and the nearer one is named."""
        return self.steered.named() == "gw-a" and all(map(self.is_ready, GATEWAYS))

    def until_named(self, gateway: str) -> None:
        """Wait until DNS names it."""
        self.wan.wait_until(lambda: self.steered.named() == gateway, 30, f"{gateway} is named")


@contextmanager
def a_client(mirrors: Mirrors) -> Iterator[list[Got]]:
    """A client that asks DNS and then what was answered before, all the time, in a thread of its own."""
    got: list[Got] = []

    def visit() -> None:
        gateway = mirrors.steered.named()
        if gateway is not None:
            try:
                got.append(mirrors.ask(gateway, ASKED_BEFORE))
            except OSError as error:
                got.append(Got(gateway, 0, "", "", str(error), 0.0))

    with repeating(visit):
        yield got


@pytest.fixture(scope="module")
def mirrors() -> Iterator[Mirrors]:
    near = {("here", "gw-a"): 10.0, ("here", "gw-b"): 30.0, ("here", "dns"): 5.0}
    with Wan([*here(), *map(Node, GATEWAYS), *map(Node, UPSTREAMS)], rtt_ms=near, default_rtt_ms=40.0) as wan:
        mirrors = Mirrors(wan)
        mirrors.start_all()
        wan.wait_until(mirrors.has_settled, 60, "both gateways serve, and the nearer one is named")
        for gateway in GATEWAYS:
            assert mirrors.ask(gateway, ASKED_BEFORE).text in UPSTREAMS
        yield mirrors


def test_a_gateway_that_is_cut_off_answers_marked_and_is_left_by_dns(mirrors: Mirrors) -> None:
    with a_client(mirrors) as got:
        mirrors.wan.wait_until(lambda: len(got) > 3, 20, "the client is served")
        mirrors.cut("gw-a")
        # One that still has the old address: what was answered before, what the FAQ has, what nobody can answer.
        stale, faq, none = (mirrors.ask("gw-a", text) for text in (ASKED_BEFORE, IN_THE_FAQ, NEVER_ASKED))
        assert (stale.status, stale.degraded.split(";")[0], stale.model) == (200, "stale", "cache/gpt-test")
        assert stale.text in UPSTREAMS
        assert (faq.status, faq.degraded.split(";")[0], faq.model) == (200, "retrieval", "local/faq")
        assert faq.text == "In the settings."
        assert (none.status, none.degraded.split(";")[0]) == (503, "none")
        refused = mirrors.ask("gw-a", IN_THE_FAQ, **{"X-Ladder-Refuse": "retrieval"})
        assert (refused.status, refused.text) == (503, "")
        assert max(one.took_s for one in (stale, faq, none, refused)) <= CONFIGURED_S

        mirrors.until_named("gw-b")
        seen = len(got)
        mirrors.wan.wait_until(lambda: len(got) > seen + 3, 20, "the client has followed")
        assert [one for one in got[-2:] if one.gateway != "gw-b" or one.degraded] == []
        assert not mirrors.is_ready("gw-a")
        mirrors.join("gw-a")
        mirrors.until_named("gw-a")
        assert mirrors.ask("gw-a", NEVER_ASKED).text in UPSTREAMS
    assert [one for one in got if one.status != 200 or one.text not in UPSTREAMS] == [], "every question was answered"
    assert {one.degraded.split(";")[0] for one in got} <= {"", "stale"}
    assert {one.gateway for one in got if one.degraded} <= {"gw-a"}
    assert max(one.took_s for one in got) <= CONFIGURED_S


def test_when_all_are_cut_off_dns_still_names_one_and_it_answers_marked(mirrors: Mirrors) -> None:
    mirrors.wan.wait_until(mirrors.has_settled, 30, "all is well again")
    with a_client(mirrors) as got:
        for gateway in GATEWAYS:
            mirrors.cut(gateway)
        mirrors.wan.wait_until(lambda: not any(map(mirrors.is_ready, GATEWAYS)), 20, "both say that they are degraded")
        seen = len(got)
        mirrors.wan.wait_until(lambda: len(got) > seen + 10, 20, "the client is served by what is kept")
        assert [one for one in got[seen + 1 :] if one.status != 200 or not one.degraded] == []
        for gateway in GATEWAYS:
            mirrors.join(gateway)
        mirrors.wan.wait_until(mirrors.has_settled, 30, "normal service, by itself")
        seen = len(got)
        mirrors.wan.wait_until(lambda: len(got) > seen + 3, 20, "the client is served")
        assert [one for one in got[seen + 2 :] if one.degraded] == []
    assert [one for one in got if one.status != 200 or one.text not in UPSTREAMS] == []
