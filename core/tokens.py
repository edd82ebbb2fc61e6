"""Tokens and keys: who shows one is let in. Only the SHA-256 is kept; of 256 random bits a plain hash is enough."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol, TypeVar

MAX_TOKEN_LEN = 512
"""A longer one is not even hashed."""

_NOBODYS = "0" * 64
"""Nobody knows a token with this hash, and an unknown name is compared with it, to take the same time."""


class _Known(Protocol):
    @property
    def token_sha256(self) -> str: ...


Known = TypeVar("Known", bound=_Known)


def token_sha256(token: str) -> str:
    """What a configuration keeps of a token: 64 hexadecimal digits."""
    # A header may hold bytes that are no UTF-8, which aiohttp hands on as lone surrogates.
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def bearer_token(authorization: str) -> str:
    """The token in an Authorization header (RFC 6750, section 2.1); empty when it holds none."""
    scheme, _space, token = authorization.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def is_token(token: str, expected_sha256: str) -> bool:
    """Whether this is the token with that hash; takes the same time whatever is wrong with it. The empty one never is."""
    short = token if len(token) <= MAX_TOKEN_LEN else ""
    return hmac.compare_digest(token_sha256(short), expected_sha256) and bool(short)


def authenticate(name: str, authorization: str, known: Mapping[str, Known]) -> Known | None:
    """The one that `name` and its bearer token belong to, or None.

    Takes the same time for a wrong token and an unknown name, so that names cannot be found out.
    """
    entry = known.get(name)
    right = is_token(bearer_token(authorization), entry.token_sha256 if entry is not None else _NOBODYS)
    return entry if right else None
