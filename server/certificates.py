"""The server's certificate: read and checked, given to gRPC and Envoy, and read again when it is renewed."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import grpc
import structlog

from headrace.envoy.options import TlsOptions
from headrace.envoy.tls import secrets
from headrace.server.config import ConfigError
from headrace.server.transport.server import Server

if TYPE_CHECKING:
    from headrace.server.config import Settings

log = structlog.get_logger(__name__)

WATCH_SECONDS: Final = 5.0
"""How often the files are looked at. Asking is a few ``stat`` calls, and works on every file system."""

_MISFITS: Final = frozenset({"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"})


class _Pem(NamedTuple):
    certificate: bytes
    key: bytes
    client_ca: bytes | None


class Certificates:
    """A certificate chain, its key and, for mutual TLS, the authorities of clients, from PEM files.

    What is served changes only to what has been checked: a renewal that is half written is passed over until
    it is whole. Connections that are open keep the certificate that they began with.

    Args:
        certificate: the server's certificate, followed by those of intermediate authorities.
        key: its private key, not encrypted.
        client_ca: authorities, one of which has to have signed the certificate that each client presents;
            None to ask clients for none.

    Raises:
        ConfigError: a file cannot be read or used; the text names it and its setting.
    """

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None = None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._published: Path | None = None
        self._state = self._files_state()
        self._pem = self._read()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Return credentials for ports of a gRPC server, which follow renewals: TLS 1.2 or newer."""
        given = self._pem

        def renewed() -> grpc.ServerCertificateConfiguration | None:
            """Answer gRPC's question at each handshake, in a thread of its own; None: nothing is new."""
            nonlocal given
            latest = self._pem
            if latest is given:
                return None
            given = latest
            return _configuration(latest)

        mutual = self._client_ca is not None
        return grpc.dynamic_ssl_server_credentials(
            _configuration(given),
            renewed,  # type: ignore[arg-type] # the stubs forget that None is allowed
            require_client_authentication=mutual,
        )

    def publish(self, folder: Path) -> TlsOptions:
        """Write what Envoy reads into ``folder``, from now on after each renewal too.

        The folder is made with mode 0700 and the files, which hold the key, with 0600.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._published = folder
        self._write(folder)
        return TlsOptions(str(folder), client_auth=self._client_ca is not None)

    async def watch(self) -> None:
        """Look for renewed files until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            self.refresh()

    def refresh(self) -> None:
        """Read the files again if they have changed, and serve what they hold if it can be used."""
        state = self._files_state()
        if state == self._state:
            return
        self._state = state
        try:
            pem = self._read()
        except ConfigError as error:
            log.warning("the renewed certificate cannot be used, the last one is kept", reason=str(error))
            return
        if pem == self._pem:
            return
        self._pem = pem
        if self._published is not None:
            self._write(self._published)
        log.info("certificate renewed", certificate=str(self._certificate))

    def _files_state(self) -> list[tuple[int, int, int] | None]:
        """What tells that a file has changed, or was replaced, or a link on the way to it was."""
        found: list[tuple[int, int, int] | None] = []
        for path in filter(None, (self._certificate, self._key, self._client_ca)):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_mtime_ns, status.st_size, status.st_ino))
        return found

    def _write(self, folder: Path) -> None:
        pem = self._pem
        client_ca = None if pem.client_ca is None else pem.client_ca.decode()
        for name, document in secrets(pem.certificate.decode(), pem.key.decode(), client_ca).items():
            descriptor, new = tempfile.mkstemp(dir=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                json.dump(document, file)
            Path(new).replace(folder / name)  # Envoy reads a file when another takes its place

    def _read(self) -> _Pem:
        """Read the files, and have OpenSSL take them as a server would.

        Raises:
            ConfigError: as the constructor.
        """
        certificate = _text("tls_certificate", self._certificate, "CERTIFICATE")
        key = _text("tls_key", self._key, "PRIVATE KEY")
        if b"ENCRYPTED" in key:
            raise ConfigError(f"tls_key: {self._key} is encrypted, and nobody is there to give its password")
        client_ca = None
        if self._client_ca is not None:
            client_ca = _text("tls_client_ca", self._client_ca, "CERTIFICATE")
        pem = _Pem(certificate, key, client_ca)
        self._check(pem)
        return pem

    def _check(self, pem: _Pem) -> None:
        """Check what was read, not what is in the files by now: OpenSSL is shown copies."""
        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            certificate, key, client_ca = copies = [Path(folder, name) for name in pem._fields]
            for copy, data in zip(copies, pem, strict=True):
                copy.write_bytes(data or b"")
            _check_certificates("tls_certificate", self._certificate, certificate)
            if self._client_ca is not None:
                _check_certificates("tls_client_ca", self._client_ca, client_ca)
            try:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
            except ssl.SSLError as error:
                if error.reason in _MISFITS:
                    raise ConfigError(
                        f"tls_key: the key in {self._key} does not fit the certificate in {self._certificate}"
                    ) from None
                raise ConfigError(
                    f"tls_key: {self._key} cannot be used with the certificate in {self._certificate}: "
                    f"{error.reason or error}"
                ) from None


def server_certificates(settings: Settings) -> Certificates | None:
    """Return the certificates that the settings name; None where they name none.

    Raises:
        ConfigError: they cannot be used.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificates(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)


def listen(server: Server | grpc.aio.Server, address: str, certificates: Certificates | None) -> int:
    """Have ``server`` listen on a TCP address, with TLS where there are certificates; return the port.

    Raises:
        RuntimeError: the address cannot be bound.
    """
    if certificates is None:
        return server.add_insecure_port(address)
    if isinstance(server, Server):
        raise TypeError("this server speaks no TLS")  # serving.grpc_server has not made it so
    return server.add_secure_port(address, certificates.grpc_credentials())


def _configuration(pem: _Pem) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(pem.key, pem.certificate)], root_certificates=pem.client_ca
    )


def _text(setting: str, path: Path, kind: str) -> bytes:
    """Read a PEM file that holds at least one part of ``kind``."""
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise ConfigError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = ""
    if f"{kind}-----" not in text:
        raise ConfigError(f"{setting}: {path} holds no {kind.lower()} in PEM form")
    return text.encode()


def _check_certificates(setting: str, path: Path, copy: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(copy)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{setting}: {path} holds no certificate that can be read: {error.reason or error}"
        ) from None
