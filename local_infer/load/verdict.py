"""What became of a request: good, told that it failed, or (what must never be) lost or somebody else's.

| outcome | what came |
|---|---|
| good | the whole answer that belongs to the request |
| refused | an HTTP error in the API's form |
| told | a stream that ended with an error event and without `[DONE]`; what came before it is right |
| left | the load generator went away on purpose |
| lost | no answer, an answer that is not whole and does not say so, or one in no form |
| crossed | an answer that belongs to another request, or has words too many or in another order |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from local_infer.api.sse import data_of, ends_with_done, split_events
from local_infer.cache.freshness import cache_word
from local_infer.load.shots import Shot

Outcome = Literal["good", "refused", "told", "left", "lost", "crossed"]
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
BAD: tuple[Outcome, ...] = ("lost", "crossed")


@dataclass(frozen=True, slots=True)
class Verdict:
    """`step` and `cache` are what the answer said of itself: a step of the ladder, and hit, miss, ... of its cache.

    `text` is the answer of a good chat, `code` the error's of a refusal, `why` one line for a bad outcome.
    """

    outcome: Outcome
    step: str
    cache: str
    text: str | None = None
    why: str = ""
    code: str = ""


def judge(shot: Shot, status: int, headers: Mapping[str, str], body: bytes, check: bool = True) -> Verdict:
    """The verdict on a response that came to its end. `check` False: its form only, for upstreams that do not echo."""
    step, cache = step_of(headers), cache_of(headers)
    if status != 200:
        code = _code_of(body)
        outcome: Outcome = "lost" if code is None else "refused"
        return Verdict(outcome, "none", cache, why=f"{status} {body[:200]!r}", code=f"{status} {code or ''}".strip())
    try:
        found, text = _judge_events(shot, body, check) if shot.stream else _judge_whole(shot, body, check)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        return Verdict("lost", step, cache, why=f"no answer in form ({type(error).__name__}): {body[-200:]!r}")
    why = "" if found == "good" else f"wanted {shot.wanted[:80]!r}, got ...{body[-200:]!r}"
    return Verdict(found, step, cache, text if found == "good" else None, why)


def step_of(headers: Mapping[str, str]) -> str:
    """The step that a good answer came from: what X-Degraded says, else the cache or an upstream."""
    degraded = headers.get("X-Degraded", "")
    if degraded:
        return degraded.partition(";")[0].strip()
    return "cache" if cache_of(headers) == "hit" else "upstream"


def cache_of(headers: Mapping[str, str]) -> str:
    """`hit`, why it was forwarded (`miss`, `bypass`, ...), with `+shared` when it joined another; `none`: no look-up."""
    return cache_word(headers.get("Cache-Status", "").partition(";")[2])


def _judge_whole(shot: Shot, body: bytes, check: bool) -> tuple[Outcome, str]:
    fields = json.loads(body)
    if shot.kind == "models":
        ids = [card["id"] for card in fields["data"]]
        return ("good" if shot.wanted in ids or not check else "lost"), ""
    if shot.kind == "embeddings":
        vectors = [one["embedding"] for one in fields["data"]]
        wanted = json.loads(shot.wanted)
        if vectors == wanted or not check:
            return "good", ""
        return ("lost" if vectors == wanted[: len(vectors)] else "crossed"), ""
    text = fields["choices"][0]["message"]["content"]
    return _compare(shot, text, check), text


def _judge_events(shot: Shot, body: bytes, check: bool) -> tuple[Outcome, str]:
    pieces: list[str] = []
    failed = finished = False
    for event in split_events(body):
        data = data_of(event)
        if not data or data == b"[DONE]":
            continue
        fields = json.loads(data)
        failed = failed or bool(fields.get("error"))
        finished = finished or any(choice.get("finish_reason") for choice in fields.get("choices") or ())
        pieces += [(choice.get("delta") or {}).get("content") or "" for choice in fields.get("choices") or ()]
    text, done = "".join(pieces), ends_with_done(body)
    # A stream that ends after its finish reason is whole, although [DONE] did not come: some upstreams send none.
    if (done or finished) and not failed:
        return _compare(shot, text, check), text
    if check and not shot.wanted.startswith(text):
        return "crossed", text
    # An error and [DONE], or neither: the client cannot know that the answer is not whole.
    return ("told" if failed and not done else "lost"), text


def _compare(shot: Shot, text: str, check: bool) -> Outcome:
    # Before it there may be a visible prefix of a degraded step.
    if not check or text.endswith(shot.wanted):
        return "good"
    return "lost" if shot.wanted.startswith(text) else "crossed"


def _code_of(body: bytes) -> str | None:
    """The code (else the type) of an error in the API's form; None when it is in none."""
    try:
        error: Any = json.loads(body)["error"]
        return str(error.get("code") or error.get("type")) if error["message"] else None
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
