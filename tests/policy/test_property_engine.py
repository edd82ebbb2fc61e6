"""Properties over random sample streams: a restart is not seen, explaining is free, and no better mirror is left behind."""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.config import Steering
from core.messages import MirrorAdmin, PathSample, SyncStamp
from policy.decide import Memory, decide, margin
from policy.engine import SteeringEngine
from policy.evidence import Candidate, Watched
from policy.explain import explain
from policy.plan import MirrorPlan, make_plan
from policy.table import Quality, SteeringTable

MakeWorld = Callable[..., Any]

MIRRORS: dict[str, dict[str, Any]] = {
    "a": {"region": "eu", "cost": 2},
    "b": {"region": "us"},
    "c": {"addresses": ["192.0.2.7", "2001:db8::7"]},
}
CHECKS = {"icmp": {"kind": "icmp", "interval": "5s"}, "http": {"kind": "http", "interval": "5s"}}
SERVICE = {"answers": 2, "prefer": {"fr": {"b": 150}}, "max_lag": "1h"}


def random_world(make_world: MakeWorld) -> Any:
    world = make_world(mirrors=MIRRORS, checks=CHECKS, service=SERVICE)
    for mirror in MIRRORS:
        world.engine.set_stamp(SyncStamp(mirror, "t", 1, "00", 0.0, "fresh", world.now + 1e9))
    return world


def random_stream(world: Any, rng: random.Random, rounds: int) -> list[list[PathSample]]:
    """Rounds of samples, 5 s apart: random walks of RTT, bursts of loss, agents that fall silent, loads."""
    base = {(a, m): rng.uniform(5, 200) for a in world.config.agents for m in MIRRORS}
    burst: dict[Any, int] = {}
    stream = []
    for i in range(rounds):
        batch = []
        for (agent, mirror), rtt_ms in base.items():
            if rng.random() < 0.05:
                base[agent, mirror] = rng.uniform(5, 200)
            if rng.random() < 0.04:
                burst[agent, mirror] = rng.randrange(1, 9)
            burst[agent, mirror] = burst.get((agent, mirror), 0) - 1
            for check in CHECKS:
                if rng.random() < 0.1:
                    continue
                value = None if burst[agent, mirror] >= 0 else rtt_ms * rng.uniform(0.9, 1.3)
                load = rng.choice((None, 0.5, 0.95))
                batch.append(
                    world.sample(agent, mirror, value, check, 4, taken_s=1000.0 + 5 * i + rng.random(), load_ratio=load)
                )
        stream.append(batch)
    return stream


def play(engine: SteeringEngine, stream: list[list[PathSample]], first: int = 0) -> list[SteeringTable]:
    tables = []
    for i, batch in enumerate(stream, first):
        for sample in batch:
            engine.take(sample)
        tables += [engine.decide(1000.0 + 5 * i + second) for second in (1, 2, 3, 4)]
    return tables


def answers(table: SteeringTable) -> Any:
    return {
        owner: [(r.addresses, r.ttl_s, r.quality, r.fail_open, r.note) for r in service.ipv4 + service.ipv6]
        for owner, service in table.services.items()
    }


@pytest.mark.parametrize("seed", range(12))
def test_a_restart_at_any_point_is_not_seen_in_any_answer(make_world: MakeWorld, seed: int) -> None:
    rng = random.Random(seed)
    world = random_world(make_world)
    stream = random_stream(world, rng, 60)
    cut = rng.randrange(60)
    expected = play(world.engine, stream)

    before = random_world(make_world)
    play(before.engine, stream[:cut])
    after = SteeringEngine(make_plan(before.config, before.regions))
    after.restore(before.engine.dump(cut))
    after.adopt(before.engine)
    got = play(after, stream[cut:], cut)
    assert [answers(t) for t in got] == [answers(t) for t in expected[4 * cut :]]
    assert after.dump(60) == dump_with_generation(world.engine, after.generation)
    assert after.switches() == world.engine.switches()


def dump_with_generation(engine: SteeringEngine, generation: int) -> bytes:
    engine.generation = generation
    return engine.dump(60)


@pytest.mark.parametrize("seed", range(4))
def test_generations_rise_exactly_with_changed_answers(make_world: MakeWorld, seed: int) -> None:
    world = random_world(make_world)
    tables = play(world.engine, random_stream(world, random.Random(seed), 60))
    for last, table in pairwise(tables):
        changed = answers(table) != answers(last)
        assert table.generation == last.generation + changed
        assert (table is not last) is changed
    assert tables[-1].generation > 5, "the stream did move something"


@pytest.mark.parametrize("seed", range(6))
def test_explain_agrees_with_what_is_served_and_changes_nothing(make_world: MakeWorld, seed: int) -> None:
    rng = random.Random(100 + seed)
    world = random_world(make_world)
    engine = world.engine
    play(engine, random_stream(world, rng, 40))
    engine.set_admin(MirrorAdmin("a", seed % 2 == 0, "me", 0.0), "a")
    now = 1000.0 + 5 * 40
    table = engine.decide(now)
    before = engine.dump(0), engine.generation, [d.order for d in engine.decisions]
    for text in ("10.1.2.3", "10.2.0.1", "10.3.255.255", "198.51.100.1", "2001:db8::1"):
        client = ipaddress.ip_address(text)
        for family in (4, 6):
            told = explain(engine, world.owner, family, text, int(client), client.version, now)
            assert told is not None
            region_id, scope_len = table.regions.lookup(client.version, int(client))
            row = table.services[world.owner].row(family, region_id)
            assert told.addresses == row.addresses
            assert (told.ttl_s, told.quality, told.note) == (row.ttl_s, row.quality.label, row.note)
            assert told.scope_len == scope_len
            assert told.region == engine.plan.tree.names[region_id]
            assert {c.mirror for c in told.candidates} == set(row.mirrors)
            assert told.candidates[0].reason == "chosen"
            assert all(c.reason for c in told.candidates), "every candidate has its reason"
            assert explain(engine, world.owner, family, text, int(client), client.version, now) == told
    assert (engine.dump(0), engine.generation, [d.order for d in engine.decisions]) == before
    assert engine.decide(now) is table


def test_explain_of_a_family_or_service_that_is_not_there_is_none(make_world: MakeWorld) -> None:
    world = make_world()
    assert explain(world.engine, world.owner, 6, "10.1.0.1", 0x0A010001, 4, 0.0) is None
    assert explain(world.engine, "other.", 4, "10.1.0.1", 0x0A010001, 4, 0.0) is None


# -- the order itself

candidates = st.lists(
    st.builds(
        lambda rtt_ms, se_ms, preference, full, up: (rtt_ms, se_ms, preference, full, up),
        st.one_of(st.none(), st.floats(1, 300)),
        st.floats(0, 5),
        st.sampled_from([100, 100, 100, 200]),
        st.sampled_from([False, False, False, True]),
        st.sampled_from([True, True, None, False]),
    ),
    min_size=1,
    max_size=8,
)


def built(facts: Any) -> list[Candidate]:
    made = []
    for i, (rtt_ms, se_ms, preference, full, up) in enumerate(facts):
        one = Candidate(Watched(MirrorPlan(f"m{i}", {4: ()}, None, 0, 0.9, False), i, preference, None, ()))
        one.full, one.up = full, up
        if rtt_ms is not None:
            one.score_s = one.rtt_s = rtt_ms / 1000
            one.se_s = se_ms / 1000
        made.append(one)
    return made


@settings(max_examples=300, deadline=None)
@given(candidates, st.randoms(use_true_random=False))
def test_no_mirror_stays_behind_one_it_clearly_beats(facts: Any, rng: random.Random) -> None:
    rules = Steering()
    order = [c.name for c in built(facts)]
    rng.shuffle(order)
    made = decide(
        built(facts),
        Memory(
            tuple(order),
            0.0,
            0.01,
            0.0,
            compared={name: rng.choice(list(Quality)) for name in rng.sample(order, rng.randint(0, len(order)))},
        ),
        rules,
        1e9,
    )
    by_name = {c.name: c for c in built(facts)}
    ranked = [by_name[name] for name in made.order[: made.eligible]]
    assert sorted(made.order) == sorted(by_name)
    for i, ahead in enumerate(ranked):
        for behind in ranked[i + 1 :]:
            assert ahead.preference >= behind.preference
            if ahead.preference > behind.preference:
                continue
            assert ahead.full <= behind.full
            if ahead.full < behind.full or ahead.score_s is None or behind.score_s is None:
                continue
            assert ahead.score_s - behind.score_s <= margin(ahead, behind, rules) + 1e-12
    again = decide(built(facts), made.memory, rules, 1e9)
    assert again.order == made.order, "deciding again from its own order changes nothing"
