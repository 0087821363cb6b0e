"""The code that the OICM guide and TGI's HTTP reference print, run as it is printed.

What is put in: the placeholders, the address instead of TGI's, and what the OICM guide's authors mistyped:
a ``$`` in an f-string, an indented line, ``url`` for ``inference_url``, and names that are never set. Where
the guide asks for a thousand tokens, a hundred have to do.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from running import ServerProcess, start_server, stop_server

DATA = Path(__file__).with_name("data")
SECONDS = 280


def snippet(page: str, name: str) -> str:
    """The code below ``=== name`` in ``data/<page>-snippets.txt``."""
    return f"\n{(DATA / f'{page}-snippets.txt').read_text()}".split(f"\n=== {name}\n")[1].split("\n=== ")[0]


def run(program: list[str], code: str, **environment: str) -> str:
    """Run code in a process of its own and return what it prints."""
    variables = {**os.environ, **environment}
    done = subprocess.run(
        program, input=code, env=variables, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def oicm(server: Any, name: str, model: str, show: str = "") -> str:
    """Run a snippet of the guide for a model; ``show`` is an expression to print as JSON at the end."""
    code = snippet("oicm", name)
    for given, meant in (
        ("<api_key>", '"some-key"'),
        ("<model_version_id>", repr(model)),
        ("<base_url>", repr(server.url)),
        ('"max_tokens": 1000', '"max_tokens": 100'),
        ('f"${base_url}', 'f"{base_url}'),
        ("    inference_url = f", "inference_url = f"),
        ("f\"{url}/{endpoints['chat_completion']}\"", "f\"{inference_url}/{endpoints['chat_completion']}\""),
    ):
        code = code.replace(given, meant)
    if show:
        code += f"\nimport json\nprint(json.dumps({show}))\n"
    return run([sys.executable, "-"], code)


def tgi(server: Any, name: str) -> str:
    """Run one of the reference's Python snippets."""
    code = snippet("tgi", name).replace("http://localhost:3000", server.url)
    code = code.replace("https://vlzz10eq3fol3429.us-east-1.aws.endpoints.huggingface.cloud", server.url)
    assert "huggingface.cloud" not in code
    return run([sys.executable, "-"], code)


@pytest.fixture(scope="module")
def brief(tmp_path_factory: pytest.TempPathFactory, demo_repository: Path) -> Iterator[ServerProcess]:
    """A server whose model ends by itself: TGI's snippets set no limit, and the context has 8,192 tokens."""
    folder = tmp_path_factory.mktemp("brief")
    shutil.copytree(demo_repository / "smollm2", folder / "models" / "smollm2")
    settings = folder / "models" / "smollm2" / "1" / "generation_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "max_new_tokens": 40}))
    with (folder / "models" / "smollm2" / "config.pbtxt").open("a") as config:
        # nothing of a gigabyte is to be kept for a copy of the model
        config.write('\nparameters { key: "share_weights" value: { string_value: "false" } }\n')
    running = start_server("--model-repository", str(folder / "models"), log=folder / "server.log")
    yield running
    assert stop_server(running) == 0
    shutil.rmtree(folder)


def test_oicm_text_generation(server: Any) -> None:
    printed = oicm(server, "text generation", "smollm2")
    body: Any = {
        "messages": [{"role": "user", "content": "What is Deep Learning?"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    answer = requests.post(f"{server.url}/v1/chat/completions", json=body, timeout=SECONDS).json()
    assert printed.startswith(answer["choices"][0]["message"]["content"])
    assert len(printed) > 400  # the guide asks for 200 tokens
    assert "learning" in printed


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("engine", ["VLLM", "TGI"])
def test_oicm_text_completion(server: Any, engine: str) -> None:
    printed = oicm(server, f"text completion - {engine}", "smollm2")
    assert len(printed.split()) > 10


def test_oicm_sequence_classification(server: Any) -> None:
    printed = json.loads(oicm(server, "sequence classification", "sentiment", "response.json()"))
    assert printed["classification"][0]["label"] == "positive"
    inference_url = f"{server.url}/models/sentiment/proxy/v1/classify"
    curl = snippet("oicm", "sequence classification, curl").replace("curl ", "curl --silent ", 1)
    assert json.loads(run(["bash"], curl, inference_url=inference_url, api_key="some-key")) == printed


def test_oicm_embedding_reranking_and_classification(server: Any) -> None:
    name, answers = (
        "reranking - embedding - classification",
        "[embed_response.json(), rerank_response.json()]",
    )
    (vector,), ranks = json.loads(oicm(server, name, "minilm", answers))
    assert len(vector) == 384
    assert sorted(rank["index"] for rank in ranks) == [0, 1]
    assert ranks[0]["score"] >= ranks[1]["score"]
    (best, *_) = json.loads(oicm(server, name, "sentiment", "classify_response.json()"))
    assert best["label"] == "positive"


def test_oicm_classical_models(server: Any) -> None:
    show = "[response.status_code, response.json()]"
    status, answer = json.loads(oicm(server, "classical ml", "id_fp64", show))  # takes any number of values
    assert (status, answer["data"]) == (200, [1, 2, 3])
    assert answer["meta"]["input_schema"] == [
        {"tensor-spec": {"dtype": "float64", "shape": [-1]}, "type": "tensor"},
    ]  # fmt: skip
    status, answer = json.loads(
        oicm(server, "classical ml", "diabetes", show)
    )  # takes ten, the guide sends three
    assert status == 422
    assert "[-1,10]" in answer["error"]


def test_oicm_timeout(server: Any) -> None:
    code = snippet("oicm", "timeout").replace("requests.post(", "response = requests.post(")
    endpoint = f"{server.url}/models/minilm/proxy/v1/embed"
    given = f"api_key = 'some-key'\nendpoint = {endpoint!r}\ndata = {{'inputs': 'a'}}\n"
    assert run([sys.executable, "-"], f"{given}{code}\nprint(response.status_code)") == "200\n"


def test_tgi_curl(server: Any) -> None:
    code = snippet("tgi", "making a request").replace("localhost:3000", server.http)
    lines = run(["bash"], code.replace("curl ", "curl --silent ", 1)).split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    assert chunks[0]["object"] == "chat.completion.chunk"
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


@pytest.mark.slow
def test_tgi_streaming(brief: ServerProcess) -> None:
    lines = tgi(brief, "streaming").splitlines()
    assert len(lines) > 2
    assert all(line.startswith("ChatCompletionChunk(id='chatcmpl-") for line in lines)
    assert "finish_reason='" in lines[-1]


@pytest.mark.slow
def test_tgi_synchronous(brief: ServerProcess) -> None:
    printed = tgi(brief, "synchronous")
    assert printed.startswith("ChatCompletion(id='chatcmpl-")
    assert "usage=CompletionUsage(" in printed


@pytest.mark.slow
def test_tgi_inference_endpoints(brief: ServerProcess) -> None:
    assert len(tgi(brief, "inference endpoints").split()) > 2


@pytest.mark.slow
def test_tgi_sagemaker(brief: ServerProcess) -> None:
    """What the page's ``predictor.predict`` sends; SageMaker hands it to ``/invocations``."""
    code = snippet("tgi", "amazon sagemaker")
    body = json.loads(code.partition("predictor.predict(")[2].rpartition(")")[0])
    answer = requests.post(f"{brief.url}/invocations", json=body, timeout=SECONDS)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
