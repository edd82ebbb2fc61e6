"""The step on real graphs and files: it answers what is surely meant, else abstains; learns in shadow; tenants apart."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.errors import NearpathError
from local_infer.api.forms import to_events, to_whole
from local_infer.model import Answer, Origin, Priority, Step
from local_infer.retrieval import io_verified
from local_infer.retrieval.io_retrieval import Retrieval, Sight
from local_infer.retrieval.verdict import Look
from tests.local_infer.shelves import NOW, answer_to, ask_for, body_of, make_config, make_step, reply, tell
from tests.local_infer.tiny_embedder import make_embedder

OFF, ON = "在设置里关闭。", "在设置里开启。"
FAQ: list[dict[str, object]] = [
    {"id": "off", "question": "如何关闭自动续费", "answer": OFF},
    {"question": "How do I cancel my order?", "answer": "Press cancel."},
    {"question": "What does the gold plan cost?", "answer": "9 euros.", "tenant": "bank"},
    {"question": "How do I pay?", "answer": "As a pirate: by gold!", "system": "You are a pirate."},
]
PIRATE = {"role": "system", "content": "You are a pirate."}


@pytest.fixture
async def step(tmp_path: Path) -> AsyncIterator[Retrieval]:
    one, _, _ = make_step(make_config(tmp_path, FAQ))
    yield one
    one.close()


async def test_answers_and_abstains(step: Retrieval) -> None:
    assert await answer_to(step, "请问自动续费怎么取消？") == OFF
    assert await answer_to(step, "請問自動續費怎麼關閉") == OFF
    assert await answer_to(step, "如何开启自动续费") == "-- veto: antonym"
    assert await answer_to(step, "自动续费不会关闭吗") == "-- veto: negation"
    assert await answer_to(step, "How can I cancel an order?") == "Press cancel."
    assert await answer_to(step, "Why is the sky blue?") == "-- nothing similar"
    assert await answer_to(step, "的的") == "-- nothing to look up"
    assert await answer_to(step, "x" * 257) == "-- too long"


async def test_tenants_and_contexts_are_apart(step: Retrieval) -> None:
    gold = "What does the gold plan cost?"
    assert await answer_to(step, gold, "bank") == "9 euros."
    assert (await answer_to(step, gold, "shop")).startswith("--")
    assert await answer_to(step, "How do I pay?", "shop", PIRATE) == "As a pirate: by gold!"
    assert (await answer_to(step, "How do I pay?", "shop")).startswith("--")
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    assert (await answer_to(step, "How do I cancel my order?", "shop", *history)).startswith("--")


async def test_form_of_the_answer(step: Retrieval) -> None:
    body = body_of("How do I cancel my order?", stream=True, stream_options={"include_usage": True})
    answer = await step.answer(*ask_for(body), Priority.INTERACTIVE, NOW + 60)
    assert isinstance(answer, Answer)
    assert not isinstance(answer.body, bytes)
    assert answer.origin == Origin(Step.RETRIEVAL, "faq", "", 60.0)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = b"".join([item async for item in answer.body])
    assert events.endswith(b"data: [DONE]\n\n")
    whole = json.loads(to_whole(events))
    assert whole["choices"][0]["message"]["content"] == "Press cancel."  # a prefix is the ladder's
    assert (whole["model"], whole["system_fingerprint"]) == ("local/faq", "degraded:retrieval")
    assert whole["usage"]["total_tokens"] == 0


async def test_an_upstreams_answer_is_used_once_it_was_proved(step: Retrieval) -> None:
    question, said = "How do I reach the harbour?", "Take the blue tram to the last stop."
    for proofs in range(3):
        assert (await answer_to(step, question)).startswith("--"), proofs
        await tell(step, question, said)
    assert await answer_to(step, question) == said
    assert await answer_to(step, "how can I reach the harbour") == said
    assert (await answer_to(step, question, "bank")).startswith("--")
    assert (await answer_to(step, question, "shop", PIRATE)).startswith("--")
    for _ in range(2):
        await tell(step, question, "Bananas are yellow because of carotene inside.")
    assert (await answer_to(step, question)).startswith("--")


async def test_what_was_learned_outlives_the_process(tmp_path: Path) -> None:
    config = make_config(tmp_path, FAQ)
    first, _, _ = make_step(config)
    for _ in range(3):
        await tell(first, "How do I reach the harbour?", "Take the blue tram.")
    first.close()
    second, _, _ = make_step(config)
    assert await answer_to(second, "How do I reach the harbour?") == "Take the blue tram."
    second.close()


async def test_a_threshold_is_learned_for_each_entry(tmp_path: Path) -> None:
    # 98% by default: the rewording is below. Two answers that agree with the FAQ's bring this entry's threshold down.
    step, _, _ = make_step(make_config(tmp_path, FAQ, threshold="98%", keep=0))
    asked = "自动续费怎么取消"
    assert await answer_to(step, asked) == "-- similarity"
    for _ in range(2):
        await tell(step, asked, OFF)
    assert await answer_to(step, asked) == OFF
    await tell(step, asked, "Bananas are yellow.")
    assert await answer_to(step, asked) == "-- similarity"
    step.close()


async def test_the_operator_is_right_about_the_very_question(step: Retrieval) -> None:
    for _ in range(5):
        await tell(step, "如何关闭自动续费", "Bananas are yellow.")
    assert await answer_to(step, "如何关闭自动续费") == OFF


@pytest.mark.parametrize(
    "answer",
    [
        reply("cut off here", finish="length"),
        reply(""),
        Answer(200, {}, b"{", Origin(Step.UPSTREAM, "e")),
        Answer(200, {}, b'{"choices": []}', Origin(Step.UPSTREAM, "e")),
        Answer(500, {}, reply("x").body, Origin(Step.UPSTREAM, "e")),
        Answer(200, {}, b"data: {}\n\n", Origin(Step.UPSTREAM, "e")),
    ],
)
async def test_what_is_no_whole_answer_teaches_nothing(step: Retrieval, answer: Answer) -> None:
    for _ in range(4):
        await step.observe(*ask_for(body_of("How do I reach the harbour?")), answer)
    assert await answer_to(step, "How do I reach the harbour?") == "-- nothing similar"


async def test_a_whole_stream_teaches_too(step: Retrieval) -> None:
    whole = reply("Take the blue tram.").body
    assert isinstance(whole, bytes)
    for _ in range(3):
        answer = Answer(200, {}, to_events(whole), Origin(Step.UPSTREAM, "e"))
        await step.observe(*ask_for(body_of("How do I reach the harbour?", stream=True)), answer)
    assert await answer_to(step, "How do I reach the harbour?") == "Take the blue tram."


@pytest.mark.parametrize("graph_from", [2_000, 4])
async def test_many_kept_answers_with_and_without_a_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_from: int
) -> None:
    monkeypatch.setattr(io_verified, "GRAPH_FROM", graph_from)
    step, _, _ = make_step(make_config(tmp_path, FAQ, proofs=0, keep=12))
    things = [
        "harbour",
        "castle",
        "station",
        "museum",
        "river",
        "market",
        "palace",
        "tower",
        "garden",
        "bridge",
        "lake",
    ]
    for thing in things:
        for tenant in ("shop", "bank"):
            await tell(step, f"How do I reach the {thing}?", f"The {thing} is near {tenant}.", tenant)
    # The oldest went first; each tenant gets its own.
    for tenant in ("shop", "bank"):
        assert (await answer_to(step, "How can I reach the harbour", tenant)).startswith("--")
        assert await answer_to(step, "How can I reach the lake", tenant) == f"The lake is near {tenant}."
        assert await answer_to(step, "How can I reach the tower", tenant) == f"The tower is near {tenant}."
    step.close()


async def test_metrics(tmp_path: Path) -> None:
    step, _, registry = make_step(make_config(tmp_path, FAQ))
    await answer_to(step, "How do I cancel my order?")
    await answer_to(step, "如何开启自动续费")
    answered = registry.get_sample_value("local_infer_retrieval_answers_total", {"source": "faq", "language": "en"})
    why = {"why": "veto: antonym", "language": "zh"}
    assert answered == 1
    assert registry.get_sample_value("local_infer_retrieval_abstentions_total", why) == 1
    assert registry.get_sample_value("local_infer_retrieval_entries", {"source": "faq"}) == 4
    assert [card.id for card in step.cards()] == ["local/faq", "local/verified"]
    assert [part.name for part in step.parts()] == ["faq-index", "verified-index"]
    step.close()


@pytest.mark.parametrize("graph_from", [2_000, 4])
async def test_what_is_kept_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_from: int) -> None:
    step, _, _ = make_step(make_config(tmp_path, FAQ, proofs=0))
    for number in range(20):
        await tell(
            step, f"Where is the house with number {number} in the old town?", f"Number {number} is in the north."
        )
    index = step._kept
    monkeypatch.setattr(io_verified, "GRAPH_FROM", graph_from)
    index.load()
    asked, said = "How do I reach the harbour?", "Take the blue tram."
    assert (await answer_to(step, asked)).startswith("--")
    await tell(step, asked, said)
    assert not index.is_outgrown()  # the index does not know it yet
    assert await answer_to(step, "how can I reach the harbour") == said
    assert (await answer_to(step, asked, "bank")).startswith("--")
    before = await similarity_of(step, "how can I reach the harbour now")
    index.load()
    # On the same scale; its words are a little less rare now.
    assert await similarity_of(step, "how can I reach the harbour now") == pytest.approx(before, abs=0.1)
    assert await answer_to(step, asked) == said
    # One that is replaced is gone at once, too.
    await tell(step, asked, "Bananas are yellow because of carotene inside.")
    assert await answer_to(step, asked) != said
    step.close()


@pytest.mark.parametrize("graph_from", [2_000, 1])
def test_what_is_kept_is_found_at_once_by_vectors_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, graph_from: int
) -> None:
    monkeypatch.setattr(io_verified, "GRAPH_FROM", graph_from)
    store = io_verified.VerifiedStore(tmp_path / "kept.sqlite", "an embedder")
    index = io_verified.VerifiedIndex(store, tmp_path, ["cpu"], 1)
    one, other = np.eye(2, dtype=np.float32)
    kept = io_verified.Kept(0, "shop", b"", "en", "one", "1", NOW, one)
    store.keep(kept, 10)
    index.load()
    store.keep(replace(kept, question="other", answer="2", vector=other), 10)
    store.keep(replace(kept, tenant="bank", answer="3", vector=other), 10)
    (found,) = index.run([Look(other, "shop", b"", "en")])
    assert [(f.answer, f.similarity) for f in found] == [("2", 1.0), ("1", 0.0)]
    index.load()
    (found,) = index.run([Look(other, "shop", b"", "en")])
    assert [(f.answer, f.similarity) for f in found] == [("2", pytest.approx(1.0)), ("1", 0.0)]
    store.close()


def test_nothing_is_learned_of_what_was_dropped_meanwhile(tmp_path: Path) -> None:
    store = io_verified.VerifiedStore(tmp_path / "kept.sqlite", "")
    for number in range(3):
        store.keep(io_verified.Kept(0, "shop", b"", "en", f"question {number}", "answer", float(number)), 2)
        store.learn(f"kept:{number + 1}:{number:.3f}", 1.0, "agrees")
    store.learn("kept:1:0.000", 1.0, "agrees")  # looked up before it was dropped, compared after
    store.learn("kept:2:9.000", 1.0, "agrees")  # another answer has its id now
    of_faq = {"an entry of the FAQ:0123456789ab", "kept:1:0123456789ab"}  # their ids are any text
    for entry in of_faq:
        store.learn(entry, 0.9, "agrees")
    assert len(store.kept) == 2
    assert set(store.proofs) == {*(kept.entry for kept in store.kept.values()), *of_faq}
    assert store._db.execute("SELECT count(*) FROM proofs").fetchone() == (4,)
    store.close()


async def similarity_of(step: Retrieval, text: str) -> float:
    _, question = ask_for(body_of(text))
    seen = await step._see(question, Priority.INTERACTIVE, NOW + 60)
    assert isinstance(seen, Sight)
    return max(found.similarity for found in seen.found if found.source == "verified")


async def test_embedder_finds_other_words_once_proved(tmp_path: Path) -> None:
    meanings = [["film", "movie"], ["rent", "hire"], ["a", "How", "do", "Can", "we", "I"], ["sell"]]
    folder = make_embedder(tmp_path / "embedder", meanings)
    faq: list[dict[str, object]] = [{"question": "How do I rent a film", "answer": "At the desk."}]
    step, _, _ = make_step(make_config(tmp_path, faq, embedder=str(folder)))
    asked = "Can we hire movie"
    assert await answer_to(step, asked) == "-- veto: wording"
    for _ in range(2):
        await tell(step, asked, "At the desk.")
    assert await answer_to(step, asked) == "At the desk."
    assert (await answer_to(step, "Can we not hire movie")).startswith("-- veto: negation")
    assert [part.name for part in step.parts()] == ["embedder", "faq-index", "verified-index"]
    for part in step.parts():
        part.unload()
        assert not part.loaded
    assert await answer_to(step, asked) == "At the desk."
    step.close()


async def test_a_disk_that_cannot_be_written_stops_learning_only(
    tmp_path: Path,
) -> None:
    step, _, _ = make_step(make_config(tmp_path, FAQ))
    await tell(step, "How do I reach the harbour?", "Take the blue tram.")
    with sqlite3.connect(tmp_path / "state" / "retrieval.sqlite") as db:
        db.execute("DROP TABLE kept")
    await tell(step, "How do I reach the castle?", "Take the red tram.")
    assert await answer_to(step, "How do I cancel my order?") == "Press cancel."
    step.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, FAQ)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "retrieval.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(NearpathError, match="move it away"):
        make_step(config)


async def test_shadow_answers_at_once_are_all_counted(tmp_path: Path) -> None:
    step, _, registry = make_step(make_config(tmp_path, FAQ))
    await asyncio.gather(*(tell(step, "自动续费怎么取消", OFF) for _ in range(20)))
    labels = {"source": "faq", "outcome": "agrees"}
    assert registry.get_sample_value("local_infer_retrieval_proofs_total", labels) == 20
    step.close()
    with sqlite3.connect(tmp_path / "state" / "retrieval.sqlite") as db:
        assert db.execute("SELECT agreed FROM proofs WHERE entry LIKE 'faq:off:%'").fetchone() == (20,)
