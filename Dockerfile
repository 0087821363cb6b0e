# The server with its runtimes; models are mounted. Build: docker build -t headrace .
# How to run it: docs/operation.md, "In a container".
FROM debian:12-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends gcc libc6-dev python3-dev python3-venv \
 && rm -rf /var/lib/apt/lists/*
# A package index that has PyTorch without CUDA, for an image of 1 GB in place of 7; empty for the default one.
ARG TORCH_INDEX=""
# Without `torch` only ONNX models are served; `convert` and `demo` add `headrace convert` and `headrace pull`.
ARG EXTRAS="onnx,fusion,torch"
WORKDIR /src
RUN python3 -m venv /opt/headrace
ENV PATH=/opt/headrace/bin:$PATH PIP_NO_CACHE_DIR=1
COPY constraints.txt ./
RUN pip install -q -c constraints.txt setuptools grpcio-tools googleapis-common-protos
RUN case ",$EXTRAS," in *,torch,*) pip install -q -c constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch ;; esac
COPY pyproject.toml setup.py MANIFEST.in Makefile buf.yaml README.md ./
COPY protos protos
COPY envoy envoy
COPY runtimes runtimes
COPY server server
RUN pip install -q -c constraints.txt --no-build-isolation ".[$EXTRAS]" \
 && pip uninstall -q -y grpcio-tools setuptools

FROM debian:12-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --create-home --home-dir /var/lib/headrace headrace
COPY --from=build /opt/headrace /opt/headrace
# Others reach a container, so the server asks for API keys, mutual TLS or an explicit `allow_anonymous`.
ENV PATH=/opt/headrace/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    HEADRACE_MODEL_REPOSITORY='["/models"]' \
    HEADRACE_GRPC_HOST=0.0.0.0 \
    HEADRACE_HTTP_HOST=0.0.0.0
USER headrace
# Rewritten graphs and measured layouts are kept below it, in .cache: a volume keeps them over restarts.
WORKDIR /var/lib/headrace
EXPOSE 8000 8001
STOPSIGNAL SIGTERM
HEALTHCHECK --start-period=60s CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=5)"]
ENTRYPOINT ["headrace"]
CMD ["serve"]
