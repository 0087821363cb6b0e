"""TLS of the REST port: what passes, with and without clients' certificates, and after a renewal."""

from __future__ import annotations

import http.client
import json
import ssl
import struct
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.api import httpbody_pb2
from tls_keys import Keys
from waiting import block_until

from headrace.envoy.options import TlsOptions
from headrace.rest.v1 import tei_pb2, tei_pb2_grpc
from headrace.server.certificates import Certificates

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"))


def published(keys: Keys, folder: Path, *, mutual: bool = False) -> tuple[Certificates, TlsOptions]:
    certificates = Certificates(keys.certificate, keys.key, keys.ca if mutual else None)
    return certificates, certificates.publish(folder / "tls")


def ask(port: int, context: ssl.SSLContext, verb: str = "GET", path: str = "/health", **request: Any) -> Any:
    connection = http.client.HTTPSConnection(HOST, port, context=context, timeout=20)
    try:
        connection.request(verb, path, **request)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_tls(make_gateway: Any, keys: Keys, tmp_path: Path) -> None:
    certificates, options = published(keys, tmp_path)
    with make_gateway(tls=options, metrics_port=0) as gateway:
        port = gateway.envoy.port
        assert ask(port, keys.context())[0] == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            gateway.ask("GET", "/health")
        with pytest.raises(ssl.SSLCertVerificationError):
            ask(port, ssl.create_default_context())
        old = keys.context()
        old.minimum_version = ssl.TLSVersion.TLSv1_2
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert ask(port, old)[0] == 200
        plain = http.client.HTTPConnection(HOST, gateway.envoy.metrics_port, timeout=20)
        plain.request("GET", "/metrics")
        assert plain.getresponse().status == 200
        plain.close()

        first, latest = ssl.get_server_certificate((HOST, port)), keys.renew()
        certificates.refresh()
        block_until(lambda: ssl.get_server_certificate((HOST, port)) == latest)
        assert first != latest
        assert ask(port, keys.context())[0] == 200


def test_grpc_and_grpc_web_pass(make_gateway: Any, keys: Keys, tmp_path: Path) -> None:
    _, options = published(keys, tmp_path)
    message = tei_pb2.TeiServiceEmbedRequest(body=httpbody_pb2.HttpBody(content_type="x/y", data=b"abc"))
    with make_gateway(tls=options) as gateway:
        credentials = grpc.ssl_channel_credentials(keys.ca.read_bytes())
        with grpc.secure_channel(f"{HOST}:{gateway.envoy.port}", credentials) as channel:
            answer = tei_pb2_grpc.TeiServiceStub(channel).Embed(message, timeout=20)
        assert json.loads(answer.data)["size"] == 3
        packed = message.SerializeToString()
        status, body = ask(
            gateway.envoy.port,
            keys.context(),
            "POST",
            "/headrace.rest.v1.TeiService/Embed",
            body=struct.pack(">BI", 0, len(packed)) + packed,
            headers={"content-type": "application/grpc-web+proto"},
        )
        assert status == 200
        assert b'"size": 3' in body


def test_mutual_tls(make_gateway: Any, keys: Keys, tmp_path: Path) -> None:
    _, options = published(keys, tmp_path, mutual=True)
    (tmp_path / "others").mkdir()
    others = Keys(tmp_path / "others")
    with make_gateway(tls=options) as gateway:
        stranger = keys.context()
        stranger.load_cert_chain(others.client, others.client_key)
        for context in (keys.context(), stranger):
            with pytest.raises(OSError):  # noqa: PT011 -- which one depends on when the kernel tells
                ask(gateway.envoy.port, context)
        assert ask(gateway.envoy.port, keys.context(client=True))[0] == 200
