"""The index of stored questions for an embedder, as an ONNX model: one vector in, the most similar rows out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from local_infer.retrieval.ngram_graph import IR_VERSION, OPSET

INPUT = "vector"
_SCALE = 127.0


def write_vector_graph(vectors: NDArray[np.float32], *, top: int = 8) -> bytes:
    """The model over `vectors` (rows of length 1): `vector` float32[d] -> `score` float32[top], `doc` int64[top].

    Rows and question are rounded to 8 bits: a quarter of the memory and of what is read for a question; the cosine is off
    by less than 0.01.
    """
    count, size = vectors.shape
    rows = np.rint(vectors.T * _SCALE).astype(np.int8)
    nodes = [
        helper.make_node("Mul", [INPUT, "scale"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["round"]),
        helper.make_node("Cast", ["round"], ["byte"], to=TensorProto.INT8),
        helper.make_node("Unsqueeze", ["byte", "zero"], ["row"]),
        helper.make_node("MatMulInteger", ["row", "rows"], ["products"]),
        helper.make_node("Squeeze", ["products", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["sum"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["sum", "square"], ["cosine"]),
        helper.make_node("TopK", ["cosine", "top"], ["score", "doc"]),
    ]
    constants = {
        "scale": np.array(_SCALE, np.float32),
        "square": np.array(_SCALE * _SCALE, np.float32),
        "zero": np.array([0], np.int64),
        "top": np.array([min(top, count)], np.int64),
        "rows": rows,
    }
    graph = helper.make_graph(
        nodes,
        "vectors",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [size])],
        [
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["k"]),
            helper.make_tensor_value_info("doc", TensorProto.INT64, ["k"]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data
