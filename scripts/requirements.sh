#!/usr/bin/env bash
# Compile the pinned, hashed requirement files. One file serves Python 3.11 and 3.12; none names an index.
set -euo pipefail
cd "$(dirname "$0")/.."
uv=${1:-uv}
compile() { "$uv" pip compile --quiet --universal --no-emit-index-url --no-emit-find-links --generate-hashes \
  --python-version 3.11 --custom-compile-command "make requirements" "$@"; }
printf 'uv\n' | compile - -o requirements/uv.txt
# What the images build wheels with: our own, and the one source distribution among the pinned ones.
printf 'hatchling\nsetuptools\n' | compile - -o requirements/build.txt
# The largest set comes first, and all others are parts of it: equal versions, so that keys made in one hold in another.
# What the stores of a cluster need is in the images' sets; Airflow's own database is a PostgreSQL there.
printf 'apache-airflow-providers-postgres\n' | compile pyproject.toml - --extra airflow --extra kubernetes --extra s3 \
  --extra postgres --extra redis --extra demo -o requirements/control.txt
compile pyproject.toml --extra s3 --extra postgres --extra redis -o requirements/payload.txt -c requirements/control.txt
compile pyproject.toml --extra airflow --extra demo -o requirements/demo.txt -c requirements/control.txt
# What tests need on top is resolved together with what they test.
compile pyproject.toml --all-extras --group test --group lint --group docs --group benchmark -o requirements/dev.txt \
  -c requirements/control.txt
