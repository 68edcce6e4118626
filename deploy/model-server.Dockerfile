# The model server: tickets in, pictures out, one GPU.
# Build from the repository's root: docker build -f deploy/model-server.Dockerfile -t nst-model-server:0.1.0 .
# torch's wheel brings the CUDA libraries; the host brings the driver.

FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md ./
COPY nst_engine nst_engine
COPY server server
COPY client client
COPY protos protos
RUN python -m venv /opt/nst \
    && /opt/nst/bin/pip install --no-cache-dir -c constraints.txt '.[server,faces,tracing]'

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin nst \
    && install --directory --owner=10001 --group=10001 /var/cache/nst
COPY --from=build /opt/nst /opt/nst
ENV PATH=/opt/nst/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NST_CACHE=/var/cache/nst \
    NST_METRICS_LISTEN=0.0.0.0:9090
USER 10001:10001
# The feature networks' weights, fetched by `nst weights pull` or by the first job that needs them.
VOLUME /var/cache/nst
EXPOSE 9090
ENTRYPOINT ["nst-server"]
CMD ["model-server"]
