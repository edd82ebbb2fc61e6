"""A network that is cut under open connections, in namespaces of the test's own: the other upstream answers."""

from __future__ import annotations

import json
import socket

import pytest

from local_infer.upstreams.io_sockets import socket_options
from tests.probes.netspace import run_in_netns

FAR = """
mount -t tmpfs tmpfs /run
ip netns add far
ip link add near0 type veth peer name far0 netns far
ip addr add 10.99.0.1/24 dev near0
ip link set near0 up
ip -n far addr add 10.99.0.2/24 dev far0
ip -n far link set far0 up
"""

SERVER = """
import asyncio
from tests.local_infer.mock_upstream import MockUpstream, Reply
import socket, sys

async def main():
    upstream = MockUpstream(lambda seen: Reply.slow(30.0) if "think" in seen.body.decode() else Reply())
    real = socket.socket.bind
    socket.socket.bind = lambda sock, address: real(sock, ("10.99.0.2", address[1]))
    await upstream.up()
    print(upstream.port, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""

PROGRAM = f"""
import asyncio, json, subprocess, sys
from random import Random
from prometheus_client import CollectorRegistry
from core.config_infer import InferConfig
from core.io_clock import AnchoredClock
from local_infer.upstreams.io_upstreams import IoUpstreams
from local_infer.model import Ask, Client, Endpoint
from tests.local_infer.mock_upstream import MockUpstream

clock = AnchoredClock()

def ask(text):
    fields = {{"model": "m", "messages": [{{"role": "user", "content": text}}]}}
    return Ask("r", Endpoint.CHAT, json.dumps(fields).encode(), fields, "m", False, Client("c", "t"), clock.now())

async def main(port):
    async with MockUpstream() as near:
        config = InferConfig.model_validate({{
            "version": 1, "state_dir": "s", "listen": ["127.0.0.1:0"], "anonymous": True,
            "upstreams": {{
                "far": {{"url": f"http://10.99.0.2:{{port}}/v1", "preference": 200}}, "near": {{"url": near.url}},
            }},
            "routing": {{"give_up": "3s", "connect": "1s", "probe_every": "1h"}},
        }})
        upstreams = await IoUpstreams.start(config, clock.now, Random(7), CollectorRegistry())
        told = [(await upstreams.ask(ask("x"), clock.now() + 60)).origin.name]
        thinking = asyncio.create_task(upstreams.ask(ask("think"), clock.now() + 60))
        await asyncio.sleep(0.3)
        subprocess.run(["ip", "-n", "far", "link", "set", "far0", "down"], check=True)
        # Sent over the kept connection, and waited for on the other: both have to find out that nobody is there.
        answers = await asyncio.gather(upstreams.ask(ask("y"), clock.now() + 60), thinking)
        told += [answer.origin.name for answer in answers]
        told.append(upstreams._ranking.members["far"].health.loss)
        print(json.dumps(told))
        await upstreams.close()

server = subprocess.Popen(
    ["ip", "netns", "exec", "far", sys.executable, "-c", {SERVER!r}], stdout=subprocess.PIPE, text=True
)
try:
    asyncio.run(main(int(server.stdout.readline())))
finally:
    server.kill()
    server.wait()
"""


def test_a_cut_network_is_told_from_thinking_in_time_for_another_upstream() -> None:
    told = json.loads(run_in_netns(FAR, PROGRAM).splitlines()[-1])  # log lines come before
    assert told == ["far", "near", "near", "timeout"]


@pytest.mark.parametrize("give_up_s", [0.1, 1.0, 2.0, 5.0, 60.0, 600.0])
def test_silence_is_found_out_within_give_up_and_the_kernel_takes_the_values(give_up_s: float) -> None:
    with socket.socket() as sock:
        for level, option, value in socket_options(give_up_s):
            sock.setsockopt(level, option, value)
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= give_up_s * 1000
