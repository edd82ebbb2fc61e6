"""`local-infer bench`: a traffic profile against a running gateway, or against one that it starts itself."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop

from core.errors import NearpathError
from core.io_config_infer import read_infer_config
from local_infer.load.io_filling import Filled, fill
from local_infer.load.io_load import Load, Plan, Run
from local_infer.load.io_processes import KEY, Watched, free_port, pid_of, playing_upstreams, running_gateway
from local_infer.load.io_report import as_json, print_report, slope_of, slope_words
from local_infer.load.io_upstream import MODEL
from local_infer.load.shots import PROFILES, Habits, Profile, Shooter
from local_infer.load.slope import Slope
from local_infer.retrieval.faq import FaqEntry
from local_infer.retrieval.io_build import build_index

_RATES: dict[Profile, float] = {"faq": 200.0, "chat-sse": 20.0, "grading": 100.0, "mixed": 60.0}
_AT_ONCE: dict[Profile, int] = {"faq": 64, "chat-sse": 64, "grading": 256, "mixed": 256}
_UPSTREAMS = 2
_TELL_EVERY_S = 60.0

_LEAVE_SHARE = 0.03
"""With faults: streams that the client walks away from."""

_HABITS = Habits(resume=0.3, keep=0.7, look_up=0.3, stored=5000)
"""With faults: streams that may be continued elsewhere, chats that are kept, so that what follows what is learned, and
more stored questions than their wordings are kept of.
"""

_SMALL: dict[str, Any] = {"memory": "8MiB", "disk": "16MiB", "fresh_for": "20s", "revalidate_for": "10s"}
"""With faults: caches that are full soon, so that an hour's memory is told from their filling, and answers that get stale
within a round of faults, so that every age of them is met."""

_SHADOW = "5%"
_VERIFIED_KEPT = 200
"""With faults: more is learned than by default, and less of it is kept."""

_FILL_AT_ONCE = 16
_FILL_MOST_S = 900.0
"""With faults: the stores are filled before, as fast as so many requests at once are answered, and for so long at most. At
a given rate a machine with other work gets too much, and then nothing is learned at all.
"""

_QUICK: dict[str, Any] = {
    "give_up": "2s", "connect": "1s", "first_byte": "3s", "whole": "5s", "between_chunks": "2s", "probe_every": "1s",
    "breaker": {"open_for": "1s", "open_most": "4s"},
}  # fmt: skip
"""With faults: every time-out is met several times a round."""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked."""

    url: str
    key: str
    model: str
    watched: Watched | None


@dataclass(frozen=True, slots=True)
class Own:
    """What was started for the run: where the gateway's log and metrics are, and how faults begin."""

    log: Path
    metrics_url: str
    begin_faults: Callable[[], None]


def bench_command(
    profile: Annotated[str, typer.Option("--profile", help=f"Traffic to play: {', '.join(PROFILES)}.")] = "mixed",
    own: Annotated[bool, typer.Option("--self", help="Start a gateway and played upstreams for it.")] = False,
    faults: Annotated[bool, typer.Option("--faults", help="With --self: the upstreams misbehave in turns.")] = False,
    url: Annotated[str, typer.Option("--url", help="Base URL of a running gateway, up to and with /v1.")] = "",
    key_file: Annotated[
        Path | None, typer.Option("--key-file", help="File with the key for it; else LOCAL_INFER_KEY.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The model to ask for.")] = "",
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Whether the upstream is a played one, whose words are known.")
    ] = True,
    pid: Annotated[int | None, typer.Option("--pid", help="The gateway's process, for CPU and memory.")] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="Or its configuration file, to find the process by.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long.")] = 30.0,
    rate: Annotated[float | None, typer.Option("--rate", min=0, help="Requests/s; 0: as many as get answered.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", min=1, help="Requests at once.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Other seeds make other requests.")] = 1,
    as_json_: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Put load on a gateway, and check every answer; exit status 1 when one was lost or crossed, or all refused."""
    chosen = next((one for one in PROFILES if one == profile), None)
    if chosen is None:
        raise NearpathError(f"there is no profile {profile!r}", f"use one of {', '.join(PROFILES)}")
    if faults and not own:
        raise NearpathError("--faults needs upstreams that can be told to misbehave", "add --self")
    if own == bool(url):
        raise NearpathError("what is to be asked?", "give either --self, or --url of a running gateway")
    rng = random.Random(seed)
    shooter = Shooter(chosen, MODEL if own else model or MODEL, rng, _HABITS if faults else None)
    given = _given(url, _read_key(key_file), model or MODEL, pid, config)
    filled = None
    with _start(shooter, faults, seed) if own else given as (one, ours):
        plan = Plan(
            one.url, one.key, seconds, _RATES[chosen] if rate is None else rate, concurrency or _AT_ONCE[chosen],
            check=check, leave=_LEAVE_SHARE if faults else 0.0,
        )  # fmt: skip
        if faults and ours is not None:
            filled = _fill(plan, shooter, rng, one, ours)
            ours.begin_faults()
        run = _play(Load(plan, shooter, rng, one.watched, _teller(seconds)))
        died = one.watched is not None and not one.watched.alive()
    slope = slope_of(run, faults=faults)
    facts = {"bench": "infer-load", "profile": chosen, "seed": seed, "rate": plan.rate, "concurrency": plan.concurrency}
    if as_json_:
        print(json.dumps(as_json(run, facts, slope, filled)))
    else:
        print_report(run, facts, slope, filled)
    # Without faults nothing was filled before: memory may grow then.
    grown = slope if filled is not None and slope is not None and slope.grows else None
    if _tell_faults(run, ours, grown, died=died):
        raise typer.Exit(1)
    if ours is not None:
        shutil.rmtree(ours.log.parent, ignore_errors=True)


def _fill(plan: Plan, shooter: Shooter, rng: random.Random, one: Target, ours: Own) -> Filled:
    plan = replace(plan, rate=0.0, concurrency=_FILL_AT_ONCE, seconds=_FILL_MOST_S, leave=0.0)
    assert one.watched is not None
    filled = fill(Load(plan, shooter, rng, None, lambda _run, _s: None), ours.metrics_url, one.watched)
    if filled.broken_off:
        shutil.rmtree(ours.log.parent, ignore_errors=True)
        print("ended while the stores were being filled: nothing was measured", file=sys.stderr)
        raise typer.Exit(1)
    died = not one.watched.alive()
    if filled.bad or died:
        what = "the gateway died" if died else f"{filled.bad} answers were lost or crossed"
        print(f"{what} while the stores were being filled, before any fault", *filled.whys, sep="\n", file=sys.stderr)
        print(f"the gateway said: {ours.log}", file=sys.stderr)
        raise typer.Exit(1)
    stores = f"not full: {', '.join(filled.left)}" if filled.left else "all stores are full"
    print(f"filled for {filled.seconds:.0f} s: {stores}, {filled.last_mb:.0f} MB", file=sys.stderr, flush=True)
    return filled


def _tell_faults(run: Run, ours: Own | None, grown: Slope | None, *, died: bool) -> bool:
    """Whether the run has failed; why, to standard error."""
    answered = run.all.outcomes["good"] > 0
    if not answered:
        codes = ", ".join(f"{count} {code}" for code, count in run.all.codes.most_common(5))
        told = f": {codes}" if codes else ""
        print(f"no request was answered{told}: look at --url, key and --model", file=sys.stderr)
    if grown is not None:
        print(slope_words(grown), file=sys.stderr)
    if not run.all.bad and not died and answered and grown is None:
        return False
    for why in run.whys:
        print(why, file=sys.stderr)
    if ours is not None:
        print(f"the gateway{' died; it' if died else ''} said: {ours.log}", file=sys.stderr)
    return True


def _play(load: Load) -> Run:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(load.run())


def _read_key(file: Path | None) -> str:
    if file is None:
        return os.environ.get("LOCAL_INFER_KEY", "")
    try:
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise NearpathError(f"cannot read the key in {file}: {error}", "check the path and its permissions") from None


@contextmanager
def _given(url: str, key: str, model: str, pid: int | None, config: Path | None) -> Iterator[tuple[Target, Own | None]]:
    if pid is None and config is not None:
        pid = pid_of(Path(read_infer_config(config).state_dir))
    watched = Watched(pid) if pid is not None else None
    if watched is not None and not watched.alive():
        raise NearpathError(f"there is no process {pid}", "see `systemctl status local-infer`")
    yield Target(url, key, model, watched), None


@contextmanager
def _start(shooter: Shooter, faults: bool, seed: int) -> Iterator[tuple[Target, Own | None]]:
    """A gateway of our own with an index of the FAQ; the caller removes the folder of its log."""
    folder = Path(tempfile.mkdtemp(prefix="local-infer-bench-"))
    entries = [FaqEntry(f"q{i}", (question,), answer, "", b"") for i, (question, answer) in enumerate(shooter.faq())]
    build_index(entries, folder / "faq", embedder=None, now=time.time())
    metrics = f"127.0.0.1:{free_port()}"
    sections: dict[str, Any] = {"retrieval": {"index": str(folder / "faq")}, "metrics": {"listen": [metrics]}}
    if faults:
        sections["retrieval"]["keep"] = _VERIFIED_KEPT
        sections["routing"] = _QUICK
        sections["cache"] = _SMALL
        sections["ladder"] = {"shadow": _SHADOW}
    log = folder / "gateway.log"
    try:
        with (
            log.open("wb") as stderr,
            playing_upstreams(_UPSTREAMS, seed) as (urls, begin_faults),
            running_gateway(folder, urls, stderr, **sections) as (process, port),
        ):
            own = Own(log, f"http://{metrics}/metrics", begin_faults)
            yield Target(f"http://127.0.0.1:{port}/v1", KEY, MODEL, process), own
    except NearpathError:
        print("".join(log.read_text("utf-8", "replace").splitlines(keepends=True)[-10:]), file=sys.stderr)
        raise


def _teller(seconds: float) -> Callable[[Run, float], None]:
    """A line a minute on standard error for who waits."""
    next_s = _TELL_EVERY_S

    def tell(run: Run, elapsed_s: float) -> None:
        nonlocal next_s
        if elapsed_s < next_s:
            return
        next_s += _TELL_EVERY_S
        memory = f", {run.samples[-1][1]:.0f} MB" if run.samples else ""
        outcomes = ", ".join(f"{count} {name}" for name, count in run.all.outcomes.most_common())
        print(f"{elapsed_s:6.0f} of {seconds:.0f} s: {outcomes}{memory}", file=sys.stderr, flush=True)

    return tell
