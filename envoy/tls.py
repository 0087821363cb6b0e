"""TLS of the REST listener."""

from __future__ import annotations

from typing import Any

from headrace.envoy.options import TlsOptions


def transport_socket(tls: TlsOptions | None) -> dict[str, Any]:
    """The filter chain's ``transport_socket``; empty for plain text. The files are read once, at start."""
    if tls is None:
        return {}
    certificate: dict[str, Any] = {
        "certificate_chain": {"filename": tls.certificate},
        "private_key": {"filename": tls.private_key},
    }
    if tls.password_file:
        certificate["password"] = {"filename": tls.password_file}
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": f"TLSv{tls.minimum.replace('.', '_')}"},
        "tls_certificates": [certificate],
        "alpn_protocols": ["h2", "http/1.1"],
    }
    config: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        "common_tls_context": common,
    }
    if tls.client_ca:
        validation: dict[str, Any] = {"trusted_ca": {"filename": tls.client_ca}}
        if tls.client_crl:
            validation["crl"] = {"filename": tls.client_crl}
        common["validation_context"] = validation
        config["require_client_certificate"] = True
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": config}}
