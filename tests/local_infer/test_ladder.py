"""The ladder with all its steps: who is asked in which order, how each answer says what it is, and what no step answers."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from dataclasses import replace

import pytest

from core.config_infer import InferConfig
from core.errors import NearpathError
from local_infer.api.forms import to_events
from local_infer.fault import ApiError, Busy
from local_infer.ladder.steps import MOST_SHADOWS
from local_infer.model import Abstained, Answer, CacheWish, Client, Endpoint, Origin, Priority, Step
from tests.local_infer.scripted_ladder import CONFIG, JSON, NOW, World, body_of, content, kept_of, make_ask, read

# -- upstreams and cache


async def test_a_healthy_upstream_answers_and_its_bytes_are_left_alone() -> None:
    world = World()
    answer = await world.ladder.answer(make_ask())
    assert answer.body == body_of("up")
    assert not answer.origin.degraded
    assert world.upstreams.deadlines_s == [NOW + 600.0]
    assert world.retrieval.asked == world.generation.asked == []
    await world.settle()


async def test_fresh_is_served_as_stored_without_asking() -> None:
    world = World()
    world.cache.kept = kept_of("fresh")
    answer = await world.ladder.answer(make_ask())
    assert answer is world.cache.kept.answer
    assert world.upstreams.asked == world.cache.refreshed == []


async def test_fresh_while_upstreams_are_down_is_marked() -> None:
    world = World()
    world.upstreams.down = "open circuit"
    world.cache.kept = kept_of("fresh")
    answer = await world.ladder.answer(make_ask())
    fields = read(answer)
    assert (fields["model"], fields["system_fingerprint"]) == ("cache/gpt-4", "degraded:cache")
    assert content(answer) == "kept"
    assert answer.origin == Origin(Step.CACHE, "a", "open circuit", 30.0, "hit; ttl=9")
    assert world.upstreams.asked == []
    assert world.count("degraded", step="cache", reason="open circuit") == 1


async def test_a_little_old_is_served_and_refreshed_behind() -> None:
    world = World()
    world.cache.kept = kept_of("revalidate")
    ask = make_ask()
    assert await world.ladder.answer(ask) is world.cache.kept.answer
    assert world.cache.refreshed == [ask]


async def test_a_little_old_while_down_is_an_old_answer() -> None:
    world = World()
    world.upstreams.down = "connect"
    world.cache.kept = kept_of("revalidate")
    answer = await world.ladder.answer(make_ask())
    assert (answer.origin.step, answer.origin.reason) == (Step.STALE, "connect")
    assert content(answer) == "[old] kept"
    assert world.upstreams.asked == []


@pytest.mark.parametrize("stream", [False, True])
async def test_stale_only_when_upstreams_fail_and_marked(stream: bool) -> None:
    world = World()
    body = to_events(body_of("kept")) if stream else body_of("kept")
    world.cache.kept = kept_of("stale", body, 86400.0)
    assert (await world.ladder.answer(make_ask(stream))).body == body_of("up")
    world.cut("timeout")
    answer = await world.ladder.answer(make_ask(stream))
    assert answer.origin == Origin(Step.STALE, "a", "timeout", 86400.0, "hit; ttl=9")
    assert isinstance(answer.body, bytes)
    text = answer.body.decode()
    assert "cache/gpt-4" in text
    assert "degraded:stale" in text
    assert text.count("[old] ") == 1
    await world.settle()


async def test_no_visible_prefix_in_json_mode() -> None:
    world = World()
    world.cut()
    world.cache.kept = kept_of("stale", body_of('{"a":1}'))
    for wanted in ({"type": "json_object"}, {"type": "json_schema", "json_schema": {}}):
        answer = await world.ladder.answer(make_ask(fields={"response_format": wanted}))
        assert content(answer) == '{"a":1}'
    assert content(await world.ladder.answer(make_ask(fields={"response_format": {"type": "text"}}))) == '[old] {"a":1}'


async def test_a_stored_answer_gets_its_visible_prefix() -> None:
    world = World(prefix={"retrieval": "[FAQ] "})
    world.cut()
    answer = await world.ladder.answer(make_ask())
    assert answer.origin.step is Step.RETRIEVAL
    assert content(answer).startswith("[FAQ] ")
    plain = World()
    plain.cut()
    without = await plain.ladder.answer(make_ask())
    assert content(answer) == "[FAQ] " + content(without)
    assert read(answer)["model"] == read(without)["model"]


async def test_what_cannot_be_marked_is_not_served() -> None:
    world = World()
    world.cut()
    world.cache.kept = kept_of("stale", b"no json")
    assert (await world.ladder.answer(make_ask())).origin.step is Step.RETRIEVAL
    assert world.count("passed", step="stale", why="form") == 1


async def test_an_error_of_the_client_is_an_answer() -> None:
    world = World()
    world.upstreams.outcome = Answer(400, JSON, b'{"error":{}}', Origin(Step.UPSTREAM, "a"))
    assert (await world.ladder.answer(make_ask())).status == 400
    assert world.background == []  # and proves nothing


# -- local steps


async def test_retrieval_before_generation_and_each_says_so() -> None:
    world = World()
    world.cut("connect")
    answer = await world.ladder.answer(make_ask())
    assert answer.origin == Origin(Step.RETRIEVAL, "faq", "connect", 5.0)
    question, priority, deadline_s = world.retrieval.asked[0]
    assert (question.text, question.tenant, priority) == ("如何关闭?", "jo", Priority.INTERACTIVE)
    assert deadline_s == NOW + 5.0  # a look-up is fast, or is no help
    assert world.generation.asked == []
    world.retrieval.outcome = Abstained("margin")
    answer = await world.ladder.answer(make_ask())
    assert answer.origin == Origin(Step.GENERATION, "tiny", "connect", 5.0)
    assert world.generation.asked[0][2] == NOW + 600.0
    assert world.count("passed", step="retrieval", why="margin") == 1


async def test_what_retrieval_must_not_see_may_still_be_generated() -> None:
    world = World()
    world.cut()
    answer = await world.ladder.answer(make_ask(fields={"response_format": {"type": "json_object"}}))
    assert answer.origin.step is Step.GENERATION
    assert world.retrieval.asked == []


@pytest.mark.parametrize("error", [Busy("full"), NearpathError("broken"), RuntimeError("a defect")])
async def test_a_step_that_fails_does_not_take_the_next_with_it(error: Exception) -> None:
    world = World()
    world.cut()
    world.retrieval.outcome = error
    assert (await world.ladder.answer(make_ask())).origin.step is Step.GENERATION
    assert world.told == ([] if isinstance(error, Busy) else [("retrieval", error)])


async def test_nothing_answers() -> None:
    world = World()
    world.cut("status 500")
    world.retrieval.outcome = Abstained("low")
    world.generation.outcome = Abstained("busy")
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(make_ask())
    error = caught.value
    assert (error.status, error.retry_after_s, error.headers) == (503, 7.0, {"X-Degraded": "none; status 500; 0"})
    assert world.count("nothing", reason="status 500") == 1
    world.cut("rate limited", retry_after_s=42.0)
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(make_ask())
    assert caught.value.retry_after_s == 42.0


def world_that_names_its_models(*steps: str) -> World:
    world = World(steps=list(steps))
    named = {"a": {"url": "http://127.0.0.1:1/v1", "models": {"gpt": "gpt-4"}}}
    ladder = {**CONFIG["ladder"], "steps": list(steps)}
    world.ladder.reconfigure(InferConfig.model_validate({**CONFIG, "upstreams": named, "ladder": ladder}))
    return world


async def test_a_model_that_nobody_serves_does_not_exist_and_is_no_outage() -> None:
    world = world_that_names_its_models("upstream", "generation")
    world.cut("no upstream")
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(make_ask(model="gpt-4o-mni"))
    error = caught.value
    assert (error.status, error.kind, error.code) == (404, "invalid_request_error", "model_not_found")
    assert (error.retry_after_s, error.param) == (None, "model")
    assert world.count("nothing", reason="no upstream") == 0
    world.cut("connect")
    assert (await world.ladder.answer(make_ask())).origin.step is Step.GENERATION, "this one is served, and away"


async def test_without_upstreams_every_name_is_the_local_models() -> None:
    world = world_that_names_its_models("generation")
    assert (await world.ladder.answer(make_ask(model="gpt-4o-mni"))).origin.step is Step.GENERATION


async def test_who_refused_the_upstreams_is_told_so() -> None:
    world = World()
    with pytest.raises(ApiError, match="you refused the upstreams") as caught:
        await world.ladder.answer(make_ask(refused=frozenset(Step)))
    assert (caught.value.code, caught.value.why) == ("no_step", "refused")
    with pytest.raises(ApiError, match=r"not asked here \(ladder.steps\)"):
        await World(steps=["cache"]).ladder.answer(make_ask())
    world.cut("credentials")
    with pytest.raises(ApiError, match=r"no upstream answers \(credentials\)") as caught:
        await world.ladder.answer(make_ask(refused=frozenset(Step) - {Step.UPSTREAM}))
    assert caught.value.why == "credentials", "for the log, where `no_step` says nothing"


async def test_nothing_answers_because_of_rate_limits() -> None:
    world = World()
    world.cut("rate limited", retry_after_s=0.25, limited=True, in_ms=True)
    assert (await world.ladder.answer(make_ask())).origin.step is Step.RETRIEVAL  # lower steps first
    ask = make_ask(refused=frozenset({Step.RETRIEVAL, Step.GENERATION}))
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(ask)
    error = caught.value
    assert (error.status, error.kind, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error.retry_after_s == 1.0
    assert error.headers == {"X-Degraded": "none; rate limited; 0", "retry-after-ms": "250"}
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(replace(ask, refused=frozenset(Step)))
    assert caught.value.status == 503  # nobody was asked


# -- what clients and operators refuse


async def test_refused_steps() -> None:
    world = World()
    world.cut()
    world.cache.kept = kept_of("stale")
    ask = make_ask(refused=frozenset({Step.STALE, Step.RETRIEVAL}))
    assert (await world.ladder.answer(ask)).origin.step is Step.GENERATION
    with pytest.raises(ApiError, match="no upstream"):
        await world.ladder.answer(replace(ask, refused=frozenset(Step) - {Step.UPSTREAM}))
    answer = await world.ladder.answer(make_ask(refused=frozenset({Step.UPSTREAM, Step.STALE})))
    assert (answer.origin.step, answer.origin.reason) == (Step.RETRIEVAL, "refused")


async def test_refusing_the_cache_is_refusing_what_was_kept_a_moment_ago() -> None:
    world = World()
    await world.ladder.answer(make_ask(refused=frozenset({Step.CACHE})))
    await world.ladder.answer(make_ask())
    assert [ask.cache.read for ask in world.cache.fetched] == [False, True]
    await world.settle()


async def test_steps_that_are_not_configured() -> None:
    world = World(steps=["upstream", "stale"])
    world.cache.kept = kept_of("fresh")
    assert (await world.ladder.answer(make_ask())).body == body_of("up")
    world.cut()
    assert (await world.ladder.answer(make_ask())).origin.step is Step.STALE
    world.cache.kept = None
    with pytest.raises(ApiError):
        await world.ladder.answer(make_ask())
    assert world.retrieval.asked == world.generation.asked == []
    assert [card.id for card in world.ladder.cards()] == ["gpt"]
    await world.settle()


async def test_embeddings_step_down_to_the_caches_only() -> None:
    world = World()
    world.cut()
    world.cache.kept = kept_of("stale", json.dumps({"object": "list", "model": "emb", "data": []}).encode())
    answer = await world.ladder.answer(make_ask(endpoint=Endpoint.EMBEDDINGS))
    assert read(answer)["model"] == "cache/emb"
    world.cache.kept = None
    with pytest.raises(ApiError, match="no upstream"):
        await world.ladder.answer(make_ask(endpoint=Endpoint.EMBEDDINGS))
    assert world.retrieval.asked == world.generation.asked == []


async def test_only_if_cached() -> None:
    world = World()
    ask = make_ask(cache=CacheWish(only_if_cached=True))
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(ask)
    assert caught.value.status == 504
    world.cache.kept = kept_of("fresh")
    assert await world.ladder.answer(ask) is world.cache.kept.answer
    assert world.upstreams.asked == []


# -- by name


async def test_a_local_model_by_name_is_no_degradation() -> None:
    world = World()
    for model, step in (("local/tiny", Step.GENERATION), ("local/faq", Step.RETRIEVAL)):
        answer = await world.ladder.answer(make_ask(model=model))
        assert answer.origin.step is step
        assert not answer.origin.degraded
    assert world.upstreams.asked == world.cache.fetched == []


@pytest.mark.parametrize(
    ("outcome", "status"),
    [
        (Abstained("busy"), 429),
        (Busy("full"), 429),
        (Abstained("crashed"), 503),
        (ValueError("x"), 503),
        (Abstained("tools"), 400),
    ],
)
async def test_a_local_model_by_name_that_does_not_answer(outcome: Abstained | Exception, status: int) -> None:
    world = World()
    world.generation.outcome = outcome
    with pytest.raises(ApiError) as caught:
        await world.ladder.answer(make_ask(model="local/tiny"))
    assert caught.value.status == status
    assert (caught.value.retry_after_s == 7.0) == (status != 400)


async def test_a_local_model_by_name_says_what_is_wrong_with_a_request() -> None:
    world = World()
    world.generation.outcome = Abstained("schema", "the schema is too much")
    with pytest.raises(ApiError, match="the schema is too much") as caught:
        await world.ladder.answer(make_ask(model="local/tiny"))
    assert (caught.value.status, caught.value.code) == (400, "not_supported")


async def test_no_such_local_model() -> None:
    world = World()
    for ask in (make_ask(model="local/other"), make_ask(model="local/tiny", refused=frozenset({Step.GENERATION}))):
        with pytest.raises(ApiError) as caught:
            await world.ladder.answer(ask)
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")
    with pytest.raises(ApiError, match="embeddings"):
        await world.ladder.answer(make_ask(model="local/tiny", endpoint=Endpoint.EMBEDDINGS))


# -- shadows


async def stream_of(*runs: bytes, closed: list[bool]) -> AsyncGenerator[bytes, None]:
    try:
        yield b""
        for run in runs:
            yield run
    finally:
        closed.append(True)


async def begun(*runs: bytes, closed: list[bool]) -> Answer:
    stream = stream_of(*runs, closed=closed)
    await anext(stream)
    return Answer(200, {}, stream, Origin(Step.UPSTREAM, "a"))


async def test_healthy_answers_are_shown_to_the_prover_unseen() -> None:
    world = World()
    await world.ladder.answer(make_ask())
    assert world.prover.seen == []  # the client was not kept waiting for it
    await world.settle()
    assert [(q.text, body) for q, body in world.prover.seen] == [("如何关闭?", body_of("up"))]
    assert world.count("shadows", outcome="observed") == 1


async def test_a_stream_is_shown_whole_when_it_ended_well() -> None:
    world, closed = World(), list[bool]()
    events = to_events(body_of("好的"))
    world.upstreams.outcome = await begun(events[:50], events[50:], closed=closed)
    answer = await world.ladder.answer(make_ask(stream=True))
    assert not isinstance(answer.body, bytes)
    assert [run async for run in answer.body] == [events[:50], events[50:]]
    await world.settle()
    assert json.loads(world.prover.seen[0][1])["choices"][0]["message"]["content"] == "好的"
    assert closed == [True]


async def test_a_stream_that_was_cut_proves_nothing() -> None:
    world, closed = World(), list[bool]()
    world.upstreams.outcome = await begun(to_events(body_of("x"))[:-14], closed=closed)
    answer = await world.ladder.answer(make_ask(stream=True))
    assert not isinstance(answer.body, bytes)
    assert [run async for run in answer.body]
    assert world.background == []


async def test_closing_a_watched_stream_closes_the_upstream_even_before_its_first_event() -> None:
    world, closed = World(), list[bool]()
    world.upstreams.outcome = await begun(b"data: {}\n\n", closed=closed)
    answer = await world.ladder.answer(make_ask(stream=True))
    assert not isinstance(answer.body, bytes)
    await answer.body.aclose()
    assert closed == [True]


async def test_shadows_never_pile_up_and_their_failures_hurt_nobody() -> None:
    world = World()
    for _ in range(MOST_SHADOWS + 3):
        await world.ladder.answer(make_ask())
    assert len(world.background) == MOST_SHADOWS
    assert world.count("shadows", outcome="skipped") == 3
    world.prover.error = ValueError("a defect")
    await world.settle()
    assert world.count("shadows", outcome="failed") == MOST_SHADOWS
    assert world.told[0][0] == "shadow"
    await world.ladder.answer(make_ask())
    assert len(world.background) == 1
    await world.settle()


async def test_what_is_not_shown() -> None:
    world = World()
    await world.ladder.answer(make_ask(fields={"n": 2}))
    await world.ladder.answer(replace(make_ask(), client=Client("p", "p", Priority.PREFETCH)))
    world.cache.kept = kept_of("fresh")
    await world.ladder.answer(make_ask())
    assert world.background == []
    quiet = World(shadow="0%")
    await quiet.ladder.answer(make_ask())
    assert quiet.background == []
