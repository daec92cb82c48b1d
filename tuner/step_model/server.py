"""Steps of a serving system that is seen from outside only: their law, and a timer over it.

Parts of a step cannot be told apart from there, and the host's work is within: what is seen is how
long prompts of several lengths take alone, and how far tokens of several streams lie apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from engine.spec.steps import StepShape
from tuner.backends import ServedSeconds
from tuner.spec.documents import check_not_negative
from tuner.step_model.operators import Curve


@dataclass(frozen=True, kw_only=True)
class ServerSteps:
    """Seconds of a step: ``rows`` over its tokens, and what is added per sequence in it, per
    query-key pair of its prompts, and per cached token that its decodes read.

    Raises:
        TunerError: an addend below 0.
    """

    rows: Curve
    per_seq_s: float
    per_pair_s: float
    per_context_s: float

    def __post_init__(self) -> None:
        check_not_negative(self, "per_seq_s", "per_pair_s", "per_context_s")

    def seconds(self, shape: StepShape) -> float:
        return (
            self.rows.at(shape.num_tokens)
            + self.per_seq_s * shape.num_seqs
            + self.attention_s(shape)
        )

    def attention_s(self, shape: StepShape) -> float:
        """What grows with the tokens that are looked at."""
        return (
            self.per_pair_s * shape.prefill_attention_pairs
            + self.per_context_s * shape.decode_context_tokens
        )


class ServerTimer:
    """A :class:`engine.executors.protocol.StepTimer` of one stage; host seconds are in the step."""

    def __init__(self, steps: ServerSteps) -> None:
        self._steps = steps

    def stage_seconds(self, shape: StepShape) -> tuple[float, ...]:
        return (self._steps.seconds(shape),)

    def host_seconds(self, shape: StepShape) -> float:  # noqa: ARG002 - a StepTimer
        return 0.0

    def breakdown(self, shape: StepShape) -> ServedSeconds:
        """What a step of one token takes, and what each sequence adds, counts as launching; what
        grows with rows as products; communication and the head are within these."""
        steps = self._steps
        fixed_s = steps.rows.at(1)
        return ServedSeconds(
            gemm_s=steps.rows.at(shape.num_tokens) - fixed_s,
            attention_s=steps.attention_s(shape),
            elementwise_s=0.0,
            head_s=0.0,
            communication_s=0.0,
            launch_s=fixed_s + steps.per_seq_s * shape.num_seqs,
            schedule_s=0.0,
            input_s=0.0,
            sample_s=0.0,
            output_s=0.0,
            exposed_s=0.0,
        )
