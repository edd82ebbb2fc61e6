"""A request of the API: path, headers and body -> `Ask`, parsed once, or `ApiError` in the API's words.

Only what the gateway itself decides by is looked at; every other field is an upstream's business and passes unseen.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, NoReturn

from local_infer.fault import INVALID, ApiError
from local_infer.model import Ask, CacheWish, Client, Endpoint, Step

MAX_DEPTH = 64
"""Nesting of a request's JSON. Tool schemas reach about 15; every later walk over it may rely on this."""

MAX_CONTAINERS = 100_000
MAX_VALUES = 1_000_000
"""Objects and lists, and values, in a request's JSON. An empty object takes 3 bytes of a body and 70 of memory, and parsing
stops everybody: 8 MiB of them took 3 s and 200 MB. The API's largest request is one of 300,000 tokens to embed."""

_MODEL_RE = re.compile(r"[!-~]{1,128}")
_IDEMPOTENCY_RE = re.compile(r"[!-~]{1,255}")
_LOOKED_AT = {Endpoint.CHAT: "messages", Endpoint.COMPLETIONS: "prompt", Endpoint.EMBEDDINGS: "input"}
_STEPS = {step.label: step for step in Step}
_SURROGATE_RE = re.compile(rb"\\u[dD][89a-fA-F]")
_DIRECTIVE_RE = re.compile(r"(?:max-age)=\"?([0-9]{1,9})\"?")


def _bad(what: str, fix: str = "", param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, INVALID, what, fix, param=param, code=code)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    # Beyond the range of a double: we would read infinity, which JSON cannot even say, and others something else.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large")
    return number


_OUR_NAMES = frozenset({"model", "stream", "messages", "role", "content", "prompt", "input", "temperature"})
"""Names of the API may be told back; any other is a part of what the client sent, which no message repeats."""


class _Twice(ValueError):
    """An object has a name twice: we might check one of them, and an upstream serve the other."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        twice = next(name for name, count in Counter(name for name, _value in pairs).items() if count > 1)
        raise _Twice((repr(twice) if twice in _OUR_NAMES else "a name") + " stands twice in one object")
    return fields


# Made once: json.loads with arguments makes a decoder each time.
_decode = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite).decode
_decode_strictly = json.JSONDecoder(
    parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_unique
).decode

# One without an end is a string up to the end of the body: tried again from each quote in it, it would cost its square.
_STRING_RE = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)


def parse_body(body: bytes) -> dict[str, Any]:
    """The JSON object in a request's body; ApiError 400 for anything that others could read differently than we do."""
    _check_size(body)
    try:
        text = body.decode()
        # Two `model` fields: we would check one, an upstream might serve the other. Escapes can hide a second one.
        doubtful = b"\\u" in body or body.count(b'"model"') > 1 or body.count(b'"stream"') > 1
        fields = (_decode_strictly if doubtful else _decode)(text)
        if doubtful and _SURROGATE_RE.search(body):
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise _bad("the body is not UTF-8") from None
    except UnicodeEncodeError:
        raise _bad("the body has half of a surrogate pair", "a text was cut inside a character") from None
    except RecursionError:
        raise _bad(f"the body is nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        # No part of the body in the message: it goes to the log too.
        why = "a number is out of range, or NaN or Infinity"
        if isinstance(error, json.JSONDecodeError):
            why = error.msg
        elif isinstance(error, _Twice):
            why = str(error)
        raise _bad("could not parse the JSON body of your request", why) from None
    if not isinstance(fields, dict):
        raise _bad("the body is no JSON object")
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth_over(fields, MAX_DEPTH):
        raise _bad(f"the body is nested deeper than {MAX_DEPTH}")
    return fields


def _check_size(body: bytes) -> None:
    """ApiError 400 when the JSON in `body` has too many parts; bytes are counted, what is in strings only if need be."""
    if _parts_over(body) and _parts_over(_STRING_RE.sub(b'""', body)):
        raise _bad(
            f"the body has more than {MAX_CONTAINERS} objects and lists, or {MAX_VALUES} values", "send less at once"
        )


def _parts_over(text: bytes) -> bool:
    containers = text.count(b"{") + text.count(b"[")
    return containers > MAX_CONTAINERS or containers + text.count(b",") > MAX_VALUES


def _depth_over(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        below: list[Any] = []
        for item in level:
            below.extend(v for v in (item.values() if isinstance(item, dict) else item) if isinstance(v, (dict, list)))
        if not below:
            return False
        level = below
    return True


def read_ask(endpoint: Endpoint, headers: Mapping[str, str], body: bytes, client: Client, id: str, now: float) -> Ask:
    """One request, checked and parsed; ApiError 400 or 415. `headers` must ignore case (aiohttp's do)."""
    kind = headers.get("Content-Type")
    if kind is not None and kind != "application/json" and not _is_json(kind):
        raise ApiError(415, INVALID, f"unsupported content type {kind[:100]!r}", "send application/json")
    fields = parse_body(body)
    model = fields.get("model")
    if model is None:
        raise _bad("you must provide a model parameter", param="model")
    if not isinstance(model, str) or not _MODEL_RE.fullmatch(model):
        raise _bad("'model' must be a string of 1 to 128 visible ASCII characters", param="model")
    stream = fields.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _bad("'stream' must be true or false", param="stream")
    _check_content(endpoint, fields)
    control = headers.get("Cache-Control")
    keep = headers.get("X-Cache")
    refuse = headers.get("X-Ladder-Refuse")
    resume = headers.get("X-Stream-Resume")
    once = headers.get("Idempotency-Key")
    return Ask(
        id,
        endpoint,
        body,
        fields,
        model,
        bool(stream) and endpoint is not Endpoint.EMBEDDINGS,
        client,
        now,
        _DEFAULT_WISH if control is None and keep is None else read_cache_wish(control or "", keep or ""),
        frozenset() if refuse is None else _read_refused(refuse),
        resume is not None and resume.strip().lower() in ("yes", "true", "1"),
        idempotency_key="" if once is None else _read_idempotency_key(once, client, body),
    )


_DEFAULT_WISH = CacheWish()


def _is_json(content_type: str) -> bool:
    name = content_type.partition(";")[0].strip().lower()
    return name == "application/json" or (name.startswith("application/") and name.endswith("+json"))


def _check_content(endpoint: Endpoint, fields: Mapping[str, Any]) -> None:
    name = _LOOKED_AT[endpoint]
    value = fields.get(name)
    if endpoint is Endpoint.COMPLETIONS:
        return  # the API has a default for it
    if value is None:
        raise _bad(f"missing required parameter: '{name}'", param=name, code="missing_required_parameter")
    if endpoint is Endpoint.CHAT and not (
        isinstance(value, list) and value and all(isinstance(message, dict) for message in value)
    ):
        raise _bad("'messages' must be a list of at least one message object", param="messages")


def read_cache_wish(control: str, keep: str) -> CacheWish:
    """What Cache-Control (RFC 9111 5.2.1) and `X-Cache: keep` ask for; directives not understood are ignored (5.2.3)."""
    words = {word.strip().lower() for word in control.split(",")}
    ages = [int(match[1]) for word in words if (match := _DIRECTIVE_RE.fullmatch(word))]
    return CacheWish(
        read="no-cache" not in words,
        write="no-store" not in words,
        opted_in=keep.strip().lower() == "keep",
        only_if_cached="only-if-cached" in words,
        max_age_s=float(min(ages)) if ages else None,
    )


def _read_idempotency_key(text: str, client: Client, body: bytes) -> str:
    """The key as upstreams see it: a digest, the same for the same request of the same tenant and for no other."""
    if not _IDEMPOTENCY_RE.fullmatch(text):
        raise _bad("Idempotency-Key must be 1 to 255 visible ASCII characters")
    # An upstream that keeps answers by key knows one account, ours: two clients that count 1, 2, 3 would get each other's.
    owner = client.tenant.encode("utf-8", "surrogatepass")
    digest = hashlib.blake2b(
        b"%d:%s%s:" % (len(owner), owner, text.encode()), digest_size=32, person=b"nearpath-once-1"
    )
    digest.update(body)
    return digest.hexdigest()


def _read_refused(text: str) -> frozenset[Step]:
    words = [word.strip().lower() for word in text.split(",") if word.strip()]
    unknown = [word for word in words if word not in _STEPS]
    if unknown:
        raise _bad(f"X-Ladder-Refuse: there is no step {unknown[0][:40]!r}", f"steps: {', '.join(_STEPS)}")
    return frozenset(_STEPS[word] for word in words)
