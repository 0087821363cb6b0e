"""KServe's ModelStreamInfer as Triton's vLLM backend is asked by it: one request a call."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Final

from benchmarks.generation.client import Piece
from benchmarks.generation.events import grpc_messages
from benchmarks.generation.words import Prompt
from headrace.kserve.v2 import grpc_service_pb2 as kserve

TRITON_STREAM: Final = "/inference.GRPCInferenceService/ModelStreamInfer"


def triton_body(model: str, prompt: Prompt, new_tokens: int) -> bytes:
    """Ask for the text in pieces."""
    sampling = json.dumps({"max_tokens": new_tokens, "temperature": 0, "ignore_eos": True})
    request = kserve.ModelInferRequest(model_name=model)
    for name, value in (("text_input", prompt.text), ("sampling_parameters", sampling)):
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        raw = value.encode()
        request.raw_input_contents.append(struct.pack("<I", len(raw)) + raw)
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(b"\x01")
    return request.SerializeToString()


def triton_times(pieces: Sequence[Piece]) -> list[float]:
    """Return when each piece of text was there.

    Raises:
        ValueError: an answer is an error, or the last one is missing.
    """
    moments: list[float] = []
    final = False
    for moment, message in grpc_messages(pieces):
        answer = kserve.ModelStreamInferResponse.FromString(message)
        if answer.error_message:
            raise ValueError(f"the answer has an error: {answer.error_message}")
        moments.append(moment)
        final = answer.infer_response.parameters["triton_final_response"].bool_param
    if not final:
        raise ValueError("the answer has no final response")
    return moments
