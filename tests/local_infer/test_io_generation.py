"""Generation as the ladder uses it: real processes with a tiny model, which are also stopped, killed and starved."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_clock import AnchoredClock
from local_infer.api.forms import to_whole
from local_infer.api.sse import DONE, data_of, split_events
from local_infer.fault import ApiError
from local_infer.generation.io_generation import Generation
from local_infer.generation.io_model_queue import LocalQueue
from local_infer.model import Abstained, Answer, Ask, Client, Endpoint, Origin, Priority, Question, Step, Stream
from tests.local_infer.tiny_model import build_model

ANSWER = "你好，这是本机的回答。OK 😀!"
LONG = "慢" * 150
SOON_S = 20.0
FLOOR = 256 << 20
NOBODY = Question("a", "", "other")


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("quick"), ANSWER)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("slow"), LONG, work=2)


@dataclass
class Memory:
    bytes: int = 64 << 30

    def available(self) -> int:
        return self.bytes


@dataclass
class World:
    generation: Generation
    registry: CollectorRegistry
    now: Callable[[], float]
    memory: Memory

    async def ask(
        self, ask: Ask | None = None, priority: Priority = Priority.INTERACTIVE, within_s: float = SOON_S, **fields: Any
    ) -> Answer | Abstained:
        return await self.generation.answer(ask or make_ask(**fields), NOBODY, priority, self.now() + within_s)

    async def stream(self, **fields: Any) -> Stream:
        answer = await self.ask(make_ask(stream=True, **fields))
        assert isinstance(answer, Answer), answer
        assert not isinstance(answer.body, bytes)
        return answer.body

    @property
    def pid(self) -> int:
        (pid,) = self.generation.slots.pids
        return pid

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"local_infer_{name}", labels) or 0.0


def make_ask(stream: bool = False, model: str = "gpt", **fields: Any) -> Ask:
    fields = {"messages": [{"role": "user", "content": "如何关闭?"}], **fields}
    return Ask("req_1", Endpoint.CHAT, b"", fields, model, stream, Client("a", "a"), 0.0)


@asynccontextmanager
async def world(folder: Path, prefix: str = "", start: bool = True, **generation: Any) -> AsyncIterator[World]:
    raw = {
        "version": 1, "state_dir": "s", "listen": ["127.0.0.1:0"], "anonymous": True,
        "models": {"memory_floor": "256MiB"}, "ladder": {"prefix": {"generation": prefix}},
        "generation": {"model": str(folder), "name": "tiny", **generation},
    }  # fmt: skip
    config, clock, registry = InferConfig.model_validate(raw), AnchoredClock(), CollectorRegistry()
    memory = Memory()
    queue = await LocalQueue.start(config, clock.now, registry, memory.available, 0.02)
    made = Generation(config, queue, clock.now, registry)
    w = World(made, registry, clock.now, memory)
    try:
        if start:
            await made.start()
        yield w
    finally:
        await made.close()
        await queue.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 (what is waited for happens in processes)
            await asyncio.sleep(0.005)


def content(answer: Answer | Abstained) -> str:
    assert isinstance(answer, Answer), answer
    assert isinstance(answer.body, bytes)
    text: str = json.loads(answer.body)["choices"][0]["message"]["content"]
    return text


def environment_of(pid: int) -> list[bytes]:
    return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# -- answers


async def test_whole_streamed_and_by_name(quick: Path) -> None:
    async with world(quick, prefix="[离线] ") as w:
        answer = await w.ask(stop="OK")
        assert isinstance(answer, Answer)
        assert answer.origin == Origin(Step.GENERATION, "tiny")
        assert isinstance(answer.body, bytes)
        fields = json.loads(answer.body)
        assert (fields["model"], fields["system_fingerprint"]) == ("local/tiny", "degraded:generation")
        assert fields["choices"][0]["message"]["content"] == "[离线] 你好，这是本机的回答。"
        assert fields["choices"][0]["finish_reason"] == "stop"
        usage = fields["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]

        events = b"".join([run async for run in await w.stream(stream_options={"include_usage": True})])
        assert events.endswith(DONE)
        assert json.loads(to_whole(events))["choices"][0]["message"]["content"] == "[离线] " + ANSWER
        chunks = [json.loads(data_of(event)) for event in split_events(events)[:-1]]
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["completion_tokens"] == len(ANSWER.encode())

        assert content(await w.ask(make_ask(model="local/tiny"))) == ANSWER  # asked for: no excuse is due
        schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False}
        wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert json.loads(content(await w.ask(response_format=wanted))) == {"a": 1}

        assert await w.ask(tools=[{}]) == Abstained("tools")
        assert await w.ask(messages=[{"role": "user", "content": "x" * 600}]) == Abstained("too long")
        assert await w.ask(max_tokens=1) == Abstained("empty")  # a third of a character is no answer
        card = w.generation.cards()[0]
        assert (card.id, card.extra["provider"], card.extra["context_length"]) == ("local/tiny", "cpu", 512)
        assert w.count("generations_total", outcome="stop") == 4
        assert w.count("generation_tokens_total", kind="prompt") > 100
        assert w.count("generation_abstentions_total", why="tools") == 1
        assert b"ORT_DISABLE_TELEMETRY=1" in environment_of(w.pid)
        pid = w.pid
    assert not is_running(pid)


async def take_all(stream: Stream, seen: list[bytes]) -> None:
    async for run in stream:
        seen.append(run)  # noqa: PERF401 (kept also when the stream raises)


# -- clients that leave


async def test_a_client_that_leaves_frees_the_slot_without_a_new_process(slow: Path) -> None:
    async with world(slow) as w:
        pid = w.pid
        stream = await w.stream()
        await anext(stream)
        await stream.aclose()
        assert content(await w.ask(max_tokens=6)) == "慢慢"
        unread = await w.stream()  # nobody takes even its first event
        await unread.aclose()
        await until(lambda: w.count("generation_busy") == 0)
        whole = asyncio.create_task(w.ask())
        await until(lambda: w.count("generation_busy") == 1)
        whole.cancel()
        assert content(await w.ask(max_tokens=6)) == "慢慢"
        assert w.count("generations_total", outcome="cancelled") == 3
        assert w.pid == pid


async def test_a_process_that_does_not_let_go_is_killed_and_replaced(slow: Path) -> None:
    async with world(slow) as w:
        pid = w.pid
        stream = await w.stream()
        os.kill(pid, signal.SIGSTOP)
        await stream.aclose()
        assert content(await w.ask(max_tokens=6)) == "慢慢"
        assert w.pid != pid
        assert not is_running(pid)
        assert w.count("generation_kills_total", why="cancel") == 1


async def test_a_client_that_reads_slowly_keeps_no_slot(quick: Path) -> None:
    async with world(quick) as w:
        unread = await w.stream()
        assert content(await w.ask()) == ANSWER
        assert b"".join([run async for run in unread]).endswith(DONE)


# -- processes that crash


async def test_a_crash_in_the_middle_of_a_stream_is_told_and_the_process_replaced(slow: Path) -> None:
    async with world(slow) as w:
        pid = w.pid
        stream = await w.stream()
        seen = [await anext(stream)]
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(ApiError, match="in the middle"):
            await take_all(stream, seen)
        assert b"[DONE]" not in b"".join(seen)
        assert content(await w.ask(max_tokens=6)) == "慢慢"
        assert w.pid != pid


async def test_a_schema_that_took_the_process_down_is_refused_for_a_while(slow: Path) -> None:
    def schema(name: str) -> dict[str, Any]:
        return {"type": "json_schema", "json_schema": {"name": "x", "schema": {"const": name * 40}}}

    async def crash(w: World, wanted: dict[str, Any]) -> None:
        whole = asyncio.create_task(w.ask(response_format=wanted))
        await until(lambda: w.count("generation_busy") == 1)
        os.kill(w.pid, signal.SIGALRM)
        assert await whole == Abstained("crashed")
        await until(lambda: w.generation.slots.loaded == 1)

    async with world(slow) as w:
        await crash(w, schema("a"))
        refused = await w.ask(response_format=schema("a"))
        assert isinstance(refused, Abstained)
        assert (refused.why, "refused for" in refused.what) == ("schema", True)
        assert content(await w.ask(response_format=schema("b"))) == json.dumps("b" * 40)
        other = replace(make_ask(response_format=schema("a")), client=Client("b", "b"))
        assert content(await w.ask(other)) == json.dumps("a" * 40)
        await crash(w, {"type": "json_object"})
        assert isinstance(await w.ask(response_format={"type": "json_object"}, max_tokens=3), Answer), (
            "ours, not theirs"
        )


async def test_a_crash_before_the_first_word_leaves_the_request_to_the_next_step(slow: Path) -> None:
    async with world(slow) as w:
        whole = asyncio.create_task(w.ask())
        await until(lambda: w.count("generation_busy") == 1)
        os.kill(w.pid, signal.SIGSEGV)
        assert await whole == Abstained("crashed")
        await until(lambda: w.generation.slots.loaded == 1)
        assert w.count("generations_total", outcome="crashed") == 1


async def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(NearpathError, match="cannot be used"):
        async with world(tmp_path / "nothing"):
            pass
    async with world(tmp_path / "nothing", preload=False) as w:
        assert await w.ask() == Abstained("failed")
        assert await w.ask() == Abstained("failed")
        assert w.count("generation_processes_total", outcome="refused") == 1  # the second did not try again at once


# -- the queue


async def test_order_room_and_time(slow: Path) -> None:
    async with world(slow, queue=2) as w:
        running = asyncio.create_task(w.ask(max_tokens=60))
        await until(lambda: w.count("generation_busy") == 1)
        ended: list[str] = []

        async def ask(name: str, priority: Priority) -> Answer | Abstained:
            answer = await w.ask(max_tokens=3, priority=priority)
            ended.append(name)
            return answer

        first = asyncio.create_task(ask("shadow", Priority.SHADOW))
        prefetch = asyncio.create_task(ask("prefetch", Priority.PREFETCH))
        await until(lambda: w.count("generation_waiting") == 2)
        assert await w.ask(priority=Priority.PREFETCH) == Abstained("busy")  # no room, and nobody is less urgent
        urgent = asyncio.create_task(ask("urgent", Priority.INTERACTIVE))
        assert await prefetch == Abstained("busy")  # it made room
        assert await w.ask(within_s=0.0) == Abstained("busy")
        assert len(content(await running)) == 20
        assert (content(await urgent), content(await first)) == ("慢", "慢")
        assert ended == ["prefetch", "urgent", "shadow"]


async def test_who_waits_too_long_is_told_so(slow: Path) -> None:
    async with world(slow, wait="100ms") as w:
        stream = await w.stream()
        assert await w.ask() == Abstained("busy")
        gone = asyncio.create_task(w.ask())
        await until(lambda: w.count("generation_waiting") == 1)
        gone.cancel()
        await until(gone.done)
        assert w.count("generation_waiting") == 0
        await stream.aclose()
        await until(lambda: w.count("generation_busy") == 0)
        assert content(await w.ask(max_tokens=3)) == "慢"


async def test_who_leaves_at_the_moment_the_slot_is_free_takes_it_along_nowhere(
    slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(slow) as w:
        slots = w.generation.slots
        running = asyncio.create_task(w.ask(max_tokens=9))
        await until(lambda: w.count("generation_busy") == 1)
        gone = asyncio.create_task(w.ask())
        await until(lambda: w.count("generation_waiting") == 1)
        hand_out = slots._hand_out

        def hand_out_and_leave() -> None:
            hand_out()
            gone.cancel()

        monkeypatch.setattr(slots, "_hand_out", hand_out_and_leave)
        assert content(await running) == "慢慢慢"
        await until(gone.done)
        assert gone.cancelled()
        monkeypatch.undo()
        await until(lambda: w.count("generation_busy") == 0)
        assert content(await w.ask(max_tokens=3)) == "慢"


async def test_two_slots_generate_at_once(slow: Path) -> None:
    async with world(slow, slots=2) as w:
        assert w.generation.slots.loaded == 2
        streams = [await w.stream(), await w.stream()]
        assert w.count("generation_busy") == 2
        for stream in streams:
            await anext(stream)
            await stream.aclose()


# -- time and memory


async def test_time_ends_an_answer(slow: Path) -> None:
    async with world(slow, time="150ms") as w:
        answer = await w.ask()
        assert isinstance(answer, Answer)
        assert isinstance(answer.body, bytes)
        assert json.loads(answer.body)["choices"][0]["finish_reason"] == "length"
        assert LONG.startswith(content(answer))


async def test_loaded_lazily_and_unloaded_when_idle(quick: Path) -> None:
    async with world(quick, preload=False, unload_after="50ms", queue=0) as w:
        assert w.generation.slots.loaded == 0
        assert content(await w.ask()) == ANSWER  # who only waits for the loading needs no place in the queue
        await until(lambda: w.generation.slots.loaded == 0)
        assert content(await w.ask()) == ANSWER


async def test_unloaded_when_memory_is_short_and_not_loaded_without(quick: Path) -> None:
    async with world(quick) as w:
        pid = w.pid
        w.memory.bytes = FLOOR - 1
        await until(lambda: w.generation.slots.loaded == 0)
        await until(lambda: not is_running(pid))
        assert await w.ask() == Abstained("busy")
        w.memory.bytes = 64 << 30
        await asyncio.sleep(0)
        w.generation.slots._slots[0].not_before_s = 0.0  # the time to the next try, shortened
        assert content(await w.ask()) == ANSWER
