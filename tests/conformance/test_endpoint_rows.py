"""The paths that mean what the model does, through Envoy: a test for each row of the features.

T10 to T13 are SageMaker's, T17, T18 and M26 Hugging Face's and MindIE's names for the same paths.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import requests

if TYPE_CHECKING:
    from running import ServerProcess

PROMPT = "The capital of France is"
SHORT = {"max_new_tokens": 4, "do_sample": False}
TEXT = " Paris.\n\n"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
RANKING = {"query": "capital of France", "texts": ["Bananas are yellow.", "Paris is the capital of France."]}
SIMILAR = {"source_sentence": "Paris", "sentences": ["Paris", "Bananas"]}


@pytest.fixture
def post(server: ServerProcess) -> Any:
    def send(path: str, body: Any, status: int = 200, **options: Any) -> Any:
        data = body if isinstance(body, (bytes, str)) else json.dumps(body)
        answer = requests.post(f"{server.url}{path}", data=data, timeout=100, **options)
        assert answer.status_code == status, answer.text
        return answer

    return send


@pytest.fixture
def get(server: ServerProcess) -> Any:
    def ask(path: str, status: int = 200) -> Any:
        answer = requests.get(f"{server.url}{path}", timeout=100)
        assert answer.status_code == status, answer.text
        return answer

    return ask


def events(answer: Any) -> Iterator[dict[str, Any]]:
    assert answer.headers["content-type"].startswith("text/event-stream")
    for line in answer.text.split("\n\n"):
        if line and not line.startswith(":"):
            yield json.loads(line.removeprefix("data: "))


def test_t10_invocations_chat(post: Any) -> None:
    body = {"messages": QUESTION, "max_tokens": 8, "temperature": 0}
    answer = post("/invocations", body).json()
    assert answer["object"] == "chat.completion"
    assert "Paris" in answer["choices"][0]["message"]["content"]
    streamed = post("/invocations", body | {"stream": True}).text
    assert '"object":"chat.completion.chunk"' in streamed
    assert streamed.endswith("data: [DONE]\n\n")


def test_t11_invocations_generate(post: Any) -> None:
    """As at SageMaker, the prompt stands before the text; ``inputs`` goes before the other keys."""
    body = {"inputs": PROMPT, "parameters": SHORT}
    answer = post("/invocations", body)
    assert answer.json() == [{"generated_text": PROMPT + TEXT}]
    assert answer.headers["x-generated-tokens"] == "4"
    assert post("/invocations", body | {"messages": QUESTION, "prompt": "a"}).json() == answer.json()
    *_, last = events(post("/invocations", body | {"stream": True}))
    assert last["generated_text"] == PROMPT + TEXT


def test_t12_invocations_completion(post: Any) -> None:
    answer = post("/invocations", {"prompt": PROMPT, "max_tokens": 4, "temperature": 0}).json()
    assert (answer["object"], answer["choices"][0]["text"]) == ("text_completion", TEXT)
    both = post("/invocations", {"prompt": "a", "messages": QUESTION, "max_tokens": 2}).json()
    assert both["object"] == "chat.completion"


def test_invocations_of_encoders(post: Any) -> None:
    """vLLM's bodies: vectors or classes by the model, rankings and scores."""
    path = "/models/minilm/proxy"
    for body, route in (
        ({"input": "Paris"}, "/v1/embeddings"),
        ({"query": "Paris", "documents": ["Paris", "Bananas"]}, "/v1/rerank"),
        ({"data_1": "Paris", "data_2": "Bananas"}, "/score"),
    ):
        answers = [post(path + given, body).json() for given in ("/invocations", route)]
        for answer in answers:
            del answer["id"]
            answer.pop("created", None)
        assert answers[0] == answers[1]
    labels = post("/invocations", {"input": "I love this", "model": "sentiment"}).json()
    assert labels["data"][0]["label"] == "positive"


def test_t13_ping(get: Any, post: Any) -> None:
    assert get("/ping").text == ""
    assert post("/ping", "").text == ""


def test_t17_root(post: Any) -> None:
    assert post("/", {"inputs": PROMPT, "parameters": SHORT}).json() == [{"generated_text": PROMPT + TEXT}]
    given = {"inputs": PROMPT, "parameters": SHORT | {"return_full_text": False, "details": True}}
    (answer,) = post("/", given).json()
    assert answer["generated_text"] == TEXT
    assert answer["details"]["generated_tokens"] == 4


def test_t18_info(get: Any) -> None:
    info = get("/info").json()
    assert info["model_id"] == "smollm2"
    assert info["router"] == "text-generation-router"
    assert info["max_input_tokens"] == info["max_total_tokens"] - 1
    assert info == get("/models/smollm2/proxy/info").json() == get("/info?model_id=smollm2").json()


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("minilm", {"embedding": {"pooling": "mean"}}),
        (
            "sentiment",
            {
                "classifier": {
                    "id2label": {"0": "negative", "1": "neutral", "2": "positive"},
                    "label2id": {"negative": 0, "neutral": 1, "positive": 2},
                }
            },
        ),
    ],
)
def test_t18_info_of_encoders(get: Any, model: str, kind: Any) -> None:
    info = get(f"/models/{model}/info").json()
    assert (info["model_id"], info["model_type"]) == (model, kind)
    assert info["max_client_batch_size"] == 32


def test_t18_info_of_what_takes_no_text(get: Any) -> None:
    answer = get("/models/iris/info", 422).json()
    assert answer["error"].endswith("takes no text: it is described by /v2/models/iris")
    assert get("/models/nope/info", 404).json()["error_type"] == "model_not_found"


def test_m26_root_streams(post: Any) -> None:
    """``curl -d`` without a content type, as the row has it."""
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    body = {"inputs": PROMPT, "parameters": SHORT, "stream": True}
    found = list(events(post("/", body, headers=form)))
    assert "".join(event["token"]["text"] for event in found) == TEXT
    assert [event["generated_text"] for event in found] == [None, None, None, PROMPT + TEXT]
    assert post("/", body | {"stream": False}, headers=form).json() == [{"generated_text": PROMPT + TEXT}]


@pytest.mark.parametrize("path", ["/", "/invocations", "/models/minilm", "/models/minilm/proxy/"])
def test_root_embeds_and_compares(post: Any, path: str) -> None:
    plain = post("/embed", {"inputs": ["Paris", "Bananas"], "dimensions": 3, "normalize": False}).json()
    options = {"dimensions": 3, "normalize": False}
    assert post(path, {"inputs": ["Paris", "Bananas"], **options}).json() == plain
    assert post(path, {"inputs": ["Paris", "Bananas"], "parameters": options}).json() == plain
    same, other = post(path, {"inputs": SIMILAR}).json()
    assert same > 0.99 > other
    first, second = post(path, RANKING).json()
    assert (first["index"], second["index"]) == (1, 0)


def test_root_classifies(post: Any) -> None:
    """The answer to one text is flat as TEI's; in a pipeline's form it is a list of lists."""
    plain = post("/predict", {"inputs": "good", "model": "sentiment"}).json()
    assert post("/models/sentiment", {"inputs": "good"}).json() == plain
    assert post("/models/sentiment", {"inputs": "good", "parameters": {}}).json() == [plain]
    assert post("/models/sentiment", {"inputs": "good", "parameters": {"top_k": 1}}).json() == [plain[:1]]
    two = post("/models/sentiment", {"inputs": ["good", "bad"], "parameters": {"top_k": 1}}).json()
    assert [len(labels) for labels in two] == [1, 1]
    raw = post("/models/sentiment", {"inputs": "good", "parameters": {"function_to_apply": "none"}}).json()
    logits = post("/predict", {"inputs": "good", "model": "sentiment", "raw_scores": True}).json()
    assert raw == [logits]
    soft = {"function_to_apply": "softmax", "top_k": 2}
    ((best, _),) = post("/models/sentiment", {"inputs": "good", "parameters": soft}).json()
    assert best == pytest.approx(plain[0])


def test_root_of_a_classical_model(post: Any) -> None:
    body = {"inputs": [[5.1, 3.5, 1.4, 0.2]]}
    assert post("/models/iris", body).json() == post("/predict", body | {"model": "iris"}).json()


@pytest.mark.parametrize(
    ("path", "body", "status", "error", "kind"),
    [
        ("/", {"inputs": "a", "parameters": {"temperature": 0}}, 422, "strictly positive", "validation"),
        ("/models/smollm2", RANKING, 422, "Ranking is not what model 'smollm2' does", "validation"),
        ("/models/smollm2", {"inputs": SIMILAR}, 422, "Sentence similarity is not", "validation"),
        ("/models/sentiment", {"inputs": SIMILAR}, 422, "Sentence similarity is not", "Validation"),
        ("/models/sentiment", {}, 422, "This is not what model 'sentiment' does", "Validation"),
        ("/models/sentiment", RANKING, 424, "Backend error: ", "Backend"),
        ("/models/minilm", {}, 422, "`inputs` is missing", "Validation"),
        ("/models/minilm", {"inputs": []}, 400, "`inputs` cannot be empty", "Empty"),
        ("/models/minilm", b"{", 400, "the body is not valid JSON", "Validation"),
        ("/models/nope", {"inputs": "a"}, 404, "Request for unknown model: 'nope'", "model_not_found"),
        ("/", b"", 400, "the body is empty", "validation"),
        ("/", [1], 422, "not an object", "validation"),
        ("/", {"inputs": ""}, 422, "`inputs` cannot be empty", "validation"),
        ("/invocations", {"messages": []}, 422, "", "validation"),
    ],
)  # fmt: skip
def test_refusals(post: Any, path: str, body: Any, status: int, error: str, kind: str) -> None:
    answer = post(path, body, status).json()
    assert set(answer) == {"error", "error_type"}
    assert error in answer["error"]
    assert answer["error_type"] == kind


def test_vertex_generates(post: Any) -> None:
    instance = {"inputs": PROMPT, "parameters": SHORT}
    chat = {"messages": QUESTION, "max_tokens": 8, "temperature": 0}
    streamed = {"stream": True, "stream_options": {"include_usage": True}}  # which Vertex AI cannot take
    answer = post("/vertex", {"instances": [instance, chat | streamed, instance]}).json()
    assert answer == {"predictions": [TEXT, "The capital of France is Paris.", TEXT]}


def test_vertex_of_many_instances(post: Any) -> None:
    """More than are under way at once, answered in their order."""
    instances = [{"inputs": str(number), "dimensions": 2} for number in range(40)]
    answer = post("/models/minilm/proxy/vertex", {"instances": instances}).json()
    for number in (0, 39):
        expected = post("/embed", {"inputs": str(number), "dimensions": 2}).json()
        (found,), (vector,) = answer["predictions"][number], expected
        assert found == pytest.approx(vector, abs=1e-5)


def test_vertex_encodes(post: Any) -> None:
    embedded, ranked = post("/vertex", {"instances": [{"inputs": ["a"]}, RANKING]}).json()["predictions"]
    assert len(embedded[0]) == 384
    assert [rank["index"] for rank in ranked] == [1, 0]
    labels = post("/vertex", {"instances": [{"inputs": "good"}], "model": "sentiment"}).json()["predictions"]
    assert labels == [post("/predict", {"inputs": "good", "model": "sentiment"}).json()]


def test_vertex_refuses(post: Any) -> None:
    empty = {"error": "Input validation error", "error_type": "Input validation error"}
    assert post("/vertex", {"instances": []}, 422).json() == empty
    assert post("/models/minilm/proxy/vertex", {"instances": []}).json() == {"predictions": []}
    assert post("/vertex", {}, 422).json()["error_type"] == "validation"
    good, bad = {"inputs": PROMPT, "parameters": SHORT}, {"inputs": PROMPT, "parameters": {"top_k": 0}}
    assert post("/vertex", {"instances": [good, bad]}, 422).json() == {
        "error": "Input validation error: `top_k` must be strictly positive",
        "error_type": "validation",
    }
