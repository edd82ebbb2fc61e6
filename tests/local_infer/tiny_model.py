"""A model folder for onnxruntime-genai, made on the spot: a byte-level tokenizer and a graph that recites a given answer.

It is a real model to the library: it has a tokenizer, a chat template and a key-value cache (where it keeps the token ids).
What it says depends only on how far the last `<|im_start|>` is behind, so every prompt gets the same answer. Each byte of
a Chinese character is a token of its own, as those of rare characters are in real models.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CONTEXT = 512
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEAD = 4
_BESIDES = -20.0


def build_model(folder: Path, answer: str, *, work: int = 0) -> Path:
    """Write the folder; the model answers `answer`, with `work` products of 512 x 512 matrices for each token."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.token_to_id("<|im_end|>")
    start = tokenizer.token_to_id("<|im_start|>")
    head = tokenizer.encode("assistant\n").ids
    said = tokenizer.encode(answer).ids
    onnx.save(_graph(tokenizer.get_vocab_size(), start, len(head), [*said, end], work), folder / "model.onnx")
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": TEMPLATE,
        "model_max_length": CONTEXT,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
    (folder / "genai_config.json").write_text(json.dumps(_genai(tokenizer.get_vocab_size(), end)), "utf-8")
    return folder


def _tokenizer() -> Tokenizer:
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names])
    return tokenizer


def _graph(vocab: int, start: int, head: int, said: list[int], work: int) -> onnx.ModelProto:
    # Row o of the table: what follows the o-th token after <|im_start|>.
    table = np.full((head + len(said), vocab), _BESIDES, np.float32)
    table[:head, said[-1]] = 0
    for i, token in enumerate(said):
        table[head + i, token] = 20
    node, tensor = helper.make_node, helper.make_tensor_value_info
    nodes = [
        node("Cast", ["input_ids"], ["ids"], to=TensorProto.FLOAT),
        node("Unsqueeze", ["ids", "places"], ["column"]),  # [b, 1, s, 1]
        node("Tile", ["column", "widths"], ["kv"]),
        node("Concat", ["past_key_values.0.key", "kv"], ["present.0.key"], axis=2),
        node("Concat", ["past_key_values.0.value", "kv"], ["present.0.value"], axis=2),
        # where the last <|im_start|> is, over all tokens so far
        node("Slice", ["present.0.key", "zero", "one", "three"], ["all4"]),
        node("Reshape", ["all4", "flat"], ["all"]),
        node("Equal", ["all", "start"], ["is_start"]),
        node("Cast", ["is_start"], ["marks"], to=TensorProto.INT64),
        node("ArgMax", ["marks"], ["at"], axis=0, select_last_index=1, keepdims=1),
        # offsets of the new tokens behind it
        node("Shape", ["all"], ["total"]),
        node("Shape", ["input_ids"], ["shape"]),
        node("Gather", ["shape", "one"], ["new"]),
        node("Sub", ["total", "new"], ["past"]),
        node("Squeeze", ["past"], ["from"]),
        node("Squeeze", ["total"], ["to"]),
        node("Range", ["from", "to", "step"], ["positions"]),
        node("Sub", ["positions", "at"], ["behind"]),
        node("Clip", ["behind", "low", "high"], ["rows"]),
        node("Gather", ["table", "rows"], ["logits2"]),
        node("Unsqueeze", ["logits2", "zero"], ["logits3"]),
    ]
    last = "logits3"
    if work:
        nodes += [
            node("ReduceMax", ["ids"], ["seed"], keepdims=0),
            node("Mul", ["seed", "nothing"], ["none"]),
            node("Add", ["matrix", "none"], ["m0"]),
            *(node("MatMul", [f"m{i}", "matrix"], [f"m{i + 1}"]) for i in range(work)),
            node("ReduceMax", [f"m{work}"], ["most"], keepdims=0),
            node("Mul", ["most", "nothing"], ["added"]),
            node("Add", ["logits3", "added"], ["logits4"]),
        ]
        last = "logits4"
    nodes.append(node("Identity", [last], ["logits"]))
    whole = {
        "places": [1, 3], "widths": [1, 1, 1, _HEAD], "zero": [0], "one": [1], "three": [3], "flat": [-1],
    }  # fmt: skip
    constants = [numpy_helper.from_array(np.array(value, np.int64), name) for name, value in whole.items()]
    constants += [
        numpy_helper.from_array(np.array(1, np.int64), "step"),
        numpy_helper.from_array(np.array(0, np.int64), "low"),
        numpy_helper.from_array(np.array(len(table) - 1, np.int64), "high"),
        numpy_helper.from_array(np.array([start], np.float32), "start"),
        numpy_helper.from_array(table, "table"),
    ]
    if work:
        constants.append(numpy_helper.from_array(np.full((512, 512), 1 / 512, np.float32), "matrix"))
        constants.append(numpy_helper.from_array(np.zeros((), np.float32), "nothing"))
    cache = [tensor(f"past_key_values.0.{k}", TensorProto.FLOAT, ["b", 1, "p", _HEAD]) for k in ("key", "value")]
    grown = [tensor(f"present.0.{k}", TensorProto.FLOAT, ["b", 1, "t", _HEAD]) for k in ("key", "value")]
    graph = helper.make_graph(
        nodes,
        "recital",
        [
            tensor("input_ids", TensorProto.INT64, ["b", "s"]),
            tensor("attention_mask", TensorProto.INT64, ["b", "t"]),
            *cache,
        ],
        [tensor("logits", TensorProto.FLOAT, ["b", "s", vocab]), *grown],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def _genai(vocab: int, end: int) -> dict[str, object]:
    return {
        "model": {
            "bos_token_id": end,
            "eos_token_id": [end],
            "pad_token_id": 0,
            "context_length": CONTEXT,
            "type": "qwen2",
            "vocab_size": vocab,
            "decoder": {
                "session_options": {"log_id": "tiny", "provider_options": []},
                "filename": "model.onnx",
                "head_size": _HEAD,
                "hidden_size": _HEAD,
                "num_attention_heads": 1,
                "num_hidden_layers": 1,
                "num_key_value_heads": 1,
                "inputs": {
                    "input_ids": "input_ids",
                    "attention_mask": "attention_mask",
                    "past_key_names": "past_key_values.%d.key",
                    "past_value_names": "past_key_values.%d.value",
                },
                "outputs": {
                    "logits": "logits",
                    "present_key_names": "present.%d.key",
                    "present_value_names": "present.%d.value",
                },
            },
        },
        "search": {"do_sample": False, "max_length": CONTEXT, "past_present_share_buffer": False},
    }
