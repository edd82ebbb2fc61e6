"""What a reload takes, and what it says that it does not."""

from __future__ import annotations

from typing import Any

from core.config_infer import InferConfig
from local_infer.reloading import FIXED, take_over

# What each part takes over in its `reconfigure`; a new section has to be put here, or into FIXED.
TAKEN = {
    "version", "listen", "tls", "keys", "anonymous", "limits", "upstreams", "routing", "ladder", "access_log",
}  # fmt: skip


def config(**sections: Any) -> InferConfig:
    return InferConfig.model_validate(
        {"version": 1, "state_dir": "state", "listen": ["127.0.0.1:0"], "anonymous": True, **sections}
    )


def test_every_section_is_taken_or_told() -> None:
    assert set(FIXED) | TAKEN == set(InferConfig.model_fields)
    assert not set(FIXED) & TAKEN


def test_what_needs_a_restart_stays_and_is_named() -> None:
    old = config(cache={"memory": "1MiB"}, ladder={"record": 1}, generation={"model": "m"})
    new = config(
        node="other", cache={"memory": "2MiB", "disk": "0B"}, retrieval={"index": "i"}, generation={"model": "n"},
        ladder={"record": 2, "shadow": "5%", "prefix": {"generation": "! "}}, routing={"attempts": 2},
    )  # fmt: skip
    taken, waiting = take_over(old, new)
    assert waiting == ["node", "cache.memory", "cache.disk", "retrieval", "generation.model", "ladder.record"]
    assert (taken.node, taken.cache, taken.retrieval, taken.generation) == (old.node, old.cache, None, old.generation)
    assert (taken.ladder.record, taken.ladder.shadow, taken.routing.attempts) == (1, 0.05, 2)
    assert taken.ladder.prefix == {"generation": "! "}
    # Read again and again it is still told; as it was, it is not.
    assert take_over(taken, new)[1] == waiting
    assert take_over(taken, old) == (old, [])
