"""huggingface_hub against Headrace: the URL of a model decides what its generic tasks do."""

from __future__ import annotations

import sys

from huggingface_hub import InferenceClient, close_session


def main(url: str) -> None:
    """Generate with one model, embed with another, label with a third."""
    generator = InferenceClient(f"{url}/models/smollm2")
    answer = generator.text_generation("The capital of France is", max_new_tokens=4, details=True)
    tokens = answer.details.tokens if answer.details else []
    print(answer.generated_text, [token.id for token in tokens])
    for piece in generator.text_generation("One, two, three,", max_new_tokens=8, stream=True):
        print(piece, end="", flush=True)
    print()
    vectors = InferenceClient(f"{url}/models/minilm").feature_extraction("What is Deep Learning?")
    print(vectors.shape)
    labels = InferenceClient(f"{url}/models/sentiment").text_classification("this is good!")
    print(labels[0].label, round(labels[0].score, 3))
    close_session()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")
