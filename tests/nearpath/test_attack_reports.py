"""An agent or a node with a good token that means harm: it can lie about its own, and about nothing else."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nearpath import ingest
from nearpath.admission import Allowance
from nearpath.api import make_targets
from nearpath.ingest import LEAST_RATE, sample_cost_s
from tests.nearpath.reporting import INCARNATION, Box, headers, make_config, open_box, sample
from tests.nearpath.stamping import NODES, counted, node_headers, open_nodes, send, stamp


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with open_nodes(tmp_path) as opened:
        yield opened


async def post(box: Box, path: str, body: bytes, who: dict[str, str]) -> int:
    async with box.client.post(path, data=body, headers={**who, "Content-Type": "application/json"}) as answer:
        await answer.read()
        return answer.status


# -- stamps


async def test_a_node_speaks_for_its_own_mirrors_only(box: Box) -> None:
    assert (await send(box, stamp("theirs"), node="n2"))[0] == 200
    before = counted(box)
    # The tree of another, under its own name: that is a tree of its own mirror.
    assert (await send(box, stamp("theirs", version=99, state="empty"), node="n1"))[0] == 200
    assert counted(box) == sorted([*before, ("m1", "theirs", 99)])
    assert [(s.version, s.state) for s in box.steerer.engine.stamps_of("m2")] == [(7, "fresh")]
    # Another's name with its own token, in the header, in the body, in both.
    good = {"node": "n1", "wall_s": box.clock.at, "stamps": [stamp("theirs", version=100)]}
    for header, name in (("n2", "n1"), ("n1", "n2"), ("n2", "n2")):
        who = node_headers(header, "token of n1")
        assert await post(box, "/v1/stamps", json.dumps({**good, "node": name}).encode(), who) in (400, 401)
    # A field that names a mirror is none.
    assert (await send(box, stamp("theirs", mirror="m2")))[0] == 400
    assert [(s.version, s.state) for s in box.steerer.engine.stamps_of("m2")] == [(7, "fresh")]
    assert await post(box, "/v1/samples", b"{}", node_headers("n1")) == 401


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "1e309", "1e308", "-0.1", '"1"', "true", "null", "[]", "1" * 5000]
)
async def test_no_absurd_number_gets_in_or_out(box: Box, number: str) -> None:
    assert (await send(box, stamp("main")))[0] == 200
    before, table = counted(box), box.steerer.engine.decide(box.clock.at).generation
    good = json.dumps(stamp("main", version=8, lag_s=0.5, age_s=0.5))
    bodies = [good.replace(f'"{name}": 0.5', f'"{name}": {number}') for name in ("lag_s", "age_s")]
    bodies.append(good.replace('"version": 8', f'"version": {number}'))
    for body in bodies:
        text = f'{{"node":"n1","wall_s":{box.clock.at},"stamps":[{body}]}}'
        assert await post(box, "/v1/stamps", text.encode(), node_headers("n1")) == 400, body
    assert counted(box) == before
    assert box.steerer.engine.decide(box.clock.at).generation == table
    assert (await send(box, stamp("main", version=9)))[0] == 200
    assert counted(box) == [("m1", "main", 9)]


@pytest.mark.parametrize("skew_s", [1e308, -1e308, 1e12, -1e12])
async def test_a_mad_clock_moves_nothing_but_its_own_skew(tmp_path: Path, skew_s: float) -> None:
    async with open_box(tmp_path, config=make_config(nodes=NODES)) as box:
        assert (await send(box, stamp(), wall_s=box.clock.at + skew_s))[0] == 200
        assert (await box.report([sample(1)], skew_s=skew_s))[0] == 200
        assert (await box.report([sample(2, age_by="wall")], skew_s=-skew_s))[0] == 200
        (kept,) = box.steerer.engine.stamps()
        assert kept.taken_s == box.clock.at - 0.25
        assert box.state().quarantined == 1
        assert (await send(box, stamp(version=8)))[0] == 200
        json.dumps([box.api.nodes["n1"].skew_s, box.state().skew_s], allow_nan=False)
    async with open_box(tmp_path, config=make_config(nodes=NODES)) as again:
        assert counted(again) == [("m1", "main", 8)]
        assert again.count() == 1


# -- samples


async def test_a_last_number_ends_an_agents_own_incarnation_and_nothing_else(box: Box) -> None:
    assert await box.report([sample((1 << 62) - 1)]) == (200, (1 << 62) - 1)
    assert await box.report([sample(5)]) == (200, (1 << 62) - 1)
    assert box.count() == 1
    assert (await box.report([sample(1 << 62)]))[0] == 400
    assert await box.report([sample(1)], agent="a2") == (200, 1)
    assert await box.report([sample(6)], incarnation=INCARNATION[::-1]) == (200, 6)
    assert box.count() == 2


async def test_a_flood_of_samples_is_slowed_down_and_harms_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest, "LEAST_RATE", 100.0)
    monkeypatch.setattr(ingest, "SAMPLES_AHEAD_S", 2.0)
    async with open_box(tmp_path, config=make_config(nodes=NODES)) as box:
        number, answers = 0, []
        for _ in range(6):
            answers.append((await box.report([sample(number + i + 1) for i in range(60)]))[0])
            number += 60
        assert answers == [200] * 4 + [429] * 2  # two seconds' worth, and what was begun
        assert box.state().samples == 240
        assert (await box.report([sample(1)], agent="a2"))[0] == 200
        box.clock.at += 1.0
        # What was refused is sent again, and nothing is lost.
        assert (await box.report([sample(i) for i in range(241, 301)])) == (200, 300)


async def test_garbage_and_repeated_reports_cost_as_much_as_what_they_look_like(box: Box) -> None:
    statuses = [await post(box, "/v1/samples", b"[]", headers("a1")) for _ in range(70)]
    assert statuses == [400] * 60 + [429] * 10
    assert await post(box, "/v1/samples", b"[]", headers("a2")) == 400
    statuses = [await post(box, "/v1/stamps", b"[]", node_headers("n1")) for _ in range(60)]
    assert statuses == [400] * 50 + [429] * 10
    assert (await send(box, stamp(), node="n2"))[0] == 200


def test_an_agent_may_send_four_times_what_it_has_to_probe() -> None:
    targets = make_targets(make_config())
    assert sample_cost_s(targets) == 1 / LEAST_RATE
    many = type(targets)(targets.etag, targets.targets * 1000)  # 3,000 a second
    assert sample_cost_s(many) == pytest.approx(1 / 12_000)


def test_an_allowance() -> None:
    allowance = Allowance(2.0)
    taken: list[Any] = [allowance.take(1.0, 10.0) for _ in range(3)]
    assert taken == [True, True, False]
    assert allowance.is_spent(10.0)
    assert not allowance.is_spent(10.5)
    assert not allowance.take(1.0, 10.5)
    allowance.charge(1.0, 10.5)
    assert allowance.is_spent(10.5)
    assert allowance.take(2.0, 100.0)
