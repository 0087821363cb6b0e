"""The one registration list: every proto service, what implements it and its family name.

A new family is a proto, a service class and one line here; Envoy's routes follow from the descriptors.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import grpc
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.message_factory import GetMessageClass

from headrace.kserve.v2 import grpc_service_pb2
from headrace.rest.v1 import (
    endpoint_pb2,
    kserve_pb2,
    oicm_pb2,
    openai_pb2,
    ops_pb2,
    tei_pb2,
    tgi_pb2,
    vllm_pb2,
)
from headrace.server.codecs.openapi import document
from headrace.server.codecs.tei_info import EncoderInfo
from headrace.server.codecs.tgi_limits import TgiLimits
from headrace.server.interceptors import decode_message, grpc_status
from headrace.server.services.classification import ClassificationService
from headrace.server.services.embedding import EmbeddingService
from headrace.server.services.endpoint import EndpointService
from headrace.server.services.generation import GenerationService
from headrace.server.services.kserve import GRPCInferenceService
from headrace.server.services.kserve_generate import KserveGenerateService
from headrace.server.services.kserve_rest import KserveService
from headrace.server.services.oicm import OicmService
from headrace.server.services.openai import OpenaiService
from headrace.server.services.openai_generation import OpenaiGenerationService
from headrace.server.services.openai_responses import OpenaiResponsesService
from headrace.server.services.openai_routes import OpenaiRoutes
from headrace.server.services.ops import OpsService
from headrace.server.services.pooling_requests import PoolingRequests
from headrace.server.services.prediction import PredictionService
from headrace.server.services.ranking import RankingService
from headrace.server.services.tei import TeiService
from headrace.server.services.tei_embed import TeiEmbedService
from headrace.server.services.tei_models import embeds, labels, ranks
from headrace.server.services.tei_requests import TeiRequests
from headrace.server.services.tei_text import (
    TeiInfoService,
    TeiPredictService,
    TeiRerankService,
    TeiTokenizeService,
)
from headrace.server.services.tei_vectors import TeiVectorsService
from headrace.server.services.tgi import TgiService
from headrace.server.services.tgi_requests import TgiRequests
from headrace.server.services.vllm import VllmService
from headrace.server.services.vllm_pooling import VllmPoolingService
from headrace.tei.v1 import tei_pb2 as teiv1_pb2
from headrace.v1 import classification_pb2, embedding_pb2, generation_pb2, prediction_pb2, ranking_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

    from headrace.server.config import Settings
    from headrace.server.interceptors import Interceptors
    from headrace.server.repository.registry import Repository
    from headrace.server.services.health import Serves
    from headrace.server.tasks.generate import Generating
    from headrace.server.tasks.tokenization import Tokenizing
    from headrace.server.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class Dependencies:
    """What services are built from."""

    settings: Settings
    repository: Repository
    tokenizing: Tokenizing
    generating: Generating
    metrics: Metrics
    serving: Callable[[], bool]
    summaries: dict[str, str] = field(default_factory=dict)  # of RPCs by full name; written by `handlers`


class Registration(NamedTuple):
    """One proto service: its family (a metrics label), its descriptor and how to build it.

    ``serves`` says by the ready models whether the service is healthy; None where it follows readiness.
    """

    protocol: str
    descriptor: ServiceDescriptor
    build: Callable[[Dependencies], Any]
    serves: Serves | None = None


SERVICES: Final = (
    Registration(
        "kserve",
        grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"],
        lambda d: GRPCInferenceService(d.repository, d.generating, d.settings.server_id),
    ),
    Registration(
        "headrace",
        embedding_pb2.DESCRIPTOR.services_by_name["EmbeddingService"],
        lambda d: EmbeddingService(d.repository, d.tokenizing),
    ),
    Registration(
        "headrace",
        ranking_pb2.DESCRIPTOR.services_by_name["RankingService"],
        lambda d: RankingService(d.repository, d.tokenizing),
    ),
    Registration(
        "headrace",
        classification_pb2.DESCRIPTOR.services_by_name["ClassificationService"],
        lambda d: ClassificationService(d.repository, d.tokenizing),
    ),
    Registration(
        "headrace",
        prediction_pb2.DESCRIPTOR.services_by_name["PredictionService"],
        lambda d: PredictionService(d.repository, d.tokenizing),
    ),
    Registration(
        "headrace",
        generation_pb2.DESCRIPTOR.services_by_name["GenerationService"],
        lambda d: GenerationService(d.repository, d.generating),
    ),
    Registration(
        "kserve-rest",
        kserve_pb2.DESCRIPTOR.services_by_name["KserveService"],
        lambda d: KserveService(d.repository, d.tokenizing, d.settings.server_id, d.settings.max_body_bytes),
    ),
    Registration(
        "kserve-rest",
        kserve_pb2.DESCRIPTOR.services_by_name["KserveGenerateService"],
        lambda d: KserveGenerateService(d.repository, d.generating),
    ),
    Registration(
        "openai",
        openai_pb2.DESCRIPTOR.services_by_name["OpenaiService"],
        lambda d: OpenaiService(d.repository, _pooling_requests(d)),
    ),
    Registration(
        "openai",
        openai_pb2.DESCRIPTOR.services_by_name["OpenaiGenerationService"],
        lambda d: OpenaiGenerationService(d.repository, d.generating, version("headrace")),
    ),
    Registration(
        "openai",
        openai_pb2.DESCRIPTOR.services_by_name["OpenaiResponsesService"],
        lambda d: OpenaiResponsesService(d.repository, d.generating, version("headrace")),
    ),
    Registration(
        "vllm",
        vllm_pb2.DESCRIPTOR.services_by_name["VllmService"],
        lambda d: VllmService(
            d.repository, d.generating, version("headrace"), d.settings.max_client_batch_size
        ),
    ),
    Registration(
        "vllm",
        vllm_pb2.DESCRIPTOR.services_by_name["VllmPoolingService"],
        lambda d: VllmPoolingService(_pooling_requests(d)),
    ),
    Registration(
        "tgi",
        tgi_pb2.DESCRIPTOR.services_by_name["TgiService"],
        lambda d: TgiService(_tgi_requests(d), d.generating),
    ),
    Registration(
        "tei",
        tei_pb2.DESCRIPTOR.services_by_name["TeiService"],
        lambda d: TeiService(_tei_requests(d), _pooling_requests(d)),
    ),
    Registration(
        "tei",
        tei_pb2.DESCRIPTOR.services_by_name["TeiVectorsService"],
        lambda d: TeiVectorsService(_tei_requests(d)),
    ),
    Registration(
        "endpoint",
        endpoint_pb2.DESCRIPTOR.services_by_name["EndpointService"],
        lambda d: EndpointService(
            d.repository,
            _tgi_requests(d),
            _tei_requests(d),
            OpenaiRoutes(d.repository, d.generating, version("headrace")),
            _pooling_requests(d),
            _encoder_info(d),
            d.settings.max_queue_size,
        ),
    ),
    Registration(
        "tei-grpc",
        teiv1_pb2.DESCRIPTOR.services_by_name["Embed"],
        lambda d: TeiEmbedService(d.repository, d.tokenizing, d.settings.compute_type),
        lambda models: any(embeds(model) for model in models),
    ),
    Registration(
        "tei-grpc",
        teiv1_pb2.DESCRIPTOR.services_by_name["Predict"],
        lambda d: TeiPredictService(d.repository, d.tokenizing, d.settings.compute_type),
        lambda models: any(labels(model) for model in models),
    ),
    Registration(
        "tei-grpc",
        teiv1_pb2.DESCRIPTOR.services_by_name["Rerank"],
        lambda d: TeiRerankService(
            d.repository, d.tokenizing, d.settings.max_client_batch_size, d.settings.compute_type
        ),
        lambda models: any(ranks(model) for model in models),
    ),
    Registration(
        "tei-grpc",
        teiv1_pb2.DESCRIPTOR.services_by_name["Tokenize"],
        lambda d: TeiTokenizeService(d.repository, d.tokenizing),
        lambda _: True,
    ),
    Registration(
        "tei-grpc",
        teiv1_pb2.DESCRIPTOR.services_by_name["Info"],
        lambda d: TeiInfoService(d.repository, _encoder_info(d)),
        lambda _: True,
    ),
    Registration(
        "oicm",
        oicm_pb2.DESCRIPTOR.services_by_name["OicmService"],
        lambda d: OicmService(d.repository, d.tokenizing, _pooling_requests(d), d.settings.compute_type),
    ),
    Registration(
        "ops",
        ops_pb2.DESCRIPTOR.services_by_name["OpsService"],
        lambda d: OpsService(d.metrics, d.serving, partial(_describe, d.summaries), d.repository.resolve),
    ),
)


def _tei_requests(dependencies: Dependencies) -> TeiRequests:
    settings = dependencies.settings
    return TeiRequests(
        dependencies.repository,
        dependencies.tokenizing,
        settings.max_client_batch_size,
        compute_type=settings.compute_type,
    )


def _tgi_requests(dependencies: Dependencies) -> TgiRequests:
    settings = dependencies.settings
    limits = TgiLimits(
        settings.tgi_max_best_of,
        settings.tgi_max_stop_sequences,
        settings.tgi_max_top_n_tokens,
        settings.max_queue_size,
        dependencies.tokenizing.threads,
        settings.compute_type,
    )
    return TgiRequests(dependencies.repository, dependencies.generating, limits, version("headrace"))


def _pooling_requests(dependencies: Dependencies) -> PoolingRequests:
    return PoolingRequests(
        dependencies.repository,
        dependencies.tokenizing,
        dependencies.generating.templates,
        compute_type=dependencies.settings.compute_type,
    )


def _encoder_info(dependencies: Dependencies) -> EncoderInfo:
    settings = dependencies.settings
    return EncoderInfo(
        settings.max_queue_size, settings.max_client_batch_size, dependencies.tokenizing.threads
    )


def descriptors() -> tuple[ServiceDescriptor, ...]:
    """Return every service's descriptor; what Envoy's bootstrap and reflection are made of."""
    return tuple(registration.descriptor for registration in SERVICES)


def _describe(summaries: Mapping[str, str]) -> bytes:
    return document(descriptors(), summaries, version("headrace"))


def handlers(
    dependencies: Dependencies, interceptors: Interceptors
) -> Iterable[grpc.GenericRpcHandler[Any, Any]]:
    """Build every service and yield its gRPC handlers, each method wrapped by the interceptors."""
    for protocol, descriptor, build, _ in SERVICES:
        service = build(dependencies)
        for method in descriptor.methods:
            text = inspect.getdoc(getattr(service, method.name)) or method.name
            dependencies.summaries[method.full_name] = text.splitlines()[0]
        methods = {
            method.name: _handler(protocol, method, getattr(service, method.name), service, interceptors)
            for method in descriptor.methods
        }
        yield grpc.method_handlers_generic_handler(descriptor.full_name, methods)


def _handler(
    protocol: str,
    method: MethodDescriptor,
    implementation: Callable[..., Any],
    service: Any,
    interceptors: Interceptors,
) -> grpc.RpcMethodHandler[Any, Any]:
    """Choose the wrapper and the grpc handler for a method's kind."""
    parse = GetMessageClass(method.input_type).FromString
    decode = partial(decode_message, getattr(service, "parsers", {}).get(method.name, parse))
    response = GetMessageClass(method.output_type)
    encode = response.SerializeToString
    name = method.name
    if response is HttpBody and method.server_streaming:
        streamed = interceptors.facade_stream(protocol, name, implementation, service)
        return grpc.unary_stream_rpc_method_handler(streamed, decode, encode)
    if response is HttpBody:
        wrapped = interceptors.facade(protocol, name, implementation, service)
        return grpc.unary_unary_rpc_method_handler(wrapped, decode, encode)
    status = getattr(service, "grpc_status", grpc_status)
    if not method.server_streaming:
        answered = interceptors.unary(protocol, name, implementation, status)
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(answered, decode, encode)
        return grpc.unary_unary_rpc_method_handler(answered, decode, encode)
    if inspect.iscoroutinefunction(implementation):
        msg = f"{method.full_name} streams, so its implementation must return an async generator"
        raise TypeError(msg)
    stream = interceptors.stream(protocol, name, implementation, status)
    if method.client_streaming:
        return grpc.stream_stream_rpc_method_handler(stream, decode, encode)
    return grpc.unary_stream_rpc_method_handler(stream, decode, encode)
