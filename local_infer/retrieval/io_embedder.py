"""An operator's embedding model (tokenizer.json + model.onnx) as a `ModelPart`: texts in, vectors of length 1 out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.errors import NearpathError
from local_infer.generation.io_onnx import open_session

MODEL_FILE, TOKENIZER_FILE = "model.onnx", "tokenizer.json"
MOST_TOKENS = 512
_PIECE_BYTES = 1 << 20

Vector = NDArray[np.float32]


def embedder_digest(folder: Path) -> str:
    """What tells one embedder from another: vectors of two are never compared. NearpathError when a file is missing."""
    digest = hashlib.sha256()
    for name in (TOKENIZER_FILE, MODEL_FILE):
        try:
            with (folder / name).open("rb") as file:
                while piece := file.read(_PIECE_BYTES):
                    digest.update(piece)
        except OSError as error:
            raise NearpathError(
                f"{folder / name} cannot be read: {error.strerror}",
                f"an embedder folder has {TOKENIZER_FILE} and {MODEL_FILE}",
            ) from None
    return digest.hexdigest()[:16]


class Embedder:
    """The model's inputs are taken by name (input_ids, attention_mask, token_type_ids); its first output is the vector
    ([batch, d]) or token vectors ([batch, tokens, d]), of which the mean over real tokens is taken.
    """

    def __init__(self, folder: Path, providers: Sequence[str], threads: int) -> None:
        self._folder, self._providers, self._threads = folder, tuple(providers), threads
        self._session: Any = None
        self._tokenizer: Any = None

    @property
    def name(self) -> str:
        """For logs and metrics."""
        return "embedder"

    @property
    def loaded(self) -> bool:
        """Whether it holds memory."""
        return self._session is not None

    def load(self) -> None:
        """Load and run once; NearpathError when the folder cannot be used."""
        from tokenizers import Tokenizer  # 10 MB that only an embedder needs

        try:
            tokenizer = Tokenizer.from_file(str(self._folder / TOKENIZER_FILE))
        except Exception as error:
            # tokenizers raises bare Exception for whatever is wrong with the file.
            raise NearpathError(f"{self._folder / TOKENIZER_FILE} cannot be used", str(error)) from None
        tokenizer.enable_truncation(MOST_TOKENS)
        tokenizer.enable_padding()
        session = open_session(self._folder / MODEL_FILE, providers=self._providers, threads=self._threads)
        unknown = {i.name for i in session.get_inputs()} - {"input_ids", "attention_mask", "token_type_ids"}
        if unknown:
            raise NearpathError(
                f"{self._folder / MODEL_FILE} wants inputs {sorted(unknown)}", "export it as a sentence embedding model"
            )
        self._session, self._tokenizer = session, tokenizer
        self.run(["warm up"])

    def unload(self) -> None:
        """Give the memory back."""
        self._session = self._tokenizer = None

    def run(self, items: Sequence[str]) -> Sequence[Vector]:
        """One vector of length 1 per text."""
        encoded = self._tokenizer.encode_batch(list(items))
        mask = np.array([e.attention_mask for e in encoded], np.int64)
        given = {
            "input_ids": np.array([e.ids for e in encoded], np.int64),
            "attention_mask": mask,
            "token_type_ids": np.array([e.type_ids for e in encoded], np.int64),
        }
        wanted = {i.name: given[i.name] for i in self._session.get_inputs()}
        output = np.asarray(self._session.run(None, wanted)[0], np.float32)
        if output.ndim == 3:
            real = mask[:, :, None].astype(np.float32)
            output = (output * real).sum(axis=1) / np.maximum(real.sum(axis=1), 1)
        if output.ndim != 2:
            raise NearpathError(
                f"{self._folder / MODEL_FILE} gives an output of {output.ndim} dimensions", "want 2 or 3"
            )
        vectors: Vector = output / np.maximum(np.linalg.norm(output, axis=1, keepdims=True), 1e-9)
        return list(vectors)
