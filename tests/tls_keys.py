"""Keys for tests of TLS: an authority, and what it has signed for the server and for a client."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path

import trustme


class Keys:
    """PEM files: ``ca``, ``certificate`` and ``key`` of the server, ``client`` and ``client_key``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._authority = trustme.CA()
        self.ca = self._write("ca.pem", [self._authority.cert_pem])
        self.certificate, self.key = self._pair("server", "127.0.0.1", "localhost")
        self.client, self.client_key = self._pair("client", "client@example.org")

    def renew(self) -> str:
        """Put another certificate of the server, and its key, in the place of the last; return it as PEM."""
        return self._pair("server", "127.0.0.1", "localhost")[0].read_text()

    def context(self, *, client: bool = False) -> ssl.SSLContext:
        """How a client trusts the authority, with a certificate of its own where it needs one."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if client:
            context.load_cert_chain(self.client, self.client_key)
        return context

    def _pair(self, name: str, *identities: str) -> tuple[Path, Path]:
        leaf = self._authority.issue_cert(*identities)
        certificate = self._write(f"{name}.pem", leaf.cert_chain_pems)
        return certificate, self._write(f"{name}.key", [leaf.private_key_pem])

    def _write(self, name: str, parts: Sequence[trustme.Blob]) -> Path:
        path = self.folder / name
        path.write_bytes(b"".join(part.bytes() for part in parts))
        return path
