"""`local-infer drill`: recent traffic played again as if no upstream could be reached; who would answer, and how wrongly.

Sends nothing anywhere and changes nothing: the gateway may go on running beside it.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.table import Table

from core.config_infer import InferConfig
from core.errors import NearpathError
from core.io_config_infer import read_infer_config
from local_infer.fault import ApiError, Busy
from local_infer.gateway.request import read_ask
from local_infer.model import (
    I2,
    O2,
    Abstained,
    Answer,
    Ask,
    Client,
    Endpoint,
    ExactCache,
    LocalStep,
    ModelPart,
    Origin,
    Priority,
    Question,
    Step,
)
from local_infer.retrieval.drill import NOBODY, Outcome, Tally, as_json, false_hit_share, tally
from local_infer.retrieval.io_recent import RecentRequest, read_recent
from local_infer.retrieval.io_retrieval import STATE_FILE, Retrieval, text_of
from local_infer.retrieval.proof import compare_answers
from local_infer.retrieval.question import question_of

_STEP_TIME_S = 60.0


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


async def replay(
    requests: Iterable[RecentRequest], steps: Sequence[LocalStep], cache: ExactCache | None, now: float
) -> list[Outcome]:
    """What each request would have got from `cache`, then from `steps` in order, with no upstream there."""
    return [outcome for one in requests if (outcome := await _replay_one(one, steps, cache, now)) is not None]


async def _replay_one(
    request: RecentRequest, steps: Sequence[LocalStep], cache: ExactCache | None, now: float
) -> Outcome | None:
    try:
        headers = {"Content-Type": "application/json"}
        client = Client(request.client, request.tenant)
        ask = read_ask(Endpoint(request.endpoint), headers, request.body, client, "req_drill", now)
    except (ApiError, ValueError):
        return None  # would be refused today
    question = question_of(ask)
    language = "other" if isinstance(question, Abstained) else question.language
    was = None if request.answer is None else text_of(Answer(200, {}, request.answer, Origin(Step.UPSTREAM, "")))
    if cache is not None and (kept := await cache.find(ask, now)) is not None:
        return Outcome(language, (Step.CACHE if kept.age == "fresh" else Step.STALE).label)
    if isinstance(question, Abstained):
        return Outcome(language, NOBODY, f"request: {question.why}")
    return await _ask_steps(ask, question, steps, was)


async def _ask_steps(ask: Ask, question: Question, steps: Sequence[LocalStep], was: str | None) -> Outcome:
    why = ""
    for step in steps:
        try:
            answer = await step.answer(ask, question, Priority.BACKGROUND, time.time() + _STEP_TIME_S)
        except Busy:
            why = why or f"{step.step.label}: busy"
            continue
        if isinstance(answer, Abstained):
            why = why or f"{step.step.label}: {answer.why}"
            continue
        said = text_of(await _whole(answer))
        agreement = None if was is None or said is None else compare_answers(was, said)
        return Outcome(question.language, step.step.label, why, agreement)
    return Outcome(question.language, NOBODY, why)


async def _whole(answer: Answer) -> Answer:
    if isinstance(answer.body, bytes):
        return answer
    body = b"".join([item async for item in answer.body])
    return Answer(answer.status, answer.headers, body, answer.origin)


async def drill(config: InferConfig, more: Sequence[LocalStep] = (), cache: ExactCache | None = None) -> list[Outcome]:
    """Replay what `ladder.record` kept: `cache`, then retrieval (on a copy of what it learned), then `more` steps."""
    requests = list(read_recent(Path(config.state_dir)))
    with tempfile.TemporaryDirectory(prefix="local-infer-drill-") as folder:
        # On a copy: what the gateway learned is its own, and a drill must not add to it.
        with suppress(FileNotFoundError):
            for name in (STATE_FILE, STATE_FILE + "-wal"):
                shutil.copy(Path(config.state_dir) / name, Path(folder) / name)
        steps = list(more)
        if config.retrieval is not None:
            own = config.model_copy(update={"state_dir": folder})
            steps.insert(0, Retrieval(own, PlainQueue(), time.time, CollectorRegistry()))
        return await replay(requests, steps, cache, time.time())


def drill_command(
    config: Annotated[
        Path, typer.Option("--config", "-c", envvar="LOCAL_INFER_CONFIG", help="The gateway's configuration file.")
    ] = Path("/etc/nearpath/local-infer.yaml"),
    as_json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Play recent traffic again without upstreams: which step would answer what share, and how often wrongly."""
    loaded = read_infer_config(config)
    outcomes = asyncio.run(drill(loaded))
    if not outcomes:
        raise NearpathError("no request was recorded yet", "let traffic pass, and try again")
    found = tally(outcomes)
    if as_json_:
        print(json.dumps(as_json(found)))
    else:
        _print(found)


def _print(found: dict[str, Tally]) -> None:
    console = Console()
    table = Table("language", "requests", "step", "share", "false hits")
    for name, one in found.items():
        for step, count in one.steps.most_common():
            share = false_hit_share(one, step)
            wrong = "-" if share is None else f"{share:.1%}"
            table.add_row(name, str(one.requests), step, f"{count / one.requests:.1%}", wrong)
    console.print(table)
    for why, count in found["all"].whys.most_common(10):
        console.print(f"{count:6}  {why}", highlight=False)
