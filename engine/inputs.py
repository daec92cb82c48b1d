"""From a scheduled step to the message that ranks run: ids, tables and sampling rows as arrays."""

from __future__ import annotations

import numpy as np

from engine.scheduled import ScheduledStep
from engine.sequences import SequenceTable
from engine.steps import Int32Array, StepPlan


def step_plan(
    step: ScheduledStep, table: SequenceTable, *, with_inputs: bool, return_logits: bool
) -> StepPlan:
    """The wire form of ``step``; without inputs it carries the shape only (simulated ranks)."""
    if not with_inputs:
        return StepPlan(step_id=step.step_id, shape=step.shape)
    slots = step.slots
    width = int(table.num_blocks[slots].max())
    sampled = np.flatnonzero(step.is_sampled).astype(np.int32)
    rows = slots[sampled]
    return StepPlan(
        step_id=step.step_id,
        shape=step.shape,
        query_lens=step.query_lens.tobytes(),
        context_lens=step.context_lens.tobytes(),
        block_tables=table.blocks[slots, :width].tobytes(),
        token_ids=_token_ids(step, table).tobytes(),
        sample_seqs=sampled.tobytes(),
        temperatures=table.temperature[rows].tobytes(),
        top_ks=table.top_k[rows].tobytes(),
        top_ps=table.top_p[rows].tobytes(),
        seeds=table.seed[rows].tobytes(),
        positions=(table.num_tokens[rows] - table.prompt_len[rows]).tobytes(),
        return_logits=return_logits,
    )


def _token_ids(step: ScheduledStep, table: SequenceTable) -> Int32Array:
    """Flattened new tokens; decode rows come from the array, only chunks touch their lists."""
    is_decode = (step.query_lens == 1) & step.is_sampled
    if is_decode.all():
        return table.last_token[step.slots]
    ids = np.empty(int(step.query_lens.sum()), np.int32)
    starts = np.cumsum(step.query_lens) - step.query_lens
    ids[starts[is_decode]] = table.last_token[step.slots[is_decode]]
    for row in np.flatnonzero(~is_decode).tolist():
        begin, count = int(step.context_lens[row]), int(step.query_lens[row])
        start = int(starts[row])
        ids[start : start + count] = step.sequences[row].token_slice(begin, begin + count)
    return ids
