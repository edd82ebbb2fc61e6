"""Replay: the serving decision code over a matrix of measured RTTs, beside simple policies that do without it.

Strictly causal: the choice for slice t rests on the probes of slices before t, and pays the true RTT of slice t; a missing
truth is a failed client and costs 1 s. Arrays are (slices, clients, mirrors) in ms, NaN where nothing was measured.
Numbers are comparable with other users of the same matrices: mirrors are drawn by `draw` from a seed.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.config import Steering
from core.errors import MessageError
from core.messages import PathSample
from policy.decide import Memory, decide
from policy.estimate import PathEstimator
from policy.evidence import Facts, Vantage, Watched, gather
from policy.plan import DEFAULT_PREFERENCE, Catchment, MirrorPlan, ServicePlan

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FAIL_MS = 1000.0
"""Cost of a choice whose true RTT is missing: a client that waits for the first retransmission (RFC 6298 2.1)."""

GOOD_MS, GOOD_SHARE = 5.0, 0.10
"""A choice is good when it is within the larger of these of the best there was."""

MAX_MATRIX_BYTES = 512 << 20
MAX_NODES, MAX_SLICES = 4096, 1 << 20

SLICE_S = 600.0
"""Length of a slice in the decision's time: above every dwell, so that a challenger must be ahead in two slices running."""

_EWMA_WEIGHT = 0.2


@dataclass(frozen=True, slots=True)
class Matrix:
    """RTTs between all pairs of nodes in ms, (slices, nodes, nodes), NaN where missing; `kind` goes into a draw's seed."""

    rtt_ms: Floats
    kind: int


@dataclass(frozen=True, slots=True)
class Scores:
    """What one policy achieved: RTT, its ratio to and distance from the per-slice oracle, shares 0..1, and switches."""

    policy: str
    mean_ms: float
    p95_ms: float
    ratio: float
    regret_ms: float
    good_ratio: float
    over_50ms_ratio: float
    switches_per_100: float


def load_matrix(data: bytes) -> Matrix:
    """The matrix in the bytes of an .npz file; MessageError (what is wrong with it) when it is none of the known forms.

    Known: `rtt_us` (slices, n, n) in microseconds; `rtt_us_delta` (slices, n(n-1)/2) with `n`, the upper triangle as
    differences from slice to slice; `rtt_cs` (slices, n, n) in centiseconds. Zero and below: missing.
    """
    arrays = _read_npz(data)
    if "rtt_us" in arrays:
        return Matrix(_square(arrays["rtt_us"], 1e-3), 1)
    if "rtt_us_delta" in arrays and "n" in arrays:
        return Matrix(_unfold(arrays["rtt_us_delta"], arrays["n"]), 1)
    if "rtt_cs" in arrays:
        rtt_ms = _square(arrays["rtt_cs"], 10.0)
        sparse = np.isnan(rtt_ms).mean((0, 2)) > 0.05
        if (~sparse).sum() < 2:
            raise MessageError("not a usable RTT matrix", "all but one node miss more than 5% of their RTTs")
        return Matrix(rtt_ms[:, ~sparse][:, :, ~sparse], 2)
    have = ", ".join(sorted(arrays)) or "nothing"
    raise MessageError("not a RTT matrix", f"it holds {have}, but none of rtt_us, rtt_us_delta with n, rtt_cs")


_UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    MemoryError,
)


def _read_npz(data: bytes) -> dict[str, NDArray[Any]]:
    try:
        with zipfile.ZipFile(BytesIO(data)) as archive:
            size_bytes = sum(entry.file_size for entry in archive.infolist())
        if size_bytes > MAX_MATRIX_BYTES:
            raise MessageError("the RTT matrix is too large", f"{size_bytes} bytes, at most {MAX_MATRIX_BYTES}")
        with np.load(BytesIO(data), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except _UNREADABLE as error:
        raise MessageError("not a RTT matrix", f"the file is not an .npz archive of numbers ({error})") from None


def _check_shape(rtts: NDArray[Any], nodes: int) -> None:
    if not np.issubdtype(rtts.dtype, np.number) or np.issubdtype(rtts.dtype, np.complexfloating):
        raise MessageError("not a RTT matrix", f"its values are {rtts.dtype}, not numbers")
    if not (2 <= len(rtts) <= MAX_SLICES and 2 <= nodes <= MAX_NODES):
        raise MessageError(
            "not a usable RTT matrix",
            f"{len(rtts)} slices of {nodes} nodes: needs 2 to {MAX_SLICES} slices and 2 to {MAX_NODES} nodes",
        )
    if len(rtts) * nodes * nodes * 8 > MAX_MATRIX_BYTES:
        raise MessageError("the RTT matrix is too large", f"{len(rtts)} slices of {nodes} x {nodes} nodes")


def _square(rtts: NDArray[Any], ms_per_unit: float) -> Floats:
    if rtts.ndim != 3 or rtts.shape[1] != rtts.shape[2]:
        raise MessageError("not a RTT matrix", f"its shape is {rtts.shape}, not (slices, nodes, nodes)")
    _check_shape(rtts, rtts.shape[1])
    rtt_ms = rtts.astype(np.float64) * ms_per_unit
    return np.where(rtt_ms > 0, rtt_ms, np.nan)


def _unfold(deltas: NDArray[Any], count: NDArray[Any]) -> Floats:
    n = int(count.reshape(())) if count.size == 1 and count.dtype.kind in "iu" else -1
    if deltas.ndim != 2 or n < 2 or deltas.shape[1] != n * (n - 1) // 2:
        raise MessageError(
            "not a RTT matrix", f"rtt_us_delta has the shape {deltas.shape}, which {n} nodes do not make"
        )
    _check_shape(deltas, n)
    upper_ms = np.cumsum(deltas.astype(np.int64), 0) / 1000.0
    rtt_ms = np.full((len(deltas), n, n), np.nan)
    i, j = np.triu_indices(n, 1)
    rtt_ms[:, i, j] = rtt_ms[:, j, i] = np.where(upper_ms > 0, upper_ms, np.nan)
    return rtt_ms


def draw(matrix: Matrix, mirrors: int, seed: int) -> Floats:
    """RTTs (slices, clients, mirrors) for `mirrors` random nodes as mirrors and all others as clients."""
    n = matrix.rtt_ms.shape[1]
    if not 1 <= mirrors < n:
        raise MessageError("too many mirrors", f"the matrix has {n} nodes: draw 1 to {n - 1} of them as mirrors")
    rng = np.random.default_rng([seed, mirrors, matrix.kind])
    chosen = rng.choice(n, mirrors, replace=False)
    clients = np.setdiff1d(np.arange(n), chosen)
    return matrix.rtt_ms[:, clients][:, :, chosen]


def replay(
    truth_ms: Floats, obs_ms: Floats | None = None, steering: Steering | None = None, warm: int = 1
) -> list[Scores]:
    """Scores of the serving code and of simple policies from slice `warm` on; `obs_ms` are the probes (default: truth)."""
    obs_ms = truth_ms if obs_ms is None else obs_ms
    if truth_ms.ndim != 3 or obs_ms.shape != truth_ms.shape or not 1 <= warm < len(truth_ms):
        raise MessageError("not a replay", f"truth {truth_ms.shape}, probes {obs_ms.shape}, first slice {warm}")
    slices, clients, mirrors = truth_ms.shape
    filled = np.where(np.isnan(truth_ms), FAIL_MS, truth_ms)
    robin = (np.arange(slices)[:, None] + np.arange(clients)[None]) % mirrors
    hindsight = filled[warm:].mean(0).argmin(1)
    first = np.where(np.isnan(obs_ms[0]), np.inf, obs_ms[0]).argmin(1)
    choices = {
        "nearpath": choose(obs_ms, steering or Steering()),
        "round robin": robin,
        "static, first slice": np.broadcast_to(first, (slices, clients)),
        "static, hindsight": np.broadcast_to(hindsight, (slices, clients)),
        "last value": _choose_plain(obs_ms, 1.0),
        "EWMA .2 + hysteresis": _choose_steady(obs_ms),
        "oracle": filled.argmin(2),
    }
    return [score(name, filled, choice, warm) for name, choice in choices.items()]


def score(policy: str, truth_ms: Floats, choice: NDArray[Any], warm: int) -> Scores:
    """Scores of a choice (slices, clients) of mirrors; `truth_ms` without NaN."""
    truth_ms, choice = truth_ms[warm:], choice[warm:]
    got = np.take_along_axis(truth_ms, choice[..., None].astype(np.int64), 2)[..., 0]
    best = truth_ms.min(2)
    return Scores(
        policy,
        mean_ms=float(got.mean()),
        p95_ms=float(np.percentile(got, 95)),
        ratio=float(got.mean() / best.mean()),
        regret_ms=float((got - best).mean()),
        good_ratio=float((got <= np.maximum(best * (1 + GOOD_SHARE), best + GOOD_MS)).mean()),
        over_50ms_ratio=float((got - best > 50).mean()),
        switches_per_100=float((np.diff(choice, axis=0) != 0).mean() * 100) if len(choice) > 1 else 0.0,
    )


def choose(obs_ms: Floats, steering: Steering, slice_s: float = SLICE_S) -> Ints:
    """The choice (slices, clients) of the serving code, with a vantage at each client probing each mirror once a slice."""
    slices, clients, mirrors = obs_ms.shape
    names = [f"m{k}" for k in range(mirrors)]
    index = {name: k for k, name in enumerate(names)}
    catchment = Catchment(
        "replay.", 4, "client", (0,), (("client", ("agent",)),), 1, True, tuple(names),
        dict.fromkeys(names, DEFAULT_PREFERENCE), {},
    )  # fmt: skip
    service = ServicePlan("replay.", tuple(names), ("probe",), "probe", 1, 30.0, None, None, None)
    plans = [MirrorPlan(name, {4: (name,)}, None, 0, 1.0, False) for name in names]
    facts = Facts({}, {})
    paths = [[PathEstimator(steering) for _ in names] for _ in range(clients)]
    watched = [
        tuple(
            Watched(plan, k, DEFAULT_PREFERENCE, None, ((Vantage("agent", path, (path,)),),))
            for k, (plan, path) in enumerate(zip(plans, row, strict=True))
        )
        for row in paths
    ]
    memories = [Memory() for _ in range(clients)]
    choice = np.zeros((slices, clients), np.int64)
    for t in range(slices):
        now = t * slice_s
        for c in range(clients):
            candidates = gather(catchment, watched[c], service, facts, steering, 3 * slice_s, now)
            decision = decide(candidates, memories[c], steering, now)
            memories[c] = decision.memory
            choice[t, c] = index[decision.order[0]]
            for k, value in enumerate(obs_ms[t, c].tolist()):
                # NaN is the one value that is not itself.
                rtt_s = value / 1000 if value == value else None
                paths[c][k].take(PathSample("agent", "client", names[k], "probe", 4, t + 1, rtt_s, now))
    return choice


def _averages(obs_ms: Floats, weight: float) -> Floats:
    """The EWMA of the probes before each slice; infinite where there was none."""
    averages = np.full(obs_ms.shape, np.inf)
    for t in range(1, len(obs_ms)):
        new, old = obs_ms[t - 1], averages[t - 1]
        mixed = np.where(np.isinf(old), new, np.where(np.isinf(old), 0.0, old) * (1 - weight) + weight * new)
        averages[t] = np.where(np.isnan(new), old, mixed)
    return averages


def _choose_plain(obs_ms: Floats, weight: float) -> Ints:
    choice: Ints = _averages(obs_ms, weight).argmin(2)
    return choice


def _choose_steady(obs_ms: Floats) -> Ints:
    """Leave the incumbent when another is ahead by max(5 ms, 10%) in two slices running, or once by three times that."""
    averages = _averages(obs_ms, _EWMA_WEIGHT)
    choice = np.zeros(obs_ms.shape[:2], np.int64)
    rows = np.arange(obs_ms.shape[1])
    running = np.zeros(len(rows), np.int64)
    for t in range(1, len(obs_ms)):
        best = averages[t].argmin(1)
        if t == 1:
            choice[t] = best
            continue
        incumbent = choice[t - 1]
        score_ms, best_ms = averages[t][rows, incumbent], averages[t][rows, best]
        gain_ms = np.where(np.isinf(score_ms), np.where(np.isinf(best_ms), 0.0, np.inf), score_ms - best_ms)
        margin_ms = np.maximum(GOOD_MS, GOOD_SHARE * np.where(np.isinf(score_ms), 0.0, score_ms))
        ahead = gain_ms > margin_ms
        running = np.where(ahead, running + 1, 0)
        go = (running >= 2) | (ahead & (gain_ms > 3 * margin_ms))
        choice[t] = np.where(go, best, incumbent)
        running[go] = 0
    return choice
