"""MiniLM in KServe's model server; every thread has a session, so that several requests run at once."""

from __future__ import annotations

import argparse
import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer, model_server  # type: ignore[import-not-found]

from benchmarks.encoding.peers.served.encoder import Encoder

_OURS = threading.local()


class EncoderModel(Model):  # type: ignore[misc]
    """The model in ``sessions`` sessions of ``threads`` threads."""

    def __init__(self, folder: Path, sessions: int, threads: int) -> None:
        """Load the sessions."""
        super().__init__("minilm")
        barrier = threading.Barrier(sessions)

        def load() -> None:
            _OURS.encode = Encoder(folder, threads)
            barrier.wait()

        self._pool = ThreadPoolExecutor(sessions, initializer=load)
        for waiting in [self._pool.submit(int) for _ in range(sessions)]:
            waiting.result()
        self.ready = True

    async def predict(self, payload: InferRequest, *_: Any, **__: Any) -> InferResponse:
        """Encode the texts of one request, beside the event loop."""
        texts = [text.decode() for text in payload.inputs[0].as_numpy().reshape(-1)]
        vectors = await asyncio.get_running_loop().run_in_executor(self._pool, lambda: _OURS.encode(texts))
        output = InferOutput("embedding", list(vectors.shape), "FP32")
        output.set_data_from_numpy(vectors, binary_data=True)
        return InferResponse(payload.id, self.name, [output])


def main() -> None:
    """Serve; ports are options of KServe's own."""
    parser = argparse.ArgumentParser(parents=[model_server.parser])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--session-threads", type=int, required=True)
    words = parser.parse_args()
    model = EncoderModel(words.folder, words.sessions, words.session_threads)
    ModelServer(http_port=words.http_port, grpc_port=words.grpc_port, workers=1).start([model])


if __name__ == "__main__":
    main()
