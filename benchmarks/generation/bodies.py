"""The JSON that each wire wants for a greedy continuation."""

from __future__ import annotations

import json

from benchmarks.generation.words import Prompt


def completion(model: str, prompt: Prompt, new_tokens: int) -> bytes:
    """OpenAI's completions, streamed, with ids."""
    body = {
        "model": model, "prompt": prompt.ids, "max_tokens": new_tokens, "temperature": 0, "ignore_eos": True,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(body).encode()


def tgi(_: str, prompt: Prompt, new_tokens: int) -> bytes:
    """TGI's generate."""
    parameters = {"max_new_tokens": new_tokens, "do_sample": False}
    return json.dumps({"inputs": prompt.text, "parameters": parameters}).encode()


def compat(_: str, prompt: Prompt, new_tokens: int) -> bytes:
    """TGI's root route, which streams when the body says so."""
    parameters = {"max_new_tokens": new_tokens, "do_sample": False, "return_full_text": False}
    return json.dumps({"inputs": prompt.text, "parameters": parameters, "stream": True}).encode()


def triton_rest(_: str, prompt: Prompt, new_tokens: int) -> bytes:
    """Triton's generate extension."""
    return json.dumps({"text_input": prompt.text, "max_tokens": new_tokens, "temperature": 0}).encode()


def oicm(_: str, prompt: Prompt, new_tokens: int) -> bytes:
    """OICM's chat payload whose ``messages`` are a text: it is continued as it is, without a template."""
    body = {
        "messages": prompt.text, "max_new_tokens": new_tokens, "do_sample": False, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    return json.dumps(body).encode()
