"""Errors have the form that the API's clients parse, and tell no client where an upstream is."""

from __future__ import annotations

import json

from local_infer.fault import RATE_LIMIT, ApiError, Unreachable


def test_error_object() -> None:
    error = ApiError(429, RATE_LIMIT, "key 'web' is over its limit", "wait 3 s", code="rate_limited", retry_after_s=3)
    assert json.loads(error.body()) == {
        "error": {
            "message": "key 'web' is over its limit: wait 3 s",
            "type": "rate_limit_error",
            "param": None,
            "code": "rate_limited",
        }
    }
    assert (error.status, error.retry_after_s) == (429, 3)


def test_unreachable_names_the_upstreams_for_the_log_and_one_plain_reason_for_clients() -> None:
    error = Unreachable("timeout", {"east": "timeout", "west": "status 503"}, retry_after_s=2.0)
    assert str(error) == "no upstream answers: east: timeout, west: status 503"
    assert error.reason == "timeout"
