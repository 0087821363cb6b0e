"""MiniLM in MLServer, which brings no ONNX Runtime of its own; its adaptive batching merges requests."""

from __future__ import annotations

import asyncio
from pathlib import Path

from mlserver import MLModel  # type: ignore[import-not-found]
from mlserver.codecs import NumpyCodec, StringCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceRequest, InferenceResponse  # type: ignore[import-not-found]

from benchmarks.encoding.peers.served.encoder import Encoder


class EncoderModel(MLModel):  # type: ignore[misc]
    """The model; ``extra`` of its settings has ``folder`` and ``threads``."""

    async def load(self) -> bool:
        """Load the graph."""
        parameters = self.settings.parameters
        extra = (parameters.extra if parameters else None) or {}
        self._encode = Encoder(Path(extra["folder"]), extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Encode the texts of a batch, beside the event loop."""
        texts = StringCodec.decode_input(payload.inputs[0])
        vectors = await asyncio.to_thread(self._encode, texts)
        return InferenceResponse(
            model_name=self.name, outputs=[NumpyCodec.encode_output("embedding", vectors)]
        )
