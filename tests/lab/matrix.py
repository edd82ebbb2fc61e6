"""Round-trip times for scenarios from the PlanetLab extract that nearpath ships (configs/lab/NOTICE.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

EXTRACT = Path(__file__).resolve().parents[2] / "configs" / "lab" / "planetlab-extract.npz"


def planetlab_us() -> npt.NDArray[np.int32]:
    """The whole extract: RTT in microseconds, (slices, n, n)."""
    with np.load(EXTRACT) as data:
        rtt_us: npt.NDArray[np.int32] = data["rtt_us"]
    return rtt_us


def planetlab_rtt_ms(
    sites: Sequence[str], slice_index: int = 0, numbers: Sequence[int] | None = None
) -> dict[tuple[str, str], float]:
    """RTT in ms for each two sites, to give to `Wan(rtt_ms=...)`.

    Site i takes node `numbers[i]` of the extract; by default the even ones, which are far apart, then the odd ones.
    """
    rtt_us = planetlab_us()
    size = rtt_us.shape[1]
    chosen = list(numbers) if numbers is not None else [*range(0, size, 2), *range(1, size, 2)][: len(sites)]
    if len(chosen) != len(sites) or len(set(chosen)) != len(chosen):
        raise ValueError(f"{len(sites)} sites need as many different node numbers of the extract, which has {size}")
    table = rtt_us[slice_index][np.ix_(chosen, chosen)] / 1000.0
    return {(a, b): float(table[i, j]) for i, a in enumerate(sites) for j, b in enumerate(sites) if i < j}
