# One image for every part of the many-machine deployment: Airflow's parts, the workers, the MLflow server.
ARG BASE=python:3.11.15-slim-bookworm
FROM ${BASE}

ENV PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

# libgomp: XGBoost's threads. dumb-init: signals reach a worker's children.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends dumb-init libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 50000 --gid 0 --create-home --home-dir /opt/airflow evergreen \
    && mkdir -p /opt/airflow/logs /opt/airflow/auth \
    && chown -R 50000:0 /opt/airflow

COPY requirements.txt requirements-cluster.txt /tmp/lock/
RUN python -m pip install uv==0.13.9 \
    && uv pip install --system --compile-bytecode --no-cache \
        -r /tmp/lock/requirements.txt -r /tmp/lock/requirements-cluster.txt

# What your deployment adds, e.g. providers for Kubernetes or single sign-on; changes no version of the locks.
ARG EXTRAS=""
RUN if [ -n "$EXTRAS" ]; then \
        uv pip install --system --compile-bytecode --no-cache \
            -c /tmp/lock/requirements.txt -c /tmp/lock/requirements-cluster.txt $EXTRAS; \
    fi; \
    rm -rf /tmp/lock

WORKDIR /opt/evergreen
COPY --chown=root:root airflow_settings.yaml ./
COPY --chown=root:root dags ./dags
COPY --chown=root:root plugins ./plugins
COPY --chown=root:root include ./include
COPY --chown=root:root docs/runbooks ./docs/runbooks
RUN python -m compileall -q dags plugins include

# The commit that is deployed: part of every model's lineage. Without it a hash of the engine's source is recorded.
ARG CODE_VERSION=""
ENV EVERGREEN_CODE_VERSION=${CODE_VERSION} \
    AIRFLOW_HOME=/opt/airflow \
    AIRFLOW__CORE__DAGS_FOLDER=/opt/evergreen/dags \
    AIRFLOW__CORE__PLUGINS_FOLDER=/opt/evergreen/plugins \
    AIRFLOW__LOGGING__BASE_LOG_FOLDER=/opt/airflow/logs \
    PYTHONPATH=/opt/evergreen \
    PYTHONDONTWRITEBYTECODE=1 \
    OMP_WAIT_POLICY=PASSIVE

USER 50000:0
ENTRYPOINT ["dumb-init", "--"]
CMD ["airflow", "version"]
