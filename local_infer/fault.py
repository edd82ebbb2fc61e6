"""Errors of the gateway: what a client is told (in the OpenAI API's form), and what the parts tell each other.

As in that API, the `type` of a client's fault is `invalid_request_error`, of 401, 403 and 404 too, and the `code` tells
them apart: `invalid_api_key`, `model_not_found`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from core.errors import NearpathError

INVALID = "invalid_request_error"
RATE_LIMIT = "rate_limit_error"
SERVER = "server_error"
UNAVAILABLE = "service_unavailable_error"


class ApiError(NearpathError):
    """An error for the client: HTTP `status`, and the fields of the API's error object.

    `why` goes to log and telemetry instead of `code` where that says less.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        what: str,
        fix: str = "",
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
        why: str = "",
    ) -> None:
        super().__init__(what, fix)
        self.why = why
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON error object, as the API answers it and as an error event carries it."""
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return json.dumps({"error": error}, ensure_ascii=False, separators=(",", ":")).encode()


def no_such_model(model: str, status: int = 404) -> ApiError:
    """404 as the API has it; 403 when it may exist, but not for this key."""
    what = f"the model '{model}' does not exist or you do not have access to it"
    return ApiError(status, INVALID, what, "see /v1/models", param="model", code="model_not_found")


class Unreachable(NearpathError):
    """No upstream began an answer; `reasons` says why, by upstream. No client sees their names or addresses.

    `reason` is one of a few fixed words (`connect`, `timeout`, `status 503`, `rate limited`, `credentials`, ...), fit for
    X-Degraded and for metric labels; of an upstream whose circuit is open, what opened it. `limited`: all that could be
    asked said 429, and there is room again after `retry_after_s` (`in_ms`: told to the millisecond).
    """

    def __init__(
        self,
        reason: str,
        reasons: Mapping[str, str],
        *,
        retry_after_s: float | None = None,
        limited: bool = False,
        in_ms: bool = False,
    ) -> None:
        told = ", ".join(f"{name}: {why}" for name, why in reasons.items()) or reason
        super().__init__("no upstream answers", told)
        self.reason = reason
        self.reasons = dict(reasons)
        self.retry_after_s = retry_after_s
        self.limited = limited
        self.in_ms = in_ms


class Busy(NearpathError):
    """A local model has no room or no time for one more."""
