"""Asking our own socket: the proof behind the watchdog that answers really leave."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence

from core.config import split_listen
from core.io_log import get_logger

_ANY_TO_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}

_log = get_logger("selfcheck")


def is_answering(listen: str, timeout_s: float = 1.0) -> bool:
    """Whether a query over UDP to `ADDRESS:PORT` is answered at all (REFUSED is an answer)."""
    host, port = split_listen(listen)
    host = _ANY_TO_LOOPBACK.get(host, host)
    ident = os.urandom(2)
    question = ident + bytes.fromhex("0000 0001 0000 0000 0000 00 0006 0001")  # . SOA IN
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect((host, port))
            sock.send(question)
            return sock.recv(512)[:2] == ident
        except OSError:
            return False


def are_answering(listen: Sequence[str]) -> bool:
    """Whether each of our own addresses answers; those that do not are logged."""
    silent = [address for address in listen if not is_answering(address)]
    if silent:
        _log.error("no_answer_from_own_socket", addresses=silent)
    return not silent
