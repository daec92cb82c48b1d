"""An executor that runs one rank in process, and keeps lines of every step in a file."""

import os

from engine.executors.inline import InlineExecutor
from engine.spec.steps import StepPlan, StepResult


class LoggedSteps(InlineExecutor):
    def submit(self, step: StepPlan) -> None:
        super().submit(step)
        shape = step.shape
        tokens = shape.num_prefill_tokens + shape.num_decode_tokens
        _log(f"{step.step_id} begins: {tokens} tokens of {shape.num_seqs} sequences")

    def collect(self, timeout_s: float | None = None) -> StepResult:
        result = super().collect(timeout_s)
        _log(f"{result.step_id} ends: {result.forward_s * 1e3:.2f} ms on the rank")
        return result


def _log(line: str) -> None:
    with open(os.environ.get("STEP_LOG", "steps.log"), "a") as file:
        file.write(line + "\n")
