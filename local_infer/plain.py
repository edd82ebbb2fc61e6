"""Which requests ask for one plain text: only those can be answered by a step of this box."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

_PLAIN: Mapping[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none"),
    "function_call": (None, "none"),
    "response_format": (None,),
    "text_format": (None,),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "web_search_options": (None,),
    "suffix": (None, ""),
    "stop": (None, []),
    "echo": (None, False),
}
"""Fields that ask for more, each with the values that ask for nothing."""
_WHY = {
    "functions": "tools",
    "tool_choice": "tools",
    "function_call": "tools",
    "best_of": "n",
    "top_logprobs": "logprobs",
}


def more_than_plain(fields: Mapping[str, Any], can: Collection[str] = ()) -> str:
    """In one fixed word what a request asks for beyond one plain text, but for the fields that the step `can` do; or ""."""
    for name, plain in _PLAIN.items():
        value = fields.get(name)
        # A boolean is a number to Python: n=true is not n=1.
        if name not in can and not any(value == given and type(value) is type(given) for given in plain):
            return _WHY.get(name, name)
    return ""
