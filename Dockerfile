# llama-server with a depth for each request, on any x86-64 or arm64 processor:
#   docker build -t llama-skip .
#   docker run -p 8080:8080 -v ./models:/models:ro llama-skip -m /models/model.gguf --skip-tier fast=auto:20%
FROM python:3.13-slim-bookworm AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libssl-dev make \
    && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN CMAKE_ARGS="-DGGML_BACKEND_DL=ON -DLLAMA_OPENSSL=ON" pip wheel --no-cache-dir --wheel-dir /wheels /source

FROM python:3.13-slim-bookworm
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --create-home llama
RUN --mount=type=bind,from=build,source=/wheels,target=/wheels \
    pip install --no-cache-dir --no-index /wheels/*.whl
USER 10001
ENV LLAMA_ARG_HOST=0.0.0.0 LLAMA_ARG_PORT=8080
EXPOSE 8080
HEALTHCHECK --start-period=5m \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8080/health')"]
ENTRYPOINT ["llama-server"]
