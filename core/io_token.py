"""Tokens in files: drawn for whoever is to be let in, read anew for each use so that they can be renewed."""

from __future__ import annotations

import secrets
from pathlib import Path

from core.errors import NearpathError
from core.tokens import MAX_TOKEN_LEN, token_sha256


def issue_token(file: Path | None, holder: str, place: str) -> list[str]:
    """Draw a token into a new `file` (mode 0600; None: into the lines returned); the lines to show.

    `holder`: whose token_file it is for; `place`: where its hash belongs. NearpathError when the file cannot be made.
    """
    token = secrets.token_urlsafe(32)
    line = f"token (for the token_file of {holder}): {token}"
    if file is not None:
        try:
            file.touch(mode=0o600, exist_ok=False)
            file.write_text(token + "\n", "ascii")
        except OSError as error:
            raise NearpathError(
                f"cannot write {file}: {error.strerror}", "name a new file in a writable folder"
            ) from None
        line = f"token written to {file}"
    return [line, f"for {place}:  token_sha256: {token_sha256(token)}"]


def read_token(file: str, command: str) -> str:
    """The token in `file`; NearpathError says what is wrong, and that `command` makes tokens."""
    try:
        with open(file, "rb") as stream:
            data = stream.read(MAX_TOKEN_LEN + 2)
    except OSError as error:
        raise NearpathError(
            f"token file {file} cannot be read: {error.strerror}",
            f"put the token from `{command}` there, readable by the user that runs this",
        ) from None
    token = data.strip()
    if not token or len(token) > MAX_TOKEN_LEN or not all(33 <= byte <= 126 for byte in token):
        raise NearpathError(
            f"token file {file} does not hold a token", f"it must hold the one word that `{command}` printed"
        )
    return token.decode("ascii")
