"""Calls models by ``https`` URLs with a token, as huggingface_hub does, and prints what it saw as JSON.

Usage: huggingface_tls.py URL TOKEN. Whom to trust is in the environment, where the client looks for it.
"""

from __future__ import annotations

import json
import sys

from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError


def main() -> None:
    url, token = sys.argv[1:]
    generator = InferenceClient(model=f"{url}/models/smollm2", token=token, timeout=100)
    embedder = InferenceClient(model=f"{url}/models/minilm", token=token, timeout=100)
    seen = {
        "text": generator.text_generation("The capital of France is", max_new_tokens=1, do_sample=False),
        "width": embedder.feature_extraction("x").shape[-1],
    }
    try:
        InferenceClient(model=f"{url}/models/minilm", token="hf_other").feature_extraction("x")
    except HfHubHTTPError as error:
        seen["refused"] = error.response.status_code
    json.dump(seen, sys.stdout)


main()
