"""
The catalogue of steps. A step is a short module that ties the capability packages together.

A step of your own is named ``package.module:function``, or given a short name by an entry point in the group
``airloop.steps``.
"""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from airloop.errors import NotFound
from airloop.frame import Step

BUILT_IN = {
    "extract": "airloop.steps.extract:extract",
    "validate": "airloop.steps.validate:validate",
    "sql": "airloop.steps.sql:sql",
    "build_labels": "airloop.steps.sql:build_labels",
    "materialize": "airloop.steps.materialize:materialize",
    "check_parity": "airloop.steps.check_parity:check_parity",
    "build_training_set": "airloop.steps.build_training_set:build_training_set",
    "train": "airloop.steps.train:train",
    "evaluate": "airloop.steps.evaluate:evaluate",
    "register": "airloop.steps.register:register",
    "batch_score": "airloop.steps.batch_score:batch_score",
    "detect_drift": "airloop.steps.detect_drift:detect_drift",
    "report": "airloop.steps.report:report",
    "upkeep": "airloop.steps.upkeep:upkeep",
    "backup": "airloop.steps.upkeep:backup",
}


def names() -> list[str]:
    """Names of all steps that are installed, built-in ones in the order of a loop."""
    own = sorted(e.name for e in entry_points(group="airloop.steps"))
    return [*BUILT_IN, *(n for n in own if n not in BUILT_IN)]


def load(name: str) -> Step:
    """
    The step of a name.

    :raises NotFound: no such step, or what is there is not one.
    """
    target = BUILT_IN.get(name) or name
    if ":" not in target:
        # Reads the metadata of every distribution: 50 ms that a name with a module need not pay.
        target = next((e.value for e in entry_points(group="airloop.steps", name=name)), name)
    module_name, separator, attribute = target.partition(":")
    if not separator:
        raise NotFound(f"there is no step {name!r}", f"steps: {', '.join(names())}; or name package.module:function")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ModuleNotFoundError, AttributeError) as cause:
        if isinstance(cause, ModuleNotFoundError) and cause.name != module_name:
            raise
        raise NotFound(f"step {name!r}: {target} cannot be imported", "is the package installed here?") from cause
    if not isinstance(found, Step):
        raise NotFound(f"{target} is a {type(found).__name__}, not a step", "decorate the function with @step()")
    return found
