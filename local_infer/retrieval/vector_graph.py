"""The index of stored questions for an embedder, as an ONNX model: one vector in, the most similar rows out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper

from local_infer.retrieval.ngram_graph import IR_VERSION, OPSET

INPUT = "vector"
_ROW, _ASKED = 127.0, 63.0
"""Greatest whole numbers of a row (int8) and of a question (uint8, 0 is 64). Unsigned by signed is what processors multiply
fast: 1 ms for 100,000 rows instead of 30. With 64 +- 63 no sum of two products is beyond 16 bits, at which some cut it off.
"""


def write_vector_graph(vectors: NDArray[np.float32], *, top: int = 8) -> bytes:
    """The model over `vectors` (rows of length 1): `vector` float32[d] -> `score` float32[top], `doc` int64[top].

    Rows are rounded to 8 bits of their greatest number, the question to 7 of its own: a quarter of the memory and of what
    is read for a question; the cosine is off by less than 0.01.
    """
    count, size = vectors.shape
    greatest = max(float(np.abs(vectors).max()), 1e-9)
    rows = np.rint(vectors.T * (_ROW / greatest)).astype(np.int8)
    nodes = [
        helper.make_node("Abs", [INPUT], ["sizes"]),
        helper.make_node("ReduceMax", ["sizes"], ["most"], keepdims=0),
        helper.make_node("Max", ["most", "least"], ["greatest"]),
        helper.make_node("Div", [INPUT, "greatest"], ["share"]),
        helper.make_node("Mul", ["share", "asked"], ["scaled"]),
        helper.make_node("Round", ["scaled"], ["round"]),
        helper.make_node("Add", ["round", "middle"], ["above"]),
        helper.make_node("Cast", ["above"], ["byte"], to=TensorProto.UINT8),
        helper.make_node("Unsqueeze", ["byte", "zero"], ["row"]),
        helper.make_node("MatMulInteger", ["row", "rows", "zero_point"], ["products"]),
        helper.make_node("Squeeze", ["products", "zero"], ["product"]),
        helper.make_node("Cast", ["product"], ["sum"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["greatest", "unit"], ["step"]),
        helper.make_node("Mul", ["sum", "step"], ["cosine"]),
        helper.make_node("TopK", ["cosine", "top"], ["score", "doc"]),
    ]
    constants = {
        "least": np.array(1e-9, np.float32),
        "asked": np.array(_ASKED, np.float32),
        "middle": np.array(_ASKED + 1, np.float32),
        "zero_point": np.array(_ASKED + 1, np.uint8),
        "unit": np.array(greatest / (_ASKED * _ROW), np.float32),
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
