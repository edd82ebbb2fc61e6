"""onnxruntime is loaded only with its telemetry turned off, and a session is opened with what is installed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from core.errors import NearpathError
from local_infer.generation.io_onnx import open_session, pick_providers

ROOT = Path(__file__).parents[2]

# An import hook sees the environment at the very moment onnxruntime is looked for.
SEEN = """
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            print(os.environ.get("ORT_DISABLE_TELEMETRY"), flush=True)
        return None
sys.meta_path.insert(0, Finder())
import local_infer.generation.io_onnx as io_onnx
print("onnxruntime" in sys.modules, flush=True)
io_onnx.load_onnxruntime()
"""


def test_telemetry_is_off_before_the_import_and_nothing_is_loaded_early() -> None:
    env = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SEEN], env=env, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "1"]


def test_only_io_onnx_and_the_generator_process_import_the_runtimes() -> None:
    users = {
        path.name
        for path in (ROOT / "local_infer").rglob("*.py")
        if re.search(r"""(import|from) onnxruntime|import_module\(["']onnxruntime""", path.read_text("utf-8"))
    }
    assert "io_onnx.py" in users
    assert users <= {"io_onnx.py", "io_generator_child.py"}


def test_providers_are_cut_to_what_is_installed() -> None:
    assert pick_providers(["cpu"]) == ["CPUExecutionProvider"]
    assert pick_providers(["tensorrt", "cuda", "cpu"])[-1] == "CPUExecutionProvider"
    assert "AzureExecutionProvider" not in pick_providers(["tensorrt", "cuda"])


def test_what_is_no_model(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"no model")
    with pytest.raises(NearpathError, match="cannot be used as a model"):
        open_session(file, providers=["cpu"], threads=1)
