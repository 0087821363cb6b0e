"""Typed gRPC: tokens with their logprobs as they come, and a deadline that ends a long answer."""

from __future__ import annotations

import sys

import grpc

from headrace.v1 import generation_pb2, generation_pb2_grpc


def main(address: str) -> None:
    """Stream from the server's default generation model."""
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.GenerateStreamRequest(
            text="The capital of France is",
            parameters=generation_pb2.GenerationParameters(temperature=0, max_tokens=6, logprobs=1),
        )
        for event in stub.GenerateStream(request):
            for token in event.delta.tokens:
                print(f"{token.id:6} {token.logprob:7.3f} {token.text!r}")
        request.parameters.max_tokens = 4000
        request.parameters.ignore_eos = True
        pieces: list[str] = []
        try:
            pieces.extend(event.delta.text for event in stub.GenerateStream(request, timeout=1.0))
        except grpc.RpcError as error:
            print(error.code().name)  # DEADLINE_EXCEEDED: the server stopped computing, too


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:8001")
