"""An embedder folder made on the spot: a word-level tokenizer, and a table of vectors; chosen words have the same."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

SIZE = 16


def make_embedder(folder: Path, meanings: Sequence[Sequence[str]]) -> Path:
    """Words of one list get one vector; other words get none that matters. The output is one vector per token."""
    folder.mkdir()
    vocabulary = {"[UNK]": 0} | {word: i for i, word in enumerate((word for words in meanings for word in words), 1)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    table = np.zeros((len(vocabulary), SIZE), np.float32)
    for i, words in enumerate(meanings):
        for word in words:
            table[vocabulary[word], i] = 1.0
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["hidden"])],
        "embedder",
        [
            helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"]),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "tokens"]),
        ],
        [helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", "tokens", SIZE])],
        [numpy_helper.from_array(table, "table")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), folder / "model.onnx")
    return folder
