"""Text Embeddings Inference over REST, through Envoy: one test for each row of its contract.

What needs a re-ranker, SPLADE or a full queue is in ``tests/unit/families/test_endpoint_encoders.py``.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import requests

if TYPE_CHECKING:
    from running import ServerProcess

INVALID = "Input validation error: "
TEXT = "Paris is the capital of France."
LONG = "word " * 400
INFO = {
    "model_id", "model_sha", "model_dtype", "served_model_name", "model_type", "max_concurrent_requests",
    "max_input_length", "max_batch_tokens", "max_batch_requests", "max_client_batch_size", "auto_truncate",
    "tokenization_workers", "version", "sha", "docker_label",
}  # fmt: skip
COMPUTE = {
    "x-compute-type", "x-compute-time", "x-compute-characters", "x-compute-tokens", "x-total-time",
    "x-tokenization-time", "x-queue-time", "x-inference-time",
}  # fmt: skip
BODIES = {
    "/embed": {"inputs": TEXT},
    "/embed_all": {"inputs": TEXT},
    "/predict": {"inputs": TEXT, "model": "sentiment"},
    "/rerank": {"query": "a", "texts": [TEXT]},
    "/similarity": {"inputs": {"source_sentence": "a", "sentences": [TEXT]}},
    "/models/minilm": {"inputs": TEXT},
    "/v1/embeddings": {"input": TEXT},
    "/classify": {"inputs": TEXT},
}


@pytest.fixture
def post(server: ServerProcess) -> Any:
    def send(path: str, body: Any, status: int = 200) -> Any:
        options: Any = {"data": body} if isinstance(body, bytes) else {"json": body}
        answer = requests.post(f"{server.url}{path}", timeout=100, **options)
        assert answer.status_code == status, answer.text
        return answer

    return send


@pytest.fixture
def ids(post: Any) -> list[int]:
    (tokens,) = post("/tokenize", {"inputs": TEXT, "model": "minilm"}).json()
    return [token["id"] for token in tokens]


def close(first: Any, second: Any) -> None:
    np.testing.assert_allclose(np.array(first), np.array(second), atol=1e-5)


def test_input_is_a_text_or_token_ids(post: Any, ids: list[int]) -> None:
    """A flat list of integers is one input, a list of lists a batch, and a list may mix them with texts."""
    (vector,) = post("/embed", {"inputs": TEXT}).json()
    close(post("/embed", {"inputs": ids}).json(), [vector])
    close(post("/embed", {"inputs": [ids, TEXT]}).json(), [vector, vector])
    close(post("/embed", {"inputs": [ids]}).json(), [vector])


def test_predict_input_is_a_text_a_pair_or_a_batch(post: Any) -> None:
    def labels(inputs: Any) -> Any:
        return post("/predict", {"inputs": inputs, "model": "sentiment"}).json()

    single = labels("good")
    assert labels(["good"]) == single
    pair = labels(["good", "bad"])
    assert len(pair) == 3
    assert pair[0]["score"] != pytest.approx(single[0]["score"], abs=1e-4)
    batch = labels([["good"], ["good", "bad"]])
    assert [row[0]["label"] for row in batch] == [single[0]["label"], pair[0]["label"]]


@pytest.mark.parametrize(("inputs", "length"), [(["a", "b", "c"], 3), ([], 0), ([["a"], []], 0)])
def test_predict_input_of_another_length(post: Any, inputs: Any, length: int) -> None:
    answer = post("/predict", {"inputs": inputs, "model": "sentiment"}, 422).json()
    assert f"invalid length {length}, expected a string, a pair of strings" in answer["error"]


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/embed", {"inputs": []}, "`inputs` cannot be empty"),
        ("/embed", {"inputs": ""}, f"{INVALID}`inputs` cannot be empty"),
        ("/embed", {"inputs": [[]]}, f"{INVALID}`inputs` cannot be empty"),
        ("/predict", {"inputs": ["", ""], "model": "sentiment"}, f"{INVALID}`inputs` cannot be empty"),
        ("/rerank", {"query": "a", "texts": []}, "`texts` cannot be empty"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": []}},
            "`inputs.sentences` cannot be empty",
        ),
        ("/tokenize", {"inputs": [], "model": "minilm"}, "`inputs` cannot be empty"),
        ("/tokenize", {"inputs": "", "model": "minilm"}, f"{INVALID}`inputs` cannot be empty"),
        ("/decode", {"ids": []}, f"{INVALID}`input_ids` cannot be empty"),
    ],
)
def test_empty(post: Any, path: str, body: Any, error: str) -> None:
    assert post(path, body, 400).json() == {"error": error, "error_type": "Empty"}


def test_a_pair_is_empty_only_when_both_halves_are(post: Any) -> None:
    assert len(post("/predict", {"inputs": ["good", ""], "model": "sentiment"}).json()) == 3


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/embed", {"inputs": ["a"] * 33}),
        ("/embed_all", {"inputs": ["a"] * 33}),
        ("/embed_sparse", {"inputs": ["a"] * 33}),
        ("/predict", {"inputs": [["a"]] * 33, "model": "sentiment"}),
        ("/rerank", {"query": "a", "texts": ["a"] * 33}),
        ("/similarity", {"inputs": {"source_sentence": "a", "sentences": ["a"] * 33}}),
        ("/tokenize", {"inputs": ["a"] * 33, "model": "minilm"}),
        ("/decode", {"ids": [[101]] * 33}),
        ("/models/minilm", {"inputs": ["a"] * 33}),
    ],
)
def test_batch_is_too_long(post: Any, path: str, body: Any) -> None:
    assert post(path, body, 422).json() == {
        "error": "batch size 33 > maximum allowed batch size 32",
        "error_type": "Validation",
    }


@pytest.mark.parametrize("path", ["/embed", "/embed_all", "/models/minilm"])
def test_input_is_too_long_without_truncation(post: Any, path: str) -> None:
    error = f"{INVALID}`inputs` must have less than 256 tokens. Given: 402"
    assert post(path, {"inputs": LONG, "truncate": False}, 422).json() == {
        "error": error,
        "error_type": "Validation",
    }
    characters = post(path, {"inputs": "a" * 64_001, "truncate": False}, 422).json()["error"]
    assert characters == f"{INVALID}`inputs` must have less than 64000 characters. Given: 64001"


def test_input_is_truncated_by_default(post: Any) -> None:
    cut = post("/embed", {"inputs": LONG}).json()
    close(cut, post("/embed", {"inputs": "word " * 254}).json())
    for given in (True, None):
        close(cut, post("/embed", {"inputs": LONG, "truncate": given}).json())
    assert post("/embed", {"inputs": LONG}).headers["x-compute-tokens"] == "256"


@pytest.mark.parametrize("side", ["Left", "left"])
def test_truncation_direction(post: Any, side: str) -> None:
    text = LONG + "paris"
    end = post("/embed", {"inputs": "word " * 253 + "paris"}).json()
    close(post("/embed", {"inputs": text, "truncation_direction": side}).json(), end)
    head = post("/embed", {"inputs": text, "truncation_direction": "Right"}).json()
    assert abs(np.array(head) - np.array(end)).max() > 1e-3
    wrong = post("/embed", {"inputs": text, "truncation_direction": "up"}, 422).json()
    assert wrong["error_type"] == "Validation"


def test_prompt_name_of_a_model_without_prompts(post: Any) -> None:
    answer = post("/embed", {"inputs": "a", "prompt_name": "query"}, 422).json()
    assert answer == {
        "error": f"{INVALID}`default-prompt-name` is set to `query` but no prompts were found in the "
        "Sentence Transformers configuration",
        "error_type": "Validation",
    }


def test_embed(post: Any) -> None:
    """Always a list of vectors, of length 1 by default; ``dimensions`` are cut before that."""
    (vector,) = post("/embed", {"inputs": TEXT}).json()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
    (raw,) = post("/embed", {"inputs": TEXT, "normalize": False}).json()
    close(np.array(raw) / np.linalg.norm(raw), vector)
    (short,) = post("/embed", {"inputs": TEXT, "dimensions": 8}).json()
    close(short, np.array(raw[:8]) / np.linalg.norm(raw[:8]))


@pytest.mark.parametrize(
    ("dimensions", "error"),
    [
        (0, "`dimensions` should be positive"),
        (385, "`dimensions` should be smaller than the maximum embedding dimension."),
    ],
)
def test_dimensions_are_in_range(post: Any, dimensions: int, error: str) -> None:
    answer = post("/embed", {"inputs": "a", "dimensions": dimensions}, 422).json()
    assert answer["error"].startswith(INVALID + error)
    assert answer["error_type"] == "Validation"


def test_embed_all(post: Any, ids: list[int]) -> None:
    (tokens,) = post("/embed_all", {"inputs": TEXT}).json()
    assert (len(tokens), len(tokens[0])) == (len(ids), 384)
    close(post("/embed_all", {"inputs": ids}).json(), [tokens])


def test_predict(post: Any) -> None:
    """All labels, by descending score, which are softmax or the logits themselves."""
    body = {"inputs": TEXT, "model": "sentiment"}
    answer = post("/predict", body).json()
    scores = [entry["score"] for entry in answer]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1, abs=1e-5)
    raw = np.array([entry["score"] for entry in post("/predict", body | {"raw_scores": True}).json()])
    close(np.exp(raw) / np.exp(raw).sum(), scores)


def test_rerank(post: Any) -> None:
    texts = ["Bananas are yellow.", TEXT]
    body = {"query": "capital of France", "texts": texts}
    answer = post("/rerank", body).json()
    assert [set(entry) for entry in answer] == [{"index", "score"}] * 2
    assert answer[0]["index"] == 1
    assert answer[0]["score"] > answer[1]["score"]
    told = post("/rerank", body | {"return_text": True}).json()
    assert [entry["text"] for entry in told] == [texts[1], texts[0]]


def test_similarity(post: Any) -> None:
    inputs = {"source_sentence": TEXT, "sentences": ["Bananas.", TEXT]}
    other, same = post("/similarity", {"inputs": inputs, "parameters": {"truncate": True}}).json()
    assert same == pytest.approx(1, abs=1e-5)
    assert other < same


def test_tokenize(post: Any) -> None:
    (tokens,) = post("/tokenize", {"inputs": "Hi Zoë", "model": "minilm"}).json()
    assert set(tokens[0]) == {"id", "text", "special", "start", "stop"}
    assert (tokens[0]["text"], tokens[0]["special"], tokens[0]["start"]) == ("[CLS]", True, None)
    assert [token["text"] for token in tokens[1:-1]] == ["Hi", "Zoë"]
    (plain,) = post("/tokenize", {"inputs": "Hi", "model": "minilm", "add_special_tokens": False}).json()
    assert [(token["start"], token["stop"]) for token in plain] == [(0, 2)]


def test_decode(post: Any, ids: list[int]) -> None:
    text = TEXT.lower()
    assert post("/decode", {"ids": ids}).json() == [text]
    assert post("/decode", {"ids": [ids, ids]}).json() == [text, text]
    special = post("/decode", {"ids": ids, "skip_special_tokens": False}).json()
    assert special == [f"[CLS] {text} [SEP]"]


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openai_embeddings(post: Any, path: str, ids: list[int]) -> None:
    answer = post(path, {"input": [TEXT, "a"], "user": "u"}).json()
    assert (answer["object"], answer["model"]) == ("list", "minilm")
    assert [(entry["object"], entry["index"]) for entry in answer["data"]] == [
        ("embedding", 0),
        ("embedding", 1),
    ]
    assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] == len(ids) + 3
    vector = answer["data"][0]["embedding"]
    close(post("/embed", {"inputs": TEXT}).json(), [vector])
    packed = post(path, {"input": ids, "encoding_format": "base64"}).json()["data"][0]["embedding"]
    close(np.frombuffer(base64.b64decode(packed), "<f4"), vector)
    (short,) = post(path, {"input": TEXT, "dimensions": 4}).json()["data"]
    assert len(short["embedding"]) == 4


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_openai_errors_have_both_forms(post: Any, path: str) -> None:
    """TEI's clients read the top level, OpenAI's ``error``."""
    answer = post(path, {"input": []}, 400).json()
    assert answer["code"] == 400
    assert answer["type"] == "Empty"
    assert answer["message"] == answer["error"]["message"] == "`input` cannot be empty"


def test_vertex(post: Any) -> None:
    rank = {"query": "a", "texts": ["b", "a"]}
    answer = post("/models/minilm/proxy/vertex", {"instances": [{"inputs": "a"}, rank]}).json()
    vectors, ranks = answer["predictions"]
    close(vectors, post("/embed", {"inputs": "a"}).json())
    assert [entry["index"] for entry in ranks] == [1, 0]


@pytest.mark.parametrize("path", BODIES)
def test_compute_headers(post: Any, path: str) -> None:
    headers = post(path, BODIES[path]).headers
    assert {name.lower() for name in headers} >= COMPUTE
    assert headers["x-compute-type"] in {"cpu", "cuda"}
    assert int(headers["x-compute-tokens"]) > 2
    for name in COMPUTE - {"x-compute-type"}:
        assert headers[name].isdigit()


@pytest.mark.parametrize(
    ("path", "body"), [("/tokenize", {"inputs": "a", "model": "minilm"}), ("/decode", {"ids": [1]})]
)
def test_no_compute_headers(post: Any, path: str, body: Any) -> None:
    assert "x-compute-type" not in post(path, body).headers


def test_info(server: ServerProcess) -> None:
    answer = requests.get(f"{server.url}/models/minilm/info", timeout=100)
    info = answer.json()
    assert set(info) == INFO
    assert (info["max_input_length"], info["max_client_batch_size"], info["auto_truncate"]) == (256, 32, True)
    assert "x-compute-type" not in answer.headers


RANKED = {"query": "a", "texts": ["b"]}


@pytest.mark.parametrize(
    ("path", "body", "model", "error"),
    [
        ("/embed", {"inputs": "a"}, "sentiment", "Model is not an embedding model"),
        ("/embed_all", {"inputs": "a"}, "sentiment", "Model is not an embedding model"),
        ("/predict", {"inputs": "a"}, "minilm", "model is not a classifier model"),
        ("/rerank", RANKED, "smollm2", "model is not a re-ranker model"),
        ("/rerank", RANKED, "sentiment", "model is not a re-ranker model"),
        ("/embed_sparse", {"inputs": "a"}, "minilm", "Model is not an embedding model with SPLADE pooling"),
    ],
)
def test_model_of_another_kind(post: Any, path: str, body: Any, model: str, error: str) -> None:
    answer = post(path, body | {"model": model}, 424).json()
    assert answer["error"].startswith(f"Backend error: {error}")
    assert answer["error_type"] == "Backend"


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"", 400), (b"[1]", 422), (b'{"inputs": {}}', 422), (b'{"truncate": true}', 422)],
)
@pytest.mark.parametrize("path", ["/embed", "/embed_all", "/embed_sparse", "/rerank", "/similarity"])
def test_json_errors(post: Any, path: str, body: bytes, status: int) -> None:
    answer = post(path, body, status).json()
    assert set(answer) == {"error", "error_type"}
    assert answer["error_type"] == "Validation"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({"inputs": {}, "model": "minilm"}, 422, "Validation"),
        ({"inputs": [[1]], "model": "minilm"}, 422, "Validation"),
        ({"inputs": "a", "model": "minilm", "add_special_tokens": "?"}, 422, "Validation"),
        ({"inputs": "a", "model": "nope"}, 404, "ModelNotFound"),
    ],
)
def test_json_errors_of_tokenize(post: Any, body: Any, status: int, kind: str) -> None:
    """A body with ``inputs`` is TEI's, and TGI's where the model generates; any other is vLLM's."""
    answer = post("/tokenize", body, status).json()
    assert set(answer) == {"error", "error_type"}
    assert answer["error_type"] == kind
    if status == 422:
        assert post("/tokenize", body | {"model": "smollm2"}, 422).json()["error_type"] == "validation"


def test_unknown_and_null_fields(post: Any) -> None:
    nothing: dict[str, Any] = {
        "truncate": None,
        "normalize": None,
        "dimensions": None,
        "prompt_name": None,
        "zzz": {},
    }
    close(post("/embed", {"inputs": "a", **nothing}).json(), post("/embed", {"inputs": "a"}).json())
