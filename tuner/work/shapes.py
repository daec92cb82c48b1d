"""Steps to ask a timer about: decodes of so many sequences, a part of one prompt."""

from __future__ import annotations

from engine.spec.modes import BASE, Mode
from engine.spec.steps import StepShape

# Sizes between powers of two as well: kernels work in tiles, which a power of two just fills.
STEP_TOKENS = (
    *(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768),
    *(1024, 1536, 2048, 2304, 3072, 4096),
)
CONTEXT_TOKENS = 512


def step_shape(num_tokens: int, max_num_seqs: int, mode: Mode = BASE) -> StepShape:
    """A step of ``num_tokens``: decodes as far as ``max_num_seqs`` allows, one prompt beyond."""
    if num_tokens <= max_num_seqs:
        return decode_shape(num_tokens, CONTEXT_TOKENS, mode)
    return prompt_shape(num_tokens, mode)


def decode_shape(num_seqs: int, context_tokens: int, mode: Mode = BASE) -> StepShape:
    """One token for each of ``num_seqs`` sequences of ``context_tokens``."""
    return StepShape(
        mode=mode,
        num_seqs=num_seqs,
        num_decode_tokens=num_seqs,
        decode_context_tokens=num_seqs * context_tokens,
        num_sampled=num_seqs,
    )


def prompt_shape(num_tokens: int, mode: Mode = BASE) -> StepShape:
    """One whole prompt."""
    return StepShape(
        mode=mode,
        num_seqs=1,
        num_prefill_tokens=num_tokens,
        prefill_context_tokens=num_tokens,
        prefill_attention_pairs=num_tokens * (num_tokens + 1) // 2,
        num_sampled=1,
    )
