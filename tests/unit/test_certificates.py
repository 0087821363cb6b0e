"""The server's certificate: what is refused, what follows a renewal, and what the settings demand."""

from __future__ import annotations

import asyncio
import json
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from tls_keys import Keys

from headrace.server import config
from headrace.server.certificates import Certificates, listen, server_certificates
from headrace.server.config import ConfigError
from headrace.server.welcome import welcome

HOST = "127.0.0.1"


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path)


def missing(keys: Keys) -> tuple[Path, Path, Path | None]:
    return keys.folder / "nope", keys.key, None


def missing_key(keys: Keys) -> tuple[Path, Path, Path | None]:
    return keys.certificate, keys.folder, None


def missing_authority(keys: Keys) -> tuple[Path, Path, Path | None]:
    return keys.certificate, keys.key, keys.folder / "nope"


def swapped(keys: Keys) -> tuple[Path, Path, Path | None]:
    return keys.key, keys.certificate, None


def anothers_key(keys: Keys) -> tuple[Path, Path, Path | None]:
    return keys.certificate, keys.client_key, None


def key_of_another_kind(keys: Keys) -> tuple[Path, Path, Path | None]:
    leaf = trustme.CA().issue_cert("localhost", key_type=trustme.KeyType.RSA)
    path = keys.folder / "rsa.key"
    leaf.private_key_pem.write_to_path(path)
    return keys.certificate, path, None


def garbage(keys: Keys) -> tuple[Path, Path, Path | None]:
    path = keys.folder / "garbage.pem"
    path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    return path, keys.key, None


def no_authority(keys: Keys) -> tuple[Path, Path, Path | None]:
    path = keys.folder / "ca.der"
    path.write_bytes(b"\xff\x00")
    return keys.certificate, keys.key, path


def encrypted(keys: Keys) -> tuple[Path, Path, Path | None]:
    path = keys.folder / "encrypted.key"
    path.write_text(keys.key.read_text().replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY"))
    return keys.certificate, path, None


@pytest.mark.parametrize(
    ("files", "text"),
    [
        (missing, "tls_certificate: {0} cannot be read: No such file or directory"),
        (missing_key, "tls_key: {1} cannot be read: Is a directory"),
        (missing_authority, "tls_client_ca: {2} cannot be read: No such file or directory"),
        (swapped, "tls_certificate: {0} holds no certificate in PEM form"),
        (anothers_key, "tls_key: the key in {1} does not fit the certificate in {0}"),
        (key_of_another_kind, "tls_key: the key in {1} does not fit the certificate in {0}"),
        (garbage, "tls_certificate: {0} holds no certificate that can be read"),
        (no_authority, "tls_client_ca: {2} holds no certificate in PEM form"),
        (encrypted, "tls_key: {1} is encrypted"),
    ],
)
def test_files_that_cannot_be_used(
    keys: Keys, files: Callable[[Keys], tuple[Path, Path, Path | None]], text: str
) -> None:
    paths = files(keys)
    with pytest.raises(ConfigError) as raised:
        Certificates(*paths)
    assert str(raised.value).startswith(text.format(*paths))


async def test_grpc_follows_a_renewal(keys: Keys) -> None:
    certificates = Certificates(keys.certificate, keys.key)
    server, port = await grpc_server(certificates)
    try:
        first = await presented(port)
        latest = keys.renew()
        assert await presented(port) == first != latest
        certificates.refresh()
        assert await presented(port) == latest
        assert await presented(port) == latest
    finally:
        await server.stop(0)


async def test_half_a_renewal_is_passed_over(keys: Keys, tmp_path: Path) -> None:
    certificates = Certificates(keys.certificate, keys.key)
    options = certificates.publish(tmp_path / "tls")
    served = (Path(options.secrets) / "certificate.json").read_text()
    old = keys.key.read_text()
    latest = keys.renew()
    whole = keys.key.read_text()
    for half in (old, "-----BEGIN PRIVATE KEY-----"):
        keys.key.write_text(half)
        certificates.refresh()
        assert (Path(options.secrets) / "certificate.json").read_text() == served
    keys.key.write_text(whole)
    certificates.refresh()
    (secret,) = json.loads((Path(options.secrets) / "certificate.json").read_text())["resources"]
    assert secret["tls_certificate"] == {
        "certificate_chain": {"inline_string": latest},
        "private_key": {"inline_string": whole},
    }


def test_only_the_owner_can_read_what_envoy_is_given(keys: Keys, tmp_path: Path) -> None:
    options = Certificates(keys.certificate, keys.key, keys.ca).publish(tmp_path / "tls")
    folder = Path(options.secrets)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()} == {
        "certificate.json": 0o600,
        "client-ca.json": 0o600,
    }


@pytest.mark.parametrize("known", [False, True])
async def test_grpc_asks_for_a_clients_certificate(keys: Keys, known: bool) -> None:
    server, port = await grpc_server(Certificates(keys.certificate, keys.key, keys.ca))
    own = (keys.client_key.read_bytes(), keys.client.read_bytes()) if known else ()
    credentials = grpc.ssl_channel_credentials(keys.ca.read_bytes(), *own)
    try:
        async with grpc.aio.secure_channel(f"{HOST}:{port}", credentials) as channel:
            call = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
            assert await call.code() is (grpc.StatusCode.OK if known else grpc.StatusCode.UNAVAILABLE)
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["certificate"], "tls_certificate cannot be used without tls_key"),
        (["key"], "tls_key cannot be used without tls_certificate"),
        (["client-ca"], "tls_client_ca cannot be used without tls_certificate and tls_key"),
        (["certificate", "client-ca"], "tls_certificate and tls_client_ca cannot be used without tls_key"),
    ],
)
def test_settings_that_belong_together(given: list[str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        config.load([argument for name in given for argument in (f"--tls-{name}", "x.pem")])


def test_who_may_listen_for_others() -> None:
    both = ["--tls-certificate", "c.pem", "--tls-key", "k.pem", "--http-host", "0.0.0.0"]
    with pytest.raises(ConfigError, match="no authentication"):
        config.load(both)
    settings = config.load([*both, "--tls-client-ca", "ca.pem"])
    assert (settings.http_host, settings.tls_client_ca) == ("0.0.0.0", Path("ca.pem"))


def test_without_a_certificate_there_is_plain_text() -> None:
    settings = config.load()
    assert server_certificates(settings) is None
    assert "curl http://127.0.0.1:2/" in welcome(settings, [], 1, 2)


def test_welcome_says_how_to_call() -> None:
    files = ["--tls-certificate", "c.pem", "--tls-key", "k.pem"]
    text = welcome(config.load(files), [], 1, 2)
    assert "grpcs://127.0.0.1:1" in text
    assert "curl --cacert CA.pem https://127.0.0.1:2/v2/models" in text
    guarded = config.load([*files, "--tls-client-ca", "ca.pem", "--api-keys", '["k"]'])
    options = "--cacert CA.pem --cert CLIENT.pem --key CLIENT.key -H 'Authorization: Bearer KEY'"
    assert f"curl {options} https://127.0.0.1:2/v2/models" in welcome(guarded, [], 1, 2)


def test_serve_refuses_before_anything_starts(keys: Keys) -> None:
    files = ("--tls-certificate", str(keys.certificate), "--tls-key", str(keys.client_key))
    done = subprocess.run(
        [sys.executable, "-m", "headrace.server.cli", "serve", *files, "--model-repository", "nope"],
        cwd=keys.folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    problem = f"headrace: tls_key: the key in {keys.client_key} does not fit the certificate in"
    assert done.stderr == f"{problem} {keys.certificate}\n"
    assert (done.returncode, done.stdout) == (2, "")


async def grpc_server(certificates: Certificates) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()  # type: ignore[attr-defined] # its __init__ defines it later
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = listen(server, f"{HOST}:0", certificates)
    await server.start()
    return server, port


async def presented(port: int) -> str:
    """The certificate that a server shows, as PEM."""
    return await asyncio.to_thread(ssl.get_server_certificate, (HOST, port))
