"""Which requests are the same, and which answers may be kept at all: canonical request -> 32 bytes.

Two requests are the same when an upstream could not answer them differently. What only changes the transport (`stream`) is
left out, and so is what says nothing (null fields, the order of fields in the request and in a message). Everything else
counts, unknown fields too, and so does the order inside tools and schemas: models answer in the order they are shown.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from core.config_infer import Cache
from local_infer.model import Ask, Endpoint

KEY_BYTES = 32

_TRANSPORT = frozenset({"stream", "stream_options"})
# 0 and 0.0 are the same temperature; elsewhere (a schema's default, say) the difference may reach the model's prompt.
_NUMBERS = frozenset({"temperature", "top_p", "presence_penalty", "frequency_penalty"})
# They act on something at the upstream, or ask for what is only true now.
_NOT_ALONE = frozenset({"store", "conversation", "previous_response_id", "background", "web_search_options"})


@dataclass(frozen=True, slots=True)
class Keys:
    """The key of a request, and that of the request before it in the same conversation (None: it begins one)."""

    key: bytes
    previous: bytes | None


def why_not(ask: Ask, config: Cache) -> str:
    """Why no kept answer may serve this request, in one word fit for a metric label; empty: one may."""
    fields = ask.fields
    if ask.model.startswith("local/"):
        return "local"
    if any(fields.get(name) for name in _NOT_ALONE):
        return "stateful"
    if ask.endpoint is Endpoint.EMBEDDINGS or config.sampled or ask.cache.opted_in:
        return ""
    temperature = fields.get("temperature")
    is_number = isinstance(temperature, (int, float)) and not isinstance(temperature, bool)
    return "" if is_number and temperature == 0 else "sampled"


def raw_digest(ask: Ask) -> bytes:
    """A digest of the request as it came: the same bytes have the same key, whatever that is."""
    return _digest(ask.client.tenant, ask.endpoint, ask.body)


def keys_of(ask: Ask) -> Keys | None:
    """The keys of a request; None when its bytes could be read in two ways, so that what is answered is not certain."""
    try:
        fields = _decode(ask.body.decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    tenant, endpoint = ask.client.tenant, ask.endpoint
    key = _digest(tenant, endpoint, canonical(endpoint, fields))
    before = _before(fields) if endpoint is Endpoint.CHAT else None
    return Keys(key, None if before is None else _digest(tenant, endpoint, canonical(endpoint, before)))


def canonical(endpoint: Endpoint, fields: Mapping[str, Any]) -> bytes:
    """The canonical form of a request's fields, as JSON in ASCII."""
    kept: dict[str, Any] = {}
    for name in sorted(fields):
        value = fields[name]
        if value is None or name in _TRANSPORT:
            continue
        if name in _NUMBERS and isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53:
            value = float(value)
        elif name == "messages" and endpoint is Endpoint.CHAT and isinstance(value, list):
            value = [_sorted(message) for message in value]
        kept[name] = value
    return json.dumps(kept, separators=(",", ":")).encode("ascii")


def _sorted(message: Any) -> Any:
    """A message with its fields in order, and those of the parts of its content."""
    if not isinstance(message, dict):
        return message
    ordered = {name: message[name] for name in sorted(message)}
    if isinstance(parts := ordered.get("content"), list):
        ordered["content"] = [
            {name: part[name] for name in sorted(part)} if isinstance(part, dict) else part for part in parts
        ]
    return ordered


def _before(fields: Mapping[str, Any]) -> dict[str, Any] | None:
    """The request that was answered by the last assistant message of this one; None when there is none."""
    messages = fields.get("messages")
    if not isinstance(messages, list) or len(messages) < 3:
        return None
    roles = [message.get("role") if isinstance(message, dict) else None for message in messages[-3:]]
    if roles != ["user", "assistant", "user"]:
        return None
    return {**fields, "messages": messages[:-2]}


def _digest(tenant: str, endpoint: Endpoint, text: bytes) -> bytes:
    # Lengths first: no tenant's name can run on into what follows.
    owner = tenant.encode("utf-8", "surrogatepass")
    head = b"%d:%s%d:%s" % (len(owner), owner, len(endpoint.value), endpoint.value.encode())
    return hashlib.blake2b(head + text, digest_size=KEY_BYTES, person=b"nearpath-cache-1").digest()


class _Twice(ValueError):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two `messages` we would take the last; an upstream might answer the first, and the cache be poisoned with that.
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise _Twice("a name stands twice in one object")
    return fields


_decode = json.JSONDecoder(object_pairs_hook=_unique).decode
