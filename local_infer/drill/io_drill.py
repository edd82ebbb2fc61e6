"""`local-infer drill`: recent traffic played again through the ladder as if no upstream could be reached.

Sends nothing anywhere and changes nothing: the gateway may go on running beside it. The ladder, the cache and the steps are
those of the gateway; only what they stand on is read and never written.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Annotated, NoReturn

import typer
from prometheus_client import CollectorRegistry
from rich import box
from rich.console import Console
from rich.table import Table

from core.config_infer import Generation as GenerationConfig
from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_config_infer import read_infer_config
from local_infer.api.request import read_ask
from local_infer.cache.io_cache import Cache
from local_infer.cache.io_cache_reading import open_to_read
from local_infer.drill.io_recent import RecentRequest, read_recent
from local_infer.drill.outcomes import (
    NOBODY,
    WOULD_GENERATE,
    Outcome,
    Tally,
    as_json,
    false_hit_share,
    language_asked,
    read_wishes,
    step_names,
    step_of,
    tally,
)
from local_infer.fault import ApiError, Unreachable
from local_infer.generation.io_generation import Generation
from local_infer.generation.io_model_queue import LocalQueue
from local_infer.generation.prompt import read_prompt
from local_infer.io_read_only import connect_read_only
from local_infer.ladder.steps import Ladder
from local_infer.model import (
    I2,
    O2,
    Abstained,
    Answer,
    Ask,
    Client,
    Endpoint,
    LocalStep,
    ModelCard,
    ModelPart,
    Origin,
    Priority,
    Question,
    Step,
)
from local_infer.retrieval.io_retrieval import STATE_FILE, Retrieval, text_of
from local_infer.retrieval.proof import compare_answers

CUT = "drill"
"""Why no upstream answers, in place of `connect` and the like."""

_ENDED = (429, 503, 504)
"""The ladder's end; what else it says is that the request would be refused today."""


class PlainQueue:
    """A `ModelQueue` of one: no priorities, no batches, nothing unloaded. For commands, where nobody else is waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    async def run(self, part: ModelPart[I2, O2], item: I2, priority: Priority, deadline_s: float) -> O2:
        """The result for one item; the part is loaded at its first."""
        return await asyncio.to_thread(self._run, part, item)

    def _run(self, part: ModelPart[I2, O2], item: I2) -> O2:
        with self._lock:
            if not part.loaded:
                part.load()
            return part.run([item])[0]


class _NoUpstreams:
    """`Upstreams` that are all down."""

    def down_reason(self, model: str) -> str:
        return CUT

    async def ask(self, ask: Ask, deadline_s: float) -> NoReturn:
        raise Unreachable(CUT, {})

    def models(self) -> Sequence[ModelCard]:
        return ()


class _WouldGenerate:
    """The LocalStep of a local model that is not run: whether it would be asked."""

    step = Step.GENERATION

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config
        self._is_there = (Path(config.model) / "genai_config.json").is_file()

    async def answer(self, ask: Ask, question: Question, priority: Priority, deadline_s: float) -> Answer | Abstained:
        if not self._is_there:
            return Abstained("no model folder")
        prompt = read_prompt(ask, self._config)
        return prompt if isinstance(prompt, Abstained) else Answer(200, {}, b"{}", Origin(self.step, self._config.name))

    def cards(self) -> Sequence[ModelCard]:
        return [ModelCard(f"local/{self._config.name}", "local")]


@dataclass(slots=True)
class _Stand:
    """A ladder without upstreams, and why its steps did not answer the request under way."""

    ladder: Ladder
    generate: bool
    whys: list[str] = field(default_factory=list)


async def drill(
    config: InferConfig, *, generate: bool = False, without: frozenset[Step] = frozenset(), newest: int = 0
) -> tuple[list[Outcome], int]:
    """(what `ladder.record` kept would get without upstreams, how many of it would be refused today).

    `generate` asks the local model too; `without` leaves steps out; `newest`: only so many, 0: all. NearpathError.
    """
    requests = list(read_recent(Path(config.state_dir)))[-newest:]
    async with AsyncExitStack() as stack:
        stand = await _make_stand(config, generate, stack)
        outcomes = [await _replay(one, stand, without) for one in requests]
    return [one for one in outcomes if one is not None], outcomes.count(None)


async def _make_stand(config: InferConfig, generate: bool, stack: AsyncExitStack) -> _Stand:
    registry, clock = CollectorRegistry(), time.time
    store = await open_to_read(config)
    cache = Cache.over(config, clock, registry, store)
    stack.push_async_callback(cache.close)
    steps: list[LocalStep] = []
    if config.retrieval is not None:
        own = config.model_copy(update={"state_dir": stack.enter_context(_copy_of_learned(Path(config.state_dir)))})
        retrieval = Retrieval(own, PlainQueue(), clock, registry)
        stack.callback(retrieval.close)
        steps.append(retrieval)
    if config.generation is not None and generate:
        queue = await LocalQueue.start(config, clock, registry)
        stack.push_async_callback(queue.close)
        generation = Generation(config, queue, clock, registry)
        stack.push_async_callback(generation.close)
        await generation.start()
        steps.append(generation)
    elif config.generation is not None:
        steps.append(_WouldGenerate(config.generation))
    whys: list[str] = []

    def note(step: str, why: str) -> None:
        if step != Step.UPSTREAM.label and why != "none":  # a step that is not configured needs no reason
            whys.append(f"{step}: {why}")

    ladder = Ladder(
        config, _NoUpstreams(), cache, steps, None, clock, Random(0), registry, spawn=asyncio.ensure_future, note=note
    )
    return _Stand(ladder, generate, whys)


def _copy_of_learned(state_dir: Path) -> tempfile.TemporaryDirectory[str]:
    """A folder with what retrieval has learned: a drill must not add to it, and the gateway may write meanwhile."""
    folder = tempfile.TemporaryDirectory(prefix="local-infer-drill-")
    file = state_dir / STATE_FILE
    if file.exists():
        try:
            with (
                closing(connect_read_only(file)) as there,
                closing(sqlite3.connect(Path(folder.name) / STATE_FILE)) as here,
            ):
                there.backup(here)
        except sqlite3.Error as error:
            folder.cleanup()
            raise NearpathError(f"{file} cannot be read ({error})", "run this as the gateway's user") from None
    return folder


async def _replay(request: RecentRequest, stand: _Stand, without: frozenset[Step]) -> Outcome | None:
    """What the client would get; None: it would be refused today, upstreams or not."""
    stand.whys.clear()
    try:
        headers = {"Content-Type": "application/json", **read_wishes(request.headers)}
        client = Client(request.client, request.tenant)
        ask = read_ask(Endpoint(request.endpoint), headers, request.body, client, "req_drill", time.time())
    except (ApiError, ValueError):
        return None
    language = language_asked(ask)
    try:
        answer = await _whole(await stand.ladder.answer(replace(ask, refused=ask.refused | without)))
    except ApiError as error:
        return Outcome(language, NOBODY, tuple(stand.whys)) if error.status in _ENDED else None
    agreement = None
    if answer.origin.step is Step.RETRIEVAL and request.answer is not None:
        was, said = text_of(Answer(200, {}, request.answer, Origin(Step.UPSTREAM, ""))), text_of(answer)
        agreement = None if was is None or said is None else compare_answers(was, said)
    return Outcome(language, step_of(answer.origin.step, stand.generate), tuple(stand.whys), agreement)


async def _whole(answer: Answer) -> Answer:
    if isinstance(answer.body, bytes):
        return answer
    return replace(answer, body=b"".join([item async for item in answer.body]))


def _read_steps(names: Iterable[str]) -> frozenset[Step]:
    known = {step.label: step for step in Step if step is not Step.UPSTREAM}
    for name in names:
        if name not in known:
            raise NearpathError(f"there is no step {name!r} to leave out", f"steps: {', '.join(known)}")
    return frozenset(known[name] for name in names)


def drill_command(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="LOCAL_INFER_CONFIG", help="The gateway's configuration file.")
    ] = Path("/etc/nearpath/local-infer.yaml"),
    as_json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    generate: Annotated[
        bool, typer.Option("--generate", help="Run the local model, too: memory for a slot, and its time each.")
    ] = False,
    without: Annotated[
        list[str] | None, typer.Option("--without", help="Leave a step out: cache, stale, retrieval, generation.")
    ] = None,
    newest: Annotated[int, typer.Option("--newest", min=0, help="Only so many of the newest requests; 0: all.")] = 0,
) -> None:
    """Play recent traffic again without upstreams: which step would answer what share, and how often wrongly."""
    loaded = read_infer_config(config)
    outcomes, refused = asyncio.run(drill(loaded, generate=generate, without=_read_steps(without or ()), newest=newest))
    if not outcomes:
        raise NearpathError("no request was recorded yet", "let traffic pass, and try again")
    found = tally(outcomes)
    if as_json_:
        print(json.dumps(as_json(found, generate)))
    else:
        _print(found, generate, refused)


_HEADS = {"cache": "cache\n(fresh)", WOULD_GENERATE: "would be\ngenerated", NOBODY: "none\n(503)"}


def _print(found: dict[str, Tally], generate: bool, refused: int) -> None:
    console = Console()
    steps = step_names(generate)
    # Without lines between columns it fits into 80 of them, so that no word is cut.
    heads = ["language", "requests", *(_HEADS.get(step, step) for step in steps), "false\nhits of\nretrieval"]
    table = Table(*heads, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, one in found.items():
        wrong = false_hit_share(one)
        shares = [f"{one.steps[step] / one.requests:.1%}" for step in steps]
        table.add_row(name, str(one.requests), *shares, "-" if wrong is None else f"{wrong:.1%}")
    console.print(table)
    for why, count in found["all"].whys.most_common(10):
        console.print(f"{count:6}  {why}", highlight=False)
    if refused:
        console.print(f"{refused:6}  left out: would be refused today, with upstreams too", highlight=False)
