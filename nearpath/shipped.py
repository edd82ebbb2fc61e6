"""Where the files are that come with nearpath (region tables, units, examples): in a checkout, or installed beside it."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from core.errors import NearpathError


def find_shipped(*parts: str) -> Path:
    """The file or folder `configs/PARTS...`; NearpathError when the installation lacks it."""
    checkout = Path(__file__).resolve().parent.parent
    # pyproject.toml is the proof that this is our checkout and not a site-packages that happens to hold a `configs`.
    bases = [checkout / "configs"] if (checkout / "pyproject.toml").is_file() else []
    bases.append(Path(sysconfig.get_path("data")) / "share" / "nearpath" / "configs")
    for base in bases:
        if (found := base.joinpath(*parts)).exists():
            return found
    raise NearpathError(
        f"{'/'.join(parts)} is missing; looked in {', '.join(map(str, bases))}",
        "the installation is incomplete: install nearpath again from its wheel, or run it from a whole checkout",
    )
