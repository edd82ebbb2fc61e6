"""The traffic profiles: which requests are made, in which mix, and what each must be answered with.

| profile | what it plays |
|---|---|
| faq | few questions asked again and again (Zipf), Chinese and English, temperature 0: cacheable |
| chat-sse | streams of conversations whose history grows |
| grading | long prompts, short JSON answers, in bursts of a batch, temperature 0, each asked for once |
| mixed | all of them, embeddings and the list of models |
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from local_infer.load.echo import json_for, make_marker, text_for, vector_for

if TYPE_CHECKING:
    from random import Random

Profile = Literal["faq", "chat-sse", "grading", "mixed"]
PROFILES: tuple[Profile, ...] = get_args(Profile)
Kind = Literal["faq", "chat-sse", "grading", "embeddings", "models"]

_MIX: dict[Kind, float] = {"faq": 0.5, "chat-sse": 0.3, "grading": 0.05, "embeddings": 0.1, "models": 0.05}
"""Share of the arrivals in `mixed`; an arrival of `grading` is a whole batch."""

FAQ_QUESTIONS = 500
_ALL_BUT_STORED = "upstream, cache, stale, generation"
_BATCH = 8
_MOST_TURNS = 8
_ZIPF = 1.1
"""Popularity of the question of rank r is r^-1.1, about what web caches see (Breslau et al., INFOCOM 1999: 0.6 to 1)."""

_FAQ_TEXTS = (
    "如何关闭自动续费？", "How do I reset my password?", "怎么申请退款", "Where is the list of mirrors?", "忘记密码怎么办",
    "How long are packages kept?", "镜像多久同步一次", "Which region am I in?", "怎样修改绑定的邮箱？", "Can I use IPv6?",
)  # fmt: skip
_PARAGRAPH = (
    "The candidate explains how a resolver picks a mirror from measured round-trip times, why a margin keeps it from "
    "flapping, and what happens when no measurement is left. 考生说明了缓存、回退与超时的关系，并给出了一个例子。"
)
_RUBRIC = "You grade exam answers. Answer with a JSON object with the keys work, score (0 to 100) and passed."


@dataclass(slots=True)
class Conversation:
    """One user's chat so far."""

    messages: list[dict[str, str]] = field(default_factory=list)
    turns: int = 0


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, and what must come back: `wanted` is the text, or for embeddings and models the JSON of the data."""

    kind: Kind
    method: str
    path: str
    body: bytes
    stream: bool
    wanted: str
    headers: dict[str, str]
    conversation: Conversation | None = None


@dataclass(frozen=True, slots=True)
class Habits:
    """Shares of the requests: streams that ask to be continued when they are cut, chats that opt in to the cache, and
    questions of `faq` that only what is stored may answer, one after the other of all `stored` ones.
    """

    resume: float = 0.0
    keep: float = 0.0
    look_up: float = 0.0
    stored: int = FAQ_QUESTIONS


class Shooter:
    """Makes the requests of a profile, with these `habits`."""

    def __init__(self, profile: Profile, model: str, rng: Random, habits: Habits | None = None) -> None:
        self._model, self._rng, self._habits = model, rng, habits or Habits()
        self._kinds: Sequence[Kind] = tuple(_MIX) if profile == "mixed" else (profile,)
        self._shares = [_MIX[kind] for kind in self._kinds]
        # Another run asks other questions, so that what an earlier one left in the caches proves nothing.
        self._run = rng.getrandbits(16)
        self._count = self._looked_up = 0
        self._popularity = [1.0 / rank**_ZIPF for rank in range(1, FAQ_QUESTIONS + 1)]
        self._waiting: list[Conversation] = []

    def next(self) -> list[Shot]:
        """The requests of the next arrival: one, or a batch."""
        (kind,) = self._rng.choices(self._kinds, self._shares)
        match kind:
            case "faq":
                if self._rng.random() < self._habits.look_up:
                    self._looked_up += 1
                    return [self._faq(self._looked_up % self._habits.stored, {"X-Ladder-Refuse": _ALL_BUT_STORED})]
                (rank,) = self._rng.choices(range(FAQ_QUESTIONS), self._popularity)
                return [self._faq(rank)]
            case "chat-sse":
                return [self._chat()]
            case "grading":
                return [self._grade() for _ in range(_BATCH)]
            case "embeddings":
                return [self._embed()]
        return [Shot("models", "GET", "/models", b"", False, self._model, {})]

    def over(self, shot: Shot, text: str | None) -> None:
        """The answer of a chat is whole (`text`), or was not given: its conversation goes on, or goes on without it."""
        chat = shot.conversation
        if chat is None:
            return
        if text is None:
            chat.messages.pop()
        else:
            chat.messages.append({"role": "assistant", "content": text})
            chat.turns += 1
        if chat.turns < _MOST_TURNS:
            self._waiting.append(chat)

    def faq(self) -> list[tuple[str, str]]:
        """(question, answer) of all stored questions of this run, for an index of them."""
        return [(self._question(rank), text_for(self._faq_marker(rank))) for rank in range(self._habits.stored)]

    # -- one of each

    def _marker(self) -> str:
        self._count += 1
        return make_marker(self._run << 32 | self._count & 0xFFFFFFFF)

    def _faq_marker(self, rank: int) -> str:
        return make_marker(self._run << 32 | 0xFA0_00000 | rank)

    def _question(self, rank: int) -> str:
        return f"{_FAQ_TEXTS[rank % len(_FAQ_TEXTS)]} {self._faq_marker(rank)}"

    def _faq(self, rank: int, headers: dict[str, str] | None = None) -> Shot:
        stream = self._rng.random() < 0.3
        fields = {"temperature": 0, "messages": [{"role": "user", "content": self._question(rank)}]}
        return self._shot("faq", fields, text_for(self._faq_marker(rank)), stream, headers)

    def _chat(self) -> Shot:
        chat = self._waiting.pop(self._rng.randrange(len(self._waiting))) if len(self._waiting) > 8 else Conversation()
        marker = self._marker()
        if not chat.messages:
            chat.messages.append({"role": "system", "content": "You are the helpful assistant of a mirror."})
        chat.messages.append({"role": "user", "content": f"And what about this, 请说明 {marker}?"})
        headers = {"X-Stream-Resume": "yes"} if self._rng.random() < self._habits.resume else {}
        if self._rng.random() < self._habits.keep:
            headers["X-Cache"] = "keep"
        return self._shot("chat-sse", {"messages": list(chat.messages)}, text_for(marker), True, headers, chat)

    def _grade(self) -> Shot:
        marker = self._marker()
        work = " ".join([_PARAGRAPH] * self._rng.randint(8, 40))
        messages = [{"role": "system", "content": _RUBRIC}, {"role": "user", "content": f"{work}\nWork {marker}"}]
        fields = {"temperature": 0, "response_format": {"type": "json_object"}, "messages": messages}
        return self._shot("grading", fields, json_for(marker), False)

    def _embed(self) -> Shot:
        texts = [f"a text to place, 文本 {self._marker()}" for _ in range(self._rng.randint(1, 8))]
        body = _dump({"model": self._model, "input": texts})
        wanted = json.dumps([vector_for(text) for text in texts])
        return Shot("embeddings", "POST", "/embeddings", body, False, wanted, {})

    def _shot(
        self,
        kind: Kind,
        fields: dict[str, Any],
        wanted: str,
        stream: bool,
        headers: dict[str, str] | None = None,
        conversation: Conversation | None = None,
    ) -> Shot:
        body = _dump({"model": self._model, **fields, **({"stream": True} if stream else {})})
        return Shot(kind, "POST", "/chat/completions", body, stream, wanted, headers or {}, conversation)


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
