# The control plane: Airflow with our operators, for the scheduler, the DAG processor, the API server, the triggerer and
# the workers of the official chart, and for MLflow's server.
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ARG PYTHON=python3.11
RUN if ! command -v "$PYTHON" >/dev/null || ! "$PYTHON" -c "import ensurepip"; then \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates "$PYTHON" "$PYTHON-venv" \
      && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    fi
# The uid and group that the official Airflow chart runs its containers as.
RUN printf 'airflow:x:50000:0:airflow:/tmp:/usr/sbin/nologin\n' >> /etc/passwd \
    && mkdir -p /opt/airflow/dags /opt/airflow/logs /opt/airflow/plugins /var/lib/airloop \
    && chown -R 50000:0 /opt/airflow /var/lib/airloop \
    && chmod -R 0775 /opt/airflow /var/lib/airloop
# Where there is no such file Airflow writes one, which a read-only root forbids, with keys that no other container has. This
# one sets nothing: Airflow says what it misses. The official chart mounts its own over it.
RUN printf '# Set by the environment, or mount a file over this one.\n' > /opt/airflow/airflow.cfg
# The probes of the official chart call the entry point of Airflow's own image by this name.
RUN printf '#!/bin/sh\nexec "$@"\n' > /entrypoint && chmod 0755 /entrypoint

FROM base AS build
ARG PYTHON=python3.11
WORKDIR /src
COPY requirements/uv.txt requirements/build.txt requirements/
RUN "$PYTHON" -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --no-cache-dir --require-hashes --only-binary :all: \
      -r requirements/uv.txt -r requirements/build.txt
ARG REQUIREMENTS=requirements/control.txt
COPY ${REQUIREMENTS} requirements/pinned.txt
# One of them may be a source distribution, and what builds it is pinned too.
RUN --mount=type=cache,target=/root/.cache/uv \
    "$PYTHON" -m venv --without-pip /opt/airloop \
    && /opt/build/bin/uv pip install --python /opt/airloop/bin/python --link-mode copy --compile-bytecode \
      --require-hashes -r requirements/pinned.txt --build-constraints requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY airloop airloop
COPY operators operators
RUN /opt/build/bin/pip wheel --quiet --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheels . \
    && /opt/build/bin/uv pip install --python /opt/airloop/bin/python --no-cache --compile-bytecode --no-deps /wheels/airloop-*.whl
RUN AIRFLOW_HOME=/tmp/airflow /opt/airloop/bin/python -m airflow providers list | grep -q airloop

FROM base AS control
COPY --from=build /opt/airloop /opt/airloop
COPY --chown=50000:0 plugins /opt/airflow/plugins
COPY images/health.py /opt/airloop/health.py
ENV PATH=/opt/airloop/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__LOAD_EXAMPLES=False \
    AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False \
    AIRLOOP_HOME=/var/lib/airloop \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME ["/tmp", "/var/lib/airloop", "/opt/airflow/logs"]
WORKDIR /opt/airflow
USER 50000:0
HEALTHCHECK --interval=30s --timeout=20s --start-period=120s CMD ["python", "/opt/airloop/health.py"]
CMD ["airflow", "version"]
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="airloop control plane" \
      org.opencontainers.image.description="Airflow with Airloop's operators, and MLflow's server." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="$BASE"

# With the loops of the example in it; loops of your own come this way too, or by the chart's git-sync.
FROM control AS control-demo
COPY --chown=50000:0 dags /opt/airflow/dags
COPY feature_repo /opt/loops/feature_repo

FROM control
