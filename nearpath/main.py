"""Entry point of the `nearpath` command."""

from __future__ import annotations

import sys

from core.errors import NearpathError
from nearpath.cli import app


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such, exit status 1."""
    try:
        app()
    except NearpathError as error:
        print(f"nearpath: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
