"""Recording and drill: what would be answered at which step, in which language, and how often wrongly."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from core.errors import NearpathError
from local_infer.gateway.forms import to_events
from local_infer.retrieval.drill import Outcome, as_json, false_hit_share, tally
from local_infer.retrieval.io_drill import drill, drill_command
from local_infer.retrieval.io_recent import Recent, RecentRequest, read_recent
from tests.local_infer.shelves import body_of, make_config, make_step, reply, tell

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


async def test_drill(tmp_path: Path) -> None:
    config = make_config(tmp_path, FAQ)
    state = Path(config.state_dir)
    record(state, TRAFFIC)
    step, _, _ = make_step(config)
    await tell(step, "如何关闭自动续费", "anything")
    before = (state / "retrieval.sqlite").read_bytes()
    assert await drill(config) == [
        Outcome("zh", "retrieval", "", "agrees"),
        Outcome("zh", "none", "retrieval: veto: antonym"),
        Outcome("en", "retrieval", "", "disagrees"),
        Outcome("en", "retrieval", "", "agrees"),
        Outcome("other", "none", "request: tools"),
    ]
    assert (state / "retrieval.sqlite").read_bytes() == before
    step.close()


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
    assert found["all"]["requests"] == 5
    assert found["en"] == {
        "requests": 2,
        "steps": {"retrieval": 1.0},
        "false_hits": {"retrieval": 0.5},
        "unclear": {"retrieval": 0},
        "abstained": {},
    }
    table = CliRunner().invoke(app, ["-c", str(file)])
    assert "50.0%" in table.output
    assert "retrieval: veto: antonym" in table.output


def test_tally_by_hand() -> None:
    outcomes = [Outcome("zh", "retrieval", "", "unclear"), Outcome("zh", "none", "why"), Outcome("en", "cache")]
    found = tally(outcomes)
    assert found["zh"].steps == {"retrieval": 1, "none": 1}
    assert false_hit_share(found["zh"], "retrieval") is None
    assert as_json(found)["en"] == {
        "requests": 1,
        "steps": {"cache": 1.0},
        "false_hits": {},
        "unclear": {},
        "abstained": {},
    }
