"""The lab's plan of addresses and paths, and the RTT matrix it can be driven from. Needs no rights."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

from tests.lab import dig, matrix
from tests.lab.topology import SAME_SITE_RTT_MS, LabError, Node, plan

NODES = [
    Node("cn-agent", region="cn"),
    Node("cn-client", region="cn"),
    Node("m-hk"),
    Node("de-agent", region="de"),
    Node("dns"),
]


def test_each_region_has_its_own_prefix_and_the_others_theirs() -> None:
    topology = plan(NODES, {}, default_rtt_ms=50)
    assert topology.addresses == {
        "cn-agent": ("10.1.0.1", "fd00:1::1"),
        "cn-client": ("10.1.0.2", "fd00:1::2"),
        "m-hk": ("172.16.1.1", "fd01:1::1"),
        "de-agent": ("10.2.0.1", "fd00:2::1"),
        "dns": ("172.16.2.1", "fd01:2::1"),
    }
    assert topology.prefixes["cn"] == ("10.1.0.0/16", "fd00:1::/32")
    assert topology.prefixes["dns"] == ("172.16.2.0/24", "fd01:2::/32")
    assert topology.address("m-hk", family=6) == "fd01:1::1"


def test_addresses_can_be_given() -> None:
    nodes = [Node("a", region="x"), Node("b", region="x", ipv4="58.32.9.9", extra_addresses=("58.33.1.1", "240e::7"))]
    topology = plan(nodes, {}, region_prefixes={"x": ("58.32.0.0/16", "240e::/20")})
    assert topology.addresses["a"] == ("58.32.0.1", "240e::1")
    assert topology.addresses["b"] == ("58.32.9.9", "240e::2", "58.33.1.1", "240e::7")


def test_the_most_specific_rtt_wins() -> None:
    rtt_ms = {("cn", "m-hk"): 40.0, ("m-hk", "cn-client"): 45.0, ("de", "cn"): 200.0}
    topology = plan(NODES, rtt_ms, default_rtt_ms=99)

    def rtt(a: str, b: str) -> float:
        value = topology.rtt_ms[topology.index[a]][topology.index[b]]
        assert value == topology.rtt_ms[topology.index[b]][topology.index[a]]
        return value

    assert rtt("cn-agent", "m-hk") == 40
    assert rtt("cn-client", "m-hk") == 45
    assert rtt("cn-client", "de-agent") == 200
    assert rtt("cn-agent", "cn-client") == SAME_SITE_RTT_MS
    assert rtt("de-agent", "dns") == 99


def test_a_site_means_all_its_nodes() -> None:
    topology = plan(NODES, {}, default_rtt_ms=1)
    assert topology.pairs("cn", "m-hk") == [(0, 2), (1, 2)]
    assert topology.pairs("cn", "cn") == [(0, 1), (1, 0)]


@pytest.mark.parametrize(
    ("nodes", "rtt_ms", "message"),
    [
        ([Node("a"), Node("a")], {}, "two nodes are called 'a'"),
        ([Node("a/b")], {}, "cannot be a node's name"),
        ([], {}, "1 to 200 nodes"),
        ([Node("a"), Node("b")], {}, "no entry for 'a' and 'b'"),
        ([Node("a"), Node("b")], {("a", "c"): 1.0}, "names 'c'"),
        ([Node("a"), Node("b")], {("a", "b"): -1.0}, "0 to 60000 ms"),
        ([Node("x"), Node("a", region="x")], {}, "rename one"),
        ([Node("a"), Node("b", ipv4="172.16.1.1")], {("a", "b"): 1.0}, "same address 172.16.1.1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused_by_name(
    nodes: list[Node], rtt_ms: dict[tuple[str, str], float], message: str
) -> None:
    with pytest.raises(LabError, match=message):
        plan(nodes, rtt_ms)


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LabError, match=r"no node or site 'fr'; nodes: cn-agent, .*'cn', 'de'"):
        plan(NODES, {}, default_rtt_ms=1).pairs("fr", "dns")


def test_the_shipped_matrix_is_what_its_notice_says() -> None:
    with np.load(matrix.EXTRACT) as data:
        assert set(data) == {"rtt_us", "source_node", "note"}
        rtt_us, source_node = data["rtt_us"], data["source_node"]
    assert rtt_us.shape == (18, 40, 40)
    assert rtt_us.dtype == np.int32
    assert (rtt_us == rtt_us.transpose(0, 2, 1)).all()
    away = ~np.eye(40, dtype=bool)
    assert (rtt_us[:, ~away] == 0).all()
    assert (rtt_us[:, away] > 0).all()
    assert len(set(source_node.tolist())) == 40
    notice = matrix.EXTRACT.with_name("NOTICE.md").read_text()
    assert "MIT License" in notice
    assert all(key in notice for key in ("`rtt_us`", "`source_node`", "`note`"))


def test_the_extracts_script_reads_the_sources_encoding() -> None:
    spec = importlib.util.spec_from_file_location("make_extract", matrix.EXTRACT.with_name("make_extract.py"))
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    # Two slices of three nodes; rows (0,1) (0,2) (1,2); the second slice as difference to the first.
    full = script.whole_matrix(3, np.array([[10, 20, 30], [1, -2, 3]], dtype=np.int32))
    assert full[0].tolist() == [[0, 10, 20], [10, 0, 30], [20, 30, 0]]
    assert full[1].tolist() == [[0, 11, 18], [11, 0, 33], [18, 33, 0]]


def test_rtts_for_named_sites_come_from_the_matrix() -> None:
    rtt_us = matrix.planetlab_us()
    rtt_ms = matrix.planetlab_rtt_ms(["a", "b", "c"], slice_index=3)
    assert rtt_ms == {
        ("a", "b"): rtt_us[3, 0, 2] / 1000,
        ("a", "c"): rtt_us[3, 0, 4] / 1000,
        ("b", "c"): rtt_us[3, 2, 4] / 1000,
    }
    with pytest.raises(ValueError, match="41 sites"):
        matrix.planetlab_rtt_ms([str(i) for i in range(41)])


def test_what_is_no_response_of_dig_is_refused() -> None:
    with pytest.raises(LabError, match="not a response"):
        dig.parse(";; communications error\n")
