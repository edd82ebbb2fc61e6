"""Keys are known by their hash; each has a bucket of requests and a count of those under way."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from core.config_infer import InferConfig
from local_infer.fault import ApiError
from local_infer.gateway.keys import ASKED_LATELY_S, KEY_BYTES, Caller, Keys, make_key
from local_infer.model import Priority


def hashed(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def make(keys: dict[str, dict[str, Any]], anonymous: bool = False, **more: Any) -> Keys:
    return Keys(
        InferConfig.model_validate(
            {
                "version": 1, "state_dir": "x", "listen": ["127.0.0.1:0"], "anonymous": anonymous,
                "keys": {name: {"token_sha256": hashed(f"key-{name}"), **key} for name, key in keys.items()},
                "upstreams": {"a": {"url": "http://127.0.0.1/v1"}}, **more,
            }
        )
    )  # fmt: skip


def refused(keys: Keys, header: str | None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        keys.find(header)
    return caught.value


def full(caller: Caller, now: float) -> ApiError:
    with pytest.raises(ApiError) as caught:
        caller.enter(now)
    return caught.value


def test_new_key_is_found_by_its_hash() -> None:
    key, digest = make_key(bytes(range(KEY_BYTES)))
    assert key.startswith("np-")
    assert len(key) == 3 + 43
    assert digest == hashed(key)


def test_find() -> None:
    keys = make({"web": {}, "night": {"tenant": "batch", "background": True}})
    web, night = keys.find("Bearer key-web").client, keys.find("bearer  key-night ").client
    assert (web.name, web.tenant, web.priority) == ("web", "web", Priority.INTERACTIVE)
    assert (night.name, night.tenant, night.priority) == ("night", "batch", Priority.BACKGROUND)


@pytest.mark.parametrize(
    ("header", "code"),
    [
        (None, "missing_api_key"),
        ("", "missing_api_key"),
        ("Bearer", "missing_api_key"),
        ("Basic a2V5LXdlYg==", "missing_api_key"),
        ("Bearer key-we", "invalid_api_key"),
        ("Bearer " + hashed("key-web"), "invalid_api_key"),
        ("Bearer key-web\udcff", "invalid_api_key"),
        ("Bearer " + "k" * 100_000, "invalid_api_key"),
    ],
)
def test_refused(header: str | None, code: str) -> None:
    error = refused(make({"web": {}}), header)
    assert (error.status, error.kind, error.code) == (401, "invalid_request_error", code)
    assert error.headers == {"WWW-Authenticate": "Bearer"}
    assert "key-we" not in str(error)


def test_anonymous() -> None:
    keys = make({"anonymous": {}}, anonymous=True)
    nobody = keys.find(None).client
    assert nobody.name == "anonymous"
    assert nobody.tenant != keys.find("Bearer key-anonymous").client.tenant
    # A wrong key is a mistake to be told of, not a client without one; where there are no keys any will do.
    assert refused(keys, "Bearer wrong").code == "invalid_api_key"
    assert make({}, anonymous=True).find("Bearer sk-whatever").client == nobody


def test_models() -> None:
    caller = make({"web": {"models": ["small"]}}).find("Bearer key-web")
    caller.check_model("small")
    with pytest.raises(ApiError) as caught:
        caller.check_model("big")
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "model_not_found", "model")
    make({"web": {}}).find("Bearer key-web").check_model("anything")


def test_rate() -> None:
    # 6 a minute: a bucket of 6, one more every 10 s.
    caller = make({"web": {"rate": 6}}).find("Bearer key-web")
    for left in (5, 4, 3, 2, 1, 0):
        caller.enter(100.0)
        assert caller.limit_headers(100.0)["x-ratelimit-remaining-requests"] == str(left)
    error = full(caller, 104.0)
    assert (error.status, error.kind, error.code) == (429, "rate_limit_error", "rate_limit_exceeded")
    assert error.retry_after_s == pytest.approx(6.0)
    assert error.headers == {
        "x-ratelimit-limit-requests": "6",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "56.000s",
    }
    caller.enter(110.0)
    assert full(caller, 110.0).retry_after_s == pytest.approx(10.0)
    assert caller.limit_headers(1000.0)["x-ratelimit-remaining-requests"] == "6"


def test_refused_requests_cost_nothing_and_time_never_runs_back() -> None:
    caller = make({"web": {"rate": 60}}).find("Bearer key-web")
    for _ in range(60):
        caller.enter(10.0)
    for _ in range(100):
        full(caller, 5.0)
    caller.enter(11.1)
    full(caller, 11.1)


def test_concurrency() -> None:
    caller = make({"web": {"concurrency": 2, "rate": 100}}).find("Bearer key-web")
    caller.enter(0.0)
    caller.enter(0.0)
    error = full(caller, 0.0)
    assert (error.status, error.code, error.retry_after_s) == (429, "concurrency_limit_exceeded", 1.0)
    assert caller.limit_headers(0.0)["x-ratelimit-remaining-requests"] == "98"
    caller.leave()
    caller.enter(0.0)
    assert caller.under_way == 2


def test_a_key_without_a_limit_gets_its_share_while_others_ask() -> None:
    keys = make({"web": {}, "app": {}, "set": {"concurrency": 3}}, limits={"requests": 8, "share": "25%"})
    web, app, limited = (keys.find(f"Bearer key-{name}") for name in ("web", "app", "set"))

    def enter(caller: Caller, now: float) -> None:
        caller.enter(now, keys.share(caller, now, 0))

    for _ in range(5):
        enter(web, 100.0)  # nobody else is there
    enter(app, 101.0)
    with pytest.raises(ApiError, match="its share while others ask") as caught:
        enter(web, 102.0)
    assert (caught.value.status, caught.value.code) == (429, "concurrency_limit_exceeded")
    assert caught.value.retry_after_s == 1.0
    enter(app, 103.0)
    with pytest.raises(ApiError):
        enter(app, 104.0)
    for _ in range(3):
        enter(limited, 105.0)  # its own limit is what was meant for it
    for _ in range(4):
        web.leave()
    enter(web, 106.0)
    enter(web, 104.0 + ASKED_LATELY_S * 2)  # alone again


def test_two_busy_keys_leave_room_for_a_third() -> None:
    keys = make({"one": {}, "two": {}, "third": {}}, limits={"requests": 100})
    callers = [keys.find(f"Bearer key-{name}") for name in ("one", "two", "third")]

    def fill(*those: Caller) -> list[int]:
        """Each asks in turn until none gets anything more."""
        is_full = False
        while not is_full:
            is_full = True
            for caller in those:
                if (under_way := sum(one.under_way for one in callers)) >= 100:
                    continue
                try:
                    caller.enter(1.0, keys.share(caller, 1.0, under_way))
                    is_full = False
                except ApiError:
                    pass
        return [one.under_way for one in callers]

    assert fill(*callers[:2]) == [38, 37, 0]
    assert fill(*callers) == [38, 37, 25]
    for _ in range(20):
        callers[0].leave()
    assert fill(*callers) == [25, 37, 25], "those who have less come first"


def test_a_reload_does_not_forget_who_asks() -> None:
    before, after = (make({"web": {}, "app": {}}, limits={"requests": 2}) for _ in range(2))
    before.share(before.find("Bearer key-app"), 1.0, 0)
    before.share(before.find("Bearer key-web"), 2.0, 0)
    after.adopt(before)
    assert after.share(after.find("Bearer key-web"), 3.0, 0) == 1


def test_no_limits_no_headers() -> None:
    assert make({"web": {}}).find("Bearer key-web").limit_headers(0.0) == {}


def test_reload_keeps_what_was_used_up_and_what_is_under_way() -> None:
    before = make({"web": {"rate": 10, "concurrency": 3}, "old": {}})
    caller = before.find("Bearer key-web")
    for _ in range(3):
        caller.enter(0.0)
    after = make({"web": {"rate": 20, "concurrency": 4, "tenant": "shop"}, "new": {}})
    after.adopt(before)
    again = after.find("Bearer key-web")
    assert (again.under_way, again.client.tenant) == (3, "shop")
    assert again.limit_headers(0.0)["x-ratelimit-remaining-requests"] == "17"
    again.enter(0.0)
    assert full(again, 0.0).code == "concurrency_limit_exceeded"
    caller.leave()
    assert again.under_way == 3
    assert refused(after, "Bearer key-old").code == "invalid_api_key"
    assert after.find("Bearer key-new").client.name == "new"
