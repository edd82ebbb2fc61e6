"""Entry point of the `syncd` command, which is not part of this release yet."""

from __future__ import annotations

import sys

EX_UNAVAILABLE = 69
"""sysexits.h: a service is unavailable."""


def main() -> None:
    """Say so, and exit with EX_UNAVAILABLE, which a script or a unit can tell from a failure."""
    print(
        "syncd: not part of this release yet. Replicate with rsync or lsyncd as before; steering works without it.",
        file=sys.stderr,
    )
    sys.exit(EX_UNAVAILABLE)


if __name__ == "__main__":
    main()
