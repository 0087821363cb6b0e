"""TLS of the REST listener: where Envoy finds the certificates, and what the files say."""

from __future__ import annotations

from typing import Any, Final

from headrace.envoy.options import TlsOptions

_TLS: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3"
_SERVER: Final = "certificate"
_CLIENTS: Final = "client-ca"


def transport_socket(tls: TlsOptions | None) -> dict[str, Any]:
    """The filter chain's ``transport_socket``; empty for plain text."""
    if tls is None:
        return {}
    common: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_2"},
        "tls_certificate_sds_secret_configs": [_secret(tls, _SERVER)],
        "alpn_protocols": ["h2", "http/1.1"],
    }
    if tls.client_auth:
        common["validation_context_sds_secret_config"] = _secret(tls, _CLIENTS)
    config = {
        "@type": f"{_TLS}.DownstreamTlsContext",
        "common_tls_context": common,
        "require_client_certificate": tls.client_auth,
    }
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": config}}


def secrets(certificate: str, private_key: str, client_ca: str | None) -> dict[str, dict[str, Any]]:
    """The files of ``TlsOptions.secrets``, by name; each has one secret, as Envoy wants it.

    The PEM text itself is in them, so that a certificate never comes without its key.

    Args:
        certificate: PEM certificate chain, the server's own certificate first.
        private_key: PEM private key, not encrypted.
        client_ca: PEM certificates of the authorities that may have signed clients' certificates; None where
            no client needs one.
    """
    pair = {
        "certificate_chain": {"inline_string": certificate},
        "private_key": {"inline_string": private_key},
    }
    found = {f"{_SERVER}.json": _resource(_SERVER, "tls_certificate", pair)}
    if client_ca is not None:
        trusted = {"trusted_ca": {"inline_string": client_ca}}
        found[f"{_CLIENTS}.json"] = _resource(_CLIENTS, "validation_context", trusted)
    return found


def _secret(tls: TlsOptions, name: str) -> dict[str, Any]:
    source = {"path_config_source": {"path": f"{tls.secrets}/{name}.json"}, "resource_api_version": "V3"}
    return {"name": name, "sds_config": source}


def _resource(name: str, kind: str, value: dict[str, Any]) -> dict[str, Any]:
    return {"resources": [{"@type": f"{_TLS}.Secret", "name": name, kind: value}]}
