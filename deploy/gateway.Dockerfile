# The gateway: gRPC in, NATS out, no torch.
# Build from the repository's root: docker build -f deploy/gateway.Dockerfile -t nst-gateway:0.1.0 .

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY nst_engine nst_engine
COPY server server
COPY client client
COPY protos protos
RUN python -m venv /opt/nst \
    && /opt/nst/bin/pip install --no-cache-dir -c constraints.txt '.[gateway,tracing]'

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin nst
COPY --from=build /opt/nst /opt/nst
ENV PATH=/opt/nst/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NST_LISTEN=0.0.0.0:50051 \
    NST_METRICS_LISTEN=0.0.0.0:9090
USER 10001:10001
EXPOSE 50051 9090
ENTRYPOINT ["nst-server"]
CMD ["gateway"]
