"""Recording and drill: what would be answered at which step, in which language, and how often wrongly."""

from __future__ import annotations

import json
import sqlite3
import stat
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from core.config_infer import Generation, InferConfig
from core.errors import NearpathError
from local_infer.api.forms import to_events
from local_infer.api.request import read_ask
from local_infer.cache.io_cache import Cache
from local_infer.drill.io_drill import drill, drill_command
from local_infer.drill.io_recent import Recent, RecentRequest, read_recent
from local_infer.drill.outcomes import Outcome, as_json, false_hit_share, read_wishes, tally, wish_headers
from local_infer.model import Answer, Ask, Client, Endpoint, Step
from local_infer.retrieval.proof import Agreement
from tests.local_infer.shelves import Clock, body_of, make_config, make_step, reply, tell
from tests.local_infer.tiny_model import build_model

FAQ: list[dict[str, object]] = [
    {"question": "如何关闭自动续费", "answer": "在设置页面里关闭，下个月起生效。"},
    {"question": "How do I cancel my order?", "answer": "Press the cancel button on the order page."},
]


def recent(text: str, said: str | None, *, stream: bool = False, **more: object) -> RecentRequest:
    body = None if said is None else reply(said).body
    assert body is None or isinstance(body, bytes)
    if stream and body is not None:
        body = to_events(body)
    return RecentRequest(1.0, "c", "shop", "/chat/completions", body_of(text, stream=stream, **more), body)


TRAFFIC = [
    recent("自动续费怎么取消", "在设置页面里关闭，下个月起生效。"),
    recent("如何开启自动续费", "在设置页面里开启。"),
    recent("how can I cancel an order", "Bananas are yellow and grow in the tropics.", stream=True),
    recent("How do I cancel my order?", "Press the cancel button on the order page.", stream=True),
    recent("How do I cancel my order?", None, tools=[{"type": "function", "function": {"name": "f"}}]),
    RecentRequest(1.0, "c", "shop", "/chat/completions", b"{", None),
]


def record(state_dir: Path, traffic: list[RecentRequest], most: int = 100) -> None:
    kept = Recent(state_dir, most)
    for one in traffic:
        kept.record(one)
    kept.close()
    assert kept.lost == 0


def test_the_newest_are_kept_and_only_the_owner_reads_them(tmp_path: Path) -> None:
    record(tmp_path, [recent(f"q{i}", None) for i in range(150)], most=40)
    read = list(read_recent(tmp_path))
    assert [one.body for one in read] == [body_of(f"q{i}", stream=False) for i in range(110, 150)]
    assert stat.S_IMODE((tmp_path / "recent.sqlite").stat().st_mode) == 0o600


def test_what_is_too_large_is_not_recorded(tmp_path: Path) -> None:
    kept = Recent(tmp_path, 10)
    kept.record(recent("x" * (1 << 20), None))
    kept.close()
    assert kept.lost == 1
    assert list(read_recent(tmp_path)) == []


def test_nothing_was_recorded(tmp_path: Path) -> None:
    with pytest.raises(NearpathError, match=r"set ladder\.record"):
        list(read_recent(tmp_path))


def outcome(language: str, step: str, *whys: str, agreement: Agreement | None = None) -> Outcome:
    return Outcome(language, step, whys, agreement)


async def test_drill(tmp_path: Path) -> None:
    config = make_config(tmp_path, FAQ)
    state = Path(config.state_dir)
    record(state, TRAFFIC)
    step, _, _ = make_step(config)
    await tell(step, "如何关闭自动续费", "anything")
    before = listing(state)
    assert await drill(config) == (
        [
            outcome("zh", "retrieval", agreement="agrees"),
            outcome("zh", "none", "retrieval: veto: antonym"),
            outcome("en", "retrieval", agreement="disagrees"),
            outcome("en", "retrieval", agreement="agrees"),
            outcome("en", "none", "retrieval: tools"),
        ],
        1,
    )
    assert listing(state) == before
    step.close()
    assert len((await drill(config, newest=2))[0]) == 1


async def keep(config: InferConfig, clock: Clock, request: RecentRequest, said: str) -> None:
    """An upstream's answer, kept as the gateway keeps it."""
    cache = await Cache.start(config, clock, CollectorRegistry())
    headers = {"Content-Type": "application/json", **read_wishes(request.headers)}
    ask = read_ask(Endpoint(request.endpoint), headers, request.body, Client("c", request.tenant), "r", clock())

    async def fetch(_ask: Ask) -> Answer:
        return reply(said)

    await cache.fetch(ask, fetch)
    await cache.close()


@pytest.mark.parametrize("beside", [False, True])
async def test_the_whole_ladder_as_it_is_now(tmp_path: Path, beside: bool) -> None:
    now = time.time()
    model = tmp_path / "model"
    model.mkdir()
    (model / "genai_config.json").touch()
    config = make_config(tmp_path, FAQ).model_copy(update={"generation": Generation(model=str(model))})
    fresh, old, older = (recent(f"问 {n}", "答", temperature=0) for n in ("一", "二", "三"))
    wished = '{"X-Cache": "keep"}'
    traffic = [
        fresh,
        old,
        older,
        replace(fresh, headers='{"X-Ladder-Refuse": "cache, stale, retrieval, generation"}'),
        replace(fresh, headers='{"Cache-Control": "no-cache"}'),
        replace(fresh, headers='{"Cache-Control": "only-if-cached, max-age=1"}'),
        replace(fresh, tenant="bank"),
        recent("warm one", None),  # temperature 1: not from the cache
        replace(recent("warm one", None), headers=wished),  # but for who asked for it
        recent("自动续费怎么取消", None),
        recent("x", None, tools=[{"type": "function", "function": {"name": "f"}}]),
        RecentRequest(1.0, "c", "shop", "/embeddings", b'{"model":"e","input":"text","temperature":0}', None),
    ]
    clock = Clock()
    for one, age_s in ((fresh, 60.0), (old, 4000.0), (older, 86_400.0), (replace(traffic[7], headers=wished), 60.0)):
        clock.now = now - age_s
        await keep(config, clock, one, "kept")
    record(Path(config.state_dir), traffic)
    before = listing(Path(config.state_dir))
    running = await Cache.start(config, time.time, CollectorRegistry()) if beside else None
    found, left_out = await drill(config)
    assert [(one.language, one.step) for one in found] == [
        ("zh", "cache"), ("zh", "stale"), ("zh", "stale"), ("zh", "none"), ("zh", "would_generate"), ("zh", "stale"),
        ("zh", "would_generate"), ("en", "would_generate"), ("en", "cache"), ("zh", "retrieval"), ("en", "none"),
        ("en", "none"),
    ]  # fmt: skip
    assert found[-2].whys == ("retrieval: tools", "generation: tools")
    assert left_out == 0
    found, _ = await drill(config, without=frozenset({Step.CACHE, Step.STALE, Step.GENERATION}))
    assert {one.step for one in found} == {"retrieval", "none"}
    if running is not None:
        await running.close()
    else:
        assert listing(Path(config.state_dir)) == before


def listing(folder: Path) -> dict[str, bytes]:
    """What lies there, but for what SQLite shares between those who have a file open."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


def an_ask(request: RecentRequest, **headers: str) -> Ask:
    given = {"Content-Type": "application/json", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return read_ask(Endpoint(request.endpoint), given, request.body, Client("c", "shop"), "r", 1.0)


def test_what_the_client_wished_is_recorded_as_it_said_it() -> None:
    plain = recent("x", None)
    wishes = [
        {"Cache_Control": "no-cache, no-store"},
        {"Cache_Control": "only-if-cached, max-age=7", "X_Cache": "keep"},
        {"X_Ladder_Refuse": "generation, stale"},
    ]
    for wish in wishes:
        ask = an_ask(plain, **wish)
        again = an_ask(plain, **read_wishes(wish_headers(ask)))
        assert (again.cache, again.refused) == (ask.cache, ask.refused)
    assert wish_headers(an_ask(plain)) == ""
    assert read_wishes("no json") == read_wishes("[1]") == {}


def test_a_file_of_before_is_read_and_written_on(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "recent.sqlite")) as db:
        db.execute(
            "CREATE TABLE recent (id INTEGER PRIMARY KEY, at_s REAL NOT NULL, client TEXT NOT NULL, "
            "tenant TEXT NOT NULL, endpoint TEXT NOT NULL, body BLOB NOT NULL, answer BLOB)"
        )
        db.execute("INSERT INTO recent VALUES (1, 1.0, 'c', 'shop', '/chat/completions', x'7b7d', NULL)")
        db.commit()
    old = RecentRequest(1.0, "c", "shop", "/chat/completions", b"{}", None)
    assert list(read_recent(tmp_path)) == [old]
    new = replace(old, headers='{"X-Cache": "keep"}')
    record(tmp_path, [new])
    assert list(read_recent(tmp_path)) == [old, new]


async def test_generate_runs_the_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime_genai")
    build_model(tmp_path / "model", "离线回答")
    base = make_config(tmp_path, FAQ)
    generation = Generation(model=str(tmp_path / "model"), name="tiny")
    models = base.models.model_copy(update={"memory_floor": 0})
    config = base.model_copy(update={"generation": generation, "models": models})
    record(Path(config.state_dir), [recent("如何开启自动续费", None), recent("如何开启自动续费", None, stream=True)])
    assert [one.step for one in (await drill(config, generate=True))[0]] == ["generation", "generation"]
    nothing = generation.model_copy(update={"model": str(tmp_path / "none")})
    (found, _), _ = await drill(config.model_copy(update={"generation": nothing}))
    assert (found.step, found.whys[-1]) == ("none", "generation: no model folder")


def test_command(tmp_path: Path) -> None:
    config = make_config(tmp_path, FAQ)
    record(Path(config.state_dir), TRAFFIC)
    file = tmp_path / "local-infer.yaml"
    retrieval = {"index": "index", "threshold": "35%"}
    raw = {"version": 1, "state_dir": "state", "listen": ["127.0.0.1:0"], "anonymous": True, "retrieval": retrieval}
    steps = {"steps": ["upstream", "retrieval"]}
    file.write_text(yaml.safe_dump({**raw, "ladder": steps}), "utf-8")
    app = typer.Typer()
    app.command()(drill_command)
    result = CliRunner().invoke(app, ["-c", str(file), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert list(found) == ["all", "zh", "en"]
    assert found["all"]["requests"] == 5
    assert found["en"] == {
        "requests": 3,
        "steps": {"cache": 0.0, "stale": 0.0, "retrieval": 2 / 3, "would_generate": 0.0, "none": 1 / 3},
        "false_hits": {"retrieval": 0.5},
        "unclear": {"retrieval": 0},
        "abstained": {"retrieval: tools": 1},
    }
    table = CliRunner().invoke(app, ["-c", str(file)], env={"COLUMNS": "120"})
    assert "50.0%" in table.output
    assert "retrieval: veto: antonym" in table.output
    assert "1  left out" in table.output
    narrow = CliRunner().invoke(app, ["-c", str(file)], env={"COLUMNS": "80"})
    for word in ("language", "requests", "retrieval", "generated", "(fresh)", "(503)"):
        assert word in narrow.output, "no word is cut on a usual screen"
    wrong = CliRunner().invoke(app, ["-c", str(file), "--without", "upstream"])
    assert isinstance(wrong.exception, NearpathError)


def test_tally_by_hand() -> None:
    outcomes = [outcome("zh", "retrieval", agreement="unclear"), outcome("zh", "none", "why"), outcome("en", "cache")]
    found = tally(outcomes)
    assert found["zh"].steps == {"retrieval": 1, "none": 1}
    assert false_hit_share(found["zh"], "retrieval") is None
    assert as_json(found, generate=True)["en"] == {
        "requests": 1,
        "steps": {"cache": 1.0, "stale": 0.0, "retrieval": 0.0, "generation": 0.0, "none": 0.0},
        "false_hits": {},
        "unclear": {},
        "abstained": {},
    }
