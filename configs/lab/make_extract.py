"""Make planetlab-extract.npz from the whole PlanetLab RTT matrix: python configs/lab/make_extract.py SOURCE.npz OUT.npz

SOURCE holds `n` (490) and `rtt_us_delta` (18, n*(n-1)/2) int32: the upper triangle row by row, in microseconds, as
differences from one slice to the next. The choice of nodes is a fixed rule, no randomness: the same source gives the
same extract.
"""

from __future__ import annotations

import sys

import numpy as np
import numpy.typing as npt

SITES = 20  # far from each other; each brings its nearest neighbour, so there are near pairs as well: 40 nodes
SLOW_NODE_US = 400_000  # a node with a larger median RTT to the others was overloaded, not far away

NOTE = (
    "RTT in microseconds between 40 PlanetLab nodes in 18 time slices: rtt_us[slice, from, to], symmetric, diagonal 0. "
    "An extract of uofa-rzhu3/NetLatency-Data (MIT licence, see NOTICE.md). `source_node` is each node's number (from "
    "0) in the original 490 x 490 matrix. Nodes 2k and 2k+1 are near each other; the even ones are far apart."
)


def whole_matrix(n: int, rtt_us_delta: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    """The full symmetric matrix (slices, n, n) of the source's upper triangles."""
    if rtt_us_delta.ndim != 2 or rtt_us_delta.shape[1] != n * (n - 1) // 2:
        raise SystemExit(f"rtt_us_delta has the shape {rtt_us_delta.shape}, not (slices, {n * (n - 1) // 2})")
    triangle = np.cumsum(rtt_us_delta, axis=0, dtype=np.int64)
    full = np.zeros((triangle.shape[0], n, n), dtype=np.int32)
    row, column = np.triu_indices(n, 1)
    full[:, row, column] = full[:, column, row] = triangle
    return full


def choose_nodes(rtt_us: npt.NDArray[np.int32]) -> list[int]:
    """Farthest-first: each next site has the largest RTT to its nearest chosen one; each brings its own neighbour."""
    typical = np.median(rtt_us, axis=0)
    np.fill_diagonal(typical, np.inf)
    free = np.median(typical, axis=1) < SLOW_NODE_US
    chosen: list[int] = []
    while len(chosen) < 2 * SITES:
        if chosen:
            distance = np.where(free, typical[:, chosen].min(axis=1), -1.0)
            site = int(distance.argmax())
        else:
            site = int(np.where(free, np.median(typical, axis=1), np.inf).argmin())  # start in the middle of the net
        free[site] = False
        neighbour = int(np.where(free, typical[site], np.inf).argmin())
        free[neighbour] = False
        chosen += [site, neighbour]
    return chosen


def main(source: str, out: str) -> None:
    with np.load(source) as data:
        rtt_us = whole_matrix(int(data["n"]), data["rtt_us_delta"])
    nodes = choose_nodes(rtt_us)
    extract = rtt_us[np.ix_(range(rtt_us.shape[0]), nodes, nodes)]
    np.savez_compressed(out, rtt_us=extract, source_node=np.array(nodes, dtype=np.int32), note=np.array(NOTE))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(sys.argv[1], sys.argv[2])
