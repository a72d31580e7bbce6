"""Fixtures of the tests that start payload processes."""

from tests.payload_runs import code, environment, make_request, make_runner, run, run_folder, start

__all__ = ["code", "environment", "make_request", "make_runner", "run", "run_folder", "start"]
