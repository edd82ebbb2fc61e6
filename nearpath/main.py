"""Entry point of the `nearpath` command."""

from __future__ import annotations

from core.io_life import errors_printed
from nearpath.cli import app


def main() -> None:
    """Run the command line; an error an operator can act on is printed as such, exit status 1."""
    with errors_printed("nearpath", 1):
        app()


if __name__ == "__main__":
    main()
