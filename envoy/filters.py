"""The HTTP filters: CORS, our two scripts, gRPC-Web, the gRPC-JSON transcoder and the router."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from headrace.envoy.options import BootstrapOptions

_TYPES: Final = "type.googleapis.com/envoy"
_FOLDER: Final = Path(__file__).parent


def _filter(kind: str, message: str, **config: Any) -> dict[str, Any]:
    return {
        "name": f"envoy.filters.http.{kind}",
        "typed_config": {"@type": f"{_TYPES}.extensions.filters.http.{kind}.v3.{message}", **config},
    }


def _header(side: str, name: str, **match: Any) -> dict[str, Any]:
    """Predicate on a header of the ``side`` "Request" or "Response"; false where it is absent."""
    config = {"@type": f"{_TYPES}.type.matcher.v3.Http{side}HeaderMatchInput", "header_name": name}
    return {"single_predicate": {"input": {"name": name, "typed_config": config}, "value_match": match}}


def _not(predicate: dict[str, Any]) -> dict[str, Any]:
    return {"not_matcher": predicate}


def _script(name: str, skip_when: dict[str, Any]) -> dict[str, Any]:
    """A Lua filter that is left out where the predicate holds.

    Starting a script costs more than all of its work, so an ordinary request runs none. Whether a filter is
    skipped is decided once: hence a script for requests and one for answers, each judged by its own headers.
    """
    source = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    skip = {
        "name": "skip",
        "typed_config": {"@type": f"{_TYPES}.extensions.filters.common.matcher.action.v3.SkipFilter"},
    }
    return {
        "name": f"headrace.{name}",
        "typed_config": {
            "@type": f"{_TYPES}.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": _filter("lua", "Lua", default_source_code={"inline_string": source}),
            "xds_matcher": {
                "matcher_list": {"matchers": [{"predicate": skip_when, "on_match": {"action": skip}}]},
            },
        },
    }


def http_filters(
    options: BootstrapOptions, descriptor_set: bytes, services: Sequence[str], path_variables: Sequence[str]
) -> list[dict[str, Any]]:
    """The filters in request order; answers pass them in reverse: scripts see what the transcoder made.

    Args:
        options: what a deployment chooses.
        descriptor_set: serialized ``FileDescriptorSet`` of the services.
        services: full names of the services to transcode.
        path_variables: request fields that only a path fills: ``?model=b`` must not win over ``/models/a``.
    """
    any_status = _header("Response", "x-http-status", safe_regex={"google_re2": {}, "regex": ".+"})
    plain = {"and_matcher": {"predicate": [_header("Response", ":status", exact="200"), _not(any_status)]}}
    return [
        _filter("cors", "Cors"),
        _script("request", _not(_header("Request", ":path", prefix="/models/"))),
        _script("response", plain),
        _filter("grpc_web", "GrpcWeb"),
        _filter(
            "grpc_json_transcoder",
            "GrpcJsonTranscoder",
            proto_descriptor_bin=base64.b64encode(descriptor_set).decode(),
            services=list(services),
            convert_grpc_status=True,
            request_validation_options={"reject_unknown_method": True},
            ignore_unknown_query_parameters=True,
            ignored_query_parameters=list(path_variables),
            url_unescape_spec="ALL_CHARACTERS",
            max_request_body_size=options.max_body_bytes,
            max_response_body_size=options.max_body_bytes,
            print_options={"always_print_primitive_fields": True, "preserve_proto_field_names": True},
        ),
        _filter("router", "Router", suppress_envoy_headers=True, dynamic_stats=False),
    ]
