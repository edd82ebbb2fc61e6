"""One request on its way to an answer: who was tried, what went wrong, what is told when nobody begins one. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from local_infer.fault import Unreachable
from local_infer.model import Ask
from local_infer.upstreams.attempt import Failure, reason_of
from local_infer.upstreams.member import Lane
from local_infer.upstreams.ranking import RateLimit


@dataclass(slots=True)
class Run:
    """`other`: an upstream gave an error answer that is no 429. `why`, `wait_s`: why nobody could be asked, how long."""

    ask: Ask
    lane: Lane
    give_up_s: float
    deadline_s: float
    tried: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    last: Failure | None = None
    other: bool = False
    why: str = ""
    wait_s: float | None = None

    def failed(self, upstream: str, failure: Failure) -> None:
        """An attempt failed."""
        self.reasons[upstream] = failure.reason
        self.last = failure
        self.other = self.other or failure.status not in (None, 429)

    def unreachable(self, limit: RateLimit | None) -> Unreachable:
        """What is told; `limit` when all that could be asked said 429."""
        last = self.last
        reason = last.reason if last is not None else self.why or "timeout"
        wait_s = self.wait_s if self.wait_s is not None else last.retry_after_s if last is not None else None
        if limit is not None:
            reason, wait_s = reason_of(429), limit.wait_s
        return Unreachable(
            reason,
            self.reasons,
            retry_after_s=wait_s,
            limited=limit is not None,
            in_ms=limit is not None and limit.in_ms,
        )
