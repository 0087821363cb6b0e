"""MiniLM in Triton's python backend: the requests that its batcher hands over are one batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # type: ignore[import-not-found]

from benchmarks.encoding.peers.served.encoder import Encoder


class TritonPythonModel:
    """The class that the backend looks for; its methods have the backend's names."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model that ``parameters`` of the configuration name."""
        parameters = json.loads(args["model_config"])["parameters"]
        folder, threads = (parameters[name]["string_value"] for name in ("folder", "threads"))
        self._encode = Encoder(Path(folder), int(threads))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Encode the texts of all requests together and give every request its own."""
        columns = [triton.get_input_tensor_by_name(each, "text").as_numpy().reshape(-1) for each in requests]
        vectors = self._encode([text.decode() for column in columns for text in column])
        parts = np.split(vectors, np.cumsum([len(column) for column in columns])[:-1])
        return [triton.InferenceResponse([triton.Tensor("embedding", part)]) for part in parts]
