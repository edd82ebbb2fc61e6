"""Who shows which token is let in, and tokens in files."""

from __future__ import annotations

import ast
import hashlib
import inspect
import stat
from dataclasses import dataclass
from pathlib import Path

import pytest

from core import tokens
from core.errors import NearpathError
from core.io_token import issue_token, read_token
from core.tokens import MAX_TOKEN_LEN, authenticate, bearer_token, is_token, token_sha256


@dataclass(frozen=True)
class Known:
    token_sha256: str


KNOWN = {name: Known(token_sha256(f"token of {name}")) for name in ("a1", "a2")} | {
    "none": Known(token_sha256("")),  # somebody took the hash of an empty file
    "long": Known(token_sha256("x" * (MAX_TOKEN_LEN + 1))),
}


def test_the_right_token_is_let_in() -> None:
    assert authenticate("a1", "Bearer token of a1", KNOWN) is KNOWN["a1"]
    assert authenticate("a1", "bearer  token of a1 ", KNOWN) is KNOWN["a1"]


@pytest.mark.parametrize(
    ("name", "authorization"),
    [
        ("a1", ""), ("a1", "Bearer"), ("a1", "Bearer "), ("a1", "token of a1"), ("a1", "Basic token of a1"),
        ("a1", "Bearer token of a2"), ("a2", "Bearer token of a1"), ("a1", "Bearer TOKEN OF A1"),
        ("", "Bearer token of a1"), ("unknown", "Bearer token of a1"), ("A1", "Bearer token of a1"),
        ("a1\n", "Bearer token of a1"), ("a1", f"Bearer {token_sha256('token of a1')}"), ("a1", "Bearer é"),
        ("a1", "Bearer \udcff"), ("\udcff", "Bearer \udcff\udcfe"), ("a1", "Bearer " + "x" * 100_000),
        ("none", "Bearer "), ("none", "Bearer " + "x" * (MAX_TOKEN_LEN + 1)), ("none", ""),
        ("long", "Bearer " + "x" * (MAX_TOKEN_LEN + 1)), ("unknown", "Bearer " + "0" * 64),
    ],
    ids=lambda value: ascii(value)[:24],
)  # fmt: skip
def test_all_else_is_not(name: str, authorization: str) -> None:
    assert authenticate(name, authorization, KNOWN) is None


def test_bytes_that_are_no_text_have_the_hash_of_the_bytes() -> None:
    assert token_sha256("\udcff") == hashlib.sha256(b"\xff").hexdigest()
    assert is_token(bearer_token("BEARER \udcff"), hashlib.sha256(b"\xff").hexdigest())


def test_tokens_are_compared_in_constant_time() -> None:
    # A timing test would prove nothing on a shared machine; so: no == in the whole module but on the scheme's name.
    tree = ast.parse(inspect.getsource(tokens))
    calls = [n.func.attr for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    assert calls.count("compare_digest") == 1
    compared = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Compare)]
    assert sorted(compared) == ["entry is not None", "len(token) <= MAX_TOKEN_LEN", "scheme.lower() == 'bearer'"]


# -- in files


def test_a_token_that_was_issued_is_read_and_let_in(tmp_path: Path) -> None:
    file = tmp_path / "token"
    written, placed = issue_token(file, "the agent", "the appliance")
    assert written == f"token written to {file}"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    token = read_token(str(file), "make it")
    assert placed == f"for the appliance:  token_sha256: {token_sha256(token)}"
    with pytest.raises(NearpathError, match=r"cannot write .*: File exists: name a new file"):
        issue_token(file, "the agent", "the appliance")
    assert read_token(str(file), "make it") == token


def test_a_token_on_the_screen() -> None:
    shown, placed = issue_token(None, "the agent", "the appliance")
    assert shown.startswith("token (for the token_file of the agent): ")
    assert token_sha256(shown.split()[-1]) == placed.split()[-1]


@pytest.mark.parametrize("content", [b"", b"\n\n", b"two words\n", b"\xff\xfe", b"a\x00b", b"x" * 5000])
def test_a_file_without_a_token(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(NearpathError, match=r"does not hold a token: .* that `make it` printed"):
        read_token(str(tmp_path / "token"), "make it")


def test_the_longest_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_bytes(b"x" * MAX_TOKEN_LEN + b"\n")
    assert read_token(str(tmp_path / "token"), "make it") == "x" * MAX_TOKEN_LEN


def test_a_token_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NearpathError, match=r"cannot be read: No such file.*`make it`"):
        read_token(str(tmp_path / "none"), "make it")
