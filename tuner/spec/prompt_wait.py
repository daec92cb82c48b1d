"""Prompts that are held back, so that more of them share a step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuner.spec.errors import TunerError


@dataclass(frozen=True, kw_only=True)
class PromptWait:
    """While answers are decoded, prompts wait for up to ``steps`` steps until a step with them
    holds at least ``share`` of the tokens that it may; 0: nobody waits.

    TensorRT-LLM's ``batch_wait_timeout_iters`` and ``batch_wait_max_tokens_ratio`` (its pull
    request 7416). Prompts are not cut then: one that does not fit waits for the next.

    Raises:
        TunerError: steps below 0, or a share outside 0 to 1.
    """

    steps: int = 0
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise TunerError(f"prompt_wait steps={self.steps}: must be at least 0")
        if not 0.0 <= self.share <= 1.0:
            raise TunerError(f"prompt_wait share={self.share}: must be from 0 to 1")

    @property
    def is_on(self) -> bool:
        return self.steps > 0 and self.share > 0.0

    def goes_on(self, waited: int, tokens: int, budget: int) -> bool:
        """Whether prompts that have waited ``waited`` steps wait for another one, if a step with
        them would hold ``tokens`` of ``budget``."""
        return waited < self.steps and tokens < self.share * budget


NO_PROMPT_WAIT = PromptWait()


def num_fitting(prompts: Sequence[int], running: int, budget: int) -> tuple[int, int]:
    """How many of the first ``prompts`` (their tokens) fit whole beside ``running`` decodes, at
    least one; and the tokens of a step with them, at most ``budget``."""
    tokens = running
    for count, prompt in enumerate(prompts):
        if count and tokens + prompt > budget:
            return count, min(tokens, budget)
        tokens += prompt
    return len(prompts), min(tokens, budget)
