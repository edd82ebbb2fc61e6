"""The planes on loopback, asked by dig, kdig and plain sockets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dns.edns
import dns.message
import dns.query
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from core.config import Dns
from core.errors import NearpathError
from dnsd.image import AnswerOptions, Image, compile_image, with_table
from dnsd.io_bind import BindError
from dnsd.io_selfcheck import is_answering
from dnsd.io_server import DnsServer, answer_options
from dnsd.zone import parse_zone
from policy.regions import RegionSource, compile_regions
from policy.table import Quality, Row, SteeredService, SteeringTable

VECTORS = Path(__file__).parent.parent / "vectors" / "dns"
REGIONS = compile_regions([RegionSource("east", prefixes=("10.0.0.0/8",))])


def table(generation: int) -> SteeringTable:
    """Both addresses of an answer end in the generation, so that a mixture of two tables would show."""
    rows = tuple(
        Row(("a", "b"), (f"203.0.113.{generation}", f"198.51.100.{generation}"), 30, Quality.LIVE) for _ in range(2)
    )
    return SteeringTable(generation, 0.0, REGIONS, {"dl.example.org.": SteeredService("dl.example.org.", rows, ())})


def make_image() -> Image:
    zone = parse_zone((VECTORS / "example.org.zone").read_text(), "example.org.")
    return compile_image([zone], table(1), AnswerOptions(b"test-server"))


@contextlib.contextmanager
def serving(listen: list[str], registry: CollectorRegistry | None = None, **settings: object) -> Iterator[DnsServer]:
    config = Dns.model_validate({"listen": listen, **settings})
    server = DnsServer(config, registry)
    server.swap(make_image())
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[DnsServer]:
    with serving(["127.0.0.1:0"], tcp_idle="2s") as running:
        yield running


def port_of(server: DnsServer, index: int = 0) -> int:
    return int(server.addresses[index].rpartition(":")[2])


def tool(name: str, server: DnsServer, *arguments: str, host: str = "127.0.0.1") -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [name, f"@{host}", "-p", str(port_of(server)), "+norec", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout, done.stdout
    return done.stdout


both = pytest.mark.parametrize("name", ["dig", "kdig"])


@both
def test_udp_and_tcp(server: DnsServer, name: str) -> None:
    for extra in ([], ["+tcp"]):
        assert tool(name, server, "dl.example.org", "A", "+short", *extra).split() == ["203.0.113.1", "198.51.100.1"]


@both
def test_subnet(server: DnsServer, name: str) -> None:
    shown = tool(name, server, "dl.example.org", "A", "+subnet=10.1.2.0/24")
    assert "10.1.2.0/24/8" in shown
    shown = tool(name, server, "www.example.org", "A", "+subnet=10.1.2.0/24")
    assert "10.1.2.0/24/0" in shown


@both
def test_nsid(server: DnsServer, name: str) -> None:
    assert "test-server" in tool(name, server, "www.example.org", "A", "+nsid")


@both
def test_truncation_then_tcp(server: DnsServer, name: str) -> None:
    assert " tc" in tool(name, server, "big.example.org", "TXT", "+ignore", "+noedns")
    shown = tool(name, server, "big.example.org", "TXT", "+bufsize=512")
    assert shown.count("aaaaaaaa") >= 1
    assert "TCP" in shown
    assert "ANSWER: 3" in shown
    assert "ANSWER: 3" in tool(name, server, "big.example.org", "TXT", "+bufsize=1232", "+notcp", "+ignore")


@both
def test_odd_questions_get_their_rcode(server: DnsServer, name: str) -> None:
    for question, status in (
        (["example.net", "A"], "REFUSED"),
        (["nothing.example.org", "A"], "NXDOMAIN"),
        (["-c", "CH", "-t", "TXT", "version.bind"], "REFUSED"),
    ):
        assert f"status: {status}" in tool(name, server, *question)


def test_dig_odd_messages(server: DnsServer) -> None:
    assert "status: NOTIMP" in tool("dig", server, "example.org", "+opcode=notify", "+noedns")
    assert "status: BADVERS" in tool("dig", server, "example.org", "+edns=5", "+noednsneg")
    assert "Transfer failed" in tool("dig", server, "example.org", "AXFR")


def test_ipv6() -> None:
    with serving(["[::1]:0"]) as server:
        for extra in ([], ["+tcp"]):
            shown = tool("dig", server, "dl.example.org", "A", "+short", *extra, host="::1")
            assert shown.split() == ["203.0.113.1", "198.51.100.1"]
        assert is_answering(server.addresses[0])


@pytest.mark.parametrize(
    ("listen", "hosts"), [("0.0.0.0:0", ("127.0.0.1", "127.0.0.2", "127.9.8.7")), ("[::]:0", ("::1",))]
)
def test_answers_leave_from_the_address_that_was_asked(listen: str, hosts: tuple[str, ...]) -> None:
    with serving([listen]) as server:
        for host in hosts:
            # A connected socket takes datagrams from that address only.
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(5)
                sock.connect((host, port_of(server)))
                query = dns.message.make_query("dl.example.org.", "A")
                sock.send(query.to_wire())
                assert query.is_response(dns.message.from_wire(sock.recv(4096)))
            reply = dns.query.tcp(
                dns.message.make_query("www.example.org.", "A"), host, timeout=5, port=port_of(server)
            )
            assert reply.answer
        assert is_answering(server.addresses[0])


def test_several_addresses() -> None:
    with serving(["127.0.0.1:0", "127.0.0.3:0", "[::1]:0"]) as server:
        assert len(set(server.addresses)) == 3
        for address in server.addresses:
            host, _, port = address.rpartition(":")
            query = dns.message.make_query("www.example.org.", "A")
            for ask in (dns.query.udp, dns.query.tcp):
                assert ask(query, host.strip("[]"), timeout=5, port=int(port)).answer


def test_swap_under_load_loses_and_mixes_nothing() -> None:
    with serving(["127.0.0.1:0"]) as server:
        stop = threading.Event()
        seen: list[set[int]] = [set(), set()]
        faults: list[str] = []

        def ask_on(ask: object, into: set[int]) -> None:
            port = port_of(server)
            while not stop.is_set():
                query = dns.message.make_query("dl.example.org.", "A")
                try:
                    reply = ask(query, "127.0.0.1", timeout=5, port=port)  # type: ignore[operator]
                except Exception as error:
                    faults.append(repr(error))
                    return
                ends = {int(rdata.address.rpartition(".")[2]) for rdata in reply.answer[0]}
                if len(ends) != 1:
                    faults.append(f"mixed: {ends}")
                into |= ends

        threads = [
            threading.Thread(target=ask_on, args=args) for args in ((dns.query.udp, seen[0]), (dns.query.tcp, seen[1]))
        ]
        for thread in threads:
            thread.start()
        for generation in range(2, 200):
            server.swap(with_table(server.image(), table(generation)))
            time.sleep(0.005)
        stop.set()
        for thread in threads:
            thread.join()
        assert faults == []
        assert all(len(into) > 20 for into in seen)
        assert server.image().generation == 199


class Broken:
    """An image that makes every answer fail."""

    def __getattr__(self, name: str) -> object:
        if name == "options":
            return AnswerOptions()
        raise RuntimeError(f"no {name}")


def test_a_fault_in_answering_gives_servfail_and_is_counted() -> None:
    registry = CollectorRegistry()
    with serving(["127.0.0.1:0"], registry) as server:
        good = server.image()
        query = dns.message.make_query("dl.example.org.", "A")
        server.swap(Broken())  # type: ignore[arg-type]
        for _ in range(3):
            assert dns.query.udp(query, "127.0.0.1", timeout=5, port=port_of(server)).rcode() == 2
            assert dns.query.tcp(query, "127.0.0.1", timeout=5, port=port_of(server)).rcode() == 2
        server.swap(good)
        assert dns.query.udp(query, "127.0.0.1", timeout=5, port=port_of(server)).answer
        assert dns.query.tcp(query, "127.0.0.1", timeout=5, port=port_of(server)).answer
        shown = generate_latest(registry).decode()
        assert 'dnsd_errors_total{transport="udp"} 3.0' in shown
        assert 'dnsd_errors_total{transport="tcp"} 3.0' in shown


def test_metrics() -> None:
    registry = CollectorRegistry()
    with serving(["127.0.0.1:0"], registry) as server:
        port = port_of(server)
        for name in ("dl.example.org.", "nothing.example.org.", "example.net."):
            for ask in (dns.query.udp, dns.query.tcp):
                ask(dns.message.make_query(name, "A"), "127.0.0.1", timeout=5, port=port)
        subnet = dns.message.make_query("dl.example.org.", "A", use_edns=0, options=[dns.edns.ECSOption("10.0.0.0", 8)])
        for _ in range(32):
            dns.query.udp(subnet, "127.0.0.1", timeout=5, port=port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"short", ("127.0.0.1", port))
        dns.query.udp(subnet, "127.0.0.1", timeout=5, port=port)  # the datagram before it has been read by now
        shown = generate_latest(registry).decode()
    for line in (
        'dnsd_answers_total{rcode="NOERROR",transport="udp"} 34.0',
        'dnsd_answers_total{rcode="NXDOMAIN",transport="tcp"} 1.0',
        'dnsd_answers_total{rcode="REFUSED",transport="udp"} 1.0',
        'dnsd_steered_answers_total{ecs="yes",quality="live"} 33.0',
        'dnsd_steered_answers_total{ecs="no",quality="live"} 2.0',
        'dnsd_ecs_answers_total{ecs="yes",transport="udp"} 33.0',
        'dnsd_queries_total{transport="udp"} 37.0',
        'dnsd_silent_total{transport="udp"} 1.0',
        'dnsd_tcp_connections_total{transport="tcp"} 3.0',
        'dnsd_answer_seconds_count{transport="udp"} 2.0',
        'dnsd_zone_serial{zone="example.org."} 2.024010101e+09',
        "dnsd_image_generation 1.0",
        "dnsd_table_generation 1.0",
    ):
        assert line in shown, shown


def test_a_taken_port_is_named() -> None:
    with serving(["127.0.0.1:0"]) as server:
        taken = server.addresses[0]
        with pytest.raises(BindError, match=rf"cannot listen on {taken} \(UDP\): the port is taken"):
            DnsServer(Dns.model_validate({"listen": [taken]}))
    with pytest.raises(BindError, match=r"no interface has 203.0.113.77"):
        DnsServer(Dns.model_validate({"listen": ["127.0.0.1:0", "203.0.113.77:0"]}))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(BindError, match=r"\(TCP\): the port is taken"):
            DnsServer(Dns.model_validate({"listen": [f"127.0.0.1:{port}"]}))


def test_start_without_an_image_is_refused_and_sockets_are_let_go() -> None:
    server = DnsServer(Dns.model_validate({"listen": ["127.0.0.1:0"]}))
    address = server.addresses[0]
    with pytest.raises(NearpathError, match="no image yet"):
        server.start()
    server.stop()
    DnsServer(Dns.model_validate({"listen": [address]})).stop()


def test_options_come_from_the_configuration() -> None:
    config = Dns.model_validate({"listen": ["127.0.0.1:0"], "nsid": "ams1", "max_udp_size": "1400B"})
    assert answer_options(config) == AnswerOptions(b"ams1", 1400)
    with pytest.raises(NearpathError, match="octets long"):
        answer_options(Dns.model_validate({"listen": ["127.0.0.1:0"], "nsid": "é" * 60}))


# -- TCP (RFC 7766)


def framed(name: str = "dl.example.org.", ident: int = 1) -> bytes:
    query = dns.message.make_query(name, "A")
    query.id = ident
    wire = query.to_wire()
    return struct.pack("!H", len(wire)) + wire


async def read_reply(reader: asyncio.StreamReader) -> dns.message.Message:
    size = int.from_bytes(await reader.readexactly(2), "big")
    return dns.message.from_wire(await reader.readexactly(size))


async def test_tcp_split_at_every_octet(server: DnsServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    data = framed()
    for cut in range(1, len(data)):
        writer.write(data[:cut])
        await writer.drain()
        await asyncio.sleep(0.001)
        writer.write(data[cut:])
        assert (await read_reply(reader)).answer
    writer.close()


async def test_tcp_pipelining_keeps_the_order_and_answers_after_half_close(server: DnsServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(b"".join(framed(ident=i) for i in range(500)))
    writer.write_eof()
    assert [(await read_reply(reader)).id for _ in range(500)] == list(range(500))
    assert await reader.read() == b""
    writer.close()


async def test_tcp_what_is_no_query_ends_the_connection(server: DnsServer) -> None:
    for data in (b"\0\0", b"\0\5hello", b"\0\x0c" + b"\0\1\x80" + b"\0" * 9, b"GET / HTTP/1.0\r\n\r\n" * 1200):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(data)
        with contextlib.suppress(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 10)
        writer.close()
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(framed())
    assert (await read_reply(reader)).answer
    writer.close()


async def test_tcp_idle_and_dribbling_connections_are_closed() -> None:
    with serving(["127.0.0.1:0"], tcp_idle="300ms") as server:
        _idle_reader, idle = await asyncio.open_connection("127.0.0.1", port_of(server))
        reader, dribbling = await asyncio.open_connection("127.0.0.1", port_of(server))

        async def dribble() -> None:
            with contextlib.suppress(ConnectionError):
                for octet in framed() * 10:
                    dribbling.write(bytes([octet]))
                    await dribbling.drain()
                    await asyncio.sleep(0.05)

        task = asyncio.create_task(dribble())
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(_idle_reader.read(), 10) == b""
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        task.cancel()
        idle.close()
        dribbling.close()
        assert server.tallies()[-1].timeouts == 2


async def test_tcp_a_client_that_takes_no_answers_is_closed() -> None:
    with serving(["127.0.0.1:0"], tcp_idle="300ms") as server:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", port_of(server)))
        sock.setblocking(False)
        loop = asyncio.get_running_loop()

        async def send_on() -> None:
            big = framed("big.example.org.").replace(b"\0\1\0\1", b"\0\x10\0\1")
            while True:
                await loop.sock_sendall(sock, big * 50)

        with pytest.raises(ConnectionError):
            await asyncio.wait_for(send_on(), 20)
        sock.close()
        reply = await asyncio.to_thread(
            dns.query.tcp, dns.message.make_query("www.example.org.", "A"), "127.0.0.1", timeout=5, port=port_of(server)
        )
        assert reply.answer


async def test_tcp_the_idlest_connection_makes_room() -> None:
    with serving(["127.0.0.1:0"], tcp_connections=3, tcp_idle="20s") as server:
        opened = [await asyncio.open_connection("127.0.0.1", port_of(server)) for _ in range(3)]
        for reader, writer in (opened[1], opened[2], opened[0]):  # so 1 becomes the idlest
            writer.write(framed())
            assert (await read_reply(reader)).answer
        opened.append(await asyncio.open_connection("127.0.0.1", port_of(server)))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(opened[1][0].read(), 10) == b""
        for index in (0, 2, 3):
            reader, writer = opened[index]
            writer.write(framed())
            assert (await read_reply(reader)).answer
        assert server.tallies()[-1].connections_shed == 1
        for _reader, writer in opened:
            writer.close()


async def test_stop_with_open_connections_ends_at_once() -> None:
    with serving(["127.0.0.1:0"], tcp_idle="60s") as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(framed())
        assert (await read_reply(reader)).answer
        stopping = asyncio.create_task(asyncio.to_thread(server.stop))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        await stopping
        writer.close()
