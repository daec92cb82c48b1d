"""From a scheduled step to the message that ranks run: only what changed since the step before."""

from __future__ import annotations

import numpy as np

from engine.scheduler.step import PlacedSequence, ScheduledStep
from engine.spec.request import SamplingParams
from engine.spec.steps import SlotSampling, SlotStart, StepPlan


def step_plan(
    step: ScheduledStep,
    *,
    with_inputs: bool = True,
    return_logits: bool = False,
    eos_token_ids: frozenset[int] = frozenset(),
) -> StepPlan:
    """The wire form of ``step``; without inputs it carries the shape only (simulated ranks)."""
    if not with_inputs:
        return StepPlan(step_id=step.step_id, shape=step.shape)
    is_decode_only = step.shape.num_tokens == len(step.slots)
    grown_slots, grown_blocks = step.list_grown()
    return StepPlan(
        step_id=step.step_id,
        shape=step.shape,
        starts=[slot_start(placed, eos_token_ids) for placed in step.placed],
        grown_slots=grown_slots.tobytes(),
        grown_blocks=grown_blocks.tobytes(),
        slots=step.slots.astype(np.int32).tobytes(),
        query_lens=b"" if is_decode_only else step.query_lens.tobytes(),
        return_logits=return_logits,
    )


def slot_start(placed: PlacedSequence, eos_token_ids: frozenset[int]) -> SlotStart:
    """What ranks must know of a sequence that takes a slot."""
    sequence, num_cached = placed.sequence, placed.num_cached
    sampling = slot_sampling(sequence.request.sampling, eos_token_ids)
    past = sequence.token_slice(0, num_cached) if sampling.has_penalties else []
    known = sequence.token_slice(num_cached, placed.num_tokens)
    return SlotStart(
        slot=placed.slot,
        prompt_len=sequence.prompt_len,
        token_ids=np.array(known, np.int32).tobytes(),
        num_computed=num_cached,
        past_ids=np.array(past, np.int32).tobytes(),
        blocks=placed.blocks.astype(np.int32).tobytes(),
        sampling=sampling,
    )


def slot_sampling(sampling: SamplingParams, eos_token_ids: frozenset[int]) -> SlotSampling:
    """The values of ``sampling`` that ranks need."""
    banned: set[int] = set()
    if sampling.min_tokens:
        banned = set(sampling.stop_token_ids)
        banned |= set() if sampling.ignore_eos else eos_token_ids
    return SlotSampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=dict(sampling.logit_bias),
        min_tokens=sampling.min_tokens,
        banned_ids=tuple(sorted(banned)),
        seed=sampling.seed,
        choice=sampling.choice,
        num_logprobs=-1 if sampling.logprobs is None else sampling.logprobs,
        num_prompt_logprobs=-1 if sampling.prompt_logprobs is None else sampling.prompt_logprobs,
    )
