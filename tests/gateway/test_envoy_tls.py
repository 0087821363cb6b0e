"""TLS of the REST port, with and without client certificates."""

from __future__ import annotations

import http.client
import shutil
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from headrace.envoy.options import TlsOptions


def openssl(folder: Path, *arguments: str) -> None:
    command = shutil.which("openssl")
    assert command, "these tests make their keys with the openssl command"
    subprocess.run([command, *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server key with a password, and a client key."""
    folder = tmp_path_factory.mktemp("keys")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    openssl(
        folder, "req", "-x509", *curve, "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=ca"
    )
    (folder / "password").write_text("open sesame")
    for name, protection in (("server", ["-passout", "file:password"]), ("client", ["-nodes"])):
        files = ["-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"]
        openssl(folder, "req", *curve[:4], *protection, *files)
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        signing = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile", "names"]
        openssl(folder, "x509", "-req", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


def options(keys: Path, **more: str) -> TlsOptions:
    return TlsOptions(
        certificate=str(keys / "server.pem"),
        private_key=str(keys / "server.key"),
        password_file=str(keys / "password"),
        **more,
    )


def status(port: int, context: ssl.SSLContext) -> int:
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=20)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def test_tls(make_gateway: Any, keys: Path) -> None:
    with make_gateway(tls=options(keys)) as gateway:
        assert status(gateway.envoy.port, ssl.create_default_context(cafile=str(keys / "ca.pem"))) == 200
        with pytest.raises((http.client.HTTPException, OSError)):
            gateway.ask("GET", "/health")


def test_mutual_tls_1_3(make_gateway: Any, keys: Path) -> None:
    with make_gateway(tls=options(keys, client_ca=str(keys / "ca.pem"), minimum="1.3")) as gateway:
        context = ssl.create_default_context(cafile=str(keys / "ca.pem"))
        with pytest.raises(OSError):  # noqa: PT011 -- which one depends on when the kernel tells
            status(gateway.envoy.port, context)
        context.load_cert_chain(keys / "client.pem", keys / "client.key")
        assert status(gateway.envoy.port, context) == 200
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(ssl.SSLError):
            status(gateway.envoy.port, context)
