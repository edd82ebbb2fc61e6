"""The exact cache: memory, then disk; single flight; what is fetched behind and ahead of requests."""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from prometheus_client import CollectorRegistry

from core.config_infer import InferConfig
from core.io_log import get_logger
from local_infer.api.request import read_ask
from local_infer.cache import io_warmup
from local_infer.cache.cache_entry import MAX_REQUEST_BYTES, Entry, fit, form_of, make_entry
from local_infer.cache.cache_key import Keys, keys_of, raw_digest, why_not
from local_infer.cache.cache_metrics import CacheMetrics
from local_infer.cache.follow import Budget, Follow, Recipe
from local_infer.cache.freshness import Forward, Verdict, forward_status, hit_status, judge, lifetime_s
from local_infer.cache.io_cache_disk import DiskCache, Store
from local_infer.cache.io_flights import Flights
from local_infer.cache.memory_cache import Ahead, MemoryCache
from local_infer.fault import ApiError, Unreachable
from local_infer.model import Answer, Ask, CacheWish, Client, Clock, ExactCache, Fetch, Kept, Origin, Priority, Step

_KNOWN_KEYS = 8192
"""Requests whose keys are remembered by their bytes (some 3 MB): the canonical form is made for new ones only."""

_WANTED = 64
"""Likely follow-ups that wait to be fetched."""

MOST_BEHIND = 32
"""Revalidations under way at once; the next request for what was left out asks again."""

_PREHEAT_SHARE = 0.5
"""Of memory that is filled from disk at the start."""

_EXPECTED = (Unreachable, ApiError)


class Cache(ExactCache):
    """The ExactCache of the gateway. Make it with `await Cache.start(...)`; all methods are for one event loop."""

    def __init__(self, config: InferConfig, clock: Clock, registry: CollectorRegistry) -> None:
        self._config = config.cache
        self._gateway = config
        self._clock = clock
        self._memory = MemoryCache(config.cache.memory)
        self._flights = Flights(config.cache.max_entry)
        self._store: Store | None = None
        self._metrics = CacheMetrics(registry)
        self._keys: OrderedDict[bytes, Keys] = OrderedDict()
        self._follow = Follow()
        self._budget = Budget(config.cache.prefetch)
        self._wanted: OrderedDict[bytes, Recipe] = OrderedDict()
        self._idle: asyncio.Task[None] | None = None
        self._behind = 0
        self._log = get_logger("cache")
        self._metrics.watch(
            {
                "memory_bytes": lambda: self._memory.used_bytes,
                "entries": lambda: len(self._memory),
                "evicted": lambda: self._memory.evicted,
                "flights": lambda: len(self._flights),
                "flight_bytes": lambda: self._flights.buffered_bytes,
                "disk_ok": lambda: float(self._store is not None and not self._store.trouble()),
                "disk_dropped": lambda: float(getattr(self._store, "dropped", 0)),
                "follow_places": lambda: len(self._follow),
            }
        )
        self._metrics.watch_full(
            {
                "memory": lambda: self._memory.used_bytes / max(1, self._memory.limit_bytes),
                "disk": lambda: float(getattr(self._store, "full_ratio", 0.0)),
                "keys": lambda: len(self._keys) / _KNOWN_KEYS,
                "follow": lambda: self._follow.full_ratio,
            }
        )

    @classmethod
    async def start(cls, config: InferConfig, clock: Clock, registry: CollectorRegistry) -> Cache:
        """Open what is on disk (or Redis), and take into memory what was used last.

        NearpathError only when Redis is configured and its client or password is missing.
        """
        cache = cls(config, clock, registry)
        if config.cache.redis is not None:
            from local_infer.cache.io_cache_redis import RedisCache  # 5 MB that nobody else needs

            cache._store = await RedisCache.open(
                config.cache.redis,
                config.cache.redis_password_file,
                lifetime_s(config.cache),
                config.cache.max_entry,
            )
        elif config.cache.disk > 0:
            file = Path(config.state_dir) / "cache.sqlite"
            cache._store = await DiskCache.open(file, config.cache.disk, lifetime_s(config.cache), clock)
            entries = await cache._store.recent(int(config.cache.memory * _PREHEAT_SHARE))
            for entry in reversed(entries):
                cache._memory.put(entry)
            cache._log.info("cache_opened", file=str(file), preheated=len(entries))
        return cache

    @classmethod
    def over(cls, config: InferConfig, clock: Clock, registry: CollectorRegistry, store: Store | None) -> Cache:
        """On a store that is open already, and closed with it; memory begins empty."""
        cache = cls(config, clock, registry)
        cache._store = store
        return cache

    async def close(self) -> None:
        """Stop what runs in the background, and write what waits."""
        if self._idle is not None:
            self._idle.cancel()
            await asyncio.gather(self._idle, return_exceptions=True)
        await self._flights.close()
        if self._store is not None:
            await self._store.close()

    # -- ExactCache

    async def find(self, ask: Ask, now: float) -> Kept | None:
        """What is kept, of whatever age; None also when the request must not be answered from a cache."""
        keys = self._eligible(ask)
        if keys is None:
            self._metrics.looked_up("skipped")
            return None
        self._walk(ask, keys)
        if not ask.cache.read:
            self._metrics.looked_up("skipped")
            return None
        entry = await self._entry(ask, keys.key)
        kept = None if entry is None else self._kept(ask, entry, now)
        self._metrics.looked_up("miss" if kept is None else kept.age)
        return kept

    async def fetch(self, ask: Ask, fetch: Fetch) -> Answer:
        """`fetch(ask)`, made once for equal requests under way (streams are shared from their start), and kept if allowed.

        Raises what `fetch` raises, in every waiter. The fetch goes on while one waiter is left.
        """
        keys = self._eligible(ask) if ask.cache.write else None
        if keys is None:
            self._budget.earn()
            self._metrics.forwarded("bypass")
            return _with_status(await fetch(ask), forward_status("bypass"))
        why = self._why(ask, keys.key)
        if isinstance(why, Answer):
            return why
        if not self._flights.under_way(_flight_key(ask, keys.key)) or not ask.cache.read:
            self._budget.earn()
        self._metrics.forwarded(why)
        boarded = await self._flights.join(
            _flight_key(ask, keys.key),
            lambda: fetch(ask),
            lambda answer, body: self._landed(keys.key, ask, answer, body),
            alone=not ask.cache.read,
        )
        if boarded.collapsed:
            self._metrics.coalesced.inc()
        return _with_status(boarded.answer, forward_status(why, stored=boarded.stored, collapsed=boarded.collapsed))

    def refresh(self, ask: Ask, fetch: Fetch) -> None:
        """Fetch and keep in the background, once for equal requests; failures are counted only.

        At most MOST_BEHIND at once: who asks has got its answer and is counted no more, so no limit of its key holds here.
        """
        if self._behind >= MOST_BEHIND:
            self._metrics.ahead("behind", "skipped")
            return
        task = self.begin_ahead(ask, fetch, "behind")
        if task is not None:
            self._behind += 1
            task.add_done_callback(self._one_less_behind)

    def _one_less_behind(self, _task: asyncio.Task[None]) -> None:
        self._behind -= 1

    def begin_ahead(self, ask: Ask, fetch: Fetch, kind: str) -> asyncio.Task[None] | None:
        """Fetch and keep without anybody waiting; the task, or None: it is under way already, or must not be kept."""
        keys = self._eligible(ask) if ask.cache.write else None
        if keys is None:
            return None
        key = keys.key
        # Nobody sees this stream who would like half of it better than none, and what is wanted is a new answer.
        ask = replace(ask, resume=False, idempotency_key="")
        mark: Ahead = "refresh" if kind == "refresh" else "follow" if kind == "follow" else ""
        outcome = "not_kept"

        def landed(answer: Answer, body: bytes) -> bool:
            nonlocal outcome
            kept = self._landed(key, ask, answer, body, mark)
            outcome = "kept" if kept else "not_kept"
            return kept

        async def start() -> Answer:
            nonlocal outcome
            try:
                return await fetch(ask)
            except BaseException as error:
                outcome = "failed"
                if isinstance(error, Exception) and not isinstance(error, _EXPECTED):
                    self._log.warning("cache_fetch_failed", kind=kind, why=type(error).__name__)
                raise

        task = self._flights.background(_flight_key(ask, key), start, landed)
        if task is not None:
            task.add_done_callback(lambda _task: self._metrics.ahead(kind, outcome))
        return task

    # -- before and behind

    async def warm(self, fetch: Fetch) -> int:
        """Fetch what the warm-up file and the neighbours name, as far as it is not kept; how many were kept."""
        return await io_warmup.warm(self, self._gateway, fetch)

    def idle(self, fetch: Fetch, budget: Callable[[], bool]) -> None:
        """From now on fetch ahead when `budget()` says that there is nothing better to do; once only."""
        if self._idle is None:
            self._idle = asyncio.create_task(io_warmup.work_idle(self, fetch, budget), name="cache-idle")

    def hottest(self, tenant: str, count: int) -> bytes:
        """The requests of a tenant with most hits, as JSON lines for a neighbour; none of those who have no key."""
        if tenant == io_warmup.ANONYMOUS_TENANT:
            return b""  # anybody could read there what others ask
        return io_warmup.write_lines(self._memory.hottest(tenant, count))

    def next_ahead(self) -> tuple[Recipe, Ahead] | None:
        """What is best fetched ahead now, within the share of requests that may be."""
        if not self._budget.has():
            return None
        now = self._clock()
        while self._wanted:
            _, recipe = self._wanted.popitem(last=False)
            if not self.is_fresh(recipe.key, now) and self._budget.take():
                return recipe, "follow"
        entry = self._memory.due(now, self._config)
        if entry is None or not self._budget.take():
            return None
        return Recipe(entry.key, entry.tenant, entry.endpoint, entry.model, entry.request, entry.opted_in), "refresh"

    async def has_fresh(self, ask: Ask) -> bool:
        """Whether a fresh answer to this request is kept, on disk too; nothing is counted."""
        keys = self._eligible(ask)
        if keys is None:
            return False
        now = self._clock()
        if self.is_fresh(keys.key, now):
            return True
        if self._store is None or not self._store.may_have(keys.key):
            return False
        entry = await self._store.get(keys.key)
        if entry is None or entry.tenant != ask.client.tenant:
            return False
        self._memory.put(entry)
        return self.is_fresh(keys.key, now)

    def is_fresh(self, key: bytes, now: float) -> bool:
        """Whether memory holds a fresh answer."""
        entry = self._memory.peek(key)
        verdict = None if entry is None else judge(entry.born_s, now, self._config, CacheWish())
        return verdict is not None and verdict.age == "fresh"

    def ask_again(self, recipe: Recipe) -> Ask | None:
        """The request of a recipe, as if a client made it in the background; None when it is of no form."""
        client = Client("prefetch", recipe.tenant, Priority.PREFETCH)
        try:
            ask = read_ask(recipe.endpoint, {}, recipe.request, client, f"req_{secrets.token_hex(12)}", self._clock())
        except ApiError:
            return None
        return replace(ask, cache=CacheWish(opted_in=recipe.opted_in))

    # -- inside

    def _eligible(self, ask: Ask) -> Keys | None:
        if why_not(ask, self._config):
            return None
        raw = raw_digest(ask)
        keys = self._keys.get(raw)
        if keys is None:
            keys = keys_of(ask)
            if keys is None:
                self._metrics.doubtful.inc()
                return None
            if len(self._keys) >= _KNOWN_KEYS:
                self._keys.popitem(last=False)
            self._keys[raw] = keys
        return keys

    def _walk(self, ask: Ask, keys: Keys) -> None:
        """Learn the transition that this request is, and note what likely comes next."""
        if self._idle is None or self._budget.share == 0 or ask.client.priority is Priority.PREFETCH:
            return
        if keys.previous is not None and len(ask.body) <= MAX_REQUEST_BYTES and ask.cache.write:
            recipe = Recipe(keys.key, ask.client.tenant, ask.endpoint, ask.model, ask.body, ask.cache.opted_in)
            self._follow.learn(keys.previous, recipe)
        for recipe in self._follow.visit(keys.key):
            self._wanted[recipe.key] = recipe
            if len(self._wanted) > _WANTED:
                self._wanted.popitem(last=False)

    async def _entry(self, ask: Ask, key: bytes) -> Entry | None:
        slot = self._memory.hit(key, ask.client.tenant)
        if slot is not None:
            if slot.ahead:
                self._metrics.ahead(slot.ahead, "used")
                slot.ahead = ""
            if self._store is not None:
                self._store.touch(key)
            return slot.entry
        if self._store is None or not self._store.may_have(key):
            return None
        entry = await self._store.get(key)
        # The tenant is part of the key; it is compared all the same, as one answer to the wrong tenant is one too many.
        if entry is None or entry.tenant != ask.client.tenant:
            return None
        newer = self._memory.peek(key)
        if newer is not None and newer.born_s >= entry.born_s:
            return newer  # a flight landed while the disk was read
        self._memory.put(entry)
        self._store.touch(key)
        return entry

    def _judge(self, ask: Ask, entry: Entry, now: float) -> tuple[Verdict, bytes] | None:
        verdict = judge(entry.born_s, now, self._config, ask.cache)
        fitted = None if verdict is None else fit(entry, form_of(ask))
        if verdict is None or fitted is None:
            return None
        body, complete = fitted
        # What lacks usage is good enough when nothing else can be had, and not before.
        return (verdict if complete else replace(verdict, age="stale")), body

    def _kept(self, ask: Ask, entry: Entry, now: float) -> Kept | None:
        judged = self._judge(ask, entry, now)
        if judged is None:
            return None
        verdict, body = judged
        origin = Origin(
            Step.STALE if verdict.age == "stale" else Step.CACHE,
            entry.name,
            age_s=verdict.age_s,
            cache_status=hit_status(verdict),
        )
        headers = dict(entry.headers)
        if form_of(ask) != entry.form and (form_of(ask) == "whole" or entry.form == "whole"):
            headers["content-type"] = "text/event-stream; charset=utf-8" if ask.stream else "application/json"
        return Kept(Answer(200, headers, body, origin), verdict.age)

    def _why(self, ask: Ask, key: bytes) -> Forward | Answer:
        """Why a request goes on; or the answer, if it came to be kept while this request was on its way here."""
        entry = self._memory.peek(key)
        if not ask.cache.read:
            return "request"
        if entry is None:
            return "miss"
        kept = self._kept(ask, entry, self._clock())
        if kept is not None and kept.age == "fresh":
            return kept.answer
        if self.is_fresh(key, self._clock()):
            return "request" if ask.cache.max_age_s is not None else "miss"
        return "stale"

    def _landed(self, key: bytes, ask: Ask, answer: Answer, body: bytes, ahead: Ahead = "") -> bool:
        entry = make_entry(key, ask, answer, body, self._clock(), self._config.max_entry)
        self._metrics.stored(entry is not None)
        if entry is None:
            return False
        in_memory = self._memory.put(entry, ahead)
        if self._store is not None:
            self._store.put(entry)
        return in_memory or self._store is not None


def _flight_key(ask: Ask, key: bytes) -> bytes:
    """Requests share a flight when they are equal and want the answer in the same form."""
    return key + form_of(ask).encode() + (b"+resume" if ask.resume else b"")


def _with_status(answer: Answer, status: str) -> Answer:
    # Not by `replace`, which takes three times as long: the first byte of every answer waits for this.
    o = answer.origin
    return Answer(
        answer.status, answer.headers, answer.body, Origin(o.step, o.name, o.reason, o.age_s, cache_status=status)
    )
