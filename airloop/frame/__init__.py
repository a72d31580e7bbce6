"""What makes a function a step: typed arguments, a content key, a manifest, reuse."""

from airloop.frame.step import KEYLESS, Step, StepContext, StepResult, step

__all__ = ["KEYLESS", "Step", "StepContext", "StepResult", "step"]
