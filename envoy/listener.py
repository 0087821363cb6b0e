"""Listeners, their connection manager and its filters."""

from __future__ import annotations

from typing import Any, Final

from headrace.envoy.options import MAX_HEADERS, MAX_HEADERS_KB, BootstrapOptions, TlsOptions
from headrace.envoy.tls import transport_socket

#: Request headers that only request.lua may set; what comes from outside is removed first of all.
MODEL_HEADER: Final = "x-headrace-model"
SURFACE_HEADER: Final = "x-headrace-surface"

_EXTENSIONS: Final = "type.googleapis.com/envoy.extensions"


def _request_id() -> dict[str, Any]:
    """A caller's request id is kept to the letter, a missing one is made, and every answer has it."""
    extension = f"{_EXTENSIONS}.request_id.uuid.v3.UuidRequestIdConfig"
    return {
        "generate_request_id": True,
        "preserve_external_request_id": True,
        "always_set_request_id_in_response": True,
        "request_id_extension": {
            "typed_config": {
                "@type": extension,
                "pack_trace_reason": False,
                "use_request_id_for_trace_sampling": False,
            }
        },
    }


def _access_log(options: BootstrapOptions) -> dict[str, Any]:
    if not options.access_log:
        return {}
    line = {
        "request_id": "%REQ(X-REQUEST-ID)%",
        "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
        "protocol": "%PROTOCOL%",
        "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
        "path": "%REQ(X-ENVOY-ORIGINAL-PATH?:PATH)%",
        "model": f"%REQ({MODEL_HEADER})%",
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "duration_ms": "%DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
    }
    config = {
        "@type": f"{_EXTENSIONS}.access_loggers.stream.v3.StdoutAccessLog",
        "log_format": {"json_format": line},
    }
    return {"access_log": [{"name": "envoy.access_loggers.stdout", "typed_config": config}]}


def _removed_headers(options: BootstrapOptions) -> dict[str, Any]:
    names = [SURFACE_HEADER] if options.allow_model_header else [MODEL_HEADER, SURFACE_HEADER]
    config = {
        "@type": f"{_EXTENSIONS}.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        "mutations": [{"remove": name} for name in names],
    }
    name = "envoy.http.early_header_mutation.header_mutation"
    return {"early_header_mutation_extensions": [{"name": name, "typed_config": config}]}


def _connection_manager(
    options: BootstrapOptions,
    filters: list[dict[str, Any]],
    replies: dict[str, Any],
    routes: dict[str, Any],
) -> dict[str, Any]:
    """HTTP/1.0, 1.1 and 2 (prior knowledge) on one port; a stream may last as long as it likes."""
    return {
        "@type": f"{_EXTENSIONS}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "rest",
        "codec_type": "AUTO",
        "server_name": "headrace",
        "use_remote_address": True,
        "skip_xff_append": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "headrace"},
        "http2_protocol_options": {
            "max_concurrent_streams": 2147483647,
            "initial_stream_window_size": 16 * 1024 * 1024,
            "initial_connection_window_size": 64 * 1024 * 1024,
        },
        "max_request_headers_kb": MAX_HEADERS_KB,
        "common_http_protocol_options": {"max_headers_count": MAX_HEADERS, "idle_timeout": "3600s"},
        "stream_idle_timeout": "0s",
        "request_timeout": "0s",
        "request_headers_timeout": "60s",
        **_request_id(),
        **_removed_headers(options),
        "local_reply_config": replies,
        **_access_log(options),
        "route_config": routes,
        "http_filters": filters,
    }


def listener(
    options: BootstrapOptions,
    name: str,
    port: int,
    *,
    filters: list[dict[str, Any]],
    replies: dict[str, Any],
    routes: dict[str, Any],
    tls: TlsOptions | None = None,
) -> dict[str, Any]:
    """A TCP listener.

    The port is not shared: with SO_REUSEPORT a second server on the same port would start without an error
    and take half of the connections. Keep-alive probes find clients that vanished during a stream of hours.
    """
    manager = _connection_manager(options, filters, replies, routes)
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {
        "name": name,
        "address": {"socket_address": {"address": options.address, "port_value": port}},
        "enable_reuse_port": False,
        "tcp_keepalive": {"keepalive_time": 60, "keepalive_interval": 15, "keepalive_probes": 4},
        "filter_chains": [{**chain, **transport_socket(tls)}],
    }
