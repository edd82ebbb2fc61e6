"""The index of stored questions as an ONNX model: code points of a question in, the most similar stored ones out.

Steps: hash the 1-3-grams, count and weigh them; look up the blocks of the inverted index that belong to the rarer ones; add
their weights into one sum per stored question; take the best CANDIDATES of these and score them again in full. Grams in
more than COMMON of all questions are not looked up (they say little and cost most) but count in the full score. Chosen by
measurement, see docs/local_infer-design.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from local_infer.retrieval.ngrams import BUCKETS, CUT, FIRST, OFFSETS, SECOND, SHIFT, SPREAD, GramIndex

BLOCK = 16
"""Postings to a block: wide enough for fast copying, narrow enough that half-filled last blocks waste little."""

CANDIDATES = 32
COMMON = 0.05
SMALL = 10_000
"""Below so many questions every gram is looked up: nothing is gained by leaving any out."""

OPSET, IR_VERSION = 18, 10
"""Of 2022 and 2024: read by every onnxruntime since 1.18."""

INPUT, OUTPUTS = "codepoints", ("score", "doc")
_ALL = 1 << 60


@dataclass(slots=True)
class _Graph:
    """Collects nodes and constants; every method returns the name of its result."""

    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def keep(self, value: NDArray[Any]) -> str:
        name = f"k{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def number(self, value: Any, kind: Any = np.int64) -> str:
        return self.keep(np.array(value, kind))

    def op(self, kind: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], **attributes))
        return name

    def pair(self, kind: str, *inputs: str, outs: list[str], **attributes: Any) -> None:
        self.nodes.append(helper.make_node(kind, list(inputs), outs, **attributes))

    def cut(self, value: str, start: int, end: int) -> str:
        return self.op("Slice", value, self.number([start]), self.number([end]), self.number([0]))


def write_graph(index: GramIndex, *, top: int = 8) -> bytes:
    """The model that finds the `top` stored questions nearest to a text: `score` float32[top], `doc` int64[top].

    With fewer stored questions than `top` there are as many results. `index` must not be empty.
    """
    graph = _Graph()
    ids, weights = _query(graph, index)
    sums = _sum_postings(graph, index, ids, weights)
    _score_again(graph, index, ids, weights, sums, min(top, index.count))
    body = helper.make_graph(
        graph.nodes,
        "ngrams",
        [helper.make_tensor_value_info(INPUT, TensorProto.INT64, ["n"])],
        [
            helper.make_tensor_value_info(OUTPUTS[0], TensorProto.FLOAT, ["k"]),
            helper.make_tensor_value_info(OUTPUTS[1], TensorProto.INT64, ["k"]),
        ],
        graph.constants,
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def _query(graph: _Graph, index: GramIndex) -> tuple[str, str]:
    """The question's distinct buckets and their weights, of length 1 together (`ngrams.weigh`)."""
    points = INPUT

    def pair(first: str, second: str, factor: int) -> str:
        return graph.op("Add", graph.op("Mul", first, graph.number(factor)), second)

    def spread(value: str, offset: int) -> str:
        mixed = graph.op("Mod", graph.op("Add", value, graph.number(offset)), graph.number(CUT))
        mixed = graph.op("Div", graph.op("Mul", mixed, graph.number(SPREAD)), graph.number(SHIFT))
        return graph.op("Mod", mixed, graph.number(BUCKETS))

    two = pair(graph.cut(points, 0, -1), graph.cut(points, 1, _ALL), FIRST)
    three = pair(graph.cut(points, 0, -2), graph.cut(points, 1, -1), FIRST)
    three = pair(three, graph.cut(points, 2, _ALL), SECOND)
    hashed = [spread(value, offset) for value, offset in zip((points, two, three), OFFSETS, strict=True)]
    graph.pair("Unique", graph.op("Concat", *hashed, axis=0), outs=["ids", "", "", "counts"], sorted=1)
    counts = graph.op("Log", graph.op("Cast", "counts", to=TensorProto.FLOAT))
    weight = graph.op("Add", counts, graph.number(1.0, np.float32))
    weight = graph.op("Mul", weight, graph.op("Gather", graph.keep(index.idf), "ids"))
    length = graph.op("Add", graph.op("ReduceL2", weight, keepdims=1), graph.number(1e-9, np.float32))
    return "ids", graph.op("Div", weight, length)


@dataclass(frozen=True, slots=True)
class _Postings:
    """The inverted index: of a bucket, `blocks` blocks from `first` on; a block is BLOCK (row, weight) pairs."""

    first: NDArray[np.int32]
    blocks: NDArray[np.int32]
    rows: NDArray[np.int32]
    weights: NDArray[np.uint8]


def _invert(index: GramIndex) -> _Postings:
    count = index.count
    looked_up = index.grams >= 0
    if count >= SMALL:
        looked_up &= index.frequency[np.maximum(index.grams, 0)] <= COMMON * count
    rows, _ = np.nonzero(looked_up)
    buckets, weights = index.grams[looked_up], index.weights[looked_up]
    order = np.lexsort((rows, buckets))
    rows, buckets, weights = rows[order], buckets[order], weights[order]
    lengths = np.bincount(buckets, minlength=BUCKETS)
    blocks = -(-lengths // BLOCK)
    first = np.cumsum(blocks) - blocks
    place = first[buckets] * BLOCK + np.arange(len(buckets)) - (np.cumsum(lengths) - lengths)[buckets]
    # What fills up a last block goes to a spare row behind the real ones, with no weight.
    # At least one block: no empty tensor.
    total = max(int(blocks.sum()), 1) * BLOCK
    block_rows, block_weights = np.full(total, count, np.int32), np.zeros(total, np.uint8)
    block_rows[place], block_weights[place] = rows, weights
    return _Postings(
        first.astype(np.int32),
        blocks.astype(np.int32),
        block_rows.reshape(-1, BLOCK),
        block_weights.reshape(-1, BLOCK),
    )


def _sum_postings(graph: _Graph, index: GramIndex, ids: str, weights: str) -> str:
    """float32[count]: for each stored question the sum over shared, looked-up grams."""
    postings = _invert(index)
    blocks = graph.op(
        "Cast", graph.op("Gather", graph.keep(postings.blocks), ids), to=TensorProto.INT64
    )  # how many blocks each gram has
    used = graph.op("Squeeze", graph.op("NonZero", blocks), graph.number([0]))
    blocks = graph.op("Gather", blocks, used)
    first = graph.op("Gather", graph.keep(postings.first), graph.op("Gather", ids, used))
    first = graph.op("Cast", first, to=TensorProto.INT64)
    weights = graph.op("Gather", weights, used)
    # Ragged expansion: number the blocks 0..total, and tell for each which gram it belongs to.
    total = graph.op("ReduceSum", blocks, keepdims=0)
    begin = graph.op("Sub", graph.op("CumSum", blocks, graph.number(0)), blocks)
    zeros = graph.op(
        "ConstantOfShape",
        graph.op("Unsqueeze", total, graph.number([0])),
        value=helper.make_tensor("zero", TensorProto.INT64, [1], [0]),
    )
    later = graph.cut(begin, 1, _ALL)
    ones = graph.op("Add", graph.op("Mul", later, graph.number(0)), graph.number(1))
    gram = graph.op("CumSum", graph.op("ScatterElements", zeros, later, ones, axis=0), graph.number(0))
    block = graph.op("Range", graph.number(0), total, graph.number(1))
    block = graph.op("Add", graph.op("Sub", block, graph.op("Gather", begin, gram)), graph.op("Gather", first, gram))
    rows = graph.op("Reshape", graph.op("Gather", graph.keep(postings.rows), block), graph.number([-1]))
    share = graph.op("Cast", graph.op("Gather", graph.keep(postings.weights), block), to=TensorProto.FLOAT)
    share = graph.op("Mul", share, graph.op("Unsqueeze", graph.op("Gather", weights, gram), graph.number([1])))
    share = graph.op("Reshape", share, graph.number([-1]))
    empty = graph.keep(np.zeros(index.count + 1, np.float32))
    return graph.cut(graph.op("ScatterElements", empty, rows, share, axis=0, reduction="add"), 0, index.count)


def _score_again(graph: _Graph, index: GramIndex, ids: str, weights: str, sums: str, top: int) -> None:
    """The cosine of the best candidates with all their grams; outputs `score` and `doc`."""
    candidates = min(max(CANDIDATES, top), index.count)
    graph.pair("TopK", sums, graph.number([candidates]), outs=["sum", "candidate"])
    grams = graph.op("Gather", graph.keep(index.grams), "candidate")
    stored = graph.op("Cast", graph.op("Gather", graph.keep(index.weights), "candidate"), to=TensorProto.FLOAT)
    stored = graph.op("Mul", stored, graph.number(1 / 255, np.float32))
    wanted = graph.op("Unsqueeze", graph.op("Cast", ids, to=TensorProto.INT32), graph.number([0, 1]))
    same = graph.op("Equal", graph.op("Unsqueeze", grams, graph.number([2])), wanted)
    asked = graph.op(
        "MatMul", graph.op("Cast", same, to=TensorProto.FLOAT), graph.op("Unsqueeze", weights, graph.number([1]))
    )
    product = graph.op("Mul", graph.op("Squeeze", asked, graph.number([2])), stored)
    cosine = graph.op("ReduceSum", product, graph.number([1]), keepdims=0)
    graph.pair("TopK", cosine, graph.number([top]), outs=[OUTPUTS[0], "place"])
    graph.op("Gather", "candidate", "place", out=OUTPUTS[1])
