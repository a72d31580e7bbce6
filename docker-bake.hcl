# Images by `docker buildx bake`: `default` for a cluster, `accelerators` for its accelerator pools, `kind` for `make cluster`.
# What a target is pinned to: a hashed requirement file, and BASE, which takes a digest too (BASE=python@sha256:…).

variable "REPOSITORY" { default = "airloop" } # registry.example.com/team/airloop
variable "TAG" { default = "0.1.0" } # what the chart's values ask for; the label's version too
variable "REVISION" { default = "unknown" } # of the source, for the label: `git rev-parse HEAD`
# A list of all that is in the image, and how it was made, are pushed with it. Docker's own builder and store keep neither.
variable "ATTEST" { default = false }
variable "BASE" { default = "python:3.11-slim-bookworm" }
variable "BASE_CUDA" { default = "nvidia/cuda:12.9.1-runtime-ubuntu24.04" }
variable "BASE_ROCM" { default = "rocm/dev-ubuntu-24.04:6.4.1" }
variable "BASE_ASCEND" { default = "ascendai/cann:8.1.rc1-910b-ubuntu22.04-py3.11" }

group "default" { targets = ["control", "payload"] }
group "accelerators" { targets = ["payload-cuda", "payload-rocm", "payload-ascend"] }
group "kind" { targets = ["kind-control", "kind-payload"] }

target "common" {
  context = "."
  args = {
    BASE     = BASE
    VERSION  = TAG
    REVISION = REVISION
    PYTHON   = "python3.11"
  }
  attest = ATTEST ? ["type=sbom", "type=provenance,mode=max"] : ["type=sbom,disabled=true", "type=provenance,disabled=true"]
}

target "control" {
  inherits   = ["common"]
  dockerfile = "images/control.Dockerfile"
  target     = "control"
  args       = { REQUIREMENTS = "requirements/control.txt" }
  tags       = ["${REPOSITORY}/control:${TAG}"]
}

target "payload" {
  inherits   = ["common"]
  dockerfile = "images/payload.Dockerfile"
  target     = "payload"
  args       = { REQUIREMENTS = "requirements/payload.txt", VARIANT = "cpu" }
  tags       = ["${REPOSITORY}/payload:${TAG}"]
}

# No step asks for an accelerator yet. Until one does, the variants differ from the CPU's by their base alone: its
# driver libraries are what a step of your own needs. Ubuntu 24.04 has Python 3.12 and no other; what was run on it:
# docs/kubernetes.md.
target "payload-cuda" {
  inherits = ["payload"]
  args     = { BASE = BASE_CUDA, PYTHON = "python3.12", VARIANT = "cuda" }
  tags     = ["${REPOSITORY}/payload:${TAG}-cuda"]
}

target "payload-rocm" {
  inherits = ["payload"]
  args     = { BASE = BASE_ROCM, PYTHON = "python3.12", VARIANT = "rocm" }
  tags     = ["${REPOSITORY}/payload:${TAG}-rocm"]
}

target "payload-ascend" {
  inherits = ["payload"]
  args     = { BASE = BASE_ASCEND, VARIANT = "ascend" }
  tags     = ["${REPOSITORY}/payload:${TAG}-ascend"]
}

# Into Docker's own store, whichever builder is in use.
target "local" {
  attest = ["type=sbom,disabled=true", "type=provenance,disabled=true"]
  output = ["type=docker"]
}

target "kind-control" {
  inherits = ["control", "local"]
  target   = "control-demo"
  tags     = ["airloop/control:kind"]
}

target "kind-payload" {
  inherits = ["payload", "local"]
  target   = "payload-demo"
  tags     = ["airloop/payload:kind"]
}
