"""Triton's generate extension, and text over ModelStreamInfer, against a running server."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from running import get_json

if TYPE_CHECKING:
    from running import ServerProcess

CLIENTS = Path(__file__).parent / "clients"
GOLDEN = Path(__file__).parents[1] / "golden" / "triton-generate.sse"
MODEL = "smollm2"
PROMPT = "The capital of France is"
DECOUPLED = "doesn't support models with decoupled transaction policy"


def post(server: ServerProcess, path: str, body: Any, **options: Any) -> requests.Response:
    return requests.post(f"{server.url}{path}", json=body, timeout=60, **options)


def generate(server: ServerProcess, body: Any, way: str = "generate") -> requests.Response:
    return post(server, f"/v2/models/{MODEL}/{way}", body)


def completion(server: ServerProcess, prompt: str, max_tokens: int, **fields: Any) -> str:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, **fields}
    text: str = post(server, "/v1/completions", body).json()["choices"][0]["text"]
    return text


def events(body: bytes) -> list[dict[str, Any]]:
    assert body.endswith(b"\n\n")
    lines = [line for line in body[:-2].split(b"\n\n") if not line.startswith(b":")]
    assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines]


def run(program: str, address: str) -> dict[str, Any]:
    """Run a client and return what it printed."""
    done = subprocess.run(
        [sys.executable, CLIENTS / program, address], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def wait_until_idle(server: ServerProcess) -> None:
    """Wait until no generation engine has a request; a leak fails by this module's own time limit."""
    deadline = time.monotonic() + 60
    while get_json(f"{server.url}/load") != (200, {"server_load": 0}):
        assert time.monotonic() < deadline, "a slot is still taken"
        time.sleep(0.05)


@pytest.mark.parametrize(
    "prompt", [PROMPT, "Zürich ist", "def add(a, b):", "Once upon a time", "1, 2, 3, 4,"]
)
def test_greedy_text_is_that_of_completions(server: ServerProcess, prompt: str) -> None:
    expected = completion(server, prompt, 12)
    body = {"text_input": prompt, "max_tokens": 12, "temperature": 0}
    assert generate(server, body).json() == {
        "model_name": MODEL,
        "model_version": "1",
        "text_output": expected,
    }
    pieces = events(generate(server, body, "generate_stream").content)
    assert "".join(piece["text_output"] for piece in pieces) == expected
    assert len(pieces) > 1


def test_sampled_text_is_that_of_completions(server: ServerProcess) -> None:
    expected = completion(server, PROMPT, 12, temperature=0.7, top_p=0.9, seed=7)
    sampling = json.dumps({"temperature": 0.7, "top_p": 0.9, "seed": 7, "max_tokens": 12})
    for body in (
        {"text_input": PROMPT, "temperature": 0.7, "top_p": 0.9, "seed": 7, "max_tokens": 12},
        {"text_input": PROMPT, "sampling_parameters": sampling},
    ):
        assert generate(server, body).json()["text_output"] == expected


def test_stop_texts(server: ServerProcess) -> None:
    body = {"text_input": PROMPT, "max_tokens": 24, "temperature": 0, "parameters": {"stop": "."}}
    expected = completion(server, PROMPT, 24, stop=".")
    assert generate(server, body).json()["text_output"] == expected
    pieces = events(generate(server, body, "generate_stream").content)
    assert "".join(piece["text_output"] for piece in pieces) == expected


def test_golden_events(server: ServerProcess) -> None:
    body = {
        "id": "golden",
        "text_input": PROMPT,
        "max_tokens": 8,
        "temperature": 0,
        "return_finish_reason": True,
        "return_num_output_tokens": True,
    }
    answer = generate(server, body, "generate_stream")
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.content == GOLDEN.read_bytes()


def test_m41_generate(server: ServerProcess) -> None:
    """The Open Inference Protocol's and MindIE's form: all in ``parameters``, details of the answer."""
    body = {"id": "a", "text_input": "hi", "parameters": {"details": True, "max_tokens": 4, "temperature": 0}}
    found = generate(server, body).json()
    assert list(found) == ["details", "id", "model_name", "model_version", "text_output"]
    assert (found["id"], found["model_name"]) == ("a", MODEL)
    assert found["details"]["finish_reason"] == "length"
    assert found["details"]["generated_tokens"] == len(found["details"]["logprobs"]) == 4
    assert "".join(token["text"] for token in found["details"]["logprobs"]) == found["text_output"]


def test_m42_generate_stream(server: ServerProcess) -> None:
    body = {"id": "a", "text_input": "hi", "parameters": {"max_tokens": 4, "temperature": 0}}
    pieces = events(generate(server, body, "generate_stream").content)
    assert {piece["id"] for piece in pieces} == {"a"}
    assert "".join(piece["text_output"] for piece in pieces) == completion(server, "hi", 4)


def test_versions_and_prefixes(server: ServerProcess) -> None:
    body = {"text_input": PROMPT, "max_tokens": 2, "temperature": 0}
    for path in (
        f"/v2/models/{MODEL}/versions/1/generate",
        f"/models/{MODEL}/proxy/v2/models/{MODEL}/generate",
    ):
        assert post(server, path, body).json()["text_output"] == " Paris."
    missing = post(server, f"/v2/models/{MODEL}/versions/9/generate_stream", body)
    assert missing.status_code == 404
    assert missing.json() == {"error": f"Request for unknown model: '{MODEL}' version 9 is not found"}


def test_tensor_models(server: ServerProcess) -> None:
    body = {"INPUT0": list(range(32)), "parameters": {"INPUT1": [1] * 32}}
    found = post(server, "/v2/models/addsub/generate", body).json()
    assert found["OUTPUT0"] == list(range(1, 33))
    streamed = post(server, "/v2/models/addsub/generate_stream", body)
    assert events(streamed.content) == [found]
    embedded = post(server, "/v2/models/minilm/generate", {"text": ["one", "two"]}).json()
    assert len(embedded["embedding"]) == 2 * 384


@pytest.mark.parametrize(
    ("way", "body", "status", "text"),
    [
        ("generate", b"", 400, "failed to parse the request JSON buffer: The document is empty. at 0"),
        (
            "generate",
            b'{"text_input":"x","stream":true}',
            400,
            "generate expects model to produce exactly 1 response",
        ),
        ("generate", b'{"text_input":"x","temperature":-1}', 400, "`temperature` is -1.0"),
        (
            "generate_stream",
            b"{}",
            400,
            "[request id: <id_unknown>] expected number of inputs between 1 and ",
        ),
        ("generate_stream", b'{"text_input":"x","max_tokens":0}', 400, "max_tokens must be at least 1"),
        ("infer", b'{"inputs":[]}', 501, f"HTTP end point {DECOUPLED}"),
    ],
)
def test_errors_over_urllib(server: ServerProcess, way: str, body: bytes, status: int, text: str) -> None:
    request = urllib.request.Request(f"{server.url}/v2/models/{MODEL}/{way}", body, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=60)
    assert caught.value.code == status
    assert json.loads(caught.value.read())["error"].startswith(text)


def test_other_verbs_and_compression(server: ServerProcess) -> None:
    answer = requests.get(f"{server.url}/v2/models/{MODEL}/generate", timeout=60)
    assert (answer.status_code, answer.json()["error"]) == (405, "Method Not Allowed")
    packed = requests.post(
        f"{server.url}/v2/models/{MODEL}/generate",
        b"x",
        headers={"Content-Encoding": "gzip"},
        timeout=60,
    )
    assert packed.status_code == 400
    assert packed.json() == {"error": "Unsupported content-encoding, only 'identity' is supported."}


@pytest.mark.parametrize("way", ["generate", "generate_stream"])
def test_closing_the_connection_frees_the_slot(server: ServerProcess, way: str) -> None:
    wait_until_idle(server)
    body = json.dumps(
        {"text_input": "Once", "sampling_parameters": '{"max_tokens": 4000, "ignore_eos": true}'}
    )
    connection = http.client.HTTPConnection(server.http, timeout=60)
    connection.request("POST", f"/v2/models/{MODEL}/{way}", body)
    if way == "generate_stream":
        assert connection.getresponse().read(6) == b"data: "
    deadline = time.monotonic() + 60
    while get_json(f"{server.url}/load") != (200, {"server_load": 1}):
        assert time.monotonic() < deadline, "the request did not start"
        time.sleep(0.01)
    connection.close()
    wait_until_idle(server)


@pytest.fixture(scope="module")
def over_grpc(server: ServerProcess) -> dict[str, Any]:
    return run("triton_generate.py", server.grpc)


def test_what_a_model_offers(over_grpc: dict[str, Any]) -> None:
    assert over_grpc["decoupled"] == {"decoupled": True}
    assert over_grpc["required"] == ["text_input"]
    assert over_grpc["inputs"][:3] == [
        ["text_input", "BYTES", ["1"]], ["stream", "BOOL", ["1"]], ["sampling_parameters", "BYTES", ["1"]],
    ]  # fmt: skip
    assert over_grpc["outputs"][:2] == ["text_output", "finish_reason"]


def test_text_over_a_stream(server: ServerProcess, over_grpc: dict[str, Any]) -> None:
    expected = completion(server, PROMPT, 8)
    assert over_grpc["whole"] == [["whole", expected, True]]
    assert over_grpc["batch of one"] == [["batch of one", expected, True]]
    pieces = over_grpc["pieces"]
    assert "".join(text for _, text, _ in pieces) == expected
    assert [final for *_, final in pieces] == [False] * (len(pieces) - 1) + [True]


def test_an_empty_final_response(over_grpc: dict[str, Any]) -> None:
    *pieces, last = over_grpc["empty final"]
    assert last == ["end", None, True]
    assert [text for _, text, _ in pieces] == [text for _, text, _ in over_grpc["pieces"]]
    assert not any(final for *_, final in pieces)


def test_an_error_leaves_the_stream_open(server: ServerProcess, over_grpc: dict[str, Any]) -> None:
    assert over_grpc["error"] == [["after", completion(server, PROMPT, 8), True], "`prompt` cannot be empty"]


def test_requests_of_one_stream_run_together(server: ServerProcess, over_grpc: dict[str, Any]) -> None:
    answers = over_grpc["together"]
    for number in range(8):
        text = "".join(text for request_id, text, _ in answers if request_id == str(number))
        assert text == completion(server, PROMPT, 4 + number)
    # The first piece of the last request does not wait for the last piece of the first ones.
    ids = [request_id for request_id, *_ in answers]
    assert ids.index("7") < len(ids) - 1 - ids[::-1].index("1")


def test_a_stream_that_is_given_up_frees_the_slot(server: ServerProcess, over_grpc: dict[str, Any]) -> None:
    wait_until_idle(server)


def test_asking_once_is_refused(over_grpc: dict[str, Any]) -> None:
    refusal = f"ModelInfer RPC {DECOUPLED}"
    assert over_grpc["infer"] == ["StatusCode.UNIMPLEMENTED", refusal]
    assert over_grpc["async infer"] == [refusal]


def test_asyncio_with_the_inputs_of_tensorrt_llm(server: ServerProcess) -> None:
    seen = run("triton_generate_aio.py", server.grpc)
    for length in (3, 5, 8):
        expected = completion(server, PROMPT, length)
        assert "".join(seen["pieces"][str(length)]) == expected
        assert seen["whole"][str(length)] == [expected]
    assert seen["score"] < 0
    assert seen["cancelled"]
    wait_until_idle(server)
