"""The one way to onnxruntime: telemetry off before it is loaded, few threads that do not spin, providers that are there.

Nobody else imports onnxruntime. It is loaded at the first call, so a gateway without models does not carry its 30 MB.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.errors import NearpathError

TELEMETRY_OFF = "ORT_DISABLE_TELEMETRY"

_PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


def turn_telemetry_off() -> None:
    """Keep onnxruntime (and genai) in this process and its children from sending anything; before their import."""
    os.environ[TELEMETRY_OFF] = "1"


def load_onnxruntime() -> Any:
    """The module, telemetry off; NearpathError when it is not installed."""
    turn_telemetry_off()
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError as error:
        raise NearpathError(
            f"onnxruntime cannot be loaded ({error})",
            "install nearpath with the `infer` extra, or leave out `retrieval` and `generation`",
        ) from None
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def pick_providers(wanted: Sequence[str]) -> list[str]:
    """onnxruntime's names of the `wanted` execution providers (as in the configuration) that are installed, in order.

    The CPU is always last, as the one that is never missing.
    """
    there = set(load_onnxruntime().get_available_providers())
    names = [_PROVIDERS[word] for word in wanted if _PROVIDERS[word] in there]
    return [*dict.fromkeys(names), *([] if _PROVIDERS["cpu"] in names else [_PROVIDERS["cpu"]])]


def open_session(file: str | Path, *, providers: Sequence[str], threads: int) -> Any:
    """An InferenceSession on a model file; NearpathError when it is none."""
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Spinning threads would take both cores of a small machine from the gateway while they wait.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Shapes change with every question: a pattern or an arena of past shapes only holds memory.
    options.enable_mem_pattern = False
    options.enable_cpu_mem_arena = False
    try:
        return onnxruntime.InferenceSession(str(file), options, providers=pick_providers(providers))
    except Exception as error:
        # onnxruntime raises a class of its own for every status code, all directly below Exception.
        raise NearpathError(f"{file} cannot be used as a model", str(error).splitlines()[0]) from None
