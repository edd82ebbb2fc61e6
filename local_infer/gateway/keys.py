"""Who may ask, and how much: key -> `Caller`, a token bucket and a count of requests under way for each.

A key is only known by its SHA-256. Keys are random (256 bits), so a plain hash is enough and needs no salt.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping

from core.config_infer import ApiKey, InferConfig
from core.tokens import MAX_TOKEN_LEN, bearer_token, is_token, token_sha256
from local_infer.fault import INVALID, RATE_LIMIT, ApiError, no_such_model
from local_infer.model import Client, Priority

ANONYMOUS = "anonymous"
_ANONYMOUS_TENANT = "_anonymous"
"""No key can be named like this, so a key called `anonymous` shares nothing with those who have none."""
KEY_BYTES = 32
_BUSY_RETRY_S = 1.0
"""Retry-After of a full concurrency limit: how long a request takes is not known, so the least that can be said."""


ASKED_LATELY_S = 30.0
"""Who asked within this time is there: what others may take must leave room for the next request."""

CROWDED_RATIO = 0.75
"""Of the requests that the gateway takes: with so many under way the rest is for those who have fewer than the others."""

LIST_EVERY_S = 0.2
LISTS_AT_ONCE = 20
"""Five lists a second in the long run: one of thousands of models, or of hot requests, takes 10 ms of everybody's time."""


def make_key(entropy: bytes) -> tuple[str, str]:
    """A new key of KEY_BYTES random bytes, and its SHA-256 in hexadecimal for `token_sha256`."""
    key = "np-" + base64.urlsafe_b64encode(entropy).decode().rstrip("=")
    return key, token_sha256(key)


class Caller:
    """One key (or everybody without one): its client, its limits, what is left of them.

    The bucket holds one minute's worth of requests and is filled steadily (a token bucket): `rate` a minute in the long
    run, and bursts of as many after a pause.
    """

    __slots__ = (
        "_filled_s",
        "_lists_paid_s",
        "_models",
        "_tokens",
        "client",
        "concurrency",
        "digest",
        "rate",
        "under_way",
    )

    def __init__(
        self, client: Client, rate: int = 0, concurrency: int = 0, models: Iterable[str] = (), digest: str = ""
    ) -> None:
        self.client = client
        self.digest = digest
        self.rate = rate
        self.concurrency = concurrency
        self.under_way = 0
        self._models = frozenset(models)
        self._tokens = float(rate)
        self._filled_s: float | None = None
        self._lists_paid_s = -math.inf

    def may_use(self, model: str) -> bool:
        """Whether this key may name `model`."""
        return not self._models or model in self._models

    def check_model(self, model: str) -> None:
        """ApiError 403 when this key may not use `model`, worded as for a model that is not there."""
        if not self.may_use(model):
            raise no_such_model(model, 403)

    def enter(self, now: float, share: int = 0) -> None:
        """Count a request in; ApiError 429 when a limit is reached. Each `enter` needs a `leave`.

        `share` stands in for `concurrency` where there is none; 0: no limit.
        """
        most = self.concurrency or share
        if most and self.under_way >= most:
            whose = "its limit" if self.concurrency else "its share while others ask too"
            raise ApiError(
                429,
                RATE_LIMIT,
                f"this key has {self.under_way} requests under way, {whose}",
                "wait for one to end",
                code="concurrency_limit_exceeded",
                retry_after_s=_BUSY_RETRY_S,
                headers=self.limit_headers(now),
            )
        if self.rate:
            self._fill(now)
            if self._tokens < 1.0:
                raise ApiError(
                    429,
                    RATE_LIMIT,
                    f"rate limit of {self.rate} requests per minute reached",
                    code="rate_limit_exceeded",
                    retry_after_s=(1.0 - self._tokens) * 60.0 / self.rate,
                    headers=self.limit_headers(now),
                )
            self._tokens -= 1.0
        self.under_way += 1

    def enter_list(self, now: float) -> None:
        """Count in a request for a list (models, hot keys); it costs no rate. ApiError 429 when there are too many."""
        paid_s = max(self._lists_paid_s, now) + LIST_EVERY_S
        if paid_s > now + LISTS_AT_ONCE * LIST_EVERY_S:
            what = "this key asks for lists too often"
            raise ApiError(429, RATE_LIMIT, what, code="rate_limit_exceeded", retry_after_s=LIST_EVERY_S)
        self._lists_paid_s = paid_s

    def leave(self) -> None:
        """A request that was counted in has ended."""
        self.under_way -= 1

    def limit_headers(self, now: float) -> dict[str, str]:
        """`x-ratelimit-*` as the API has them; none without a rate limit."""
        if not self.rate:
            return {}
        self._fill(now)
        full_s = (self.rate - self._tokens) * 60.0 / self.rate
        return {
            "x-ratelimit-limit-requests": str(self.rate),
            "x-ratelimit-remaining-requests": str(int(self._tokens)),
            "x-ratelimit-reset-requests": f"{full_s:.3f}s",
        }

    def take_settings(self, new: Caller) -> None:
        """Go on under the settings of `new`; what was used up stays used up."""
        used = self.rate - self._tokens
        self.client, self.rate, self.concurrency, self._models = new.client, new.rate, new.concurrency, new._models
        self._tokens = max(0.0, self.rate - used)

    def _fill(self, now: float) -> None:
        before_s = self._filled_s if self._filled_s is not None else now
        if now > before_s:
            self._tokens = min(float(self.rate), self._tokens + (now - before_s) * self.rate / 60.0)
        self._filled_s = max(now, before_s)


class Keys:
    """All callers of a configuration."""

    def __init__(self, config: InferConfig) -> None:
        callers = [_caller(name, key) for name, key in config.keys.items()]
        self._by_digest = {caller.digest: caller for caller in callers}
        self._anonymous = Caller(Client(ANONYMOUS, _ANONYMOUS_TENANT)) if config.anonymous else None
        self._requests = config.limits.requests
        self._share = max(1, int(config.limits.requests * config.limits.share))
        self._last: Caller | None = None
        self._last_s = self._other_s = -math.inf

    def find(self, authorization: str | None) -> Caller:
        """Whose key the Authorization header holds; ApiError 401.

        Where no keys are configured, any is accepted as none: the API's own clients cannot do without one.
        """
        key = bearer_token(authorization or "")
        if not key:
            if self._anonymous is not None:
                return self._anonymous
            raise ApiError(
                401,
                INVALID,
                "you didn't provide an API key",
                "send it as `Authorization: Bearer KEY`",
                code="missing_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if not self._by_digest and self._anonymous is not None:
            return self._anonymous
        found = self._find_key(key)
        if found is None:
            raise ApiError(
                401,
                INVALID,
                "incorrect API key provided",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return found

    def share(self, caller: Caller, now: float, under_way: int) -> int:
        """How many requests a caller without a limit of its own, who asks now, may have under way; 0: any number.

        One that asks alone may take all; from the moment on that another one asks too, each only gets its share; and when
        it is crowded (`under_way`: of all callers), as much as would be left for each if one more came.
        """
        if caller is not self._last:
            # `_other_s` is when somebody else than the last one asked: enough to know for every caller whether one did.
            self._last, self._other_s = caller, self._last_s
        self._last_s = now
        if now - self._other_s >= ASKED_LATELY_S:
            return 0
        if under_way < self._requests * CROWDED_RATIO:
            return self._share
        holders = sum(count > 0 for count in self.under_way().values())
        return min(self._share, max(1, self._requests // (holders + 1)))

    def _find_key(self, key: str) -> Caller | None:
        # The table sees only hashes, which nobody can steer towards a stored one; the comparison has the last word.
        caller = self._by_digest.get(token_sha256(key[:MAX_TOKEN_LEN]))
        return caller if caller is not None and is_token(key, caller.digest) else None

    def adopt(self, before: Keys) -> None:
        """After a reload: callers that were there before (their hash is the same) go on with what they have used up."""
        for digest, new in self._by_digest.items():
            if (old := before._by_digest.get(digest)) is not None:
                old.take_settings(new)
                self._by_digest[digest] = old
        self._last, self._last_s, self._other_s = before._last, before._last_s, before._other_s

    def under_way(self) -> Mapping[str, int]:
        """Requests under way by client name."""
        callers = [*self._by_digest.values(), *([self._anonymous] if self._anonymous else [])]
        return {caller.client.name: caller.under_way for caller in callers}


def _caller(name: str, key: ApiKey) -> Caller:
    priority = Priority.BACKGROUND if key.background else Priority.INTERACTIVE
    client = Client(name, key.tenant or name, priority)
    return Caller(client, key.rate, key.concurrency, key.models, key.token_sha256)
