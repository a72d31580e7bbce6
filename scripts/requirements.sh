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
# What the stores of a cluster need is in the images' sets; Airflow's own database is a PostgreSQL there.
compile pyproject.toml --extra s3 --extra postgres --extra redis -o requirements/payload.txt
# What a laptop installs is of the same versions, so that keys made there hold.
compile pyproject.toml --extra airflow --extra demo -o requirements/demo.txt -c requirements/payload.txt
printf 'apache-airflow-providers-postgres\n' | compile pyproject.toml - --extra airflow --extra kubernetes --extra s3 \
  --extra postgres --extra redis --extra demo -o requirements/control.txt -c requirements/payload.txt
# What tests need on top is resolved together with what they test.
compile pyproject.toml --all-extras --group test --group lint --group docs --group benchmark -o requirements/dev.txt -c requirements/demo.txt
