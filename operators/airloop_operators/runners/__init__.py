"""Where steps run. A runner is found by name and imported only when it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airloop.errors import BadConfiguration

if TYPE_CHECKING:
    from airloop_operators.runners.base import Runner
    from airloop_operators.settings import Settings

NAMES = ("local", "pod")


def get_runner(name: str, settings: Settings) -> Runner:
    """
    The runner of a name, for one task.

    :raises BadConfiguration: there is no such runner.
    """
    if name == "local":
        from airloop_operators.runners.local import LocalRunner

        return LocalRunner(warm=settings.warm, preload=settings.preload)
    if name == "pod":
        from airloop_operators.runners.pod.runner import PodRunner
        from airloop_operators.runners.pod.sizes import read_pods

        return PodRunner(read_pods(settings.sizes))
    raise BadConfiguration(f"there is no runner {name!r}", f"runners: {', '.join(NAMES)}; see [airloop] runner")
