"""Servers with TLS: T09 with keys, and Triton's ``--grpc-use-ssl-mutual``, as clients meet them."""

from __future__ import annotations

import json
import ssl
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import openai
import pytest
import requests
from tls_keys import Keys
from waiting import block_until

from headrace.kserve.v2 import grpc_service_pb2, grpc_service_pb2_grpc
from running import ServerProcess, start_server, stop_server

CLIENTS = Path(__file__).parent / "clients"
KEY = "hf_s3cret"
BEARER = {"Authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def serving(keys: Keys, demo: Path, log: Path, *more: str) -> Iterator[ServerProcess]:
    files = ("--tls-certificate", str(keys.certificate), "--tls-key", str(keys.key))
    running = start_server("--model-repository", str(demo), *files, *more, log=log)
    yield running
    assert stop_server(running) == 0, log.read_text()[-4000:]


@pytest.fixture(scope="module")
def secured(
    keys: Keys, demo_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """TLS and a key."""
    log = tmp_path_factory.mktemp("tls") / "server.log"
    models = ("--load-models", '["minilm","smollm2"]')
    yield from serving(keys, demo_repository, log, *models, "--api-keys", f'["{KEY}"]')


@pytest.fixture(scope="module")
def mutual(
    keys: Keys, demo_repository: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """TLS for callers with a certificate of the authority; each front process asks for it by itself."""
    log = tmp_path_factory.mktemp("mutual") / "server.log"
    more = ("--load-models", '["addsub"]', "--front-processes", "2")
    yield from serving(keys, demo_repository, log, *more, "--tls-client-ca", str(keys.ca))


def run(program: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """Run a client and return what it printed."""
    done = subprocess.run(
        [sys.executable, CLIENTS / program, *map(str, arguments)],
        env=environment or None, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


def ready(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.StatusCode:
    """How Triton's ServerReady is answered."""
    opened = grpc.insecure_channel(address)
    if credentials is not None:
        opened = grpc.secure_channel(address, credentials)
    with opened as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            stub.ServerReady(grpc_service_pb2.ServerReadyRequest(), timeout=20)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
        return grpc.StatusCode.OK


def presents(address: str, certificate: str) -> bool:
    """Whether this certificate is served."""
    host, port = address.split(":")
    return ssl.get_server_certificate((host, int(port))) == certificate


def test_t09_rest(secured: ServerProcess, keys: Keys) -> None:
    url = f"https://{secured.http}"
    body: dict[str, Any] = {"inputs": "x", "parameters": {"max_new_tokens": 1}}
    refused = requests.post(f"{url}/generate", json=body, verify=str(keys.ca), timeout=60)
    assert refused.status_code == 401
    answer = requests.post(f"{url}/generate", json=body, verify=str(keys.ca), headers=BEARER, timeout=60)
    assert (answer.status_code, "generated_text" in answer.json()) == (200, True)
    with pytest.raises(requests.exceptions.SSLError):
        requests.get(f"{url}/health", timeout=60)
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(f"http://{secured.http}/health", timeout=60)


def test_t09_openai_client(secured: ServerProcess, keys: Keys) -> None:
    with openai.DefaultHttpxClient(verify=keys.context()) as http:
        client = openai.OpenAI(base_url=f"https://{secured.http}/v1", api_key=KEY, http_client=http)
        chat = client.chat.completions.create(
            model="smollm2", messages=[{"role": "user", "content": "x"}], max_tokens=3, stream=True
        )
        assert [chunk.choices[0].finish_reason for chunk in chat][-1] == "length"
        assert client.embeddings.create(model="minilm", input="x").data


def test_t09_hugging_face_client(secured: ServerProcess, keys: Keys) -> None:
    seen = run(
        "huggingface_tls.py", f"https://{secured.http}", KEY,
        SSL_CERT_FILE=str(keys.ca), HF_HUB_OFFLINE="0", HOME=str(keys.folder),
    )  # fmt: skip
    assert seen == {"text": "The capital of France is Paris", "width": 384, "refused": 401}


def test_both_ports_refuse_plain_grpc(secured: ServerProcess, keys: Keys) -> None:
    trusting = grpc.ssl_channel_credentials(keys.ca.read_bytes())
    for address in (secured.grpc, secured.http):
        assert ready(address, trusting) is grpc.StatusCode.OK
        assert ready(address, None) is grpc.StatusCode.UNAVAILABLE
        assert ready(address, grpc.ssl_channel_credentials()) is grpc.StatusCode.UNAVAILABLE


def test_mutual_tls_over_rest(mutual: ServerProcess, keys: Keys) -> None:
    url = f"https://{mutual.http}/v2/health/ready"
    with pytest.raises(requests.exceptions.ConnectionError):
        requests.get(url, verify=str(keys.ca), timeout=60)
    own = (str(keys.client), str(keys.client_key))
    assert requests.get(url, verify=str(keys.ca), cert=own, timeout=60).status_code == 200


def test_mutual_tls_of_triton_clients(mutual: ServerProcess, keys: Keys) -> None:
    for address in (mutual.grpc, mutual.http):
        seen = run("triton_tls.py", address, keys.ca, keys.client_key, keys.client)
        assert seen == {"live": True, "right": True}
    assert run("triton_tls.py", mutual.grpc, keys.ca) == {"status": "StatusCode.UNAVAILABLE"}


def test_renewed_without_a_restart(secured: ServerProcess, mutual: ServerProcess, keys: Keys) -> None:
    latest = keys.renew()
    for address in (secured.grpc, secured.http, mutual.grpc, mutual.http):
        block_until(partial(presents, address, latest))
    assert requests.get(f"https://{secured.http}/health", verify=str(keys.ca), timeout=60).status_code == 200
